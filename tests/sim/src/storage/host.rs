//! A host: its clock, its process, and the daemon's part: state machines fed with events, their effects carried out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use ferro_protocol::peer::{Refusal, Request, RequestId};
use vsand_core::directory::{LockKind, State};
use vsand_core::disk::{DiskError, DiskOp, DiskReply, Ticket};
use vsand_core::lease::Watcher;
use vsand_core::owner;
use vsand_core::replica::{self, Asker, Replica};
use vsand_core::time::{Instant, Now};
use vsand_core::volume::VolumeOwner;

use super::control::Purpose;
use super::dice::{Dice, MS, S, US};
use super::directory::Ask;
use super::event::{Event, Message, OwnerKey};
use super::guest::Session;
use super::world::{World, disk_id, disk_of};

/// An owner that runs.
#[derive(Debug)]
pub(super) struct Running {
    pub owner: VolumeOwner,
    pub kind: LockKind,
    pub session: Option<Session>,
    /// It is given back as soon as it is idle.
    pub closing: bool,
    /// When its `Acquire` was answered.
    pub acquired: Instant,
    next_tick: u64,
}

/// A host and the process on it.
#[derive(Debug)]
pub(super) struct Host {
    pub clock_origin: u64,
    /// Nanoseconds that its clock advances in a microsecond.
    pub clock_rate_permille: u64,
    pub unix_skew_s: u64,
    pub running: bool,
    /// It was removed from the cluster.
    pub gone: bool,
    pub life: u32,
    pub paused: bool,
    /// What reached a paused process.
    pub parked: Vec<Event>,
    /// It is stopped between taking an input and carrying out what follows from it.
    pub pause_armed: Option<u64>,
    held: Vec<(OwnerKey, owner::Effect)>,
    /// Objects that the operator wants to be open here.
    pub wanted: BTreeSet<usize>,
    pub replicas: BTreeMap<usize, Replica>,
    pub owners: BTreeMap<usize, Running>,
    /// The connection to each host.
    pub conns: BTreeMap<usize, u64>,
    pub watcher: Watcher,
    pub view: Arc<State>,
    pub requests: BTreeMap<u64, Purpose>,
    pub renewing: bool,
    pub renew_at: Instant,
    pub lock_busy: BTreeSet<usize>,
    pub report_at: u64,
    pub sweep_at: u64,
    pub absence_at: u64,
}

impl Host {
    pub(super) fn new(dice: &mut Dice) -> Self {
        Self {
            clock_origin: dice.between(S, 1_000_000 * S),
            clock_rate_permille: dice.between(960, 1_040),
            unix_skew_s: dice.between(0, 3),
            running: false,
            gone: false,
            life: 0,
            paused: false,
            parked: Vec::new(),
            pause_armed: None,
            held: Vec::new(),
            wanted: BTreeSet::new(),
            replicas: BTreeMap::new(),
            owners: BTreeMap::new(),
            conns: BTreeMap::new(),
            watcher: Watcher::default(),
            view: Arc::default(),
            requests: BTreeMap::new(),
            renewing: false,
            renew_at: Instant(0),
            lock_busy: BTreeSet::new(),
            report_at: 0,
            sweep_at: 0,
            absence_at: 0,
        }
    }
}

