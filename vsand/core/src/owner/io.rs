//! Guest requests under way: parts that wait for their chunk, their range, their components and the lease.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, DiskId, Role, Seq, Version};
use ferro_protocol::peer::{Refusal, Reply, Request, Run};
use ferro_protocol::units::{BLOCK_BYTES, EXTENT_BLOCKS};

use super::copy::covers;
use super::group::{Group, Holder, Phase, Refusable, Write};
use super::guest::{
    GuestError, GuestRequest, GuestResult, GuestTag, Piece, PieceKind, in_bounds, merge, pieces,
};
use super::links::Purpose;
use super::locks::Mode;
use super::stripes::TaskId;
use super::{Effect, Owner, Trouble};
use crate::bugs::Bug;
use crate::time::{Instant, Now};

/// Names a guest request inside the owner.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct OpId(pub u64);

/// Names a part of a guest request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct PartId(pub u64);

/// What a part brought.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Got {
    /// The change is on every component that must have it.
    Done,
    /// The range's bytes.
    Data(Bytes),
    /// The range as runs, and the bytes of the mapped ones.
    Runs(Vec<Run>, Bytes),
}

/// Why a part brought nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    /// No component that is left can read it.
    Bad,
    /// The component can't be asked now. Only of a shard; what has no other source waits instead.
    Away,
    /// It was asked, and does not answer while it answers others ([`super::stuck`]). Only of a shard; it may answer yet.
    Stuck,
}

/// Who asked for an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Whom {
    Guest(GuestTag),
    /// A task, and which of its requests.
    Task(TaskId, usize),
}

/// A request of the guest, or one of a task.
#[derive(Debug)]
pub(super) struct Op {
    whom: Whom,
    left: usize,
    read: bool,
    data: Vec<Bytes>,
    failed: Option<GuestError>,
}

/// One part of it.
#[derive(Debug)]
pub(super) struct Part {
    op: OpId,
    /// Which of the request's parts it is.
    place: usize,
    pub piece: Piece,
    /// Components whose answer was no good.
    pub tried: BTreeSet<DiskId>,
    /// One of them has not answered at all, and may yet.
    pub stuck: bool,
    asked: Option<DiskId>,
    /// The version that its change shall have, if that is decided already.
    seq: Option<Seq>,
}

impl Op {
    pub(super) fn is_guests(&self) -> bool {
        matches!(self.whom, Whom::Guest(_))
    }
}

impl Owner {
    pub(super) fn start_op(&mut self, now: Instant, tag: GuestTag, request: GuestRequest) {
        let failed = if !in_bounds(&request, self.record.size_bytes) {
            Some(GuestError::BadRange)
        } else if self.config.read_only
            && matches!(request, GuestRequest::Write { .. } | GuestRequest::Zero { .. })
        {
            Some(GuestError::ReadOnly)
        } else {
            None
        };
        if let Some(error) = failed {
            return self.effects.push_back(Effect::Complete { tag, result: GuestResult::Failed(error) });
        }
        let pieces = pieces(&request);
        if pieces.is_empty() {
            // A flush: whatever was completed is stable already.
            return self.effects.push_back(Effect::Complete { tag, result: GuestResult::Done });
        }
        let op = OpId(self.fresh_id());
        let read = matches!(request, GuestRequest::Read { .. });
        let data = if read { vec![Bytes::new(); pieces.len()] } else { Vec::new() };
        let whom = Whom::Guest(tag);
        self.ops.insert(op, Op { whom, left: pieces.len(), read, data, failed: None });
        for (place, piece) in pieces.into_iter().enumerate() {
            let part = PartId(self.fresh_id());
            let tried = BTreeSet::new();
            self.parts.insert(part, Part { op, place, piece, tried, stuck: false, asked: None, seq: None });
            self.admit(now, part);
        }
    }

    /// A task asks for something of a group.
    pub(super) fn start_inner(
        &mut self,
        now: Instant,
        task: TaskId,
        place: usize,
        piece: Piece,
        seq: Option<Seq>,
    ) {
        let op = OpId(self.fresh_id());
        let whom = Whom::Task(task, place);
        self.ops.insert(op, Op { whom, left: 1, read: false, data: Vec::new(), failed: None });
        let part = PartId(self.fresh_id());
        let tried = BTreeSet::new();
        self.parts.insert(part, Part { op, place: 0, piece, tried, stuck: false, asked: None, seq });
        self.admit(now, part);
    }

