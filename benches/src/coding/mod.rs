//! `ferro-bench coding`: the erasure code beside `reed-solomon-erasure` and Intel's ISA-L, in one thread.
//!
//! Each encodes stripes of blocks, and finds one or two lost data blocks again. Three surroundings: blocks of 4 KiB and of 64 KiB that
//! stay in the second-level cache, one stripe over and over; and 64 KiB blocks of many stripes in turn that don't. A figure is bytes of
//! data a second, whatever was written besides: of each measurement its fastest 8 MiB. Rounds of all alternate; the report has medians.
//!
//! ISA-L is driven by a C program that is compiled when it is needed ([`isal`]), so it costs no foreign call; it works on the same
//! bytes, and what it makes of them has to be what ours does. Where it has two ways (`ec_encode_data` for any code, `pq_gen` and
//! `xor_gen` for RAID) the ratio is to the faster. Finding blocks again includes, of ours alone, solving the equations and memory for the result:
//! that is what the data path pays each time.
//!
//! What it must not know: the inside of `vsand/code`.

mod isal;
mod stripes;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde::Serialize;
use vsand_code::Instructions;

use crate::process::Stop;
use crate::report::{Machine, write_json};
use isal::Isal;
use stripes::{Stripes, TheirCode};

/// What to measure.
#[derive(Debug, Args)]
pub struct CodingArgs {
    /// Measure this too, in turn with ours; needs its headers (libisal-dev) and a C compiler.
    #[arg(long, value_enum)]
    pub peer: Option<CodingPeer>,
    /// How long each measurement takes, in seconds.
    #[arg(long, default_value_t = 0.1)]
    pub seconds: f64,
    /// How often each is repeated: the report has medians.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Only measurements whose name contains this.
    #[arg(long, default_value = "")]
    pub only: String,
    /// Write the report as JSON to this file; `-` is standard output.
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// Whom to compare with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum CodingPeer {
    /// Intel's storage library.
    IsaL,
}

/// What is done to a stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Task {
    Encode,
    /// So many data blocks are lost, the first ones.
    Find(usize),
}

/// One measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Case {
    data: usize,
    parity: usize,
    task: Task,
    /// Bytes of a block.
    block: usize,
    /// Whether everything stays in the second-level cache.
    cached: bool,
}

/// So much of data and parity is gone through where nothing is to stay in a cache.
const UNCACHED_BYTES: usize = 64 << 20;

impl Case {
    fn name(&self) -> String {
        let task = match self.task {
            Task::Encode => "encode".to_owned(),
            Task::Find(lost) => format!("find{lost}"),
        };
        let cold = if self.cached { "" } else { "-cold" };
        format!("{task}_{}+{}_{}k{cold}", self.data, self.parity, self.block >> 10)
    }

    fn stripes(&self) -> usize {
        if self.cached { 1 } else { UNCACHED_BYTES / (self.block * (self.data + self.parity)) }
    }

    fn lost(&self) -> usize {
        match self.task {
            Task::Encode => 0,
            Task::Find(lost) => lost,
        }
    }

    /// The ratio to the peer that is aimed at.
    fn target(&self) -> Option<f64> {
        ((self.data, self.parity, self.task) == (4, 2, Task::Encode)).then_some(0.8)
    }
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (block, cached) in [(4 << 10, true), (64 << 10, true), (64 << 10, false)] {
        for task in [Task::Encode, Task::Find(1), Task::Find(2)] {
            for (data, parity) in [(2, 1), (4, 1), (2, 2), (4, 2)] {
                let case = Case { data, parity, task, block, cached };
                if case.lost() <= parity {
                    cases.push(case);
                }
            }
        }
    }
    cases
}

/// Bytes of data a second, in 10^9, by measurement.
type Speeds = BTreeMap<String, f64>;

/// The report. The keys `ours`, `peer` and `ratio` are as in the storage benchmark.
#[derive(Debug, Serialize)]
struct Report {
    /// With the fastest instructions there are.
    ours: Speeds,
    /// With others, by their name.
    ours_with: BTreeMap<String, Speeds>,
    /// The crate's, with its C code for AVX2.
    reed_solomon_erasure: Speeds,
    /// The peer's faster way.
    peer: Speeds,
    /// Each of its ways.
    peer_ways: BTreeMap<String, Speeds>,
    ratio: BTreeMap<String, f64>,
    target: BTreeMap<String, f64>,
    pass: BTreeMap<String, bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_name: Option<String>,
    /// What ours was computed with.
    instructions: String,
    machine: Machine,
}

/// Whose figures they are.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Whose {
    Ours(String),
    TheCrate,
    Peer(String),
}

