//! Time as an input. The core never asks for it: whoever drives a state machine says what time it is.

pub use ferro_protocol::time::Instant;

/// What time it is, on both clocks: the monotonic one decides, the other is only written down for people and for delays of
/// many minutes that must outlive a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Now {
    /// The monotonic clock.
    pub mono: Instant,
    /// Seconds since 1970-01-01 UTC.
    pub unix_s: u64,
}
