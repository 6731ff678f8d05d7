//! When the worker waits for frames by looking for them, and when by sleeping.
//!
//! A thread that sleeps has to be woken, which costs the one that wakes it a system call and the frame some microseconds;
//! one that looks costs a core. So the worker looks where a frame is likely to come soon, and learns where that is, port by
//! port ([`Habit`]), from how long after the last frame the next one came:
//!
//! ```text
//!    given to a port ──────┬─ within `longest`: the window covers that gap twice ──► looked for so long the next time
//!    taken from a port ────┤
//!     (a window for each)  └─ later, or in vain: half the window, and soon none ──► sleep at once
//! ```
//!
//! A guest that answers at once is looked at for as long as its answers take; one that is asked once a millisecond is
//! slept for. The time that is spent looking *in vain* is bounded for all ports together ([`Spinning`]), and nothing is
//! looked for while other threads want the processor.
//!
//! **Invariants.** Nobody's window is longer than [`Spin::longest`]. What was looked in vain in any time `t` is at most
//! [`SHARE_PERCENT`] of `t` and [`SAVED_MAX`].
//!
//! It knows no ports and reads no clock.

use std::time::Duration;

use ferro_protocol::time::Instant;

/// No window is shorter: a guest that sleeps does not answer faster.
const WINDOW_MIN: Duration = Duration::from_micros(5);
/// How much of a core may be spent on looking for frames that do not come.
const SHARE_PERCENT: u32 = 10;
/// What may be saved of that while there is nothing to wait for.
const SAVED_MAX: Duration = Duration::from_millis(2);
/// What has to be saved again after all was spent, or each wait would be broken off after a moment.
const SAVED_AGAIN: Duration = Duration::from_micros(500);
/// A busy loop has empty turns too. From here on it is waiting: it looks at all descriptors, and lets others run.
const IDLE_AFTER: Duration = Duration::from_micros(1);
/// A look that takes longer was another thread, which had the processor meanwhile.
const DISTURBED: Duration = Duration::from_micros(200);
/// How long nobody is looked for after that; doubled as often as it happens again at once.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How the worker waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Spin {
    /// The longest that it looks for a frame before it sleeps; none: it always sleeps.
    pub longest: Duration,
}

impl Spin {
    /// Unless a setting says otherwise: about what it takes to wake a sleeping thread on another core, so that looking costs
    /// at most as much again as it saves.
    pub const LONGEST_DEFAULT: Duration = Duration::from_micros(50);
    /// More is of no use: who is idle for so long is asleep himself.
    pub const LONGEST_MAX: Duration = Duration::from_millis(1);
}

impl Default for Spin {
    fn default() -> Self {
        Self { longest: Self::LONGEST_DEFAULT }
    }
}

/// What happened last to a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Touch {
    /// A frame was given to it: it may answer.
    Given,
    /// A frame was taken from it: it may have another.
    #[default]
    Taken,
}

/// How soon a port has frames.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Habit {
    /// How long it is looked at after a frame was given, and after one was taken.
    windows: [Duration; 2],
    last: Touch,
    touched_at: Instant,
}

impl Habit {
    /// Of something that was just plugged in.
    pub(super) fn new(now: Instant) -> Self {
        Self { touched_at: now, ..Self::default() }
    }

    /// Frames were given to it, or taken from it.
    pub(super) fn touch(&mut self, now: Instant, touch: Touch, spin: Spin) {
        let gap = now.since(self.touched_at);
        let window = &mut self.windows[self.last as usize];
        if touch == Touch::Taken && gap <= spin.longest {
            *window = (gap * 2).max(*window).max(WINDOW_MIN).min(spin.longest);
        } else if gap > *window {
            // What is less than the least is nothing.
            *window = if *window < 2 * WINDOW_MIN { Duration::ZERO } else { *window / 2 };
        }
        self.last = touch;
        self.touched_at = now;
    }

    /// Since when nothing has happened.
    pub(super) fn touched_at(&self) -> Instant {
        self.touched_at
    }

