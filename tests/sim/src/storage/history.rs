//! What the guests saw, and whether a single disk that does one thing after the other could have shown them that.
//!
//! Each 512-byte sector is a register. A write's value is its number, of a zeroing 0. The check goes through a sector's
//! events in order and keeps every state that it may be in (its value and which open operations have already taken effect);
//! an operation that ends must have taken effect in some order, else the state is dropped; when no state is left, the history is
//! impossible. It is exact, and quick because few operations of one sector are open at once.
//!
//! Nothing of one owner may take effect after something of a later owner has. So an operation whose owner went away without
//! an answer may have taken effect or not, but is settled by the time the next owner serves the chunk (DESIGN.md, Storage,
//! rule 5: a block read twice without a write between never changes), and an owner that was overtaken completes nothing.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::{ChunkIndex, Epoch};
use ferro_protocol::units::{CHUNK_BYTES, SECTOR_BYTES};

/// What an operation did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Read,
    /// A write of this number, or a zeroing.
    Write(u64),
}

/// One operation of a guest.
#[derive(Clone, Debug)]
pub(super) struct Op {
    pub object: usize,
    pub epoch: Epoch,
    pub kind: Kind,
    pub first_sector: u64,
    pub sectors: u64,
    pub began: u64,
    pub ended: Option<u64>,
    /// When the guest was told that it failed.
    pub failed: Option<u64>,
    /// What a read saw, a sector each.
    pub saw: Vec<u64>,
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(super) struct History {
    pub ops: Vec<Op>,
    at: u64,
    /// When an owner first completed something on a chunk.
    served: BTreeMap<(usize, ChunkIndex), BTreeMap<Epoch, u64>>,
}

/// What a sector may be: its value, the latest owner whose operation took effect, and which open operations did.
type State = (u64, Epoch, BTreeSet<usize>);

/// Names an operation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct OpId(pub usize);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Mark {
    Begin(usize),
    /// It must have taken effect by now.
    End(usize),
    /// It has taken effect by now or never will, whatever a later owner does.
    Settle(usize),
    /// The same, and its owner goes on.
    Fail(usize),
}

impl History {
    pub(super) fn begin(
        &mut self,
        object: usize,
        epoch: Epoch,
        kind: Kind,
        first_sector: u64,
        sectors: u64,
    ) -> OpId {
        self.at += 1;
        self.ops.push(Op {
            object,
            epoch,
            kind,
            first_sector,
            sectors,
            began: self.at,
            ended: None,
            failed: None,
            saw: Vec::new(),
        });
        OpId(self.ops.len() - 1)
    }

    pub(super) fn end(&mut self, id: OpId, saw: Vec<u64>) {
        self.at += 1;
        let op = &mut self.ops[id.0];
        op.ended = Some(self.at);
        op.saw = saw;
        for chunk in chunk_of(op.first_sector).0..=chunk_of(op.first_sector + op.sectors - 1).0 {
            let served = self.served.entry((op.object, ChunkIndex(chunk))).or_default();
            served.entry(op.epoch).or_insert(self.at);
        }
    }

    /// The guest was told that it failed: of a write, each sector was written by now or never will be.
    pub(super) fn fail(&mut self, id: OpId) {
        self.at += 1;
        self.ops[id.0].failed = Some(self.at);
    }

    /// Whether a write of `id` to the sector was under way together with this one. (A request that was cut into parts may be
    /// overwritten in part before it ends.)
    pub(super) fn overlapped(&self, one: OpId, id: u64, sector: u64) -> bool {
        let one = &self.ops[one.0];
        self.ops.iter().any(|op| {
            op.kind == Kind::Write(id)
                && op.object == one.object
                && (op.first_sector..op.first_sector + op.sectors).contains(&sector)
                && op.ended.is_none_or(|end| end > one.began)
        })
    }