impl World {
    /// The process starts: it opens its disks and knows nothing else.
    pub(super) fn start_process(&mut self, host: usize) {
        if self.hosts[host].running || self.hosts[host].gone {
            return;
        }
        let bugs = self.bugs();
        let state = Arc::new(self.directory.state.clone());
        for disk in self.disks.iter_mut().filter(|d| d.host == host) {
            disk.restarted();
        }
        let h = &mut self.hosts[host];
        h.running = true;
        h.life += 1;
        h.paused = false;
        h.parked.clear();
        h.held.clear();
        h.pause_armed = None;
        h.owners.clear();
        h.conns.clear();
        h.watcher = Watcher::default();
        h.view = state;
        h.requests.clear();
        h.renewing = false;
        h.renew_at = Instant(0);
        h.lock_busy.clear();
        h.report_at = 0;
        h.sweep_at = self.now + self.dice.between(2 * S, 8 * S);
        h.replicas.clear();
        for (n, disk) in
            self.disks.iter().enumerate().filter(|(_, d)| d.host == host && !d.removed && !d.carried)
        {
            let sealed = disk.durable.epochs.iter().map(|(o, e)| (*o, *e));
            let holds = |object| disk.durable.components.keys().any(|chunk| chunk.object == object);
            h.replicas.insert(n, Replica::new(disk_id(n), sealed, holds, bugs));
        }
        self.trace(|| format!("h{host} starts"));
        self.connect_locally(host);
        let process = self.process(host);
        let delay = self.dice.between(0, 40 * MS);
        self.after(delay, Event::HostTick(process));
    }

    /// The process ends; with `power`, what the disks had not flushed goes too.
    pub(super) fn stop_process(&mut self, host: usize, power: bool) {
        if !self.hosts[host].running {
            return;
        }
        self.trace(|| format!("h{host} {}", if power { "loses power" } else { "is killed" }));
        self.hosts[host].running = false;
        for disk in self.disks.iter_mut().filter(|d| d.host == host) {
            let survive = if power {
                self.dice.between(0, 1_000) as u32
            } else {
                1_000 - self.dice.between(0, 300) as u32
            };
            disk.cut(&mut self.dice, survive);
        }
        let mine: Vec<u64> = self
            .net
            .conns
            .iter()
            .filter(|(_, c)| c.up && (c.client.host == host || c.server.host == host))
            .map(|(id, _)| *id)
            .collect();
        for conn in mine {
            // A killed process resets its connections; a host without power says nothing.
            if self.net.conns[&conn].client.host == host || !power {
                let delay = self.dice.delay(300 * US);
                self.after(delay, Event::Reset { conn });
            }
        }
        let h = &mut self.hosts[host];
        h.owners.clear();
        h.replicas.clear();
        h.requests.clear();
    }

    pub(super) fn pause(&mut self, host: usize, ns: u64) {
        let h = &mut self.hosts[host];
        if !h.running || h.paused {
            return;
        }
        h.paused = true;
        h.pause_armed = None;
        self.trace(|| format!("h{host} is stopped for {} ms", ns / MS));
        self.after(ns, Event::Resume { host });
    }

    pub(super) fn resume(&mut self, host: usize) {
        let h = &mut self.hosts[host];
        if !h.running || !h.paused {
            return;
        }
        h.paused = false;
        let (held, parked) = (std::mem::take(&mut h.held), std::mem::take(&mut h.parked));
        self.trace(|| format!("h{host} goes on"));
        for (key, effect) in held {
            self.owner_effect(host, key, effect);
        }
        for (n, event) in parked.into_iter().enumerate() {
            // In their order, but other things happen in between.
            let delay = n as u64 * US;
            self.after(delay, event);
        }
    }

    // ---- disks and replicas ----------------------------------------------------------------------------------------

    pub(super) fn replica_request(
        &mut self,
        host: usize,
        conn: u64,
        disk: usize,
        wire: u64,
        request: Request,
        payload: Bytes,
    ) {
        let id = RequestId(wire);
        let Some(replica) = self.hosts[host].replicas.get_mut(&disk) else {
            let reply = Err(Refusal::NoDisk(disk_id(disk)));
            return self.send(conn, false, Message::Answer { id: wire, reply, payload: Bytes::new() });
        };
        replica.handle_request(Asker(conn), id, request, payload);
        self.pump_replica(host, disk);
    }

