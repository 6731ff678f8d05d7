//! What a guest may ask for at most: a limit of requests and of bytes a second, with bursts. Pure.
//!
//! A meter keeps the time until which what was taken so far lasts at the limit's rate, as the generic cell rate algorithm does
//! (ITU-T I.371, annex A: the virtual scheduling algorithm). It lies in the past while less is taken than may be, and a request is
//! let through as long as it is no further in the future than the burst.
//!
//! ```text
//!   ──────── now ─────── lasts until ──▶ time        lasts − now ≤ burst: let through
//!               ◀── burst ──▶                        else wait for the difference
//! ```
//!
//! So a request of any size is let through at once where there was room for a small one, and those after it wait for longer.
//!
//! What it must not know: whose requests they are, where they wait.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::time::Instant;

/// Without a burst so much is let through together all the same: else the next request would wait for a timer each time.
const BURST_MIN: Duration = Duration::from_millis(10);

/// A limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// Requests a second.
    pub requests_per_s: Option<NonZeroU64>,
    /// Bytes a second.
    pub bytes_per_s: Option<NonZeroU64>,
    /// What was not taken for so long may be taken at once.
    pub burst: Duration,
}

/// What was taken of a limit.
#[derive(Clone, Debug)]
pub struct Throttle {
    limits: Limits,
    requests_until: Instant,
    bytes_until: Instant,
}

impl Throttle {
    /// Nothing was taken so far, and nothing is left over.
    pub fn new(now: Instant, limits: Limits) -> Self {
        // A guest that is held to a limit has no burst saved up.
        let until = now + limits.burst.max(BURST_MIN);
        let of = |limit: Option<NonZeroU64>| if limit.is_some() { until } else { Instant(0) };
        Self { limits, requests_until: of(limits.requests_per_s), bytes_until: of(limits.bytes_per_s) }
    }

    /// The limits that it was made with.
    pub fn asked(&self) -> Limits {
        self.limits
    }

    /// How long a request has to wait now; nothing if it need not.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let until = self.requests_until.max(self.bytes_until);
        let wait = (until - self.limits.burst.max(BURST_MIN)).since(now);
        (!wait.is_zero()).then_some(wait)
    }

    /// A request of so many bytes was let through.
    pub fn take(&mut self, now: Instant, bytes: u64) {
        if let Some(rate) = self.limits.requests_per_s {
            self.requests_until = self.requests_until.max(now) + time_of(1, rate);
        }
        if let Some(rate) = self.limits.bytes_per_s {
            self.bytes_until = self.bytes_until.max(now) + time_of(bytes, rate);
        }
    }
}

/// How long so much lasts at this rate.
fn time_of(amount: u64, per_s: NonZeroU64) -> Duration {
    let ns = u128::from(amount) * 1_000_000_000 / u128::from(per_s.get());
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn limits(requests: u64, bytes: u64, burst_s: u64) -> Limits {
        Limits {
            requests_per_s: NonZeroU64::new(requests),
            bytes_per_s: NonZeroU64::new(bytes),
            burst: Duration::from_secs(burst_s),
        }
    }

    /// How many requests of so many bytes a guest gets through in a time that asks for the next at once.
    fn greedy(throttle: &mut Throttle, from: Instant, time: Duration, bytes: u64) -> u64 {
        let (mut now, mut count) = (from, 0);
        loop {
            if let Some(wait) = throttle.wait(now) {
                now = now + wait;
            } else {
                throttle.take(now, bytes);
                count += 1;
            }
            if now.since(from) >= time {
                return count;
            }
        }
    }

    #[test]
    fn a_greedy_guest_gets_what_it_may_and_no_more() {
        let from = Instant(7 * SECOND);
        let ten = Duration::from_secs(10);
        let count = greedy(&mut Throttle::new(from, limits(500, 0, 0)), from, ten, 4_096);
        assert!((4_999..=5_006).contains(&count), "{count} requests at 500 a second");
        let count = greedy(&mut Throttle::new(from, limits(0, 1 << 20, 0)), from, ten, 64 << 10);
        assert!((160..=161).contains(&count), "{count} pieces of 64 KiB at 1 MiB a second");
        // The tighter one counts.
        let count = greedy(&mut Throttle::new(from, limits(500, 1 << 20, 0)), from, ten, 4_096);
        assert!((2_559..=2_564).contains(&count), "{count} blocks at 1 MiB a second");
    }

    #[test]
    fn a_pause_is_worth_a_burst_and_not_more() {
        let start = Instant(SECOND);
        let mut throttle = Throttle::new(start, limits(100, 0, 5));
        assert!(
            greedy(&mut throttle, start, Duration::from_secs(1), 0) <= 102,
            "nothing is saved up at first"
        );
        // After an hour's pause there are five seconds' worth.
        let later = start + Duration::from_secs(3_600);
        let count = greedy(&mut throttle, later, Duration::from_secs(1), 0);
        assert!((599..=602).contains(&count), "{count} requests in the second after the pause");
        let count = greedy(&mut throttle, later + Duration::from_secs(1), Duration::from_secs(1), 0);
        assert!((98..=102).contains(&count), "{count} in the next");
    }

    #[test]
    fn a_large_request_is_let_through_and_paid_for_afterwards() {
        let start = Instant(SECOND);
        let mut throttle = Throttle::new(start, limits(0, 1 << 20, 0));
        assert_eq!(throttle.wait(start), None);
        throttle.take(start, 4 << 20);
        let wait = throttle.wait(start).expect("four seconds' worth was taken");
        assert!(wait.as_secs() == 4, "{wait:?}");
        assert_eq!(throttle.wait(start + wait), None);
    }

    #[test]
    fn no_number_overflows() {
        let mut throttle = Throttle::new(Instant(u64::MAX - 1), limits(1, 1, u64::MAX / SECOND));
        throttle.take(Instant(u64::MAX), u64::MAX);
        throttle.take(Instant(0), u64::MAX);
        let _wait = throttle.wait(Instant(0));
    }
}
