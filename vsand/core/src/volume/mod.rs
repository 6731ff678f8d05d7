//! The owner of a volume: of one object, or of two while the one is made into the other ([`crate::directory::conversion`]).
//!
//! ```text
//!            wanted              Begin: a target             everything copied, nothing under way
//!   alone ───────────▶ beginning ────────────────▶ filling ───────────────────────────────────────▶ ending
//!     ▲                   │ refused: later            │ it failed, or keeps the guest waiting          │
//!     │◀──────────────────┴───────────────────────────┴──▶ Drop                                       │ End: the target is
//!     └───────────────────────────────────────────────────────────────────────────────────────────────┘ the object from now on
//! ```
//!
//! Reads go to the object that is; writes to both where both have the same already ([`filling`]). While it ends, requests wait: for one
//! answer of the directory. If that does not come, nobody knows which of the two is the object, and guests wait as they do for every
//! change in the directory that does not come.
//!
//! Invariants:
//! - a guest's request is answered as if there were one object: the two are never both asked for the same bytes;
//! - `End` is proposed only while no request is under way and the target has everything, so what becomes the object reads as what was;
//! - without a conversion it is an [`Owner`] and nothing else.
//!
//! Inputs, [`VolumeOwner::poll`] and ids are those of an owner. What it must not know: what an owner must not know.

mod filling;
#[cfg(test)]
mod filling_tests;
mod stages;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ferro_protocol::ids::{DiskId, Epoch, ObjectId};
use ferro_protocol::peer::{Refusal, Reply, RequestId};

use crate::bugs::Bugs;
use crate::directory::{Conversion, Departures, FeatureLevel, ObjectRecord, Outcome, Policy, Refused, State};
use crate::lease::{Renewal, Standing};
use crate::owner::guest::{GuestRequest, GuestTag, in_bounds};
use crate::owner::{Config, Effect, Owner, ProposalId, ResyncView, Trouble};
use crate::time::{Instant, Now};
use filling::{Filling, is_ours};

/// Proposals of ours and not of an owner.
const OURS: u8 = u8::MAX;

/// An owner, with a mark that its requests and proposals carry, so that late answers to a former one are known.
#[derive(Debug)]
struct Part {
    owner: Owner,
    mark: u8,
}

impl Part {
    fn request(&self, id: RequestId) -> RequestId {
        RequestId(id.0 << 8 | u64::from(self.mark))
    }

    fn proposal(&self, id: ProposalId) -> ProposalId {
        ProposalId(id.0 << 8 | u64::from(self.mark))
    }

    fn is_meant(&self, id: u64) -> bool {
        id & 0xff == u64::from(self.mark)
    }
}

/// The target and what is on its way there.
#[derive(Debug)]
struct Second {
    part: Part,
    filling: Filling,
    /// Requests that went to the first owner alone before there was a target, and are under way. Nothing is copied before they have
    /// ended: the filling knows nothing of what they write, and where.
    before: BTreeSet<GuestTag>,
    /// It is not ended before.
    end_at: Instant,
    /// Since when requests wait because it is to end.
    frozen: Option<Instant>,
}

#[derive(Debug)]
enum Stage {
    /// There is one object. A conversion does not begin before.
    Alone(Instant),
    Beginning(ProposalId),
    Filling(Box<Second>),
    /// The proposal, or when it is made again. The first owner may have heard already that its object is gone.
    Ending {
        second: Box<Second>,
        proposal: Option<ProposalId>,
        again_at: Instant,
        gone: bool,
    },
}

/// How a conversion is getting on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConversionView {
    /// What the volume is to become.
    pub to: Policy,
    /// How far the copy has come, in bytes of the volume.
    pub copied_bytes: u64,
    /// The volume's size.
    pub total_bytes: u64,
    /// Why it does not go on, if it does not.
    pub waits: Option<String>,
}

/// The owner of a volume.
#[derive(Debug)]
pub struct VolumeOwner {
    now: Now,
    config: Config,
    bugs: Bugs,
    main: Part,
    stage: Stage,
    wanted: Option<Conversion>,
    /// Why the last conversion did not go on.
    refused: Option<String>,
    /// The disks that can be asked, and whether they are in this host.
    disks: BTreeMap<DiskId, bool>,
    dead: BTreeSet<DiskId>,
    lease_until: Instant,
    /// Guest's requests under way that no filling follows.
    plain: BTreeSet<GuestTag>,
    /// Guest's requests that wait for the end of a conversion.
    held: VecDeque<(GuestTag, GuestRequest)>,
    guest_at: Instant,
    marks: u8,
    proposals: u64,
    effects: VecDeque<Effect>,
}

