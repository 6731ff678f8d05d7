//! The switch beside its peers, in one run: Open vSwitch's userspace datapath for frames within a host, the kernel's bridge for
//! super-frames and latency, bridge and VXLAN for what goes between hosts.
//!
//! Every figure is a median of several runs. Throughput is what arrived; "a core" is the processor time that the switch
//! took for it, whatever the load generator took.

mod generator;
mod huge;
mod kernel;
pub(crate) mod ours;
mod ovs;
mod testpmd;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ferro_vhost::frontend::{Testpmd, TestpmdOptions, TestpmdPort};
use serde::Serialize;

use crate::process::Stop;
use crate::report::Machine;
use crate::usage::{self, Watched};
use generator::Stream;
use huge::HugePages;
use ours::{PortAt, Programs, Switches};
use testpmd::Load;

/// Where the switch's polling thread and testpmd's loop run.
const SWITCH_CORE: usize = 0;
const LOOP_CORE: usize = 1;
const HUGE_PAGES: u64 = 500;
const IDLE_PORTS: usize = 50;

/// Whom to compare with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Peer {
    /// Open vSwitch's userspace datapath, one polling core: frames within a host.
    Ovs,
    /// The kernel's bridge, with VXLAN between hosts: one TCP stream, and latency.
    Kernel,
}

/// A workload of single small frames.
struct Latency {
    name: &'static str,
    /// How long everything is idle before each.
    pause: Duration,
    figure: fn(&generator::Times) -> &hdrhistogram::Histogram<u64>,
}

/// Round trips one after the other, and through a switch that was idle for a moment; the way of the first frame through one
/// that was idle for longer.
const LATENCIES: &[Latency] = &[
    Latency { name: "ping_pong_close", pause: Duration::ZERO, figure: |times| &times.round },
    Latency { name: "ping_pong", pause: Duration::from_millis(1), figure: |times| &times.round },
    Latency { name: "first_frame", pause: Duration::from_millis(20), figure: |times| &times.way },
];

/// What `ferro-bench switch` measures.
#[derive(Args, Debug)]
pub struct SwitchArgs {
    /// Whom to compare with; may be given twice.
    #[arg(long, value_enum)]
    peer: Vec<Peer>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// How often each is repeated: the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=25))]
    runs: u32,
    /// Only the workloads whose name begins so.
    #[arg(long)]
    only: Option<String>,
    /// Write all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One workload's figures. What was not measured is not there.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Frames a second that arrived, millions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mpps: Option<f64>,
    /// Bits of them a second, thousand millions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbit_s: Option<f64>,
    /// Processors that the switch was busy on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<f64>,
    /// The switch's processor time a frame, nanoseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ns_per_frame: Option<f64>,
    /// Median of a round trip, or of one way, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<f64>,
    /// 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<f64>,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = [
            (self.mpps, "Mpps"),
            (self.gbit_s, "Gbit/s"),
            (self.cores, "cores"),
            (self.ns_per_frame, "ns/frame"),
            (self.p50_us, "us p50"),
            (self.p99_us, "us p99"),
        ];
        let known = all.iter().filter_map(|(value, unit)| Some(format!("{} {unit}", (*value)?)));
        f.write_str(&known.collect::<Vec<_>>().join(", "))
    }
}

/// All of a run.
#[derive(Debug, Serialize)]
struct Report {
    ours: BTreeMap<String, Figures>,
    peer: BTreeMap<String, Figures>,
    ratio: BTreeMap<String, f64>,
    target: BTreeMap<String, f64>,
    pass: BTreeMap<String, bool>,
    peer_names: BTreeMap<String, &'static str>,
    machine: Machine,
}

struct Run<'a> {
    args: &'a SwitchArgs,
    programs: Programs,
    stop: &'a Stop,
    time: Duration,
    report: Report,
}

