//! The data loop: one thread that owns every disk, every owner, every guest's rings and every data connection of this
//! host, and does nothing that waits.
//!
//! ```text
//!            commands of the control plane      completions of the one io_uring
//!                        │                                  │
//!                        ▼                                  ▼
//!   ┌─ turn ─▶ commands ─▶ completions ─▶ connections ─▶ rings ─▶ pump until nothing moves ─▶ flush ─▶ arm ─▶ wait ─┐
//!   └────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
//!                 pump: owner ⇄ replica ⇄ store (this host's disks),  owner ⇄ connection (other hosts' disks)
//! ```
//!
//! Why one thread: waking a thread on another core costs as much as writing a block to a good disk, so a request that
//! crossed three threads would spend its time there. All that arrived by the time of a turn is handled in that turn: writes
//! of many guests and peers share one journal batch, answers to one peer share one packet.
//!
//! What it must not know: the directory's consensus, the API, files other than disks. Whatever needs those is an
//! [`port::Event`] to the control plane.

mod answers;
pub(crate) mod clock;
mod commands;
mod connection;
mod disk;
mod load;
mod outgoing;
pub mod port;
pub mod stats;
mod volume;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::{DiskId, HostId, ObjectId};
use ferro_protocol::peer::RequestId;
use vsand_core::directory::{DiskHealth, State};
use vsand_core::limits::Limits;
use vsand_core::time::{Instant, Now};
use vsand_store::ring::{BufPool, Completion, PollId, Ring, Token};

use clock::{fresh, now};
use connection::{Connection, ConnectionError, Message};
use disk::LocalDisk;
use load::Loads;
use port::{Command, ConnectionId, DataPort, Event};
use stats::Histogram;
use volume::{Volume, VolumeKey};

/// Entries of the submission queue: a turn that has more submits in between.
const RING_ENTRIES: u32 = 1024;
/// How often buffers that nobody needed meanwhile go back to the allocator.
const REST_EVERY: Duration = Duration::from_secs(1);
/// The longest sleep: owners, stores and connections are looked after at least so often.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// Disks have so long for their last checkpoint when the daemon stops. One that does not answer is left as it is, which is
/// as safe as a power cut.
const DISKS_STOP_MAX: Duration = Duration::from_secs(10);
/// Completions taken in one turn: few, so that what they bring about is on its way while the next are looked at, and a
/// guest and the disks work meanwhile. More with many volumes, since each turn looks at every one.
const TURN_COMPLETIONS_MIN: usize = 4;

/// Whose a completion is.
mod owner {
    pub(super) const WAKE: u16 = 0;
    pub(super) const READABLE: u16 = 1;
    pub(super) const WRITABLE: u16 = 2;
    pub(super) const VOLUME: u16 = 3;
    // From 16 on: disks, one number each.
}

/// A request to another host's disk.
struct Remote {
    volume: VolumeKey,
    id: RequestId,
    sent: Instant,
}

struct Peer {
    connection: Connection,
    poll: PollId,
    /// Requests that this connection's other end has not answered.
    asked: HashMap<RequestId, Remote>,
    next_id: u64,
    /// Not everything was read in the last turn.
    more: bool,
}

/// The loop was told to stop.
struct Stopping {
    /// Gets the disks that are left.
    answer: tokio::sync::oneshot::Sender<Vec<DiskId>>,
    until: Instant,
}

/// The loop's state.
pub(crate) struct DataLoop {
    ring: Ring,
    port: DataPort,
    pool: BufPool,
    state: Arc<State>,
    /// What guests may ask of each volume, where that is limited.
    limits: HashMap<[u8; 8], Limits>,
    /// What each disk keeps for objects, in extents.
    kept: BTreeMap<DiskId, HashMap<ObjectId, u32>>,
    /// The revision of the directory's provisioning that says so.
    kept_seen: u64,
    disks: BTreeMap<DiskId, LocalDisk>,
    volumes: BTreeMap<VolumeKey, Volume>,
    by_object: HashMap<ObjectId, VolumeKey>,
    next_volume: u32,
    peers: BTreeMap<ConnectionId, Peer>,
    /// The connection by which this host asks another.
    outbound: HashMap<HostId, ConnectionId>,
    /// What owners ask of components.
    loads: Loads,
    network: Histogram,
    sleeps: u64,
    turns: u64,
    stopping: Option<Stopping>,
    looked_after: Instant,
    /// When unused buffers were last given back.
    rested: Instant,
    /// A guest's ring holds requests that this turn did not take.
    more_requests: bool,
}

