//! A run: the world, what happens in it, and how frames get through it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use ferro_protocol::net::{Mac, NetName};
use vswitch_core::bugs::{Bug, Bugs};
use vswitch_core::config::spec::Spec;
use vswitch_core::config::{Group, validate};
use vswitch_core::frame::Offload;
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Effect, Output};
use vswitch_core::time::Instant;

use super::check::{self, Terms};
use super::dice::Dice;
use super::frames::{Content, Rogue, Sent};
use super::host::{Host, Message};
use super::model::{Model, Party};
use super::physical::{Jack, Physical};
use super::topology::{GATEWAY, Topology};
use super::traffic::Hop;

/// How a seed is run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// A deliberate bug.
    pub bug: Option<Bug>,
    /// How many of the last events are kept.
    pub trace_lines: usize,
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// A hash of all that happened.
    pub hash: u64,
    /// What was broken, if anything was.
    pub violation: Option<String>,
    /// Frames that were sent.
    pub sent: u64,
    /// Copies that arrived.
    pub arrived: u64,
    /// Arrivals that the model required.
    pub required: u64,
    /// Moves, cuts and changes.
    pub faults: u64,
    /// The last events.
    pub trace: Vec<String>,
}

/// Things that happen in a run.
const STEPS: u32 = 120;
/// The world of one run.
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) topology: Topology,
    pub(super) spec: Spec,
    pub(super) hosts: Vec<Host>,
    pub(super) physical: Physical,
    pub(super) now: Instant,
    /// News under way, in order.
    pub(super) news: VecDeque<(usize, usize, Message)>,
    /// Where each port is attached, in the order in which that happened.
    pub(super) places: BTreeMap<String, usize>,
    /// Where it still is attached besides.
    pub(super) left: BTreeMap<String, usize>,
    /// The MAC addresses of groups' gateways: the same at all hosts.
    pub(super) gateways: BTreeMap<String, Mac>,
    pub(super) taken: BTreeMap<String, Mac>,
    pub(super) curious: BTreeSet<String>,
    pub(super) links: Vec<Vec<bool>>,
    /// A link that is up and leads nowhere.
    pub(super) isolated: Option<(usize, usize)>,
    pub(super) tunnels: Vec<Vec<bool>>,
    pub(super) next: u32,
    pub(super) lost: bool,
    /// What left shaped ports, by port and direction: time and bytes.
    pub(super) rates: BTreeMap<(String, usize, bool), Vec<(u64, u64)>>,
    pub(super) outcome: Outcome,
    pub(super) trace_lines: usize,
    pub(super) output: Output,
}

/// Runs a seed.
pub fn run(seed: u64, options: Options) -> Outcome {
    let mut dice = Dice::new(seed);
    let topology = Topology::new(&mut dice);
    let bugs = options.bug.map_or(Bugs::NONE, Bugs::one);
    let mut world = World::new(dice, topology, bugs, options.trace_lines);
    world.outcome.seed = seed;
    let result = world.play();
    world.outcome.violation = result.err();
    world.outcome
}

impl World {
    pub(super) fn new(mut dice: Dice, topology: Topology, bugs: Bugs, trace_lines: usize) -> Self {
        let hash = HashKey(dice.any(), dice.any());
        let count = topology.hosts.len();
        let hosts =
            (0..count).map(|me| Host::new(me, &topology.hosts, hash, bugs, topology.datagram_max)).collect();
        let uplinks = topology.spec.switches[0].uplinks.len();
        let mut tunnels = vec![vec![true; count]; count];
        (0..count).for_each(|n| tunnels[n][n] = false);
        Self {
            dice,
            spec: topology.spec.clone(),
            hosts,
            physical: Physical::new(topology.physical_learns, topology.bundle),
            now: Instant(1_000_000_000),
            news: VecDeque::new(),
            places: BTreeMap::new(),
            left: BTreeMap::new(),
            gateways: BTreeMap::new(),
            taken: BTreeMap::new(),
            curious: BTreeSet::new(),
            links: vec![vec![true; uplinks]; count],
            isolated: None,
            tunnels,
            next: 1,
            lost: false,
            rates: BTreeMap::new(),
            outcome: Outcome::default(),
            trace_lines,
            output: Output::default(),
            topology,
        }
    }

