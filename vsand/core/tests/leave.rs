//! Disks and hosts that leave: what is refused at once, what moves, what may go.

use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, ObjectId, Seq};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{
    Basis, Command, Departure, HostRecord, LockKind, ObjectRecord, Outcome, Policy, Refused, State, Sync,
    SyncChange,
};

const EMPTY: Option<Departure> = Some(Departure::WhenEmpty);

fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

fn disk(n: u8) -> DiskId {
    DiskId::from_bytes([n; 16])
}

fn object() -> ObjectId {
    ObjectId::from_bytes([9; 16])
}

struct Cluster {
    state: State,
    index: u64,
}

impl Cluster {
    /// So many hosts with a disk each, and a mirror with one chunk that a repair on host 1 owns.
    fn new(hosts: u8, copies: u8) -> Self {
        let mut cluster = Self { state: State::default(), index: 0 };
        for n in 1..=hosts {
            let record = HostRecord {
                id: host(n),
                name: format!("h{n}"),
                address: ([10, 0, 0, n], 7_000).into(),
                fault_domain: format!("h{n}"),
                joined_unix_s: 0,
                lease: 0,
            };
            cluster.ok(Command::PutHost { host: record });
            cluster.put_disk(n, n, 1 << 20, 500);
        }
        let (object, policy) = (object(), Policy::Mirror { copies });
        let name = "v".parse().expect("a name");
        cluster.ok(Command::CreateObject { object, name, size_bytes: CHUNK_BYTES, policy, unix_s: 0 });
        cluster.acquire(1, LockKind::Background).expect("nobody has it");
        let basis = cluster.basis();
        cluster.ok(Command::PlaceChunk { basis, chunk: ChunkIndex(0), near: host(1) });
        cluster
    }

    fn apply(&mut self, command: Command) -> Result<Outcome, Refused> {
        self.index += 1;
        let before = self.state.clone();
        let result = self.state.apply(self.index, command);
        if result.is_err() {
            assert_eq!(self.state, before, "a refused command changed something");
        }
        result
    }

    fn ok(&mut self, command: Command) {
        self.apply(command).expect("accepted");
    }

    fn put_disk(&mut self, n: u8, on: u8, capacity_extents: u64, used_extents: u64) {
        let path = format!("/d{n}");
        self.ok(Command::PutDisk { disk: disk(n), host: host(on), path, capacity_extents, used_extents });
    }

    fn acquire(&mut self, on: u8, kind: LockKind) -> Result<Outcome, Refused> {
        let epoch = self.record().epoch;
        self.apply(Command::Acquire { object: object(), epoch, host: host(on), kind, unix_s: 0 })
    }

    fn record(&self) -> &ObjectRecord {
        &self.state.objects[&object()]
    }

    fn basis(&self) -> Basis {
        Basis { object: object(), epoch: self.record().epoch, revision: self.record().revision }
    }

    fn disks(&self) -> Vec<DiskId> {
        self.record().chunks[&ChunkIndex(0)].components.iter().map(|c| c.disk).collect()
    }

    fn repair(&mut self) -> Result<Outcome, Refused> {
        let basis = self.basis();
        self.apply(Command::Repair { basis, chunk: ChunkIndex(0), drop: None, unix_s: 0 })
    }

    fn trim(&mut self) -> Result<Outcome, Refused> {
        let basis = self.basis();
        self.apply(Command::Trim { basis, chunk: ChunkIndex(0) })
    }

    fn join(&mut self, disk: DiskId) {
        let (basis, chunk) = (self.basis(), ChunkIndex(0));
        self.ok(Command::ChangeSync { basis, changes: vec![SyncChange::Add { chunk, disk }], unix_s: 0 });
    }
}

#[test]
fn a_component_moves_before_its_disk_goes() {
    let mut c = Cluster::new(4, 3);
    let leaves = c.disks()[1];
    assert!(matches!(c.repair(), Err(Refused::TooMuch(_))), "all its components are there");
    c.ok(Command::LeaveDisk { disk: leaves, departure: EMPTY });
    assert!(!c.state.is_settled(c.record()));
    assert_eq!(c.trim(), Err(Refused::NothingSpare(ChunkIndex(0))), "there is none too many yet");

    c.repair().expect("one more is placed");
    let new = *c.disks().last().expect("four");
    assert!(c.disks().contains(&leaves) && new != leaves && c.disks().len() == 4);
    assert!(c.repair().is_err(), "one more is enough");
    assert_eq!(c.trim(), Err(Refused::NothingSpare(ChunkIndex(0))), "the new one is empty");

    c.join(new);
    c.trim().expect("three others are in sync");
    assert!(!c.disks().contains(&leaves) && c.disks().len() == 3);
    assert!(c.state.is_settled(c.record()) && !c.state.holds_components(&[leaves]));
    c.ok(Command::RemoveDisk { disk: leaves, unix_s: 0 });
    assert!(c.state.leaving().is_empty(), "nothing is left of it");
}

#[test]
fn a_move_that_is_taken_back_leaves_nothing_behind() {
    for in_sync in [false, true] {
        let mut c = Cluster::new(4, 3);
        let leaves = c.disks()[0];
        c.ok(Command::LeaveDisk { disk: leaves, departure: EMPTY });
        c.repair().expect("placed");
        let new = *c.disks().last().expect("four");
        if in_sync {
            c.join(new);
        }
        c.ok(Command::LeaveDisk { disk: leaves, departure: None });
        assert!(!c.state.is_settled(c.record()), "one too many");
        c.trim().expect("one goes");
        assert_eq!(c.disks().len(), 3);
        assert!(in_sync || c.disks().contains(&leaves), "the one that was never filled");
        assert!(c.state.is_settled(c.record()));
    }
}