/// Measures; whether all targets were reached.
pub fn coding(args: &CodingArgs, stop: &Stop) -> anyhow::Result<bool> {
    anyhow::ensure!(args.seconds > 0.0 && args.seconds <= 60.0, "--seconds: give from 0.001 to 60");
    anyhow::ensure!((1..=99).contains(&args.rounds), "--rounds: give from 1 to 99");
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.name().contains(&args.only)).collect();
    anyhow::ensure!(!cases.is_empty(), "--only {}: no measurement has that in its name", args.only);
    let machine = Machine::read();
    let peer = args.peer.map(|CodingPeer::IsaL| Isal::build(stop)).transpose()?;

    let mut all: BTreeMap<(Whose, String), Vec<f64>> = BTreeMap::new();
    for round in 0..args.rounds {
        for case in &cases {
            stop.check()?;
            let figures = measure(case, peer.as_ref(), args.seconds, stop).with_context(|| case.name())?;
            for (whose, speed) in figures {
                all.entry((whose, case.name())).or_default().push(speed);
            }
        }
        eprintln!("round {} of {}", round + 1, args.rounds);
    }
    let report = report(&cases, all, peer.as_ref().map(Isal::name), machine);
    print(&report, &cases);
    if let Some(path) = &args.json {
        write_json(&report, path)?;
    }
    Ok(report.pass.values().all(|pass| *pass))
}

fn measure(case: &Case, peer: Option<&Isal>, seconds: f64, stop: &Stop) -> anyhow::Result<Vec<(Whose, f64)>> {
    let mut figures = Vec::new();
    let mut stripes = Stripes::new(case);
    let mut result = None;
    for with in Instructions::available() {
        let measured = stripes.ours(with, seconds);
        anyhow::ensure!(
            *result.get_or_insert(measured.result) == measured.result,
            "{with:?}: other bytes than before"
        );
        figures.push((Whose::Ours(format!("{with:?}").to_lowercase()), measured.speed));
    }
    if let Some(peer) = peer {
        for (way, measured) in peer.measure(case, seconds, stop)? {
            anyhow::ensure!(Some(measured.result) == result, "{way}: its bytes are not ours");
            figures.push((Whose::Peer(way), measured.speed));
        }
    }
    // Last: its parities are others, and stay in the stripes.
    figures.push((Whose::TheCrate, TheirCode::new(case)?.measure(&mut stripes, seconds)?));
    Ok(figures)
}

fn report(
    cases: &[Case],
    all: BTreeMap<(Whose, String), Vec<f64>>,
    peer_name: Option<&str>,
    machine: Machine,
) -> Report {
    let fastest =
        Instructions::available().next().map_or_else(String::new, |it| format!("{it:?}").to_lowercase());
    let mut report = Report {
        ours: Speeds::new(),
        ours_with: BTreeMap::new(),
        reed_solomon_erasure: Speeds::new(),
        peer: Speeds::new(),
        peer_ways: BTreeMap::new(),
        ratio: BTreeMap::new(),
        target: BTreeMap::new(),
        pass: BTreeMap::new(),
        peer_name: peer_name.map(str::to_owned),
        instructions: fastest.clone(),
        machine,
    };
    for ((whose, case), speeds) in all {
        let speed = median(speeds);
        match whose {
            Whose::Ours(with) if with == fastest => {
                report.ours.insert(case, speed);
            }
            Whose::Ours(with) => {
                report.ours_with.entry(with).or_default().insert(case, speed);
            }
            Whose::TheCrate => {
                report.reed_solomon_erasure.insert(case, speed);
            }
            Whose::Peer(way) => {
                let faster = report.peer.entry(case.clone()).or_default();
                *faster = faster.max(speed);
                report.peer_ways.entry(way).or_default().insert(case, speed);
            }
        }
    }
    for case in cases {
        let name = case.name();
        let (Some(ours), Some(peer)) = (report.ours.get(&name), report.peer.get(&name)) else { continue };
        let ratio = ours / peer;
        report.ratio.insert(name.clone(), (ratio * 1000.0).round() / 1000.0);
        if let Some(target) = case.target() {
            report.target.insert(name.clone(), target);
            report.pass.insert(name, ratio >= target);
        }
    }
    report
}

fn median(mut speeds: Vec<f64>) -> f64 {
    speeds.sort_by(f64::total_cmp);
    (speeds[speeds.len() / 2] * 100.0).round() / 100.0
}

fn print(report: &Report, cases: &[Case]) {
    let mut columns = vec![(report.instructions.as_str(), &report.ours)];
    columns.extend(report.ours_with.iter().map(|(with, speeds)| (with.as_str(), speeds)));
    columns.push(("r-s-e crate", &report.reed_solomon_erasure));
    columns.extend(report.peer_ways.iter().map(|(way, speeds)| (way.as_str(), speeds)));
    let machine = &report.machine;
    eprintln!(
        "GB/s of data, one thread, {} × {}, Linux {}, load {:.2}{}",
        machine.cpus,
        machine.cpu,
        machine.kernel,
        machine.load_1min,
        report.peer_name.as_ref().map_or_else(String::new, |name| format!(", peer {name}"))
    );
    let head: Vec<String> = columns.iter().map(|(name, _)| format!("{name:>15}")).collect();
    eprintln!("{:<24}{}    ratio", "", head.concat());
    for name in cases.iter().map(Case::name) {
        let cell = |(_, speeds): &(&str, &Speeds)| match speeds.get(&name) {
            Some(speed) => format!("{speed:>15.1}"),
            None => format!("{:>15}", "–"),
        };
        let cells = columns.iter().map(cell).collect::<Vec<_>>().concat();
        let ratio = report.ratio.get(&name).map_or_else(String::new, |ratio| format!("{ratio:>9.2}"));
        let missed = if report.pass.get(&name) == Some(&false) { "  MISSED" } else { "" };
        eprintln!("{name:<24}{cells}{ratio}{missed}");
    }
}
