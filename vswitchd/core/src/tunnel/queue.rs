//! What waits to be sent to another host, where the path is slower than those who send.
//!
//! One queue for all guests of a host would be a queue first come, first served: whoever fills it decides how long the others
//! wait, and a neighbour's TCP, which grows once a round trip, would get next to nothing beside a guest that floods. So each
//! source has a line of its own, and the lines are served in turn, by bytes ("deficit round robin": Shreedhar and
//! Varghese, IEEE/ACM Transactions on Networking 4(3), 1996):
//!
//! ```text
//!   source 1  ▪▪▪▪▪▪▪▪▪▪▪▪▪▪ ┐
//!   source 7  ▪▪             ├─ QUANTUM each, in turn ─► pop
//!   source 9  ▪              ┘
//! ```
//!
//! How much may wait is bounded for all together. Alone a source gets all the room; where there is none left, the longest
//! line gives way to those that are shorter, from its end (Demers, Keshav and Shenker, SIGCOMM 1989), so that all that want much
//! come to hold the same, and who wants little finds room.
//!
//! **Invariants.** `held` is the sum of the lines' and at most `limit`. A line is in `turns` exactly once if it has frames, and
//! not at all if it has none. Frames of a source leave in the order in which they came. A line with frames is served after
//! each other line has sent at most a [`QUANTUM`] and a frame for each time that its first frame needs.
//!
//! What it must not know: QUIC, what the frames say, time.

use std::collections::VecDeque;

use super::{Meta, Source};

/// Sources are counted in so many places; two that share one share its line.
const PLACES: usize = 256;
/// What a frame costs besides its bytes, in memory and in headers.
const FRAME_COST: usize = 64;
/// What a line may send before the next one's turn: a few frames. A super-frame takes several turns.
const QUANTUM: usize = 16 << 10;

/// A frame that waits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waiting {
    /// What it is.
    pub meta: Meta,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Waiting {
    fn cost(&self) -> usize {
        self.bytes.len() + FRAME_COST
    }
}

/// The frames of one source.
#[derive(Clone, Debug, Default)]
struct Line {
    frames: VecDeque<Waiting>,
    held: usize,
    /// What it may still send in this turn.
    deficit: usize,
}

/// See the module's documentation.
#[derive(Clone, Debug)]
pub struct FairQueue {
    lines: Box<[Line; PLACES]>,
    /// Lines with frames; the first one is being served.
    turns: VecDeque<u8>,
    held: usize,
    limit: usize,
}

const fn place(source: u16) -> u8 {
    (source % PLACES as u16) as u8
}

impl FairQueue {
    /// An empty one, for so many bytes.
    pub fn new(limit: usize) -> Self {
        let lines = Box::new(std::array::from_fn(|_| Line::default()));
        Self { lines, turns: VecDeque::new(), held: 0, limit }
    }

    /// Whether nothing waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// Bytes that it holds, with what frames cost besides.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Puts a frame into its source's line. False: there is no room for it. How many others gave way to it is added to `gave_way`.
    #[must_use]
    pub fn offer<S: Source + ?Sized>(
        &mut self,
        source: u16,
        meta: &Meta,
        frame: &S,
        gave_way: &mut u64,
    ) -> bool {
        let place = place(source);
        let cost = frame.len().saturating_add(FRAME_COST);
        if cost > self.limit {
            return false;
        }
        while self.limit - self.held < cost {
            let longest = self.turns.iter().copied().max_by_key(|place| self.lines[usize::from(*place)].held);
            // One that is as long afterwards has no better right.
            let own = self.lines[usize::from(place)].held + cost;
            let Some(longest) = longest.filter(|longest| self.lines[usize::from(*longest)].held > own) else {
                return false;
            };
            self.shorten(longest);
            *gave_way += 1;
        }
        let line = &mut self.lines[usize::from(place)];
        let mut bytes = Vec::with_capacity(frame.len());
        frame.copy(0, frame.len(), &mut bytes);
        if line.frames.is_empty() {
            line.deficit = QUANTUM;
            self.turns.push_back(place);
        }
        line.frames.push_back(Waiting { meta: *meta, bytes });
        line.held += cost;
        self.held += cost;
        true
    }

    /// Throws away the last frame of a line.
    fn shorten(&mut self, place: u8) {
        let line = &mut self.lines[usize::from(place)];
        let cost = line.frames.pop_back().map_or(0, |frame| frame.cost());
        line.held -= cost;
        self.held -= cost;
        if line.frames.is_empty() {
            *line = Line::default();
            self.turns.retain(|turn| *turn != place);
        }
    }

