//! The owner and the directory: what must be proposed next, and what a changed record means.

use std::collections::BTreeSet;
use std::sync::Arc;

use ferro_protocol::ids::{ChunkIndex, DiskId, Role};

use super::background::Moving;
use super::group::{Group, Member, Phase};
use super::links::Purpose;
use super::{Effect, Owner, ProposalId, Trouble};
use crate::bugs::Bug;
use crate::directory::{Basis, Command, ObjectRecord, Outcome, Refused, Sync, SyncChange};
use crate::time::{Instant, Now};

/// The proposal that is under way.
#[derive(Debug)]
pub(super) struct Proposal {
    id: ProposalId,
    /// The chunk that it is to place, or to give a new component.
    chunk: Option<ChunkIndex>,
    /// It begins the move of a component.
    moves: bool,
    /// It trims a component, perhaps by the first of two steps.
    trims: bool,
    /// No guest waits for it.
    background: bool,
}

impl Owner {
    /// What became of a proposal: the directory's answer, or `None` if it is not known whether it was carried out.
    pub fn handle_proposal(&mut self, now: Now, id: ProposalId, result: Option<Result<Outcome, Refused>>) {
        if self.fenced || self.proposal.as_ref().is_none_or(|p| p.id != id) {
            return;
        }
        let proposal = self.proposal.take();
        let chunk = proposal.as_ref().and_then(|p| p.chunk);
        self.directory_silent = result.is_none();
        match result {
            Some(Ok(Outcome::Object(record))) => {
                self.apply_record(now, &record);
                if proposal.as_ref().is_some_and(|p| p.trims) {
                    // Only the next step takes it out of the record.
                    self.next_check = now.mono;
                    self.check_stale(now);
                }
            }
            Some(Ok(_)) => {}
            Some(Err(Refused::Overtaken(record))) => {
                if record.revision == self.record.revision {
                    // Nothing was overtaken: the command itself does not fit. Look again in a while.
                    self.propose_after = now.mono + self.config.retry_after;
                }
                self.apply_record(now, &record);
            }
            Some(Err(Refused::WrongEpoch { .. } | Refused::NoObject(_) | Refused::NotHolder(_))) => {
                self.fence();
            }
            Some(Err(Refused::NoRoom { .. })) => {
                if let Some(chunk) = chunk {
                    if self.place_wanted.contains(&chunk) {
                        self.troubles.insert(Trouble::NoPlace(chunk));
                    }
                    self.repair_wanted.remove(&chunk);
                    self.no_room_elsewhere(chunk);
                }
                // Guests that wait for a component to be taken out must not wait for this too, nor for a place because of a repair.
                let after = now.mono + self.config.retry_after * 10;
                if proposal.as_ref().is_some_and(|p| p.background) {
                    self.background_after = after;
                } else {
                    self.place_after = after;
                }
            }
            Some(Err(_)) => {
                if let Some(chunk) = chunk {
                    self.repair_wanted.remove(&chunk);
                    self.trim_wanted.remove(&chunk);
                }
                if proposal.as_ref().is_some_and(|p| p.trims) {
                    // Another is the one to go: the directory says which.
                    self.vacated = None;
                }
                let after = now.mono + self.config.retry_after;
                if proposal.as_ref().is_some_and(|p| p.background) {
                    self.background_after = after;
                } else {
                    self.propose_after = after;
                }
            }
            None => {
                self.troubles.insert(Trouble::NoDirectory);
                self.propose_after = now.mono + self.config.retry_after;
            }
        }
        if proposal.is_some_and(|p| p.moves) {
            self.move_answered();
        }
        if !self.directory_silent {
            self.troubles.remove(&Trouble::NoDirectory);
        }
        self.settle(now);
    }

    /// The directory's record of the object as it is now; `None` when it is gone.
    pub fn handle_record(&mut self, now: Now, record: Option<&Arc<ObjectRecord>>) {
        if self.fenced {
            return;
        }
        match record {
            Some(record) => self.apply_record(now, record),
            None => self.fence(),
        }
        self.settle(now);
    }

