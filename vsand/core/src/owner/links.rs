//! What the owner knows of each disk: whether it can be reached, whether it was sealed, whether it answers.
//!
//! A request to a disk that can't be reached or is not sealed yet is held and sent when it can be; after a reconnection all
//! unanswered requests are sent again (each is idempotent: a block that has a write's version already skips it). A
//! disk is *silent* when it owes answers and has given none for [`super::Config::silence_max`]: busy disks are never
//! silent, a frozen one is even while its host answers pings.

use std::collections::BTreeSet;

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, DiskId};
use ferro_protocol::peer::{ChunkSummary, Refusal, Reply, Request, RequestId};

use super::copy::CopyId;
use super::group::{Phase, Refusable};
use super::io::PartId;
use super::stuck::Pace;
use super::{Effect, Owner, Trouble};
use crate::time::{Instant, Now};
use ferro_protocol::ids::Seq;

/// The seal of this owner's epoch on one disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Seal {
    No,
    Asked,
    Done,
}

/// One disk as this owner sees it.
#[derive(Debug)]
pub(super) struct Link {
    pub up: bool,
    /// When it was last lost, or since when it is waited for.
    pub away_since: Instant,
    pub local: bool,
    pub seal: Seal,
    /// Asked and not answered.
    pub outstanding: u32,
    /// When it last answered, or when it came to owe an answer.
    pub progress: Instant,
    pub silent: bool,
    pub dead: bool,
    /// No new seal before this time.
    pub seal_after: Instant,
    /// Seals that were refused, one after the other, because the disk knows a later connection of ours.
    pub seals_refused: u32,
    /// How it gets on with each kind of request.
    pub pace: Pace,
    /// Requests that it does not answer while it answers others ([`super::stuck`]).
    pub stuck: BTreeSet<RequestId>,
}

/// No owner gets there: what a disk says of higher ones is not true, and counting on from them would overflow.
pub(super) const SEQ_MAX: Seq = Seq(1 << 62);
/// After so many refused seals another connection is asked for: a tenth of a second, with the default settings.
const SEALS_REFUSED_MAX: u32 = 4;

impl Link {
    pub(super) fn usable(&self) -> bool {
        self.up && !self.silent && !self.dead
    }

    /// Whether nothing is known of it that speaks against its answers, once it is there.
    pub(super) fn promising(&self) -> bool {
        !self.silent && !self.dead && self.stuck.is_empty()
    }

    /// Whether it can be expected to answer all that it is asked.
    pub(super) fn trusted(&self) -> bool {
        self.up && self.promising()
    }
}

/// What an answer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    Seal,
    Read(PartId),
    Write { chunk: ChunkIndex, seq: Seq },
    Copy(CopyId),
    List { chunk: ChunkIndex, disk: DiskId },
    Scrub,
}

/// A request that was not answered.
#[derive(Debug)]
pub(super) struct Ask {
    pub disk: DiskId,
    pub purpose: Purpose,
    pub request: Request,
    pub payload: Bytes,
    pub sent: bool,
    /// When it was sent, the last time.
    pub sent_at: Instant,
    /// Not before this time: the disk was full.
    pub not_before: Instant,
}

impl Owner {
    /// The disk's host can be reached and has the disk.
    pub fn handle_disk_up(&mut self, now: Now, disk: DiskId, local: bool) {
        if self.fenced {
            return;
        }
        let link = self.link(now.mono, disk);
        link.up = true;
        link.local = local;
        link.silent = false;
        link.dead = false;
        link.progress = now.mono;
        link.seal = Seal::No;
        link.seal_after = now.mono;
        link.seals_refused = 0;
        link.pace = Pace::new(now.mono);
        // Answers to what was asked over an earlier connection do not come any more.
        link.stuck.clear();
        self.troubles.remove(&Trouble::Stuck(disk));
        self.disk_recovered(disk);
        for ask in self.asks.values_mut().filter(|a| a.disk == disk) {
            ask.sent = false;
        }
        self.asks.retain(|_, a| a.disk != disk || a.purpose != Purpose::Seal);
        self.recount(disk);
        self.seal(now.mono, disk);
        self.unstall(now.mono);
        self.settle(now);
    }

    /// The disk's host can't be reached, or has given the disk away.
    pub fn handle_disk_down(&mut self, now: Now, disk: DiskId) {
        if self.fenced {
            return;
        }
        self.scrub_cut(disk);
        // A seal that was asked stays owed, so that a disk that never comes is found silent.
        let mut seal = Seal::No;
        for ask in self.asks.values_mut().filter(|a| a.disk == disk) {
            ask.sent = false;
            if ask.purpose == Purpose::Seal {
                seal = Seal::Asked;
            }
        }
        let link = self.link(now.mono, disk);
        if std::mem::take(&mut link.up) {
            link.away_since = now.mono;
        }
        link.seal = seal;
        self.reroute_reads(now.mono, disk, |_| true);
        self.settle(now);
    }