impl VolumeOwner {
    /// The owner of the volume from the `Acquire` that brought this record on, as [`Owner::new`].
    pub fn new(now: Now, config: Config, record: Arc<ObjectRecord>, bugs: Bugs) -> Self {
        let owner = Owner::new(now, config.clone(), record, bugs);
        Self {
            now,
            config,
            bugs,
            main: Part { owner, mark: 0 },
            stage: Stage::Alone(Instant(0)),
            wanted: None,
            refused: None,
            disks: BTreeMap::new(),
            dead: BTreeSet::new(),
            lease_until: Instant(0),
            plain: BTreeSet::new(),
            held: VecDeque::new(),
            guest_at: Instant(0),
            marks: 0,
            proposals: 0,
            effects: VecDeque::new(),
        }
    }

    // ---- getters -----------------------------------------------------------------------------------------------

    /// The owner of the object that the volume is now.
    pub fn main(&self) -> &Owner {
        &self.main.owner
    }

    /// The same, for what concerns that object alone: scrubs and moves. [`Self::poll`] is to be called afterwards.
    pub fn main_mut(&mut self) -> &mut Owner {
        &mut self.main.owner
    }

    /// The object that the volume is now.
    pub fn object(&self) -> ObjectId {
        self.main.owner.object()
    }

    /// The epoch of this owner.
    pub fn epoch(&self) -> Epoch {
        self.main.owner.epoch()
    }

    /// The latest record of the object that this owner has seen.
    pub fn record(&self) -> &Arc<ObjectRecord> {
        self.main.owner.record()
    }

    /// Whether no guest request is under way.
    pub fn is_idle(&self) -> bool {
        let with = match &self.stage {
            Stage::Alone(_) | Stage::Beginning(_) => true,
            Stage::Filling(second) => second.filling.is_idle(),
            // Whose it is, is being decided.
            Stage::Ending { .. } => false,
        };
        with && self.plain.is_empty() && self.held.is_empty()
    }

    /// What keeps I/O waiting now.
    pub fn troubles(&self) -> impl Iterator<Item = &Trouble> {
        self.main.owner.troubles()
    }

    /// The resyncs of the object.
    pub fn resyncs(&self, now: Instant) -> Vec<ResyncView> {
        self.main.owner.resyncs(now)
    }

    /// The conversion that is under way or wanted.
    pub fn conversion(&self) -> Option<ConversionView> {
        let to = self.wanted?.to;
        let second = self.second();
        let copied_bytes = second.map_or(0, |second| second.filling.copied());
        let waits = self.refused.clone().filter(|_| second.is_none());
        Some(ConversionView { to, copied_bytes, total_bytes: self.record().size_bytes, waits })
    }

    /// When [`Self::tick`] is to be called again.
    pub fn tick_after(&self) -> Duration {
        let main = self.main.owner.tick_after();
        match (&self.stage, self.second()) {
            (_, Some(second)) if !second.filling.is_complete() => Duration::from_millis(10).min(main),
            (_, Some(second)) => second.part.owner.tick_after().min(main).min(Duration::from_millis(50)),
            (Stage::Alone(_), None) if self.wanted.is_some() => main.min(Duration::from_millis(200)),
            _ => main,
        }
    }

    /// What a renewal of the host's lease says of this owner, as [`Renewal::standing`].
    pub fn standing(&self, renewal: &Renewal, acquired: Instant) -> Standing {
        let standing = renewal.standing(self.object(), self.epoch(), acquired);
        match (&self.stage, standing) {
            // The object may have become the other one, and the answer that says so may be under way.
            (Stage::Ending { second, .. }, Standing::Lost) => {
                let other = &second.part.owner;
                match renewal.standing(other.object(), other.epoch(), acquired) {
                    Standing::Lost => Standing::Lost,
                    Standing::Valid(_) | Standing::Unknown => Standing::Unknown,
                }
            }
            (_, standing) => standing,
        }
    }

    fn second(&self) -> Option<&Second> {
        match &self.stage {
            Stage::Filling(second) | Stage::Ending { second, .. } => Some(second),
            Stage::Alone(_) | Stage::Beginning(_) => None,
        }
    }

