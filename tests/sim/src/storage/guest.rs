//! Guests: they keep a few reads and writes going on a few blocks, so that much overlaps, and remember what they were told.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use ferro_protocol::units::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES, SECTOR_BYTES};
use vsand_core::directory::{LockKind, Policy};
use vsand_core::owner::guest::{GuestError, GuestRequest, GuestResult, GuestTag};

use super::dice::{Dice, MS, S};
use super::event::{Event, OwnerKey};
use super::history::{Kind, OpId};
use super::world::{STALL_MAX, World};

const SECTOR: usize = SECTOR_BYTES as usize;
const BLOCK_SECTORS: u64 = (BLOCK_BYTES / SECTOR) as u64;

/// Where an object is used.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub size_bytes: u64,
    /// What it grows to, should it grow.
    pub grown_bytes: u64,
    pub policy: Policy,
    /// It is to be deleted, or is.
    pub doomed: bool,
    /// First block and number of blocks.
    hot: Vec<(u64, u64)>,
    think: u64,
}

impl Layout {
    pub(super) fn roll(dice: &mut Dice, policy: Policy) -> Self {
        let chunk = u64::from(CHUNK_BLOCKS);
        let two = dice.permille(600);
        // On a wide disk most of what one owner did is not overwritten by the next.
        let wide = dice.permille(300);
        let start = if wide { dice.between(80, 200) } else { dice.between(6, 24) };
        let mut hot = vec![(0, start)];
        if two {
            let around = dice.between(2, 8);
            hot.push((chunk - around, 2 * around));
        } else if dice.permille(500) {
            hot.push((60_000, dice.between(2, 10)));
        }
        let size_bytes = if two { CHUNK_BYTES + (1 << 20) } else { CHUNK_BYTES };
        // Around what is the end until it grows.
        let end = size_bytes / BLOCK_BYTES as u64;
        let more = dice.between(1, 8);
        hot.push((end - 3, 3 + more));
        let grown_bytes = size_bytes + more.next_multiple_of(2) * BLOCK_BYTES as u64;
        let think = dice.between(6 * MS, 30 * MS);
        Self { size_bytes, grown_bytes, policy, doomed: false, hot, think }
    }
}

/// An operation that its guest waits for.
#[derive(Clone, Debug)]
struct Waiting {
    /// Nothing for a flush.
    op: Option<OpId>,
    read: bool,
    /// It must be refused.
    refused: bool,
    sectors: u64,
    since: u64,
}

/// A guest on one owner.
#[derive(Debug, Default)]
pub(super) struct Session {
    waiting: BTreeMap<GuestTag, Waiting>,
    next_tag: u64,
}

