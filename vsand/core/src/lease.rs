//! Host leases: when an owner may still serve reads, and when another host may break its locks (DESIGN.md, Storage, rule 4).
//!
//! A host renews its lease by a command in the directory that adds one to its counter. Two clocks are compared, and neither
//! is trusted to agree with the other, only to run at nearly the same speed:
//!
//! ```text
//!   holder    send ────────── valid for LEASE, counted from *sending* ──────────┤ stops serving reads
//!                 \
//!   directory      applied (counter n)
//!                    \
//!   breaker           seen ───────── waits BREAK_AFTER, counted from *seeing* ─────────────────┤ proposes "break if still n"
//! ```
//!
//! Seeing comes after sending and `BREAK_AFTER` is longer than `LEASE` by more than two clocks may drift apart, so the holder
//! has stopped before anyone breaks. The command carries the counter: had the holder renewed in between, it would fail. A
//! holder that renews later hears from the answer which locks it still has, before it serves again ([`Renewal`]).

use std::collections::BTreeMap;
use std::time::Duration;

use ferro_protocol::ids::{Epoch, HostId, ObjectId};

use crate::time::Instant;

/// How long a lease runs from the moment its renewal was sent.
pub const LEASE: Duration = Duration::from_secs(6);
/// How often a host renews.
pub const RENEW_EVERY: Duration = Duration::from_secs(2);
/// How long a breaker must have seen no renewal: `LEASE` and a quarter, far more than any two clocks drift in six seconds.
pub const BREAK_AFTER: Duration = Duration::from_millis(7_500);

/// The holder's side: until when this host may serve reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Holder {
    valid_until: Instant,
}

impl Holder {
    /// A renewal that was sent at `sent` was applied.
    pub fn renewed(&mut self, sent: Instant) {
        self.valid_until = self.valid_until.max(sent + LEASE);
    }

    /// Until when reads may be served.
    pub fn valid_until(&self) -> Instant {
        self.valid_until
    }
}

/// The directory's answer to a renewal of this host's lease.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Renewal {
    /// When the renewal was sent.
    pub sent: Instant,
    /// The locks that the host held when it was applied.
    pub locks: Vec<(ObjectId, Epoch)>,
}

/// What a renewal says about one owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It holds its lock: it may serve reads until then.
    Valid(Instant),
    /// Its lock is gone, or is one of another epoch: it must end, and serve nothing more.
    Lost,
    /// The renewal was sent before the owner's lock was known to be taken, and may have been applied before: it proves nothing.
    Unknown,
}

impl Renewal {
    /// What this says about the owner of this epoch, whose `Acquire` was answered at `acquired`.
    pub fn standing(&self, object: ObjectId, epoch: Epoch, acquired: Instant) -> Standing {
        if acquired > self.sent {
            Standing::Unknown
        } else if self.locks.contains(&(object, epoch)) {
            Standing::Valid(self.sent + LEASE)
        } else {
            Standing::Lost
        }
    }

    /// Locks of objects that this host does not own: of an earlier life, or of an `Acquire` that was carried out after its asker
    /// had given up. Nobody else can open these objects until the locks are released; a release names the epoch, so it can't
    /// take away a lock that is taken meanwhile.
    pub fn leftovers(&self, owned: impl Fn(ObjectId) -> bool) -> Vec<(ObjectId, Epoch)> {
        self.locks.iter().filter(|(object, _)| !owned(*object)).copied().collect()
    }
}

/// The breaker's side: how long each host's counter has stood still.
#[derive(Clone, Debug, Default)]
pub struct Watcher {
    seen: BTreeMap<HostId, (u64, Instant)>,
    /// When any counter last moved, and since when that never took longer than a lease.
    moving: Option<(Instant, Instant)>,
}

impl Watcher {
    /// The directory shows this counter for the host.
    pub fn observe(&mut self, now: Instant, host: HostId, counter: u64) {
        let entry = self.seen.entry(host).or_insert((counter, now));
        if entry.0 != counter {
            *entry = (counter, now);
            let steady = self.moving.filter(|(last, _)| now.since(*last) <= LEASE);
            self.moving = Some((now, steady.map_or(now, |(_, since)| since)));
        }
    }

    /// Drops what is known of hosts that are gone.
    pub fn retain(&mut self, keep: impl Fn(HostId) -> bool) {
        self.seen.retain(|host, _| keep(*host));
    }

