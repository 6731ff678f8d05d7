//! The vmm's front ends on real daemons that are killed under load: each request is answered exactly once and with the right
//! data, and of frames at most those are lost that were under way.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ferro_blackbox::front_end::FrontEnd;
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::network::{self, SWITCH_MAX};
use ferro_blackbox::{Host, LabOptions, eventually, with_lab};
use ferro_protocol::api::switch::{LinkState, PortInfo};
use ferro_vhost::frontend::RingDescriptor;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use vm_memory::{Bytes, GuestAddress};
use vmm::virtio::vhost_user::{Mac, Role};

/// The longest that a request may take while no daemon is missing.
const ANSWER_MAX: Duration = Duration::from_secs(40);
/// A pause between two looks at the rings.
const NAP: Duration = Duration::from_micros(200);

// ---- disks ----

const QUEUES: u16 = 2;
/// Requests under way on each queue.
const DEPTH: usize = 32;
const PLACES: usize = QUEUES as usize * DEPTH;
/// Each request in flight has a part of the volume to itself, so that what it must find is known.
const AREA_BYTES: u64 = 16 << 10;
const SECTOR_BYTES: u64 = 512;
/// Of a buffer: header, status, data.
const BUFFER_BYTES: u64 = 4096 + AREA_BYTES;
const IN: u32 = 0;
const OUT: u32 = 1;
/// No status that a device writes.
const NO_STATUS: u8 = 0xff;

/// What a request was.
#[derive(Clone, Copy, Debug)]
enum Asked {
    /// To write what this seed makes.
    Write(u64),
    /// To read what is there.
    Read,
}

/// A disk that is written and read all the time.
struct Load {
    disk: FrontEnd,
    dice: StdRng,
    /// By queue and place: what was written there last, and was answered. Zeros at first.
    content: Vec<u64>,
    /// By queue and head: place and request.
    asked: BTreeMap<(u16, u16), (usize, Asked)>,
    seeds: u64,
    answered: u64,
}

/// What a seed makes; 0 makes zeros, as a new volume has them.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let word = |at: u64| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(seed.wrapping_mul(at));
    (0..bytes as u64 / 8).flat_map(|at| word(at).to_le_bytes()).collect()
}

impl Load {
    /// A disk that has this content.
    fn open(owner: &Host, content: Vec<u64>) -> Result<Self> {
        let socket = owner.open("data")?;
        let (role, bytes) = (Role::Block { queues: QUEUES, read_only: false }, PLACES as u64 * BUFFER_BYTES);
        let disk = FrontEnd::start(&socket, role, QUEUES, bytes)?;
        let (dice, seeds) = (StdRng::seed_from_u64(7), content.iter().copied().max().unwrap_or(0));
        Ok(Self { disk, dice, content, asked: BTreeMap::new(), seeds, answered: 0 })
    }

    /// A new disk, with as many requests under way as there may be.
    fn start(owner: &Host) -> Result<Self> {
        let mut load = Self::open(owner, vec![0; PLACES])?;
        (0..PLACES).try_for_each(|place| load.ask(place))?;
        Ok(load)
    }

    /// A request for a place that has none under way.
    fn ask(&mut self, place: usize) -> Result<()> {
        let asked = if self.dice.random_bool(0.6) {
            self.seeds += 1;
            Asked::Write(self.seeds)
        } else {
            Asked::Read
        };
        self.ask_for(place, asked)
    }

    fn ask_for(&mut self, place: usize, asked: Asked) -> Result<()> {
        let queue = (place / DEPTH) as u16;
        let (ram, buffers) = self.disk.memory();
        let header = GuestAddress(buffers + place as u64 * BUFFER_BYTES);
        let (status, data) = (GuestAddress(header.0 + 64), GuestAddress(header.0 + 4096));
        let (kind, device_writes) = if let Asked::Write(seed) = asked {
            ram.mem().write_slice(&pattern(seed, AREA_BYTES as usize), data)?;
            (OUT, false)
        } else {
            ram.mem().write_slice(&vec![0xee; AREA_BYTES as usize], data)?;
            (IN, true)
        };
        let sector = place as u64 * AREA_BYTES / SECTOR_BYTES;
        ram.mem().write_slice(&[u64::from(kind).to_le_bytes(), sector.to_le_bytes()].concat(), header)?;
        ram.mem().write_obj(NO_STATUS, status)?;
        let chain = [
            RingDescriptor { addr: header, len: 16, device_writes: false },
            RingDescriptor { addr: data, len: AREA_BYTES as u32, device_writes },
            RingDescriptor { addr: status, len: 1, device_writes: true },
        ];
        let head = self.disk.give(queue, &chain)?;
        self.asked.insert((queue, head), (place, asked));
        Ok(())
    }