    /// The directory says that the disk has failed for good.
    pub fn handle_disk_dead(&mut self, now: Now, disk: DiskId) {
        if self.fenced || self.link(now.mono, disk).dead {
            return;
        }
        self.link(now.mono, disk).dead = true;
        self.disk_failed(now.mono, disk);
        self.settle(now);
    }

    /// A disk answers. Answers to requests that are not waited for any more are ignored.
    pub fn handle_reply(&mut self, now: Now, id: RequestId, reply: Result<Reply, Refusal>, payload: Bytes) {
        if self.fenced {
            return;
        }
        if !matches!(reply, Err(Refusal::Unsealed { .. })) {
            self.unstick(now.mono, id);
        }
        let Some(ask) = self.asks.get(&id) else { return self.settle(now) };
        let disk = ask.disk;
        let Some(link) = self.links.get_mut(&disk) else { return };
        // One that only ever wants to be sealed again is no use: it counts as silent in the end.
        if !matches!(reply, Err(Refusal::Unsealed { .. })) {
            link.progress = now.mono;
            link.pace.answered(now.mono, ask);
            if std::mem::take(&mut link.silent) {
                link.pace.thawed(now.mono);
                self.disk_recovered(disk);
                self.unstall(now.mono);
            }
        }
        match &reply {
            Err(Refusal::Fenced { .. }) => return self.fence(),
            Err(Refusal::Unsealed { .. }) => {
                self.hold(now.mono, id, disk);
                return self.settle(now);
            }
            Err(Refusal::Full) => {
                // Nothing was changed there: tried again until space is made.
                self.troubles.insert(Trouble::Full(disk));
                if self.full(now, id, disk) {
                    return self.settle(now);
                }
            }
            Err(
                Refusal::Dead(_)
                | Refusal::NoDisk(_)
                | Refusal::Malformed(_)
                | Refusal::TooManyObjects { .. },
            ) => {
                let link = self.link(now.mono, disk);
                link.dead = true;
                self.disk_failed(now.mono, disk);
                return self.settle(now);
            }
            Err(Refusal::BadBlocks { .. } | Refusal::NotStaged) | Ok(_) => {}
        }
        if let Some(ask) = self.take_ask(id) {
            self.answered(now, &ask, reply, payload);
        }
        self.settle(now);
    }

    fn answered(&mut self, now: Now, ask: &Ask, reply: Result<Reply, Refusal>, payload: Bytes) {
        match ask.purpose {
            Purpose::Seal => self.sealed(now, ask.disk, reply),
            Purpose::Read(part) => self.read_answered(now, part, ask.disk, reply, payload),
            Purpose::Write { chunk, seq } => {
                self.troubles.remove(&Trouble::Full(ask.disk));
                self.write_answered(now.mono, chunk, seq, ask.disk, reply.is_err());
            }
            Purpose::Copy(copy) => self.copy_answered(now, copy, ask.disk, reply, payload),
            Purpose::List { chunk, disk } => self.list_answered(now, chunk, disk, reply),
            Purpose::Scrub => self.scrub_answered(now.mono, ask.disk, reply),
        }
    }

    pub(super) fn link(&mut self, now: Instant, disk: DiskId) -> &mut Link {
        self.links.entry(disk).or_insert(Link {
            up: false,
            away_since: now,
            local: false,
            seal: Seal::No,
            outstanding: 0,
            progress: now,
            silent: false,
            dead: false,
            seal_after: now,
            seals_refused: 0,
            pace: Pace::new(now),
            stuck: BTreeSet::new(),
        })
    }

    pub(super) fn usable(&self, disk: DiskId) -> bool {
        self.links.get(&disk).is_some_and(Link::usable)
    }

    pub(super) fn trusted(&self, disk: DiskId) -> bool {
        self.links.get(&disk).is_some_and(Link::trusted)
    }

