//! Many seeds, on all cores.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use vswitch_core::bugs::Bug;

use super::{Options, Outcome, run};

/// What came of a campaign.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds that were run.
    pub seeds: u64,
    /// Runs with a violation, by seed.
    pub failed: Vec<Outcome>,
    /// Frames that were sent.
    pub sent: u64,
    /// Copies that arrived.
    pub arrived: u64,
    /// Arrivals that the model required.
    pub required: u64,
    /// Moves, cuts and changes.
    pub faults: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A deliberate bug.
    pub bug: Option<Bug>,
    /// Threads.
    pub threads: usize,
    /// Stop at the first violation.
    pub first_only: bool,
}

/// Runs the seeds. `each` is told of every run that ends.
pub fn campaign(seeds: Range<u64>, settings: Settings, each: impl Fn(&Outcome) + Sync) -> Summary {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let stop = AtomicBool::new(false);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..settings.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = run(seed, Options { bug: settings.bug, trace_lines: 0 });
                    each(&outcome);
                    if settings.first_only && outcome.violation.is_some() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(outcome);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    summary.failed.sort_by_key(|o| o.seed);
    summary.elapsed = began.elapsed();
    summary
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.sent += outcome.sent;
        self.arrived += outcome.arrived;
        self.required += outcome.required;
        self.faults += outcome.faults;
        if outcome.violation.is_some() {
            self.failed.push(outcome);
        }
    }
}
