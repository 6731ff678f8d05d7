//! Which volumes this host owns: opening, closing, and taking up again after a restart.
//!
//! ```text
//!   closed ──Acquire──▶ owned, socket bound ──Disown, Release──▶ closed
//!                            │  ▲
//!                restart: the lock in the directory is still ours: Acquire again, same socket
//!                            │
//!                            └──fenced: socket gone, nothing to release
//! ```
//!
//! The directory's lock decides; what is kept here is only where the socket is. Opening and closing are done one at a time.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferro_protocol::ids::{Epoch, ObjectId, VolumeName};
use ferro_transport::local::{self, LocalError};
use ferro_vhost::SessionError;
use ferro_vhost::blk::{BlkSettings, Sector};
use ferro_vhost::server::ServerSettings;
use vsand_core::directory::conversion::lineage;
use vsand_core::directory::{Command, Content, LockKind, ObjectRecord, Outcome, Refused};
use vsand_core::owner::Config as OwnerConfig;
use vsand_directory::DirectoryError;

use super::Member;
use crate::data::clock;
use crate::data::port::{Command as DataCommand, GuestSocket, LoopGone};

/// Requests that are under way when a volume is closed have so long to end.
const DISOWN_MAX: Duration = Duration::from_secs(15);

/// The queues that a client of a volume's socket may use.
pub const QUEUES: u16 = 4;

/// A volume that this host has open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenVolume {
    /// The epoch.
    pub epoch: Epoch,
    /// What for.
    pub kind: LockKind,
    /// The guest's socket.
    pub socket: Option<PathBuf>,
}

/// The object that this host is at with something that takes a while.
#[derive(Debug, Default)]
pub struct At(Mutex<Option<ObjectId>>);

impl At {
    pub(super) fn is(&self, object: ObjectId) -> bool {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) == Some(object)
    }

    pub(super) fn set(&self, object: Option<ObjectId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = object;
    }
}

