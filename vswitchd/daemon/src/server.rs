//! The daemon, from top to bottom: read the configuration, build the parts, start them, wait, stop.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use async_trait::async_trait;
use ferro_protocol::ids::HostId;
use ferro_protocol::net::Sequence;
use ferro_transport::UnixTime;
use ferro_transport::identity::{IdentityDir, IdentityHandle};
use ferro_transport::{files, local, notify};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use vswitch_core::bugs::Bugs;
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::Settings;

use crate::api::{self, control::ControlPlane};
use crate::config::{Config, Congestion};
use crate::data::port::Command;
use crate::data::{self, Worker, clock};
use crate::plane::{Memory, Neighbours, Parts, Plane};
use crate::tunnel::control::{Mesh, MeshCommand, MeshEvent, MeshSettings, PeerView, Revision};
use crate::tunnel::data::{Congestion as Managed, Settings as TunnelSettings, Tunnels};

/// How long stopping may take; then the process ends anyway, and guests wait for the next one.
const STOP_MAX: Duration = Duration::from_secs(5);
/// How often certificates are looked at: `vsand` renews them.
const IDENTITY_EVERY: Duration = Duration::from_secs(60);

/// How the daemon has stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Everything is closed.
    Clean,
    /// The worker has ended by itself, or does not answer.
    Failed,
    /// This host has become a member of a cluster: everything is to begin anew with its certificate.
    Joined,
}

/// Runs the daemon until it is told to stop. A host that joins a cluster begins anew in the same process: as after a restart,
/// guests connect again, and TAPs stay.
pub async fn run(config_path: &Path) -> anyhow::Result<End> {
    // For all of the process: what arrives between two beginnings is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    loop {
        let end = run_once(config_path, &mut terminate, &mut interrupt).await?;
        if end != End::Joined {
            return Ok(end);
        }
    }
}

async fn run_once(config_path: &Path, terminate: &mut Signal, interrupt: &mut Signal) -> anyhow::Result<End> {
    let config = Arc::new(Config::load(config_path)?);
    std::fs::create_dir_all(&config.host.state_dir)
        .with_context(|| format!("can't make the directory {}", config.host.state_dir.display()))?;
    for dir in [&config.host.run_dir, &config.ports_dir()] {
        local::folder(dir, &config.host.group)?;
    }
    tracing::info!(config = %config_path.display(), alone = config.host.alone, "configuration read");
    let memory = Memory::load(&config.host.state_dir)?;
    tracing::info!(revision = memory.revision(), "what was left behind is read");

    let identity = identity(&config)?;
    let host = match &identity {
        Some(identity) => identity.host(),
        None => own_id(&config.host.state_dir)?,
    };
    let hash = HashKey(OsRng.try_next_u64()?, OsRng.try_next_u64()?);
    let tunnels = identity.as_ref().map(|identity| tunnels(&config, identity, hash)).transpose()?;
    let mesh = identity.as_ref().map(|identity| mesh(&config, &memory, identity)).transpose()?;

    // The socket comes before the worker: a second daemon ends here and touches nothing.
    let listener = local::bind_async(&config.api_socket(), Some(&config.host.group))?;
    let Worker { handle, events, thread } = data::start(settings(host, hash), config.spin(), tunnels)?;
    let parts = Parts {
        config: Arc::clone(&config),
        memory,
        host,
        data: handle.clone(),
        data_events: events,
        mesh: mesh.map(|(mesh, events)| (Arc::new(mesh) as Arc<dyn Neighbours>, events)),
    };
    let plane = Arc::new(Plane::start(parts));
    tracing::info!(socket = %config.api_socket().display(), %host, "serving the API");

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let control: Arc<dyn ControlPlane> = Arc::<Plane>::clone(&plane);
    let serving = tokio::spawn(api::serve(listener, control, async move {
        // Dropped or sent: both mean to stop.
        let _stop = stopped.await;
    }));
    plane.ready().await;
    let watchdog = notify::ready()?;

    let end = tokio::select! {
        _ = terminate.recv() => { tracing::info!("told to stop"); End::Clean }
        _ = interrupt.recv() => { tracing::info!("interrupted"); End::Clean }
        () = plane.failed() => { tracing::error!("the worker has ended"); End::Failed }
        () = new_identity(&config, identity.as_ref()) => {
            tracing::info!("this host has joined a cluster: the switch begins anew with its certificate");
            End::Joined
        }
        () = notify::keep_alive(watchdog, || plane.turns()) => End::Failed,
    };

    if end != End::Joined {
        notify::stopping();
    }
    drop(stop);
    plane.stop().await;
    let stopped = tokio::time::timeout(STOP_MAX, handle.ask(Command::Stop)).await;
    serving.abort();
    // Until it has let go of the socket and the plane.
    let _aborted = serving.await;
    local::remove(&config.api_socket())?;
    if !matches!(stopped, Ok(Ok(()))) {
        tracing::error!("the worker did not stop");
        return Ok(End::Failed);
    }
    // It has answered, so it is about to end.
    match thread.join() {
        Ok(Ok(())) => tracing::info!("stopped"),
        Ok(Err(error)) => tracing::error!(%error, "the worker has failed"),
        Err(_) => tracing::error!("the worker has panicked"),
    }
    Ok(end)
}