/// Measures. Whether all targets were reached.
pub fn switch(args: &SwitchArgs, stop: &Stop) -> anyhow::Result<bool> {
    let report = Report {
        ours: BTreeMap::new(),
        peer: BTreeMap::new(),
        ratio: BTreeMap::new(),
        target: BTreeMap::new(),
        pass: BTreeMap::new(),
        peer_names: BTreeMap::new(),
        machine: Machine::read(),
    };
    let time = Duration::from_secs(args.seconds);
    let mut run = Run { args, programs: Programs::find()?, stop, time, report };
    run.loops()?;
    run.streams()?;
    run.latency()?;
    run.sparse()?;
    run.idle()?;
    run.compare();
    print!("{}", run.text());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&run.report)?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(run.report.pass.values().all(|&passed| passed))
}

/// The loops of testpmd, by name.
fn loads() -> Vec<(String, Load)> {
    let sizes = [64, 1514];
    let depths = [1, 32, 512];
    let all = sizes.iter().flat_map(|size| depths.iter().map(move |depth| (*size, *depth)));
    all.map(|(frame_bytes, in_flight)| {
        (format!("loop_{frame_bytes}_x{in_flight}"), Load { frame_bytes, in_flight })
    })
    .collect()
}

fn local_ports() -> Vec<PortAt> {
    Testpmd::MACS.iter().map(|mac| PortAt { host: 0, mac: mac.to_string() }).collect()
}

fn remote_ports() -> Vec<PortAt> {
    Testpmd::MACS.iter().enumerate().map(|(host, mac)| PortAt { host, mac: mac.to_string() }).collect()
}

fn macs() -> [[u8; 6]; 2] {
    Testpmd::MACS.map(|mac| mac.0)
}

