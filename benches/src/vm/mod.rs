//! `ferro-bench vm`: our `vmm` beside QEMU, on the same kernel and initial RAM disk, in one run.
//!
//! What is measured, each from outside:
//!
//! | name | is |
//! |---|---|
//! | `first_instruction` | from the monitor's start to the guest kernel's first instruction: a kernel that is marked there (`marker.rs`) |
//! | `init` | from the monitor's start to the first line that the guest's init prints |
//! | `resident` | memory of the monitor's processes beyond the guest's own, with the guest idle |
//! | `randread_4k_qd32`, … | with `--disk` and `--nic`: what fio and iperf3 in the guest get, and the monitor's processor time meanwhile (`throughput.rs`) |
//!
//! A stock kernel needs KVM on VT-x or AMD-V. Where there is none, `tests/lab/bench` runs this inside the nested lab.
//!
//! What it must not know: anything of the inside of a monitor.

mod marker;
mod monitor;
mod running;
mod throughput;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::process::{Stop, own_directory};
use crate::report::{Machine as Host, write_json};
use crate::usage::mib;
use monitor::{Machine, Monitor, Nic, Programs, command};
use running::RunningVm;
use throughput::{DISK, NET};

/// The most that a start may take. Emulated twice over it is seconds.
const START_MAX: Duration = Duration::from_secs(60);
/// What init prints first.
const INIT: &[u8] = b"guest: init";
/// Memory of a machine whose start and size are measured.
const MEMORY_MIB: u32 = 128;
/// And of one that holds fio and iperf3 in its initial RAM disk.
const THROUGHPUT_MEMORY_MIB: u32 = 512;
/// For every machine.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet mitigations=off";
/// Resident memory aimed at, MiB.
const RESIDENT_MAX_MIB: f64 = 8.0;

/// Who is measured beside us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Peer {
    /// QEMU, with its machines `microvm` and `pc`.
    Qemu,
}

/// Options of `vm`.
#[derive(Args, Debug)]
pub struct VmArgs {
    /// Measure it in the same run.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    /// A stock kernel, as Debian ships it.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// Its initial RAM disk, whose init prints "guest: init" first and stays when test=wait is on the command line.
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,
    /// Our monitor; by default the one beside this program.
    #[arg(long, value_name = "FILE")]
    vmm: Option<PathBuf>,
    /// QEMU.
    #[arg(long, value_name = "FILE", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// How often each is measured; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=99))]
    rounds: u32,
    /// A volume's vhost-user socket: measure fio's throughput in the guest. What is on the volume is overwritten.
    #[arg(long, value_name = "SOCKET", requires = "throughput_initrd")]
    disk: Option<PathBuf>,
    /// A switch port's vhost-user socket and address: measure iperf3's throughput to a server that listens at 10.9.0.2.
    #[arg(long, value_name = "SOCKET,MAC", requires = "throughput_initrd")]
    nic: Option<Nic>,
    /// The initial RAM disk for these two, with fio and iperf3, whose init does what test=throughput asks for.
    #[arg(long, value_name = "FILE")]
    throughput_initrd: Option<PathBuf>,
    /// Write the figures as JSON; - is standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What a figure is to be against a peer's.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn value(self) -> f64 {
        match self {
            Self::AtMost(value) | Self::AtLeast(value) => value,
        }
    }

    fn is_reached(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(most) => ratio <= most,
            Self::AtLeast(least) => ratio >= least,
        }
    }
}

/// One figure: of a time or a size smaller is better, of a rate greater.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Figures {
    /// Milliseconds, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<f64>,
    /// MiB, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    mib: Option<f64>,
    /// Requests a second, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    iops: Option<f64>,
    /// 10^6 bytes a second, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    mb_s: Option<f64>,
    /// 10^6 bits a second, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    mbit_s: Option<f64>,
    /// Processor time of the monitor's processes meanwhile, the guest's included, in percent of one processor, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_percent: Option<f64>,
}

impl Figures {
    fn value(self) -> Option<f64> {
        self.ms.or(self.mib).or(self.rate())
    }

    fn rate(self) -> Option<f64> {
        self.iops.or(self.mb_s).or(self.mbit_s)
    }