    /// Takes what was answered and checks it; asks again if wanted.
    fn turn(&mut self, again: bool) -> Result<()> {
        let before = self.answered;
        for queue in 0..QUEUES {
            // No more than these, or a device that is quick enough would never let go.
            for _ in 0..DEPTH {
                let Some((head, _)) = self.disk.take(queue)? else { break };
                let (place, asked) = self.asked.remove(&(queue, head)).context("nobody asked for this")?;
                self.check(place, asked)?;
                self.answered += 1;
                if again {
                    self.ask(place)?;
                }
            }
        }
        if self.answered == before {
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    fn check(&mut self, place: usize, asked: Asked) -> Result<()> {
        let (ram, buffers) = self.disk.memory();
        let header = buffers + place as u64 * BUFFER_BYTES;
        let status: u8 = ram.mem().read_obj(GuestAddress(header + 64))?;
        ensure!(status == 0, "{asked:?} at place {place}: status {status}");
        match asked {
            Asked::Write(seed) => self.content[place] = seed,
            Asked::Read => {
                let mut data = vec![0; AREA_BYTES as usize];
                ram.mem().read_slice(&mut data, GuestAddress(header + 4096))?;
                let wanted = self.content[place];
                ensure!(
                    data == pattern(wanted, data.len()),
                    "place {place} has not what write {wanted} wrote"
                );
            }
        }
        Ok(())
    }

    /// Until so many more were answered.
    fn progress(&mut self, requests: u64) -> Result<()> {
        let (wanted, until) = (self.answered + requests, Instant::now() + ANSWER_MAX);
        while self.answered < wanted {
            ensure!(Instant::now() < until, "{} requests are not answered", wanted - self.answered);
            self.turn(true)?;
        }
        Ok(())
    }

    /// The daemon is not there for so long: what it has done by then is answered, and nothing fails.
    fn outage(&mut self, length: Duration) -> Result<()> {
        let until = Instant::now() + length;
        while Instant::now() < until {
            // Asked again: what is given to a device without a back end has to wait, and no more.
            self.turn(true)?;
        }
        ensure!(self.asked.len() == PLACES, "{} of {PLACES} requests wait", self.asked.len());
        let before = self.answered;
        self.turn(true)?;
        ensure!(self.answered == before, "somebody answers whom there is not");
        Ok(())
    }

    /// Waits for all, reads all, and makes sure that nothing comes behind that.
    fn finish(mut self) -> Result<Vec<u64>> {
        let until = Instant::now() + ANSWER_MAX;
        while !self.asked.is_empty() {
            ensure!(Instant::now() < until, "{} requests are never answered", self.asked.len());
            self.turn(false)?;
        }
        (0..PLACES).try_for_each(|place| self.ask_for(place, Asked::Read))?;
        while !self.asked.is_empty() {
            ensure!(Instant::now() < until, "{} reads are never answered", self.asked.len());
            self.turn(false)?;
        }
        std::thread::sleep(Duration::from_millis(500));
        for queue in 0..QUEUES {
            ensure!(self.disk.take(queue)?.is_none(), "an answer to nothing");
            let (given, taken) = self.disk.counts(queue);
            ensure!(given == taken, "{given} requests and {taken} answers");
        }
        self.disk.reset()?;
        println!("{} requests, each answered once", self.answered);
        Ok(self.content)
    }
}

fn kill_under_load(owner: &Host, load: &mut Load, outage: Duration) -> Result<()> {
    load.progress(200)?;
    // All that can be under way is, because what was answered was asked anew.
    owner.kill9()?;
    load.outage(outage)?;
    owner.start()?;
    load.progress(200)
}

#[test]
fn each_request_is_answered_once_however_often_the_storage_dies() {
    with_lab(LabOptions { hosts: 1, ..LabOptions::default() }, |lab| {
        let owner = lab.host(1);
        owner.create("data", "1G", "mirror:1")?;
        let mut load = Load::start(owner)?;
        for _ in 0..6 {
            kill_under_load(owner, &mut load, Duration::from_millis(200))?;
        }
        // Longer than any time-out of anybody.
        kill_under_load(owner, &mut load, Duration::from_secs(35))?;
        load.finish().map(drop)
    });
}

#[test]
fn a_mirrored_volume_goes_on_after_its_owner_and_is_the_same_elsewhere() {
    with_lab(LabOptions::default(), |lab| {
        let owner = lab.host(2);
        owner.create("data", "1G", "mirror:2")?;
        let mut load = Load::start(owner)?;
        for _ in 0..2 {
            kill_under_load(owner, &mut load, Duration::from_millis(500))?;
        }
        let content = load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])?;
        ensure!(Load::open(lab.host(3), content.clone())?.finish()? == content, "reads have changed it");
        Ok(())
    });
}

