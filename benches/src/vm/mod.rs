//! `ferro-bench vm`: our `vmm` beside QEMU, on the same kernel and initial RAM disk, in one run.
//!
//! What is measured, each from outside:
//!
//! | name | is |
//! |---|---|
//! | `first_instruction` | from the monitor's start to the guest kernel's first instruction: a kernel that is marked there (`marker.rs`) |
//! | `init` | from the monitor's start to the first line that the guest's init prints |
//! | `resident` | memory of the monitor's processes beyond the guest's own, with the guest idle |
//!
//! A stock kernel needs KVM on VT-x or AMD-V. Where there is none, `tests/lab/bench` runs this inside the nested lab.
//!
//! What it must not know: anything of the inside of a monitor.

mod marker;
mod monitor;
mod running;

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
use monitor::{MEMORY_MIB, Machine, Monitor, Programs, command};
use running::RunningVm;

/// The most that a start may take. Emulated twice over it is seconds.
const START_MAX: Duration = Duration::from_secs(60);
/// What init prints first.
const INIT: &[u8] = b"guest: init";
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
    /// Write the figures as JSON; - is standard output.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One figure; smaller is better.
#[derive(Clone, Copy, PartialEq, Debug, Default, Serialize)]
pub struct Figures {
    /// Milliseconds, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    ms: Option<f64>,
    /// MiB, the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    mib: Option<f64>,
}

impl Figures {
    fn value(self) -> Option<f64> {
        self.ms.or(self.mib)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ms, self.mib) {
            (Some(ms), _) => write!(f, "{ms:.1} ms"),
            (None, Some(mib)) => write!(f, "{mib:.2} MiB"),
            (None, None) => f.write_str("-"),
        }
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

/// What a ratio is to be at most.
fn target(name: &str) -> Option<f64> {
    match name {
        "first_instruction_microvm" => Some(0.3),
        "init_microvm" => Some(0.8),
        "first_instruction_pc" => Some(0.2),
        "init_pc" => Some(0.7),
        _ => None,
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
    report.ours = bench.measure(Monitor::Ours)?;
    if args.peer == Some(Peer::Qemu) {
        for monitor in Monitor::PEERS {
            let figures = bench.measure(monitor)?;
            report
                .peer
                .extend(figures.into_iter().map(|(name, it)| (format!("{name}_{}", monitor.name()), it)));
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

struct Bench<'a> {
    args: &'a VmArgs,
    programs: Programs,
    marked: &'a Path,
    stop: &'a Stop,
}

impl Bench<'_> {
    /// Everything of one monitor.
    fn measure(&self, monitor: Monitor) -> anyhow::Result<BTreeMap<String, Figures>> {
        let (mut first, mut init, mut resident) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.args.rounds {
            let mut vm = self.start(monitor, self.marked)?;
            first.push(millis(vm.printed(&[marker::LETTER], START_MAX, self.stop)?));
            drop(vm);
            let mut vm = self.start(monitor, &self.args.kernel)?;
            init.push(millis(vm.printed(INIT, START_MAX, self.stop)?));
            resident.push(mib(vm.resident_bytes()?));
        }
        let time = |all| Figures { ms: Some(median(all)), ..Figures::default() };
        let figures = BTreeMap::from([
            ("first_instruction".to_owned(), time(first)),
            ("init".to_owned(), time(init)),
            ("resident".to_owned(), Figures { mib: Some(median(resident)), ..Figures::default() }),
        ]);
        for (name, it) in &figures {
            eprintln!("{}, {name}: {it}", monitor.name());
        }
        Ok(figures)
    }

    fn start(&self, monitor: Monitor, kernel: &Path) -> anyhow::Result<RunningVm> {
        let machine = Machine {
            kernel,
            initrd: &self.args.initrd,
            command_line: "console=ttyS0 panic=-1 quiet mitigations=off test=wait",
        };
        RunningVm::start(command(monitor, &self.programs, &machine))
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
                self.target.insert(name.clone(), target);
                self.pass.insert(name.clone(), ours / theirs <= target);
            }
        }
        if let Some(resident) = self.ours.get("resident").and_then(|figures| figures.mib) {
            self.target.insert("resident".to_owned(), RESIDENT_MAX_MIB);
            self.pass.insert("resident".to_owned(), resident <= RESIDENT_MAX_MIB);
        }
    }

    fn text(&self) -> String {
        let verdict = |name: &str| match (self.target.get(name), self.pass.get(name)) {
            (Some(target), Some(true)) => format!(" (at most {target}: reached)"),
            (Some(target), Some(false)) => format!(" (at most {target}: MISSED)"),
            _ => String::new(),
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
    }
}
