//! The daemon, from top to bottom: read the configuration, find out what this host has, take up the VMs that are there, serve, wait,
//! stop. VMs outlive it.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use ferro_transport::{local, notify};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::control::ControlPlane;
use crate::api::{self};
use crate::backend::Backends;
use crate::config::Config;
use crate::host::groups::Groups;
use crate::machine::Services;
use crate::machine::claims::Claims;
use crate::peers::{Vsand, Vswitchd};
use crate::plane::Plane;

/// How long requests under way may take when the daemon is told to stop.
const STOP_MAX: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop.
pub async fn run(config_path: &Path) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = Config::load(config_path)?;
    let kept = config.state_dir.join("vms");
    std::fs::create_dir_all(&kept).with_context(|| format!("can't make the directory {}", kept.display()))?;
    for dir in [&config.run_dir, &config.run_dir.join("vms")] {
        local::folder(dir, &config.group)?;
    }
    tracing::info!(config = %config_path.display(), "configuration read");

    // The socket comes first: a second daemon ends here and touches no VM.
    let socket = config.api_socket();
    let listener = local::bind_async(&socket, Some(&config.group))?;

    let groups = Groups::find();
    let backends = Backends::find(&config);
    tracing::info!(kvm = backends.kvm().detail, groups = groups.describe().0, "what this host has is known");
    let (whose, questions) = tokio::sync::mpsc::channel(64);
    let services = Arc::new(Services {
        vsand: Vsand::new(&config.vsand_socket),
        vswitchd: Vswitchd::new(&config.vswitchd_socket),
        backends,
        groups,
        claims: Claims::default(),
        program: std::env::current_exe().context("can't find this program's own file")?,
        name: Mutex::new("this host".to_owned()),
        whose,
        config,
    });
    let plane = Plane::start(services, questions).await.context("can't read the state directory")?;
    plane.ready().await;

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let control: Arc<dyn ControlPlane> = Arc::new(Arc::clone(&plane));
    let serving = tokio::spawn(api::serve(listener, control, async move {
        // Dropped or sent: both mean to stop.
        let _stop = stopped.await;
    }));
    tracing::info!(socket = %socket.display(), "serving the API");
    let watchdog = notify::ready()?;

    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
        () = notify::keep_alive(watchdog, || async { true }) => {}
    }

    notify::stopping();
    drop(stop);
    if tokio::time::timeout(STOP_MAX, serving).await.is_err() {
        tracing::warn!("requests are still under way: they are left");
    }
    local::remove(&socket)?;
    tracing::info!("stopped; VMs go on");
    Ok(())
}