    /// The next frame that is to be sent.
    pub fn pop(&mut self) -> Option<Waiting> {
        loop {
            let place = *self.turns.front()?;
            let line = &mut self.lines[usize::from(place)];
            let cost = line.frames.front()?.cost();
            if line.deficit < cost {
                line.deficit += QUANTUM;
                self.turns.rotate_left(1);
                continue;
            }
            let frame = line.frames.pop_front()?;
            line.deficit -= cost;
            line.held -= cost;
            self.held -= cost;
            if line.frames.is_empty() {
                // Nothing is saved for later; and the memory of a long line is given back.
                *line = Line::default();
                self.turns.pop_front();
            }
            return Some(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::net::Vni;

    use super::*;
    use crate::frame::{Offload, Tci};

    const LIMIT: usize = 300_000;

    fn meta() -> Meta {
        Meta { vni: Vni::new(5000).unwrap(), tci: Tci(0), offload: Offload::NONE }
    }

    /// A queue, and the frames of each source by number: the source and the number are in the first bytes.
    struct Rig {
        queue: FairQueue,
        offered: [u32; 4],
        next: [u32; 4],
        taken: [u32; 4],
        gave_way: u64,
        sent: [usize; 4],
    }

    impl Rig {
        fn new() -> Self {
            let queue = FairQueue::new(LIMIT);
            Self { queue, offered: [0; 4], next: [0; 4], taken: [0; 4], gave_way: 0, sent: [0; 4] }
        }

        fn offer(&mut self, source: u16, len: usize) -> bool {
            let number = self.offered[usize::from(source)];
            let bytes: Vec<u8> = [&[source as u8], &number.to_be_bytes()[..], &vec![0; len - 5]].concat();
            let admitted = self.queue.offer(source, &meta(), bytes.as_slice(), &mut self.gave_way);
            self.offered[usize::from(source)] += u32::from(admitted);
            assert!(self.queue.held() <= LIMIT);
            admitted
        }

        /// Whose the next frame is. Frames of a source come in order.
        fn pop(&mut self) -> Option<u16> {
            let frame = self.queue.pop()?;
            let (source, number) =
                (frame.bytes[0], u32::from_be_bytes(frame.bytes[1..5].try_into().unwrap()));
            let at = usize::from(source);
            assert!(number >= self.next[at], "in order");
            self.next[at] = number + 1;
            self.taken[at] += 1;
            self.sent[at] += frame.bytes.len();
            Some(source.into())
        }

        fn waiting(&self, source: u16) -> usize {
            self.queue.lines[usize::from(source)].frames.len()
        }

        fn send(&mut self, bytes: usize) {
            let until = self.sent.iter().sum::<usize>() + bytes;
            while self.sent.iter().sum::<usize>() < until && self.pop().is_some() {}
        }
    }

    #[test]
    fn one_alone_gets_all_of_the_room_and_of_the_path() {
        let mut it = Rig::new();
        let took = (0..1000).filter(|_| it.offer(3, 1000)).count();
        assert_eq!(took, LIMIT / (1000 + FRAME_COST));
        let sent = std::iter::from_fn(|| it.pop()).count();
        assert_eq!((sent, it.queue.held(), it.queue.is_empty()), (took, 0, true));
    }

    #[test]
    fn those_that_flood_send_the_same_bytes_whatever_their_frames() {
        let mut it = Rig::new();
        for _ in 0..5000 {
            for (source, len) in [(0, 65_000), (1, 1514), (2, 9000)] {
                while it.offer(source, len) {}
            }
            it.send(100_000);
        }
        let [one, two, three, _] = it.sent;
        for sent in [one, two, three] {
            let part = sent as f64 / (one + two + three) as f64;
            assert!((0.30..0.37).contains(&part), "{:?}", it.sent);
        }
    }

    #[test]
    fn who_wants_little_gets_it_all_and_at_once_beside_one_that_floods() {
        let mut it = Rig::new();
        let mut waited_max = 0;
        for _ in 0..2000 {
            while it.offer(1, 1514) {}
            assert!(it.offer(2, 1514), "there is always room");
            assert_eq!(it.queue.lines[2].frames.len(), 1, "nothing of it gives way");
            let mut waited = 0;
            while it.pop().expect("both have frames") != 2 {
                waited += 1514;
            }
            waited_max = waited_max.max(waited);
        }
        // A turn of the other's, however long its line is.
        assert!(waited_max <= QUANTUM + 1514, "{waited_max}");
    }

    #[test]
    fn two_that_flood_share_the_room_whoever_comes_first() {
        let mut it = Rig::new();
        for _ in 0..10_000 {
            for source in [0, 1] {
                let _taken = (0..100).filter(|_| it.offer(source, 1000)).count();
            }
            it.send(10_000);
        }
        let [first, second, ..] = it.taken;
        assert!(second * 10 >= first * 9 && first * 10 >= second * 9, "{:?}", it.taken);
    }

    #[test]
    fn whatever_comes_nobody_starves_all_is_accounted_for_and_the_bound_holds() {
        // A small generator of numbers: the same ones each time.
        let mut seed = 1_u64;
        let mut dice = |sides: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % sides
        };
        let mut it = Rig::new();
        // What was sent of others since a source with frames was last served.
        let mut passed = [0_usize; 4];
        for _ in 0..200_000 {
            if dice(2) == 0 {
                let (source, len) = (dice(4) as u16, 60 + dice(65_000) / (1 + dice(40)));
                let was_empty = it.waiting(source) == 0;
                if it.offer(source, len) && was_empty {
                    passed[usize::from(source)] = 0;
                }
            } else if let Some(served) = it.pop() {
                let before = it.sent;
                for other in (0..4).filter(|other| *other != usize::from(served)) {
                    passed[other] = if it.waiting(other as u16) > 0 { passed[other] + 1 } else { 0 };
                    // Three others, each with what the largest frame needs in turns, in the smallest frames.
                    assert!(passed[other] < 3 * (65_064 + 2 * QUANTUM) / (60 + FRAME_COST), "{before:?}");
                }
                passed[usize::from(served)] = 0;
            }
        }
        while it.pop().is_some() {}
        let [offered, taken] =
            [it.offered, it.taken].map(|all| all.iter().map(|n| u64::from(*n)).sum::<u64>());
        assert_eq!(offered, taken + it.gave_way);
        assert!(it.gave_way > 0 && it.queue.held() == 0);
    }
}
