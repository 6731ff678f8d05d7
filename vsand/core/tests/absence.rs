//! Hosts that are away: who says so, what is placed, and what goes elsewhere.

mod common;

use std::time::Duration;

use common::cluster::{Cluster, FIRST, mirror};
use common::{disk, host};
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId};
use vsand_core::directory::{
    Absence, Command, Departure, MaintenanceMode, Policy, Refused, State, SyncChange,
};
use vsand_core::lease::Watcher;
use vsand_core::time::{Instant, Now};

const DELAY_S: u64 = 60;

/// So many hosts, and the object's first chunk.
fn placed(hosts: u8, policy: Policy) -> Cluster {
    let mut c = Cluster::placed(hosts, policy);
    c.raise();
    c
}

/// Gives up the host of one of the chunk's disks that is not the owner's.
fn give_up(c: &mut Cluster, chunk: ChunkIndex) -> (u8, DiskId) {
    let gone = c.disks(chunk).into_iter().find(|d| *d != disk(1)).expect("a copy elsewhere");
    let n = common::cluster::number(gone);
    let command = c.away(n, true);
    c.ok(command);
    (n, gone)
}

#[test]
fn who_has_renewed_its_lease_is_not_away() {
    let mut c = placed(4, mirror(3));
    let late = c.away(2, true);
    c.ok(Command::RenewLease { host: host(2) });
    assert_eq!(c.apply(late), Err(Refused::LeaseAlive(host(2))));
    let command = c.away(2, false);
    c.ok(command);
    assert_eq!(c.state.absences.of(host(2)), Some(Absence { since_unix_s: 7, given_up: false }));
    let lease = c.state.hosts[&host(2)].lease;
    let later = Absence { since_unix_s: 90, given_up: true };
    c.ok(Command::HostAway { host: host(2), lease, absence: later });
    c.ok(c.away(2, false));
    assert_eq!(
        c.state.absences.of(host(2)),
        Some(Absence { since_unix_s: 7, given_up: true }),
        "the first time counts"
    );
    c.ok(Command::RenewLease { host: host(2) });
    assert!(c.state.absences.is_empty());
    let nobody = Command::HostAway { host: host(9), lease: 0, absence: later };
    assert_eq!(c.apply(nobody), Err(Refused::NoHost(host(9))));
}

#[test]
fn what_a_host_holds_that_was_given_up_goes_elsewhere_and_counts_until_it_is_there() {
    let mut c = placed(4, mirror(3));
    let (n, gone) = give_up(&mut c, FIRST);
    assert!(!c.state.is_settled(c.record()) && c.state.is_emptied(mirror(3), gone));
    assert!(!c.state.is_leaving(gone), "nobody has asked it to leave");
    c.repair(FIRST, None).expect("one more is placed");
    let new = *c.disks(FIRST).last().expect("four");
    assert_eq!(c.trim(FIRST), Err(Refused::NothingSpare(FIRST)), "the new one is empty");
    c.join(new);
    c.trim(FIRST).expect("three others are in sync and there");
    c.trim(FIRST).expect("and now it goes");
    assert!(!c.disks(FIRST).contains(&gone) && c.state.is_settled(c.record()));
    c.ok(Command::RemoveHost { host: host(n), unix_s: 0 });
    assert!(c.state.absences.is_empty());
}

#[test]
fn a_host_that_is_back_keeps_what_it_has() {
    let mut c = placed(4, mirror(3));
    let (n, gone) = give_up(&mut c, FIRST);
    c.repair(FIRST, None).expect("placed");
    let new = *c.disks(FIRST).last().expect("four");
    c.ok(Command::RenewLease { host: host(n) });
    c.trim(FIRST).expect("the new one is not needed");
    assert!(c.disks(FIRST).contains(&gone) && !c.disks(FIRST).contains(&new));
    assert!(c.state.is_settled(c.record()));
}

#[test]
fn a_copy_too_many_is_never_one_that_is_there_while_another_is_away() {
    let mut c = placed(4, mirror(3));
    let before = c.disks(FIRST);
    // One that is being moved from a disk that stays, when another one's host goes.
    let basis = c.basis();
    c.ok(Command::Move { basis, chunk: FIRST, from: before[0], unix_s: 0 });
    let new = *c.disks(FIRST).last().expect("four");
    c.join(new);
    let command = c.away(common::cluster::number(before[1]), false);
    c.ok(command);
    c.trim(FIRST).expect("one is not in sync any more");
    c.trim(FIRST).expect("and goes");
    assert!(!c.disks(FIRST).contains(&before[1]), "{:?}", c.disks(FIRST));
}

#[test]
fn nothing_is_on_the_move_without_hosts_enough() {
    for (hosts, policy) in [(3, mirror(3)), (3, Policy::Parity { data: 2, parity: 1 })] {
        let mut c = placed(hosts, policy);
        let chunk = *c.record().chunks.keys().last().expect("placed");
        let (_, gone) = give_up(&mut c, chunk);
        assert!(c.state.is_given_up(gone) && c.state.emptied(policy).is_empty());
        assert!(c.state.is_settled(c.record()), "nobody tries what can't be");
        assert!(matches!(c.repair(chunk, None), Err(Refused::TooMuch(_))));
        // A new chunk is better placed there than not at all.
        c.place(ChunkIndex(1)).expect("as before the host went");
    }
}

