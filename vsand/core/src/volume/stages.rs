//! The stages of a conversion: what begins it, what it waits for, how it ends ([`super`] has the picture).

use std::sync::Arc;
use std::time::Duration;

use super::filling::{Do, Filling};
use super::{OURS, Part, Second, Stage, VolumeOwner};
use crate::directory::{Command, ConversionStep, LockKind, ObjectRecord, Outcome, Refused};
use crate::owner::{Config, Effect, Owner, ProposalId};

/// A conversion that could not go on is begun again after so long.
const PAUSE: Duration = Duration::from_secs(20);
/// One that could not end is tried again after so long, and requests wait for each other no longer.
const END_PAUSE: Duration = Duration::from_secs(2);
/// A guest that did something within this time is yielded to.
const GUEST_QUIET: Duration = Duration::from_millis(200);
/// As fast as it goes.
const UNLIMITED: u64 = 1 << 40;

impl VolumeOwner {
    /// After each input: what can go on does.
    pub(super) fn settle(&mut self) {
        if self.main.owner.is_fenced() && !matches!(self.stage, Stage::Ending { .. }) {
            return;
        }
        let now = self.now.mono;
        match &mut self.stage {
            Stage::Alone(not_before) => {
                let kind = self.main.owner.record().lock.map(|lock| lock.kind);
                let may = matches!(kind, Some(LockKind::Exclusive { .. } | LockKind::Background));
                if self.wanted.is_some() && may && now >= *not_before && self.main.owner.is_serving() {
                    self.stage = Stage::Beginning(self.propose(ConversionStep::Begin));
                }
            }
            Stage::Beginning(_) => {}
            Stage::Filling(second) => {
                let policy = second.part.owner.record().policy;
                if self.wanted.is_none_or(|wanted| wanted.to != policy) {
                    return self.give_up("it is to become something else", false);
                }
                if second.filling.has_failed(now) {
                    return self.give_up("what was written did not reach the other disks", true);
                }
                self.fill();
            }
            Stage::Ending { second, proposal, again_at, .. } => {
                if proposal.is_none() && now >= *again_at {
                    let target = second.part.owner.object();
                    let again = self.propose(ConversionStep::End { target });
                    if let Stage::Ending { proposal, .. } = &mut self.stage {
                        *proposal = Some(again);
                    }
                }
            }
        }
    }

    fn fill(&mut self) {
        let (now, quiet) = (self.now.mono, self.now.mono.since(self.guest_at) >= GUEST_QUIET);
        let rate = if quiet { UNLIMITED } else { self.config.resync_bytes_per_s };
        let record = Arc::clone(self.record());
        let Stage::Filling(second) = &mut self.stage else { return };
        if !second.before.is_empty() {
            return;
        }
        let placed = |chunk| record.chunks_from(chunk).next() == Some(chunk);
        second.filling.run(now, rate, placed);
        self.carry_on();
        let Stage::Filling(second) = &mut self.stage else { return };
        if !second.filling.is_complete() || now < second.end_at {
            return;
        }
        if second.frozen.is_none() {
            if second.part.owner.is_serving() && second.part.owner.record().in_step() {
                second.frozen = Some(now);
            } else {
                return;
            }
        }
        let idle = second.filling.is_idle() && second.part.owner.is_idle();
        if idle && self.plain.is_empty() && self.main.owner.is_idle() {
            let target = second.part.owner.object();
            let proposal = Some(self.propose(ConversionStep::End { target }));
            let stage = std::mem::replace(&mut self.stage, Stage::Alone(now));
            if let Stage::Filling(second) = stage {
                self.stage = Stage::Ending { second, proposal, again_at: now, gone: false };
            }
        } else if second.frozen.is_some_and(|since| now.since(since) > END_PAUSE) {
            self.thaw();
        }
    }

    /// It does not end now: requests that waited for that go on.
    fn thaw(&mut self) {
        let end_at = self.now.mono + END_PAUSE;
        if let Stage::Filling(second) = &mut self.stage {
            (second.frozen, second.end_at) = (None, end_at);
        }
        self.release_held();
    }

    /// Requests that waited for the end of the conversion go on.
    fn release_held(&mut self) {
        for (tag, request) in std::mem::take(&mut self.held) {
            self.guest(tag, request);
        }
    }

    /// Carries out what the filling has decided.
    pub(super) fn carry_on(&mut self) {
        let Some(second) = self.second_mut() else { return };
        let to_do = second.filling.take();
        self.carry_out(to_do);
    }

