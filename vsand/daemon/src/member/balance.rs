//! Rebalancing: data moves to where its volumes rather are, from disks that are much fuller than others, and where those are about even, from
//! disks that have much more to serve, one component after the other (`vsand_core::directory::balance` and `load` say what goes where,
//! docs/decisions/0026-rebalancing.md and 0032-places.md why).
//!
//! Each host moves of the volumes that it owns, and of closed ones where it is the first with a good component: those it owns
//! as long as it takes, as for a scrub. Copying is the owner's resync, with its rate: guests come first. After a move to an emptier disk it
//! is waited until disks have said how full they are now, and before the next by load until averages have settled, whichever host moved last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ferro_protocol::api::{EventKind, EventLevel};
use ferro_protocol::ids::ObjectId;
use vsand_core::directory::{FeatureLevel, LoadRules, Move, ObjectRecord, State, Why};
use vsand_core::time::Instant;

use super::Member;
use super::ownership::{At, is_ours_to_tend};
use crate::config::Rebalance;
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
/// Averages have settled after so many of their half-lives, and have been told.
const LOAD_HALF_LIVES: u64 = 3;
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
    let spread_percent = member.config.rebalance.spread_percent;
    let mut not_before: BTreeMap<ObjectId, Instant> = BTreeMap::new();
    let mut moved = Moved::default();
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
        let next = match state.next_move(spread_percent, may) {
            Some(next) => Some(next),
            None => by_load(&member, &state, may).await,
        };
        let Some(next) = next else {
            moved.tell(&member).await;
            continue;
        };
        member.moves.at.set(Some(next.object));
        let done = carry_out(&member, next).await;
        member.moves.at.set(None);
        if done {
            moved.add(next.why);
            // What is nearer does not depend on how full disks are.
            pause = if next.why == Why::Nearer { MOVE_LOOK_EVERY } else { SETTLE + LOOK_EVERY };
        } else {
            not_before.insert(next.object, clock::mono() + PUT_OFF);
        }
    }
}

/// The component to move next because its disk has more to serve than others. What nobody has open has nothing to serve.
async fn by_load(member: &Member, state: &State, may: impl Fn(&ObjectRecord) -> bool) -> Option<Move> {
    let rebalance = member.config.rebalance;
    let Rebalance { spread_percent, load_percent, load_window_s } = rebalance;
    if load_percent == 0 || state.level < FeatureLevel::LOADS {
        return None;
    }
    let heats = member.data.ask(DataCommand::Heats).await.ok()?;
    let settle_s = LOAD_HALF_LIVES * load_window_s + 2 * rebalance.load_report_every().as_secs();
    let rules = LoadRules { percent: load_percent, spread_percent, settle_s };
    state.next_move_by_load(rules, &heats, clock::unix_s(), |record| record.lock.is_some() && may(record))
}

/// Moves a component; false if nothing came of it.
async fn carry_out(member: &Member, next: Move) -> bool {
    let Move { object, chunk, from, to, why } = next;
    let (state, me) = (member.state(), member.host());
    let closed = state.objects.get(&object).is_some_and(|record| state.holder(record, me).is_none());
    if closed && !member.own_to_tend(object).await {
        return false;
    }
    // By fullness the directory says where to, as things are by then, and what goes.
    let wanted = (why != Why::Fuller).then_some(to);
    tracing::info!(%object, %chunk, %from, %to, ?why, "a component moves to another disk");
    if member.data.send(DataCommand::Move { object, chunk, from, to: wanted }).is_err() {
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

/// What was moved since that was last told.
#[derive(Debug, Default)]
struct Moved {
    nearer: u64,
    fuller: u64,
    busier: u64,
}

impl Moved {
    fn add(&mut self, why: Why) {
        match why {
            Why::Nearer => self.nearer += 1,
            Why::Fuller => self.fuller += 1,
            Why::Busier => self.busier += 1,
        }
    }

    async fn tell(&mut self, member: &Member) {
        let Self { nearer, fuller, busier } = std::mem::take(self);
        let told = [
            (nearer, "to where the volumes are rather kept"),
            (fuller, "from fuller disks to emptier ones"),
            (busier, "from busier disks to idler ones"),
        ];
        for (moved, which) in told.into_iter().filter(|(moved, _)| *moved > 0) {
            let parts = if moved == 1 { "part of a volume was" } else { "parts of volumes were" };
            let message = format!("{moved} {parts} moved {which}");
            let subject = format!("host {}", member.host());
            let draft = Draft::new(EventKind::Rebalanced, EventLevel::Info, subject, message);
            member.events.add(vec![draft]).await;
        }
    }
}
