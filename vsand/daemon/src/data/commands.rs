//! What each command of the control plane does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ferro_protocol::ids::{DiskId, ObjectId};
use vsand_core::bugs::Bugs;
use vsand_core::directory::conversion::lineage;
use vsand_core::directory::{DiskHealth, State};
use vsand_core::lease::{Renewal, Standing};
use vsand_core::limits::Limits;
use vsand_core::replica::Replica;
use vsand_core::time::{Instant, Now};
use vsand_core::volume::VolumeOwner;
use vsand_store::Store;
use vsand_store::ring::Token;

use super::connection::{Connection, ConnectionError};
use super::disk::LocalDisk;
use super::load::Meter;
use super::port::{Command, ConnectionId};
use super::stats::Snapshot;
use super::volume::{Volume, VolumeKey};
use super::{DISKS_STOP_MAX, DataLoop, Peer, Stopping, clock, is_dead, owner};

/// Carries out one command.
pub(super) fn apply(data: &mut DataLoop, now: Now, command: Command) {
    match command {
        Command::Connected { id, host, outbound, raw } => {
            let connection = Connection::new(now.mono, id, host, outbound, *raw);
            data.connected(now, id, connection);
        }
        Command::State(state) => data.state_changed(now, state),
        Command::Limits(limits) => data.limits_changed(now, limits),
        Command::Keep(seen, kept) => data.keep(seen, kept),
        Command::Lease(renewal) => data.lease_renewed(now, &renewal),
        Command::AddDisk(store) => data.add_disk(now, *store),
        Command::RemoveDisk(disk, answer) => match data.disks.get_mut(&disk) {
            Some(local) => {
                local.closing = Some(answer);
                local.store.shutdown(now.mono.0, &mut data.ring);
            }
            None => drop(answer.send(())),
        },
        Command::Own { record, acquired, config, socket } => {
            let mut owner = VolumeOwner::new(now, config, record, Bugs::NONE);
            let here = data.disks.keys().map(|disk| (*disk, true));
            let elsewhere =
                data.outbound.keys().flat_map(|host| data.disks_of(*host)).map(|disk| (disk, false));
            for (disk, local) in here.chain(elsewhere) {
                owner.handle_disk_up(now, disk, local);
                if is_dead(&data.state, disk) {
                    owner.handle_disk_dead(now, disk);
                }
            }
            owner.handle_departures(now, &mut data.state.departures());
            owner.handle_state(now, &data.state);
            data.own(now, owner, acquired, socket.map(|s| *s));
        }
        Command::Disown(object, answer) => match data.volume_of(object) {
            Some(volume) => volume.closing = Some(answer),
            None => drop(answer.send(None)),
        },
        Command::Abandon(object, answer) => {
            let key = data.by_object.get(&object).copied();
            let attached = key.and_then(|key| data.volumes.get(&key)).is_some_and(Volume::is_attached);
            if let Some(key) = key.filter(|_| !attached) {
                data.drop_volume(key);
            }
            let _gone = answer.send(!attached);
        }
        Command::Transfer { object, request, answer } => {
            if let Some(volume) = data.volume_of(object) {
                volume.transfer(now, request, answer);
            }
        }
        Command::Scrub { object, chunk, bytes_per_s, answer } => {
            if let Some(volume) = data.volume_of(object) {
                volume.scrubbing = Some(answer);
                volume.owner.main_mut().scrub(now, chunk, bytes_per_s);
            }
        }
        Command::StopScrub(object) => {
            if let Some(volume) = data.volume_of(object) {
                volume.scrubbing = None;
                volume.owner.main_mut().stop_scrub();
            }
        }
        Command::Move { object, chunk, from, to } => {
            if let Some(volume) = data.volume_of(object) {
                volume.owner.main_mut().move_component(now, chunk, from, to);
            }
        }
        Command::Proposed { object, epoch, id, result } => {
            if let Some(volume) = data.volume_of(object).filter(|v| v.owner.epoch() == epoch) {
                volume.owner.handle_proposal(now, id, result);
            }
        }
        Command::Condemn(disk, chunks, answer) => {
            data.replica(disk, chunks, Replica::condemn);
            let _gone = answer.send(());
        }
        Command::RemoveCondemned(disk, chunks) => data.replica(disk, chunks, Replica::remove_condemned),
        Command::Pardon(disk, chunks) => data.replica(disk, chunks, Replica::pardon),
        Command::ForgetObjects(disk, objects) => data.replica(disk, objects, Replica::forget_object),
        Command::BarePromises(answer) => {
            let all = data.disks.iter().map(|(id, disk)| (*id, disk.bare_promises()));
            let _gone = answer.send(all.collect());
        }
        Command::Inventory(answer) => {
            let all = data.disks.iter().map(|(id, d)| (*id, d.store.inventory()));
            let _gone = answer.send(all.collect());
        }
        Command::Heats(answer) => {
            let _gone = answer.send(data.loads.heats(now.mono));
        }
        Command::Snapshot(answer) => {
            let _gone = answer.send(Box::new(data.snapshot(now)));
        }
        Command::Stop(answer) => data.stop(now, Stopping { answer, until: now.mono + DISKS_STOP_MAX }),
    }
}

