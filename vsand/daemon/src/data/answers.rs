//! The pump: carries effects between owners, replicas, stores and connections until nothing moves.

use bytes::Bytes;
use ferro_protocol::ids::DiskId;
use ferro_protocol::peer::{Refusal, Reply, Request, RequestId};
use vsand_core::owner::Effect as OwnerEffect;
use vsand_core::replica::{Asker, Effect as ReplicaEffect};
use vsand_core::time::Now;

use super::connection::ConnectionError;
use super::load::work;
use super::port::{ConnectionId, Event};
use super::volume::VolumeKey;
use super::{DataLoop, Remote, clock};

/// Connections' askers have the lowest bit set, owners' have not.
pub(super) fn asker_of(connection: ConnectionId) -> Asker {
    Asker(connection.0 << 1 | 1)
}

fn asker_of_volume(volume: VolumeKey) -> Asker {
    Asker(u64::from(volume.0) << 1)
}

/// Whose an asker is.
enum Who {
    Connection(ConnectionId),
    Volume(VolumeKey),
}

fn who(asker: Asker) -> Who {
    if asker.0 & 1 == 1 {
        Who::Connection(ConnectionId(asker.0 >> 1))
    } else {
        Who::Volume(VolumeKey((asker.0 >> 1) as u32))
    }
}

impl DataLoop {
    /// Until nothing moves any more.
    pub(super) fn pump(&mut self, now: Now) {
        loop {
            let mut moved = self.pump_owners(now);
            moved |= self.pump_disks(now);
            // A completed request may have let its ring go on.
            if !moved {
                break;
            }
        }
        self.end_closed(now);
    }

    fn pump_owners(&mut self, now: Now) -> bool {
        let mut moved = false;
        let keys: Vec<VolumeKey> = self.volumes.keys().copied().collect();
        for key in keys {
            while let Some(effect) = self.volumes.get_mut(&key).and_then(|v| v.owner.poll()) {
                moved = true;
                self.owner_effect(now, key, effect);
            }
        }
        moved
    }

    fn owner_effect(&mut self, now: Now, key: VolumeKey, effect: OwnerEffect) {
        let Some(volume) = self.volumes.get_mut(&key) else { return };
        match effect {
            OwnerEffect::Ask { disk, id, request, payload } => self.ask(now, key, disk, id, request, payload),
            OwnerEffect::Complete { tag, result } => volume.complete(now.mono, tag, result),
            OwnerEffect::Propose { id, command } => {
                let (object, epoch) = (volume.object(), volume.owner.epoch());
                self.port.tell(Event::Propose { object, epoch, id, command });
            }
            OwnerEffect::Scrubbed(end) => {
                if let Some(answer) = volume.scrubbing.take() {
                    let _gone = answer.send(end);
                }
            }
            OwnerEffect::Became { from, to } => {
                // What is asked about the former object is still meant for this volume, answers of the directory among it.
                self.by_object.insert(to, key);
                volume.acquired = clock::mono();
                volume.scrubbing = None;
                tracing::info!(%from, %to, "a volume has become another object");
                self.port.tell(Event::Became { from, to });
            }
            OwnerEffect::Reconnect { disk } => self.reconnect(now, disk),
            OwnerEffect::Fenced => {
                let (object, epoch) = (volume.object(), volume.owner.epoch());
                tracing::warn!(%object, epoch = epoch.0, "another host owns this volume now; its socket is closed here");
                self.drop_volume(key);
                self.port.tell(Event::Fenced { object, epoch });
            }
        }
    }

    /// Passes an owner's request to a disk, here or elsewhere. One that can't be passed on is dropped: the owner finds out by
    /// the disk's going down, or by its silence.
    fn ask(
        &mut self,
        now: Now,
        key: VolumeKey,
        disk: DiskId,
        id: RequestId,
        request: Request,
        payload: Bytes,
    ) {
        let work = work(&request);
        if let Some((chunk, work)) = work {
            self.loads.asked(now.mono, chunk, disk, work);
        }
        if let Some(local) = self.disks.get_mut(&disk) {
            local.meter.add(work.map_or(0, |(_, work)| work));
            local.replica.handle_request(asker_of_volume(key), id, request, payload);
            return;
        }
        let Some(host) = self.state.disks.get(&disk).map(|d| d.host) else { return };
        let Some(peer) = self.outbound.get(&host).and_then(|c| self.peers.get_mut(c)) else { return };
        let wire = RequestId(peer.next_id);
        peer.next_id += 1;
        peer.asked.insert(wire, Remote { volume: key, id, sent: now.mono });
        if let Err(error) = peer.connection.send_request(wire, disk, &request, &payload) {
            let connection = peer.connection.id;
            self.disconnect(now, connection, &error);
        }
    }