    /// The counter to name in a break of the host's locks, if its lease has surely ended; else how long that still takes.
    pub fn ended(&self, now: Instant, host: HostId) -> Result<u64, Duration> {
        match self.seen.get(&host) {
            Some((counter, at)) if now.since(*at) >= BREAK_AFTER => Ok(*counter),
            Some((_, at)) => Err(BREAK_AFTER.saturating_sub(now.since(*at))),
            None => Err(BREAK_AFTER),
        }
    }

    /// How long ago the host's counter last moved, as seen from here.
    pub fn silent_for(&self, now: Instant, host: HostId) -> Option<Duration> {
        self.seen.get(&host).map(|(_, at)| now.since(*at))
    }

    /// For how long the host's counter has stood still while others moved: while the directory can't be changed, or this host hears
    /// nothing of it, nobody's counter does, and that says nothing of anybody.
    pub fn missed_for(&self, now: Instant, host: HostId) -> Option<Duration> {
        let (_, since) = self.moving.filter(|(last, _)| now.since(*last) <= LEASE)?;
        Some(self.silent_for(now, host)?.min(now.since(since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_broken_only_after_the_holder_stopped() {
        let host = HostId::from_bytes([1; 16]);
        let at = |ms: u64| Instant(ms * 1_000_000);
        let (mut holder, mut watcher) = (Holder::default(), Watcher::default());
        holder.renewed(at(0));
        watcher.observe(at(1), host, 1);
        watcher.observe(at(4_000), host, 1);
        let mut t = 1;
        while watcher.ended(at(t), host).is_err() {
            t += 1;
        }
        assert!(at(t) > holder.valid_until(), "broken at {t} ms");
        watcher.observe(at(t), host, 2);
        assert!(watcher.ended(at(t + 1), host).is_err(), "a renewal begins a new wait");
    }

    #[test]
    fn a_renewal_speaks_of_locks_that_were_there_when_it_was_sent() {
        let [one, other, third] = [1, 2, 3].map(|n| ObjectId::from_bytes([n; 16]));
        let renewal = Renewal { sent: Instant(100), locks: vec![(one, Epoch(3)), (third, Epoch(1))] };
        assert_eq!(renewal.standing(one, Epoch(3), Instant(99)), Standing::Valid(Instant(100) + LEASE));
        assert_eq!(renewal.standing(one, Epoch(2), Instant(50)), Standing::Lost, "an owner of before");
        assert_eq!(renewal.standing(other, Epoch(1), Instant(100)), Standing::Lost);
        assert_eq!(renewal.standing(other, Epoch(1), Instant(101)), Standing::Unknown, "taken since");
        assert_eq!(renewal.standing(one, Epoch(3), Instant(101)), Standing::Unknown);
        assert_eq!(renewal.leftovers(|object| object == one), [(third, Epoch(1))]);
    }

    #[test]
    fn a_host_is_missed_only_while_others_are_heard_of() {
        let [one, other] = [1, 2].map(|n| HostId::from_bytes([n; 16]));
        let at = |s: u64| Instant(s * 1_000_000_000);
        let mut watcher = Watcher::default();
        for host in [one, other] {
            watcher.observe(at(0), host, 1);
        }
        assert_eq!(watcher.missed_for(at(5), other), None, "nothing moves yet");
        for s in (2..=20).step_by(2) {
            watcher.observe(at(s), one, s);
        }
        assert_eq!(
            watcher.missed_for(at(20), other),
            Some(Duration::from_secs(18)),
            "since the first renewal"
        );
        assert_eq!(watcher.missed_for(at(20), one), Some(Duration::ZERO));
        // The directory could not be changed for a minute.
        assert_eq!(watcher.missed_for(at(40), other), None);
        watcher.observe(at(80), one, 80);
        assert_eq!(watcher.silent_for(at(80), other), Some(Duration::from_secs(80)));
        assert_eq!(
            watcher.missed_for(at(83), other),
            Some(Duration::from_secs(3)),
            "it has had no time to renew"
        );
    }

    #[test]
    fn an_unknown_host_must_be_watched_first() {
        assert_eq!(
            Watcher::default().ended(Instant(u64::MAX), HostId::from_bytes([9; 16])),
            Err(BREAK_AFTER)
        );
    }
}