    /// The middle of each.
    fn median(all: &[Self]) -> Self {
        let middle = |figure: fn(&Self) -> Option<f64>| {
            let all: Vec<_> = all.iter().filter_map(figure).collect();
            (!all.is_empty()).then(|| median(all))
        };
        Self {
            ms: middle(|it| it.ms),
            mib: middle(|it| it.mib),
            iops: middle(|it| it.iops),
            mb_s: middle(|it| it.mb_s),
            mbit_s: middle(|it| it.mbit_s),
            cpu_percent: middle(|it| it.cpu_percent),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [
            (self.ms, "ms"),
            (self.mib, "MiB"),
            (self.iops, "IOPS"),
            (self.mb_s, "MB/s"),
            (self.mbit_s, "Mbit/s"),
        ];
        match units.into_iter().find_map(|(value, unit)| Some((value?, unit))) {
            Some((value, unit)) => write!(f, "{value:.1} {unit}")?,
            None => f.write_str("-")?,
        }
        self.cpu_percent.map_or(Ok(()), |percent| write!(f, " at {percent:.0} % of a processor"))
    }
}

/// All of a run. Names of peers' figures are `<name>_<machine>`; ratios have theirs.
#[derive(Debug, Serialize)]
struct Report {
    ours: BTreeMap<String, Figures>,
    peer: BTreeMap<String, Figures>,
    ratio: BTreeMap<String, f64>,
    target: BTreeMap<String, f64>,
    pass: BTreeMap<String, bool>,
    memory_mib: u32,
    rounds: u32,
    machine: Host,
}

/// What a ratio is to be.
fn target(name: &str) -> Option<Target> {
    match name {
        "first_instruction_microvm" => Some(Target::AtMost(0.3)),
        "init_microvm" => Some(Target::AtMost(0.8)),
        "first_instruction_pc" => Some(Target::AtMost(0.2)),
        "init_pc" => Some(Target::AtMost(0.7)),
        _ => {
            let is_rate = DISK.iter().chain(&NET).any(|work| name.starts_with(work.name));
            is_rate.then_some(Target::AtLeast(1.0))
        }
    }
}

/// Runs it; false if a target was missed.
pub fn vm(args: &VmArgs, stop: &Stop) -> anyhow::Result<bool> {
    check_host()?;
    let vmm = args.vmm.clone().map_or_else(|| own_directory().map(|folder| folder.join("vmm")), Ok)?;
    if !vmm.is_file() {
        bail!(
            "{} is not there: build it with `cargo build --release -p vmm`, or name one with --vmm",
            vmm.display()
        );
    }
    let scratch = tempfile::tempdir().context("making a directory")?;
    let marked = scratch.path().join("marked");
    let kernel = fs::read(&args.kernel).with_context(|| format!("reading {}", args.kernel.display()))?;
    fs::write(&marked, marker::mark(kernel)?).context("writing the marked kernel")?;

    let bench = Bench { args, programs: Programs { vmm, qemu: args.qemu.clone() }, marked: &marked, stop };
    let mut report = Report {
        ours: BTreeMap::new(),
        peer: BTreeMap::new(),
        ratio: BTreeMap::new(),
        target: BTreeMap::new(),
        pass: BTreeMap::new(),
        memory_mib: MEMORY_MIB,
        rounds: args.rounds,
        machine: Host::read(),
    };
    let peers: &[Monitor] = if args.peer == Some(Peer::Qemu) { &Monitor::PEERS } else { &[] };
    let mut seen: BTreeMap<Monitor, Seen> = BTreeMap::new();
    // In turn, so that a machine that gets busier is so for all.
    for round in 1..=args.rounds {
        for &monitor in [Monitor::Ours].iter().chain(peers) {
            eprintln!("round {round} of {}: {}", args.rounds, monitor.name());
            bench.measure(monitor, seen.entry(monitor).or_default())?;
        }
    }
    for (monitor, seen) in seen {
        for (name, all) in seen {
            let middle = Figures::median(&all);
            if monitor == Monitor::Ours {
                report.ours.insert(name, middle);
            } else {
                report.peer.insert(format!("{name}_{}", monitor.name()), middle);
            }
        }
    }
    report.compare();
    if let Some(path) = &args.json {
        write_json(&report, path)?;
    }
    eprint!("{}", report.text());
    Ok(report.pass.values().all(|&passed| passed))
}

/// A kernel as it is shipped runs only where the processor helps.
fn check_host() -> anyhow::Result<()> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("reading /proc/cpuinfo")?;
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    if !flags.split_whitespace().any(|flag| flag == "svm" || flag == "vmx") {
        bail!(
            "this processor has neither VT-x nor AMD-V, so no stock kernel runs under KVM: use tests/lab/bench"
        );
    }
    if !Path::new("/dev/kvm").exists() {
        bail!("there is no /dev/kvm: load kvm-intel or kvm-amd");
    }
    Ok(())
}

/// What was seen of one monitor, each as often as there were rounds.
type Seen = BTreeMap<String, Vec<Figures>>;

struct Bench<'a> {
    args: &'a VmArgs,
    programs: Programs,
    marked: &'a Path,
    stop: &'a Stop,
}

