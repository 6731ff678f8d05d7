//! This host as a member of its cluster: the directory, the connections to the other hosts, the disks and the volumes
//! that are open here, and the duties that come with membership.
//!
//! ```text
//!   no member ──bootstrap / join──▶ identity, member.json ──start──▶ Member ──▶ tasks: accept, dial, watch, renew the lease,
//!                                                                              voters, leftovers, usage, events of the loop
//! ```
//!
//! A `Member` is shared by the API and the tasks. What it must not know: HTTP, how the data loop works inside.

pub mod absence;
mod admission;
mod announce;
pub mod balance;
pub mod connections;
pub mod departure;
pub mod devices;
pub mod disks;
pub mod duties;
pub mod erring;
pub mod keep;
pub mod kept;
pub mod limits;
mod load;
pub mod network;
pub mod ownership;
pub mod pace;
mod repair;
pub mod scrub;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ferro_protocol::api::{EventKind, EventLevel};
use ferro_protocol::ids::{ClusterId, DiskId, HostId, ObjectId};
use ferro_transport::UnixTime;
use ferro_transport::files;
use ferro_transport::identity::{CaError, HOST_CERT_LIFETIME, IdentityDir, IdentityError, IdentityHandle};
use ferro_transport::tls::{BindError, Endpoint};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;
use vsand_core::directory::{Command, FeatureLevel, Outcome, Refused, State};
use vsand_core::lease::Watcher;
use vsand_directory::{Config as DirectoryConfig, Directory, DirectoryError};

use crate::config::Config;
use crate::data::clock;
use crate::data::port::{ConnectionId, DataHandle, Event};
use crate::events::diff::host_name;
use crate::events::{Draft, EventLog};
use crate::plane::remote::Reporter;
use disks::{DiskError, Disks};
use network::Peers;
use ownership::OpenVolume;

/// How long the directory may take to stop.
const DIRECTORY_STOP_MAX: Duration = Duration::from_secs(2);
/// The status of a daemon whose data loop has failed.
const EXIT_LOOP: i32 = 70;

/// A host that was not heard of for so long is not waited for, and does no work of the cluster's.
const THERE_WITHIN: Duration = Duration::from_secs(5);

/// Waits for a quorum so long before an administrator's command fails.
pub const PROPOSE_MAX: Duration = Duration::from_secs(10);

/// What this host knows of its membership before anything runs; `member.json` in the state directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// The version of this file.
    pub version: u8,
    /// The cluster.
    pub cluster: ClusterId,
    /// This host.
    pub host: HostId,
    /// What people call it.
    pub name: String,
    /// What fails together with it.
    pub fault_domain: String,
    /// It made the cluster.
    #[serde(default)]
    pub founder: bool,
    /// Its part of the directory was opened before: if the files are gone now, something is wrong.
    pub took_part: bool,
    /// The cluster knows the name and the fault domain. From then on they are the directory's: `vsanctl host set` changes them
    /// there, and what stands here follows.
    #[serde(default)]
    pub announced: bool,
    /// The cluster's feature level, as this host last heard. It is not written down at the first one, so that a release that knows
    /// of no levels can read this file then, and only then.
    #[serde(default, skip_serializing_if = "is_first")]
    pub feature_level: FeatureLevel,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands fields over so")]
fn is_first(level: &FeatureLevel) -> bool {
    *level == FeatureLevel::default()
}

/// Why a member could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Certificates or keys.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS would not take the identity.
    #[error("this host's certificate can't be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The address.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The data loop.
    #[error("the data loop did not start: {0}")]
    Loop(std::io::Error),
    /// A file of the state directory.
    #[error("{path}: {source}; check the state directory and its permissions")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The list of disks.
    #[error(transparent)]
    Disks(#[from] DiskError),
    /// The cluster was upgraded, and this is an earlier release.
    #[error(
        "the cluster is at feature level {cluster}, and this vsand knows those from {} to {}: install the release that ran here before, \
         or a later one; nothing was changed",
        FeatureLevel::OLDEST,
        FeatureLevel::NEWEST
    )]
    Level {
        /// The cluster's.
        cluster: FeatureLevel,
    },
}