    /// Lets a part in: it waits for the lease (reads, and what a chunk without a place answers), for the chunk, then for its range.
    pub(super) fn admit(&mut self, now: Instant, id: PartId) {
        let Some(part) = self.parts.get(&id) else { return };
        let piece = &part.piece;
        let (chunk, range) = (piece.chunk, piece.range);
        let read = piece.kind.reads();
        let zero = matches!(piece.kind, PieceKind::Zero);
        let lease_runs = self.lease_runs(now);
        let group = self.groups.entry(chunk).or_insert_with(|| Group::fresh(chunk, None));
        // No component is asked about a chunk without a place: only the lease says that it still has none.
        let by_lease = read || zero && matches!(group.phase, Phase::Unplaced);
        if by_lease && !lease_runs {
            return self.lease_wait.push(id);
        }
        match group.phase {
            Phase::Unplaced if read => return self.end_part(id, Ok(Got::Data(zeros(range.bytes())))),
            Phase::Unplaced if zero && group.backlog.is_empty() => return self.end_part(id, Ok(Got::Done)),
            Phase::Unplaced => {
                group.backlog.push_back(id);
                self.place_wanted.insert(chunk);
                return;
            }
            Phase::Sealing | Phase::Agreeing { .. } => return group.backlog.push_back(id),
            Phase::Serving => {}
        }
        let mode = if read { Mode::Shared } else { Mode::Exclusive };
        if group.locks.lock(Holder::Part(id), range, mode) {
            self.run_part(now, id);
        }
    }

    /// The part has its range.
    fn run_part(&mut self, now: Instant, id: PartId) {
        let Some(part) = self.parts.get(&id) else { return };
        if self.is_striped(part.piece.chunk) {
            return self.run_striped(now, id);
        }
        match &part.piece.kind {
            PieceKind::Read { .. } | PieceKind::Merge { .. } | PieceKind::Fetch | PieceKind::FetchStaged => {
                self.read_part(now, id);
            }
            PieceKind::Write { data } | PieceKind::Stage { data } => {
                let data = data.clone();
                self.write_part(now, id, Some(data));
            }
            PieceKind::Zero | PieceKind::Promote | PieceKind::Forget => self.write_part(now, id, None),
        }
    }

    pub(super) fn read_part(&mut self, now: Instant, id: PartId) {
        let Some(part) = self.parts.get(&id) else { return };
        let (chunk, range) = (part.piece.chunk, part.piece.range);
        let stale = self.bugs.has(Bug::StaleShardDecoded) && matches!(chunk.role(), Role::Shard(_));
        let Some(group) = self.groups.get_mut(&chunk) else { return };
        let best = group
            .members
            .iter()
            .filter(|(disk, member)| {
                (member.in_sync() || stale) && !member.failing && !part.tried.contains(*disk)
            })
            .filter_map(|(disk, _)| Some((*disk, self.links.get(disk)?)))
            .filter(|(_, link)| link.usable())
            .min_by_key(|(disk, link)| {
                (!link.trusted(), !link.local, !self.near.contains(disk), link.outstanding, *disk)
            });
        let Some((disk, _)) = best else {
            let untried = group.in_sync().any(|disk| !part.tried.contains(&disk));
            if matches!(chunk.role(), Role::Shard(_)) {
                // Other shards make up for it.
                let fault = match (part.stuck, untried || part.tried.is_empty()) {
                    (true, _) => Fault::Stuck,
                    (false, true) => Fault::Away,
                    (false, false) => Fault::Bad,
                };
                self.end_part(id, Err(fault));
                self.unlock(now, chunk, Holder::Part(id));
            } else if untried {
                group.stalled.push(id);
                self.troubles.insert(Trouble::Unreachable(chunk));
            } else {
                self.end_part(id, Err(Fault::Bad));
                self.unlock(now, chunk, Holder::Part(id));
            }
            return;
        };
        let epoch = self.epoch;
        let request = match part.piece.kind {
            PieceKind::Fetch => Request::Fetch { chunk: self.chunk_id(chunk), epoch, range },
            PieceKind::FetchStaged => Request::Fetch { chunk: self.chunk_id(chunk.staged()), epoch, range },
            _ => Request::Read { chunk: self.chunk_id(chunk), epoch, range },
        };
        if let Some(part) = self.parts.get_mut(&id) {
            part.asked = Some(disk);
        }
        self.ask(now, disk, Purpose::Read(id), request, Bytes::new());
    }

    /// Whether the part could be read from another disk than this one.
    pub(super) fn another_source(&self, part: PartId, asked: DiskId) -> bool {
        let Some(part) = self.parts.get(&part) else { return false };
        let chunk = part.piece.chunk;
        self.can_decode(chunk)
            || self.groups.get(&chunk).is_some_and(|group| {
                group.healthy().any(|disk| disk != asked && !part.tried.contains(&disk) && self.usable(disk))
            })
    }

