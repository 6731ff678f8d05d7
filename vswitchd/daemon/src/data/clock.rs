//! The host's monotonic clock, read in one place.

use ferro_protocol::time::Instant;
use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the host started.
pub fn now() -> Instant {
    let t = clock_gettime(ClockId::Monotonic);
    Instant(t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs())
}