/// Runs the loop until it is told to stop. Averages of load forget half of what was in each half-life. The ring belongs to the thread that makes it, so this makes it.
pub fn run(port: DataPort, load_half_life: Duration) -> std::io::Result<()> {
    let mut ring = Ring::new(RING_ENTRIES)?;
    ring.poll(Token::new(owner::WAKE, 0), &port, true);
    DataLoop::new(ring, port, load_half_life).turn_until_stopped()
}

impl DataLoop {
    fn new(ring: Ring, port: DataPort, load_half_life: Duration) -> Self {
        Self {
            ring,
            port,
            pool: BufPool::new(64 << 20),
            state: Arc::new(State::default()),
            limits: HashMap::new(),
            kept: BTreeMap::new(),
            kept_seen: 0,
            disks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            by_object: HashMap::new(),
            next_volume: 1,
            peers: BTreeMap::new(),
            outbound: HashMap::new(),
            loads: Loads::new(now().mono, load_half_life),
            network: Histogram::default(),
            sleeps: 0,
            turns: 0,
            stopping: None,
            looked_after: Instant(0),
            rested: Instant(0),
            more_requests: false,
        }
    }

    fn turn_until_stopped(&mut self) -> std::io::Result<()> {
        let mut completions: Vec<Completion> = Vec::new();
        loop {
            self.turns += 1;
            let now = now();
            let completions_max = TURN_COMPLETIONS_MIN + self.volumes.len() / 4;
            self.ring.completions(completions_max, &mut completions);
            for completion in completions.drain(..) {
                self.complete(now, completion);
            }
            while let Some(command) = self.port.next() {
                self.command(now, command);
            }
            self.read_on(now);
            self.take_requests(now);
            self.look_after(now);
            self.pump(now);
            self.flush(now);
            if self.stopped(now) {
                return Ok(());
            }
            let more = self.more_requests
                || self.ring.has_completions()
                || self.peers.values().any(|p| p.more)
                || self.disks.values().any(LocalDisk::has_work);
            if more {
                self.ring.submit()?;
            } else {
                self.sleep(now)?;
            }
        }
    }

    /// Waits for completions. Guests' rings are watched by their eventfds only while the loop sleeps.
    fn sleep(&mut self, now: Now) -> std::io::Result<()> {
        let mut awake = false;
        for volume in self.volumes.values_mut().filter(|v| v.takes_requests(now.mono)) {
            if let Some(device) = volume.device() {
                awake |= device.arm();
            }
        }
        if awake {
            return self.ring.submit();
        }
        self.sleeps += 1;
        let result = self.ring.wait(Some(self.sleep_max(now)));
        for volume in self.volumes.values_mut() {
            if let Some(device) = volume.device() {
                device.disarm();
            }
        }
        result
    }

    fn sleep_max(&self, now: Now) -> Duration {
        let ticks = self.volumes.values().map(|v| v.owner.tick_after());
        let limits = self.volumes.values().filter_map(|v| v.wait(now.mono));
        ticks.chain(limits).min().unwrap_or(SLEEP_MAX).min(SLEEP_MAX)
    }

    fn complete(&mut self, now: Now, completion: Completion) {
        let token = completion.token;
        match token.owner() {
            owner::WAKE => {
                self.port.drain();
                if !completion.more {
                    self.ring.poll(Token::new(owner::WAKE, 0), &self.port, true);
                }
            }
            owner::READABLE => {
                let id = ConnectionId(token.id());
                if let Some(peer) = self.peers.get_mut(&id) {
                    peer.more = true;
                    if !completion.more {
                        peer.poll = self.ring.poll(token, peer.connection.socket(), true);
                    }
                }
            }
            owner::WRITABLE => {
                if let Some(peer) = self.peers.get_mut(&ConnectionId(token.id())) {
                    peer.connection.writable_asked = false;
                }
            }
            owner::VOLUME => self.volume_woken(token, completion.more),
            number => {
                if let Some(disk) = self.disks.values_mut().find(|d| d.number == number) {
                    disk.store.handle(now.mono.0, &mut self.ring, completion);
                }
            }
        }
    }