    pub(super) fn log(&mut self, line: impl FnOnce() -> String) {
        if self.trace_lines == 0 {
            return;
        }
        if self.outcome.trace.len() >= self.trace_lines {
            self.outcome.trace.remove(0);
        }
        let text = format!("{:10.3} ms  {}", self.now.0 as f64 / 1e6, line());
        self.outcome.trace.push(text);
    }

    pub(super) fn mix(&mut self, value: u64) {
        self.outcome.hash = HashKey(self.outcome.hash, 0x5eed).of(value, self.now.0);
    }

    pub(super) fn play(&mut self) -> Result<(), String> {
        let spec = self.spec.clone();
        self.log(|| format!("{spec:#?}"));
        let (stations, shape) = (self.topology.stations.clone(), format!("{:?}", self.physical));
        self.log(|| format!("{shape} stations {stations:?}"));
        self.configure();
        for host in 0..self.hosts.len() {
            for n in 0..self.links[host].len() {
                let Ok(name) = super::topology::uplink(n).parse::<NetName>() else { continue };
                self.hosts[host].switch.handle_link(self.now, &name, true);
            }
        }
        for port in self.spec.ports.clone() {
            if self.dice.permille(900) {
                let host = self.dice.below(self.hosts.len());
                self.attach(&port.name, host)?;
            }
        }
        self.settle()?;
        for _ in 0..STEPS {
            let pass = Duration::from_micros(u64::from(self.dice.between(50, 60_000)));
            self.pass(pass)?;
            if self.dice.permille(220) {
                self.outcome.faults += 1;
                self.change()?;
                // Sometimes frames go before the news has come round.
                if self.dice.permille(300) {
                    self.burst(false)?;
                }
                self.settle()?;
            } else if self.dice.permille(60) {
                self.flood()?;
            } else {
                self.burst(true)?;
            }
        }
        Ok(())
    }

    /// Time passes; every 100 ms the switches are told.
    pub(super) fn pass(&mut self, by: Duration) -> Result<(), String> {
        let end = self.now + by;
        while self.now < end {
            let next = Instant((self.now.0 / 100_000_000 + 1) * 100_000_000).min(end);
            let tick = next.0.is_multiple_of(100_000_000);
            self.now = next;
            if tick {
                for host in 0..self.hosts.len() {
                    self.hosts[host].switch.handle_time(self.now);
                }
                self.effects()?;
            }
        }
        Ok(())
    }

    pub(super) fn configure(&mut self) {
        let config = validate(&self.spec).unwrap_or_default();
        let gateway = |group: &Group| Some((group.name.to_string(), group.gateway.as_ref()?.mac));
        self.gateways = config.groups().iter().filter_map(gateway).collect();
        self.physical.age();
        for host in &mut self.hosts {
            host.switch.configure(self.now, config.clone());
        }
    }

    pub(super) fn attach(&mut self, name: &str, host: usize) -> Result<(), String> {
        let net_name = name.parse::<NetName>().map_err(|e| e.to_string())?;
        if let Some(old) = self.places.get(name).copied() {
            // It is paused there: its guest wishes nothing any more, and all have heard of it.
            if let Some(ix) = self.hosts[old].ports.get(name).copied() {
                self.hosts[old].switch.set_guest(self.now, ix, None, false);
                self.effects()?;
                self.settle()?;
                self.pass(Duration::from_millis(1))?;
            }
        }
        let ix = self.hosts[host].switch.attach(self.now, &net_name).map_err(|e| format!("{name}: {e}"))?;
        self.hosts[host].ports.insert(name.to_owned(), ix);
        if let Some(old) = self.places.insert(name.to_owned(), host) {
            self.left.insert(name.to_owned(), old);
        }
        self.taken.remove(name);
        self.curious.remove(name);
        self.rates.retain(|(port, at, _), _| port != name || *at != host);
        self.log(|| format!("{name} attached at host {host}"));
        self.effects()
    }

    pub(super) fn detach(&mut self, name: &str, host: usize) -> Result<(), String> {
        if let Some(ix) = self.hosts[host].ports.remove(name) {
            self.hosts[host].switch.detach(self.now, ix);
        }
        if self.left.get(name) == Some(&host) {
            self.left.remove(name);
        } else if self.places.get(name) == Some(&host) {
            self.places.remove(name);
        }
        self.log(|| format!("{name} detached at host {host}"));
        self.effects()
    }

