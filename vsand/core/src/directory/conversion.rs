//! A volume gets another policy while it is in use.
//!
//! A mirror becomes another mirror in place:
//!
//! ```text
//!   SetPolicy ──▶ the record says the new policy ──▶ its owner (of a closed volume: who repairs it) finds chunks with
//!                                                     too few components: gives each another one, and fills it
//!                                                     too many, all good: trims them
//! ```
//!
//! That is what repair and removal do anyway, and nothing of it can be lost half-way: the former policy, set
//! again, takes it back. While a chunk has too few components the volume counts as degraded.
//!
//! Shards lie elsewhere than copies and than other shards, so everything else is a *conversion*: a second object is filled beside the
//! first, and takes its place when it has all that the first has ([`crate::volume`] does the filling):
//!
//! ```text
//!   SetPolicy ──▶ wanted ──Begin──▶ a target: an object without a name, owned by who owns the volume
//!                   ▲                  │              │
//!                   └──────────────────┘              └──End──▶ the target has the name, the lock and what is kept; the former
//!                    Drop, and whatever else                    object is gone
//!                    changes the owner or the size
//! ```
//!
//! Until `End` the volume is what it was, and its target is worth nothing: a crash at any instant costs what was copied, never data. `SetPolicy`
//! to what the volume is stops the conversion.
//!
//! Invariants:
//! - a chunk is never left with fewer good components than the policy asks for, because only [`State::trim`] takes any away;
//! - an object has a target only while the owner is the one that began it: same host, same epoch, same size;
//! - a target has no name and its object's epoch, so its owner's history goes on under the same epoch when it takes the place.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;

use ferro_protocol::ids::{ChunkIndex, DiskId, Epoch, ObjectId, Role};
use serde::{Deserialize, Serialize};

use super::State;
use super::apply::Applied;
use super::command::{ConversionStep, Outcome, Refused};
use super::level::FeatureLevel;
use super::placement;
use super::provision::Provision;
use super::records::{Content, LockKind, ObjectRecord, Policy};

/// What an object is to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Conversion {
    /// How it is to be kept.
    pub to: Policy,
    /// The object that is being filled.
    pub target: Option<ObjectId>,
}

/// The conversions under way, by the objects that they begin with.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Conversions(BTreeMap<ObjectId, Conversion>);

impl Conversions {
    /// What becomes of this object.
    pub fn of(&self, object: ObjectId) -> Option<Conversion> {
        self.0.get(&object).copied()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (ObjectId, Conversion)> {
        self.0.iter().map(|(object, conversion)| (*object, *conversion))
    }
}

/// What the ids of all objects have in common that a volume is, was and is to become. A volume's first id is drawn at random, and from
/// [`FeatureLevel::CONVERSIONS`] on none is made that has this in common with another.
pub fn lineage(object: ObjectId) -> [u8; 8] {
    let mut common = [0; 8];
    common.copy_from_slice(&object.as_bytes()[..8]);
    common
}

/// All ids of the lineage of this one.
pub fn kin(object: ObjectId) -> RangeInclusive<ObjectId> {
    let with = |rest: u8| {
        let mut bytes = *object.as_bytes();
        bytes[8..].fill(rest);
        ObjectId::from_bytes(bytes)
    };
    with(0)..=with(u8::MAX)
}

/// An id for the target of a conversion that the command at `index` begins: no other command makes the same.
fn target_id(object: ObjectId, index: u64) -> ObjectId {
    let mut bytes = *object.as_bytes();
    bytes[8..].copy_from_slice(&index.to_be_bytes());
    ObjectId::from_bytes(bytes)
}

impl State {
    /// Whether an object is being filled to take the place of another, and is nothing by itself.
    pub fn is_target(&self, object: ObjectId) -> bool {
        self.objects.get(&object).is_some_and(|record| self.names.get(&record.name) != Some(&object))
    }

    /// The volumes: the objects that have a name, in the order of their names.
    pub fn volumes(&self) -> impl Iterator<Item = &Arc<ObjectRecord>> {
        self.names.values().filter_map(|id| self.objects.get(id))
    }

