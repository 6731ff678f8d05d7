//! `ferro-bench quinn`: what a tunnel can do at most, and what ours does.
//!
//! The ceiling is bare quinn: one sender and one receiver of DATAGRAM frames over loopback, each a thread with a runtime of
//! its own, at two sizes and with two congestion controllers. Beside it, over paths of the same MTU and with the same
//! ciphers, the switch's tunnels alone: no switch, no guests, one thread each side; with four connections (`-x4`); and four
//! tunnels with a thread each at both ends (`-t4`). Rounds of all alternate; the report has medians.
//!
//! What it must not know: the inside of the tunnels. It drives them as the worker does.

mod bare;
mod ours;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use ferro_protocol::ids::{ClusterId, HostId};
use ferro_transport::UnixTime;
use ferro_transport::identity::{
    CA_LIFETIME, ClusterCa, HOST_CERT_LIFETIME, HostKey, IdentityDir, IdentityHandle,
};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use vswitchd::tunnel::data::Congestion;

use crate::process::Stop;
use crate::report::{Machine, write_json};

/// The window of the managed controller: that of the ceiling, too.
const WINDOW: u32 = Congestion::WINDOW_DEFAULT;
/// Figures are taken after so long: discovery of the MTU, slow start.
const WARM_UP: Duration = Duration::from_millis(700);

/// What to measure.
#[derive(Debug, Args)]
pub struct QuinnArgs {
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// How often each is repeated: the report has medians.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Only measurements whose name contains this.
    #[arg(long, default_value = "")]
    pub only: String,
    /// Write the report as JSON to this file; `-` is standard output.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// A path's MTU, by the bytes of a bare datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Size {
    /// An underlay of 1,500.
    Small,
    /// One of 9,000.
    Large,
}

impl Size {
    /// Of a bare datagram.
    const fn datagram(self) -> usize {
        match self {
            Self::Small => 1400,
            Self::Large => 8800,
        }
    }

    /// The UDP payload of which it is nearly all.
    const fn payload(self) -> u16 {
        match self {
            Self::Small => 1440,
            Self::Large => 8840,
        }
    }
}

/// What is sent through our tunnels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Frames {
    /// TCP super-frames of 64 KiB with segments for a guest's MTU of 1,500.
    Super,
    /// Frames of 1,514 bytes.
    Full,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Case {
    size: Size,
    congestion: Congestion,
    /// Nothing is bare quinn.
    frames: Option<Frames>,
    /// Connections, and as many flows; of bare quinn one.
    connections: u8,
    /// Tunnels, each with a thread at both ends: what more cores would have to do.
    threads: u8,
}

impl Case {
    fn name(&self) -> String {
        let frames = match self.frames {
            None => "",
            Some(Frames::Super) => "super-",
            Some(Frames::Full) => "1514-",
        };
        let connections =
            if self.connections > 1 { format!("-x{}", self.connections) } else { String::new() };
        let threads = if self.threads > 1 { format!("-t{}", self.threads) } else { String::new() };
        format!("{frames}{}-{}{connections}{threads}", self.size.datagram(), controller(self.congestion))
    }

    /// The ceiling's name.
    fn peer(&self) -> String {
        format!("{}-{}", self.size.datagram(), controller(self.congestion))
    }

    /// The ratio aimed at; with a window, which is what links between hosts of a cluster have.
    fn target(&self) -> Option<f64> {
        match (self.frames, self.congestion, self.connections.max(self.threads)) {
            (Some(Frames::Super), Congestion::Managed { .. }, 1) => Some(0.8),
            (Some(Frames::Full), Congestion::Managed { .. }, 1) => Some(0.6),
            _ => None,
        }
    }
}

const fn controller(congestion: Congestion) -> &'static str {
    match congestion {
        Congestion::Cubic { .. } => "cubic",
        Congestion::Managed { .. } => "window",
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [Size::Small, Size::Large] {
        for congestion in [Congestion::Managed { window: WINDOW }, Congestion::Cubic { window: WINDOW }] {
            for frames in [None, Some(Frames::Super), Some(Frames::Full)] {
                cases.push(Case { size, congestion, frames, connections: 1, threads: 1 });
            }
        }
        let congestion = Congestion::Managed { window: WINDOW };
        let several = Case { size, congestion, frames: Some(Frames::Super), connections: 4, threads: 1 };
        cases.push(several);
        cases.push(Case { connections: 1, threads: 4, ..several });
    }
    cases
}

