//! The simulator itself: a seed is a run, good code passes, bad code does not. (`deploy/test` runs a thousand seeds and every
//! deliberate bug in release; `ferro-sim storage` any number by hand.)

use ferro_sim::storage::{Options, Outcome, run};
use vsand_core::bugs::Bug;

fn clean(seed: u64) -> Outcome {
    let outcome = run(seed, Options::default());
    assert_eq!(
        outcome.violation, None,
        "seed {seed}: ferro-sim storage --seeds {seed} --trace shows the last events"
    );
    outcome
}

#[test]
fn a_seed_is_a_run() {
    let (one, other) = (clean(3), clean(3));
    assert_eq!((one.hash, one.events), (other.hash, other.events));
    assert_ne!(one.hash, clean(4).hash);
}

#[test]
fn a_trace_changes_nothing() {
    let traced = run(3, Options { trace_lines: 100, ..Options::default() });
    assert_eq!(traced.hash, clean(3).hash);
    assert_eq!(traced.trace.len(), 100);
}

#[test]
fn seeds_pass_and_exercise_what_they_should() {
    let runs: Vec<Outcome> = (0..8).map(clean).collect();
    let total = |of: fn(&Outcome) -> u64| runs.iter().map(of).sum::<u64>();
    assert!(total(|o| o.completed) > 8_000, "guests did little");
    assert!(total(|o| o.faults) > 80, "little went wrong");
    assert!(total(|o| o.takeovers) > 16, "owners changed seldom");
}

/// Seeds that once found a bug of the core; what each was stands beside it.
#[test]
fn pinned_seeds_pass() {
    let seeds =
        include_str!("../seeds.txt").lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    for seed in seeds.filter(|seed| !seed.is_empty()) {
        clean(seed.parse().expect("a seed in seeds.txt"));
    }
}

#[test]
fn deliberate_bugs_are_caught() {
    for bug in [Bug::AckBeforeFlush, Bug::NoSeal, Bug::CrcUnchecked, Bug::ResyncSkipsWrites] {
        let caught =
            (0..80).any(|seed| run(seed, Options { bug: Some(bug), trace_lines: 0 }).violation.is_some());
        assert!(caught, "{bug:?} went unnoticed");
    }
}