    fn second_mut(&mut self) -> Option<&mut Second> {
        match &mut self.stage {
            Stage::Filling(second) | Stage::Ending { second, .. } => Some(second),
            Stage::Alone(_) | Stage::Beginning(_) => None,
        }
    }

    /// The owners, one or two.
    fn parts(&mut self) -> impl Iterator<Item = &mut Part> {
        let second = match &mut self.stage {
            Stage::Filling(second) | Stage::Ending { second, .. } => Some(&mut second.part),
            Stage::Alone(_) | Stage::Beginning(_) => None,
        };
        std::iter::once(&mut self.main).chain(second)
    }

    // ---- inputs ------------------------------------------------------------------------------------------------

    /// A guest asks, as [`Owner::handle_guest`]. The first bit of its tag is not set.
    pub fn handle_guest(&mut self, now: Now, tag: GuestTag, request: GuestRequest) {
        self.now = now;
        self.guest_at = now.mono;
        self.guest(tag, request);
        self.settle();
    }

    fn guest(&mut self, tag: GuestTag, request: GuestRequest) {
        let changes = matches!(request, GuestRequest::Write { .. } | GuestRequest::Zero { .. });
        // What the source refuses must not reach the target.
        let valid = !self.config.read_only && in_bounds(&request, self.record().size_bytes);
        match &mut self.stage {
            Stage::Ending { .. } => return self.held.push_back((tag, request)),
            Stage::Filling(second) if second.frozen.is_some() => {
                return self.held.push_back((tag, request));
            }
            Stage::Filling(second) if changes && valid => {
                second.filling.write(tag, request);
                return self.carry_on();
            }
            Stage::Alone(_) | Stage::Beginning(_) | Stage::Filling(_) => {}
        }
        self.plain.insert(tag);
        self.main.owner.handle_guest(self.now, tag, request);
    }

    /// This host's lease runs until then.
    pub fn handle_lease(&mut self, now: Now, valid_until: Instant) {
        self.now = now;
        self.lease_until = self.lease_until.max(valid_until);
        self.parts().for_each(|part| part.owner.handle_lease(now, valid_until));
        self.settle();
    }

    /// Disks are leaving the cluster, or in hosts that were given up or that somebody works on, or in this host's site, or the volume is to
    /// become something else, as the directory says.
    pub fn handle_departures(&mut self, now: Now, departures: &mut Departures<'_>) {
        self.now = now;
        let (state, me) = (departures.state(), self.config.me);
        if state.revision >= self.record().revision {
            self.wanted = state.conversions.of(self.object());
        }
        for part in self.parts() {
            part.owner.handle_leaving(now, departures.emptied(part.owner.record().policy));
            part.owner.handle_resting(now, departures.resting());
            part.owner.handle_near(departures.near(me));
            part.owner.handle_straight(state.level >= FeatureLevel::STAGED);
        }
        self.settle();
    }

    /// The directory says that this owner's lock is gone.
    pub fn handle_lock_lost(&mut self) {
        self.main.owner.handle_lock_lost();
    }

    /// A disk can be asked, as [`Owner::handle_disk_up`].
    pub fn handle_disk_up(&mut self, now: Now, disk: DiskId, local: bool) {
        self.now = now;
        self.disks.insert(disk, local);
        self.dead.remove(&disk);
        self.parts().for_each(|part| part.owner.handle_disk_up(now, disk, local));
        self.settle();
    }

    /// A disk can't be asked any more, as [`Owner::handle_disk_down`].
    pub fn handle_disk_down(&mut self, now: Now, disk: DiskId) {
        self.now = now;
        self.disks.remove(&disk);
        self.parts().for_each(|part| part.owner.handle_disk_down(now, disk));
        self.settle();
    }

    /// A disk has failed, as [`Owner::handle_disk_dead`].
    pub fn handle_disk_dead(&mut self, now: Now, disk: DiskId) {
        self.now = now;
        self.dead.insert(disk);
        self.parts().for_each(|part| part.owner.handle_disk_dead(now, disk));
        self.settle();
    }

    /// A disk answers, as [`Owner::handle_reply`].
    pub fn handle_reply(&mut self, now: Now, id: RequestId, reply: Result<Reply, Refusal>, payload: Bytes) {
        self.now = now;
        if let Some(part) = self.parts().find(|part| part.is_meant(id.0)) {
            part.owner.handle_reply(now, RequestId(id.0 >> 8), reply, payload);
        }
        self.settle();
    }

