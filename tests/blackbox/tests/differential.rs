//! The same ports, and the same frames into them, once through Open vSwitch and once through us: the same frames out, at the
//! same ports, as often.
//!
//! The frames are generated from a seed (every payload that hosts send, every way to tag them), and taken from a capture:
//! `captured/two-hosts.pcap` is what two Linux hosts said on a wire (`tshark -i eth0 -F pcap`): neighbour discovery and ARP,
//! multicast listener reports, pings in one and in two fragments, a TCP connection over IPv4 and one over IPv6, mDNS, DHCP,
//! spanning tree.
//!
//! # Made equal
//!
//! Open vSwitch learns every address and lets ports send from any; so our port groups learn, and allow forged transmits. We
//! know the address of a port's network card before it says anything, so each says something first. Neither knows IP addresses
//! of ports, so neither answers ARP or ND itself. Ours has no native VLAN that is tagged on the way out: that mode of Open
//! vSwitch has no equal here and is not used.
//!
//! # Different by design
//!
//! Each of these is taken out of what Open vSwitch gives ([`Design`]), and must be met, or it would not have to be named:
//!
//! * A frame from a group's address, or from none, is no frame (IEEE 802.3, 3.2.3): we drop it, they forward it.
//! * VLAN 4095 is reserved (IEEE 802.1Q, table 9-2): we drop it, they forward it between ports that carry everything.
//! * A service tag in front: they take 0x88a8 for one more tag of the same VLANs and what is behind 0x9100 for data. Our ports
//!   have no service VLANs; we drop both.
//! * A tag behind the tag: as long as the frame keeps its own tag we agree. Where that is taken off, the hidden tag would speak
//!   for itself and put the frame into a VLAN that its sender may not be in; we withhold it there, they don't. Behind a priority
//!   tag, which says nothing about VLANs, we drop it at once.
//! * A priority tag on a frame that is in no VLAN: we take it off, as bridges do with frames that leave without a VLAN's tag
//!   (IEEE 802.1Q, 8.8), they let it pass if it has a priority.
//! * They lose a tag's drop eligible indicator when they change the tag, because its bit says something else inside of
//!   them. We keep it; it is not compared.
//! * What only we know of an address is not used: nobody sends to a card's address in a VLAN that the card is not in (they
//!   flood it, we know better), nor from another port's card's address (they follow it, we don't).

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ferro_blackbox::bridge::{Bridge, Ours, Port, PortVlan, Theirs};
use ferro_blackbox::frames::{self, EXPERIMENT, OLD_SERVICE_VLAN, SERVICE_VLAN, VLAN, be16};
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::{Lab, LabOptions};
use ferro_protocol::net::Mac;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

const MTU: u16 = 9000;
const PORTS: [Port; 12] = [
    Port { name: "none1", vlan: PortVlan::None },
    Port { name: "none2", vlan: PortVlan::None },
    Port { name: "ten1", vlan: PortVlan::Access(10) },
    Port { name: "ten2", vlan: PortVlan::Access(10) },
    Port { name: "twenty", vlan: PortVlan::Access(20) },
    Port { name: "last", vlan: PortVlan::Access(4094) },
    Port { name: "trunk1", vlan: PortVlan::Trunk { ranges: &[(10, 12), (20, 20)], native: None } },
    Port { name: "trunk2", vlan: PortVlan::Trunk { ranges: &[(1, 15), (4000, 4094)], native: None } },
    Port { name: "native1", vlan: PortVlan::Trunk { ranges: &[(20, 30)], native: Some(10) } },
    Port { name: "native2", vlan: PortVlan::Trunk { ranges: &[(10, 10), (20, 20)], native: Some(20) } },
    Port { name: "guest1", vlan: PortVlan::Guest },
    Port { name: "guest2", vlan: PortVlan::Guest },
];
/// VLANs that somebody uses, some of them only at ports that carry everything.
const VIDS: [u16; 12] = [0, 1, 10, 11, 12, 13, 20, 25, 30, 999, 4000, 4094];
const CAPTURE: &[u8] = include_bytes!("captured/two-hosts.pcap");
const CAPTURED: [Mac; 2] = [Mac([0x52, 0x54, 0, 0xc0, 0, 0x0a]), Mac([0x52, 0x54, 0, 0xc0, 0, 0x0b])];
const PHASES: usize = 400;
const PHASE_FRAMES: usize = 8;
/// How long frames may take to come out.
const OUT_MAX: Duration = Duration::from_secs(10);
const GROUP_BIT: u8 = 1;