    pub(super) fn set_policy(&mut self, index: u64, object: ObjectId, from: Policy, to: Policy) -> Applied {
        let record = self.volume(object)?;
        if record.policy != from {
            return Err(Refused::Overtaken(Arc::clone(record)));
        }
        to.check()?;
        if from == to {
            if self.end_conversion(object) {
                return self.change(index, object, |_| {});
            }
            return Ok(Outcome::Object(Arc::clone(self.object(object)?)));
        }
        let forced = self.provisioning.of(object).forced;
        if let (Policy::Mirror { .. }, Policy::Mirror { .. }) = (from, to) {
            if to.domains() > from.domains() && !forced {
                placement::check_place(self, to, false)?;
                self.check_room(record, to)?;
            }
            self.end_conversion(object);
            return self.change(index, object, |record| record.policy = to);
        }
        if self.level < FeatureLevel::CONVERSIONS {
            return Err(Refused::OtherMethod);
        }
        if self.conversions.of(object).is_some_and(|c| c.to == to) {
            return Ok(Outcome::Object(Arc::clone(record)));
        }
        self.check_target(record, to)?;
        self.end_conversion(object);
        self.conversions.0.insert(object, Conversion { to, target: None });
        self.change(index, object, |_| {})
    }

    pub(super) fn convert(
        &mut self,
        index: u64,
        object: ObjectId,
        epoch: Epoch,
        step: ConversionStep,
    ) -> Applied {
        if let ConversionStep::End { target } = step
            && let Some(ended) = self.has_ended(object, epoch, target)
        {
            return Ok(Outcome::Object(ended));
        }
        let record = Arc::clone(self.object(object)?);
        let conversion = self.conversions.of(object).ok_or(Refused::NotConverting(object))?;
        let lock = record.lock.filter(|_| record.epoch == epoch);
        let lock = lock.ok_or(Refused::WrongEpoch { now: record.epoch })?;
        match step {
            ConversionStep::Begin => {
                if lock.kind == LockKind::Transfer {
                    return Err(Refused::Locked { object, holder: lock.host, kind: lock.kind });
                }
                self.check_target(&record, conversion.to)?;
                self.begin_target(index, &record, conversion.to)
            }
            ConversionStep::Drop => {
                self.drop_target(object);
                Ok(Outcome::Done)
            }
            ConversionStep::End { target } => {
                let filled = Arc::clone(self.object(target)?);
                if conversion.target != Some(target) {
                    return Err(Refused::NotConverting(object));
                }
                let forced = self.provisioning.of(target).forced;
                let whole = filled.fully_redundant() || forced && filled.in_step();
                if !whole {
                    return Err(Refused::NotWhole(target));
                }
                self.conversions.0.remove(&object);
                self.objects.remove(&object);
                self.provisioning.forget(object);
                if self.provisioning.of(target).percent > 0 {
                    self.provisioning.touch(index);
                }
                self.names.insert(record.name.clone(), target);
                self.change(index, target, |target| {
                    target.lock = record.lock;
                    target.content = record.content;
                })
            }
        }
    }

    /// What came of a conversion that ended with this target, if its owner is still the one that ended it and did not hear of it.
    fn has_ended(&self, object: ObjectId, epoch: Epoch, target: ObjectId) -> Option<Arc<ObjectRecord>> {
        let ended = self.objects.get(&target).filter(|_| !self.objects.contains_key(&object))?;
        let owned =
            ended.epoch == epoch && ended.lock.is_some() && self.names.get(&ended.name) == Some(&target);
        owned.then(|| Arc::clone(ended))
    }

    fn begin_target(&mut self, index: u64, record: &ObjectRecord, to: Policy) -> Applied {
        let id = target_id(record.id, index);
        if self.objects.contains_key(&id) {
            return Err(Refused::NameTaken { name: record.name.clone(), by: id });
        }
        let provision = self.provisioning.of(record.id);
        let forced = provision.forced && matches!(to, Policy::Mirror { .. });
        let target = ObjectRecord {
            id,
            policy: to,
            content: Content::Whole,
            chunks: BTreeMap::new(),
            revision: index,
            ..record.clone()
        };
        let former = self.drop_target(record.id);
        self.objects.insert(id, Arc::new(target));
        match self.provision(index, id, Provision { forced, ..provision }) {
            Ok(outcome) => {
                self.conversions.0.insert(record.id, Conversion { to, target: Some(id) });
                Ok(outcome)
            }
            Err(refused) => {
                self.objects.remove(&id);
                if let Some((former, conversion, kept)) = former {
                    self.provisioning.put_back(former.id, kept);
                    self.objects.insert(former.id, former);
                    self.conversions.0.insert(record.id, conversion);
                }
                Err(refused)
            }
        }
    }