impl Run<'_> {
    fn wants(&self, name: &str) -> bool {
        self.args.only.as_ref().is_none_or(|only| name.starts_with(only.as_str()))
    }

    fn has(&self, peer: Peer) -> bool {
        self.args.peer.contains(&peer)
    }

    /// Frames of one size that go round between two ports of a host.
    fn loops(&mut self) -> anyhow::Result<()> {
        let loads: Vec<(String, Load)> = loads().into_iter().filter(|(name, _)| self.wants(name)).collect();
        if loads.is_empty() {
            return Ok(());
        }
        let huge = HugePages::reserve(HUGE_PAGES, self.stop)?;
        let scratch = tempfile::tempdir().context("making a directory")?;
        let options = TestpmdOptions {
            run_dir: scratch.path().to_owned(),
            huge_dir: Some(huge.directory().to_owned()),
            main_core: SWITCH_CORE,
            loop_core: LOOP_CORE,
            arguments: testpmd::ARGUMENTS.map(str::to_owned).to_vec(),
        };
        {
            let switches = Switches::start(&self.programs, 1, &local_ports(), 1, self.stop)?;
            let sockets = switches.sockets();
            let ports = [0, 1].map(|n| TestpmdPort::connecting(sockets[n]).with(testpmd::DEVICE_ARGUMENT));
            let mut testpmd = Testpmd::start(&options, &ports)?;
            for (name, load) in &loads {
                let figures = self.looped(&mut testpmd, *load, &switches.watched())?;
                self.ours(name, figures);
            }
        }
        if self.has(Peer::Ovs) {
            let ovs = ovs::Ovs::start(&huge, SWITCH_CORE, self.stop)?;
            let ports = ovs.sockets().map(|path| TestpmdPort::listening(path).with(testpmd::DEVICE_ARGUMENT));
            let mut testpmd = Testpmd::start(&options, &ports)?;
            // Its ports are looked for once a second.
            self.stop.sleep(Duration::from_secs(2))?;
            for (name, load) in &loads {
                let figures = self.looped(&mut testpmd, *load, &[ovs.watched()])?;
                self.peer(name, "ovs", figures);
            }
        }
        Ok(())
    }

    fn looped(&self, testpmd: &mut Testpmd, load: Load, daemons: &[Watched]) -> anyhow::Result<Figures> {
        let mut all = Vec::new();
        for _ in 0..self.args.runs {
            let before = processor_time(daemons)?;
            let began = std::time::Instant::now();
            let rate = load.rate(testpmd, self.time, self.stop)?;
            let cores = (processor_time(daemons)? - before) / began.elapsed().as_secs_f64();
            all.push(throughput(rate, f64::from(load.frame_bytes), cores));
        }
        Ok(median(all, |figures| figures.mpps))
    }

    /// Frames in one direction, within a host and between two.
    fn streams(&mut self) -> anyhow::Result<()> {
        let within = [("stream_tso", Stream::Super { flows: 1 })];
        let between = [
            ("tunnel_tso", Stream::Super { flows: 1 }, 1),
            ("tunnel_tso_4_flows", Stream::Super { flows: 4 }, 4),
            ("tunnel_1514", Stream::Plain(1514), 1),
            ("tunnel_64", Stream::Plain(64), 1),
        ];
        for (name, what) in within {
            if self.wants(name) {
                let switches = Switches::start(&self.programs, 1, &local_ports(), 1, self.stop)?;
                let figures = self.streamed(&switches, what)?;
                self.ours(name, figures);
            }
        }
        for (name, what, connections) in between {
            if self.wants(name) {
                let switches = Switches::start(&self.programs, 2, &remote_ports(), connections, self.stop)?;
                let figures = self.streamed(&switches, what).with_context(|| switches.log_tails())?;
                self.ours(name, figures);
            }
        }
        for (name, vxlan) in [("stream_tso", false), ("tunnel_tso", true)] {
            if self.has(Peer::Kernel) && self.wants(name) {
                let figures = self.kernel_stream(vxlan)?;
                self.peer(name, if vxlan { "bridge and VXLAN" } else { "bridge" }, figures);
            }
        }
        Ok(())
    }

    fn streamed(&self, switches: &Switches, what: Stream) -> anyhow::Result<Figures> {
        let sockets = switches.sockets();
        let mut clients = [generator::client(sockets[0])?, generator::client(sockets[1])?];
        // Switches learn from each other where addresses are.
        self.stop.sleep(Duration::from_secs(2))?;
        let daemons = switches.watched();
        let mut all = Vec::new();
        for _ in 0..self.args.runs {
            let mut times = Vec::new();
            let at = || {
                times.push(processor_time(&daemons)?);
                Ok(())
            };
            let streamed = generator::stream(&mut clients, macs(), what, self.time, self.stop, at)?;
            let seconds = streamed.time.as_secs_f64();
            let cores = times.windows(2).map(|pair| pair[1] - pair[0]).sum::<f64>() / seconds;
            let bytes = streamed.bytes as f64 / streamed.frames.max(1) as f64;
            all.push(throughput(streamed.frames as f64 / seconds, bytes, cores));
        }
        Ok(median(all, |figures| figures.gbit_s))
    }

    fn kernel_stream(&self, vxlan: bool) -> anyhow::Result<Figures> {
        let scratch = tempfile::tempdir().context("making a directory")?;
        let kernel = kernel::Kernel::start(vxlan, self.stop)?;
        let mut all = Vec::new();
        for _ in 0..self.args.runs {
            let gbit_s = kernel.stream(self.time, self.stop, scratch.path())?;
            all.push(Figures { gbit_s: Some(gbit_s), ..Figures::default() });
        }
        Ok(median(all, |figures| figures.gbit_s))
    }

    /// Round trips through a switch that was idle.
    fn latency(&mut self) -> anyhow::Result<()> {
        let scratch = tempfile::tempdir().context("making a directory")?;
        for Latency { name, pause, figure } in LATENCIES {
            if !self.wants(name) {
                continue;
            }
            let mut ours = Vec::new();
            for _ in 0..self.args.runs {
                let (times, cores) = self.small_frames(*pause, true)?;
                ours.push(Figures { cores: Some(cores), ..waited(figure(&times)) });
            }
            self.ours(name, median(ours, |figures| figures.p50_us));
            if self.has(Peer::Kernel) {
                let kernel = kernel::Kernel::start(false, self.stop)?;
                let mut theirs = Vec::new();
                for _ in 0..self.args.runs {
                    let times = kernel.ping_pong((self.time, *pause), self.stop, scratch.path())?;
                    theirs.push(waited(figure(&times)));
                }
                self.peer(name, "bridge", median(theirs, |figures| figures.p50_us));
            }
        }
        Ok(())
    }

    /// Single frames from one guest to another, each after a pause; how long they took, and what the switch did for them.
    fn small_frames(&self, pause: Duration, answers: bool) -> anyhow::Result<(generator::Times, f64)> {
        let switches = Switches::start(&self.programs, 1, &local_ports(), 1, self.stop)?;
        let sockets = switches.sockets();
        let clients = [generator::client(sockets[0])?, generator::client(sockets[1])?];
        let (before, began) = (processor_time(&switches.watched())?, std::time::Instant::now());
        let times = generator::ping_pong(clients, macs(), (self.time, pause, answers), self.stop)?;
        let cores = (processor_time(&switches.watched())? - before) / began.elapsed().as_secs_f64();
        Ok((times, round(cores, 4)))
    }

    /// What a frame a millisecond costs, to somebody who does not answer.
    fn sparse(&mut self) -> anyhow::Result<()> {
        const NAME: &str = "sparse_1000";
        if !self.wants(NAME) {
            return Ok(());
        }
        let mut all = Vec::new();
        for _ in 0..self.args.runs {
            let (times, cores) = self.small_frames(Duration::from_millis(1), false)?;
            all.push(Figures { cores: Some(cores), ..waited(&times.way) });
        }
        self.ours(NAME, median(all, |figures| figures.cores));
        Ok(())
    }

    /// What fifty ports cost while nothing comes.
    fn idle(&mut self) -> anyhow::Result<()> {
        const NAME: &str = "idle_50_ports";
        if !self.wants(NAME) {
            return Ok(());
        }
        let ports: Vec<PortAt> = (0..IDLE_PORTS)
            .map(|number| PortAt { host: 0, mac: format!("02:00:00:00:01:{number:02x}") })
            .collect();
        let switches = Switches::start(&self.programs, 1, &ports, 1, self.stop)?;
        let sockets = switches.sockets();
        let _clients =
            sockets.iter().map(|path| generator::client(path)).collect::<anyhow::Result<Vec<_>>>()?;
        self.stop.sleep(Duration::from_secs(2))?;
        let (before, began) = (processor_time(&switches.watched())?, std::time::Instant::now());
        self.stop.sleep(Duration::from_secs(10))?;
        let cores = (processor_time(&switches.watched())? - before) / began.elapsed().as_secs_f64();
        self.ours(NAME, Figures { cores: Some(round(cores, 4)), ..Figures::default() });
        self.report.target.insert(NAME.to_owned(), 0.01);
        self.report.pass.insert(NAME.to_owned(), cores < 0.01);
        Ok(())
    }

    /// Said at once: a run is long, and what fails late loses nothing.
    fn ours(&mut self, name: &str, figures: Figures) {
        eprintln!("{name}: {figures}");
        self.report.ours.insert(name.to_owned(), figures);
    }

    fn peer(&mut self, name: &str, who: &'static str, figures: Figures) {
        eprintln!("{name}, {who}: {figures}");
        self.report.peer.insert(name.to_owned(), figures);
        self.report.peer_names.insert(name.to_owned(), who);
    }

    fn compare(&mut self) {
        let report = &mut self.report;
        for (name, ours) in &report.ours {
            let Some(theirs) = report.peer.get(name) else { continue };
            let both = |pick: fn(&Figures) -> Option<f64>| Some((pick(ours)?, pick(theirs)?));
            let (ratio, target, less_is_better) = if let Some((ours, theirs)) = both(|figures| figures.p50_us)
            {
                (ours / theirs, Some(1.5), true)
            } else if let Some((ours, theirs)) = both(|figures| figures.mpps) {
                (ours / theirs, Some(0.5), false)
            } else if let Some((ours, theirs)) = both(|figures| figures.gbit_s) {
                (ours / theirs, (name == "stream_tso").then_some(2.0), false)
            } else {
                continue;
            };
            report.ratio.insert(name.clone(), round(ratio, 3));
            if let Some(target) = target {
                let passed = if less_is_better { ratio < target } else { ratio >= target };
                report.target.insert(name.clone(), target);
                report.pass.insert(name.clone(), passed);
            }
        }
    }

    fn text(&self) -> String {
        let shown = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        let report = &self.report;
        let mut lines = vec![format!(
            "{:20} {:>8} {:>8} {:>7} {:>9} {:>8} {:>8}  {}",
            "", "Mpps", "Gbit/s", "cores", "ns/frame", "p50 us", "p99 us", "peer, ratio"
        )];
        for (name, it) in &report.ours {
            let figures = [it.mpps, it.gbit_s, it.cores, it.ns_per_frame, it.p50_us, it.p99_us].map(shown);
            let peer = report.peer.get(name).map_or(String::new(), |peer| {
                let who = report.peer_names.get(name).copied().unwrap_or_default();
                let figure = shown(peer.p50_us.or(peer.mpps).or(peer.gbit_s));
                format!("{who} {figure}, x{}", shown(report.ratio.get(name).copied()))
            });
            let verdict = match report.pass.get(name) {
                Some(true) => format!(" (target {}: reached)", shown(report.target.get(name).copied())),
                Some(false) => format!(" (target {}: MISSED)", shown(report.target.get(name).copied())),
                None => String::new(),
            };
            let [mpps, gbit_s, cores, ns, p50, p99] = figures;
            lines.push(format!(
                "{name:20} {mpps:>8} {gbit_s:>8} {cores:>7} {ns:>9} {p50:>8} {p99:>8}  {peer}{verdict}"
            ));
        }
        lines.join("\n") + "\n"
    }
}