impl DataLoop {
    /// What this host owns of an object.
    fn volume_of(&mut self, object: ObjectId) -> Option<&mut Volume> {
        self.by_object.get(&object).and_then(|key| self.volumes.get_mut(key))
    }

    /// Tells the replica of a disk about each of these.
    fn replica<T>(&mut self, disk: DiskId, all: Vec<T>, tell: impl Fn(&mut Replica, T)) {
        if let Some(disk) = self.disks.get_mut(&disk) {
            all.into_iter().for_each(|one| tell(&mut disk.replica, one));
        }
    }

    fn connected(&mut self, now: Now, id: ConnectionId, connection: Connection) {
        let (host, outbound) = (connection.host, connection.outbound);
        if outbound && let Some(old) = self.outbound.get(&host).copied() {
            self.disconnect(now, old, &ConnectionError::Closed);
        }
        let poll = self.ring.poll(Token::new(owner::READABLE, id.0), connection.socket(), true);
        let peer = Peer { connection, poll, asked: std::collections::HashMap::new(), next_id: 1, more: true };
        self.peers.insert(id, peer);
        if outbound {
            self.outbound.insert(host, id);
            for disk in self.disks_of(host) {
                self.disk_reachable(now, disk, false);
            }
        }
    }

    fn state_changed(&mut self, now: Now, state: Arc<State>) {
        let old = std::mem::replace(&mut self.state, state);
        let mut departures = self.state.departures();
        for volume in self.volumes.values_mut() {
            volume.owner.handle_state(now, &self.state);
            volume.owner.handle_departures(now, &mut departures);
            volume.follow_size();
        }
        for disk in Arc::clone(&self.state).disks.values() {
            let before = old.disks.get(&disk.id);
            if disk.health != DiskHealth::Healthy && before.is_none_or(|b| b.health == DiskHealth::Healthy) {
                for volume in self.volumes.values_mut() {
                    volume.owner.handle_disk_dead(now, disk.id);
                }
            }
            let revived =
                disk.health == DiskHealth::Healthy && before.is_some_and(|b| b.health != DiskHealth::Healthy);
            if revived && (self.disks.contains_key(&disk.id) || self.outbound.contains_key(&disk.host)) {
                self.disk_reachable(now, disk.id, self.disks.contains_key(&disk.id));
            }
            let moved = before.is_none_or(|b| b.host != disk.host);
            if moved && self.outbound.contains_key(&disk.host) && !self.disks.contains_key(&disk.id) {
                self.disk_reachable(now, disk.id, false);
            }
        }
    }

