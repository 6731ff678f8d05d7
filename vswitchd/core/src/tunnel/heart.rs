//! Whether the other side of a tunnel is there.
//!
//! ```text
//!            heard                        heard
//!   dead ──────────► alive    alive ──── 3 × 100 ms of silence ────► dead
//! ```
//!
//! Each side sends a heartbeat every [`HEARTBEAT_EVERY`] on the control connection; anything heard counts. A host that was
//! itself stopped for a while (a debugger, a frozen machine) has heard nothing because it did not listen: that time does not
//! count against its peers.

use std::time::Duration;

use crate::time::Instant;

/// How often a heartbeat is sent.
pub const HEARTBEAT_EVERY: Duration = Duration::from_millis(100);
/// So many missed and the other side is dead.
pub const HEARTBEATS_MISSED_MAX: u32 = 3;
/// For delays on the way.
const GRACE: Duration = Duration::from_millis(40);

/// What is to be done now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Beat {
    /// A heartbeat is to be sent.
    pub send: bool,
    /// The other side died just now.
    pub died: bool,
}

/// One peer's heartbeats.
#[derive(Clone, Copy, Debug)]
pub struct Heart {
    alive: bool,
    heard: Instant,
    looked: Instant,
    send_at: Instant,
}

impl Heart {
    /// A peer that was not heard yet.
    pub fn new(now: Instant) -> Self {
        Self { alive: false, heard: now, looked: now, send_at: now }
    }

    /// Whether it is there.
    pub fn alive(&self) -> bool {
        self.alive
    }

    /// Something came from it. True if it was dead.
    pub fn handle_heard(&mut self, now: Instant) -> bool {
        self.heard = now;
        !std::mem::replace(&mut self.alive, true)
    }

    /// Time has passed.
    pub fn handle_time(&mut self, now: Instant) -> Beat {
        let absent = now.since(self.looked).saturating_sub(HEARTBEAT_EVERY);
        if absent > HEARTBEAT_EVERY {
            self.heard = (self.heard + absent).min(now);
        }
        self.looked = now;
        let died = self.alive && now.since(self.heard) > HEARTBEAT_EVERY * HEARTBEATS_MISSED_MAX + GRACE;
        if died {
            self.alive = false;
        }
        let send = now >= self.send_at;
        if send {
            // From now, not from when it was due: after a pause one is enough.
            self.send_at = now + HEARTBEAT_EVERY;
        }
        Beat { send, died }
    }

    /// When [`Heart::handle_time`] is next to be called.
    pub fn next_at(&self) -> Instant {
        let dead_at = self.heard + HEARTBEAT_EVERY * HEARTBEATS_MISSED_MAX + GRACE + Duration::from_nanos(1);
        if self.alive { self.send_at.min(dead_at) } else { self.send_at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Instant {
        Instant(n * 1_000_000)
    }

    #[test]
    fn three_missed_are_dead() {
        let mut it = Heart::new(ms(0));
        assert!(it.handle_time(ms(0)).send);
        assert!(it.handle_heard(ms(10)));
        let mut sent = 0;
        for now in (20..).step_by(10).take_while(|now| *now <= 340) {
            let beat = it.handle_time(ms(now));
            sent += u32::from(beat.send);
            assert!(!beat.died, "{now}");
        }
        assert_eq!(sent, 3);
        assert!(it.handle_time(ms(351)).died && !it.alive());
        assert!(!it.handle_time(ms(360)).died, "once");
        assert!(it.handle_heard(ms(400)) && it.alive());
    }

    #[test]
    fn who_slept_does_not_blame_others() {
        let mut it = Heart::new(ms(0));
        it.handle_heard(ms(0));
        it.handle_time(ms(50));
        assert!(!it.handle_time(ms(60_000)).died);
        assert!(!it.handle_time(ms(60_100)).died);
        for now in (60_200..60_500).step_by(50) {
            it.handle_time(ms(now));
        }
        assert!(!it.alive(), "but then it counts");
    }
}