    /// The target of an object's conversion goes, with what was copied; the conversion begins anew when its owner can.
    pub(super) fn drop_target(
        &mut self,
        object: ObjectId,
    ) -> Option<(Arc<ObjectRecord>, Conversion, Provision)> {
        let conversion = self.conversions.of(object)?;
        let target = conversion.target?;
        self.conversions.0.insert(object, Conversion { target: None, ..conversion });
        let kept = self.provisioning.of(target);
        self.provisioning.forget(target);
        Some((self.objects.remove(&target)?, conversion, kept))
    }

    /// The object stays, or goes, as it is: nothing is made of it any more. Tells whether something was to be.
    pub(super) fn end_conversion(&mut self, object: ObjectId) -> bool {
        self.drop_target(object);
        self.conversions.0.remove(&object).is_some()
    }

    /// Places the components that the object's chunks would need in addition, as a trial.
    fn check_room(&self, object: &ObjectRecord, to: Policy) -> Result<(), Refused> {
        let promised = self.promised_by_disk();
        let mut free = self.room(&BTreeSet::new());
        let (mut extents, mut fits) = (0_u64, true);
        for (index, chunk) in &object.chunks {
            let missing = to.components(*index).saturating_sub(chunk.components.len());
            let Some(like) = chunk.components.first() else { continue };
            let size = self.likely_extents(object, to, *index, like.disk, &promised);
            let mut taken: BTreeSet<&str> =
                chunk.components.iter().filter_map(|c| self.fault_domain(c.disk)).collect();
            for _ in 0..missing {
                extents = extents.saturating_add(size);
                fits &= free.take(&mut taken, size, |_| true).is_ok();
            }
        }
        if fits { Ok(()) } else { Err(Refused::NoSpaceFor { policy: to, extents }) }
    }

    /// Places all components of what the object would become, as a trial: both are there until it has ended.
    fn check_target(&self, object: &ObjectRecord, to: Policy) -> Result<(), Refused> {
        let forced = self.provisioning.of(object.id).forced && matches!(to, Policy::Mirror { .. });
        placement::check_place(self, to, forced)?;
        let promised = self.promised_by_disk();
        let mut free = self.room(&BTreeSet::new());
        let (mut extents, mut fits) = (0_u64, true);
        for chunk in object.chunks_from(ChunkIndex(0)) {
            let data = self.likely_data(object, chunk, &promised);
            let (mut shards, mut others) = (BTreeSet::new(), BTreeSet::new());
            for index in to.records(chunk) {
                let most = u64::from(to.extents_max(index));
                let (size, taken) = match (to, index.role()) {
                    (Policy::Parity { data: k @ 1.., .. }, Role::Shard(_)) => {
                        (data.div_ceil(k.into()), &mut shards)
                    }
                    _ => (data, &mut others),
                };
                for _ in 0..to.components(index) {
                    let size = size.min(most);
                    extents = extents.saturating_add(size);
                    fits &= free.take(taken, size, |_| true).is_ok() || forced;
                }
            }
        }
        if fits { Ok(()) } else { Err(Refused::NoSpaceFor { policy: to, extents }) }
    }

    /// How much of a chunk is likely written, in extents.
    fn likely_data(&self, object: &ObjectRecord, chunk: ChunkIndex, promised: &BTreeMap<DiskId, u64>) -> u64 {
        let likely = |index: ChunkIndex| {
            let like = object.chunks.get(&index).and_then(|c| c.components.first())?;
            Some(self.likely_extents(object, object.policy, index, like.disk, promised))
        };
        match object.policy {
            Policy::Mirror { .. } => likely(chunk).unwrap_or(0),
            Policy::Parity { data, .. } => (0..data).filter_map(|n| likely(chunk.shard(n))).sum(),
        }
    }
}