    /// Does what the switches ask for.
    pub(super) fn effects(&mut self) -> Result<(), String> {
        for host in 0..self.hosts.len() {
            while let Some(effect) = self.hosts[host].switch.poll_effect() {
                let message = match effect {
                    Effect::Announce(it) => Message::Announce(it),
                    Effect::Withdraw(it) => Message::Withdraw(it),
                    Effect::Networks(it) => Message::Networks(it),
                    Effect::Send { uplink, bytes } => {
                        let config = self.hosts[host].switch.config();
                        if let Some(number) = Host::uplink_number(config, uplink) {
                            let from = Jack::Uplink { host, number };
                            self.spread(vec![Hop::Wire { from, bytes, offload: Offload::NONE }])?;
                        }
                        continue;
                    }
                    Effect::Detached(ix) => {
                        self.hosts[host].ports.retain(|_, it| *it != ix);
                        continue;
                    }
                    Effect::Frozen { vni, mac } => {
                        // Somebody looks at it, finds that it is right, and lets it go on.
                        self.hosts[host].switch.release(self.now, vni, mac);
                        continue;
                    }
                };
                for to in (0..self.hosts.len()).filter(|to| *to != host) {
                    self.news.push_back((host, to, message.clone()));
                }
            }
        }
        Ok(())
    }

    /// All news come round. What is for a host that can't be reached is lost; it gets all anew when it can.
    pub(super) fn settle(&mut self) -> Result<(), String> {
        while let Some((from, to, message)) = self.news.pop_front() {
            if self.tunnels[from][to] {
                self.hosts[to].hear(self.now, from, &message);
            }
            self.effects()?;
        }
        Ok(())
    }

    /// A frame of some sender.
    pub(super) fn make(&mut self, from: &Party) -> Sent {
        let links = self.alive_links();
        let model = self.model(&links);
        let own = match from {
            Party::Port { name, .. } => model.mac(name),
            Party::Station(n) => self.topology.stations[*n].mac,
            Party::Gateway { group, .. } => self.gateways.get(group).copied().unwrap_or(Mac::ZERO),
        };
        let forges = matches!(from, Party::Port { name, .. } if model.may_forge(name));
        let macs: Vec<Mac> = self.spec.ports.iter().map(|port| model.mac(&port.name)).collect();
        let stations: Vec<Mac> = self.topology.stations.iter().map(|station| station.mac).collect();
        let gateways: Vec<Mac> = self.gateways.values().copied().collect();
        drop(links);
        let id = self.next;
        self.next += 1;
        let dice = &mut self.dice;
        let any = |dice: &mut Dice, macs: &[Mac]| dice.pick(macs).copied().unwrap_or(Mac::BROADCAST);
        let dst = match dice.below(22) {
            0..=10 => any(dice, &macs),
            11..=14 => Mac::BROADCAST,
            15 => Mac([1, 0, 0x5e, 0, 0, dice.between(1, 9) as u8]),
            16 => Mac([1, 0x80, 0xc2, 0, 0, dice.between(0, 20) as u8]),
            17 => any(dice, &stations),
            20 | 21 => any(dice, &gateways),
            _ => Mac([0x52, 8, 0, 0, 0, dice.between(1, 30) as u8]),
        };
        let tags: Vec<(u16, u16)> = match from {
            Party::Station(n) => {
                let vid = self.topology.stations[*n].vid as u16;
                if vid == 0 { Vec::new() } else { vec![(0x8100, vid | 0x4000)] }
            }
            Party::Port { .. } => tags(dice),
            Party::Gateway { .. } => Vec::new(),
        };
        let station = matches!(from, Party::Station(_));
        let gateway = matches!(from, Party::Gateway { .. });
        let src = match dice.below(20) {
            _ if gateway => own,
            2 if (forges || station) && !gateways.is_empty() => any(dice, &gateways),
            0 | 1 if forges => Mac([0x52, 8, own.0[1], 0, 0, own.0[5]]),
            0 if !forges && !station => any(dice, &macs),
            _ => own,
        };
        let content = match dice.below(10) {
            0 | 1 if dst == Mac::BROADCAST => {
                let about = [10, 9, 0, dice.between(1, 20) as u8];
                match dice.below(8) {
                    // In the gateway's name, and about it.
                    0 => Content::Arp(GATEWAY, about),
                    1 | 2 => Content::Arp([10, 9, 0, 200], GATEWAY),
                    _ => Content::Arp([10, 9, 0, 200], about),
                }
            }
            0 => Content::Plain(dice.between(1480, 1520) as usize),
            1 => Content::Plain(dice.between(40, 9050) as usize),
            3 if !gateway => Content::Rogue([Rogue::Dhcp, Rogue::DhcpV6, Rogue::Router][dice.below(3)]),
            2 => {
                let size = [536, 1000, 1460, 8900][dice.below(4)];
                Content::Super(dice.between(u32::from(size) + 1, 60_000) as usize, size)
            }
            _ => Content::Plain(dice.between(42, 300) as usize),
        };
        let sent = Sent::new(id, dst, src, &tags, content);
        // Elsewhere it is an address as any other, and several had it.
        let links = self.alive_links();
        let elsewhere = !gateway && gateways.contains(&src) && !self.model(&links).impersonates(from, &sent);
        if elsewhere { Sent::new(id, dst, own, &tags, content) } else { sent }
    }