/// In what we differ, and mean it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Design {
    NoSource,
    ReservedVlan,
    ServiceTag,
    HiddenByPriority,
    /// Only where its tag would be taken off.
    Hidden,
    /// It has a tag less.
    Priority,
}

const DESIGNS: [Design; 6] = [
    Design::NoSource,
    Design::ReservedVlan,
    Design::ServiceTag,
    Design::HiddenByPriority,
    Design::Hidden,
    Design::Priority,
];

fn is_tag(ether_type: Option<u16>) -> bool {
    matches!(ether_type, Some(VLAN | SERVICE_VLAN | OLD_SERVICE_VLAN))
}

fn vid_of(tci: u16) -> u16 {
    tci & 0xfff
}

/// How we differ on a frame.
fn design(frame: &[u8]) -> Option<Design> {
    if frame[6] & GROUP_BIT != 0 || frame[6..12] == [0; 6] {
        return Some(Design::NoSource);
    }
    let (outer, hidden) = (be16(frame, 12), is_tag(be16(frame, 16)));
    let vid = be16(frame, 14).map(vid_of);
    match (outer, vid) {
        (Some(SERVICE_VLAN | OLD_SERVICE_VLAN), _) => Some(Design::ServiceTag),
        (Some(VLAN), Some(0xfff)) => Some(Design::ReservedVlan),
        (Some(VLAN), Some(0)) if hidden => Some(Design::HiddenByPriority),
        (Some(VLAN), _) if hidden => Some(Design::Hidden),
        _ => None,
    }
}

/// A frame without its outermost tag.
fn untagged(frame: &[u8]) -> Vec<u8> {
    if is_tag(be16(frame, 12)) { [&frame[..12], &frame[16..]].concat() } else { frame.to_vec() }
}

/// Without what they lose.
fn comparable(mut frame: Vec<u8>) -> Vec<u8> {
    const DROP_ELIGIBLE: u8 = 0x10;
    if be16(&frame, 12) == Some(VLAN) && frame.len() > 14 {
        frame[14] &= !DROP_ELIGIBLE;
    }
    frame
}

type Seen = BTreeMap<(usize, Vec<u8>), i64>;

/// The two, side by side.
struct Both {
    ours: Ours,
    theirs: Theirs,
    markers: u64,
    /// What was sent before this.
    before: Vec<Vec<u8>>,
    compared: usize,
    met: BTreeMap<Design, usize>,
}

impl Both {
    fn start(lab: &Lab) -> Result<Self> {
        let host = lab.host(1);
        let theirs = Theirs::start(lab, host, &PORTS, MTU)?;
        Ok(Self {
            ours: Ours::start(host, &PORTS, MTU)?,
            theirs,
            markers: 0,
            before: Vec::new(),
            compared: 0,
            met: BTreeMap::new(),
        })
    }