    pub(super) fn pump_replica(&mut self, host: usize, disk: usize) {
        while let Some(effect) = self.hosts[host].replicas.get_mut(&disk).and_then(Replica::poll) {
            match effect {
                replica::Effect::Disk(ticket, op) => self.submit(disk, ticket, op),
                replica::Effect::Answer { to, id, reply, payload } => {
                    self.send(to.0, false, Message::Answer { id: id.0, reply, payload });
                }
            }
        }
    }

    fn submit(&mut self, disk: usize, ticket: Ticket, op: DiskOp) {
        self.trace(|| {
            let op = match &op {
                DiskOp::Write { chunk, range, version, watermark, .. } => {
                    format!(
                        "write {}+{}/{} {version:?} {watermark:?}",
                        chunk.index.0,
                        range.first(),
                        range.count()
                    )
                }
                DiskOp::Install { chunk, runs, .. } => format!("install {} {runs:?}", chunk.index.0),
                other => format!("{other:?}"),
            };
            format!("d{disk} t{} {op}", ticket.0)
        });
        let held = if matches!(op, DiskOp::Promote { .. }) { self.streams.promotion_held() } else { 0 };
        let delay = self.disk_delay(disk, 60 * US) + held;
        let d = &mut self.disks[disk];
        let incarnation = d.incarnation;
        d.submit(ticket, op);
        self.after(delay, Event::DiskApply { disk, incarnation, ticket });
    }

    fn disk_delay(&mut self, disk: usize, mean: u64) -> u64 {
        let (until, factor) = self.disks[disk].slow;
        let factor = if self.now < until { factor } else { 1 };
        let odd = if self.faulty && self.dice.permille(5) { 40 } else { 1 };
        self.dice.delay(mean) * factor * odd
    }

    pub(super) fn disk_apply(&mut self, disk: usize, incarnation: u64, ticket: Ticket) {
        let now = self.now;
        let d = &mut self.disks[disk];
        if d.incarnation != incarnation {
            return;
        }
        if d.frozen_until > now {
            let at = d.frozen_until;
            return self.at(at, Event::DiskApply { disk, incarnation, ticket });
        }
        if let Some(stick) = d.stick.take_if(|stick| !stick.late) {
            self.trace(|| format!("d{disk} t{} is stuck", ticket.0));
            return self.at(now + stick.ns, Event::DiskApply { disk, incarnation, ticket });
        }
        if d.apply(now, ticket) {
            let delay = self.disk_delay(disk, 100 * US);
            self.after(delay, Event::DiskFinish { disk, incarnation, ticket });
        }
    }

    pub(super) fn disk_finish(&mut self, disk: usize, incarnation: u64, ticket: Ticket) {
        let now = self.now;
        let d = &mut self.disks[disk];
        if d.incarnation != incarnation {
            return;
        }
        if d.frozen_until > now {
            let at = d.frozen_until;
            return self.at(at, Event::DiskFinish { disk, incarnation, ticket });
        }
        if let Some(stick) = d.stick.take_if(|stick| stick.late) {
            self.trace(|| format!("d{disk} t{} took effect and is stuck", ticket.0));
            return self.at(now + stick.ns, Event::DiskFinish { disk, incarnation, ticket });
        }
        let host = d.host;
        let Some(result) = d.finish(ticket) else { return };
        let to = self.process(host);
        let delay = self.dice.between(US, 10 * US);
        self.after(delay, Event::DiskAnswer { to, disk, ticket, result });
    }

    pub(super) fn disk_answer(
        &mut self,
        host: usize,
        disk: usize,
        ticket: Ticket,
        result: Result<DiskReply, DiskError>,
    ) {
        if let Some(replica) = self.hosts[host].replicas.get_mut(&disk) {
            replica.handle_disk(ticket, result);
            self.pump_replica(host, disk);
        }
    }

    // ---- owners ----------------------------------------------------------------------------------------------------