// ---- network cards ----

const MACS: [[u8; 6]; 2] = [[0x52, 0x54, 0, 0, 0, 1], [0x52, 0x54, 0, 0, 0, 2]];
const FRAME_BYTES: usize = 600;
/// With the header in front (virtio 1.2, 5.1.6).
const HEADER_BYTES: usize = 12;
const CARD_BUFFER_BYTES: u64 = 2048;
const RECEIVE: u16 = 0;
const SEND: u16 = 1;
/// Frames that the switch has not sent yet; and buffers for those that come.
const SENDING_MAX: u64 = 64;
const RECEIVING: u64 = 256;

/// Two cards on one switch: frames with numbers go from the first to the second.
struct Cards {
    from: FrontEnd,
    to: FrontEnd,
    /// By head: the buffers of frames that come.
    buffers: BTreeMap<u16, u64>,
    /// Frames that were given to the switch, and those that have come, each so many times.
    sent: u64,
    came: BTreeMap<u64, u32>,
}

fn frame(number: u64) -> Vec<u8> {
    let mut frame = [&MACS[1][..], &MACS[0], &[0x88, 0xb6], &number.to_be_bytes()].concat();
    frame.extend((frame.len()..FRAME_BYTES).map(|at| (at as u64 ^ number) as u8));
    frame
}

impl Cards {
    fn start(host: &Host) -> Result<Self> {
        let card = |name: &str, mac: [u8; 6]| {
            let socket = network::attach_socket(host, name)?;
            let role = Role::Net { mac: Mac(mac), pairs: 1, mtu: None };
            FrontEnd::start(&socket, role, 2, RECEIVING * CARD_BUFFER_BYTES)
        };
        let (from, to) = (card("left", MACS[0])?, card("right", MACS[1])?);
        let mut cards = Self { from, to, buffers: BTreeMap::new(), sent: 0, came: BTreeMap::new() };
        (0..RECEIVING).try_for_each(|buffer| cards.wait_for(buffer))?;
        wait_up(host)?;
        Ok(cards)
    }

    fn wait_for(&mut self, buffer: u64) -> Result<()> {
        let at = self.to.memory().1 + buffer * CARD_BUFFER_BYTES;
        let chain =
            [RingDescriptor { addr: GuestAddress(at), len: CARD_BUFFER_BYTES as u32, device_writes: true }];
        let head = self.to.give(RECEIVE, &chain)?;
        self.buffers.insert(head, buffer);
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        let (ram, buffers) = self.from.memory();
        let at = GuestAddress(buffers + self.sent % SENDING_MAX * CARD_BUFFER_BYTES);
        ram.mem().write_slice(&[&[0; HEADER_BYTES][..], &frame(self.sent)].concat(), at)?;
        let len = (HEADER_BYTES + FRAME_BYTES) as u32;
        self.from.give(SEND, &[RingDescriptor { addr: at, len, device_writes: false }])?;
        self.sent += 1;
        Ok(())
    }

