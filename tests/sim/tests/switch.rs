//! The network's simulator itself: a seed is a run, good code passes, bad code does not. (`deploy/test` runs ten thousand
//! seeds and every deliberate bug in release; `ferro-sim switch` any number by hand.)

use ferro_sim::switch::{Options, Outcome, run};
use vswitch_core::bugs::Bug;

fn clean(seed: u64) -> Outcome {
    let outcome = run(seed, Options::default());
    assert_eq!(
        outcome.violation, None,
        "seed {seed}: ferro-sim switch --seeds {seed} --trace shows the last events"
    );
    outcome
}

#[test]
fn a_seed_is_a_run() {
    let (one, other) = (clean(3), clean(3));
    assert_eq!((one.hash, one.sent, one.arrived), (other.hash, other.sent, other.arrived));
    assert_ne!(one.hash, clean(4).hash);
}

#[test]
fn a_trace_changes_nothing() {
    let traced = run(3, Options { trace_lines: 50, ..Options::default() });
    assert_eq!(traced.hash, clean(3).hash);
    assert_eq!(traced.trace.len(), 50);
}

#[test]
fn seeds_pass_and_exercise_what_they_should() {
    let runs: Vec<Outcome> = (0..60).map(clean).collect();
    let total = |of: fn(&Outcome) -> u64| runs.iter().map(of).sum::<u64>();
    assert!(total(|o| o.sent) > 8_000, "little was sent");
    assert!(total(|o| o.required) > 1_500, "little had to arrive");
    assert!(total(|o| o.faults) > 600, "little went wrong");
}

/// Seeds that once found a bug of the core; what each was stands beside it.
#[test]
fn pinned_seeds_pass() {
    let seeds = include_str!("../seeds-switch.txt").lines();
    for seed in
        seeds.map(|line| line.split('#').next().unwrap_or_default().trim()).filter(|seed| !seed.is_empty())
    {
        clean(seed.parse().expect("a seed in seeds-switch.txt"));
    }
}

#[test]
fn deliberate_bugs_are_caught() {
    for (name, bug, _) in Bug::ALL {
        let caught =
            (0..40).any(|seed| run(seed, Options { bug: Some(bug), trace_lines: 0 }).violation.is_some());
        assert!(caught, "{name} went unnoticed");
    }
}