fn processor_time(daemons: &[Watched]) -> anyhow::Result<f64> {
    Ok(usage::sample_all(daemons)?.iter().map(|sample| sample.cpu_s).sum())
}

fn throughput(frames_s: f64, frame_bytes: f64, cores: f64) -> Figures {
    Figures {
        mpps: Some(round(frames_s / 1e6, 3)),
        gbit_s: Some(round(frames_s * frame_bytes * 8.0 / 1e9, 2)),
        cores: Some(round(cores, 2)),
        ns_per_frame: Some(round(cores * 1e9 / frames_s, 1)),
        ..Figures::default()
    }
}

fn waited(histogram: &hdrhistogram::Histogram<u64>) -> Figures {
    let micros = |quantile| Some(round(histogram.value_at_quantile(quantile) as f64 / 1000.0, 1));
    Figures { p50_us: micros(0.5), p99_us: micros(0.99), ..Figures::default() }
}

/// The one in the middle by a figure.
fn median(mut all: Vec<Figures>, by: impl Fn(&Figures) -> Option<f64>) -> Figures {
    all.sort_by(|a, b| by(a).unwrap_or(0.0).total_cmp(&by(b).unwrap_or(0.0)));
    let middle = all.len() / 2;
    all.into_iter().nth(middle).unwrap_or_default()
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (value * scale).round() / scale
}