    /// The first impossible sector, and what happened to it.
    pub(super) fn check(&self) -> Result<(), String> {
        let mut by_sector: BTreeMap<(usize, u64), Vec<usize>> = BTreeMap::new();
        for (n, op) in self.ops.iter().enumerate() {
            for sector in op.first_sector..op.first_sector + op.sectors {
                by_sector.entry((op.object, sector)).or_default().push(n);
            }
        }
        let mut last: (Vec<usize>, Vec<u64>) = (Vec::new(), Vec::new());
        for ((object, sector), ops) in by_sector {
            let saw: Vec<u64> = ops.iter().filter_map(|n| self.saw(*n, sector)).collect();
            // Sectors that share all operations and saw the same share the verdict.
            if last.0 == ops && last.1 == saw && !sector.is_multiple_of(CHUNK_BYTES / SECTOR_BYTES) {
                continue;
            }
            self.check_sector(object, sector, &ops)?;
            last = (ops, saw);
        }
        Ok(())
    }

    fn saw(&self, op: usize, sector: u64) -> Option<u64> {
        let op = &self.ops[op];
        op.saw.get((sector - op.first_sector) as usize).copied()
    }

    /// When an owner after this one first served the sector's chunk.
    fn overtaken(&self, op: &Op, sector: u64) -> Option<u64> {
        let served = self.served.get(&(op.object, chunk_of(sector)))?;
        let next = Epoch(op.epoch.0 + 1);
        served.range(next..).map(|(_, at)| *at).min()
    }

    fn check_sector(&self, object: usize, sector: u64, ops: &[usize]) -> Result<(), String> {
        let mut marks: Vec<(u64, Mark)> = Vec::new();
        for n in ops {
            let op = &self.ops[*n];
            let overtaken = self.overtaken(op, sector).filter(|at| *at > op.began);
            match (op.kind, op.ended) {
                (Kind::Read, None) => continue,
                (Kind::Read, Some(end)) => marks.push((end, Mark::End(*n))),
                (Kind::Write(_), Some(end)) => {
                    marks.push((overtaken.map_or(end, |at| at.min(end)), Mark::End(*n)));
                }
                (Kind::Write(_), None) => {
                    match (overtaken, op.failed) {
                        (Some(at), failed) if failed.is_none_or(|failed| at < failed) => {
                            marks.push((at, Mark::Settle(*n)));
                        }
                        (_, Some(failed)) => marks.push((failed, Mark::Fail(*n))),
                        (_, None) => {}
                    }
                    // Begun by an owner that was overtaken already: it must not take effect at all.
                    if self.overtaken(op, sector).is_some_and(|at| at <= op.began) {
                        continue;
                    }
                }
            }
            marks.push((op.began, Mark::Begin(*n)));
        }
        marks.sort_unstable();
        let mut open: BTreeSet<usize> = BTreeSet::new();
        let mut states: BTreeSet<State> = BTreeSet::from([(0, Epoch(0), BTreeSet::new())]);
        for (_, mark) in &marks {
            match *mark {
                Mark::Begin(n) => {
                    open.insert(n);
                }
                Mark::Settle(n) => {
                    let mut next = BTreeSet::new();
                    // Whoever has not used it may still do so at this last moment.
                    let settled = Epoch(self.ops[n].epoch.0 + 1);
                    for (value, epoch, mut done) in self.reach(&states, &open, sector) {
                        done.remove(&n);
                        next.insert((value, epoch.max(settled), done));
                    }
                    open.remove(&n);
                    states = next;
                }
                Mark::Fail(n) => {
                    states = self.reach(&states, &open, sector);
                    states = states.into_iter().map(|(v, e, done)| (v, e, without(done, n))).collect();
                    open.remove(&n);
                }
                Mark::End(n) => {
                    let mut next = BTreeSet::new();
                    for (value, epoch, mut done) in self.reach(&states, &open, sector) {
                        if done.remove(&n) {
                            next.insert((value, epoch, done));
                        }
                    }
                    open.remove(&n);
                    if next.is_empty() {
                        return Err(self.explain(object, sector, n, ops, &states));
                    }
                    states = next;
                }
            }
        }
        Ok(())
    }

    /// All states that these can become by open operations taking effect.
    fn reach(&self, states: &BTreeSet<State>, open: &BTreeSet<usize>, sector: u64) -> BTreeSet<State> {
        let mut reached = states.clone();
        let mut new: Vec<State> = states.iter().cloned().collect();
        while let Some((value, epoch, done)) = new.pop() {
            for n in open.iter().filter(|n| !done.contains(n) && self.ops[**n].epoch >= epoch) {
                let op = &self.ops[*n];
                let value = match op.kind {
                    Kind::Write(id) => id,
                    Kind::Read if self.saw(*n, sector) == Some(value) => value,
                    Kind::Read => continue,
                };
                let mut done = done.clone();
                done.insert(*n);
                let state = (value, op.epoch, done);
                if reached.insert(state.clone()) {
                    new.push(state);
                }
            }
        }
        reached
    }

