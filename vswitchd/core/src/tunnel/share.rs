//! Who may put how much into a queue that leads to another host.
//!
//! The queue is one for all guests of this host, and first come, first served: whoever fills it leaves no room for others, and
//! a guest that floods would take the link from its neighbours. So each source may hold twice what is still free, no more
//! ("dynamic thresholds": Choudhury and Hahne, IEEE/ACM Transactions on Networking 6(2), 1998). Alone it gets two thirds of the
//! queue, which is enough to keep the link busy; beside others all that want much come to hold, and so to send, the same, and one
//! that wants less finds room for all of it.
//!
//! ```text
//!   admit: held[source] + frame <= 2 × free        take: a run at the back        left: runs at the front are gone
//! ```
//!
//! **Invariant**: `held` of a source is the sum of its runs, `total` that of all.
//!
//! What it must not know: QUIC, frames, time.

use std::collections::VecDeque;

/// Sources are counted in so many places; two that share one share what it may hold.
const PLACES: usize = 256;
/// How many times what is free a source may hold.
const FREE_TIMES: usize = 2;

/// Frames of one source that follow one another.
#[derive(Clone, Copy, Debug)]
struct Run {
    place: u8,
    bytes: usize,
}

/// The shares of one queue. Its memory is bounded by the number of frames that the queue holds.
#[derive(Clone, Debug)]
pub struct Shares {
    runs: VecDeque<Run>,
    held: Box<[usize; PLACES]>,
    total: usize,
}

impl Default for Shares {
    fn default() -> Self {
        Self { runs: VecDeque::new(), held: Box::new([0; PLACES]), total: 0 }
    }
}

const fn place(source: u16) -> u8 {
    (source % PLACES as u16) as u8
}

impl Shares {
    /// Whether a source may add a frame of so many bytes to a queue that has so many bytes free.
    #[inline]
    pub fn admits(&self, source: u16, bytes: usize, free: usize) -> bool {
        self.held[usize::from(place(source))].saturating_add(bytes) <= free.saturating_mul(FREE_TIMES)
    }

    /// A source has added so many bytes.
    #[inline]
    pub fn take(&mut self, source: u16, bytes: usize) {
        let place = place(source);
        match self.runs.back_mut() {
            Some(run) if run.place == place => run.bytes += bytes,
            _ => self.runs.push_back(Run { place, bytes }),
        }
        self.held[usize::from(place)] += bytes;
        self.total += bytes;
    }

    /// So many bytes are left in the queue: what came before them has been sent.
    pub fn left(&mut self, bytes: usize) {
        while self.total > bytes {
            let Some(run) = self.runs.front_mut() else { return };
            let sent = run.bytes.min(self.total - bytes);
            run.bytes -= sent;
            self.held[usize::from(run.place)] -= sent;
            self.total -= sent;
            if run.bytes == 0 {
                self.runs.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: usize = 300_000;
    const FRAME: usize = 1000;

    struct Queue {
        shares: Shares,
        filled: usize,
    }

    impl Queue {
        fn offer(&mut self, source: u16) -> bool {
            let free = QUEUE - self.filled;
            let admitted = FRAME <= free && self.shares.admits(source, FRAME, free);
            if admitted {
                self.shares.take(source, FRAME);
                self.filled += FRAME;
            }
            admitted
        }

        fn send(&mut self, bytes: usize) {
            self.filled = self.filled.saturating_sub(bytes);
            self.shares.left(self.filled);
        }
    }

    #[test]
    fn one_alone_gets_two_thirds() {
        let mut queue = Queue { shares: Shares::default(), filled: 0 };
        let took = (0..1000).filter(|_| queue.offer(7)).count();
        assert_eq!(took, 2 * QUEUE / FRAME / 3);
        queue.send(QUEUE);
        assert_eq!((queue.shares.total, queue.shares.runs.len()), (0, 0));
        assert!(queue.shares.held.iter().all(|held| *held == 0));
    }

    #[test]
    fn who_wants_little_gets_it_all_beside_one_that_floods() {
        let mut queue = Queue { shares: Shares::default(), filled: 0 };
        let (mut modest, mut flood) = (0, 0);
        for _ in 0..10_000 {
            // The link sends ten frames; one source offers four, the other a hundred.
            flood += (0..100).filter(|_| queue.offer(2)).count();
            modest += (0..4).filter(|_| queue.offer(1)).count();
            queue.send(10 * FRAME);
        }
        assert_eq!(modest, 40_000, "all of it");
        assert!(flood >= 59_000, "the link stays busy: {flood}");
    }

    #[test]
    fn two_that_flood_share_alike_whoever_comes_first() {
        let mut queue = Queue { shares: Shares::default(), filled: 0 };
        let mut took = [0; 2];
        for _ in 0..10_000 {
            for source in [0, 1] {
                took[usize::from(source)] += (0..100).filter(|_| queue.offer(source)).count();
            }
            queue.send(10 * FRAME);
        }
        let [first, second] = took;
        assert!(second * 10 >= first * 8, "{took:?}");
    }
}
