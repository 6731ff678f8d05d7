//! `ferro-sim switch`.

use std::ops::Range;
use std::process::ExitCode;

use clap::Args;
use ferro_sim::switch::{Options, Outcome, Settings, Summary, campaign, run};
use serde_json::json;
use vswitch_core::bugs::Bug;

#[derive(Args)]
pub(crate) struct Switch {
    /// Which seeds, FROM..TO (TO not included), or a single one.
    #[arg(long, value_parser = crate::seeds, default_value = "0..1000")]
    pub(crate) seeds: Range<u64>,
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

fn bug(name: &str) -> Result<&'static str, String> {
    let known = Bug::ALL.iter().find(|(n, ..)| *n == name);
    known.map(|(n, ..)| *n).ok_or_else(|| "no such bug; --list-bugs names them".to_owned())
}

fn named(name: Option<&str>) -> Option<Bug> {
    Bug::ALL.iter().find(|(n, ..)| Some(*n) == name).map(|(_, bug, _)| *bug)
}

/// Runs what was asked for; `cores` is how many there are.
pub(crate) fn main(args: &Switch, cores: usize) -> ExitCode {
    if args.list_bugs {
        for (name, _, what) in Bug::ALL {
            println!("{name:24} {what}");
        }
        return ExitCode::SUCCESS;
    }
    let threads = args.threads.unwrap_or(cores);
    if args.bugs_check {
        return check_bugs(args, threads);
    }
    let settings = Settings { bug: named(args.bug), threads, first_only: !args.keep_going };
    let summary = campaign(args.seeds.clone(), settings, |outcome| {
        if args.verbose {
            println!(
                "seed {:6}  {:016x}  {:5} sent  {:6} arrived  {:3} faults  {}",
                outcome.seed,
                outcome.hash,
                outcome.sent,
                outcome.arrived,
                outcome.faults,
                outcome.violation.as_deref().map_or("ok", |v| v.lines().next().unwrap_or(v)),
            );
        }
    });
    report(args, &summary);
    if summary.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(args: &Switch, summary: &Summary) {
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
            "frames_sent": summary.sent,
            "copies_arrived": summary.arrived,
            "arrivals_required": summary.required,
            "faults": summary.faults,
            "elapsed_s": seconds,
        });
        println!("{document:#}");
    } else {
        println!(
            "{} seeds, {} frames sent, {} copies arrived, {} of them required, {} faults: {} failed; {seconds:.1} s, {:.1} \
             seeds/s",
            summary.seeds,
            summary.sent,
            summary.arrived,
            summary.required,
            summary.faults,
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
fn check_bugs(args: &Switch, threads: usize) -> ExitCode {
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
