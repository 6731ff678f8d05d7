//! Rates: how many bytes or frames may pass, and when.
//!
//! A [`Shaper`] is a queue that holds nothing: it says *when* a frame may leave, or that it would wait too long. The one
//! who has the frame keeps it until then. Two buckets, as in RFC 2698: one fills at the average rate and holds the burst,
//! one at the peak rate and holds next to nothing. A frame leaves when neither is in debt, and may put both into debt by
//! its own size: so a super-frame passes through a small bucket, and the rate over time is right all the same.
//!
//! ```text
//!   bytes ▲          ___---  average
//!         │     __---
//!         │    /  ← burst at the peak rate
//!         └───/──────────────► time
//! ```
//!
//! In any span of time `t`, what leaves is at most `burst + average × t` and `peak × (t + 1 ms)`, and one frame.

use std::time::Duration;

use crate::bugs::{Bug, Bugs};
use crate::config::Rate;
use crate::time::Instant;

/// How long a frame may wait. What would wait longer is dropped, so the one who keeps the frames needs no more room than
/// the rate times this.
pub const WAIT_MAX: Duration = Duration::from_millis(50);

/// What the peak rate's bucket holds, in time.
const PEAK_DEPTH: Duration = Duration::from_millis(1);

const NS: u128 = 1_000_000_000;

/// One bucket. Its level is counted in time: at `full_at` it is full, later it stays so. This is the generic cell rate
/// algorithm (ITU-T I.371, annex A), exact in integers.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// Units a second.
    rate: u64,
    /// How long it takes to fill.
    depth_ns: u64,
    /// When it will be full, in nanoseconds.
    full_at: u64,
    /// Parts of a nanosecond that `full_at` lacks, in units of 1 / rate.
    rest: u64,
}

impl Bucket {
    fn new(rate: u64, units: u64) -> Self {
        let rate = rate.max(1);
        let depth = u128::from(units) * NS / u128::from(rate);
        Self { rate, depth_ns: u64::try_from(depth).unwrap_or(u64::MAX), full_at: 0, rest: 0 }
    }

    /// When it is out of debt.
    fn ready_at(&self) -> u64 {
        self.full_at.saturating_sub(self.depth_ns)
    }

    fn take(&mut self, at: u64, units: u64) {
        if self.full_at < at {
            (self.full_at, self.rest) = (at, 0);
        }
        let parts = u128::from(units) * NS + u128::from(self.rest);
        let ns = u64::try_from(parts / u128::from(self.rate)).unwrap_or(u64::MAX);
        self.rest = (parts % u128::from(self.rate)) as u64;
        self.full_at = self.full_at.saturating_add(ns);
    }
}

/// A rate in bytes, with average, peak and burst.
#[derive(Clone, Copy, Debug)]
pub struct Shaper {
    rate: Rate,
    average: Bucket,
    peak: Bucket,
}

impl Shaper {
    /// A shaper with its burst to give.
    pub fn new(rate: Rate, bugs: Bugs) -> Self {
        let burst = if bugs.has(Bug::ShapingBurst) { rate.burst_bytes * 2 } else { rate.burst_bytes };
        let depth = u128::from(rate.peak_bytes_s) * PEAK_DEPTH.as_nanos() / NS;
        let peak = Bucket::new(rate.peak_bytes_s, u64::try_from(depth).unwrap_or(u64::MAX));
        Self { rate, average: Bucket::new(rate.average_bytes_s, burst), peak }
    }

    /// Its rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// When the next frame may leave, at the earliest. Who asks before it takes a frame in never needs to keep one.
    pub fn ready_at(&self) -> Instant {
        Instant(self.average.ready_at().max(self.peak.ready_at()))
    }

    /// When a frame may leave that comes now; `None` if it would wait longer than [`WAIT_MAX`]. Changes nothing.
    pub fn when(&self, now: Instant) -> Option<Instant> {
        let at = self.ready_at().max(now);
        (at <= now + WAIT_MAX).then_some(at)
    }

