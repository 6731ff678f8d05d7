//! What the daemon does around its owners and replicas: the host's lease, opening and closing, breaking locks, repair of
//! closed objects, reports of dead disks, and the sweep for components that nobody knows any more.

use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::{ChunkId, ObjectId};
use vsand_core::directory::{Command, LockKind, Outcome, Refused, State};
use vsand_core::lease::{RENEW_EVERY, Renewal, Standing};
use vsand_core::owner::ProposalId;
use vsand_core::time::Instant;

use super::dice::{MS, S};
use super::directory::Ask;
use super::event::{Answer, Event, OwnerKey};
use super::world::{World, disk_id, host_id, record_of};

/// What a request to the directory is for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Owner(OwnerKey, ProposalId),
    Renew { sent: Instant },
    Lock { object: usize, kind: Option<LockKind> },
    Report,
    Sweep { disk: usize, chunk: ChunkId },
    Forget { disk: usize, objects: Vec<ObjectId> },
}

impl World {
    pub(super) fn host_tick(&mut self, host: usize) {
        self.tend_conns(host);
        self.renew(host);
        for object in 0..self.objects.len() {
            self.tend_lock(host, object);
        }
        self.report(host);
        self.tell_absence(host);
        if self.now >= self.hosts[host].sweep_at {
            self.sweep(host);
        }
        let process = self.process(host);
        let delay = self.dice.between(40 * MS, 70 * MS);
        self.after(delay, Event::HostTick(process));
    }

    fn renew(&mut self, host: usize) {
        let now = self.clock(host).mono;
        let h = &mut self.hosts[host];
        if h.renewing || now < h.renew_at {
            return;
        }
        h.renewing = true;
        h.renew_at = now + RENEW_EVERY;
        let command = Command::RenewLease { host: host_id(host) };
        let request = self.ask_directory(host, Ask::Command(Box::new(command)));
        self.hosts[host].requests.insert(request, Purpose::Renew { sent: now });
    }

    /// The lease was renewed: owners whose lock is gone are dropped before the others hear of it.
    fn renewed(&mut self, host: usize, renewal: &Renewal) {
        let objects: Vec<usize> = self.hosts[host].owners.keys().copied().collect();
        for object in objects {
            let running = &self.hosts[host].owners[&object];
            match running.owner.standing(renewal, running.acquired) {
                Standing::Valid(until) => {
                    self.with_owner(host, object, |owner, now| owner.handle_lease(now, until));
                }
                Standing::Lost => {
                    self.trace(|| format!("h{host} o{object} lost its lock"));
                    self.with_owner(host, object, |owner, _| owner.handle_lock_lost());
                }
                Standing::Unknown => {}
            }
        }
    }

    /// Opens what is wanted here, closes what is not, and takes over what nobody holds and needs repair.
    fn tend_lock(&mut self, host: usize, object: usize) {
        let wanted = self.hosts[host].wanted.contains(&object);
        let view = Arc::clone(&self.hosts[host].view);
        if let Some(running) = self.hosts[host].owners.get_mut(&object) {
            let settled = view.is_settled(running.owner.record());
            running.closing = match running.kind {
                LockKind::Background => wanted || settled,
                _ => !wanted,
            };
            let idle = running.session.as_ref().is_none_or(super::guest::Session::is_idle);
            if running.closing && idle && running.owner.is_idle() {
                let (id, epoch) = (running.owner.object(), running.owner.epoch());
                self.trace(|| format!("h{host} closes o{object}"));
                self.hosts[host].owners.remove(&object);
                let command = Command::Release { object: id, epoch, host: host_id(host) };
                self.lock_request(host, object, command, None);
            }
            return;
        }
        if self.hosts[host].lock_busy.contains(&object) {
            return;
        }
        let Some(record) = record_of(&self.hosts[host].view, object).cloned() else { return };
        let me = host_id(host);
        let (id, epoch, unix_s) = (record.id, record.epoch, self.clock(host).unix_s);
        let acquire = |kind| Command::Acquire { object: id, epoch, host: me, kind, unix_s };
        if !wanted {
            match record.lock {
                // Left over from an earlier life, or from a request that was carried out late.
                Some(lock) if lock.host == me => {
                    self.lock_request(host, object, Command::Release { object: id, epoch, host: me }, None);
                }
                _ if !view.is_settled(&record)
                    && view.holder(&record, me).is_none()
                    && self.dice.permille(20) =>
                {
                    self.lock_request(
                        host,
                        object,
                        acquire(LockKind::Background),
                        Some(LockKind::Background),
                    );
                }
                _ => {}
            }
            return;
        }
        match record.lock {
            Some(lock) if lock.host != me && lock.kind != LockKind::Background => {
                let now = self.clock(host).mono;
                if let Ok(lease) = self.hosts[host].watcher.ended(now, lock.host) {
                    let command = Command::BreakLock { object: id, epoch, holder: lock.host, lease };
                    self.lock_request(host, object, command, None);
                }
            }
            _ => {
                let kind = LockKind::Exclusive { read_only: self.dice.permille(100) };
                self.lock_request(host, object, acquire(kind), Some(kind));
            }
        }
    }