    /// Guests are kept to these limits from now on.
    fn limits_changed(&mut self, now: Now, limits: HashMap<[u8; 8], Limits>) {
        self.limits = limits;
        for volume in self.volumes.values_mut() {
            volume.limit(now.mono, self.limits.get(&lineage(volume.object())).copied().unwrap_or_default());
        }
    }

    fn stop(&mut self, now: Now, stopping: Stopping) {
        self.stopping = Some(stopping);
        let keys: Vec<VolumeKey> = self.volumes.keys().copied().collect();
        keys.into_iter().for_each(|key| self.drop_volume(key));
        let ids: Vec<ConnectionId> = self.peers.keys().copied().collect();
        ids.into_iter().for_each(|id| self.disconnect(now, id, &ConnectionError::Closed));
        for disk in self.disks.values_mut() {
            disk.store.shutdown(now.mono.0, &mut self.ring);
        }
    }

    fn keep(&mut self, seen: u64, kept: BTreeMap<DiskId, HashMap<ObjectId, u32>>) {
        (self.kept_seen, self.kept) = (seen, kept);
        for (id, disk) in &mut self.disks {
            disk.store.keep(self.kept.get(id).cloned().unwrap_or_default());
        }
    }

    fn add_disk(&mut self, now: Now, mut store: Store) {
        let id = store.disk();
        store.keep(self.kept.get(&id).cloned().unwrap_or_default());
        let holds: HashSet<ObjectId> =
            store.inventory().into_iter().filter(|e| e.extents > 0).map(|e| e.chunk.object).collect();
        let replica = Replica::new(id, store.sealed(), |object| holds.contains(&object), Bugs::NONE);
        let number = store.owner();
        let meter = Meter::new(now.mono);
        let disk = LocalDisk { number, store, replica, meter, death_told: false, closing: None };
        self.disks.insert(id, disk);
        self.disk_reachable(now, id, true);
    }

    /// Owners whose locks the renewal names serve on; those whose locks are gone end.
    fn lease_renewed(&mut self, now: Now, renewal: &Renewal) {
        for volume in self.volumes.values_mut() {
            match volume.owner.standing(renewal, volume.acquired) {
                Standing::Valid(until) => volume.owner.handle_lease(clock::fresh(now), until),
                Standing::Lost => {
                    let (object, epoch) = (volume.object(), volume.owner.epoch().0);
                    tracing::warn!(%object, epoch, "this host's lock of a volume is gone");
                    volume.owner.handle_lock_lost();
                }
                Standing::Unknown => {}
            }
        }
    }

    fn own(
        &mut self,
        now: Now,
        owner: VolumeOwner,
        acquired: Instant,
        socket: Option<super::port::GuestSocket>,
    ) {
        let object = owner.object();
        if let Some(old) = self.by_object.get(&object).copied() {
            self.drop_volume(old);
        }
        let key = VolumeKey(self.next_volume);
        self.next_volume += 1;
        let mut volume = Volume::new(now.mono, owner, acquired, socket);
        volume.limit(now.mono, self.limits.get(&lineage(object)).copied().unwrap_or_default());
        self.volumes.insert(key, volume);
        self.by_object.insert(object, key);
        self.follow_kicks(key);
    }

    fn snapshot(&self, now: Now) -> Snapshot {
        let dead = |d: &LocalDisk| d.store.dead().map(ToOwned::to_owned);
        Snapshot {
            volumes: self.volumes.values().map(|v| v.view(now.mono)).collect(),
            disks: self.disks.iter().map(|(id, d)| (*id, d.store.stats(), dead(d))).collect(),
            kept_seen: self.kept_seen,
            bad: self.disks.iter().map(|(id, d)| (*id, d.replica.bad_blocks())).collect(),
            loads: self.disks.iter().map(|(id, d)| (*id, self.loads.of(now.mono, &d.meter))).collect(),
            network: self.network,
            condemned: self.disks.values().flat_map(|d| d.replica.condemned()).map(|c| c.object).collect(),
            sleeps: self.sleeps,
            turns: self.turns,
        }
    }
}