    /// Frames into one port of both, and what comes out compared. Behind them goes one that somebody surely gets: when that
    /// is out of both, so is everything before it.
    fn pass(&mut self, port: usize, frames: &[Vec<u8>]) -> Result<()> {
        self.markers += 1;
        let marker = frames::ethernet(
            Mac::BROADCAST,
            Port::mac(port),
            &(EXPERIMENT, self.markers.to_be_bytes().repeat(6)),
        );
        let marker = match PORTS[port].vlan {
            PortVlan::Trunk { ranges, native: None } => frames::tagged(&marker, VLAN, ranges[0].1),
            _ => marker,
        };
        for frame in frames.iter().chain([&marker]) {
            self.ours.send(port, frame)?;
            self.theirs.send(port, frame)?;
        }
        // What came out of us less what came out of them.
        let (mut more, mut marked, began) = (Seen::new(), [false; 2], Instant::now());
        loop {
            for (at, frame) in self.ours.received()? {
                marked[0] |= frame.ends_with(&marker[12..]);
                self.compared += 1;
                *more.entry((at, comparable(frame))).or_default() += 1;
            }
            for (at, frame) in self.theirs.received()? {
                marked[1] |= frame.ends_with(&marker[12..]);
                let sent = frames.iter().chain(&self.before);
                match Self::by_design(sent, &frame) {
                    Some(Design::Priority) => {
                        *self.met.entry(Design::Priority).or_default() += 1;
                        *more.entry((at, untagged(&frame))).or_default() -= 1;
                    }
                    Some(design) => *self.met.entry(design).or_default() += 1,
                    None => *more.entry((at, comparable(frame))).or_default() -= 1,
                }
            }
            more.retain(|_, count| *count != 0);
            if marked == [true; 2] && more.is_empty() {
                break;
            }
            if began.elapsed() > OUT_MAX {
                return Err(Self::difference(port, frames, &more, marked));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        // What only they give is not waited for: it may come when the next is under way.
        self.before = frames.to_vec();
        self.theirs.decide_anew()
    }

    /// Whether a frame that they gave out is one of which we mean to give none, or another.
    fn by_design<'a>(sent: impl Iterator<Item = &'a Vec<u8>>, out: &[u8]) -> Option<Design> {
        let priority = be16(out, 12) == Some(VLAN) && be16(out, 14).map(vid_of) == Some(0);
        let mut refused = sent.filter_map(|sent| {
            let design = design(sent)?;
            let taken_off = out == untagged(sent);
            let same = taken_off || out == sent || untagged(out) == untagged(sent) || untagged(out) == *sent;
            (same && (taken_off || design != Design::Hidden)).then_some(design)
        });
        refused.next().or(priority.then_some(Design::Priority))
    }

    fn difference(port: usize, sent: &[Vec<u8>], more: &Seen, marked: [bool; 2]) -> anyhow::Error {
        let show = |frame: &[u8]| {
            let head: Vec<String> = frame.iter().take(38).map(|byte| format!("{byte:02x}")).collect();
            format!("{} bytes {}", frame.len(), head.concat())
        };
        let mut lines = vec![format!("into {}:", PORTS[port].name)];
        lines.extend(sent.iter().map(|frame| format!("  {}", show(frame))));
        for ((at, frame), count) in more {
            let whose = if *count > 0 { "only we" } else { "only they" };
            lines.push(format!("{whose} gave {} {} times: {}", PORTS[*at].name, count.abs(), show(frame)));
        }
        lines.push(format!("all of it came out of us: {}, of them: {}", marked[0], marked[1]));
        anyhow::anyhow!(lines.join("\n"))
    }

    /// Nothing comes after all has come.
    fn end(mut self) -> Result<()> {
        std::thread::sleep(Duration::from_millis(300));
        let (ours, theirs) = (self.ours.received()?, self.theirs.received()?);
        ensure!(ours.is_empty() && theirs.is_empty(), "late: ours {ours:?}, theirs {theirs:?}");
        println!("{} frames came out of both; {:?}", self.compared, self.met);
        Ok(())
    }
}

fn with_both(test: impl FnOnce(&mut Both) -> Result<()>) {
    with_hosts(LabOptions { hosts: 1, ..LabOptions::default() }, |lab| {
        let mut both = Both::start(lab)?;
        hello(&mut both)?;
        test(&mut both)?;
        both.end()
    });
}

/// A frame as a port would send it in a VLAN; nothing if the port is not in it.
fn in_vlan(port: usize, frame: &[u8], vid: u16) -> Option<Vec<u8>> {
    let vlan = PORTS[port].vlan;
    if vlan.native() == Some(vid) {
        return Some(frame.to_vec());
    }
    let tags = matches!(vlan, PortVlan::Trunk { .. } | PortVlan::Guest);
    (tags && vlan.carries(vid)).then(|| frames::tagged(frame, VLAN, vid))
}

/// Every card says something in each VLAN that it is in.
fn hello(both: &mut Both) -> Result<()> {
    for port in 0..PORTS.len() {
        let frame = frames::ethernet(Mac::BROADCAST, Port::mac(port), &(EXPERIMENT, vec![port as u8; 46]));
        let all: Vec<Vec<u8>> = VIDS.iter().filter_map(|vid| in_vlan(port, &frame, *vid)).collect();
        both.pass(port, &all)?;
    }
    Ok(())
}

/// A machine somewhere behind a port.
#[derive(Clone, Copy, Debug)]
struct Station {
    mac: Mac,
    port: usize,
    vid: u16,
}

struct Generator {
    dice: StdRng,
    stations: Vec<Station>,
    serial: u64,
}

impl Generator {
    fn new(seed: u64) -> Self {
        let mut stations = Vec::new();
        for (port, it) in PORTS.iter().enumerate() {
            for (n, vid) in VIDS.iter().enumerate().filter(|(_, vid)| it.vlan.carries(**vid)) {
                if in_vlan(port, &[0; 60], *vid).is_some() {
                    stations.push(Station {
                        mac: Mac([0x02, 0xbb, 0, 0, port as u8, n as u8]),
                        port,
                        vid: *vid,
                    });
                }
            }
        }
        Self { dice: StdRng::seed_from_u64(seed), stations, serial: 0 }
    }