    fn lock_request(&mut self, host: usize, object: usize, command: Command, kind: Option<LockKind>) {
        let request = self.ask_directory(host, Ask::Command(Box::new(command)));
        self.hosts[host].lock_busy.insert(object);
        self.hosts[host].requests.insert(request, Purpose::Lock { object, kind });
    }

    /// Tells the directory of disks that died, and of those that work again.
    fn report(&mut self, host: usize) {
        if self.now < self.hosts[host].report_at {
            return;
        }
        self.hosts[host].report_at = self.now + S / 2;
        let disks: Vec<usize> = self.hosts[host].replicas.keys().copied().collect();
        for disk in disks {
            let dead = self.hosts[host].replicas[&disk].dead().map(ToOwned::to_owned);
            let record = self.hosts[host].view.disks.get(&disk_id(disk));
            let called_dead =
                record.is_some_and(|d| matches!(d.health, vsand_core::directory::DiskHealth::Dead(_)));
            let command = match dead {
                Some(reason) if !called_dead && record.is_some() => {
                    Command::DiskDied { disk: disk_id(disk), reason }
                }
                None if called_dead => self.put_disk(disk),
                // It was carried here; perhaps its old host has left the cluster, and the disk with it.
                None if record.is_none_or(|d| d.host != host_id(host)) => self.put_disk(disk),
                _ => continue,
            };
            let request = self.ask_directory(host, Ask::Command(Box::new(command)));
            self.hosts[host].requests.insert(request, Purpose::Report);
        }
    }

    /// Looks for components that the directory does not know (any more).
    fn sweep(&mut self, host: usize) {
        self.hosts[host].sweep_at = self.now + self.dice.between(2 * S, 6 * S);
        let disks: Vec<usize> = self.hosts[host].replicas.keys().copied().collect();
        for disk in disks {
            let chunks: Vec<ChunkId> = self.disks[disk].volatile.components.keys().copied().collect();
            for chunk in chunks {
                let placed = is_placed(&self.hosts[host].view, chunk, disk);
                let Some(replica) = self.hosts[host].replicas.get_mut(&disk) else { continue };
                let busy = replica.condemned().any(|c| c == chunk);
                if busy || placed || replica.dead().is_some() {
                    continue;
                }
                replica.condemn(chunk);
                self.trace(|| format!("d{disk} condemns {}/{}", chunk.object, chunk.index.0));
                let request = self.ask_directory(host, Ask::Read);
                self.hosts[host].requests.insert(request, Purpose::Sweep { disk, chunk });
            }
            self.sweep_promises(host, disk);
        }
    }

    /// What became of a request; `None`: nobody knows.
    pub(super) fn directory_answer(&mut self, host: usize, request: u64, answer: Option<Answer>) {
        let Some(purpose) = self.hosts[host].requests.remove(&request) else { return };
        let (applied, state) = match answer {
            Some(Answer::Applied(result)) => (Some(result), None),
            Some(Answer::State(state)) => (None, Some(state)),
            None => (None, None),
        };
        match purpose {
            Purpose::Owner(key, id) => {
                let epoch = self.hosts[host].owners.get(&key.object).map(|r| r.owner.epoch());
                if epoch == Some(key.epoch) {
                    self.with_owner(host, key.object, |owner, now| owner.handle_proposal(now, id, applied));
                }
            }
            Purpose::Renew { sent } => {
                self.hosts[host].renewing = false;
                match applied {
                    Some(Ok(Outcome::Lease { locks, .. })) => self.renewed(host, &Renewal { sent, locks }),
                    _ => self.hosts[host].renew_at = self.clock(host).mono + Duration::from_millis(200),
                }
            }
            Purpose::Lock { object, kind } => self.lock_answer(host, object, kind, applied),
            Purpose::Sweep { disk, chunk } => {
                let Some(replica) = self.hosts[host].replicas.get_mut(&disk) else { return };
                match state {
                    Some(state) if !is_placed(&state, chunk, disk) => replica.remove_condemned(chunk),
                    _ => replica.pardon(chunk),
                }
                self.pump_replica(host, disk);
            }
            Purpose::Forget { disk, objects } => {
                let (Some(state), Some(replica)) = (state, self.hosts[host].replicas.get_mut(&disk)) else {
                    return;
                };
                for object in objects.into_iter().filter(|object| !state.objects.contains_key(object)) {
                    replica.forget_object(object);
                }
                self.pump_replica(host, disk);
            }
            Purpose::Report => {}
        }
    }

    fn lock_answer(
        &mut self,
        host: usize,
        object: usize,
        kind: Option<LockKind>,
        applied: Option<Result<Outcome, Refused>>,
    ) {
        self.hosts[host].lock_busy.remove(&object);
        let (Some(kind), Some(Ok(Outcome::Object(record)))) = (kind, applied) else { return };
        self.start_owner(host, object, record, kind);
        // Without a renewal after the lock was taken the owner may not serve reads.
        self.hosts[host].renew_at = Instant(0);
        self.renew(host);
    }
}

fn is_placed(state: &Arc<State>, chunk: ChunkId, disk: usize) -> bool {
    let record = state.objects.get(&chunk.object).and_then(|o| o.chunks.get(&chunk.index.record()));
    record.is_some_and(|c| c.components.iter().any(|c| c.disk == disk_id(disk)))
}