    pub(super) fn read_answered(
        &mut self,
        now: Now,
        id: PartId,
        from: DiskId,
        reply: Result<Reply, Refusal>,
        payload: Bytes,
    ) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        let (chunk, range) = (part.piece.chunk, part.piece.range);
        part.asked = None;
        match reply {
            Ok(Reply::Data) if payload.len() == range.bytes() => {
                if let PieceKind::Merge { skip, data } = &part.piece.kind {
                    let merged = merge(&payload, *skip, data);
                    return self.write_part(now.mono, id, Some(merged));
                }
                self.end_read(now.mono, id, chunk, Got::Data(payload));
            }
            Ok(Reply::Runs(runs))
                if matches!(part.piece.kind, PieceKind::Fetch | PieceKind::FetchStaged)
                    && covers(&runs, range, payload.len()) =>
            {
                self.end_read(now.mono, id, chunk, Got::Runs(runs, payload));
            }
            Err(Refusal::BadBlocks { bad }) => {
                part.tried.insert(from);
                let staged = part.piece.kind == PieceKind::FetchStaged;
                self.read_part(now.mono, id);
                if !staged {
                    self.mend(now.mono, chunk, from, &bad);
                }
            }
            _ => {
                part.tried.insert(from);
                self.read_part(now.mono, id);
            }
        }
    }

    fn end_read(&mut self, now: Instant, id: PartId, chunk: ChunkIndex, got: Got) {
        if self.lease_runs(now) {
            self.end_part(id, Ok(got));
        } else {
            // Somebody else may own the object by now: read again when the lease is renewed.
            self.lease_wait.push(id);
        }
        self.unlock(now, chunk, Holder::Part(id));
    }

    /// Sends a write to every component that must have it.
    fn write_part(&mut self, now: Instant, id: PartId, data: Option<Bytes>) {
        let Some(part) = self.parts.get(&id) else { return };
        let (chunk, range, decided) = (part.piece.chunk, part.piece.range, part.seq);
        let refusal = if part.piece.kind.is_refusable() { Refusable::Yes } else { Refusable::No };
        let staged_id = self.chunk_id(chunk.staged());
        let (whole, epoch, chunk_id) = (self.bugs.has(Bug::WrongWatermark), self.epoch, self.chunk_id(chunk));
        let skip_joining = self.bugs.has(Bug::ResyncSkipsWrites);
        let Some(group) = self.groups.get_mut(&chunk) else { return };
        let seq = decided.unwrap_or(group.next_seq);
        let watermark = if whole { seq } else { group.watermark() };
        group.next_seq = group.next_seq.max(seq.next());
        let required: BTreeSet<DiskId> =
            group.required().filter(|d| !skip_joining || group.members[d].in_sync()).collect();
        let write = Write { part: id, pending: required.clone(), progress: now, refusal };
        group.writes.insert(seq, write);
        let version = Version { epoch, seq };
        let extents = (range.first() / EXTENT_BLOCKS, range.end().div_ceil(EXTENT_BLOCKS));
        let request = match (&part.piece.kind, &data) {
            (PieceKind::Stage { .. }, _) => Request::Write { chunk: staged_id, range, version, watermark },
            (PieceKind::Promote, _) => {
                Request::Promote { chunk: chunk_id, extent: extents.0, version, watermark }
            }
            (PieceKind::Forget, _) => {
                Request::Forget { chunk: chunk_id, version, first: extents.0, end: extents.1 }
            }
            (_, Some(_)) => Request::Write { chunk: chunk_id, range, version, watermark },
            (_, None) => Request::Zero { chunk: chunk_id, range, version, watermark },
        };
        let payload = data.unwrap_or_default();
        for disk in required {
            self.ask(now, disk, Purpose::Write { chunk, seq }, request.clone(), payload.clone());
            if self.links.get(&disk).is_some_and(|l| l.silent || l.dead) {
                self.member_failed(now, chunk, disk);
            }
        }
        // A shard that is not in sync has nobody to wait for.
        self.finish_write(now, chunk, seq);
    }

    pub(super) fn member_failed(&mut self, now: Instant, chunk: ChunkIndex, disk: DiskId) {
        let Some(member) = self.groups.get_mut(&chunk).and_then(|g| g.members.get_mut(&disk)) else { return };
        if member.resync.is_some() {
            self.abort_resync(now, chunk, disk);
        } else if member.in_sync() && !member.failing {
            member.failing = true;
            self.shrink_wanted.insert(chunk);
        }
    }

    pub(super) fn write_answered(
        &mut self,
        now: Instant,
        chunk: ChunkIndex,
        seq: Seq,
        from: DiskId,
        refused: bool,
    ) {
        let Some(write) = self.groups.get_mut(&chunk).and_then(|g| g.writes.get_mut(&seq)) else { return };
        write.pending.remove(&from);
        if refused && write.refusal == Refusable::Yes {
            write.refusal = Refusable::Refused;
        }
        write.progress = now;
        self.finish_write(now, chunk, seq);
    }

    /// Completes the write if nothing is waited for any more.
    pub(super) fn finish_write(&mut self, now: Instant, chunk: ChunkIndex, seq: Seq) {
        let early = self.bugs.has(Bug::ShrinkAfterAck);
        let Some(group) = self.groups.get_mut(&chunk) else { return };
        let Some(write) = group.writes.get(&seq) else { return };
        let done = if early {
            write.pending.iter().all(|d| group.members.get(d).is_none_or(|m| m.failing))
        } else {
            write.pending.is_empty()
        };
        if !done {
            return;
        }
        if let Some(write) = group.writes.remove(&seq) {
            let refused = write.refusal == Refusable::Refused;
            self.end_part(write.part, if refused { Err(Fault::Bad) } else { Ok(Got::Done) });
            self.unlock(now, chunk, Holder::Part(write.part));
        }
    }

    /// Gives a range up and lets those go on that waited for it.
    pub(super) fn unlock(&mut self, now: Instant, chunk: ChunkIndex, holder: Holder) {
        let Some(group) = self.groups.get_mut(&chunk) else { return };
        for holder in group.locks.unlock(holder) {
            match holder {
                Holder::Part(part) => self.run_part(now, part),
                Holder::Copy(copy) => self.fetch(now, copy),
            }
        }
    }

    pub(super) fn end_part(&mut self, id: PartId, result: Result<Got, Fault>) {
        let Some(part) = self.parts.remove(&id) else { return };
        let Some(op) = self.ops.get_mut(&part.op) else { return };
        let tag = match op.whom {
            Whom::Guest(tag) => tag,
            Whom::Task(task, place) => {
                self.ops.remove(&part.op);
                return self.task_answered(task, place, result);
            }
        };
        op.left -= 1;
        match result {
            Ok(Got::Data(data)) => {
                if let PieceKind::Read { skip, len } = part.piece.kind {
                    op.data[part.place] = data.slice(skip..skip + len);
                }
            }
            Ok(Got::Done | Got::Runs(..)) => {}
            Err(_) => op.failed = Some(GuestError::Lost),
        }
        if op.left > 0 {
            return;
        }
        let Some(op) = self.ops.remove(&part.op) else { return };
        let result = match op.failed {
            Some(error) => GuestResult::Failed(error),
            None if op.read => GuestResult::Data(op.data),
            None => GuestResult::Done,
        };
        self.effects.push_back(Effect::Complete { tag, result });
    }

    /// The chunk serves now: what waited for that goes on, in order.
    pub(super) fn start_backlog(&mut self, now: Instant, chunk: ChunkIndex) {
        let Some(group) = self.groups.get_mut(&chunk) else { return };
        for part in std::mem::take(&mut group.backlog) {
            self.admit(now, part);
        }
    }

    /// Reads of these chunks that asked this disk ask another.
    pub(super) fn reroute_reads(&mut self, now: Instant, disk: DiskId, of: impl Fn(ChunkIndex) -> bool) {
        let parts: Vec<PartId> = self
            .asks
            .values()
            .filter(|a| a.disk == disk)
            .filter_map(|a| if let Purpose::Read(part) = a.purpose { Some(part) } else { None })
            .filter(|part| self.parts.get(part).is_some_and(|part| of(part.piece.chunk)))
            .collect();
        for part in parts {
            self.cancel_asks(|a| a.purpose == Purpose::Read(part));
            self.read_part(now, part);
        }
    }

    /// A component may answer again: reads that found none are tried again.
    pub(super) fn unstall(&mut self, now: Instant) {
        self.unstall_stripes();
        let chunks: Vec<ChunkIndex> =
            self.groups.values().filter(|g| !g.stalled.is_empty()).map(|g| g.index).collect();
        for chunk in chunks {
            self.troubles.remove(&Trouble::Unreachable(chunk));
            let stalled =
                self.groups.get_mut(&chunk).map(|g| std::mem::take(&mut g.stalled)).unwrap_or_default();
            for part in stalled {
                self.read_part(now, part);
            }
        }
    }
}

fn zeros(bytes: usize) -> Bytes {
    static ZEROS: [u8; 64 * BLOCK_BYTES] = [0; 64 * BLOCK_BYTES];
    if bytes <= ZEROS.len() { Bytes::from_static(&ZEROS[..bytes]) } else { Bytes::from(vec![0; bytes]) }
}
