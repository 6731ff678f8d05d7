//! `ferro-sim`: runs seeds of the simulator.
#![forbid(unsafe_code)]

mod switch_cli;

use std::ops::Range;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use ferro_sim::campaign::{Settings, Summary, campaign};
use ferro_sim::storage::{Options, Outcome, run};
use serde_json::json;
use vsand_core::bugs::Bug;

/// The cluster in virtual time, from seeds.
#[derive(Parser)]
#[command(name = "ferro-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: What,
}

#[derive(Subcommand)]
enum What {
    /// The storage data path: owners, replicas, locks, leases, resync. Exits 1 when a seed violates an invariant.
    Storage(Storage),
    /// The virtual network: VLANs, tunnels, uplinks, policies. Exits 1 when a frame goes where it must not, or does not arrive.
    Switch(switch_cli::Switch),
}

#[derive(Args)]
struct Storage {
    /// Which seeds, FROM..TO (TO not included), or a single one.
    #[arg(long, value_parser = seeds, default_value = "0..1000")]
    seeds: Range<u64>,
    /// Turn on a deliberate bug.
    #[arg(long, value_parser = bug)]
    bug: Option<&'static str>,
    /// Name the deliberate bugs.
    #[arg(long)]
    list_bugs: bool,
    /// Check that each deliberate bug is caught within these seeds.
    #[arg(long, conflicts_with = "bug")]
    bugs_check: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Print a line for each seed.
    #[arg(long, short)]
    verbose: bool,
    /// Print the last events of the first seed that fails.
    #[arg(long)]
    trace: bool,
    /// How many events that is.
    #[arg(long, default_value_t = 400)]
    trace_lines: usize,
    /// Go on after a violation.
    #[arg(long)]
    keep_going: bool,
    /// How many seeds at once; as many as there are cores unless told otherwise.
    #[arg(long)]
    threads: Option<usize>,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let number = |t: &str| t.trim().parse::<u64>().map_err(|e| format!("{t:?}: {e}"));
    match text.split_once("..") {
        Some((from, to)) => Ok(number(from)?..number(to)?),
        None => number(text).map(|n| n..n + 1),
    }
}

fn bug(name: &str) -> Result<&'static str, String> {
    let known = Bug::ALL.iter().find(|(n, ..)| *n == name);
    known.map(|(n, ..)| *n).ok_or_else(|| "no such bug; --list-bugs names them".to_owned())
}

fn named(name: Option<&str>) -> Option<Bug> {
    Bug::ALL.iter().find(|(n, ..)| Some(*n) == name).map(|(_, bug, _)| *bug)
}

fn main() -> anyhow::Result<ExitCode> {
    let cores = std::thread::available_parallelism().context("counting the cores")?.get();
    let args = match Cli::parse().command {
        What::Storage(args) => args,
        What::Switch(args) if args.seeds.is_empty() => bail!("no seeds: give FROM..TO with FROM below TO"),
        What::Switch(args) => return Ok(switch_cli::main(&args, cores)),
    };
    if args.list_bugs {
        for (name, _, what) in Bug::ALL {
            println!("{name:24} {what}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    if args.seeds.is_empty() {
        bail!("no seeds in {:?}: give FROM..TO with FROM below TO", args.seeds);
    }
    let threads = args.threads.unwrap_or(cores);
    if args.bugs_check {
        return Ok(check_bugs(&args, threads));
    }
    let settings = Settings { bug: named(args.bug), threads, first_only: !args.keep_going };
    let summary = campaign(args.seeds.clone(), settings, |outcome| {
        if args.verbose {
            println!(
                "seed {:6}  {:016x}  {:5.1} s virtual  {:7} events  {:3} faults  {:2} owners  {}",
                outcome.seed,
                outcome.hash,
                outcome.virtual_s,
                outcome.events,
                outcome.faults,
                outcome.takeovers,
                outcome.violation.as_deref().map_or("ok", |v| v.lines().next().unwrap_or(v)),
            );
        }
    });
    report(&args, &summary);
    Ok(if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn report(args: &Storage, summary: &Summary) {
    let seconds = summary.elapsed.as_secs_f64();
    if args.json {
        let failed: Vec<_> = summary
            .failed
            .iter()
            .map(|o| json!({ "seed": o.seed, "hash": format!("{:016x}", o.hash), "violation": o.violation }))
            .collect();
        let document = json!({
            "seeds": summary.seeds,
            "bug": args.bug,
            "failed": failed,
            "virtual_s": summary.virtual_s,
            "events": summary.events,
            "guest_operations": summary.completed,
            "faults": summary.faults,
            "owners": summary.takeovers,
            "single_failure_stall_ms_max": summary.stall_ms_max,
            "elapsed_s": seconds,
        });
        println!("{document:#}");
    } else {
        println!(
            "{} seeds, {:.0} s of virtual time, {} events, {} guest operations, {} faults, {} owners, longest stall with one \
             failure {} ms: {} failed; {seconds:.1} s, {:.1} seeds/s",
            summary.seeds,
            summary.virtual_s,
            summary.events,
            summary.completed,
            summary.faults,
            summary.takeovers,
            summary.stall_ms_max,
            summary.failed.len(),
            summary.seeds as f64 / seconds.max(1e-9),
        );
        for outcome in &summary.failed {
            println!("seed {}: {}", outcome.seed, outcome.violation.as_deref().unwrap_or_default());
        }
    }
    if let (true, Some(first)) = (args.trace, summary.failed.first()) {
        let again = run(first.seed, Options { bug: named(args.bug), trace_lines: args.trace_lines });
        for line in again.trace {
            println!("{line}");
        }
    }
}

/// Each bug must be caught, or the simulator proves nothing.
fn check_bugs(args: &Storage, threads: usize) -> ExitCode {
    let mut blind = 0;
    println!("{:24} {:>6}  how", "bug", "seeds");
    for (name, bug, _) in Bug::ALL {
        let settings = Settings { bug: Some(bug), threads, first_only: true };
        let summary = campaign(args.seeds.clone(), settings, |_| {});
        // A seed that fails without the bug too says nothing about it.
        let own = |o: &&Outcome| run(o.seed, Options::default()).violation.is_none();
        let Some(outcome) = summary.failed.iter().find(own) else {
            blind += 1;
            println!("{name:24} {:>6}  NOT CAUGHT", summary.seeds);
            continue;
        };
        let how = outcome.violation.as_deref().unwrap_or_default();
        let how = how.chars().take(110).collect::<String>().replace('\n', " ");
        println!("{name:24} {:>6}  seed {}: {how}", summary.seeds, outcome.seed);
    }
    if blind == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