#[test]
fn new_chunks_and_new_copies_are_placed_where_somebody_is() {
    let mut c = placed(5, mirror(2));
    let command = c.away(4, false);
    c.ok(command);
    for chunk in 1..8 {
        c.place(ChunkIndex(chunk)).expect("four hosts are there");
        assert!(!c.disks(ChunkIndex(chunk)).contains(&disk(4)));
    }
    // The other disk of a host that is away is no place for what it had.
    let mut c = placed(3, mirror(2));
    let gone = c.disks(FIRST)[1];
    let n = common::cluster::number(gone);
    c.put_disk(11, n, 1 << 21, 0);
    c.change(vec![SyncChange::Remove { chunk: FIRST, disk: gone, stale_seq: ferro_protocol::ids::Seq(1) }])
        .expect("missed");
    let command = c.away(n, false);
    c.ok(command);
    c.repair(FIRST, Some(gone)).expect("the third host has room");
    assert!(!c.disks(FIRST).contains(&disk(11)) && !c.disks(FIRST).contains(&gone), "{:?}", c.disks(FIRST));
}

#[test]
fn maintenance_is_waited_for() {
    let mut c = placed(4, mirror(3));
    let (n, gone) = give_up(&mut c, FIRST);
    let mode = MaintenanceMode::NoMove;
    c.ok(Command::LeaveHost {
        host: host(n),
        departure: Some(Departure::Maintenance { mode, since_unix_s: 9 }),
    });
    assert!(!c.state.is_given_up(gone) && c.state.is_settled(c.record()));
    c.ok(Command::LeaveHost { host: host(n), departure: None });
    assert!(c.state.is_given_up(gone));
}

/// What host `me` says at this second, when hosts have last renewed their leases at these.
struct Told {
    state: State,
    watcher: Watcher,
    now: Now,
}

impl Told {
    /// Four hosts, of which these renew every two seconds from the first second on, all others once.
    fn after(c: &Cluster, alive: &[u8], seconds: u64) -> Self {
        let (mut c, mut watcher) = (c.clone(), Watcher::default());
        let mut now = Now { mono: Instant(0), unix_s: 1_000 };
        for s in 0..=seconds {
            now = Now { mono: Instant(0) + Duration::from_secs(s), unix_s: 1_000 + s };
            for n in (1..=4).filter(|n| s == 1 || s % 2 == 0 && alive.contains(n) && s > 0) {
                c.ok(Command::RenewLease { host: host(n) });
            }
            for record in c.state.hosts.values() {
                watcher.observe(now.mono, record.id, record.lease);
            }
        }
        Self { state: c.state, watcher, now }
    }

    fn says(&self, me: HostId) -> Option<(HostId, Absence)> {
        match self.state.next_absence(self.now, me, &self.watcher, DELAY_S)? {
            Command::HostAway { host, absence, .. } => Some((host, absence)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_first_that_is_there_says_who_is_not() {
    let c = placed(4, mirror(3));
    let at = |alive: &[u8], seconds| Told::after(&c, alive, seconds);
    assert_eq!(at(&[2, 3, 4], 10).says(host(2)), None, "not yet");
    let absence = Absence { since_unix_s: 1_001, given_up: false };
    assert_eq!(at(&[2, 3, 4], 12).says(host(2)), Some((host(1), absence)));
    assert_eq!(at(&[2, 3, 4], 12).says(host(3)), None, "host 2 says it");
    assert_eq!(at(&[3, 4], 12).says(host(3)).map(|(host, _)| host), Some(host(1)), "one after the other");
    assert_eq!(at(&[1, 2, 3, 4], 200).says(host(1)), None);
    let long = Absence { given_up: true, ..absence };
    assert_eq!(at(&[2, 3, 4], 70).says(host(2)), Some((host(1), long)));

    let low = Cluster::placed(4, mirror(3));
    assert_eq!(Told::after(&low, &[2, 3, 4], 70).says(host(2)), None, "not all hosts would understand it");
}

#[test]
fn what_was_said_before_shortens_the_wait_but_not_below_what_a_host_has_seen_itself() {
    let mut c = placed(4, mirror(3));
    for n in 1..=4 {
        c.ok(Command::RenewLease { host: host(n) });
    }
    let lease = c.state.hosts[&host(1)].lease;
    let known =
        Command::HostAway { host: host(1), lease, absence: Absence { since_unix_s: 100, given_up: false } };
    let told = |seconds| {
        let mut told = Told::after(&c, &[2, 3, 4], seconds);
        // The others' renewals are known, and this one's absence from before.
        let lease = told.state.hosts[&host(1)].lease;
        let Command::HostAway { host, absence, .. } = known.clone() else { unreachable!() };
        told.state.apply(1 << 20, Command::HostAway { host, lease, absence }).expect("it stands still");
        told.says(common::host(2)).map(|(_, absence)| absence.given_up)
    };
    assert_eq!(told(30), None, "this host has watched for half a minute only");
    assert_eq!(told(62), Some(true));
}