    /// A kick or the control descriptor of a volume: the rings are looked at in each turn, so there is only the
    /// descriptor to drain and the poll to keep.
    fn volume_woken(&mut self, token: Token, more: bool) {
        let (key, place) = (VolumeKey((token.id() >> 16) as u32), (token.id() & 0xffff) as usize);
        let Some(volume) = self.volumes.get_mut(&key) else { return };
        let Some((_, notifier)) = volume.polls.get(place) else { return };
        notifier.drain();
        if place == 0
            && let Some(device) = volume.device()
        {
            device.control();
        }
        if !more && let Some((poll, notifier)) = volume.polls.get_mut(place) {
            *poll = self.ring.poll(token, notifier, true);
        }
        self.follow_kicks(key);
    }

    /// Watches the descriptors that the rings have now.
    fn follow_kicks(&mut self, key: VolumeKey) {
        let Some(volume) = self.volumes.get_mut(&key) else { return };
        let Some(device) = volume.device() else { return };
        let epoch = device.rings().kick_epoch();
        let notifiers: Vec<_> = device
            .rings()
            .control_notifier()
            .cloned()
            .into_iter()
            .chain(device.rings().kicks().into_iter().map(|kick| kick.fd))
            .collect();
        if volume.kick_epoch == epoch && !volume.polls.is_empty() {
            return;
        }
        volume.kick_epoch = epoch;
        // The first is the control descriptor, which never changes.
        let kept = volume.polls.len().min(1);
        for (poll, _) in volume.polls.drain(kept..) {
            self.ring.cancel_poll(poll);
        }
        for (place, notifier) in notifiers.into_iter().enumerate().skip(kept) {
            let token = Token::new(owner::VOLUME, u64::from(key.0) << 16 | place as u64);
            let poll = self.ring.poll(token, &notifier, true);
            volume.polls.push((poll, notifier));
        }
    }

    /// Reads from the connections that have something.
    fn read_on(&mut self, now: Now) {
        let ready: Vec<ConnectionId> = self.peers.iter().filter(|(_, p)| p.more).map(|(id, _)| *id).collect();
        let mut messages = Vec::new();
        for id in ready {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let result = peer.connection.receive(now.mono, &self.pool, &mut messages);
            for message in messages.drain(..) {
                self.message(now, id, message);
            }
            match result {
                Ok(more) => {
                    if let Some(peer) = self.peers.get_mut(&id) {
                        peer.more = more;
                    }
                }
                Err(error) => self.disconnect(now, id, &error),
            }
        }
    }

    fn message(&mut self, now: Now, from: ConnectionId, message: Message) {
        match message {
            Message::Request { id, disk, request, payload } => {
                self.asked_by_peer(from, id, disk, request, payload);
            }
            Message::Reply { id, reply, payload } => {
                let Some(remote) = self.peers.get_mut(&from).and_then(|p| p.asked.remove(&id)) else {
                    return;
                };
                self.network.add(now.mono.since(remote.sent));
                if let Some(volume) = self.volumes.get_mut(&remote.volume) {
                    volume.owner.handle_reply(fresh(now), remote.id, reply, payload);
                }
            }
        }
    }

    fn take_requests(&mut self, now: Now) {
        self.more_requests = false;
        for volume in self.volumes.values_mut() {
            self.more_requests |= volume.take_requests(now, &self.pool);
        }
    }

    /// What time alone brings about.
    fn look_after(&mut self, now: Now) {
        for volume in self.volumes.values_mut() {
            if now.mono.since(volume.ticked) >= volume.owner.tick_after() {
                volume.ticked = now.mono;
                volume.owner.tick(now);
            }
        }
        if now.mono.since(self.looked_after) < SLEEP_MAX / 4 {
            return;
        }
        self.looked_after = now.mono;
        if now.mono.since(self.rested) >= REST_EVERY {
            self.rested = now.mono;
            self.pool.rest();
        }
        let mut silent: Vec<(ConnectionId, ConnectionError)> = Vec::new();
        for (id, peer) in &mut self.peers {
            if let Err(error) = peer.connection.keep_alive(now.mono) {
                silent.push((*id, error));
            }
        }
        for (id, error) in silent {
            self.disconnect(now, id, &error);
        }
        self.loads.fold(now.mono, self.disks.values_mut().map(|disk| &mut disk.meter));
        self.report_dead_disks();
    }

