//! After a change of owner: the log is read through, so that it is known what it holds.
//!
//! What a former owner's job had begun with is not looked for: each row that the log has something of is put into the shards again.
//! Until that is done its parities may be of different generations, which [`super::decode`] takes into account.
//!
//! What a record says is staged is asked of the shards' disks ([`super::found`]): it may be in force, or not, or half.
//!
//! Slots of a record that is not whole are wiped before anything else is written: it was never acknowledged, and what a guest
//! wrote must not be taken for a header by the next who reads the log through.

use std::collections::BTreeSet;
use std::time::Duration;

use ferro_protocol::ids::{ChunkIndex, Seq};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, IO_BLOCKS_MAX};

use super::found::{Look, Looking};
use super::ring::{Found, Ring, Scan};
use super::{Stage, TaskId, Wanted, Work};
use crate::bugs::Bug;
use crate::owner::group::{Group, Phase};
use crate::owner::guest::PieceKind;
use crate::owner::io::{Fault, Got};
use crate::owner::{Owner, Trouble};
use crate::time::Instant;

/// Pieces of the log that are read at once.
const READS_MAX: u32 = 8;

/// A log that could not be read is tried again after so long.
pub(super) const AGAIN: Duration = Duration::from_secs(5);

/// A log that is read through.
#[derive(Debug)]
pub(super) struct Recover {
    /// The slot after those that were asked for.
    at: u32,
    scan: Scan,
    /// What was found, while it is looked for what of the staged is not in force.
    found: Option<Found>,
    looking: Option<Looking>,
    wiping: Vec<Seq>,
}

impl Owner {
    pub(super) fn recover(&mut self, now: Instant, chunk: ChunkIndex) {
        if self.bugs.has(Bug::LogNotRead) {
            return self.recovered(now, chunk);
        }
        let recover =
            Recover { at: 0, scan: Scan::default(), found: None, looking: None, wiping: Vec::new() };
        let id = self.begin_task(chunk, Work::Recover(recover));
        self.recover_more(now, id, chunk);
    }

    fn recover_more(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex) {
        let slots_max = self.config.log_slots;
        let Some(Work::Recover(recover)) = self.tasks.get_mut(&id).map(|t| &mut t.work) else { return };
        let mut wanted = Vec::new();
        while recover.at < slots_max && wanted.len() < READS_MAX as usize {
            let count = IO_BLOCKS_MAX.min(slots_max - recover.at);
            if let Ok(slots) = BlockRange::new(recover.at, count) {
                wanted.push(Wanted::fetch(chunk.log(), slots));
            }
            recover.at += count;
        }
        self.want(now, id, wanted);
    }

    pub(super) fn recover_on(
        &mut self,
        now: Instant,
        id: TaskId,
        chunk: ChunkIndex,
        mut recover: Recover,
        got: Vec<Result<Got, Fault>>,
    ) {
        if !recover.wiping.is_empty() {
            if let Some(stripes) = self.stripes.get_mut(&chunk) {
                for seq in recover.wiping {
                    stripes.log_open.remove(&seq);
                }
            }
            return self.recovered(now, chunk);
        }
        if recover.found.is_some() {
            return self.recover_staged(now, id, chunk, recover, got);
        }
        for got in got {
            match got {
                Ok(Got::Runs(runs, data)) => recover.scan.add(&runs, &data),
                _ => return self.log_lost(now, chunk),
            }
        }
        if recover.at < self.config.log_slots {
            self.put_back(id, chunk, Work::Recover(recover));
            return self.recover_more(now, id, chunk);
        }
        let Ok(found) = std::mem::take(&mut recover.scan).finish(self.config.log_slots, self.bugs) else {
            return self.log_lost(now, chunk);
        };
        recover.found = Some(found);
        self.recover_staged(now, id, chunk, recover, Vec::new());
    }

