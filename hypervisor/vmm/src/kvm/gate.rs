//! Whether the processors run: what somebody wants of all of them, and how many have obeyed.
//!
//! ```text
//!        ┌──── pause ────►  threads stop before they enter the guest again, and wait here
//!       run ◄─── resume ──
//!        └──── stop, from either ────►  threads end, for good
//! ```

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the processors should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Wanted {
    Run = 0,
    Pause = 1,
    Stop = 2,
}

#[derive(Debug)]
struct Inside {
    wanted: Wanted,
    /// Threads that wait, and those that have ended.
    waiting: usize,
    ended: usize,
}

/// What all processors of a VM look at.
#[derive(Debug)]
pub(super) struct Gate {
    /// The same as `wanted`, for a look without the lock before each entry into the guest.
    hint: AtomicU8,
    inside: Mutex<Inside>,
    changed: Condvar,
}

impl Gate {
    pub(super) fn new() -> Self {
        let inside = Inside { wanted: Wanted::Run, waiting: 0, ended: 0 };
        Self { hint: AtomicU8::new(0), inside: Mutex::new(inside), changed: Condvar::new() }
    }

    /// A thread that panicked leaves numbers that are true.
    fn lock(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who was told to stop does nothing else any more.
    pub(super) fn order(&self, wanted: Wanted) {
        let mut inside = self.lock();
        if inside.wanted != Wanted::Stop {
            inside.wanted = wanted;
            self.hint.store(wanted as u8, Ordering::Release);
        }
        self.changed.notify_all();
    }

    pub(super) fn wanted(&self) -> Wanted {
        self.lock().wanted
    }

    /// Whether there is nothing to obey but to run.
    pub(super) fn is_open(&self) -> bool {
        self.hint.load(Ordering::Acquire) == Wanted::Run as u8
    }

    /// For a processor's thread: waits as long as it should pause. What it should do then.
    pub(super) fn pass(&self) -> Wanted {
        let mut inside = self.lock();
        if inside.wanted == Wanted::Pause {
            inside.waiting += 1;
            self.changed.notify_all();
            while inside.wanted == Wanted::Pause {
                inside = self.changed.wait(inside).unwrap_or_else(PoisonError::into_inner);
            }
            inside.waiting -= 1;
        }
        inside.wanted
    }

    /// A processor's thread ends.
    pub(super) fn leave(&self) {
        self.lock().ended += 1;
        self.changed.notify_all();
    }

    /// How many threads are not in the guest and will not be, after waiting a little for one more.
    pub(super) fn stopped(&self, wait: Duration, all: usize) -> usize {
        let inside = self.lock();
        let missing = |inside: &mut Inside| inside.waiting + inside.ended < all;
        let (inside, _) =
            self.changed.wait_timeout_while(inside, wait, missing).unwrap_or_else(PoisonError::into_inner);
        inside.waiting + inside.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn all_stop_and_go_on() {
        let gate = Arc::new(Gate::new());
        gate.order(Wanted::Pause);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || gate.pass())
            })
            .collect();
        assert_eq!(gate.stopped(Duration::from_secs(60), 4), 4);
        assert!(!gate.is_open());
        gate.order(Wanted::Run);
        for thread in threads {
            assert_eq!(thread.join().unwrap(), Wanted::Run);
        }
        assert_eq!(gate.stopped(Duration::ZERO, 4), 0);
        assert!(gate.is_open());
    }

    #[test]
    fn stop_is_for_good_and_wakes_who_pauses() {
        let gate = Arc::new(Gate::new());
        gate.order(Wanted::Pause);
        let other = Arc::clone(&gate);
        let thread = std::thread::spawn(move || other.pass());
        assert_eq!(gate.stopped(Duration::from_secs(60), 1), 1);
        gate.order(Wanted::Stop);
        gate.order(Wanted::Run);
        assert_eq!(thread.join().unwrap(), Wanted::Stop);
        assert_eq!(gate.wanted(), Wanted::Stop);
        gate.leave();
        assert_eq!(gate.stopped(Duration::from_secs(60), 1), 1);
    }
}
