//! The daemon, from top to bottom: read the configuration, build the parts, start them, wait, stop.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ferro_transport::{local, notify};
use tokio::signal::unix::{SignalKind, signal};

use crate::api::{self, control::ControlPlane};
use crate::config::Config;
use crate::plane::Plane;

/// How long stopping may take; then the process ends anyway, which is as safe as a power cut.
const STOP_MAX: Duration = Duration::from_secs(20);

/// How the daemon has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Everything is closed.
    Clean,
    /// Something did not answer and was left as it is, and its threads may wait for good: the process is to end without
    /// waiting for anything.
    Left,
}

/// Runs the daemon until it is told to stop.
pub async fn run(config_path: &Path) -> anyhow::Result<End> {
    let config = Arc::new(Config::load(config_path)?);
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("can't make the directory {}", config.state_dir.display()))?;
    for dir in [&config.run_dir, &config.volumes_dir()] {
        local::folder(dir, &config.group)?;
    }
    tracing::info!(config = %config_path.display(), "configuration read");

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let listener = local::bind_async(&config.api_socket(), Some(&config.group))?;
    let plane = Arc::new(Plane::new(Arc::clone(&config)).await?);
    tracing::info!(socket = %config.api_socket().display(), "serving the API");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let control: Arc<dyn ControlPlane> = Arc::<Plane>::clone(&plane);
    let serving = tokio::spawn(api::serve(listener, control, async move {
        // Dropped or sent: both mean to stop.
        let _stop = stopped.await;
    }));
    let watchdog = notify::ready()?;

    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop"),
        _ = interrupt.recv() => tracing::info!("interrupted"),
        reason = plane.failed() => tracing::error!(reason, "this host can't go on"),
        () = notify::keep_alive(watchdog, || plane.turns()) => {}
    }

    notify::stopping();
    drop(stop);
    let left = tokio::time::timeout(STOP_MAX, plane.stop()).await;
    serving.abort();
    local::remove(&config.api_socket())?;
    match left {
        Ok(disks) if disks.is_empty() => {
            tracing::info!("stopped");
            return Ok(End::Clean);
        }
        Ok(disks) => tracing::error!(disks = disks.len(), "stopped without what does not answer"),
        Err(_) => {
            tracing::error!("stopping took too long; what is in the journals is replayed at the next start")
        }
    }
    Ok(End::Left)
}