    /// Lets a frame of so many bytes leave, and says when.
    pub fn admit(&mut self, now: Instant, bytes: u64) -> Option<Instant> {
        let at = self.when(now)?;
        self.average.take(at.0, bytes);
        self.peak.take(at.0, bytes);
        Some(at)
    }
}

/// A limit in frames a second, with a tenth of a second's worth at once. What is over it is dropped.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    per_second: u32,
    bucket: Bucket,
}

impl Limit {
    /// A limit.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, bucket: Bucket::new(u64::from(per_second), u64::from(per_second / 10)) }
    }

    /// How many a second.
    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Whether one may pass now. Changes nothing.
    pub fn allows(&self, now: Instant) -> bool {
        self.bucket.ready_at() <= now.0
    }

    /// Lets one pass, if it may.
    pub fn admit(&mut self, now: Instant) -> bool {
        let allowed = self.allows(now);
        if allowed {
            self.bucket.take(now.0, 1);
        }
        allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn shaper(average: u64, peak: u64, burst: u64) -> Shaper {
        let rate = Rate { average_bytes_s: average, peak_bytes_s: peak, burst_bytes: burst };
        Shaper::new(rate, Bugs::NONE)
    }

    /// Every span of time keeps to the curve.
    fn keeps(left: &[(u64, u64)], rate: Rate) {
        let frame_max = left.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
        for from in 0..left.len() {
            let mut sum = 0;
            for (at, bytes) in &left[from..] {
                sum += bytes;
                let ns = u128::from(at - left[from].0);
                let average = u128::from(rate.average_bytes_s) * ns / NS + u128::from(rate.burst_bytes);
                let peak = u128::from(rate.peak_bytes_s) * (ns + u128::from(MS)) / NS;
                assert!(u128::from(sum) <= average.min(peak) + u128::from(frame_max) + 1, "{sum} in {ns} ns");
            }
        }
    }

    #[test]
    fn a_greedy_sender_gets_burst_peak_and_average() {
        let mut it = shaper(1_000_000, 4_000_000, 64 * 1024);
        let (mut now, mut left) = (Instant(7), Vec::new());
        for _ in 0..600 {
            match it.admit(now, 1500) {
                Some(at) => left.push((at.0, 1500)),
                None => now = it.ready_at(),
            }
        }
        keeps(&left, it.rate());
        let ns = left.last().unwrap().0 - 7;
        let sent = left.len() as u64 * 1500;
        let owed = 64 * 1024 + 1_000_000 * ns / 1_000_000_000;
        assert!(sent + 2 * 1500 >= owed, "{sent} of {owed}: it gets all that it may have");
        // The burst goes at the peak rate.
        let first = left.iter().find(|(at, _)| *at > 7 + 10 * MS).unwrap();
        assert!(left.iter().take_while(|(at, _)| at < &first.0).count() as u64 * 1500 <= 44_000 + 3000);
    }

    #[test]
    fn what_would_wait_too_long_is_dropped_and_not_counted() {
        let mut it = shaper(1000, 1000, 1000);
        assert_eq!(it.admit(Instant(0), 64_000), Some(Instant(0)), "a debt of 63 s");
        let before = it.ready_at();
        assert_eq!(it.admit(Instant(5), 100), None);
        assert_eq!(it.ready_at(), before);
        assert!(it.admit(before, 100).is_some());
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut it = shaper(1_000_000, 1_000_000_000, 3000);
        let late = Instant(3_600_000_000_000);
        let at_once = (0..100).filter(|_| it.admit(late, 1500) == Some(late)).count();
        assert_eq!(at_once, 3, "the burst, and the frame that goes into debt");
    }

    #[test]
    fn slow_rates_lose_nothing_to_rounding() {
        let mut it = Bucket::new(3, 0);
        (0..3_000_000).for_each(|_| it.take(0, 1));
        assert_eq!(it.full_at, 1_000_000 * 1_000_000_000);
    }

    #[test]
    fn frames_are_limited() {
        let mut it = Limit::new(100);
        let passed = (0..10_000).filter(|n| it.admit(Instant(n * MS / 10))).count();
        assert!((110..=112).contains(&passed), "{passed}: ten at once, and a hundred in the second");
    }
}