    pub(super) fn alive_links(&self) -> Vec<Vec<bool>> {
        let mut links = self.links.clone();
        if let Some((host, number)) = self.isolated {
            links[host][number] = false;
        }
        links
    }

    pub(super) fn model<'a>(&'a self, links: &'a [Vec<bool>]) -> Model<'a> {
        Model {
            spec: &self.spec,
            hosts: &self.topology.hosts,
            stations: &self.topology.stations,
            gateways: &self.gateways,
            places: &self.places,
            taken: &self.taken,
            curious: &self.curious,
            links,
            tunnels: &self.tunnels,
            lossy: self.topology.loss_permille > 0,
        }
    }

    pub(super) fn everybody(&self) -> Vec<Party> {
        let port = |(name, host): (&String, &usize)| Party::Port { name: name.clone(), host: *host };
        let mut all: Vec<Party> = self.places.iter().chain(&self.left).map(port).collect();
        all.extend((0..self.topology.stations.len()).map(Party::Station));
        for host in 0..self.hosts.len() {
            all.extend(self.gateways.keys().map(|group| Party::Gateway { group: group.clone(), host }));
        }
        all
    }

    /// Some frames of one host's ports, or of a station, at once.
    pub(super) fn burst(&mut self, settled: bool) -> Result<(), String> {
        let everybody = self.everybody();
        let Some(first) = self.dice.pick(&everybody).cloned() else { return Ok(()) };
        let near: Vec<Party> = match &first {
            Party::Station(_) => vec![first],
            Party::Port { host, .. } | Party::Gateway { host, .. } => {
                let here = |party: &&Party| match party {
                    // What has moved away is silent.
                    Party::Port { host: other, name } => other == host && self.places.get(name) == Some(host),
                    Party::Gateway { host: other, .. } => other == host,
                    Party::Station(_) => false,
                };
                everybody.iter().filter(here).cloned().collect()
            }
        };
        let mut batch = Vec::new();
        for _ in 0..self.dice.between(1, 5) {
            let Some(from) = self.dice.pick(&near).cloned() else { return Ok(()) };
            let sent = self.make(&from);
            batch.push((from, sent));
        }
        self.lost = false;
        let arrivals = self.send(&batch)?;
        let terms = Terms { settled, lost: self.lost };
        let links = self.alive_links();
        let mut required = 0;
        for (from, sent) in &batch {
            let own = arrivals.get(&sent.id).map_or(&[][..], Vec::as_slice);
            required += check::frame(&self.model(&links), from, sent, own, &everybody, terms)?;
        }
        self.outcome.sent += batch.len() as u64;
        self.outcome.required += required;
        let copies = arrivals.values().map(Vec::len).sum::<usize>() as u64;
        self.outcome.arrived += copies;
        self.mix(copies + required);
        Ok(())
    }
}

fn tags(dice: &mut Dice) -> Vec<(u16, u16)> {
    let vid = |dice: &mut Dice| [0, 1, 10, 20, 21, 30, 40, 4095, 101, 112][dice.below(10)];
    let tci = |dice: &mut Dice| vid(dice) | (dice.between(0, 7) as u16) << 13;
    match dice.below(20) {
        0..=9 => Vec::new(),
        10..=16 => vec![(0x8100, tci(dice))],
        17 | 18 => vec![(0x8100, tci(dice)), (0x8100, tci(dice))],
        _ => vec![(0x88a8, tci(dice)), (0x8100, tci(dice))],
    }
}
