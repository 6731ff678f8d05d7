//! A volume gets another policy while it is in use.
//!
//! ```text
//!   SetPolicy ──▶ the record says the new policy ──▶ its owner (of a closed volume: who repairs it) finds chunks with
//!                                                     too few components: gives each another one, and fills it
//!                                                     too many, all good: trims them
//! ```
//!
//! So a conversion is what repair and removal do anyway, and nothing of it can be lost half-way: the former policy, set
//! again, takes it back. While a chunk has too few components the volume counts as degraded.
//!
//! Invariant: a chunk is never left with fewer good components than the policy asks for, because only [`State::trim`] takes
//! any away.
//!
//! Only a mirror becomes another mirror: shards lie elsewhere than copies, and no owner can make the one from the other in place.

use std::collections::BTreeSet;
use std::sync::Arc;

use ferro_protocol::ids::{ChunkIndex, ObjectId};

use super::State;
use super::apply::Applied;
use super::command::{Outcome, Refused};
use super::placement;
use super::records::{ObjectRecord, Policy};

impl State {
    pub(super) fn set_policy(&mut self, index: u64, object: ObjectId, from: Policy, to: Policy) -> Applied {
        let record = self.object(object)?;
        if record.policy != from {
            return Err(Refused::Overtaken(Arc::clone(record)));
        }
        to.check()?;
        match (from, to) {
            _ if from == to => return Ok(Outcome::Object(Arc::clone(record))),
            (Policy::Mirror { .. }, Policy::Mirror { .. }) => {}
            _ => return Err(Refused::OtherMethod),
        }
        let forced = self.provisioning.of(object).forced;
        if to.domains() > from.domains() && !forced {
            placement::place(self, to, ChunkIndex(0), None, false)?;
            self.check_room(record, to)?;
        }
        self.change(index, object, |record| record.policy = to)
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
}
