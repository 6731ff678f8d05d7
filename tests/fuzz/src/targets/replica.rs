//! Requests of owners to one disk, in any order, from any epoch, over a disk that answers late, out of order, or with errors.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, DiskId, Epoch, ObjectId, Seq, Version};
use ferro_protocol::peer::{Refusal, Reply, Request, RequestId, Run};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};
use vsand_core::bugs::Bugs;
use vsand_core::disk::{DiskError, DiskOp, DiskReply, Ticket};
use vsand_core::replica::{Asker, Effect, Replica};

use crate::Source;

const STEPS_MAX: usize = 512;
const OBJECTS: usize = 3;

fn object(n: usize) -> ObjectId {
    ObjectId::from_bytes([n as u8 + 1; 16])
}

/// The replica with the disk below it, the askers above it, and what it has promised.
struct Bench {
    replica: Replica,
    next_id: u64,
    /// Requests that wait for their answer, with the epoch that they came with.
    asked: BTreeMap<(Asker, RequestId), (ObjectId, Epoch, bool)>,
    forgotten: BTreeSet<Asker>,
    disk: BTreeMap<Ticket, DiskOp>,
    /// The highest epoch for which `Sealed` was answered, and what the disk remembers.
    sealed: BTreeMap<ObjectId, Epoch>,
    written_down: BTreeMap<ObjectId, Epoch>,
    dead: bool,
}

/// Any sequence of events; the promises of the module's doc are looked at after each.
pub(super) fn requests(data: &[u8]) {
    let mut source = Source::new(data);
    let remembered = [(object(0), Epoch(3))];
    let mut bench = Bench {
        replica: Replica::new(DiskId::from_bytes([9; 16]), remembered, |_| false, Bugs::NONE),
        next_id: 0,
        asked: BTreeMap::new(),
        forgotten: BTreeSet::new(),
        disk: BTreeMap::new(),
        sealed: remembered.into(),
        written_down: remembered.into(),
        dead: false,
    };
    for _ in 0..STEPS_MAX {
        if source.is_empty() {
            break;
        }
        bench.step(&mut source);
        bench.drain();
    }
    bench.settle();
}

impl Bench {
    fn step(&mut self, source: &mut Source<'_>) {
        match source.below(16) {
            0..=8 => self.ask(source),
            9..=12 => self.disk_answers(source),
            13 => {
                let asker = Asker(source.below(3) as u64);
                self.replica.forget_asker(asker);
                self.forgotten.insert(asker);
            }
            14 => self.replica.condemn(chunk(source)),
            _ => {
                let chunk = chunk(source);
                if source.rarely(2) {
                    self.replica.pardon(chunk);
                } else {
                    self.replica.remove_condemned(chunk);
                }
            }
        }
    }