    /// Until when a frame is likely to come.
    pub(super) fn expected_until(&self) -> Instant {
        self.touched_at + self.windows[self.last as usize]
    }
}

/// What to do in a turn that had no frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// Look again: it was a moment ago that there was one.
    Look,
    /// Look again, everywhere, and let others run before.
    Yield,
    /// Sleep.
    Sleep,
}

/// The worker's waiting as a whole.
#[derive(Debug)]
pub(super) struct Spinning {
    pub(super) spin: Spin,
    /// What may be spent in vain, and when that was last reckoned.
    saved: Duration,
    reckoned_at: Instant,
    spent_all: bool,
    /// Since when there was no frame, and the last look since.
    idle: Option<(Instant, Instant)>,
    /// Others want the processor.
    paused_until: Instant,
    pause: Duration,
}

impl Spinning {
    pub(super) fn new(spin: Spin) -> Self {
        Self {
            spin,
            saved: SAVED_MAX,
            reckoned_at: Instant(0),
            spent_all: false,
            idle: None,
            paused_until: Instant(0),
            pause: PAUSE_MIN,
        }
    }

    /// A turn had frames: the wait before was not in vain.
    pub(super) fn worked(&mut self) {
        self.idle = None;
    }

    /// A turn had none. `expected_until`: see [`Habit::expected_until`], the latest of all.
    pub(super) fn wait(&mut self, now: Instant, expected_until: Instant) -> Wait {
        let (since, looked_at) = self.idle.unwrap_or((now, now));
        self.idle = Some((since, now));
        let idle = now.since(since);
        if idle > IDLE_AFTER && now.since(looked_at) > DISTURBED {
            // Soon after the last time: it is not by chance.
            let again = now.since(self.paused_until) < 2 * self.pause;
            self.pause = if again { (2 * self.pause).min(PAUSE_MAX) } else { PAUSE_MIN };
            self.paused_until = now + self.pause;
        }
        self.reckon(since);
        if now < expected_until && now >= self.paused_until && !self.spent_all && idle < self.saved {
            return if idle > IDLE_AFTER { Wait::Yield } else { Wait::Look };
        }
        self.saved = self.saved.saturating_sub(idle);
        self.spent_all |= self.saved.is_zero();
        self.reckoned_at = now;
        self.idle = None;
        Wait::Sleep
    }

    /// Adds what has been saved until then.
    fn reckon(&mut self, until: Instant) {
        let passed = until.since(self.reckoned_at);
        self.saved = (self.saved + passed * SHARE_PERCENT / 100).min(SAVED_MAX);
        self.reckoned_at = self.reckoned_at.max(until);
        self.spent_all &= self.saved < SAVED_AGAIN;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);
    const MILLI: Duration = Duration::from_millis(1);
    const SPIN: Spin = Spin { longest: Duration::from_micros(50) };

    fn after(now: &mut Instant, time: Duration) -> Instant {
        *now = *now + time;
        *now
    }

    /// Frames at these times, one after the other, of one port that is never given any; what was looked in vain, and how
    /// many found the worker awake.
    fn run(gaps: impl Iterator<Item = Duration>) -> (Duration, usize, Duration) {
        let (mut spinning, mut habit) = (Spinning::new(SPIN), Habit::new(Instant(0)));
        let (mut now, mut vain, mut awake) = (Instant(0), Duration::ZERO, 0);
        for gap in gaps {
            let (frame_at, idle_since) = (now + gap, now);
            let mut looking = true;
            while now < frame_at {
                if spinning.wait(now, habit.expected_until()) == Wait::Sleep {
                    vain += now.since(idle_since);
                    looking = false;
                    break;
                }
                now = (now + MICRO).min(frame_at);
            }
            awake += usize::from(looking);
            now = frame_at;
            spinning.worked();
            habit.touch(now, Touch::Taken, SPIN);
        }
        (vain, awake, now.since(Instant(0)))
    }