/// Why a volume could not be opened or closed.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// No such volume.
    #[error("there is no volume {0}")]
    NoVolume(VolumeName),
    /// The volume is not open here.
    #[error("volume {0} is not open on this host")]
    NotOpen(VolumeName),
    /// It is open here, but for something else.
    #[error("volume {name} is in use on this host ({kind:?})")]
    InUseHere {
        /// The volume.
        name: VolumeName,
        /// What for.
        kind: LockKind,
    },
    /// An import was not completed.
    #[error("volume {0} holds an import that was never completed")]
    Incomplete(VolumeName),
    /// The directory said no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The directory did not answer.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] LocalError),
    /// The vhost-user server.
    #[error("the volume's socket can't be served: {0}")]
    Vhost(#[from] SessionError),
    /// Requests were still under way.
    #[error("requests of volume {0} are still under way: its data can't be reached now")]
    Busy(VolumeName),
    /// The daemon is ending.
    #[error(transparent)]
    Stopping(#[from] LoopGone),
}

impl Member {
    /// Takes the volume's lock and serves it; of one that is open here already in the same way, its socket.
    pub async fn open_volume(&self, name: &VolumeName, read_only: bool) -> Result<PathBuf, OwnError> {
        let kind = LockKind::Exclusive { read_only };
        let _one_at_a_time = self.opening.lock().await;
        let record = self.volume(name)?;
        if let Some((_, open)) = self.open_as(record.id) {
            match open.socket {
                Some(socket) if open.kind == kind => return Ok(socket),
                _ if open.kind == LockKind::Background => {}
                _ => return Err(OwnError::InUseHere { name: name.clone(), kind: open.kind }),
            }
        }
        if record.content == Content::Importing {
            return Err(OwnError::Incomplete(name.clone()));
        }
        // Bound before the lock is taken: what can fail here fails before anything has changed.
        let socket = self.bind(&record, read_only)?;
        let path = socket.path.clone();
        self.own(record, kind, Some(socket)).await?;
        Ok(path)
    }

    /// Takes the volume's lock for an import or export.
    pub async fn own_for_transfer(&self, name: &VolumeName) -> Result<Arc<ObjectRecord>, OwnError> {
        let _one_at_a_time = self.opening.lock().await;
        let record = self.volume(name)?;
        if let Some((_, open)) = self.open_as(record.id).filter(|(_, o)| o.kind != LockKind::Background) {
            return Err(OwnError::InUseHere { name: name.clone(), kind: open.kind });
        }
        self.own(record, LockKind::Transfer, None).await
    }

    /// Drops the volume's socket and gives its lock back.
    pub async fn close_volume(&self, name: &VolumeName) -> Result<(), OwnError> {
        let record = self.volume(name)?;
        match self.open_as(record.id).map(|(object, open)| (object, open.kind)) {
            Some((object, kind @ LockKind::Exclusive { .. })) => self.release(object, name, kind).await,
            Some((_, kind @ LockKind::Transfer)) => Err(OwnError::InUseHere { name: name.clone(), kind }),
            Some((_, LockKind::Background)) | None => Err(OwnError::NotOpen(name.clone())),
        }
    }

    /// Gives an object up that this host owns for this, once nothing of it is under way. What it owns for something else by now it
    /// keeps.
    pub async fn release(&self, object: ObjectId, name: &VolumeName, kind: LockKind) -> Result<(), OwnError> {
        let _one_at_a_time = self.opening.lock().await;
        if self.open_as(object).is_some_and(|(_, open)| open.kind != kind) {
            return Ok(());
        }
        let disowned = self.data.ask(|answer| DataCommand::Disown(object, answer));
        let mut owned = None;
        match tokio::time::timeout(DISOWN_MAX, disowned).await {
            Ok(answer) => owned = answer?,
            // Nobody waits for what is under way if no guest is there: it may end as in a crash, and whoever owns the object
            // next recovers from it.
            Err(_) if self.data.ask(|answer| DataCommand::Abandon(object, answer)).await? => {
                tracing::warn!(volume = %name, "requests that can't be done now were given up with the volume");
            }
            Err(_) => return Err(OwnError::Busy(name.clone())),
        }
        let open = self.open_as(object).and_then(|(object, _)| self.open_volumes().remove(&object));
        let Some(OpenVolume { epoch, socket, .. }) = open else { return Ok(()) };
        // It may have become another object meanwhile.
        let object = owned.map_or(object, |(object, _)| object);
        if let Some(path) = socket {
            remove_socket(&path);
        }
        match self.propose(&Command::Release { object, epoch, host: self.host() }).await? {
            // Lost meanwhile: there is nothing to give back.
            Ok(_) | Err(Refused::NotHolder(_) | Refused::NoObject(_)) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Gives the lock of an object back that this host holds and does not serve.
    pub(crate) async fn give_back(&self, object: ObjectId, epoch: Epoch) -> Result<(), OwnError> {
        match self.propose(&Command::Release { object, epoch, host: self.host() }).await? {
            Ok(_) | Err(Refused::NotHolder(_) | Refused::NoObject(_)) => Ok(()),
            Err(refused) => Err(refused.into()),
        }
    }

    /// A conversion has ended: the volume is another object.
    pub(super) fn became(&self, from: ObjectId, to: ObjectId) {
        let mut open = self.open_volumes();
        if let Some(volume) = open.remove(&from) {
            open.insert(to, volume);
        }
    }

    /// What this host has open of the volume that this object is, was or is to become, and which object that is.
    fn open_as(&self, object: ObjectId) -> Option<(ObjectId, OpenVolume)> {
        let open = self.open_volumes();
        let same = open.iter().find(|(open, _)| lineage(**open) == lineage(object));
        same.map(|(object, volume)| (*object, volume.clone()))
    }

    pub(super) fn has_open(&self, object: ObjectId) -> bool {
        self.open_as(object).is_some()
    }

    /// Another host owns the object now.
    pub(super) fn lost(&self, object: ObjectId, epoch: Epoch) {
        let mut open = self.open_volumes();
        if open.get(&object).is_some_and(|o| o.epoch == epoch)
            && let Some(path) = open.remove(&object).and_then(|o| o.socket)
        {
            remove_socket(&path);
        }
    }

    /// The volume of this name.
    pub fn volume(&self, name: &VolumeName) -> Result<Arc<ObjectRecord>, OwnError> {
        self.state().by_name(name).cloned().ok_or_else(|| OwnError::NoVolume(name.clone()))
    }

    pub(super) async fn own(
        &self,
        record: Arc<ObjectRecord>,
        kind: LockKind,
        socket: Option<GuestSocket>,
    ) -> Result<Arc<ObjectRecord>, OwnError> {
        let path = socket.as_ref().map(|s| s.path.clone());
        let (record, acquired) = match self.acquire(record, kind).await {
            Ok(record) => (record, clock::mono()),
            Err(error) => {
                drop(socket);
                if let Some(path) = path {
                    remove_socket(&path);
                }
                return Err(error);
            }
        };
        let mut config = OwnerConfig::new(self.host());
        config.read_only = matches!(kind, LockKind::Exclusive { read_only: true });
        config.repair_delay_s = self.config.repair_delay_s;
        config.resync_bytes_per_s = self.config.resync_mib_per_s << 20;
        let open = OpenVolume { epoch: record.epoch, kind, socket: path };
        self.open_volumes().insert(record.id, open);
        let socket = socket.map(Box::new);
        self.data.send(DataCommand::Own { record: Arc::clone(&record), acquired, config, socket })?;
        // Reads wait for a lease that knows this lock.
        self.renew_now.notify_one();
        Ok(record)
    }

    /// Owns a volume that nobody has open, for as long as something of it is to be put right; one that is owned here already is fine
    /// as it is.
    pub(super) async fn own_to_tend(&self, object: ObjectId) -> bool {
        let _one_at_a_time = self.opening.lock().await;
        // Asked first: the state may be from before it was opened here, and to own it once more would take it from its guest.
        if self.open_volumes().contains_key(&object) {
            return true;
        }
        let Some(record) = self.state().objects.get(&object).cloned() else { return false };
        if self.has_open(object) || self.state().holder(&record, self.host()).is_some() {
            return false;
        }
        match self.own(Arc::clone(&record), LockKind::Background, None).await {
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(volume = %record.name, %error, "a closed volume is left alone now");
                false
            }
        }
    }

    /// Takes the lock in the directory; the epoch may have moved on since this host last heard.
    async fn acquire(
        &self,
        mut record: Arc<ObjectRecord>,
        kind: LockKind,
    ) -> Result<Arc<ObjectRecord>, OwnError> {
        let mut tries = 0;
        loop {
            let command = Command::Acquire {
                object: record.id,
                epoch: record.epoch,
                host: self.host(),
                kind,
                unix_s: clock::unix_s(),
            };
            match self.propose(&command).await? {
                Ok(Outcome::Object(record)) => return Ok(record),
                Ok(_) => return Err(Refused::NoObject(record.id).into()),
                Err(Refused::WrongEpoch { .. }) if tries < 5 => {
                    tries += 1;
                    let state = self.directory.linearizable_state().await?;
                    record = state.objects.get(&record.id).cloned().ok_or(Refused::NoObject(record.id))?;
                }
                Err(refused) => return Err(refused.into()),
            }
        }
    }

    fn bind(&self, record: &ObjectRecord, read_only: bool) -> Result<GuestSocket, OwnError> {
        let dir = self.config.volumes_dir();
        local::folder(&dir, &self.config.group)?;
        let path = dir.join(format!("{}.sock", record.name));
        let listener = local::bind(&path, Some(&self.config.group))?;
        let mut settings = BlkSettings::new(Sector(record.size_bytes / 512), record.name.as_str());
        settings.read_only = read_only;
        settings.queues = QUEUES;
        let (server, device) =
            ferro_vhost::blk::serve(listener, settings, ServerSettings::new(record.name.as_str()))?;
        Ok(GuestSocket { server, device, path })
    }
}

fn remove_socket(path: &std::path::Path) {
    if let Err(error) = local::remove(path) {
        tracing::warn!(%error, "a volume's socket could not be removed");
    }
}

/// After a restart: the volumes whose locks this host still holds are served again, on the same sockets. An attempt that the
/// directory did not answer is made again: guests wait.
pub async fn reopen(member: Arc<Member>) {
    while !take_up_all(&member).await {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    member.taken_up.store(true, Ordering::Relaxed);
}

/// One attempt; false if the directory was lost on the way.
async fn take_up_all(member: &Member) -> bool {
    let state = loop {
        match member.directory.linearizable_state().await {
            Ok(state) if state.hosts.contains_key(&member.host()) => break state,
            Ok(_) => {}
            Err(error) => tracing::info!(%error, "waiting for the cluster directory"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let mut done = true;
    for record in state.volumes() {
        let Some(lock) = record.lock.filter(|lock| lock.host == member.host()) else { continue };
        if member.has_open(record.id) {
            continue;
        }
        let name = record.name.clone();
        let result = match lock.kind {
            LockKind::Exclusive { .. } => take_up(member, record.id).await,
            LockKind::Transfer | LockKind::Background => {
                member.give_back(record.id, record.epoch).await.map(|()| false)
            }
        };
        match result {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(volume = %name, kind = ?lock.kind, "a volume of before the restart is taken up again")
            }
            Err(OwnError::Directory(error)) => {
                tracing::warn!(volume = %name, %error, "a volume of before the restart can't be served yet");
                done = false;
            }
            Err(error) => {
                tracing::error!(volume = %name, %error, "a volume of before the restart can't be served");
            }
        }
    }
    done
}

/// Gives locks back that this host holds and does not use: nobody else could open these volumes. They come from an `Acquire`
/// that was carried out after its asker had given up, or from volumes that could not be served after a restart.
pub(super) async fn release_leftover_locks(member: Arc<Member>, leftovers: Vec<(ObjectId, Epoch)>) {
    if !member.taken_up.load(Ordering::Relaxed) {
        return;
    }
    // Who opens or closes a volume now may be about to use the lock, or to give it back. The next renewal looks again.
    let Ok(_one_at_a_time) = member.opening.try_lock() else { return };
    for (object, epoch) in leftovers {
        // What it has open may be about to become this, and the answer that says so under way.
        if member.has_open(object) {
            continue;
        }
        match member.give_back(object, epoch).await {
            Ok(()) => {
                tracing::warn!(%object, epoch = epoch.0, "a lock that this host did not use is released")
            }
            Err(error) => {
                tracing::debug!(%object, %error, "a lock that this host does not use can't be released")
            }
        }
    }
}

/// Serves a volume again if it is still locked for this host and not served; whether it did.
async fn take_up(member: &Member, object: ObjectId) -> Result<bool, OwnError> {
    let _one_at_a_time = member.opening.lock().await;
    // Somebody has asked for it meanwhile. To look whether its socket is in use would keep its guest from it for a moment.
    if member.has_open(object) {
        return Ok(false);
    }
    // Or has closed it again.
    let state = member.directory.linearizable_state().await?;
    let Some(record) = state.objects.get(&object) else { return Ok(false) };
    let ours = record.lock.filter(|lock| lock.host == member.host());
    let Some(LockKind::Exclusive { read_only }) = ours.map(|lock| lock.kind) else { return Ok(false) };
    let socket = member.bind(record, read_only)?;
    let kind = LockKind::Exclusive { read_only };
    member.own(Arc::clone(record), kind, Some(socket)).await.map(|_| true)
}

/// Whether this host is the one to scrub an object, or to move some of it: its owner, or of one that nobody has open the first
/// live host with a good component.
pub(super) fn is_ours_to_tend(member: &Member, record: &ObjectRecord) -> bool {
    let state = member.state();
    if let Some(lock) = state.holder(record, member.host()) {
        return lock.host == member.host() && member.open_volumes().contains_key(&record.id);
    }
    let good = record.chunks.values().flat_map(|c| &c.components).filter(|c| c.in_sync());
    let hosts = good.filter_map(|c| state.disks.get(&c.disk)).map(|d| d.host);
    hosts.filter(|host| member.hears_from(*host)).min() == Some(member.host())
}