#[test]
fn what_stays_keeps_its_fault_domains() {
    let mut c = Cluster::new(3, 3);
    // Another disk in the first one's host: that is where its component goes, and nowhere else can it.
    c.put_disk(11, 1, 1 << 20, 0);
    c.ok(Command::LeaveDisk { disk: disk(1), departure: EMPTY });
    c.repair().expect("placed");
    assert_eq!(c.disks().last(), Some(&disk(11)));
    c.join(disk(11));
    c.ok(Command::LeaveDisk { disk: disk(1), departure: None });
    c.trim().expect("one of the two in host 1");
    let hosts: std::collections::BTreeSet<_> = c.disks().iter().map(|d| c.state.disks[d].host).collect();
    assert_eq!(hosts.len(), 3, "three copies in two hosts are not what was asked for");
}

#[test]
fn what_the_others_can_not_hold_is_refused_at_once() {
    let mut c = Cluster::new(3, 3);
    let leave = Command::LeaveDisk { disk: disk(2), departure: EMPTY };
    assert!(matches!(c.apply(leave), Err(Refused::CantMove { needed: 3, found: 2, .. })));
    let leave = Command::LeaveHost { host: host(2), departure: EMPTY };
    assert!(matches!(c.apply(leave), Err(Refused::CantMove { needed: 3, found: 2, .. })));
    // At once it may, as the others have it; then a copy is missing.
    c.ok(Command::LeaveHost { host: host(2), departure: Some(Departure::AtOnce) });
    c.ok(Command::RemoveHost { host: host(2), unix_s: 0 });
    assert_eq!(c.disks().len(), 2);

    let mut c = Cluster::new(4, 3);
    let spare = (1..=4).map(disk).find(|d| !c.disks().contains(d)).expect("one of four");
    let n = spare.as_bytes()[0];
    c.put_disk(n, n, 1_000, 600);
    let full = c.disks()[0];
    let leave = Command::LeaveDisk { disk: full, departure: EMPTY };
    assert!(matches!(c.apply(leave.clone()), Err(Refused::NoSpaceElsewhere { extents: 500, .. })));
    c.put_disk(n, n, 1_200, 600);
    c.ok(leave);
}

#[test]
fn a_last_copy_never_goes_by_force() {
    let mut c = Cluster::new(2, 1);
    let only = c.disks()[0];
    let leave = Command::LeaveDisk { disk: only, departure: Some(Departure::AtOnce) };
    assert!(matches!(c.apply(leave), Err(Refused::WouldLoseData { chunks: 1, .. })));
    c.ok(Command::LeaveDisk { disk: only, departure: EMPTY });
    let remove = Command::RemoveDisk { disk: only, unix_s: 0 };
    assert!(matches!(c.apply(remove), Err(Refused::WouldLoseData { .. })), "it is not empty yet");
    c.repair().expect("the other disk takes it");
    let new = *c.disks().last().expect("two");
    let stale = Sync::Stale { stale_seq: Seq(0), since_unix_s: 0 };
    assert_eq!(c.record().chunks[&ChunkIndex(0)].components[1].sync, stale, "it has nothing yet");
    c.join(new);
    c.trim().expect("moved");
    assert_eq!(c.disks(), [new]);
}

#[test]
fn a_host_that_leaves_opens_nothing_and_repairs_do_not_keep_it() {
    let mut c = Cluster::new(4, 2);
    let guest = LockKind::Exclusive { read_only: false };
    let (leave, keep) = (
        Command::LeaveHost { host: host(1), departure: EMPTY },
        Command::LeaveHost { host: host(1), departure: None },
    );
    c.acquire(1, guest).expect("opened");
    assert!(matches!(c.apply(leave.clone()), Err(Refused::HoldsLock { .. })), "it is open there");
    let epoch = c.record().epoch;
    c.ok(Command::Release { object: object(), epoch, host: host(1) });
    c.ok(leave.clone());
    assert_eq!(c.acquire(1, guest), Err(Refused::HostLeaves(host(1))));
    c.ok(keep);
    c.acquire(1, LockKind::Background).expect("it stays, and may repair");
    c.ok(leave);
    c.repair().expect("placed");
    let new = *c.disks().last().expect("three");
    c.join(new);
    c.trim().expect("moved");
    assert!(c.record().lock.is_some());
    c.ok(Command::RemoveHost { host: host(1), unix_s: 0 });
    assert!(c.record().lock.is_none() && c.state.leaving_hosts.is_empty());
}

#[test]
fn nothing_new_is_placed_on_a_disk_that_leaves() {
    let mut c = Cluster::new(4, 2);
    let spare = (1..=4).map(disk).filter(|d| !c.disks().contains(d)).collect::<Vec<_>>();
    c.ok(Command::LeaveDisk { disk: spare[0], departure: EMPTY });
    c.ok(Command::LeaveDisk { disk: c.disks()[0], departure: EMPTY });
    c.repair().expect("placed");
    assert_eq!(c.disks().last(), Some(&spare[1]));
    let last = Command::LeaveHost { host: host(spare[1].as_bytes()[0]), departure: EMPTY };
    assert!(matches!(c.apply(last), Err(Refused::CantMove { .. })), "all others leave already");
}