    fn turn(&mut self, frames: bool) -> Result<()> {
        while self.from.take(SEND)?.is_some() {}
        // Buffers are used in turn, and the switch sends in turn: whoever is far enough behind has been sent.
        while frames && self.from.with_device(SEND) < SENDING_MAX / 2 {
            self.send()?;
        }
        let mut idle = true;
        while let Some((head, bytes)) = self.to.take(RECEIVE)? {
            idle = false;
            let buffer = self.buffers.remove(&head).context("nobody gave this buffer")?;
            self.receive(buffer, bytes)?;
            self.wait_for(buffer)?;
        }
        if idle {
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    fn receive(&mut self, buffer: u64, bytes: u32) -> Result<()> {
        let mut data = vec![0; bytes as usize];
        let (ram, buffers) = self.to.memory();
        ram.mem().read_slice(&mut data, GuestAddress(buffers + buffer * CARD_BUFFER_BYTES))?;
        let data = data.get(HEADER_BYTES..).context("less than a header")?;
        let number = data.get(14..22).and_then(|number| number.try_into().ok()).map(u64::from_be_bytes);
        let number = number.context("a frame of nobody")?;
        ensure!(data == frame(number), "frame {number} has other bytes");
        *self.came.entry(number).or_default() += 1;
        Ok(())
    }

    /// Until so many more have come.
    fn progress(&mut self, frames: u64) -> Result<()> {
        let (wanted, until) = (self.came.len() as u64 + frames, Instant::now() + ANSWER_MAX);
        while (self.came.len() as u64) < wanted {
            ensure!(Instant::now() < until, "{} frames do not come", wanted - self.came.len() as u64);
            self.turn(true)?;
        }
        Ok(())
    }

    /// Nothing new is sent; what is under way comes.
    fn settle(&mut self, length: Duration) -> Result<()> {
        let until = Instant::now() + length;
        while Instant::now() < until {
            self.turn(false)?;
        }
        Ok(())
    }
}

fn wait_up(host: &Host) -> Result<()> {
    eventually("both ports are up", SWITCH_MAX, || {
        for name in ["left", "right"] {
            let port: PortInfo = host.vswitchd().ctl(&["port", "show", name])?;
            ensure!(port.link == Some(LinkState::Up), "{port:?}");
        }
        Ok(())
    })
}

#[test]
fn a_switch_that_dies_takes_with_it_only_what_was_under_way() {
    with_hosts(LabOptions { hosts: 1, ..LabOptions::default() }, |lab| {
        let host = lab.host(1);
        let port = |(name, mac): (&str, [u8; 6])| {
            let mac = ferro_protocol::net::Mac(mac);
            format!("[[port]]\nname = \"{name}\"\ngroup = \"pair\"\nmac = \"{mac}\"\n")
        };
        let ports: Vec<String> = ["left", "right"].into_iter().zip(MACS).map(port).collect();
        let group = "[[switch]]\nname = \"s0\"\n[[portgroup]]\nname = \"pair\"\nswitch = \"s0\"\n";
        network::start_alone(host, &(group.to_owned() + &ports.concat()))?;
        let mut cards = Cards::start(host)?;
        // Frames that may be missing or come twice: those that the switch could have in its hands at a kill.
        let mut under_way = Vec::new();
        for outage in [200, 200, 200, 200, 12_000].map(Duration::from_millis) {
            cards.progress(2_000)?;
            host.vswitchd().kill9()?;
            under_way.push(cards.sent.saturating_sub(2 * SENDING_MAX)..cards.sent);
            cards.settle(outage)?;
            ensure!(cards.from.with_device(SEND) <= SENDING_MAX, "the switch has what it was not given");
            host.vswitchd().start()?;
            wait_up(host)?;
        }
        cards.progress(2_000)?;
        cards.settle(Duration::from_secs(1))?;
        ensure!(cards.from.with_device(SEND) == 0, "{} frames are never sent", cards.from.with_device(SEND));
        let excused = |number: &u64| under_way.iter().any(|range| range.contains(number));
        let missing: Vec<u64> = (0..cards.sent).filter(|number| !cards.came.contains_key(number)).collect();
        let twice: Vec<u64> =
            cards.came.iter().filter(|(_, times)| **times > 1).map(|(number, _)| *number).collect();
        println!("{} frames, {} lost, {} twice", cards.sent, missing.len(), twice.len());
        ensure!(missing.iter().all(excused), "lost without a reason: {missing:?}, excused: {under_way:?}");
        ensure!(twice.iter().all(excused), "twice without a reason: {twice:?}, excused: {under_way:?}");
        cards.from.reset()?;
        cards.to.reset()
    });
}
