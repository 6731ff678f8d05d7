//! The cluster and its clock.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::sync::Arc;

use ferro_protocol::ids::{ChunkId, DiskId, HostId, ObjectId};
use vsand_core::bugs::{Bug, Bugs};
use vsand_core::directory::{Command, FeatureLevel, HostRecord, ObjectRecord, Policy, State};
use vsand_core::time::{Instant, Now};

use super::absence::Departed;
use super::balance::Moves;
use super::converting::Converting;
use super::dice::{Dice, MS, S};
use super::directory::Directory;
use super::disk::SimDisk;
use super::event::{Event, Process};
use super::faults::Profile;
use super::guest::Layout;
use super::history::History;
use super::host::Host;
use super::leaving::Leaving;
use super::maintenance::Maintenance;
use super::net::Net;
use super::places::Places;
use super::provision::Provisions;
use super::scrub::Scrubs;
use super::streams::Streams;

/// The longest that a guest may wait while a single host or disk other than its own fails.
pub(super) const STALL_MAX: u64 = 2 * S;
/// Events of a run that never ends.
const EVENTS_MAX: u64 = 6_000_000;

/// What a run is to do besides the seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A deliberate bug.
    pub bug: Option<Bug>,
    /// Keep so many of the last events as text.
    pub trace_lines: usize,
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was violated, if anything.
    pub violation: Option<String>,
    /// Of all events, in order.
    pub hash: u64,
    /// How many events there were.
    pub events: u64,
    /// Virtual time, in seconds.
    pub virtual_s: f64,
    /// Operations of guests that were completed.
    pub completed: u64,
    /// Faults that were injected.
    pub faults: u64,
    /// Changes of owner.
    pub takeovers: u64,
    /// The longest wait of a guest where only one thing failed at a time, in milliseconds.
    pub stall_ms_max: Option<u64>,
    /// The last events, if they were asked for.
    pub trace: Vec<String>,
}

pub(super) struct World {
    pub dice: Dice,
    pub now: u64,
    queue: BinaryHeap<Reverse<Scheduled>>,
    made: u64,
    pub profile: Profile,
    pub bug: Option<Bug>,
    pub hosts: Vec<Host>,
    pub disks: Vec<SimDisk>,
    pub objects: Vec<Layout>,
    pub net: Net,
    pub directory: Directory,
    pub history: History,
    pub violation: Option<String>,
    /// Faults go on.
    pub faulty: bool,
    /// Guests begin nothing new.
    pub stopping: bool,
    /// Nothing new goes wrong before this time.
    pub hold_until: u64,
    /// Blocks that have rotted on some disk.
    pub rotted: BTreeSet<(ChunkId, u32)>,
    pub healed_at: u64,
    pub completed: u64,
    pub faults: u64,
    pub takeovers: u64,
    pub stall_max: u64,
    pub next_write: u64,
    pub leaving: Leaving,
    pub converting: Converting,
    pub scrubs: Scrubs,
    pub moves: Moves,
    pub provisions: Provisions,
    pub places: Places,
    pub streams: Streams,
    pub parity: Dice,
    /// Of each log.
    pub log_slots: u32,
    pub maintenance: Maintenance,
    pub departed: Departed,
    hash: u64,
    events: u64,
    pub done: bool,
    trace_lines: usize,
    trace: VecDeque<String>,
}

struct Scheduled {
    at: u64,
    made: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.made) == (other.at, other.made)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.made).cmp(&(other.at, other.made))
    }
}

pub(super) fn host_id(host: usize) -> HostId {
    HostId::from_bytes([host as u8 + 1; 16])
}

pub(super) fn host_of(id: HostId) -> usize {
    usize::from(id.as_bytes()[0].wrapping_sub(1))
}

pub(super) fn disk_id(disk: usize) -> DiskId {
    DiskId::from_bytes([disk as u8 + 0x40; 16])
}

pub(super) fn disk_of(id: DiskId) -> usize {
    usize::from(id.as_bytes()[0].wrapping_sub(0x40))
}

pub(super) fn object_id(object: usize) -> ObjectId {
    ObjectId::from_bytes([object as u8 + 0x80; 16])
}

/// The object that an object of the directory is, or is to become.
pub(super) fn object_of(id: ObjectId) -> usize {
    usize::from(id.as_bytes()[0].wrapping_sub(0x80))
}

/// What the directory says of an object, whichever takes its place by now.
pub(super) fn record_of(state: &State, object: usize) -> Option<&Arc<ObjectRecord>> {
    state.volumes().find(|record| object_of(record.id) == object)
}

/// A policy with parity; those that need few hosts are the most frequent.
fn roll_parity(dice: &mut Dice) -> Policy {
    let (data, parity) = match dice.below(100) {
        0..45 => (2, 1),
        45..75 => (2, 2),
        75..85 => (4, 1),
        _ => (4, 2),
    };
    Policy::Parity { data, parity }
}