    /// What a frame carries; no two are alike.
    fn payload(&mut self, src: Mac) -> frames::Payload {
        self.serial += 1;
        let serial = self.serial.to_be_bytes();
        let len = match self.dice.random_range(0..10) {
            0 => 0,
            1 => 1500 - 60,
            // As large as may be, or one too much, with the largest headers here.
            2 => usize::from(MTU) - 60 - serial.len(),
            3 => usize::from(MTU) + self.dice.random_range(0..3),
            _ => self.dice.random_range(0..1400),
        };
        let mut data = serial.to_vec();
        data.resize(serial.len() + len, 0x5a);
        let [.., a, b] = serial;
        let (v4, to4) = (Ipv4Addr::new(10, 0, a, b), Ipv4Addr::new(10, 0, b, a));
        let v6 = |last: u8| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, u16::from_be_bytes([a, b]), u16::from(last));
        match self.dice.random_range(0..8) {
            0 => frames::who_has(src, v4, to4),
            1 => frames::udp4(v4, to4, &data),
            2 => frames::tcp4(v4, to4, &data),
            3 => frames::tcp6(v6(1), v6(2), &data),
            4 => frames::solicitation(src, v6(1), v6(2)),
            5 => frames::with_length(&data[..data.len().min(1400)]),
            6 => (EXPERIMENT, serial[self.dice.random_range(0..=4)..].to_vec()),
            _ => (EXPERIMENT, data),
        }
    }

    fn receiver(&mut self, port: usize, vid: Option<u16>) -> Mac {
        let dice = &mut self.dice;
        match dice.random_range(0..16) {
            0..=2 => Mac::BROADCAST,
            3 => Mac([0x01, 0, 0x5e, 0, 0, dice.random_range(1..5)]),
            4 => Mac([0x33, 0x33, 0xff, 0, 0, dice.random_range(1..5)]),
            // Bridges keep these to themselves.
            5 => Mac([0x01, 0x80, 0xc2, 0, 0, dice.random_range(0..16)]),
            6 => Mac([0x02, 0xcc, 0, 0, 0, dice.random_range(1..5)]),
            7 | 8 => {
                let in_vlan =
                    |at: &usize| vid.is_some_and(|vid| VIDS.contains(&vid) && PORTS[*at].vlan.carries(vid));
                let cards: Vec<usize> = (0..PORTS.len()).filter(in_vlan).collect();
                cards.choose(dice).map_or(Mac::BROADCAST, |at| Port::mac(*at))
            }
            9..=13 => {
                // Mostly one that can be reached.
                let near: Vec<&Station> =
                    self.stations.iter().filter(|it| Some(it.vid) == vid && it.port != port).collect();
                near.choose(dice).map_or(Mac::BROADCAST, |it| it.mac)
            }
            _ => self.stations.choose(dice).map_or(Mac::BROADCAST, |it| it.mac),
        }
    }

    /// Something that may be sent into a port, rightly or not.
    fn frame(&mut self, port: usize) -> Vec<u8> {
        let here: Vec<Station> = self.stations.iter().filter(|it| it.port == port).copied().collect();
        let tag = match self.dice.random_range(0..20) {
            0..=7 => None,
            8..=15 => VIDS.choose(&mut self.dice).copied(),
            16 | 17 => Some(0),
            18 => Some(4095),
            _ => Some(self.dice.random_range(1..4095)),
        };
        let vid = tag.filter(|vid| *vid != 0).or(PORTS[port].vlan.native());
        let known: Vec<&Station> = here.iter().filter(|it| Some(it.vid) == vid).collect();
        let src = match (self.dice.random_range(0..20), known.choose(&mut self.dice)) {
            (0, _) => Mac([0x03, 0, 0, 0, 0, 1]),
            (1, _) => Mac::ZERO,
            (2..=5, _) | (_, None) => Port::mac(port),
            (_, Some(station)) => station.mac,
        };
        let dst = self.receiver(port, vid);
        let payload = self.payload(src);
        let frame = frames::ethernet(dst, src, &payload);
        let priority = self.dice.random_range(0..16_u16) << 12;
        // A frame that is too long with one tag and not without it is another matter.
        let small = frame.len() < 2000;
        let Some(vid) = tag else { return frame };
        let inner = match self.dice.random_range(0..6) {
            0 if small => frames::tagged(&frame, VLAN, *VIDS.choose(&mut self.dice).unwrap_or(&10)),
            1 if small => frames::tagged(&frame, SERVICE_VLAN, 10),
            _ => frame,
        };
        let tpid = match self.dice.random_range(0..12) {
            0 if small => SERVICE_VLAN,
            1 if small => OLD_SERVICE_VLAN,
            _ => VLAN,
        };
        let mut frame = frames::tagged(&inner, tpid, vid | priority);
        if tpid == OLD_SERVICE_VLAN {
            // To them it is untagged, and they learn its sender in another VLAN: that is one who is known there.
            frame[6..12].copy_from_slice(&Port::mac(port).0);
        }
        frame
    }