/// This host in its cluster.
pub struct Member {
    /// The settings.
    pub config: Arc<Config>,
    /// Who this host was when it started; what it is called may have changed since.
    pub membership: Membership,
    /// The certificates' files.
    pub identity_dir: IdentityDir,
    /// The certificates.
    pub identity: IdentityHandle,
    /// The cluster directory.
    pub directory: Directory<State>,
    /// The data loop.
    pub data: DataHandle,
    /// Control connections to the others.
    pub peers: Arc<Peers>,
    /// This host's disks.
    pub disks: Disks,
    /// What happened, as this host saw it.
    pub events: EventLog,
    /// What reports to other hosts need from one time to the next.
    pub reporter: Reporter,
    /// What this host scrubs.
    pub scrubs: scrub::Scrubs,
    /// What this host moves to an emptier disk.
    pub moves: balance::Moves,
    /// Disks of this host that err too often.
    pub erring: erring::Erring,
    /// How fast the disks of this host are.
    pub paces: pace::Paces,
    /// How long each host's lease has stood still.
    watcher: Mutex<Watcher>,
    /// The volumes that this host has open.
    open: Mutex<HashMap<ObjectId, OpenVolume>>,
    /// The volumes of before the restart were taken up, or can't be.
    pub(crate) taken_up: AtomicBool,
    /// Opening and closing are done one after the other.
    pub(crate) opening: tokio::sync::Mutex<()>,
    next_connection: AtomicU64,
    /// The directory has this host's record as it should be. Its lease begins only then, and what an operator changes of the
    /// record is refused before, so that the host does not undo it.
    pub(crate) announced: tokio::sync::watch::Sender<bool>,
    /// Asks for a renewal of the lease at once.
    pub(crate) renew_now: tokio::sync::Notify,
    /// Hosts to which the data connection broke.
    pub(crate) broken: tokio::sync::mpsc::UnboundedSender<HostId>,
}