    /// What became of a proposal, as [`Owner::handle_proposal`].
    pub fn handle_proposal(&mut self, now: Now, id: ProposalId, result: Option<Result<Outcome, Refused>>) {
        self.now = now;
        if id.0 & 0xff == u64::from(OURS) {
            self.step_answered(id, result);
        } else if let Some(part) = self.parts().find(|part| part.is_meant(id.0)) {
            part.owner.handle_proposal(now, ProposalId(id.0 >> 8), result);
        }
        self.settle();
    }

    /// The directory as it is now, or as it was a while ago.
    pub fn handle_state(&mut self, now: Now, state: &State) {
        self.now = now;
        // Of before this owner's record: it knows less.
        if state.revision < self.record().revision {
            return;
        }
        let object = self.object();
        let of = |object: ObjectId, known: &ObjectRecord| {
            let record = state.objects.get(&object);
            record.is_none_or(|r| r.revision != known.revision).then_some(record)
        };
        if let Stage::Ending { second, .. } = &self.stage {
            let other = &second.part.owner;
            if !state.objects.contains_key(&object)
                && let Some(record) = state.objects.get(&other.object())
                && state.names.get(&record.name) == Some(&record.id)
                && record.epoch == other.epoch()
                && record.lock.is_some()
            {
                let record = Arc::clone(record);
                return self.become_target(&record);
            }
        }
        self.wanted = state.conversions.of(object);
        if let Some(second) = self.second_mut() {
            let other = &mut second.part.owner;
            if state.revision >= other.record().revision
                && let Some(record) = of(other.object(), other.record())
            {
                other.handle_record(now, record);
            }
        }
        if let Some(record) = of(object, self.record()) {
            self.main.owner.handle_record(now, record);
        }
        self.settle();
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        self.parts().for_each(|part| part.owner.tick(now));
        self.settle();
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Effect> {
        loop {
            if let Some(effect) = self.effects.pop_front() {
                return Some(effect);
            }
            if let Some(effect) = self.main.owner.poll() {
                self.main_effect(effect);
            } else if let Some(effect) = self.second_mut().and_then(|second| second.part.owner.poll()) {
                self.second_effect(effect);
            } else {
                return None;
            }
        }
    }

    // ---- what the owners want -----------------------------------------------------------------------------------

    fn main_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Complete { tag, result } => {
                let now = self.now.mono;
                if let Some(second) = self.second_mut().filter(|second| second.filling.knows(tag)) {
                    second.filling.first_answered(now, tag, result);
                    self.carry_on();
                    return self.settle();
                }
                if is_ours(tag) {
                    // Of a filling that was given up.
                    return;
                }
                self.plain.remove(&tag);
                if let Some(second) = self.second_mut() {
                    second.before.remove(&tag);
                }
                self.effects.push_back(Effect::Complete { tag, result });
                self.settle();
            }
            Effect::Fenced => {
                if let Stage::Ending { gone, .. } = &mut self.stage {
                    *gone = true;
                } else {
                    self.effects.push_back(Effect::Fenced);
                }
            }
            other => {
                let marked = marked(&self.main, other);
                self.effects.push_back(marked);
            }
        }
    }

    fn second_effect(&mut self, effect: Effect) {
        let ending = matches!(self.stage, Stage::Ending { .. });
        let Some(second) = self.second_mut() else { return };
        match effect {
            Effect::Complete { tag, result } => {
                second.filling.second_answered(tag, &result);
                self.carry_on();
                self.settle();
            }
            // While it ends, the answer says what has become of it.
            Effect::Fenced if ending => {}
            Effect::Fenced => self.give_up("the directory has dropped what was copied", false),
            Effect::Scrubbed(_) => {}
            other => {
                let marked = marked(&second.part, other);
                self.effects.push_back(marked);
            }
        }
    }
}

/// An owner's effect with its mark.
fn marked(part: &Part, effect: Effect) -> Effect {
    match effect {
        Effect::Ask { disk, id, request, payload } => {
            Effect::Ask { disk, id: part.request(id), request, payload }
        }
        Effect::Propose { id, command } => Effect::Propose { id: part.proposal(id), command },
        other => other,
    }
}
