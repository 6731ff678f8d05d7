//! The switch's tunnels, driven as the worker drives them, without a switch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use ferro_protocol::net::Vni;
use ferro_protocol::time::Instant;
use ferro_transport::identity::IdentityHandle;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};
use vswitch_core::frame::{Csum, Gso, GsoKind, Offload, Tci};
use vswitch_core::hash::HashKey;
use vswitch_core::table::PeerIx;
use vswitch_core::tunnel::{Arrived, FlowKey, Meta};
use vswitchd::tunnel::data::{Settings, Tunnels};

use super::{Case, Figure, Frames, Hosts, Shared, both, thread_ns};
use crate::process::Stop;

const OTHER: PeerIx = PeerIx(0);
/// Frames and datagrams of a turn.
const TURN: usize = 64;
const HASH: HashKey = HashKey(0x1234_5678_9abc_def0, 0x0fed_cba9_8765_4321);

fn now() -> Instant {
    let t = clock_gettime(ClockId::Monotonic);
    Instant(t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs())
}

fn tunnels(case: &Case, identity: &IdentityHandle) -> anyhow::Result<Tunnels> {
    let mut settings = Settings::new(vec!["127.0.0.1:0".parse()?], HASH);
    settings.congestion = case.congestion;
    settings.connections = case.connections;
    settings.payload_max = case.size.payload();
    Ok(Tunnels::new(now(), settings, identity.clone())?)
}

/// A TCP super-frame over IPv4 of nearly 64 KiB, or a plain frame.
fn frame(frames: Frames) -> anyhow::Result<(Meta, Vec<u8>)> {
    let plain = Meta { vni: Vni::new(10)?, tci: Tci(0), offload: Offload::NONE };
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    match frames {
        Frames::Full => {
            bytes.resize(1514, 7);
            Ok((plain, bytes))
        }
        Frames::Super => {
            const SEGMENT: u16 = 1448;
            let payload = SEGMENT * 45;
            let [high, low] = (52 + payload).to_be_bytes();
            bytes.extend([0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            // With time stamps, as Linux sends.
            bytes.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x18, 1, 0, 0, 0, 0, 0]);
            bytes.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]);
            bytes.resize(66 + usize::from(payload), 7);
            let gso = Some(Gso { kind: GsoKind::TcpV4, ecn: false, size: SEGMENT });
            let offload = Offload { csum: Csum::Partial { start: 34, offset: 16 }, gso };
            Ok((Meta { offload, ..plain }, bytes))
        }
    }
}

/// One turn without anything to send; sleeps if nothing came and `patient`.
fn turn(
    tunnels: &mut Tunnels,
    deliver: &mut dyn FnMut(PeerIx, Arrived<'_>),
    patient: bool,
) -> anyhow::Result<()> {
    if patient {
        let mut fds: Vec<PollFd<'_>> =
            tunnels.descriptors().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let until = tunnels.next_at().map_or(Duration::from_millis(10), |at| at.since(now()));
        let until = Timespec::try_from(until.min(Duration::from_millis(10)))?;
        match poll(&mut fds, Some(&until)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let now = now();
    tunnels.receive(now, TURN, deliver);
    if tunnels.next_at().is_some_and(|at| at <= now) {
        tunnels.handle_time(now, deliver);
    }
    tunnels.flush(now);
    Ok(())
}

/// Both ends of one tunnel.
struct Ends {
    sender: Tunnels,
    receiver: Tunnels,
}

impl Ends {
    fn new(case: &Case, hosts: &Hosts) -> anyhow::Result<Self> {
        let (mut sender, mut receiver) = (tunnels(case, &hosts.sender)?, tunnels(case, &hosts.receiver)?);
        let (a, b): (Vec<_>, Vec<_>) = (sender.addresses().collect(), receiver.addresses().collect());
        sender.set_peer(now(), OTHER, hosts.receiver.host(), &b);
        receiver.set_peer(now(), OTHER, hosts.sender.host(), &a);
        Ok(Self { sender, receiver })
    }
}

/// Adds what this thread has used since the last time.
struct Used<'a> {
    total: &'a AtomicU64,
    last: u64,
}

impl Used<'_> {
    fn add(&mut self) {
        let now = thread_ns();
        self.total.fetch_add(now - std::mem::replace(&mut self.last, now), Ordering::Relaxed);
    }
}

pub(super) fn measure(
    case: &Case,
    frames: Frames,
    hosts: &Hosts,
    time: Duration,
    stop: &Stop,
) -> anyhow::Result<Figure> {
    let ends = (0..case.threads).map(|_| Ends::new(case, hosts)).collect::<anyhow::Result<Vec<_>>>()?;
    let (senders, receivers): (Vec<_>, Vec<_>) = ends.into_iter().map(|it| (it.sender, it.receiver)).unzip();
    let (meta, bytes) = frame(frames)?;
    let flows = flows(case.connections);
    let sender = |mut sender: Tunnels, shared: &Shared| {
        let mut nothing = |_: PeerIx, _: Arrived<'_>| {};
        let mut used = Used { total: &shared.sender_ns, last: thread_ns() };
        while !shared.stopped() {
            let mut sent = 0;
            if sender.is_up(OTHER) {
                let now = now();
                for at in 0..TURN {
                    if !sender.send(now, OTHER, &meta, flows[at % flows.len()], bytes.as_slice()) {
                        break;
                    }
                    sent += 1;
                }
            }
            // A guest would wait as well when there is no room.
            turn(&mut sender, &mut nothing, sent == 0)?;
            shared.sent.fetch_add(sent, Ordering::Relaxed);
            used.add();
        }
        Ok(())
    };
    let receiver = |mut receiver: Tunnels, shared: &Shared| {
        let mut count = 0;
        let mut used = Used { total: &shared.receiver_ns, last: thread_ns() };
        while !shared.stopped() {
            let (before, mut length) = (count, 0);
            let mut deliver = |_: PeerIx, frame: Arrived<'_>| {
                count += 1;
                length += frame.bytes.len() as u64;
            };
            turn(&mut receiver, &mut deliver, true)?;
            shared.received.fetch_add(count - before, Ordering::Relaxed);
            shared.received_bytes.fetch_add(length, Ordering::Relaxed);
            used.add();
        }
        Ok(())
    };
    let send = |shared: &Shared| each(senders, |one| sender(one, shared));
    let receive = |shared: &Shared| each(receivers, |one| receiver(one, shared));
    both(&Arc::new(Shared::default()), time, stop, send, receive)
}

/// Drives each of them in a thread of its own; the first on the caller's.
fn each(all: Vec<Tunnels>, drive: impl Fn(Tunnels) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    let mut all = all.into_iter();
    let first = all.next().context("no tunnel to drive")?;
    std::thread::scope(|scope| {
        let drive = &drive;
        let others: Vec<_> = all.map(|one| scope.spawn(move || drive(one))).collect();
        let mut result = drive(first);
        for other in others {
            let ended = other.join().map_err(|_| anyhow::anyhow!("a side of the measurement panicked"))?;
            result = result.and(ended);
        }
        result
    })
}

/// As many flows as there are connections, each pinned to one of its own.
fn flows(connections: u8) -> Vec<FlowKey> {
    let works = vec![true; usize::from(connections)];
    let flow =
        |lane: usize| (0..10_000).find(|flow| vswitch_core::tunnel::pin(HASH, *flow, &works) == Some(lane));
    (0..works.len()).filter_map(flow).map(|hash| FlowKey { hash, source: 0 }).collect()
}