    /// A new owner, from an `Acquire` that was carried out.
    pub(super) fn start_owner(
        &mut self,
        host: usize,
        object: usize,
        record: Arc<vsand_core::directory::ObjectRecord>,
        kind: LockKind,
    ) {
        let now = self.clock(host);
        let mut config = owner::Config::new(super::world::host_id(host));
        config.read_only = kind == LockKind::Exclusive { read_only: true };
        config.repair_delay_s = self.profile.repair_delay_s();
        config.resyncs_max = self.dice.between(1, 4) as usize;
        config.copies_max = self.dice.between(1, 8) as usize;
        config.resync_bytes_per_s = self.dice.between(1 << 17, 8 << 20);
        config.log_slots = self.log_slots;
        config.logged_slots = self.streams.logged_slots(self.log_slots);
        config.straight_rows = self.streams.rows_min;
        let destage = self.parity.pick(&[0, 0, 30, 500]).unwrap_or(0);
        config.destage_permille = self.streams.destage_permille(destage);
        let key = OwnerKey { object, epoch: record.epoch };
        self.trace(|| format!("h{host} owns o{object} at epoch {} as {kind:?}", record.epoch.0));
        let session = matches!(kind, LockKind::Exclusive { .. }).then(Session::default);
        let running = Running {
            owner: VolumeOwner::new(now, config, record, self.bugs()),
            session,
            kind,
            closing: false,
            acquired: now.mono,
            next_tick: u64::MAX,
        };
        self.takeovers += 1;
        self.hosts[host].owners.insert(object, running);
        let conns: Vec<(usize, Vec<usize>)> = self.hosts[host]
            .conns
            .iter()
            .filter_map(|(server, id)| Some((*server, self.net.conns.get(id)?.disks.clone())))
            .collect();
        for (server, disks) in conns {
            for disk in disks {
                self.with_owner(host, object, |owner, now| {
                    owner.handle_disk_up(now, disk_id(disk), server == host);
                });
            }
        }
        self.tell_dead_disks(host, object);
        self.tell_leaving(host, object);
        self.with_owner(host, object, |_, _| {});
        let process = self.process(host);
        self.after(MS, Event::GuestStep(process, key));
    }

    /// Feeds an owner and carries out what follows.
    pub(super) fn with_owner(
        &mut self,
        host: usize,
        object: usize,
        input: impl FnOnce(&mut VolumeOwner, Now),
    ) {
        let now = self.clock(host);
        let Some(running) = self.hosts[host].owners.get_mut(&object) else { return };
        input(&mut running.owner, now);
        let key = OwnerKey { object, epoch: running.owner.epoch() };
        let effects: Vec<owner::Effect> = std::iter::from_fn(|| running.owner.poll()).collect();
        let due = self.now + running.owner.tick_after().as_nanos() as u64;
        if due < running.next_tick {
            running.next_tick = due;
            let process = self.process(host);
            self.at(due, Event::OwnerTick(process, key));
        }
        if let Some(ns) = self.hosts[host].pause_armed.take() {
            self.pause(host, ns);
        }
        if self.hosts[host].paused {
            return self.hosts[host].held.extend(effects.into_iter().map(|e| (key, e)));
        }
        for effect in effects {
            self.owner_effect(host, key, effect);
        }
    }