    fn ask(&mut self, source: &mut Source<'_>) {
        // An asker that is gone has a new name when it comes back.
        let mut from = Asker(source.below(3) as u64);
        while self.forgotten.contains(&from) {
            from.0 += 3;
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let (request, change) = choose(source);
        let (object, epoch) = subject(&request);
        let payload = match request.payload_bytes() {
            Ok(bytes) if !source.rarely(16) => vec![0; bytes],
            _ => vec![0; source.below(3) * BLOCK_BYTES],
        };
        let fenced = self.sealed.get(&object).is_some_and(|sealed| epoch < *sealed);
        let waiting = self.disk.len();
        self.asked.insert((from, id), (object, epoch, change));
        self.replica.handle_request(from, id, request, payload.into());
        self.drain();
        if fenced {
            let answered = !self.asked.contains_key(&(from, id));
            assert!(answered && self.disk.len() == waiting, "{epoch:?} is below the promise and was let in");
        }
    }

    fn disk_answers(&mut self, source: &mut Source<'_>) {
        if self.disk.is_empty() || self.dead {
            return;
        }
        let at = source.below(self.disk.len());
        let Some(ticket) = self.disk.keys().nth(at).copied() else { return };
        let result = match source.byte() {
            0xf0..=0xf7 => Err(DiskError::BadBlocks(vec![1, 2])),
            0xf8..=0xfb => Err(DiskError::Full),
            0xfc..=0xfe => Err(DiskError::NotStaged),
            0xff => Err(DiskError::Dead("it smokes".to_owned())),
            _ => Ok(self.reply(ticket)),
        };
        self.disk_answer(ticket, result);
    }

    fn disk_answer(&mut self, ticket: Ticket, result: Result<DiskReply, DiskError>) {
        let Some(op) = self.disk.remove(&ticket) else { return };
        if let (DiskOp::SetEpoch { object, epoch }, Ok(_)) = (&op, &result) {
            let known = self.written_down.entry(*object).or_default();
            *known = (*known).max(*epoch);
        }
        self.dead |= matches!(result, Err(DiskError::Dead(_)));
        self.replica.handle_disk(ticket, result);
    }

    fn reply(&self, ticket: Ticket) -> DiskReply {
        match &self.disk[&ticket] {
            DiskOp::Read { range, .. } => DiskReply::Data(vec![0; range.bytes()].into()),
            DiskOp::Fetch { range, .. } => {
                let run = Run { range: *range, version: Version::NEVER, mapped: false };
                DiskReply::Runs(vec![run], Bytes::new())
            }
            DiskOp::List { .. } => DiskReply::List(Vec::new(), None),
            DiskOp::Summarise { .. } => DiskReply::Summary(Vec::new()),
            _ => DiskReply::Done,
        }
    }

    fn drain(&mut self) {
        while let Some(effect) = self.replica.poll() {
            match effect {
                Effect::Disk(ticket, op) => {
                    let twice = self.disk.insert(ticket, op);
                    assert!(twice.is_none(), "a ticket was given out twice");
                }
                Effect::Answer { to, id, reply, payload } => self.answered(to, id, &reply, payload.len()),
            }
        }
        assert_eq!(self.replica.is_busy(), !self.disk.is_empty());
    }

    fn answered(&mut self, to: Asker, id: RequestId, reply: &Result<Reply, Refusal>, payload: usize) {
        let asked = self.asked.remove(&(to, id));
        let (object, epoch, change) = asked.unwrap_or_else(|| panic!("{id:?} of {to:?} was answered twice"));
        match reply {
            Ok(Reply::Sealed { .. }) => {
                let written = self.written_down.get(&object).copied().unwrap_or_default();
                assert!(written >= epoch, "sealed before the promise was written down");
                let under_way = self.disk.values().any(|op| changes(op) == Some(object));
                assert!(!under_way, "sealed while a change was under way");
                let sealed = self.sealed.entry(object).or_default();
                assert!(*sealed <= epoch, "an old epoch was sealed after a newer one");
                *sealed = epoch;
            }
            Ok(_) if change => {
                let sealed = self.sealed.get(&object).copied().unwrap_or_default();
                assert!(
                    epoch >= sealed,
                    "a change of {epoch:?} was acknowledged after {sealed:?} was sealed"
                );
                assert!(epoch > Epoch(0), "an epoch that nobody ever had was let in");
            }
            Ok(_) => assert!(epoch > Epoch(0), "an epoch that nobody ever had was let in"),
            Err(refusal) => {
                assert_eq!(payload, 0);
                let _said = refusal.to_string();
            }
        }
    }

    /// The disk answers all that it still owes; then nobody waits but those whose disk died.
    fn settle(&mut self) {
        while let Some(ticket) = self.disk.keys().next().copied() {
            if self.dead {
                return;
            }
            let reply = self.reply(ticket);
            self.disk_answer(ticket, Ok(reply));
            self.drain();
        }
        let waiting = self.asked.keys().find(|(asker, _)| !self.forgotten.contains(asker));
        assert!(self.dead || waiting.is_none(), "{waiting:?} was never answered");
    }
}

fn chunk(source: &mut Source<'_>) -> ChunkId {
    ChunkId { object: object(source.below(OBJECTS)), index: ChunkIndex(source.below(2) as u32) }
}

fn range(source: &mut Source<'_>) -> BlockRange {
    let (first, count) = (source.number() as u32, source.number() as u32);
    BlockRange::new(first, count).unwrap_or_else(|_| BlockRange::one(0).expect("a chunk has a block"))
}

fn subject(request: &Request) -> (ObjectId, Epoch) {
    match request {
        Request::Seal { object, epoch } => (*object, *epoch),
        Request::Write { chunk, version, .. }
        | Request::Zero { chunk, version, .. }
        | Request::Promote { chunk, version, .. }
        | Request::Forget { chunk, version, .. } => (chunk.object, version.epoch),
        Request::Read { chunk, epoch, .. }
        | Request::Fetch { chunk, epoch, .. }
        | Request::Install { chunk, epoch, .. }
        | Request::List { chunk, epoch, .. }
        | Request::Verify { chunk, epoch, .. } => (chunk.object, *epoch),
    }
}

fn changes(op: &DiskOp) -> Option<ObjectId> {
    match op {
        DiskOp::Write { chunk, .. }
        | DiskOp::Zero { chunk, .. }
        | DiskOp::Install { chunk, .. }
        | DiskOp::Promote { to: chunk, .. }
        | DiskOp::Forget { chunk, .. } => Some(chunk.object),
        // Not `Remove`: it concerns a component that no owner knows, and its chunk is refused until it has ended.
        _ => None,
    }
}

/// A request and whether it changes anything.
fn choose(source: &mut Source<'_>) -> (Request, bool) {
    let kind = source.below(10);
    let chunk = chunk(source);
    let epoch = Epoch(if source.rarely(32) { source.number() as u32 } else { source.below(8) as u32 });
    let version = Version { epoch, seq: Seq(source.number()) };
    let watermark = Seq(source.byte().into());
    match kind {
        0..=2 => (Request::Seal { object: chunk.object, epoch }, false),
        3 | 4 => (Request::Write { chunk, range: range(source), version, watermark }, true),
        5 => (Request::Zero { chunk, range: range(source), version, watermark }, true),
        6 => (Request::Read { chunk, epoch, range: range(source) }, false),
        7 => {
            let run =
                |source: &mut Source<'_>| Run { range: range(source), version, mapped: source.rarely(2) };
            let runs = (0..source.below(3)).map(|_| run(source)).collect();
            (Request::Install { chunk, epoch, runs }, true)
        }
        8 => {
            // What is staged belongs to a shard.
            let chunk = ChunkId { index: chunk.index.shard(1), ..chunk };
            let (first, end) = (source.number() as u32, source.number() as u32);
            if source.rarely(2) {
                (Request::Forget { chunk, version, first, end }, true)
            } else {
                (Request::Promote { chunk, extent: first, version, watermark }, true)
            }
        }
        _ if source.rarely(3) => (Request::Fetch { chunk, epoch, range: range(source) }, false),
        _ if source.rarely(2) => {
            (Request::Verify { chunk, epoch, from_block: source.number() as u32 }, false)
        }
        _ => {
            let (since, from_block) = (Seq(source.number()), source.number() as u32);
            (Request::List { chunk, epoch, since, from_block }, false)
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    super::patterns(400)
}
