//! The two clocks of the host, read in one place.

use rustix::time::{ClockId, clock_gettime};
use vsand_core::time::{Instant, Now};

/// The monotonic clock, in nanoseconds.
pub(crate) fn mono() -> Instant {
    let t = clock_gettime(ClockId::Monotonic);
    Instant(t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs())
}

/// Seconds since 1970-01-01 UTC.
pub(crate) fn unix_s() -> u64 {
    clock_gettime(ClockId::Realtime).tv_sec.unsigned_abs()
}

/// Both.
pub(crate) fn now() -> Now {
    Now { mono: mono(), unix_s: unix_s() }
}