    fn apply_record(&mut self, now: Now, record: &Arc<ObjectRecord>) {
        if record.epoch > self.epoch || (record.epoch == self.epoch && record.lock.is_none()) {
            // Somebody else has taken it, or an administrator has broken the lock.
            if record.revision > self.record.revision {
                return self.fence();
            }
        }
        if record.revision <= self.record.revision {
            return;
        }
        let before = std::mem::replace(&mut self.record, Arc::clone(record));
        self.degraded = !record.settled();
        self.check_move();
        // What is wanted of a chunk was decided by how it was.
        self.repair_wanted.retain(|index, _| before.chunks.get(index) == record.chunks.get(index));
        self.trim_wanted.retain(|index| before.chunks.get(index) == record.chunks.get(index));
        let mut placed = Vec::new();
        for (index, chunk) in &record.chunks {
            let group = self.groups.entry(*index).or_insert_with(|| Group::fresh(*index, None));
            if matches!(group.phase, Phase::Unplaced) {
                let backlog = std::mem::take(&mut group.backlog);
                *group = Group::fresh(*index, Some(chunk));
                group.backlog = backlog;
                placed.push(*index);
                self.place_wanted.remove(&index.base());
                self.troubles.remove(&Trouble::NoPlace(index.base()));
            }
        }
        let indexes: Vec<ChunkIndex> = self.groups.keys().copied().collect();
        for index in indexes {
            self.apply_members(now.mono, index);
        }
        for index in placed {
            if index.role() == Role::Log {
                self.begin_stripes(now.mono, index.base(), true);
            }
            self.start_backlog(now.mono, index);
        }
    }

    /// Brings one chunk's members in line with the record.
    fn apply_members(&mut self, now: Instant, index: ChunkIndex) {
        let Some(record) = self.record.chunks.get(&index).cloned() else { return };
        let Some(group) = self.groups.get(&index) else { return };
        let is_there = |disk: &DiskId| record.components.iter().any(|c| c.disk == *disk);
        let mut dropped: BTreeSet<DiskId> = group.members.keys().filter(|d| !is_there(d)).copied().collect();
        for disk in &dropped {
            self.drop_resync(now, index, *disk);
        }
        let Some(group) = self.groups.get_mut(&index) else { return };
        group.members.retain(|disk, _| is_there(disk));
        let mut joined = Vec::new();
        let mut not_joined = Vec::new();
        for component in &record.components {
            let member = group.members.entry(component.disk).or_insert_with(|| Member::new(component.sync));
            if !component.in_sync()
                && member.failing
                && let Some(resync) = member.resync.as_mut().filter(|r| r.is_joining())
            {
                // The record is newer than what the proposal to add it was based on: it will not be added by that.
                resync.not_joined();
                member.failing = false;
                not_joined.push(component.disk);
            }
            if member.sync == component.sync {
                continue;
            }
            match (member.in_sync(), component.in_sync()) {
                (true, false) => {
                    member.failing = false;
                    member.retry_at = now + self.config.retry_after * 5;
                    dropped.insert(component.disk);
                }
                (false, true) => {
                    // Writes under way go on waiting for it.
                    member.resync = None;
                    joined.push(component.disk);
                    self.join_wanted.remove(&(index, component.disk));
                }
                _ => {}
            }
            member.sync = component.sync;
        }
        if group.members.values().all(|m| !m.failing) {
            self.shrink_wanted.remove(&index);
        }
        let disks: Vec<DiskId> = group.members.keys().copied().collect();
        for disk in disks {
            self.link(now, disk);
        }
        if !dropped.is_empty() {
            self.drop_members(now, index, &dropped);
        }
        for disk in not_joined {
            self.abort_resync(now, index, disk);
        }
        if !joined.is_empty() {
            self.forget_lists(index, |disk| joined.contains(&disk));
            self.unstall(now);
        }
        self.try_agree(now, index);
    }