/// Where a hidden helper of the kernel's latency listens or asks.
#[derive(Args, Debug)]
pub struct UdpArgs {
    /// The address.
    address: std::net::SocketAddr,
    /// How long, in milliseconds.
    #[arg(default_value_t = 0)]
    milliseconds: u64,
    /// Between two of them, in milliseconds.
    #[arg(default_value_t = 1)]
    pause: u64,
}

impl UdpArgs {
    /// Answers until it is told to stop.
    pub fn echo(&self, stop: &Stop) -> anyhow::Result<()> {
        kernel::udp_echo(self.address, stop)
    }

    /// Asks.
    pub fn ping(&self) -> anyhow::Result<()> {
        let pause = Duration::from_millis(self.pause);
        kernel::udp_ping(self.address, Duration::from_millis(self.milliseconds), pause)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_median_is_one_of_the_runs() {
        let all = [3.0, 1.0, 2.0].map(|mpps| Figures { mpps: Some(mpps), ..Figures::default() });
        assert_eq!(median(all.to_vec(), |figures| figures.mpps).mpps, Some(2.0));
    }

    #[test]
    fn the_socket_paths_are_short_enough() {
        // sockaddr_un has 108 bytes.
        assert!(Path::new("/tmp/fb-sw-XXXXXX/h0/run/ports/p49.sock").as_os_str().len() < 100);
    }
}
