//! The time that connections live by.
//!
//! It is the worker's monotonic clock without the times at which this process stood still (a debugger, a frozen machine):
//! who did not listen has heard nothing, and blames nobody. The wall clock plays no part.

use std::time::Duration;

use ferro_protocol::time::Instant;

/// Between two looks at the clock more than this has not passed for the process: [`super::Tunnels::next_at`] asks for less.
const STEP_MAX: Duration = Duration::from_millis(200);
/// So much of a longer time counts.
const STEP: Duration = Duration::from_millis(50);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Clock {
    origin: std::time::Instant,
    start: Instant,
    looked: Instant,
    stopped: Duration,
    now: Instant,
}

impl Clock {
    /// Begins now. The system's clock is asked once, for an origin; what it says does not matter.
    pub(super) fn new(now: Instant) -> Self {
        let origin = std::time::Instant::now();
        Self { origin, start: now, looked: now, stopped: Duration::ZERO, now }
    }

    /// It is `now` by the worker's clock.
    pub(super) fn look(&mut self, now: Instant) {
        let passed = now.since(self.looked);
        if passed > STEP_MAX {
            self.stopped += passed.saturating_sub(STEP);
        }
        self.looked = self.looked.max(now);
        self.now = self.looked - self.stopped;
    }

    /// What the connections take for now.
    pub(super) fn now(&self) -> Instant {
        self.now
    }

    /// The same, as the QUIC state machines want it.
    pub(super) fn quic(&self) -> std::time::Instant {
        self.origin + self.now.since(self.start)
    }

    /// A time of the state machines as a connection's time.
    pub(super) fn of_quic(&self, at: std::time::Instant) -> Instant {
        self.start + at.saturating_duration_since(self.origin)
    }

    /// A connection's time as the worker's.
    pub(super) fn of_worker(&self, at: Instant) -> Instant {
        at + self.stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_the_process_stood_still_does_not_pass() {
        let at = |ms: u64| Instant(ms * 1_000_000);
        let mut it = Clock::new(at(1000));
        let origin = it.quic();
        it.look(at(1100));
        assert_eq!(it.now(), at(1100));
        it.look(at(61_100));
        assert_eq!(it.now(), at(1150), "a minute's sleep");
        it.look(at(61_090));
        assert_eq!(it.now(), at(1150), "it never goes back");
        assert_eq!(it.quic() - origin, Duration::from_millis(150));
        assert_eq!(it.of_quic(it.quic()), it.now());
        assert_eq!(it.of_worker(at(1160)), at(61_110));
    }
}
