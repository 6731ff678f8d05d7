//! Who of the ports that have frames is served: each gets an equal part of the worker's time, whatever its frames cost.
//!
//! ```text
//!   floor: what the least served of the busy ports has had
//!     ├── AHEAD ──┤
//!   A ▪                served                    a frame of A costs 0.1 µs
//!   B ▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪▪ waits until A is there   one of B is cut into fifty segments, or goes to fifty ports
//! ```
//!
//! Frames can't be the measure: one may cost a thousand times what another costs, and the sender chooses. So each port's time is
//! kept account of (fair queueing by virtual time), as long as more than one port has frames. A port that was idle begins at the
//! floor: it has neither saved nor owes anything. Who is ahead waits only while somebody is behind, so no time is lost.
//!
//! A batch that costs much is made smaller the next time, or it alone would make the others wait for too long.
//!
//! While no port is left with frames and turns are short, nobody waits for anybody, and nothing is measured.
//!
//! It knows no ports and reads no clock.

use std::time::Duration;

use ferro_protocol::time::Instant;

use crate::ports::batch::BATCH_FRAMES;

/// How far ahead of the least served a port may be and still be served: about a batch of ordinary frames.
const AHEAD: Duration = Duration::from_micros(50);
/// Longer than this no batch should take: a ring of 256 frames fills at a million a second in as long.
const BATCH_TIME: Duration = Duration::from_micros(200);
/// No batch costs more. What takes longer was another program, which had the processor meanwhile.
const COST_MAX: Duration = Duration::from_millis(1);

/// One port's account.
#[derive(Debug)]
pub(super) struct Share {
    /// The time that it has had, on the scale of [`Shares`].
    spent: Duration,
    /// It had more frames than it was served.
    busy: bool,
    /// Frames of its next batch.
    frames_max: usize,
}

impl Default for Share {
    fn default() -> Self {
        Self { spent: Duration::ZERO, busy: false, frames_max: BATCH_FRAMES }
    }
}

impl Share {
    /// How many frames its next batch may have.
    pub(super) fn frames_max(&self) -> usize {
        self.frames_max
    }

    /// It has nothing more.
    pub(super) fn rest(&mut self) {
        self.busy = false;
    }
}

/// What the accounts have in common.
#[derive(Debug)]
pub(super) struct Shares {
    floor: Duration,
    highest: Duration,
    began: Instant,
    contended: bool,
}

impl Default for Shares {
    fn default() -> Self {
        Self { floor: Duration::ZERO, highest: Duration::ZERO, began: Instant(0), contended: false }
    }
}