impl Membership {
    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("member.json")
    }

    /// Reads it; `None` before the host is a member.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, StartError> {
        let path = Self::path(state_dir);
        let failed = |source| StartError::File { path: path.clone(), source };
        match std::fs::read(&path) {
            Ok(bytes) => {
                let read: Self = serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?;
                let cluster = read.feature_level;
                if cluster.is_known() { Ok(Some(read)) } else { Err(StartError::Level { cluster }) }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes it, stable when it returns.
    pub fn store(&self, state_dir: &Path) -> Result<(), StartError> {
        let path = Self::path(state_dir);
        let bytes = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        bytes
            .and_then(|bytes| files::replace(&path, &bytes))
            .map_err(|source| StartError::File { path: path.clone(), source })
    }
}

/// What [`Member::start`] begins with.
pub struct Start {
    /// The settings.
    pub config: Arc<Config>,
    /// Who this host is.
    pub membership: Membership,
    /// Whether it makes the cluster.
    pub bootstrap: bool,
}

impl Member {
    /// Starts everything, in the order in which one needs the other.
    pub async fn start(start: Start) -> Result<Arc<Self>, StartError> {
        let Start { config, mut membership, bootstrap } = start;
        let host = membership.host;
        for (setting, says, is) in [
            ("name", &config.name, &membership.name),
            ("fault_domain", &config.fault_domain, &membership.fault_domain),
        ] {
            if let Some(says) = says.as_ref().filter(|says| *says != is) {
                tracing::warn!(
                    setting,
                    configured = %says,
                    in_use = %is,
                    "this setting counts only at bootstrap or join; to change it, use `vsanctl host set`"
                );
            }
        }
        let identity_dir = IdentityDir::new(config.state_dir.join("identity"));
        let now = UnixTime::now();
        let identity = IdentityHandle::new(identity_dir.load_or_renew(now, HOST_CERT_LIFETIME)?)?;

        let endpoint = Endpoint::bind(config.listen, identity.clone()).await?;
        let peers = Arc::new(Peers::new(identity.clone()));
        let mut directory_config = DirectoryConfig::new(
            membership.cluster,
            host,
            config.state_dir.join("directory"),
            config.advertised().to_string(),
        );
        directory_config.fault_domain.clone_from(&membership.fault_domain);
        directory_config.was_member = membership.took_part;
        let directory = Directory::open(directory_config, Arc::<Peers>::clone(&peers)).await?;
        if bootstrap {
            match directory.bootstrap().await {
                Ok(()) | Err(DirectoryError::AlreadyBootstrapped) => {}
                Err(error) => return Err(error.into()),
            }
            // A cluster that this release makes has all that it knows.
            let (from, to, hosts) = (FeatureLevel::default(), FeatureLevel::NEWEST, Vec::new());
            let raise = Command::RaiseLevel { from, to, hosts };
            if let Err(refused) = directory.propose_within(&raise, PROPOSE_MAX).await? {
                tracing::debug!(%refused, "the feature level was raised before");
            }
        }

        if !membership.took_part {
            membership.took_part = true;
            membership.store(&config.state_dir)?;
        }

        let (data, port, loop_events) = crate::data::port::channel().map_err(StartError::Loop)?;
        let load_half_life = config.rebalance.load_half_life();
        std::thread::Builder::new()
            .name("vsand-data".to_owned())
            .spawn(move || {
                if let Err(error) = crate::data::run(port, load_half_life) {
                    tracing::error!(%error, "the data loop has failed; this host can't go on");
                    signal_hook::low_level::exit(EXIT_LOOP);
                }
            })
            .map_err(StartError::Loop)?;

        let (broken, breaks) = tokio::sync::mpsc::unbounded_channel();
        let disks = Disks::load(&config.state_dir, config.debug_faults)?;
        let events = EventLog::open(&config.state_dir)
            .map_err(|source| StartError::File { path: config.state_dir.join("events"), source })?;
        let announced = membership.announced;
        let member = Arc::new(Self {
            config,
            membership,
            identity_dir,
            identity,
            directory,
            data,
            peers,
            disks,
            events,
            reporter: Reporter::default(),
            scrubs: scrub::Scrubs::default(),
            moves: balance::Moves::default(),
            erring: erring::Erring::default(),
            paces: pace::Paces::default(),
            watcher: Mutex::new(Watcher::default()),
            open: Mutex::new(HashMap::new()),
            taken_up: AtomicBool::new(false),
            opening: tokio::sync::Mutex::new(()),
            next_connection: AtomicU64::new(1),
            announced: tokio::sync::watch::Sender::new(announced),
            renew_now: tokio::sync::Notify::new(),
            broken,
        });
        member.disks.open_all(&member).await;
        Self::spawn_tasks(&member, endpoint, loop_events, breaks)?;
        Ok(member)
    }

    fn spawn_tasks(
        member: &Arc<Self>,
        endpoint: Endpoint,
        loop_events: UnboundedReceiver<Event>,
        breaks: UnboundedReceiver<HostId>,
    ) -> Result<(), StartError> {
        let registrar = admission::registrar(member)?;
        // First what the directory says: what is kept for volumes is kept from others' first request on.
        tokio::spawn(duties::watch(Arc::clone(member), breaks));
        tokio::spawn(connections::accept(Arc::clone(member), endpoint, registrar));
        tokio::spawn(duties::events(Arc::clone(member), loop_events));
        tokio::spawn(duties::renew_lease(Arc::clone(member)));
        tokio::spawn(announce::announce(Arc::clone(member)));
        tokio::spawn(duties::choose_voters(Arc::clone(member)));
        tokio::spawn(duties::report_usage(Arc::clone(member)));
        tokio::spawn(load::report(Arc::clone(member)));
        tokio::spawn(duties::remove_leftovers(Arc::clone(member)));
        tokio::spawn(departure::see_off(Arc::clone(member)));
        tokio::spawn(absence::watch(Arc::clone(member)));
        tokio::spawn(crate::events::watch::watch(Arc::clone(member)));
        tokio::spawn(ownership::reopen(Arc::clone(member)));
        tokio::spawn(repair::repair_closed(Arc::clone(member)));
        tokio::spawn(scrub::scrub(Arc::clone(member)));
        tokio::spawn(balance::balance(Arc::clone(member)));
        tokio::spawn(erring::watch(Arc::clone(member)));
        tokio::spawn(ferro_transport::renew::keep_renewed(
            member.identity_dir.clone(),
            member.identity.clone(),
            HOST_CERT_LIFETIME,
        ));
        Ok(())
    }

    /// This host.
    pub fn host(&self) -> HostId {
        self.membership.host
    }

    /// What the directory says, as far as this host has heard.
    pub fn state(&self) -> Arc<State> {
        self.directory.state()
    }

    /// Proposes a change and waits for what became of it. One that not all hosts would understand is refused here.
    pub async fn propose(&self, command: &Command) -> Result<Result<Outcome, Refused>, DirectoryError> {
        let now = self.state().level;
        if command.since() > now {
            return Ok(Err(Refused::OtherLevel { now }));
        }
        self.directory.propose_within(command, PROPOSE_MAX).await
    }

    pub(crate) fn watcher(&self) -> MutexGuard<'_, Watcher> {
        // Every change is one call, so what a panic left behind is whole.
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this host counts as there: it was heard of within the last seconds, or is this one.
    pub(crate) fn hears_from(&self, host: HostId) -> bool {
        let silent = self.watcher().silent_for(clock::mono(), host);
        host == self.host() || silent.is_some_and(|silent| silent < THERE_WITHIN)
    }

    pub(crate) fn open_volumes(&self) -> MutexGuard<'_, HashMap<ObjectId, OpenVolume>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fresh_connection(&self) -> ConnectionId {
        ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }

    /// Stops: guests' sockets are closed, disks are checkpointed. Locks stay, so that the volumes are opened again at the
    /// next start. Returns the disks that did not answer and were left as they are.
    pub async fn stop(&self) -> Vec<DiskId> {
        let me = self.host();
        let message = format!("vsand stops on host {}", host_name(&self.state(), me));
        let stopped = Draft::new(EventKind::DaemonStopped, EventLevel::Info, format!("host {me}"), message);
        self.events.add(vec![stopped]).await;
        let left = self.data.ask(crate::data::port::Command::Stop).await.unwrap_or_else(|_| {
            tracing::warn!("the data loop had ended already");
            Vec::new()
        });
        // It waits for requests to other hosts, which may be stopping as well. All that it was told is in its log.
        if tokio::time::timeout(DIRECTORY_STOP_MAX, self.directory.shutdown()).await.is_err() {
            tracing::info!("the directory still waited for other hosts; it is left as after a power cut");
        }
        left
    }
}
