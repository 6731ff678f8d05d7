//! Which volumes this host owns: opening, closing, taking up again after a restart, and repairing those that nobody has open.
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

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ferro_protocol::ids::{ChunkIndex, Epoch, HostId, ObjectId, Role, VolumeName};
use ferro_transport::local::{self, LocalError};
use ferro_vhost::SessionError;
use ferro_vhost::blk::{BlkSettings, Sector};
use ferro_vhost::server::ServerSettings;
use vsand_core::directory::conversion::lineage;
use vsand_core::directory::{
    ChunkRecord, Command, Component, Content, LockKind, ObjectRecord, Outcome, Refused, State, Sync,
};
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
            Some((object, LockKind::Exclusive { .. })) => self.release(object, name).await,
            Some((_, kind @ LockKind::Transfer)) => Err(OwnError::InUseHere { name: name.clone(), kind }),
            Some((_, LockKind::Background)) | None => Err(OwnError::NotOpen(name.clone())),
        }
    }

    /// Gives an object up that this host owns, once nothing of it is under way.
    pub async fn release(&self, object: ObjectId, name: &VolumeName) -> Result<(), OwnError> {
        let _one_at_a_time = self.opening.lock().await;
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

    fn has_open(&self, object: ObjectId) -> bool {
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

    /// Owns a volume that nobody has open, for as long as [`is_tended`]; one that is owned here already is fine as it is.
    pub(super) async fn own_to_tend(&self, object: ObjectId) -> bool {
        let _one_at_a_time = self.opening.lock().await;
        let Some(record) = self.state().objects.get(&object).cloned() else { return false };
        if self.state().holder(&record).is_some() {
            return self.open_volumes().contains_key(&object);
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
            LockKind::Exclusive { read_only } => take_up(member, Arc::clone(record), read_only).await,
            LockKind::Transfer | LockKind::Background => member.give_back(record.id, record.epoch).await,
        };
        match result {
            Ok(()) => {
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

async fn take_up(member: &Member, record: Arc<ObjectRecord>, read_only: bool) -> Result<(), OwnError> {
    let _one_at_a_time = member.opening.lock().await;
    // Somebody has asked for it meanwhile. To look whether its socket is in use would keep its guest from it for a moment.
    if member.open_volumes().contains_key(&record.id) {
        return Ok(());
    }
    let socket = member.bind(&record, read_only)?;
    member.own(record, LockKind::Exclusive { read_only }, Some(socket)).await.map(|_| ())
}

/// Closed volumes with components that are not in sync, or on disks that are leaving or in hosts that were given up, are owned for as
/// long as it takes to put that right, by the first of the hosts that have a good component.
pub async fn repair_closed(member: Arc<Member>) {
    loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let state = member.state();
        for record in state.volumes() {
            match state.holder(record) {
                None if !state.is_settled(record) && is_ours_to_repair(&member, record) => {
                    let _one_at_a_time = member.opening.lock().await;
                    if let Err(error) = member.own(Arc::clone(record), LockKind::Background, None).await {
                        tracing::debug!(volume = %record.name, %error, "a closed volume is not repaired now");
                    }
                }
                Some(lock)
                    if lock.host == member.host()
                        && lock.kind == LockKind::Background
                        && (state.is_settled(record) && !is_tended(&member, record.id)
                            || !member.has_open(record.id)) =>
                {
                    let released = if member.has_open(record.id) {
                        member.release(record.id, &record.name).await
                    } else {
                        member.give_back(record.id, record.epoch).await
                    };
                    if let Err(error) = released {
                        tracing::debug!(volume = %record.name, %error, "a repaired volume is not given back yet");
                    }
                }
                _ => {}
            }
        }
    }
}

/// Whether a closed volume is owned here for something that its record does not show.
fn is_tended(member: &Member, object: ObjectId) -> bool {
    member.scrubs.is_at(object) || member.moves.is_at(object)
}

/// Whether something of this object can be put right now, and this host is the one to do it: the first live one with a good
/// component of the first chunk where that is so. What is to become another object is made so by the one that would scrub it.
fn is_ours_to_repair(member: &Member, record: &ObjectRecord) -> bool {
    let state = member.state();
    if state.conversions.of(record.id).is_some() {
        let placed = record.chunks.values().any(|chunk| chunk.in_sync().next().is_some());
        return if placed { is_ours_to_tend(member, record) } else { is_first(member) };
    }
    let alive = |host| member.hears_from(host);
    let overdue = |since_unix_s| clock::unix_s().saturating_sub(since_unix_s) >= member.config.repair_delay_s;
    repairer(&state, record, &alive, &overdue) == Some(member.host())
}

/// Whether this host is the one to scrub an object, or to move some of it: its owner, or of one that nobody has open the first
/// live host with a good component.
pub(super) fn is_ours_to_tend(member: &Member, record: &ObjectRecord) -> bool {
    let state = member.state();
    if let Some(lock) = state.holder(record) {
        return lock.host == member.host() && member.open_volumes().contains_key(&record.id);
    }
    let good = record.chunks.values().flat_map(|c| &c.components).filter(|c| c.in_sync());
    let hosts = good.filter_map(|c| state.disks.get(&c.disk)).map(|d| d.host);
    hosts.filter(|host| member.hears_from(*host)).min() == Some(member.host())
}

/// Whether this host is the first of those that are there: for what is nowhere.
fn is_first(member: &Member) -> bool {
    let state = member.state();
    state.hosts.keys().filter(|host| member.hears_from(**host)).min() == Some(&member.host())
}

fn repairer(
    state: &State,
    record: &ObjectRecord,
    alive: &dyn Fn(HostId) -> bool,
    overdue: &dyn Fn(u64) -> bool,
) -> Option<HostId> {
    let live = |c: &Component| state.disks.get(&c.disk).map(|d| d.host).filter(|host| alive(*host));
    let good = |chunk: &ChunkRecord| chunk.components.iter().filter(|c| c.in_sync()).filter_map(live).min();
    let useful = |index: ChunkIndex, chunk: &ChunkRecord| {
        let worth = |c: &Component| match c.sync {
            Sync::InSync => state.is_emptied(record.policy, c.disk),
            Sync::Stale { since_unix_s, .. } => {
                state.is_emptied(record.policy, c.disk)
                    || live(c).is_some()
                    || (overdue(since_unix_s) && !state.is_resting(c.disk))
            }
        };
        chunk.components.len() != record.policy.components(index) || chunk.components.iter().any(worth)
    };
    let from = |index: ChunkIndex, chunk: &ChunkRecord| match index.role() {
        Role::Whole | Role::Log => good(chunk),
        // A shard is made of the others, if enough of them answer.
        Role::Shard(_) => {
            let answering = record.shards(index).filter_map(|(_, shard)| good(shard));
            let answering: BTreeSet<HostId> = answering.collect();
            answering.first().filter(|_| answering.len() >= record.policy.sufficient()).copied()
        }
    };
    record
        .chunks
        .iter()
        .filter(|(index, chunk)| useful(**index, chunk))
        .find_map(|(index, c)| from(*index, c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferro_protocol::ids::{DiskId, Seq};
    use std::collections::BTreeMap;
    use vsand_core::directory::{DiskHealth, DiskRecord, Policy};

    fn host(n: u8) -> HostId {
        HostId::from_bytes([n; 16])
    }

    fn disk(n: u8) -> DiskId {
        DiskId::from_bytes([n; 16])
    }

    /// Hosts 1 to 6 with a disk each.
    fn six() -> State {
        let mut state = State::default();
        for n in 1..=6 {
            let record = DiskRecord {
                id: disk(n),
                host: host(n),
                path: "/disk".to_owned(),
                capacity_extents: 1_000,
                used_extents: 10,
                health: DiskHealth::Healthy,
            };
            state.disks.insert(disk(n), record);
        }
        state
    }

    fn component(n: u8, in_sync: bool) -> Component {
        let stale = Sync::Stale { stale_seq: Seq(0), since_unix_s: 1_000 };
        Component { disk: disk(n), sync: if in_sync { Sync::InSync } else { stale } }
    }

    fn object(policy: Policy, chunks: &[(ChunkIndex, &[Component])]) -> ObjectRecord {
        let chunks = chunks.iter().map(|(index, c)| (*index, ChunkRecord { components: c.to_vec() }));
        ObjectRecord {
            id: ObjectId::from_bytes([7; 16]),
            name: "v".parse().unwrap(),
            size_bytes: 4 << 30,
            policy,
            content: Content::Whole,
            epoch: Epoch(1),
            lock: None,
            chunks: chunks.collect::<BTreeMap<_, _>>(),
            created_unix_s: 1,
            revision: 1,
        }
    }

    fn who(record: &ObjectRecord, dead: &[u8], late: bool) -> Option<HostId> {
        repairer(&six(), record, &|h| !dead.iter().any(|n| host(*n) == h), &|_| late)
    }

    #[test]
    fn the_first_live_host_with_a_good_copy_repairs() {
        let mirror = Policy::Mirror { copies: 2 };
        let (first, second) =
            ([component(3, false), component(2, true)], [component(4, true), component(5, false)]);
        let record = object(mirror, &[(ChunkIndex(0), &first), (ChunkIndex(1), &second)]);
        assert_eq!(who(&record, &[], false), Some(host(2)));
        assert_eq!(
            who(&record, &[3], false),
            Some(host(4)),
            "the first chunk has to wait, the second has not"
        );
        assert_eq!(who(&record, &[3, 5], false), None);
        assert_eq!(who(&record, &[3, 5], true), Some(host(2)), "the delay is over");
        assert_eq!(who(&record, &[2, 4], false), None, "there is nothing to copy from");
        let whole = object(mirror, &[(ChunkIndex(0), &[component(1, true), component(2, true)])]);
        assert_eq!(who(&whole, &[], true), None);
    }

    #[test]
    fn a_shard_is_made_again_where_enough_others_answer() {
        let chunk = ChunkIndex(0);
        let log = [component(5, true), component(4, true)];
        let (a, b) = ([component(3, true)], [component(2, true)]);
        for lost in [&[][..], &[component(1, false)]] {
            let records =
                [(chunk.shard(0), &a[..]), (chunk.shard(1), lost), (chunk.shard(2), &b), (chunk.log(), &log)];
            let record = object(Policy::Parity { data: 2, parity: 1 }, &records);
            assert_eq!(who(&record, &[], false), Some(host(2)));
            assert_eq!(who(&record, &[2], false), None, "one shard is not enough");
        }
    }
}
