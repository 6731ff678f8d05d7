//! Repairing volumes that nobody has open: each is owned in the background for as long as something of it can be put right.
//!
//! ```text
//!   closed, not settled ──ours, and a turn is free──▶ owned ──settled, or nothing changes while others wait──▶ given back
//! ```
//!
//! Invariants:
//! - a host owns no more than [`TURNS`] volumes for this: what each of them proposes goes through the one directory;
//! - one that can't be helped keeps nobody from his turn;
//! - what is scrubbed, moved, or to become another object takes no turn and gives none up: it would begin anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::{ChunkIndex, HostId, ObjectId};
use vsand_core::directory::{ChunkRecord, Component, LockKind, ObjectRecord, State, Sync};
use vsand_core::time::Instant;

use super::Member;
use super::ownership::is_ours_to_tend;
use crate::data::clock;

/// So many volumes are repaired at once.
const TURNS: usize = 16;
/// How often it is looked what there is to repair.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A repair that brings no change for so long gives way to others; a component is filled in far less.
const STUCK_AFTER: Duration = Duration::from_secs(300);
/// And is tried again after so long.
const PUT_OFF: Duration = Duration::from_secs(600);

/// Whose turn it is.
#[derive(Debug, Default)]
struct Turns {
    /// What is owned for this: the record's revision, and when it was first seen.
    held: BTreeMap<ObjectId, (u64, Instant)>,
    put_off: BTreeMap<ObjectId, Instant>,
    /// Somebody got no turn since it was looked last, and the time before.
    waiting: bool,
    waited: bool,
}

impl Turns {
    /// It is looked again; these are owned, with their revisions.
    fn look(&mut self, now: Instant, owned: &BTreeMap<ObjectId, u64>) {
        self.waited = std::mem::take(&mut self.waiting);
        self.put_off.retain(|_, until| *until > now);
        self.held.retain(|object, _| owned.contains_key(object));
        for (object, revision) in owned {
            let held = self.held.entry(*object).or_insert((*revision, now));
            if held.0 != *revision {
                *held = (*revision, now);
            }
        }
    }

    /// Whether this one may be taken now.
    fn take(&mut self, object: ObjectId, revision: u64, now: Instant) -> bool {
        if self.put_off.contains_key(&object) {
            return false;
        }
        let free = self.held.len() < TURNS;
        if free {
            self.held.insert(object, (revision, now));
        }
        self.waiting |= !free;
        free
    }

    /// Whether this one is to give way.
    fn is_over(&mut self, object: ObjectId, now: Instant) -> bool {
        let stuck = self.held.get(&object).is_some_and(|(_, at)| now.since(*at) >= STUCK_AFTER);
        if !stuck || !self.waited {
            return false;
        }
        self.put_off.insert(object, now + PUT_OFF);
        true
    }
}

/// Closed volumes with components that are not in sync, or on disks that are leaving or in hosts that were given up, are owned for as
/// long as it takes to put that right, by the first of the hosts that have a good component.
pub(super) async fn repair_closed(member: Arc<Member>) {
    let mut turns = Turns::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let (state, now, me) = (member.state(), clock::mono(), member.host());
        let mine = |record: &ObjectRecord| {
            record.lock.is_some_and(|lock| lock.host == me && lock.kind == LockKind::Background)
        };
        let apart = |record: &ObjectRecord| {
            state.conversions.of(record.id).is_some() || is_tended(&member, record.id)
        };
        let repaired = state.volumes().filter(|record| mine(record) && !apart(record));
        let owned = repaired.map(|record| (record.id, record.revision)).collect();
        turns.look(now, &owned);
        for record in state.volumes() {
            if mine(record) {
                let open = member.has_open(record.id);
                let done = state.is_settled(record) && !is_tended(&member, record.id);
                if open && !done && (apart(record) || !turns.is_over(record.id, now)) {
                    continue;
                }
                let released = if open {
                    member.release(record.id, &record.name, LockKind::Background).await
                } else {
                    member.give_back(record.id, record.epoch).await
                };
                if let Err(error) = released {
                    tracing::debug!(volume = %record.name, %error, "a repaired volume is not given back yet");
                }
            } else if state.holder(record, me).is_none()
                && !state.is_settled(record)
                && is_ours_to_repair(&member, record)
                && (apart(record) || turns.take(record.id, record.revision, now))
            {
                member.own_to_tend(record.id).await;
            }
        }
    }
}

/// Whether a closed volume is owned here for something that its record does not show.
fn is_tended(member: &Member, object: ObjectId) -> bool {
    member.scrubs.is_at(object) || member.moves.is_at(object)
}

/// Whether something of this object can be put right now, and this host is the one to do it: the first live one with a good
/// component of the first chunk where that is so. What is to become another object is made so by the one that would scrub it.
fn is_ours_to_repair(member: &Member, record: &ObjectRecord) -> bool {
    let state = member.state();
    if state.conversions.of(record.id).is_some() {
        let placed = record.chunks.values().any(|chunk| chunk.in_sync().next().is_some());
        return if placed { is_ours_to_tend(member, record) } else { is_first(member) };
    }
    let alive = |host| member.hears_from(host);
    let overdue = |since_unix_s| clock::unix_s().saturating_sub(since_unix_s) >= member.config.repair_delay_s;
    repairer(&state, record, &alive, &overdue) == Some(member.host())
}

/// Whether this host is the first of those that are there: for what is nowhere.
fn is_first(member: &Member) -> bool {
    let state = member.state();
    state.hosts.keys().filter(|host| member.hears_from(**host)).min() == Some(&member.host())
}