/// Runs one seed.
pub fn run(seed: u64, options: Options) -> Outcome {
    let mut world = World::new(seed, options);
    world.prepare();
    while !world.done && world.violation.is_none() {
        let Some(Reverse(next)) = world.queue.pop() else { break };
        world.now = next.at;
        world.events += 1;
        let (kind, a, b) = next.event.digest();
        for word in [next.at, u64::from(kind), a, b] {
            world.hash = (world.hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(17);
        }
        world.dispatch(next.event);
        if world.events > EVENTS_MAX {
            world.violate(format!("{EVENTS_MAX} events and no end"));
        }
    }
    if world.violation.is_none()
        && let Err(what) = world.history.check()
    {
        world.violate(format!("history: {what}"));
    }
    Outcome {
        seed,
        violation: world.violation,
        hash: world.hash,
        events: world.events,
        virtual_s: world.now as f64 / S as f64,
        completed: world.completed,
        faults: world.faults,
        takeovers: world.takeovers,
        stall_ms_max: (world.profile == Profile::Single).then_some(world.stall_max / MS),
        trace: world.trace.into(),
    }
}

impl World {
    fn new(seed: u64, options: Options) -> Self {
        let mut dice = Dice::new(seed);
        let profile = Profile::roll(&mut dice);
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            made: 0,
            profile,
            bug: options.bug,
            hosts: Vec::new(),
            disks: Vec::new(),
            objects: Vec::new(),
            net: Net::default(),
            directory: Directory::default(),
            history: History::default(),
            violation: None,
            faulty: true,
            stopping: false,
            hold_until: 0,
            rotted: BTreeSet::new(),
            healed_at: 0,
            completed: 0,
            faults: 0,
            takeovers: 0,
            stall_max: 0,
            next_write: 1,
            leaving: Leaving::new(seed),
            converting: Converting::new(seed),
            scrubs: Scrubs::new(seed),
            moves: Moves::new(seed),
            provisions: Provisions::new(seed),
            places: Places::new(seed),
            streams: Streams::new(seed),
            parity: Dice::new(seed ^ 0x9a91_7e5a),
            log_slots: 0,
            maintenance: Maintenance::new(seed),
            departed: Departed::new(seed),
            hash: seed,
            events: 0,
            done: false,
            trace_lines: options.trace_lines,
            trace: VecDeque::new(),
            dice,
        }
    }

    pub(super) fn bugs(&self) -> Bugs {
        self.bug.map_or(Bugs::NONE, Bugs::one)
    }

    /// Hosts, disks, objects, and the first events.
    fn prepare(&mut self) {
        // By dice of its own, so that the runs of mirrors stay what they were.
        let parity = self.parity.permille(500).then(|| roll_parity(&mut self.parity));
        // Small, so that it fills up and turns over.
        self.log_slots = self.parity.between(270, 900) as u32;
        let hosts = match parity {
            Some(policy) if self.profile == Profile::Single => policy.domains() + 1,
            Some(policy) => policy.domains() + self.dice.below(2),
            None if self.profile == Profile::Single => 4,
            None => self.dice.between(3, 5) as usize,
        };
        let early = self.bug == Some(Bug::AckBeforeFlush);
        let unchecked = self.bug == Some(Bug::CrcUnchecked);
        for n in 0..hosts {
            self.hosts.push(Host::new(&mut self.dice));
            for _ in 0..self.dice.between(1, 2) {
                let runs_max = self.dice.between(2, 40) as usize;
                self.disks.push(SimDisk::new(n, early, unchecked, runs_max));
            }
            self.setup(Command::PutHost {
                host: HostRecord {
                    id: host_id(n),
                    name: format!("h{n}"),
                    address: std::net::SocketAddr::from(([10, 0, 0, n as u8], 7_000)),
                    fault_domain: self.places.fault_domain(n),
                    joined_unix_s: 0,
                    lease: 0,
                },
            });
        }
        for n in 0..self.disks.len() {
            self.setup(self.put_disk(n));
        }
        let all = (0..hosts).map(host_id).collect();
        self.setup(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts: all });
        let objects = self.dice.between(1, 2) as usize;
        for n in 0..objects {
            let few = if self.profile == Profile::Single { 2 } else { 1 };
            let copies = if self.dice.permille(100) { few } else { self.dice.between(2, 3) } as u8;
            let policy = parity.unwrap_or(Policy::Mirror { copies });
            let layout = Layout::roll(&mut self.dice, policy);
            self.setup(Command::CreateObject {
                object: object_id(n),
                name: format!("v{n}").parse().expect("a good name"),
                size_bytes: layout.size_bytes,
                policy,
                unix_s: 1_000,
            });
            self.objects.push(layout);
            let home = self.dice.below(hosts);
            self.hosts[home].wanted.insert(n);
        }
        for host in 0..hosts {
            self.start_process(host);
        }
        let faults_s = self.dice.between(25, 45);
        self.after(3 * S, Event::Fault);
        self.at(faults_s * S, Event::Heal);
        self.at(S, Event::Check);
        self.plan_leaving();
        self.plan_converting();
        self.plan_maintenance();
    }

    fn setup(&mut self, command: Command) {
        if let Err(refused) = self.directory.apply(command) {
            self.violate(format!("setting up: {refused}"));
        }
    }

    pub(super) fn put_disk(&self, disk: usize) -> Command {
        Command::PutDisk {
            disk: disk_id(disk),
            host: host_id(self.disks[disk].host),
            path: format!("/d{disk}"),
            capacity_extents: 1 << 20,
            used_extents: 0,
        }
    }

    pub(super) fn at(&mut self, at: u64, event: Event) {
        self.made += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), made: self.made, event }));
    }

    pub(super) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// What the host's clocks say.
    pub(super) fn clock(&self, host: usize) -> Now {
        let host = &self.hosts[host];
        let mono = host.clock_origin + self.now / 1_000 * host.clock_rate_permille + host.clock_rate_permille;
        Now { mono: Instant(mono), unix_s: 1_000 + self.now / S + host.unix_skew_s }
    }

    pub(super) fn process(&self, host: usize) -> Process {
        Process { host, life: self.hosts[host].life }
    }

    pub(super) fn violate(&mut self, what: String) {
        self.trace(|| format!("VIOLATION {what}"));
        self.violation.get_or_insert(what);
    }

    pub(super) fn trace(&mut self, line: impl FnOnce() -> String) {
        if self.tracing() {
            if self.trace.len() >= self.trace_lines {
                self.trace.pop_front();
            }
            let line = format!("{:>12.6} {}", self.now as f64 / S as f64, line());
            self.trace.push_back(line);
        }
    }

    pub(super) fn tracing(&self) -> bool {
        self.trace_lines > 0
    }

    fn dispatch(&mut self, event: Event) {
        if let Some(process) = event.process() {
            let host = &mut self.hosts[process.host];
            if !host.running || host.life != process.life {
                return;
            }
            if host.paused {
                host.parked.push(event);
                return;
            }
        }
        match event {
            Event::HostTick(p) => self.host_tick(p.host),
            Event::OwnerTick(p, key) => self.owner_tick(p.host, key),
            Event::GuestStep(p, key) => self.guest_step(p.host, key),
            Event::DiskApply { disk, incarnation, ticket } => self.disk_apply(disk, incarnation, ticket),
            Event::DiskFinish { disk, incarnation, ticket } => self.disk_finish(disk, incarnation, ticket),
            Event::DiskAnswer { to, disk, ticket, result } => self.disk_answer(to.host, disk, ticket, result),
            Event::Deliver { conn, to_server, late, message } => self.deliver(conn, to_server, late, message),
            Event::Connected { client, server } => self.connected(client, server),
            Event::Reset { conn } => self.close(conn),
            Event::Forget { server, conn } => self.forget(server.host, conn),
            Event::LinkBack { from, to } => self.link_back(from, to),
            Event::DirectoryApply { request } => self.directory_apply(request),
            Event::DirectoryTimeout { to, request } => self.directory_answer(to.host, request, None),
            Event::DirectoryAnswer { to, request, answer } => {
                self.directory_answer(to.host, request, Some(answer));
            }
            Event::News { to, state } => self.news(to.host, &state),
            Event::Record { to, state } => self.record(to.host, &state),
            Event::Fault => self.next_fault(),
            Event::Script(step) => self.script(step),
            Event::Restart { host } => {
                if self.departed.gone.is_none_or(|(gone, _)| gone != host) {
                    self.start_process(host);
                }
            }
            Event::Resume { host } => self.resume(host),
            Event::Delete { object } => self.delete(object),
            Event::Plug { disk, to } => self.plug(disk, to),
            Event::Heal => self.heal(),
            Event::StopGuests => self.stopping = true,
            Event::Check => self.check_end(),
            Event::Leave => self.tend_leaving(),
            Event::SaidLate { from, disk } => {
                let said = self.put_disk(disk);
                // A refusal is what is asked for; check_directory looks at the rest.
                let _refused = self.carry_out(from, said);
            }
            Event::Convert => self.convert(),
            Event::Maintain => self.tend_maintenance(),
            Event::GoAway => self.go_away(),
        }
    }

    /// Everybody hears of what the directory is now, some sooner than others.
    pub(super) fn spread(&mut self, state: &Arc<vsand_core::directory::State>, owners: bool) {
        for host in 0..self.hosts.len() {
            if !self.hosts[host].running {
                continue;
            }
            let to = self.process(host);
            let mean = self.profile.news_mean();
            let delay = self.dice.delay(mean);
            self.after(delay, Event::News { to, state: Arc::clone(state) });
            if owners {
                let slow = self.faulty && self.dice.permille(30);
                let delay = if slow { self.dice.between(S / 5, 5 * S) } else { self.dice.delay(mean) };
                self.after(delay, Event::Record { to, state: Arc::clone(state) });
            }
        }
    }
}