    /// A station says where it is.
    fn hello(&mut self, station: Station) -> Result<Vec<u8>> {
        let payload = self.payload(station.mac);
        let frame = frames::ethernet(Mac::BROADCAST, station.mac, &payload);
        in_vlan(station.port, &frame, station.vid).context("a station where it can't be")
    }
}

#[test]
fn generated_frames_go_the_same_way() {
    with_both(|both| {
        let mut generator = Generator::new(20_250_101);
        let mut stations = generator.stations.clone();
        for station in &stations {
            let hello = generator.hello(*station)?;
            both.pass(station.port, &[hello])?;
        }
        for _ in 0..PHASES {
            let port = generator.dice.random_range(0..PORTS.len());
            let frames: Vec<Vec<u8>> = (0..PHASE_FRAMES).map(|_| generator.frame(port)).collect();
            both.pass(port, &frames)?;
        }
        // Machines move to other ports of their VLANs, and are found there.
        for n in (0..stations.len()).step_by(3) {
            let Station { mac, vid, port } = stations[n];
            let elsewhere = |at: &usize| *at != port && in_vlan(*at, &[0; 60], vid).is_some();
            let Some(to) = (0..PORTS.len()).filter(elsewhere).nth(n % 3) else { continue };
            stations[n].port = to;
            let hello = generator.hello(stations[n])?;
            both.pass(to, &[hello])?;
            let asker = stations.iter().find(|it| it.vid == vid && it.port != to).copied();
            let Some(asker) = asker else { continue };
            let payload = generator.payload(asker.mac);
            let frame = frames::ethernet(mac, asker.mac, &payload);
            both.pass(asker.port, &[in_vlan(asker.port, &frame, vid).context("the asker's VLAN")?])?;
        }
        for design in DESIGNS {
            ensure!(
                both.met.contains_key(&design),
                "{design:?} makes no difference: take it out of the list"
            );
        }
        Ok(())
    });
}

/// Where the two hosts are, the VLAN, and a tag that they put in front of everything.
type Scene = ([&'static str; 2], u16, Option<(u16, u16)>);

#[test]
fn captured_frames_go_the_same_way() {
    let capture = frames::capture(CAPTURE).expect("the capture can be read");
    assert!(capture.len() > 50, "it is a short capture");
    let scenes: [Scene; 6] = [
        (["ten1", "ten2"], 10, None),
        (["none1", "guest1"], 0, None),
        (["trunk1", "twenty"], 20, None),
        (["native1", "trunk2"], 10, None),
        // A customer's own tags, through two trunks.
        (["trunk1", "trunk2"], 12, Some((VLAN, 0x6007))),
        (["guest1", "guest2"], 0, Some((SERVICE_VLAN, 100))),
    ];
    with_both(|both| {
        for (names, vid, tag) in scenes {
            let place = |name: &str| PORTS.iter().position(|port| port.name == name).context("no such port");
            let ports = [place(names[0])?, place(names[1])?];
            for conversation in capture.chunk_by(|a, b| a[6..12] == b[6..12]) {
                let Some(who) = CAPTURED.iter().position(|mac| mac.0 == conversation[0][6..12]) else {
                    bail!("who sent {:02x?}?", &conversation[0][..14]);
                };
                let send = |frame: &Vec<u8>| {
                    let frame = tag.map_or(frame.clone(), |(tpid, tci)| frames::tagged(frame, tpid, tci));
                    in_vlan(ports[who], &frame, vid).context("a port that is not in its VLAN")
                };
                let frames = conversation.iter().map(send).collect::<Result<Vec<_>>>()?;
                both.pass(ports[who], &frames)?;
            }
        }
        Ok(())
    });
}