    /// It is known which of the staged blocks that the log names are not in force, record by record.
    fn recover_staged(
        &mut self,
        now: Instant,
        id: TaskId,
        chunk: ChunkIndex,
        mut recover: Recover,
        got: Vec<Result<Got, Fault>>,
    ) {
        let Some(found) = &mut recover.found else { return };
        if let Some(looking) = &mut recover.looking {
            match self.look(chunk, looking, got) {
                Look::More => {
                    let wanted = looking.next(chunk);
                    self.put_back(id, chunk, Work::Recover(recover));
                    return self.want(now, id, wanted);
                }
                Look::Waits(away) => {
                    self.put_back(id, chunk, Work::Recover(recover));
                    return self.recover_waits(now, id, chunk, away);
                }
                Look::Lost => return self.log_lost(now, chunk),
                Look::Done(seq, blocks) => {
                    self.cached_bytes += blocks.len() * BLOCK_BYTES;
                    found.ring.found(seq, blocks);
                    recover.looking = None;
                }
            }
        }
        let geometry = self.stripes.get(&chunk).map(|s| s.geometry);
        if let (Some((version, blocks)), Some(geometry)) = (found.staged.pop(), geometry) {
            let Some(mut looking) = Looking::new(geometry, version, blocks) else {
                return self.log_lost(now, chunk);
            };
            let wanted = looking.next(chunk);
            recover.looking = Some(looking);
            self.put_back(id, chunk, Work::Recover(recover));
            return self.want(now, id, wanted);
        }
        let Some(Found { ring, wipe, .. }) = recover.found.take() else { return };
        self.wipe(now, id, chunk, ring, wipe);
    }

    /// Too few shards can be asked what they have staged. Those of them that are away leave the in-sync set, as if they had missed a write:
    /// then they can't come back with what is not in force any more.
    fn recover_waits(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, away: BTreeSet<u8>) {
        for shard in away.into_iter().map(|n| chunk.shard(n)) {
            let gone = |group: &Group| group.healthy().filter(|d| !self.usable(*d)).collect::<Vec<_>>();
            for disk in self.groups.get(&shard).map(gone).unwrap_or_default() {
                self.member_failed(now, shard, disk);
            }
        }
        if let Some(stripes) = self.stripes.get_mut(&chunk) {
            stripes.look_again = now + AGAIN / 5;
        }
        self.stall(id, chunk);
    }

    /// Slots that hold no record are unmapped, and the chunk may go on.
    fn wipe(&mut self, now: Instant, id: TaskId, chunk: ChunkIndex, ring: Ring, wipe: Vec<BlockRange>) {
        let first = self.take_seqs(chunk, wipe.len() as u64);
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        stripes.ring = ring;
        let mut wanted = Vec::new();
        let mut wiping = Vec::new();
        for (n, range) in wipe.into_iter().enumerate() {
            let seq = Seq(first.0 + n as u64);
            wiping.push(seq);
            stripes.log_open.insert(seq);
            wanted.push(Wanted { chunk: chunk.log(), range, kind: PieceKind::Zero, seq: Some(seq) });
        }
        self.set_floors(chunk);
        if wiping.is_empty() {
            return self.recovered(now, chunk);
        }
        let at = self.config.log_slots;
        let recover = Recover { at, scan: Scan::default(), found: None, looking: None, wiping };
        self.put_back(id, chunk, Work::Recover(recover));
        self.want(now, id, wanted);
    }

    fn recovered(&mut self, now: Instant, chunk: ChunkIndex) {
        let next = self.groups.get(&chunk.log()).map_or(Seq(0), |log| log.next_seq);
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        stripes.stage = Stage::Ready;
        stripes.heal_before = next;
        self.stripes_serve(now, chunk);
    }

    /// The guest is told whatever it asks for: nothing is known to be what it wrote last.
    fn log_lost(&mut self, now: Instant, chunk: ChunkIndex) {
        let Some(stripes) = self.stripes.get_mut(&chunk) else { return };
        stripes.stage = Stage::Lost { again: Some(now + AGAIN) };
        self.troubles.insert(Trouble::Unreachable(chunk));
        self.stripes_serve(now, chunk);
    }

    fn stripes_serve(&mut self, now: Instant, chunk: ChunkIndex) {
        self.set_floors(chunk);
        self.stripes_busy.insert(chunk);
        if let Some(group) = self.groups.get_mut(&chunk) {
            group.phase = Phase::Serving;
        }
        self.start_backlog(now, chunk);
    }
}