/// What a measurement found.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Figure {
    /// Of payload that arrived: datagrams of bare quinn, frames of ours.
    pub gbit_per_s: f64,
    /// How many of them.
    pub per_s: f64,
    /// Processor time of the sending side, in cores.
    pub sender_cores: f64,
    /// Of the receiving side.
    pub receiver_cores: f64,
    /// Lost on the way, of those sent; of ours including what was dropped for want of room.
    pub lost: f64,
}

/// What both threads of a measurement share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    sender_ns: AtomicU64,
    receiver_ns: AtomicU64,
    /// A thread that could not go on says so by this.
    failed: AtomicBool,
}

/// Processor time of this thread.
fn thread_ns() -> u64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs()
}

impl Shared {
    fn read(&self) -> [u64; 5] {
        [&self.sent, &self.received, &self.received_bytes, &self.sender_ns, &self.receiver_ns]
            .map(|counter| counter.load(Ordering::Relaxed))
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits, and says what happened in that time.
    fn observe(&self, time: Duration, stop: &Stop) -> anyhow::Result<Figure> {
        let sleep = |time: Duration| {
            let end = Instant::now() + time;
            while Instant::now() < end {
                stop.check()?;
                anyhow::ensure!(!self.failed.load(Ordering::Relaxed), "a side of the measurement has ended");
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        };
        sleep(WARM_UP)?;
        let (begun, before) = (Instant::now(), self.read());
        sleep(time)?;
        let (after, took) = (self.read(), begun.elapsed().as_secs_f64());
        let [sent, received, bytes, sender, receiver] =
            std::array::from_fn(|at| after[at].saturating_sub(before[at]) as f64);
        Ok(Figure {
            gbit_per_s: bytes * 8.0 / took / 1e9,
            per_s: received / took,
            sender_cores: sender / took / 1e9,
            receiver_cores: receiver / took / 1e9,
            lost: if sent > 0.0 { (1.0 - received / sent).max(0.0) } else { 0.0 },
        })
    }
}

/// A cluster of two hosts, for the time of a run.
struct Hosts {
    sender: IdentityHandle,
    receiver: IdentityHandle,
    _files: tempfile::TempDir,
}

impl Hosts {
    fn new() -> anyhow::Result<Self> {
        let files = tempfile::tempdir().context("making a directory for certificates")?;
        let now = UnixTime::now();
        let ca = ClusterCa::create(ClusterId::from_bytes([1; 16]), now, CA_LIFETIME)?;
        let identity = |n: u8| {
            let host = HostId::from_bytes([n; 16]);
            let key = HostKey::generate(host)?;
            let cert = ca.issue(&key.signing_request()?, host, now, HOST_CERT_LIFETIME)?;
            let dir = IdentityDir::new(files.path().join(n.to_string()));
            anyhow::Ok(IdentityHandle::new(dir.store_member(&ca, &cert, &key, now)?)?)
        };
        Ok(Self { sender: identity(1)?, receiver: identity(2)?, _files: files })
    }
}

/// The report. The keys `ours`, `peer` and `ratio` are as in the storage benchmark.
#[derive(Debug, Serialize)]
struct Report {
    ours: BTreeMap<String, Figure>,
    peer: BTreeMap<String, Figure>,
    ratio: BTreeMap<String, f64>,
    target: BTreeMap<String, f64>,
    pass: BTreeMap<String, bool>,
    peer_name: &'static str,
    machine: Machine,
}

/// Measures; whether all targets were reached.
pub fn quinn(args: &QuinnArgs, stop: &Stop) -> anyhow::Result<bool> {
    anyhow::ensure!(args.seconds > 0.0 && args.seconds <= 600.0, "--seconds: give from 0.1 to 600");
    anyhow::ensure!((1..=99).contains(&args.rounds), "--rounds: give from 1 to 99");
    let machine = Machine::read();
    let hosts = Hosts::new()?;
    let time = Duration::from_secs_f64(args.seconds);
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name().contains(&args.only)).collect();
    anyhow::ensure!(!cases.is_empty(), "--only {}: no measurement has that in its name", args.only);
    let mut all: Vec<Vec<Figure>> = vec![Vec::new(); cases.len()];
    for round in 0..args.rounds {
        for (case, figures) in cases.iter().zip(&mut all) {
            let figure = match case.frames {
                None => bare::measure(case, &hosts, time, stop),
                Some(frames) => ours::measure(case, frames, &hosts, time, stop),
            }
            .with_context(|| case.name())?;
            eprintln!("round {}: {:<24} {}", round + 1, case.name(), line(&figure));
            figures.push(figure);
        }
    }
    let mut report = Report {
        ours: BTreeMap::new(),
        peer: BTreeMap::new(),
        ratio: BTreeMap::new(),
        target: BTreeMap::new(),
        pass: BTreeMap::new(),
        peer_name: "quinn",
        machine,
    };
    for (case, figures) in cases.iter().zip(all) {
        let table = if case.frames.is_none() { &mut report.peer } else { &mut report.ours };
        table.insert(case.name(), median(figures));
    }
    for case in cases.iter().filter(|case| case.frames.is_some()) {
        let (ours, peer) = (report.ours.get(&case.name()), report.peer.get(&case.peer()));
        let (Some(ours), Some(peer)) = (ours, peer.filter(|peer| peer.gbit_per_s > 0.0)) else { continue };
        let ratio = ours.gbit_per_s / peer.gbit_per_s;
        report.ratio.insert(case.name(), (ratio * 1000.0).round() / 1000.0);
        if let Some(target) = case.target() {
            report.target.insert(case.name(), target);
            report.pass.insert(case.name(), ratio >= target);
        }
    }
    print(&report);
    if let Some(path) = &args.json {
        write_json(&report, path)?;
    }
    Ok(report.pass.values().all(|pass| *pass))
}

/// The one in the middle by what arrived.
fn median(mut figures: Vec<Figure>) -> Figure {
    figures.sort_by(|a, b| a.gbit_per_s.total_cmp(&b.gbit_per_s));
    figures[figures.len() / 2]
}

fn line(figure: &Figure) -> String {
    let Figure { gbit_per_s, per_s, sender_cores, receiver_cores, lost } = figure;
    let (thousands, lost) = (per_s / 1e3, lost * 100.0);
    format!(
        "{gbit_per_s:6.2} Gb/s {thousands:8.1} k/s  cores: {sender_cores:.2} + {receiver_cores:.2}  lost {lost:.1} %"
    )
}

fn print(report: &Report) {
    for (name, figure) in &report.peer {
        eprintln!("quinn   {name:<24} {}", line(figure));
    }
    for (name, figure) in &report.ours {
        let ratio = report.ratio.get(name).map_or_else(String::new, |ratio| format!("  {ratio:.2} of quinn"));
        let missed = if report.pass.get(name) == Some(&false) { "  MISSED" } else { "" };
        eprintln!("ours    {name:<24} {}{ratio}{missed}", line(figure));
    }
}

/// Runs both sides in threads of their own while they are observed.
fn both(
    shared: &Arc<Shared>,
    time: Duration,
    stop: &Stop,
    sender: impl FnOnce(&Shared) -> anyhow::Result<()> + Send,
    receiver: impl FnOnce(&Shared) -> anyhow::Result<()> + Send,
) -> anyhow::Result<Figure> {
    let run = |side: &mut dyn FnMut() -> anyhow::Result<()>| {
        let result = side();
        shared.failed.fetch_or(result.is_err(), Ordering::Relaxed);
        result
    };
    std::thread::scope(|scope| {
        let (mut sender, mut receiver) = (Some(sender), Some(receiver));
        let sending = scope.spawn(move || run(&mut || sender.take().map_or(Ok(()), |it| it(shared))));
        let receiving = scope.spawn(move || run(&mut || receiver.take().map_or(Ok(()), |it| it(shared))));
        let figure = shared.observe(time, stop);
        shared.stop.store(true, Ordering::Relaxed);
        for side in [sending, receiving] {
            side.join().map_err(|_| anyhow::anyhow!("a side of the measurement panicked"))??;
        }
        figure
    })
}