impl Session {
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl World {
    /// The guest begins something, if it has not too much under way.
    pub(super) fn guest_step(&mut self, host: usize, key: OwnerKey) {
        let Some(running) = self.hosts[host].owners.get(&key.object) else { return };
        let Some(session) = &running.session else { return };
        if running.owner.epoch() != key.epoch || running.closing || self.stopping {
            return;
        }
        let reads = session.waiting.values().filter(|w| w.read).count();
        let writes = session.waiting.len() - reads;
        let layout = &self.objects[key.object];
        let think = layout.think;
        let blocks = running.owner.record().size_bytes / BLOCK_BYTES as u64;
        let read_only = running.kind == LockKind::Exclusive { read_only: true };
        let hot: Vec<(u64, u64)> =
            layout.hot.iter().copied().filter(|(first, count)| first + count <= blocks).collect();
        let policy = layout.policy;
        let mut area = hot[self.dice.below(hot.len())];
        for _ in writes..if read_only { 0 } else { 4 } {
            let Some((first, count)) = self.streams.next(key.object, policy) else { break };
            let id = self.next_write;
            self.next_write += 1;
            self.begin(host, key, Kind::Write(id), first * BLOCK_SECTORS, count * BLOCK_SECTORS);
        }
        if let Some(within) = self.streams.within(policy) {
            area = within;
        }
        let (first, count) = area;
        let sectors_end = (first + count) * BLOCK_SECTORS;
        let mut at = (first + self.dice.below(count as usize) as u64) * BLOCK_SECTORS;
        let mut sectors = BLOCK_SECTORS * if self.dice.permille(700) { 1 } else { self.dice.between(2, 6) };
        if self.dice.permille(200) {
            at += self.dice.between(0, 7);
            sectors = self.dice.between(1, 20);
        }
        let sectors = sectors.min(sectors_end - at);
        let choice = self.dice.below(100);
        if choice < 45 {
            if reads < 10 {
                self.begin(host, key, Kind::Read, at, sectors);
            }
        } else if choice < 95 && read_only {
            if writes < 5 && self.dice.permille(200) {
                let (offset, bytes) = (at * SECTOR_BYTES, sectors * SECTOR_BYTES);
                self.submit_guest(host, key, None, GuestRequest::Zero { offset, bytes }, true);
            }
        } else if choice < 95 {
            if writes < 5 {
                let id = if choice < 86 { self.next_write } else { 0 };
                self.next_write += 1;
                self.begin(host, key, Kind::Write(id), at, sectors);
            }
        } else if writes < 5 {
            self.submit_guest(host, key, None, GuestRequest::Flush, false);
        }
        let process = self.process(host);
        let delay = self.dice.delay(think);
        self.after(delay, Event::GuestStep(process, key));
    }

    fn begin(&mut self, host: usize, key: OwnerKey, kind: Kind, at: u64, sectors: u64) {
        let (offset, bytes) = (at * SECTOR_BYTES, sectors * SECTOR_BYTES);
        let request = match kind {
            Kind::Read => GuestRequest::Read { offset, bytes },
            Kind::Write(0) => GuestRequest::Zero { offset, bytes },
            Kind::Write(id) => GuestRequest::Write { offset, data: pattern(id, at, sectors) },
        };
        let op = self.history.begin(key.object, key.epoch, kind, at, sectors);
        self.trace(|| format!("h{host} o{} guest op {} {kind:?} sector {at}+{sectors}", key.object, op.0));
        self.submit_guest(host, key, Some((op, sectors)), request, false);
    }

    fn submit_guest(
        &mut self,
        host: usize,
        key: OwnerKey,
        op: Option<(OpId, u64)>,
        request: GuestRequest,
        refused: bool,
    ) {
        let read = matches!(request, GuestRequest::Read { .. } | GuestRequest::Flush);
        let (op, sectors) = op.map_or((None, 0), |(op, sectors)| (Some(op), sectors));
        let since = self.now;
        let Some(session) = self.hosts[host].owners.get_mut(&key.object).and_then(|r| r.session.as_mut())
        else {
            return;
        };
        session.next_tag += 1;
        let tag = GuestTag(session.next_tag);
        session.waiting.insert(tag, Waiting { op, read, refused, sectors, since });
        self.with_owner(host, key.object, |owner, now| owner.handle_guest(now, tag, request));
    }

    /// The owner has ended a guest's request.
    pub(super) fn guest_ended(&mut self, host: usize, key: OwnerKey, tag: GuestTag, result: GuestResult) {
        let session = self.hosts[host].owners.get_mut(&key.object).and_then(|r| r.session.as_mut());
        let Some(waiting) = session.and_then(|s| s.waiting.remove(&tag)) else {
            return self
                .violate(format!("o{} completed a request twice or never asked: {tag:?}", key.object));
        };
        self.completed += 1;
        self.note_wait(self.now - waiting.since, key.object);
        let Some(op) = waiting.op else {
            if waiting.refused != (result == GuestResult::Failed(GuestError::ReadOnly)) {
                self.violate(format!("o{}: a request without data ended with {result:?}", key.object));
            }
            return;
        };
        self.trace(|| {
            let how = match &result {
                GuestResult::Failed(error) => format!("failed: {error}"),
                _ => "done".to_owned(),
            };
            format!("h{host} o{} guest op {} {how}", key.object, op.0)
        });
        match result {
            GuestResult::Failed(error) => {
                self.history.fail(op);
                self.check_failure(key.object, op, error);
            }
            GuestResult::Done => {
                self.check_stable(key, op);
                self.history.end(op, Vec::new());
            }
            GuestResult::Data(pieces) => {
                let mut bytes = BytesMut::new();
                for piece in pieces {
                    bytes.extend_from_slice(&piece);
                }
                let at = self.history.ops[op.0].first_sector;
                match self.decode(&bytes, at, waiting.sectors) {
                    Ok(saw) => self.history.end(op, saw),
                    Err(what) => {
                        self.violate(format!("o{} op {}: wrong bytes: {what}", key.object, op.0));
                    }
                }
            }
        }
    }

    fn decode(&self, bytes: &[u8], at: u64, sectors: u64) -> Result<Vec<u64>, String> {
        if bytes.len() as u64 != sectors * SECTOR_BYTES {
            return Err(format!("{} bytes for {sectors} sectors", bytes.len()));
        }
        let decode = |(n, sector): (usize, &[u8])| decode_sector(sector, at + n as u64, self.next_write);
        bytes.chunks(SECTOR).enumerate().map(decode).collect()
    }

    fn note_wait(&mut self, ns: u64, object: usize) {
        if !self.faulty {
            // A disk that thawed early still owes its old answers: no real disk does.
            return;
        }
        self.stall_max = self.stall_max.max(ns);
        if ns > STALL_MAX && self.profile.one_at_a_time() {
            self.violate(format!(
                "a guest of o{object} waited {} ms while only one thing had failed",
                ns / MS
            ));
        }
    }

    /// Looks for guests that wait too long, where they must not.
    pub(super) fn check_waits(&mut self) {
        let oldest = self
            .hosts
            .iter()
            .flat_map(|h| &h.owners)
            .filter(|(_, r)| matches!(r.kind, LockKind::Exclusive { .. }))
            .flat_map(|(object, r)| {
                r.session.iter().flat_map(|s| s.waiting.values()).map(|w| (w.since, *object))
            })
            .min();
        if let Some((since, object)) = oldest
            && self.now - since > 2 * S
        {
            self.note_wait(self.now - since, object);
        }
    }
}

/// What a write puts into its sectors: its number, where it belongs, and its number again.
fn pattern(id: u64, at: u64, sectors: u64) -> Bytes {
    let mut data = BytesMut::zeroed(sectors as usize * SECTOR);
    for (n, sector) in data.chunks_mut(SECTOR).enumerate() {
        sector[..8].copy_from_slice(&id.to_le_bytes());
        sector[8..16].copy_from_slice(&(at + n as u64).to_le_bytes());
        sector[SECTOR - 8..].copy_from_slice(&id.to_le_bytes());
    }
    data.freeze()
}

/// The number of the write that a sector comes from.
pub(super) fn decode_sector(sector: &[u8], at: u64, next_write: u64) -> Result<u64, String> {
    let word = |from: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&sector[from..from + 8]);
        u64::from_le_bytes(bytes)
    };
    let (id, place, again) = (word(0), word(8), word(SECTOR - 8));
    let zero = id == 0 && place == 0 && again == 0;
    if zero || (id == again && place == at && id < next_write) {
        Ok(id)
    } else {
        Err(format!("sector {at} holds {id:#x} {place:#x} {again:#x}"))
    }
}