    /// Asks a disk, now or as soon as it can be asked.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        disk: DiskId,
        purpose: Purpose,
        request: Request,
        payload: Bytes,
    ) -> RequestId {
        let id = RequestId(self.fresh_id());
        let link = self.link(now, disk);
        if link.outstanding == 0 {
            link.progress = now;
        }
        link.outstanding += 1;
        let send = link.up && (link.seal == Seal::Done || purpose == Purpose::Seal);
        if send {
            let (request, payload) = (request.clone(), payload.clone());
            self.effects.push_back(Effect::Ask { disk, id, request, payload });
        }
        let unsealed = link_needs_seal(self.links.get(&disk)) && purpose != Purpose::Seal;
        let ask = Ask { disk, purpose, request, payload, sent: send, sent_at: now, not_before: Instant(0) };
        self.asks.insert(id, ask);
        if unsealed {
            self.seal(now, disk);
        }
        id
    }

    /// Starts to seal the disk, unless that is under way or too soon after the last try.
    pub(super) fn seal(&mut self, now: Instant, disk: DiskId) {
        let (object, epoch) = (self.record.id, self.epoch);
        let link = self.link(now, disk);
        if link.seal != Seal::No || now < link.seal_after {
            return;
        }
        link.seal = Seal::Asked;
        self.ask(now, disk, Purpose::Seal, Request::Seal { object, epoch }, Bytes::new());
    }

    fn sealed(&mut self, now: Now, disk: DiskId, reply: Result<Reply, Refusal>) {
        let possible = |c: &ChunkSummary| c.seq_max <= SEQ_MAX && c.watermark <= SEQ_MAX;
        let Some(chunks) = reply.ok().and_then(|reply| match reply {
            Reply::Sealed { chunks } if chunks.iter().all(possible) => Some(chunks),
            _ => None,
        }) else {
            // No answer to a seal, or one that can't be: this host does not follow the protocol.
            self.link(now.mono, disk).dead = true;
            return self.disk_failed(now.mono, disk);
        };
        let link = self.link(now.mono, disk);
        link.seal = Seal::Done;
        link.seals_refused = 0;
        let mut by_index: std::collections::BTreeMap<_, _> =
            chunks.into_iter().map(|c| (c.index, c)).collect();
        let mut recovering = Vec::new();
        for group in self.groups.values_mut() {
            if matches!(group.phase, Phase::Sealing)
                && group.members.get(&disk).is_some_and(super::group::Member::in_sync)
            {
                let summary = by_index.remove(&group.index).unwrap_or(ChunkSummary {
                    index: group.index,
                    watermark: Seq(0),
                    seq_max: Seq(0),
                    tail: Vec::new(),
                });
                group.summaries.insert(disk, summary);
                recovering.push(group.index);
            }
        }
        for (index, summary) in by_index {
            if index.is_staged() && summary.seq_max > Seq(0) {
                self.has_staged(index.record());
            }
        }
        let mut release = Vec::new();
        for (id, ask) in &mut self.asks {
            if ask.disk == disk && !ask.sent && ask.not_before <= now.mono {
                (ask.sent, ask.sent_at) = (true, now.mono);
                release.push((*id, ask.request.clone(), ask.payload.clone()));
            }
        }
        for (id, request, payload) in release {
            self.effects.push_back(Effect::Ask { disk, id, request, payload });
        }
        for index in recovering {
            self.try_agree(now.mono, index);
        }
        self.unstall(now.mono);
    }

    /// The disk wants to be sealed (again) before it answers this: the request waits.
    fn hold(&mut self, now: Instant, id: RequestId, disk: DiskId) {
        let retry = now + self.config.retry_after / 4;
        let mut refused_seal = false;
        if let Some(ask) = self.asks.get_mut(&id) {
            ask.sent = false;
            if ask.purpose == Purpose::Seal {
                // A later connection of ours has sealed it, as far as the disk knows. When it does not forget that one soon,
                // a still later one is needed.
                ask.not_before = retry;
                refused_seal = true;
            }
        }
        let link = self.link(now, disk);
        link.seals_refused += u32::from(refused_seal);
        let reconnect = link.seals_refused >= SEALS_REFUSED_MAX;
        if reconnect {
            link.seals_refused = 0;
        }
        if link.seal == Seal::Done {
            link.seal = Seal::No;
            link.seal_after = retry;
        }
        if reconnect && !link.local {
            self.effects.push_back(Effect::Reconnect { disk });
        }
    }

    /// The disk is full. True if the request is kept and tried again.
    fn full(&mut self, now: Now, id: RequestId, disk: DiskId) -> bool {
        let retry = now.mono + self.config.retry_after * 10;
        let Some(ask) = self.asks.get_mut(&id) else { return true };
        if let Purpose::Write { chunk, seq } = ask.purpose {
            let write = self.groups.get(&chunk).and_then(|g| g.writes.get(&seq));
            if write.is_some_and(|w| w.refusal != Refusable::No) {
                return false;
            }
            ask.sent = false;
            ask.not_before = retry;
            let _ = disk;
            return true;
        }
        false
    }

    pub(super) fn take_ask(&mut self, id: RequestId) -> Option<Ask> {
        let ask = self.asks.remove(&id)?;
        if let Some(link) = self.links.get_mut(&ask.disk) {
            link.outstanding = link.outstanding.saturating_sub(1);
        }
        Some(ask)
    }

    /// Drops the requests that match; late answers to them are ignored.
    pub(super) fn cancel_asks(&mut self, matches: impl Fn(&Ask) -> bool) {
        let ids: Vec<RequestId> = self.asks.iter().filter(|(_, a)| matches(a)).map(|(id, _)| *id).collect();
        for id in ids {
            self.take_ask(id);
        }
    }

    fn recount(&mut self, disk: DiskId) {
        let count = self.asks.values().filter(|a| a.disk == disk).count() as u32;
        if let Some(link) = self.links.get_mut(&disk) {
            link.outstanding = count;
        }
    }

    /// Finds silent disks, seals again those that wait for it, sends again what a full disk refused.
    pub(super) fn check_silence(&mut self, now: Instant) {
        let silence = self.config.silence_max;
        let disks: Vec<DiskId> = self.links.keys().copied().collect();
        for disk in disks {
            let Some(link) = self.links.get_mut(&disk) else { continue };
            if link.outstanding > 0 && !link.silent && !link.dead && now.since(link.progress) >= silence {
                link.silent = true;
                self.disk_failed(now, disk);
            }
            let Some(link) = self.links.get(&disk) else { continue };
            if link.seal == Seal::No {
                let (dead, waited_for) = (link.dead, link.outstanding > 0 || link.silent);
                let wanted = self.summary_wanted(disk);
                if dead && wanted {
                    self.disk_failed(now, disk);
                } else if !dead && (waited_for || wanted) {
                    self.seal(now, disk);
                }
            }
        }
        let mut again = Vec::new();
        for (id, ask) in &mut self.asks {
            let link = self.links.get(&ask.disk);
            if !ask.sent
                && ask.not_before > Instant(0)
                && ask.not_before <= now
                && link.is_some_and(|l| l.up && (l.seal == Seal::Done || ask.purpose == Purpose::Seal))
            {
                (ask.sent, ask.sent_at) = (true, now);
                again.push((ask.disk, *id, ask.request.clone(), ask.payload.clone()));
            }
        }
        for (disk, id, request, payload) in again {
            // A full disk answers, at once: it does not count as silent while it waits.
            if !matches!(request, Request::Seal { .. }) {
                self.link(now, disk).progress = now;
            }
            self.effects.push_back(Effect::Ask { disk, id, request, payload });
        }
        for link in self.links.values_mut() {
            if link.silent && link.up && link.outstanding == 0 && link.seal == Seal::Done {
                // Nothing is asked of it any more: one seal finds out whether it is back.
                link.seal = Seal::No;
            }
        }
    }

    /// The disk answers again: it need not leave any in-sync set. That holds even where its removal is proposed already:
    /// until the directory's answer is here, every write waits for it as before, so it has all that was acknowledged.
    pub(super) fn disk_recovered(&mut self, disk: DiskId) {
        if self.links.get(&disk).is_some_and(|link| !link.stuck.is_empty()) {
            // It answers, but not all.
            return;
        }
        for group in self.groups.values_mut() {
            if let Some(member) = group.members.get_mut(&disk) {
                member.failing = false;
                if group.members.values().all(|m| !m.failing) {
                    self.shrink_wanted.remove(&group.index);
                }
            }
        }
    }

    /// The disk is dead or silent: whoever waits for it is told.
    pub(super) fn disk_failed(&mut self, now: Instant, disk: DiskId) {
        let waited_for: BTreeSet<ChunkIndex> = self
            .asks
            .values()
            .filter(|a| a.disk == disk)
            .filter_map(|a| match a.purpose {
                Purpose::Write { chunk, .. } => Some(chunk),
                _ => None,
            })
            .collect();
        let indexes: Vec<ChunkIndex> = self.groups.keys().copied().collect();
        for index in indexes {
            self.abort_listings_of(now, index, &BTreeSet::from([disk]));
            let Some(group) = self.groups.get_mut(&index) else { continue };
            let serving = group.is_serving();
            let Some(member) = group.members.get_mut(&disk) else { continue };
            if member.resync.is_some() {
                self.abort_resync(now, index, disk);
            } else if member.in_sync() && (!serving || waited_for.contains(&index)) {
                member.failing = true;
                self.shrink_wanted.insert(index);
            }
        }
        self.scrub_lost(disk);
        self.fail_copies_of(now, disk);
        self.reroute_reads(now, disk, |_| true);
        if self.links.get(&disk).is_some_and(|l| l.dead) {
            // It will not answer; what it owes is settled by the change of the in-sync set.
            self.cancel_asks(|a| a.disk == disk && !matches!(a.purpose, Purpose::Write { .. }));
        }
    }
}

fn link_needs_seal(link: Option<&Link>) -> bool {
    link.is_some_and(|l| l.up && !l.dead && l.seal == Seal::No)
}