impl Bench<'_> {
    /// Everything of one monitor, once.
    fn measure(&self, monitor: Monitor, seen: &mut Seen) -> anyhow::Result<()> {
        let mut add = |name: &str, figures| seen.entry(name.to_owned()).or_default().push(figures);
        let time = |ms| Figures { ms: Some(ms), ..Figures::default() };
        let mut vm = self.start(monitor, self.marked)?;
        add("first_instruction", time(millis(vm.printed(&[marker::LETTER], START_MAX, self.stop)?)));
        drop(vm);
        let mut vm = self.start(monitor, &self.args.kernel)?;
        add("init", time(millis(vm.printed(INIT, START_MAX, self.stop)?)));
        add("resident", Figures { mib: Some(mib(vm.resident_bytes()?)), ..Figures::default() });
        drop(vm);
        for (name, figures) in self.throughput(monitor)? {
            add(&name, figures);
        }
        Ok(())
    }

    fn start(&self, monitor: Monitor, kernel: &Path) -> anyhow::Result<RunningVm> {
        let command_line = format!("{COMMAND_LINE} test=wait");
        let initrd = &self.args.initrd;
        let memory_mib = MEMORY_MIB;
        let machine =
            Machine { memory_mib, kernel, initrd, command_line: &command_line, disk: None, nic: None };
        RunningVm::start(command(monitor, &self.programs, &machine))
    }

    /// Disk and card, as far as there are any.
    fn throughput(&self, monitor: Monitor) -> anyhow::Result<BTreeMap<String, Figures>> {
        let VmArgs { kernel, disk, nic, throughput_initrd: Some(initrd), .. } = self.args else {
            return Ok(BTreeMap::new());
        };
        let mut works = Vec::new();
        works.extend(disk.iter().flat_map(|_| DISK));
        works.extend(nic.iter().flat_map(|_| NET));
        let command_line = format!("{COMMAND_LINE} {}", throughput::words(&works));
        let machine = Machine {
            memory_mib: THROUGHPUT_MEMORY_MIB,
            kernel,
            initrd,
            command_line: &command_line,
            disk: disk.as_deref(),
            nic: nic.as_ref(),
        };
        let mut vm = RunningVm::start(command(monitor, &self.programs, &machine))?;
        throughput::measure(&mut vm, &works, self.stop)
    }
}

impl Report {
    fn compare(&mut self) {
        for (name, peer) in &self.peer {
            let ours = self
                .ours
                .iter()
                .find(|(ours, _)| name.strip_prefix(ours.as_str()).is_some_and(|rest| rest.starts_with('_')));
            let Some((ours, theirs)) = ours.and_then(|(_, ours)| ours.value()).zip(peer.value()) else {
                continue;
            };
            self.ratio.insert(name.clone(), round(ours / theirs));
            if let Some(target) = target(name) {
                self.target.insert(name.clone(), target.value());
                self.pass.insert(name.clone(), target.is_reached(ours / theirs));
            }
        }
        if let Some(resident) = self.ours.get("resident").and_then(|figures| figures.mib) {
            self.target.insert("resident".to_owned(), RESIDENT_MAX_MIB);
            self.pass.insert("resident".to_owned(), resident <= RESIDENT_MAX_MIB);
        }
    }

    fn text(&self) -> String {
        let verdict = |name: &str| {
            let Some((wanted, &passed)) = self.target.get(name).zip(self.pass.get(name)) else {
                return String::new();
            };
            let side = if matches!(target(name), Some(Target::AtLeast(_))) { "least" } else { "most" };
            format!(" (at {side} {wanted}: {})", if passed { "reached" } else { "MISSED" })
        };
        let mut lines = Vec::new();
        for (name, figures) in &self.ours {
            lines.push(format!("{name:18} {figures}{}", verdict(name)));
            for (peer, theirs) in self.peer.iter().filter(|(peer, _)| peer.starts_with(name.as_str())) {
                let machine = peer.trim_start_matches(name.as_str()).trim_start_matches('_');
                let ratio = self.ratio.get(peer).copied().unwrap_or(f64::NAN);
                lines.push(format!("    QEMU {machine:8} {theirs}, x{ratio}{}", verdict(peer)));
            }
        }
        lines.join("\n") + "\n"
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// The one in the middle; 0 of none.
fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().map_or(0.0, round)
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ours: f64, theirs: f64) -> Report {
        let time = |ms| Figures { ms: Some(ms), ..Figures::default() };
        let mut report = Report {
            ours: BTreeMap::from([
                ("init".to_owned(), time(ours)),
                ("resident".to_owned(), Figures { mib: Some(9.0), ..Figures::default() }),
            ]),
            peer: BTreeMap::from([("init_pc".to_owned(), time(theirs))]),
            ratio: BTreeMap::new(),
            target: BTreeMap::new(),
            pass: BTreeMap::new(),
            memory_mib: MEMORY_MIB,
            rounds: 1,
            machine: Host::read(),
        };
        report.compare();
        report
    }

    #[test]
    fn ratios_are_judged_by_their_targets() {
        let reached = report(70.0, 100.0);
        assert_eq!((reached.ratio["init_pc"], reached.pass["init_pc"]), (0.7, true));
        assert!(!report(71.0, 100.0).pass["init_pc"]);
        assert!(!reached.pass["resident"]);
        assert!(reached.text().contains("x0.7 (at most 0.7: reached)"), "{}", reached.text());
        assert!(
            target("net_send_pc").is_some_and(|target| target.is_reached(1.0) && !target.is_reached(0.99))
        );
    }
}