    fn owner_effect(&mut self, host: usize, key: OwnerKey, effect: owner::Effect) {
        let current = self.hosts[host].owners.get(&key.object).map(|r| r.owner.epoch());
        if current != Some(key.epoch) {
            return;
        }
        match effect {
            owner::Effect::Ask { disk, id, request, payload } => {
                self.trace(|| {
                    let text: String = format!("{request:?}").chars().take(200).collect();
                    format!("h{host} o{} #{} -> d{}: {text}", key.object, id.0, disk_of(disk))
                });
                self.request(host, key, id, disk_of(disk), request, payload);
            }
            owner::Effect::Complete { tag, result } => self.guest_ended(host, key, tag, result),
            owner::Effect::Propose { id, command } => {
                let request = self.ask_directory(host, Ask::Command(Box::new(command)));
                self.hosts[host].requests.insert(request, Purpose::Owner(key, id));
            }
            owner::Effect::Reconnect { disk } => {
                let server = self.disks[disk_of(disk)].host;
                if let Some(conn) = self.hosts[host].conns.get(&server).copied() {
                    self.trace(|| format!("h{host} drops its connection to h{server}"));
                    self.close(conn);
                }
            }
            owner::Effect::Became { from, to } => {
                self.trace(|| format!("h{host} o{} was {from} and is {to}", key.object));
                let now = self.clock(host).mono;
                if let Some(running) = self.hosts[host].owners.get_mut(&key.object) {
                    running.acquired = now;
                }
            }
            owner::Effect::Scrubbed(end) => self.scrubbed(key.object, end),
            owner::Effect::Fenced => {
                self.trace(|| format!("h{host} o{} epoch {} is fenced", key.object, key.epoch.0));
                self.hosts[host].owners.remove(&key.object);
            }
        }
    }

    pub(super) fn owner_tick(&mut self, host: usize, key: OwnerKey) {
        let Some(running) = self.hosts[host].owners.get_mut(&key.object) else { return };
        if running.owner.epoch() != key.epoch || running.next_tick > self.now {
            return;
        }
        running.next_tick = u64::MAX;
        self.with_owner(host, key.object, VolumeOwner::tick);
    }

    /// The host hears how the directory is.
    pub(super) fn news(&mut self, host: usize, state: &Arc<State>) {
        if let Some(until) = self.directory.away(self.now, host) {
            let delay = self.dice.delay(5 * MS);
            let to = self.process(host);
            return self.at(until + delay, Event::News { to, state: Arc::clone(state) });
        }
        if state.revision <= self.hosts[host].view.revision {
            return;
        }
        let old = std::mem::replace(&mut self.hosts[host].view, Arc::clone(state));
        let now = self.clock(host).mono;
        for (id, record) in &state.hosts {
            self.hosts[host].watcher.observe(now, *id, record.lease);
        }
        let objects: Vec<usize> = self.hosts[host].owners.keys().copied().collect();
        for object in &objects {
            self.tell_dead_disks(host, *object);
            self.tell_leaving(host, *object);
        }
        // A disk that was called dead and works again.
        let back: Vec<usize> = (0..self.disks.len())
            .filter(|d| is_dead(&old, *d) && !is_dead(state, *d) && state.disks.contains_key(&disk_id(*d)))
            .collect();
        for disk in back {
            let server = self.disks[disk].host;
            let known = self.hosts[host].conns.get(&server).and_then(|c| self.net.conns.get(c));
            if known.is_some_and(|c| c.disks.contains(&disk)) {
                self.tell_disk_up(host, server, disk);
            }
        }
    }

    pub(super) fn tell_dead_disks(&mut self, host: usize, object: usize) {
        let view = Arc::clone(&self.hosts[host].view);
        for disk in (0..self.disks.len()).filter(|d| is_dead(&view, *d)) {
            self.with_owner(host, object, |owner, now| owner.handle_disk_dead(now, disk_id(disk)));
        }
    }

    pub(super) fn record(&mut self, host: usize, state: &Arc<State>) {
        if let Some(until) = self.directory.away(self.now, host) {
            let delay = self.dice.delay(5 * MS);
            let to = self.process(host);
            return self.at(until + delay, Event::Record { to, state: Arc::clone(state) });
        }
        let objects: Vec<usize> = self.hosts[host].owners.keys().copied().collect();
        for object in objects {
            self.with_owner(host, object, |owner, now| owner.handle_state(now, state));
        }
    }
}

fn is_dead(state: &State, disk: usize) -> bool {
    use vsand_core::directory::DiskHealth;
    state.disks.get(&disk_id(disk)).is_some_and(|d| matches!(d.health, DiskHealth::Dead(_)))
}