fn repairer(
    state: &State,
    record: &ObjectRecord,
    alive: &dyn Fn(HostId) -> bool,
    overdue: &dyn Fn(u64) -> bool,
) -> Option<HostId> {
    let emptied = state.emptied(record.policy);
    let live = |c: &Component| state.disks.get(&c.disk).map(|d| d.host).filter(|host| alive(*host));
    let useful = |index: ChunkIndex, chunk: &ChunkRecord| {
        let worth = |c: &Component| match c.sync {
            Sync::InSync => emptied.contains(&c.disk),
            Sync::Stale { since_unix_s, .. } => {
                emptied.contains(&c.disk)
                    || live(c).is_some()
                    || (overdue(since_unix_s) && !state.is_resting(c.disk))
            }
        };
        chunk.components.len() != record.policy.components(index) || chunk.components.iter().any(worth)
    };
    let useful = record.chunks.iter().filter(|(index, chunk)| useful(**index, chunk));
    useful.map(|(index, _)| *index).find_map(|index| record.source(index, &live))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferro_protocol::ids::{DiskId, Epoch, Seq};
    use vsand_core::directory::{Content, DiskHealth, DiskRecord, Policy};

    fn host(n: u8) -> HostId {
        HostId::from_bytes([n; 16])
    }

    fn disk(n: u8) -> DiskId {
        DiskId::from_bytes([n; 16])
    }

    /// Hosts 1 to 6 with a disk each.
    fn six() -> State {
        let mut state = State::default();
        for n in 1..=6 {
            let record = DiskRecord {
                id: disk(n),
                host: host(n),
                path: "/disk".to_owned(),
                capacity_extents: 1_000,
                used_extents: 10,
                health: DiskHealth::Healthy,
            };
            state.disks.insert(disk(n), record);
        }
        state
    }

    fn component(n: u8, in_sync: bool) -> Component {
        let stale = Sync::Stale { stale_seq: Seq(0), since_unix_s: 1_000 };
        Component { disk: disk(n), sync: if in_sync { Sync::InSync } else { stale } }
    }

    fn object(policy: Policy, chunks: &[(ChunkIndex, &[Component])]) -> ObjectRecord {
        let chunks = chunks.iter().map(|(index, c)| (*index, ChunkRecord { components: c.to_vec() }));
        ObjectRecord {
            id: ObjectId::from_bytes([7; 16]),
            name: "v".parse().unwrap(),
            size_bytes: 4 << 30,
            policy,
            content: Content::Whole,
            epoch: Epoch(1),
            lock: None,
            chunks: chunks.collect::<BTreeMap<_, _>>(),
            created_unix_s: 1,
            revision: 1,
        }
    }

    fn who(record: &ObjectRecord, dead: &[u8], late: bool) -> Option<HostId> {
        repairer(&six(), record, &|h| !dead.iter().any(|n| host(*n) == h), &|_| late)
    }

    #[test]
    fn the_first_live_host_with_a_good_copy_repairs() {
        let mirror = Policy::Mirror { copies: 2 };
        let (first, second) =
            ([component(3, false), component(2, true)], [component(4, true), component(5, false)]);
        let record = object(mirror, &[(ChunkIndex(0), &first), (ChunkIndex(1), &second)]);
        assert_eq!(who(&record, &[], false), Some(host(2)));
        assert_eq!(
            who(&record, &[3], false),
            Some(host(4)),
            "the first chunk has to wait, the second has not"
        );
        assert_eq!(who(&record, &[3, 5], false), None);
        assert_eq!(who(&record, &[3, 5], true), Some(host(2)), "the delay is over");
        assert_eq!(who(&record, &[2, 4], false), None, "there is nothing to copy from");
        let whole = object(mirror, &[(ChunkIndex(0), &[component(1, true), component(2, true)])]);
        assert_eq!(who(&whole, &[], true), None);
    }

    #[test]
    fn a_shard_is_made_again_where_enough_others_answer() {
        let chunk = ChunkIndex(0);
        let log = [component(5, true), component(4, true)];
        let (a, b) = ([component(3, true)], [component(2, true)]);
        for lost in [&[][..], &[component(1, false)]] {
            let records =
                [(chunk.shard(0), &a[..]), (chunk.shard(1), lost), (chunk.shard(2), &b), (chunk.log(), &log)];
            let record = object(Policy::Parity { data: 2, parity: 1 }, &records);
            assert_eq!(who(&record, &[], false), Some(host(2)));
            assert_eq!(who(&record, &[2], false), None, "one shard is not enough");
        }
    }

    #[test]
    fn turns_are_few_and_who_can_t_be_helped_gives_way() {
        let id = |n: u8| ObjectId::from_bytes([n; 16]);
        let at = |s: u64| Instant(s * 1_000_000_000);
        let mut turns = Turns::default();
        let most = u8::try_from(TURNS).unwrap();
        assert!((0..most).all(|n| turns.take(id(n), 1, at(0))));
        // The first is helped all the time, the others are not; nobody waits.
        let mut owned: BTreeMap<ObjectId, u64> = (0..most).map(|n| (id(n), 1)).collect();
        owned.insert(id(0), 2);
        turns.look(at(400), &owned);
        assert!(!turns.is_over(id(1), at(400)), "nobody waits");
        assert!(!turns.take(id(99), 1, at(400)), "all turns are taken");
        turns.look(at(405), &owned);
        assert!(turns.is_over(id(1), at(405)) && !turns.is_over(id(0), at(405)));
        owned.remove(&id(1));
        turns.look(at(410), &owned);
        assert!(turns.take(id(99), 1, at(410)) && !turns.take(id(1), 1, at(410)), "not at once again");
        turns.look(at(1_100), &BTreeMap::new());
        assert!(turns.take(id(1), 1, at(1_100)));
    }
}