    /// These components are out of the in-sync set, in the directory: nothing waits for them any more, and nothing that they still answer
    /// counts. What is not in the record any more may be gone from its disk, and a read of it finds zeros there.
    fn drop_members(&mut self, now: Instant, index: ChunkIndex, dropped: &BTreeSet<DiskId>) {
        self.cancel_asks(|a| {
            dropped.contains(&a.disk) && matches!(a.purpose, Purpose::Write { chunk, .. } if chunk == index)
        });
        let copies: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, c)| {
                c.chunk == index && dropped.iter().any(|d| c.targets.contains(d) || c.source == Some(*d))
            })
            .map(|(id, _)| *id)
            .collect();
        for copy in copies {
            self.end_copy(now, copy, false);
        }
        for disk in dropped {
            self.join_wanted.remove(&(index, *disk));
            if !self.bugs.has(Bug::GoneAnswered) {
                self.reroute_reads(now, *disk, |chunk| chunk == index);
            }
        }
        for listed in self.listed_at(index) {
            self.abort_listings_of(now, listed, dropped);
        }
        let Some(group) = self.groups.get_mut(&index) else { return };
        if matches!(group.phase, Phase::Agreeing { .. }) {
            self.agree_again(now, index);
        }
        let Some(group) = self.groups.get_mut(&index) else { return };
        let seqs: Vec<_> = group.writes.keys().copied().collect();
        for seq in seqs {
            if let Some(write) = self.groups.get_mut(&index).and_then(|g| g.writes.get_mut(&seq)) {
                write.pending.retain(|disk| !dropped.contains(disk));
            }
            self.finish_write(now, index, seq);
        }
    }

    pub(super) fn wants_proposal(&self) -> bool {
        !(self.shrink_wanted.is_empty()
            && self.place_wanted.is_empty()
            && self.join_wanted.is_empty()
            && self.repair_wanted.is_empty()
            && self.trim_wanted.is_empty()
            && self.moving.is_none_or(|moving| !moving.wanted))
    }

    /// Proposes what is most urgent, if nothing is under way.
    pub(super) fn propose_next(&mut self, now: Now) {
        if self.fenced || self.proposal.is_some() || now.mono < self.propose_after || !self.wants_proposal() {
            return;
        }
        let basis = Basis { object: self.record.id, epoch: self.epoch, revision: self.record.revision };
        let mut changes = self.removals();
        changes.extend(self.additions());
        let unix_s = now.unix_s;
        let (command, chunk) = if !changes.is_empty() {
            (Command::ChangeSync { basis, changes, unix_s }, None)
        } else if let Some(chunk) =
            self.place_wanted.first().copied().filter(|_| now.mono >= self.place_after)
        {
            (Command::PlaceChunk { basis, chunk, near: self.config.me }, Some(chunk))
        } else if now.mono < self.background_after {
            return;
        } else if let Some(chunk) = self.trim_wanted.first().copied() {
            (self.trim_command(basis, chunk, unix_s), Some(chunk))
        } else if let Some((chunk, drop)) = self.repair_wanted.first_key_value().map(|(c, d)| (*c, *d)) {
            (Command::Repair { basis, chunk, drop, unix_s }, Some(chunk))
        } else if let Some(moving) = self.moving.filter(|moving| moving.wanted) {
            let Moving { chunk, from, to, .. } = moving;
            let command = match to {
                Some(to) => Command::MoveTo { basis, chunk, from, to, unix_s },
                None => Command::Move { basis, chunk, from, unix_s },
            };
            (command, Some(chunk))
        } else {
            return;
        };
        let id = ProposalId(self.fresh_id());
        let moves = matches!(command, Command::Move { .. } | Command::MoveTo { .. });
        let trims = matches!(command, Command::Trim { .. } | Command::TrimFrom { .. });
        let background = moves || trims || matches!(command, Command::Repair { .. });
        self.proposal = Some(Proposal { id, chunk, moves, trims, background });
        self.effects.push_back(Effect::Propose { id, command });
    }

    /// Components that failed, unless no other one is left.
    fn removals(&self) -> Vec<SyncChange> {
        let mut changes = Vec::new();
        for index in &self.shrink_wanted {
            let Some(group) = self.groups.get(index) else { continue };
            if !self.can_shrink(*index) {
                continue;
            }
            // While sealing, what is acknowledged is known only from those that have answered.
            let stale_seq = match index.role() {
                Role::Shard(_) => self.shards_watermark(*index),
                Role::Whole | Role::Log => {
                    let silent = matches!(group.phase, Phase::Sealing) && group.summaries.is_empty();
                    (!silent).then(|| group.watermark())
                }
            };
            let Some(stale_seq) = stale_seq else { continue };
            for (disk, member) in &group.members {
                let joining = member.resync.as_ref().is_some_and(super::resync::Resync::is_joining);
                if member.failing && (member.in_sync() || joining) {
                    changes.push(SyncChange::Remove { chunk: *index, disk: *disk, stale_seq });
                }
            }
        }
        changes
    }

    fn additions(&mut self) -> Vec<SyncChange> {
        let mut changes = Vec::new();
        for (chunk, disk) in self.join_wanted.clone() {
            let member = self.groups.get_mut(&chunk).and_then(|g| g.members.get_mut(&disk));
            let failing = member.as_ref().is_some_and(|m| m.failing);
            match member.and_then(|m| m.resync.as_mut()) {
                Some(_) if failing => {}
                Some(resync) => {
                    resync.set_joining();
                    changes.push(SyncChange::Add { chunk, disk });
                }
                None => {
                    self.join_wanted.remove(&(chunk, disk));
                }
            }
        }
        changes
    }
}

impl Sync {
    /// When the component fell out, in seconds since 1970.
    pub(super) fn stale_since(self) -> Option<u64> {
        match self {
            Self::InSync => None,
            Self::Stale { since_unix_s, .. } => Some(since_unix_s),
        }
    }
}