    /// Sends and submits what the turn has gathered.
    fn flush(&mut self, now: Now) {
        let mut broken = Vec::new();
        for (id, peer) in &mut self.peers {
            if peer.connection.writable_asked {
                continue;
            }
            match peer.connection.flush() {
                Ok(false) => {}
                Ok(true) => {
                    peer.connection.writable_asked = true;
                    self.ring.poll_writable_once(Token::new(owner::WRITABLE, id.0), peer.connection.socket());
                }
                Err(error) => broken.push((*id, error)),
            }
        }
        for (id, error) in broken {
            self.disconnect(now, id, &error);
        }
        for disk in self.disks.values_mut() {
            disk.store.flush_batch(now.mono.0, &mut self.ring);
        }
        for volume in self.volumes.values_mut() {
            if let Some(device) = volume.device() {
                device.flush_notifications();
            }
        }
    }

    /// The connection is of no more use: owners learn that its disks can't be asked, the replicas that its owners are gone.
    fn disconnect(&mut self, now: Now, id: ConnectionId, error: &ConnectionError) {
        let Some(peer) = self.peers.remove(&id) else { return };
        self.ring.cancel_poll(peer.poll);
        let (host, outbound) = (peer.connection.host, peer.connection.outbound);
        drop(peer);
        if outbound && self.outbound.get(&host) == Some(&id) {
            self.outbound.remove(&host);
            for disk in self.disks_of(host) {
                for volume in self.volumes.values_mut() {
                    volume.owner.handle_disk_down(now, disk);
                }
            }
        }
        if !outbound {
            for disk in self.disks.values_mut() {
                disk.replica.forget_asker(answers::asker_of(id));
            }
        }
        self.port.tell(Event::Disconnected { id, host, outbound, reason: error.to_string() });
    }

    /// The disks that the directory says are in another host.
    fn disks_of(&self, host: HostId) -> Vec<DiskId> {
        self.state.disks.values().filter(|d| d.host == host).map(|d| d.id).collect()
    }

    fn stopped(&mut self, now: Now) -> bool {
        let Some(stopping) = &self.stopping else { return false };
        let all = self.disks.values().all(|d| d.store.is_shut_down());
        if !all && now.mono < stopping.until {
            return false;
        }
        let mut left = Vec::new();
        // Closed before the answer: the process ends soon after it, and RocksDB does not bear being used meanwhile.
        for (id, disk) in std::mem::take(&mut self.disks) {
            if disk.store.is_shut_down() {
                continue;
            }
            let (path, unanswered) = (disk.store.dir().display(), disk.store.stats().in_flight);
            tracing::error!(disk = %id, %path, unanswered, "a disk does not answer and is left as after a power cut: what is in its journal is replayed at the next start");
            left.push(id);
            // Closing it waits for its threads, which may wait for the disk for good.
            std::mem::forget(disk);
        }
        if let Some(stopping) = self.stopping.take() {
            let _gone = stopping.answer.send(left);
        }
        true
    }

    /// Tells every owner that a disk can be asked, unless it has failed.
    fn disk_reachable(&mut self, now: Now, disk: DiskId, local: bool) {
        let dead = is_dead(&self.state, disk);
        for volume in self.volumes.values_mut() {
            volume.owner.handle_disk_up(now, disk, local);
            if dead {
                volume.owner.handle_disk_dead(now, disk);
            }
        }
    }

    fn command(&mut self, now: Now, command: Command) {
        commands::apply(self, now, command);
    }
}

/// Whether the directory says that the disk has failed.
fn is_dead(state: &State, disk: DiskId) -> bool {
    state.disks.get(&disk).is_some_and(|d| d.health != DiskHealth::Healthy)
}
