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

/// The monotonic clock as it is now and not when the turn began: where a lease is checked, the process may have been stopped in
/// between, and somebody else may own the object by now. (20 ns; the wall clock, which decides nothing, stays as it was.)
pub(crate) fn fresh(now: Now) -> Now {
    Now { mono: mono(), ..now }
}

/// Both.
pub(crate) fn now() -> Now {
    Now { mono: mono(), unix_s: unix_s() }
}