    fn explain(
        &self,
        object: usize,
        sector: u64,
        bad: usize,
        ops: &[usize],
        states: &BTreeSet<State>,
    ) -> String {
        use std::fmt::Write as _;
        let values: BTreeSet<u64> = states.iter().map(|(value, ..)| *value).collect();
        let mut text = format!(
            "object {object} sector {sector} (chunk {}, block {}): no order explains operation {bad}; the value may be {values:?}",
            chunk_of(sector).0,
            sector * SECTOR_BYTES % CHUNK_BYTES / 4096,
        );
        let end = self.ops[bad].ended.unwrap_or(u64::MAX);
        let near: Vec<usize> = ops.iter().copied().filter(|n| self.ops[*n].began <= end).collect();
        for n in near.iter().rev().take(14).rev() {
            let op = &self.ops[*n];
            let saw = self.saw(*n, sector);
            let _ = write!(
                text,
                "\n    op {n} epoch {} {:?} saw {saw:?} began {} ended {:?}",
                op.epoch.0, op.kind, op.began, op.ended
            );
        }
        text
    }
}

fn without(mut done: BTreeSet<usize>, n: usize) -> BTreeSet<usize> {
    done.remove(&n);
    done
}

fn chunk_of(sector: u64) -> ChunkIndex {
    ChunkIndex((sector * SECTOR_BYTES / CHUNK_BYTES) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(history: &mut History, epoch: u32, id: u64) -> OpId {
        history.begin(0, Epoch(epoch), Kind::Write(id), 0, 1)
    }

    fn read(history: &mut History, epoch: u32, saw: u64) {
        let op = history.begin(0, Epoch(epoch), Kind::Read, 0, 1);
        history.end(op, vec![saw]);
    }

    #[test]
    fn a_lost_write_is_found() {
        let mut history = History::default();
        let op = write(&mut history, 1, 7);
        history.end(op, Vec::new());
        read(&mut history, 1, 7);
        assert!(history.check().is_ok());
        read(&mut history, 1, 0);
        assert!(history.check().is_err());
    }

    #[test]
    fn an_unanswered_write_takes_effect_once_and_not_after_the_next_owner_served() {
        let mut history = History::default();
        write(&mut history, 1, 7);
        read(&mut history, 1, 0);
        read(&mut history, 2, 7);
        assert!(history.check().is_ok(), "it may be kept by the next owner");
        read(&mut history, 2, 0);
        assert!(history.check().is_err(), "but not go away again");

        let mut history = History::default();
        write(&mut history, 1, 7);
        read(&mut history, 2, 0);
        assert!(history.check().is_ok());
        read(&mut history, 2, 7);
        assert!(history.check().is_err(), "nor come back after the next owner has shown it gone");
    }

    #[test]
    fn a_write_that_failed_is_there_or_never_will_be() {
        for saw in [0, 7] {
            let mut history = History::default();
            let op = write(&mut history, 1, 7);
            history.fail(op);
            read(&mut history, 1, saw);
            assert!(history.check().is_ok());
            read(&mut history, 1, 7 - saw);
            assert!(history.check().is_err(), "saw {saw} before");
        }
    }

    #[test]
    fn an_owner_that_was_overtaken_completes_nothing() {
        let mut history = History::default();
        read(&mut history, 2, 0);
        assert!(history.check().is_ok());
        read(&mut history, 1, 0);
        assert!(history.check().is_err());
    }

    #[test]
    fn concurrent_operations_may_take_effect_in_any_order() {
        let mut history = History::default();
        let (a, b) = (write(&mut history, 1, 7), write(&mut history, 1, 8));
        let r = history.begin(0, Epoch(1), Kind::Read, 0, 1);
        history.end(b, Vec::new());
        history.end(a, Vec::new());
        history.end(r, vec![7]);
        read(&mut history, 1, 8);
        assert!(history.check().is_ok());
        read(&mut history, 1, 7);
        assert!(history.check().is_err());
    }
}
