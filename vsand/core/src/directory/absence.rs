//! Hosts that are away: what they hold is missed also where nobody writes to it.
//!
//! A write that does not reach a component takes it out of the in-sync set, and its repair begins from there. Where nobody
//! writes, and in volumes that nobody has open, that never happens: such data would stand one failure fewer for as long as the host is
//! away. So the directory itself knows who is away, by the leases that all hosts renew ([`crate::lease`]):
//!
//! ```text
//!   there ──silent for AWAY_AFTER──▶ away ──for the repair delay──▶ given up
//!     ▲                               │                                │
//!     └────────── RenewLease ─────────┴────────────────────────────────┘
//! ```
//!
//! - *Away*: nothing more is built or moved there, and a new chunk is placed there only if there are no other hosts for it.
//! - *Given up*: what it holds is built elsewhere, by the same steps as if it were leaving ([`super::leave`]), where the hosts that
//!   are there can hold it. Until that is done its components stay in the in-sync set: they are as good as when it went away if
//!   nobody wrote since, and it is back with its next renewal.
//!
//! A host in maintenance is not given up: somebody works on it.
//!
//! Invariants:
//! - a host that has renewed its lease since is not away: who says that it is names the lease that it saw stand still;
//! - without hosts enough for a policy nothing of that policy is on the move.
//!
//! What it must not know: clocks. Who says that a host is away has waited ([`State::next_absence`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ferro_protocol::ids::{DiskId, HostId};
use serde::{Deserialize, Serialize};

use super::State;
use super::apply::Applied;
use super::command::{Command, Outcome, Refused};
use super::level::FeatureLevel;
use super::placement::has_room;
use super::records::{DiskHealth, DiskRecord, Lock, LockKind, ObjectRecord, Policy};
use crate::lease::Watcher;
use crate::time::Now;

/// A host that has been silent for so long is away. Longer than [`crate::lease::BREAK_AFTER`].
pub const AWAY_AFTER: Duration = Duration::from_secs(10);
/// Who gives a host up has itself seen it silent for the repair delay, or for so long: after the start of a whole cluster
/// the slower hosts have that time, whatever was known of them before.
pub const SEEN_SILENT: Duration = Duration::from_secs(300);

/// How a host is away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Absence {
    /// Since when, in seconds since 1970.
    pub since_unix_s: u64,
    /// What it holds is built elsewhere.
    pub given_up: bool,
}

/// The hosts that are away.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Absences(BTreeMap<HostId, Absence>);

impl Absences {
    /// How this host is away, if it is.
    pub fn of(&self, host: HostId) -> Option<Absence> {
        self.0.get(&host).copied()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (HostId, Absence)> {
        self.0.iter().map(|(host, absence)| (*host, *absence))
    }

    /// Whether everybody is there.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn end(&mut self, host: HostId) {
        self.0.remove(&host);
    }
}

impl State {
    /// Whether a disk is in a host that is away.
    pub fn is_away(&self, disk: DiskId) -> bool {
        !self.absences.is_empty() && self.disks.get(&disk).is_some_and(|d| self.absences.of(d.host).is_some())
    }

    /// Whether a disk is in a host that is away for good, as far as anybody knows.
    pub fn is_given_up(&self, disk: DiskId) -> bool {
        !self.absences.is_empty()
            && self.disks.get(&disk).is_some_and(|d| {
                self.absences.of(d.host).is_some_and(|a| a.given_up) && self.maintenance(d.host).is_none()
            })
    }

    /// The lock that keeps this host from an object, which may be its own. A repair is no opening: where another host does it and is
    /// away, this one may go on with it.
    pub fn holder(&self, object: &ObjectRecord, me: HostId) -> Option<Lock> {
        let left = |lock: &Lock| {
            lock.kind == LockKind::Background && lock.host != me && self.absences.of(lock.host).is_some()
        };
        object.lock.filter(|lock| !left(lock))
    }

    /// Whether the hosts that are there can hold an object of this policy, as far as that can be said of all of its chunks: those that have
    /// a component on a full disk may need room on another one only.
    pub(super) fn can_spare_the_absent(&self, policy: Policy) -> bool {
        let there = |d: &&DiskRecord| {
            d.health == DiskHealth::Healthy && !self.is_away(d.id) && !self.is_departing(policy, d.id)
        };
        let usable = || self.disks.values().filter(there);
        let domains: BTreeSet<&str> = usable().filter_map(|d| self.fault_domain(d.id)).collect();
        domains.len() >= policy.domains() && usable().any(has_room)
    }

    pub(super) fn host_away(&mut self, host: HostId, lease: u64, absence: Absence) -> Applied {
        let record = self.hosts.get(&host).ok_or(Refused::NoHost(host))?;
        if record.lease != lease {
            return Err(Refused::LeaseAlive(host));
        }
        let known = self.absences.0.entry(host).or_insert(absence);
        known.since_unix_s = known.since_unix_s.min(absence.since_unix_s);
        known.given_up |= absence.given_up;
        Ok(Outcome::Done)
    }

    /// What this host is to say of another one's absence, if anything: the first of those that are there says it.
    pub fn next_absence(
        &self,
        now: Now,
        me: HostId,
        watcher: &Watcher,
        repair_delay_s: u64,
    ) -> Option<Command> {
        if self.level < FeatureLevel::ABSENCES {
            return None;
        }
        let silent = |host| watcher.missed_for(now.mono, host);
        let there = |host: &HostId| *host == me || silent(*host).is_none_or(|s| s < AWAY_AFTER);
        if self.hosts.keys().find(|host| there(host)) != Some(&me) {
            return None;
        }
        let seen_enough = SEEN_SILENT.min(Duration::from_secs(repair_delay_s));
        // One that never came up has nothing that could be missed.
        self.hosts.values().filter(|host| host.lease > 0 && !there(&host.id)).find_map(|host| {
            let (lease, silent) = (watcher.ended(now.mono, host.id).ok()?, silent(host.id)?);
            let known = self.absences.of(host.id);
            let since_unix_s = known.map_or(now.unix_s.saturating_sub(silent.as_secs()), |a| a.since_unix_s);
            let given_up = self.maintenance(host.id).is_none()
                && silent >= seen_enough
                && now.unix_s.saturating_sub(since_unix_s) >= repair_delay_s;
            let news = known.is_none_or(|known| given_up && !known.given_up);
            let absence = Absence { since_unix_s, given_up };
            news.then_some(Command::HostAway { host: host.id, lease, absence })
        })
    }
}
