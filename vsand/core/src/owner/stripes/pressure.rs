//! When jobs begin: how many, and how much of a log they leave alone.
//!
//! A log takes in what a guest writes at once, and the shards have time: until it is as full as the settings say, nothing is put into them unless
//! the guest pauses. So a burst costs what a mirror costs, and what is written over again within it goes to the shards once. Then jobs begin, few at
//! first, more the fuller the log is.
//!
//! A new owner reads through all that the logs of its object hold before it serves. A large volume has many of them, so what they hold together
//! counts too: from the settings' share of [`crate::owner::Config::logged_slots`] on jobs begin where there is most.
//!
//! ```text
//!   a log's fullness        0 ──────── destage_permille ───────────── FULL ─────── 1,000
//!   jobs of its chunk       none        4 ──────────────────────▶ more ──────────▶ 64
//!   left alone              –           the newest half of that       nothing
//! ```

use crate::owner::Config;

/// Jobs at once: when a log is as full as the settings say, and when it is full.
const JOBS_MIN: usize = 4;
pub(super) const JOBS_MAX: usize = 64;
/// From this fullness on, in thousandths, jobs take what there is.
const FULL: u32 = 750;

/// What all logs of an object hold, and what is done about it.
#[derive(Default, Debug)]
pub(in crate::owner) struct Logged {
    /// Slots that are taken, of all logs.
    slots: u64,
    /// Logs with such slots.
    logs: u64,
    /// Jobs under way.
    jobs: usize,
}

/// A chunk, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    /// Slots of its log that are taken, as they were counted.
    pub slots: u32,
    /// How full its log is, in thousandths, or the memory for what is staged if that is fuller.
    pub fullness: u32,
    /// Its jobs under way.
    pub jobs: usize,
    /// Its guest pauses, or something waits for the log to be emptied.
    pub calm: bool,
}

impl Logged {
    /// A log holds so many slots now, and held so many when this was called last.
    pub(super) fn count(&mut self, before: u32, now: u32) {
        self.slots = self.slots + u64::from(now) - u64::from(before);
        self.logs = self.logs + u64::from(now > 0) - u64::from(before > 0);
    }

    pub(super) fn job_began(&mut self) {
        self.jobs += 1;
    }

    pub(super) fn job_ended(&mut self) {
        self.jobs -= 1;
    }

    /// Whether a job more may begin, and which part of the log, in thousandths, it leaves alone.
    pub(super) fn next_job(&self, config: &Config, chunk: Chunk) -> Option<u32> {
        let low = config.destage_permille;
        let together = (self.slots * 1_000 / u64::from(config.logged_slots.max(1))).min(1_000) as u32;
        // Where there is less than elsewhere it can wait.
        let is_large = u64::from(chunk.slots) * self.logs >= self.slots;
        let own = if chunk.fullness >= low {
            jobs_max(low, chunk.fullness)
        } else if chunk.calm {
            JOBS_MIN
        } else {
            0
        };
        let begins = chunk.jobs < own || (together >= low && is_large && self.jobs < jobs_max(low, together));
        let hurry = chunk.calm || chunk.fullness.max(together) >= FULL;
        begins.then_some(if hurry { 0 } else { low.min(chunk.fullness) / 2 })
    }
}

/// How many jobs at once, from the fullness at which they begin on.
fn jobs_max(low: u32, fullness: u32) -> usize {
    let more =
        fullness.saturating_sub(low) as usize * JOBS_MAX / (1_000_usize.saturating_sub(low as usize)).max(1);
    (JOBS_MIN + more).min(JOBS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferro_protocol::ids::HostId;

    /// A log of 1,000 slots, logs of 2,000 together, half of which may be full.
    fn config() -> Config {
        let mut config = Config::new(HostId::from_bytes([1; 16]));
        config.log_slots = 1_000;
        config.logged_slots = 2_000;
        config.destage_permille = 500;
        config
    }

    fn chunk(slots: u32) -> Chunk {
        Chunk { slots, fullness: slots, jobs: 0, calm: false }
    }

    fn logged(logs: &[u32]) -> Logged {
        let mut logged = Logged::default();
        for slots in logs {
            logged.count(0, *slots);
        }
        logged
    }

    /// How many jobs a chunk gets.
    fn jobs(logged: &mut Logged, mut chunk: Chunk) -> usize {
        let before = chunk.jobs;
        while chunk.jobs < 1_000 && logged.next_job(&config(), chunk).is_some() {
            chunk.jobs += 1;
            logged.job_began();
        }
        chunk.jobs - before
    }

    #[test]
    fn a_log_takes_in_what_fills_half_of_it_and_then_jobs_begin_and_become_more() {
        assert_eq!(jobs(&mut logged(&[499]), chunk(499)), 0);
        assert_eq!(jobs(&mut logged(&[500]), chunk(500)), 4);
        assert_eq!(jobs(&mut logged(&[750]), chunk(750)), 36);
        assert_eq!(jobs(&mut logged(&[1_000]), chunk(1_000)), 64);
    }

    #[test]
    fn a_guest_that_pauses_gets_its_log_emptied() {
        let calm = Chunk { calm: true, ..chunk(1) };
        assert_eq!(jobs(&mut logged(&[1]), calm), 4);
        assert_eq!(logged(&[1]).next_job(&config(), calm), Some(0));
    }

    #[test]
    fn the_newest_half_of_what_begins_is_left_alone_until_it_is_urgent() {
        assert_eq!(logged(&[600]).next_job(&config(), chunk(600)), Some(250));
        assert_eq!(logged(&[750]).next_job(&config(), chunk(750)), Some(0));
    }

    #[test]
    fn many_logs_that_are_not_full_are_put_into_the_shards_where_there_is_most() {
        let logs = [50, 150, 100, 100, 100, 100, 100, 100, 100, 100];
        assert_eq!(jobs(&mut logged(&logs), chunk(50)), 0, "less than the others have");
        assert_eq!(jobs(&mut logged(&logs), chunk(150)), 4);
        assert_eq!(logged(&logs).next_job(&config(), chunk(150)), Some(75), "half of what it has");
        assert_eq!(jobs(&mut logged(&logs[1..]), chunk(150)), 0, "together they hold 950 slots");
    }

    #[test]
    fn jobs_of_many_logs_together_are_bounded() {
        let mut all = logged(&[200; 100]);
        assert_eq!(jobs(&mut all, chunk(200)), 64);
        assert_eq!(jobs(&mut all, chunk(200)), 0);
        for _ in 0..3 {
            all.job_ended();
        }
        assert_eq!(jobs(&mut all, chunk(200)), 3);
    }

    #[test]
    fn what_is_given_back_counts_no_longer() {
        let mut all = logged(&[600, 600]);
        all.count(600, 0);
        all.count(600, 300);
        assert_eq!((all.slots, all.logs), (300, 1));
    }
}