    /// The disk's host holds our connection for an earlier one: the dialer makes another.
    fn reconnect(&mut self, now: Now, disk: DiskId) {
        let Some(host) = self.state.disks.get(&disk).map(|d| d.host) else { return };
        if let Some(connection) = self.outbound.get(&host).copied() {
            self.disconnect(now, connection, &ConnectionError::Overtaken);
        }
    }

    /// Another host's owner asks one of our disks.
    pub(super) fn asked_by_peer(
        &mut self,
        from: ConnectionId,
        id: RequestId,
        disk: DiskId,
        request: Request,
        payload: Bytes,
    ) {
        if let Some(local) = self.disks.get_mut(&disk) {
            local.meter.add(work(&request).map_or(0, |(_, work)| work));
            return local.replica.handle_request(asker_of(from), id, request, payload);
        }
        let Some(peer) = self.peers.get_mut(&from) else { return };
        // What can't be sent is found broken at the next flush.
        let _broken = peer.connection.send_reply(id, disk, &Err(Refusal::NoDisk(disk)), &Bytes::new());
    }

    fn pump_disks(&mut self, now: Now) -> bool {
        let mut moved = false;
        let ids: Vec<DiskId> = self.disks.keys().copied().collect();
        for id in ids {
            while let Some(disk) = self.disks.get_mut(&id) {
                if let Some((ticket, result)) = disk.store.poll() {
                    disk.replica.handle_disk(ticket, result);
                    moved = true;
                }
                let Some(effect) = disk.replica.poll() else {
                    if disk.store.has_answers() {
                        continue;
                    }
                    break;
                };
                moved = true;
                match effect {
                    ReplicaEffect::Disk(ticket, op) => {
                        disk.store.submit(now.mono.0, &mut self.ring, ticket, op);
                    }
                    ReplicaEffect::Answer { to, id: request, reply, payload } => {
                        self.answer(now, id, to, request, &reply, payload);
                    }
                }
            }
        }
        moved
    }

    fn answer(
        &mut self,
        now: Now,
        disk: DiskId,
        to: Asker,
        id: RequestId,
        reply: &Result<Reply, Refusal>,
        payload: Bytes,
    ) {
        match who(to) {
            Who::Volume(key) => {
                if let Some(volume) = self.volumes.get_mut(&key) {
                    volume.owner.handle_reply(clock::fresh(now), id, reply.clone(), payload);
                }
            }
            Who::Connection(connection) => {
                let Some(peer) = self.peers.get_mut(&connection) else { return };
                if let Err(error) = peer.connection.send_reply(id, disk, reply, &payload) {
                    self.disconnect(now, connection, &error);
                }
            }
        }
    }

    /// Tells the control plane of disks that have failed since it was last told.
    pub(super) fn report_dead_disks(&mut self) {
        for (id, disk) in &mut self.disks {
            if let Some(reason) = disk.store.dead()
                && !disk.death_told
            {
                disk.death_told = true;
                tracing::error!(disk = %id, reason, "a disk has failed");
                self.port.tell(Event::DiskDied { disk: *id, reason: reason.to_owned() });
            }
        }
    }

    /// Ends what was to be closed and has come to rest.
    fn end_closed(&mut self, now: Now) {
        let idle: Vec<VolumeKey> = self
            .volumes
            .iter()
            .filter(|(_, v)| v.closing.is_some() && v.is_idle())
            .map(|(k, _)| *k)
            .collect();
        for key in idle {
            if let Some(volume) = self.volumes.get_mut(&key) {
                let owned = (volume.object(), volume.owner.epoch());
                let answer = volume.closing.take();
                self.drop_volume(key);
                if let Some(answer) = answer {
                    let _gone = answer.send(Some(owned));
                }
            }
        }
        let closed: Vec<DiskId> = self
            .disks
            .iter()
            .filter(|(_, d)| d.closing.is_some() && d.store.is_shut_down())
            .map(|(id, _)| *id)
            .collect();
        for id in closed {
            if let Some(disk) = self.disks.remove(&id) {
                drop(disk.store);
                if let Some(answer) = disk.closing {
                    let _gone = answer.send(());
                }
                for volume in self.volumes.values_mut() {
                    volume.owner.handle_disk_down(now, id);
                }
            }
        }
    }

    pub(super) fn drop_volume(&mut self, key: VolumeKey) {
        let Some(mut volume) = self.volumes.remove(&key) else { return };
        self.by_object.retain(|_, known| *known != key);
        for (poll, _) in volume.polls.drain(..) {
            self.ring.cancel_poll(poll);
        }
        volume.drop_socket();
        for disk in self.disks.values_mut() {
            disk.replica.forget_asker(asker_of_volume(key));
        }
        if let Some(answer) = volume.closing.take() {
            let _gone = answer.send(None);
        }
    }
}