    fn carry_out(&mut self, to_do: Vec<Do>) {
        let now = self.now;
        for what in to_do {
            match what {
                Do::First(tag, request) => self.main.owner.handle_guest(now, tag, request),
                Do::Second(tag, request) => {
                    if let Some(second) = self.second_mut() {
                        second.part.owner.handle_guest(now, tag, request);
                    }
                }
                Do::End(tag, result) => self.effects.push_back(Effect::Complete { tag, result }),
            }
        }
    }

    fn propose(&mut self, step: ConversionStep) -> ProposalId {
        self.proposals += 1;
        let id = ProposalId(self.proposals << 8 | u64::from(OURS));
        let command = Command::Convert { object: self.object(), epoch: self.epoch(), step };
        self.effects.push_back(Effect::Propose { id, command });
        id
    }

    pub(super) fn step_answered(&mut self, id: ProposalId, result: Option<Result<Outcome, Refused>>) {
        let now = self.now.mono;
        match &mut self.stage {
            Stage::Beginning(proposal) if *proposal == id => match result {
                Some(Ok(Outcome::Object(target))) => self.begin(target),
                Some(Ok(_)) | None => self.stage = Stage::Alone(now + self.config.retry_after),
                Some(Err(refused)) => {
                    self.refused = Some(refused.to_string());
                    self.stage = Stage::Alone(now + PAUSE);
                }
            },
            Stage::Ending { proposal, again_at, gone, .. } if *proposal == Some(id) => match result {
                Some(Ok(Outcome::Object(record))) => self.become_target(&record),
                Some(Ok(_)) | None => {
                    (*proposal, *again_at) = (None, now + self.config.retry_after);
                }
                Some(Err(refused)) => {
                    let gone = *gone;
                    let stage = std::mem::replace(&mut self.stage, Stage::Alone(now));
                    if let Stage::Ending { second, .. } = stage {
                        self.stage = Stage::Filling(second);
                    }
                    if gone {
                        self.effects.push_back(Effect::Fenced);
                    } else if matches!(refused, Refused::NotConverting(_)) {
                        self.give_up("it is not to be converted any more", false);
                    } else {
                        self.thaw();
                    }
                }
            },
            _ => {}
        }
    }

    /// There is a target.
    fn begin(&mut self, target: Arc<ObjectRecord>) {
        let now = self.now;
        self.marks = (self.marks + 1) % OURS;
        let config = Config { read_only: false, ..self.config.clone() };
        let mut owner = Owner::new(now, config, target, self.bugs);
        for (disk, local) in &self.disks {
            owner.handle_disk_up(now, *disk, *local);
        }
        for disk in &self.dead {
            owner.handle_disk_dead(now, *disk);
        }
        owner.handle_lease(now, self.lease_until);
        self.refused = None;
        let filling = Filling::new(now.mono, self.record().size_bytes, self.bugs);
        let part = Part { owner, mark: self.marks };
        let (before, end_at) = (self.plain.clone(), now.mono);
        self.stage = Stage::Filling(Box::new(Second { part, filling, before, end_at, frozen: None }));
    }

    /// The target is of no use any more. With `tell` the directory does not know yet.
    pub(super) fn give_up(&mut self, why: &str, tell: bool) {
        let later = self.now.mono + PAUSE;
        let stage = std::mem::replace(&mut self.stage, Stage::Alone(later));
        let Stage::Filling(second) = stage else {
            self.stage = stage;
            return;
        };
        self.refused = Some(why.to_owned());
        let (to_do, under_way) = second.filling.give_up();
        self.plain.extend(under_way);
        self.carry_out(to_do);
        self.release_held();
        if tell {
            // Should this be lost, the next target takes the place of this one.
            let _answer = self.propose(ConversionStep::Drop);
        }
    }

    /// The conversion has ended: this is the object now.
    pub(super) fn become_target(&mut self, record: &Arc<ObjectRecord>) {
        let now = self.now;
        let stage = std::mem::replace(&mut self.stage, Stage::Alone(now.mono));
        let Stage::Ending { second, .. } = stage else {
            self.stage = stage;
            return;
        };
        let from = self.object();
        self.main = second.part;
        self.main.owner.set_read_only(self.config.read_only);
        self.main.owner.handle_record(now, Some(record));
        (self.wanted, self.refused) = (None, None);
        self.effects.push_back(Effect::Became { from, to: self.object() });
        self.release_held();
    }
}