impl Shares {
    /// A turn begins, with these ports.
    pub(super) fn begin<'a>(&mut self, now: Instant, ports: impl Iterator<Item = &'a Share>) {
        let least = ports.filter(|share| share.busy).map(|share| share.spent).min();
        // Nobody waits for anything: all begin anew.
        self.floor = least.unwrap_or(self.highest);
        let long = now.since(self.began) > AHEAD;
        self.began = now;
        self.contended = long || least.is_some();
    }

    /// Whether somebody was left with frames in the turn before, or had to wait for long until it ended.
    pub(super) fn contended(&self) -> bool {
        self.contended
    }

    /// Whether it is this port's turn. Whether it has frames does not matter: else one that always has a single dear one would
    /// never wait.
    pub(super) fn admits(&self, share: &Share) -> bool {
        share.spent <= self.floor + AHEAD
    }

    /// A port was served, at this cost; whether it has more.
    pub(super) fn spend(&mut self, share: &mut Share, cost: Duration, more: bool) {
        if !share.busy {
            share.spent = share.spent.max(self.floor);
        }
        share.busy = more;
        share.spent += cost.min(COST_MAX);
        self.highest = self.highest.max(share.spent);
        if cost > BATCH_TIME {
            share.frames_max = (share.frames_max / 2).max(1);
        } else if cost < BATCH_TIME / 4 {
            share.frames_max = (share.frames_max * 2).min(BATCH_FRAMES);
        }
    }

    /// A port was served while nobody waited: nobody has lost anything by it.
    pub(super) fn spend_freely(share: &mut Share, more: bool) {
        share.busy = more;
        share.frames_max = BATCH_FRAMES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: Duration = Duration::from_micros(1);

    /// Turns in which port `n` has frames in turn `t` if `busy(n, t)`, at `cost[n]` a frame; the time that each was served.
    fn run<const N: usize>(
        cost: [Duration; N],
        turns: usize,
        busy: impl Fn(usize, usize) -> bool,
    ) -> [Duration; N] {
        let (mut shares, mut ports) = (Shares::default(), [(); N].map(|()| Share::default()));
        let mut served = [Duration::ZERO; N];
        for turn in 0..turns {
            shares.begin(Instant(0), ports.iter());
            for n in 0..N {
                if !busy(n, turn) {
                    ports[n].rest();
                } else if shares.admits(&ports[n]) {
                    let cost = cost[n] * ports[n].frames_max() as u32;
                    shares.spend(&mut ports[n], cost, true);
                    served[n] += cost;
                }
            }
        }
        served
    }

    #[test]
    fn time_is_shared_equally_whatever_frames_cost() {
        for dear in [1, 10, 100] {
            let [one, two, three] = run([MICRO / 10, MICRO * dear, MICRO], 100_000, |_, _| true);
            for other in [two, three] {
                let ratio = one.as_secs_f64() / other.as_secs_f64();
                assert!((0.9..1.1).contains(&ratio), "{dear}: {one:?}, {two:?}, {three:?}");
            }
        }
    }

    #[test]
    fn nobody_waits_for_those_who_have_nothing() {
        // The second has frames in the first turns only.
        let [one, _] = run([MICRO, MICRO], 1000, |port, turn| port == 0 || turn < 100);
        assert!(one >= MICRO * 64 * 900, "{one:?}");
    }

    #[test]
    fn who_was_idle_has_saved_nothing_and_owes_nothing() {
        let [one, two] = run([MICRO, MICRO], 2000, |port, turn| port == 0 || turn >= 1000);
        // Both had the same in the second half.
        let second_half = one.checked_sub(MICRO * 64 * 1000).unwrap();
        let ratio = second_half.as_secs_f64() / two.as_secs_f64();
        assert!((0.9..1.1).contains(&ratio), "{one:?}, {two:?}");
        // One that floods, pauses, and floods again beside another that began in its pause.
        let [one, two] = run([MICRO, MICRO], 4000, |port, turn| match port {
            0 => !(1000..1100).contains(&turn),
            _ => turn >= 1000,
        });
        assert!(one >= MICRO * 64 * (1000 + 1200), "{one:?}, {two:?}");
    }

    #[test]
    fn who_has_one_dear_frame_at_a_time_waits_too() {
        let (mut shares, mut many, mut one) = (Shares::default(), Share::default(), Share::default());
        let (mut served, dear) = ([Duration::ZERO; 2], MICRO * 900);
        for _ in 0..10_000 {
            shares.begin(Instant(0), [&many, &one].into_iter());
            if shares.admits(&many) {
                let cost = MICRO * many.frames_max() as u32;
                shares.spend(&mut many, cost, true);
                served[0] += cost;
            }
            if shares.admits(&one) {
                shares.spend(&mut one, dear, false);
                served[1] += dear;
            }
        }
        let ratio = served[0].as_secs_f64() / served[1].as_secs_f64();
        assert!((0.9..1.1).contains(&ratio), "{served:?}");
    }

    #[test]
    fn batches_that_cost_much_become_small_and_grow_again() {
        let (mut shares, mut share) = (Shares::default(), Share::default());
        for _ in 0..10 {
            shares.spend(&mut share, BATCH_TIME * 3, true);
        }
        assert_eq!(share.frames_max(), 1);
        for _ in 0..10 {
            shares.spend(&mut share, MICRO, true);
        }
        assert_eq!(share.frames_max(), BATCH_FRAMES);
    }
}
