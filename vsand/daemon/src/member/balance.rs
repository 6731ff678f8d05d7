//! Rebalancing: data moves to where its volumes rather are, and from disks that are much fuller than others, one component after the
//! other, until nothing is out of place and they are about even (`vsand_core::directory::balance` says what goes where,
//! docs/decisions/0026-rebalancing.md and 0032-places.md why).
//!
//! Each host moves of the volumes that it owns, and of closed ones where it is the first with a good component: those it owns
//! as long as it takes, as for a scrub. Copying is the owner's resync, with its rate: guests come first. After a move to an emptier disk it
//! is waited until disks have said how full they are now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferro_protocol::api::{EventKind, EventLevel};
use ferro_protocol::ids::ObjectId;
use vsand_core::directory::{Move, ObjectRecord};
use vsand_core::time::Instant;

use super::Member;
use super::ownership::{At, is_ours_to_tend};
use crate::data::clock;
use crate::data::port::Command as DataCommand;
use crate::events::Draft;

/// How often it is looked whether disks are uneven.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked how far a move is.
const MOVE_LOOK_EVERY: Duration = Duration::from_secs(1);
/// So long a move may take to begin.
const BEGIN_MAX: Duration = Duration::from_secs(10);
/// What was given up is removed from its disk, and the disk has said so, after so long.
const SETTLE: Duration = Duration::from_secs(25);
/// An object of which nothing could be moved is left alone for so long.
const PUT_OFF: Duration = Duration::from_secs(600);

/// What this host moves.
#[derive(Debug, Default)]
pub struct Moves {
    at: At,
}

impl Moves {
    /// Whether something of this object is being moved.
    pub fn is_at(&self, object: ObjectId) -> bool {
        self.at.is(object)
    }
}

/// Moves what is to be moved, for as long as the daemon runs.
pub async fn balance(member: Arc<Member>) {
    let spread = member.config.rebalance.spread_percent;
    let mut not_before: BTreeMap<ObjectId, Instant> = BTreeMap::new();
    let mut moved = 0_u64;
    let mut pause = LOOK_EVERY;
    loop {
        tokio::time::sleep(std::mem::replace(&mut pause, LOOK_EVERY)).await;
        if !member.taken_up.load(Ordering::Relaxed) {
            continue;
        }
        let now = clock::mono();
        not_before.retain(|_, at| *at > now);
        let state = member.state();
        let may =
            |record: &ObjectRecord| !not_before.contains_key(&record.id) && is_ours_to_tend(&member, record);
        let Some(next) = state.next_move(spread, may) else {
            tell(&member, std::mem::take(&mut moved)).await;
            continue;
        };
        member.moves.at.set(Some(next.object));
        let done = carry_out(&member, next).await;
        member.moves.at.set(None);
        if done {
            moved += 1;
            // What is nearer does not depend on how full disks are.
            pause = if next.nearer { MOVE_LOOK_EVERY } else { SETTLE + LOOK_EVERY };
        } else {
            not_before.insert(next.object, clock::mono() + PUT_OFF);
        }
    }
}

/// Moves a component; false if nothing came of it.
async fn carry_out(member: &Member, next: Move) -> bool {
    let Move { object, chunk, from, to, nearer } = next;
    let (state, me) = (member.state(), member.host());
    let closed = state.objects.get(&object).is_some_and(|record| state.holder(record, me).is_none());
    if closed && !member.own_to_tend(object).await {
        return false;
    }
    tracing::info!(%object, %chunk, %from, %to, nearer, "a component moves to an emptier disk, or nearer to where its volume rather is");
    if member.data.send(DataCommand::Move { object, chunk, from }).is_err() {
        return false;
    }
    let mut still = clock::mono();
    loop {
        tokio::time::sleep(MOVE_LOOK_EVERY).await;
        let state = member.state();
        let Some(record) = state.objects.get(&object) else { return false };
        let Some(placed) = record.chunks.get(&chunk) else { return false };
        if placed.components.iter().all(|component| component.disk != from) {
            return true;
        }
        if placed.components.len() > record.policy.components(chunk) {
            still = clock::mono();
        } else if clock::mono().since(still) >= BEGIN_MAX {
            tracing::debug!(%object, %chunk, %from, "nothing came of a move");
            return false;
        }
    }
}

async fn tell(member: &Member, moved: u64) {
    if moved > 0 {
        let parts = if moved == 1 { "part of a volume was" } else { "parts of volumes were" };
        let message =
            format!("{moved} {parts} moved to emptier disks, or to where the volumes are rather kept");
        let subject = format!("host {}", member.host());
        member.events.add(vec![Draft::new(EventKind::Rebalanced, EventLevel::Info, subject, message)]).await;
    }
}