    #[test]
    fn frames_close_together_are_looked_for_and_sparse_ones_slept_for() {
        let (vain, awake, _) = run((0..1000).map(|_| 20 * MICRO));
        assert_eq!((vain, awake), (Duration::ZERO, 999), "all but the first");
        let (vain, awake, _) = run((0..1000).map(|_| MILLI));
        assert_eq!((vain, awake), (Duration::ZERO, 0));
    }

    #[test]
    fn a_habit_is_unlearnt_soon() {
        let gaps = (0..100).map(|_| 20 * MICRO).chain((0..1000).map(|_| MILLI));
        let (vain, _, _) = run(gaps);
        assert!(vain > Duration::ZERO && vain < 2 * SPIN.longest, "{vain:?}");
    }

    #[test]
    fn what_is_spent_in_vain_is_bounded_whatever_comes() {
        // The worst: a short gap opens the window, and a long one follows.
        for long in [60, 100, 300, 1000] {
            let gaps = (0..100_000).map(|n| if n % 2 == 0 { 24 * MICRO } else { long * MICRO });
            let (vain, _, all) = run(gaps);
            let most = SAVED_MAX + all * SHARE_PERCENT / 100;
            assert!(vain <= most, "{long}: {vain:?} of {all:?}");
        }
    }

    #[test]
    fn who_answers_is_looked_at_after_it_was_given_a_frame_and_not_after_its_answer() {
        let (mut habit, mut now) = (Habit::new(Instant(0)), Instant(0));
        for _ in 0..3 {
            habit.touch(after(&mut now, MILLI), Touch::Given, SPIN);
            habit.touch(after(&mut now, 10 * MICRO), Touch::Taken, SPIN);
        }
        assert_eq!(habit.expected_until(), now, "nothing comes after an answer");
        habit.touch(after(&mut now, MILLI), Touch::Given, SPIN);
        assert_eq!(habit.expected_until(), now + 20 * MICRO);
        // It does not answer any more.
        for _ in 0..3 {
            habit.touch(after(&mut now, MILLI), Touch::Given, SPIN);
        }
        assert_eq!(habit.expected_until(), now);
    }

    #[test]
    fn a_stream_to_somebody_who_never_answers_opens_nothing() {
        let (mut habit, mut now) = (Habit::new(Instant(0)), Instant(0));
        for _ in 0..100 {
            habit.touch(after(&mut now, 20 * MICRO), Touch::Given, SPIN);
        }
        assert_eq!(habit.expected_until(), now);
    }

    #[test]
    fn nothing_is_looked_for_without_a_window_or_when_it_is_off() {
        let off = Spin { longest: Duration::ZERO };
        let (mut habit, mut now) = (Habit::new(Instant(0)), Instant(0));
        for _ in 0..10 {
            habit.touch(after(&mut now, MICRO), Touch::Taken, off);
        }
        assert_eq!(habit.expected_until(), now);
        assert_eq!(Spinning::new(off).wait(now, habit.expected_until()), Wait::Sleep);
    }

    #[test]
    fn others_get_the_processor() {
        let mut spinning = Spinning::new(SPIN);
        let mut now = Instant(1_000_000_000);
        let mut wait = |time| spinning.wait(after(&mut now, time), Instant(u64::MAX));
        assert_eq!(wait(MICRO), Wait::Look);
        assert_eq!(wait(5 * MICRO), Wait::Yield);
        assert_eq!(wait(DISTURBED * 2), Wait::Sleep, "somebody else ran");
        assert_eq!(wait(PAUSE_MIN / 2), Wait::Sleep);
        assert_eq!(wait(PAUSE_MIN), Wait::Look);
        assert_eq!(wait(5 * MICRO), Wait::Yield);
        assert_eq!(wait(DISTURBED * 2), Wait::Sleep);
        assert_eq!(wait(PAUSE_MIN), Wait::Sleep, "for longer, as it was soon after the last time");
        assert_eq!(wait(PAUSE_MIN), Wait::Look);
        // Much later it is by chance again.
        assert_eq!(wait(Duration::from_secs(10)), Wait::Sleep);
        spinning.worked();
        assert_eq!(spinning.pause, PAUSE_MIN);
    }
}