/// The certificate that `vsand` keeps for this host; none of a host that is in no cluster.
fn identity(config: &Config) -> anyhow::Result<Option<IdentityHandle>> {
    let dir = IdentityDir::new(&config.host.identity_dir);
    if !dir.is_member() {
        if !config.peers.is_empty() {
            anyhow::bail!(
                "there is no certificate in {}, and tunnels to peers need one; make it with `vsanctl cluster bootstrap` or `join`, or name another identity_dir",
                dir.path().display()
            );
        }
        tracing::warn!(dir = %dir.path().display(), "no certificate there: this host has no tunnels to others");
        return Ok(None);
    }
    let identity = dir.load(UnixTime::now())?;
    Ok(Some(IdentityHandle::new(identity).context("this host's certificate can't be used")?))
}

/// Follows the certificate's files: a renewed one is used for new connections. Returns when this host, which had none, has
/// one: tunnels are opened at the start only.
async fn new_identity(config: &Config, identity: Option<&IdentityHandle>) {
    let dir = IdentityDir::new(&config.host.identity_dir);
    loop {
        tokio::time::sleep(if identity.is_some() { IDENTITY_EVERY } else { Duration::from_secs(1) }).await;
        let Some(handle) = identity else {
            if dir.is_member()
                && dir.load(UnixTime::now()).is_ok()
                && !config.host.tunnel_addresses.is_empty()
            {
                return;
            }
            continue;
        };
        match dir.load(UnixTime::now()) {
            Ok(new) if new.validity() != handle.current().validity() => match handle.replace(new) {
                Ok(()) => tracing::info!("a renewed certificate is in use"),
                Err(error) => tracing::error!(%error, "the renewed certificate can't be used"),
            },
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "this host's certificate can't be read; the last one is used")
            }
        }
    }
}

/// The id of a host that has no certificate: drawn once.
fn own_id(state_dir: &Path) -> anyhow::Result<HostId> {
    let path = state_dir.join("host-id");
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| {
            format!("{} is not the id of a host; remove it to draw a new one", path.display())
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0; 16];
            OsRng.try_fill_bytes(&mut bytes)?;
            let host = HostId(uuid::Builder::from_random_bytes(bytes).into_uuid());
            files::replace(&path, format!("{host}\n").as_bytes())
                .with_context(|| format!("can't write {}", path.display()))?;
            Ok(host)
        }
        Err(error) => Err(error).with_context(|| format!("can't read {}", path.display())),
    }
}

fn settings(host: HostId, hash: HashKey) -> Settings {
    // The wall clock at the monotonic clock's origin: claims are numbered by it.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    let sequence = Sequence(wall_us.saturating_sub(clock::now().0 / 1_000));
    Settings { host, hash, sequence, bugs: Bugs::default() }
}

fn tunnels(config: &Config, identity: &IdentityHandle, hash: HashKey) -> anyhow::Result<Tunnels> {
    let mut settings = TunnelSettings::new(config.data_addresses(), hash);
    settings.connections = config.host.connections;
    let window = config.host.window_kib << 10;
    settings.congestion = match config.host.congestion {
        Congestion::Managed => Managed::Managed { window },
        Congestion::Cubic => Managed::Cubic { window },
    };
    Ok(Tunnels::new(clock::now(), settings, identity.clone())?)
}

fn mesh(
    config: &Config,
    memory: &Memory,
    identity: &IdentityHandle,
) -> anyhow::Result<(Mesh, mpsc::Receiver<MeshEvent>)> {
    let settings = MeshSettings {
        listen: config.control_addresses(),
        data: config.data_addresses(),
        applied: Revision(memory.revision()),
        incarnation: OsRng.try_next_u64()?,
    };
    Ok(Mesh::start(settings, identity.clone())?)
}

#[async_trait]
impl Neighbours for Mesh {
    async fn tell(&self, command: MeshCommand) {
        if let Err(error) = self.send(command).await {
            tracing::error!(%error, "the other hosts can't be told");
        }
    }

    async fn peers(&self) -> Vec<PeerView> {
        Mesh::peers(self).await.unwrap_or_default()
    }
}
