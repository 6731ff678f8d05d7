//! A directory by itself: hosts with a disk each, and one object.

use ferro_protocol::ids::{ChunkIndex, DiskId, ObjectId};
use ferro_protocol::units::CHUNK_BYTES;
use vsand_core::directory::{
    Absence, Basis, Command, FeatureLevel, HostRecord, LockKind, ObjectRecord, Outcome, Policy, Refused,
    State, SyncChange,
};

use super::{OBJECT, disk, host};

/// The object's first chunk, if it is a mirror.
pub const FIRST: ChunkIndex = ChunkIndex(0);

pub fn object() -> ObjectId {
    OBJECT
}

/// A host in a fault domain of its own.
pub fn host_record(n: u8) -> HostRecord {
    HostRecord {
        id: host(n),
        name: format!("h{n}"),
        address: ([10, 0, 0, n], 7_000).into(),
        fault_domain: format!("h{n}"),
        joined_unix_s: 0,
        lease: 0,
    }
}

/// The object with this policy, not there yet.
pub fn create(policy: Policy) -> Command {
    let name = "v".parse().expect("a name");
    Command::CreateObject { object: OBJECT, name, size_bytes: 8 * CHUNK_BYTES, policy, unix_s: 0 }
}

#[derive(Clone)]
pub struct Cluster {
    pub state: State,
    pub index: u64,
}

impl Cluster {
    /// So many hosts with a disk each, and an object that a repair on host 1 owns.
    pub fn new(hosts: u8, policy: Policy) -> Self {
        let mut cluster = Self { state: State::default(), index: 0 };
        for n in 1..=hosts {
            cluster.ok(Command::PutHost { host: host_record(n) });
            cluster.put_disk(n, n, 1 << 20, 500);
        }
        cluster.ok(create(policy));
        cluster.acquire(1, LockKind::Background).expect("nobody has it");
        cluster
    }

    /// The same with the first chunk placed.
    pub fn placed(hosts: u8, policy: Policy) -> Self {
        let mut cluster = Self::new(hosts, policy);
        cluster.place(FIRST).expect("there is room");
        cluster
    }

    pub fn apply(&mut self, command: Command) -> Result<Outcome, Refused> {
        self.index += 1;
        let before = self.state.clone();
        let result = self.state.apply(self.index, command);
        if result.is_err() {
            assert_eq!(self.state, before, "a refused command changed something");
        }
        result
    }

    pub fn ok(&mut self, command: Command) {
        self.apply(command).expect("accepted");
    }

    /// To the newest feature level.
    pub fn raise(&mut self) {
        let hosts = self.state.hosts.keys().copied().collect();
        self.ok(Command::RaiseLevel { from: FeatureLevel::OLDEST, to: FeatureLevel::NEWEST, hosts });
    }

    /// That a host is away, with the lease that it has now.
    pub fn away(&self, n: u8, given_up: bool) -> Command {
        let lease = self.state.hosts[&host(n)].lease;
        Command::HostAway { host: host(n), lease, absence: Absence { since_unix_s: 7, given_up } }
    }

    pub fn put_disk(&mut self, n: u8, on: u8, capacity_extents: u64, used_extents: u64) {
        let path = format!("/d{n}");
        self.ok(Command::PutDisk { disk: disk(n), host: host(on), path, capacity_extents, used_extents });
    }

    pub fn acquire(&mut self, on: u8, kind: LockKind) -> Result<Outcome, Refused> {
        let epoch = self.record().epoch;
        self.apply(Command::Acquire { object: OBJECT, epoch, host: host(on), kind, unix_s: 0 })
    }

    pub fn record(&self) -> &ObjectRecord {
        &self.state.objects[&OBJECT]
    }

    pub fn basis(&self) -> Basis {
        Basis { object: OBJECT, epoch: self.record().epoch, revision: self.record().revision }
    }

    pub fn disks(&self, index: ChunkIndex) -> Vec<DiskId> {
        self.record().chunks[&index].components.iter().map(|c| c.disk).collect()
    }

    pub fn place(&mut self, chunk: ChunkIndex) -> Result<Outcome, Refused> {
        let basis = self.basis();
        self.apply(Command::PlaceChunk { basis, chunk, near: host(1) })
    }

    pub fn change(&mut self, changes: Vec<SyncChange>) -> Result<Outcome, Refused> {
        let basis = self.basis();
        self.apply(Command::ChangeSync { basis, changes, unix_s: 0 })
    }

    pub fn repair(&mut self, chunk: ChunkIndex, drop: Option<DiskId>) -> Result<Outcome, Refused> {
        let basis = self.basis();
        self.apply(Command::Repair { basis, chunk, drop, unix_s: 0 })
    }

    pub fn trim(&mut self, chunk: ChunkIndex) -> Result<Outcome, Refused> {
        let basis = self.basis();
        self.apply(Command::Trim { basis, chunk })
    }

    /// A mirror's component on the disk has everything.
    pub fn join(&mut self, disk: DiskId) {
        self.change(vec![SyncChange::Add { chunk: FIRST, disk }]).expect("accepted");
    }
}

/// The number of a host's first disk.
pub fn number(disk: DiskId) -> u8 {
    disk.as_bytes()[0]
}

pub const fn mirror(copies: u8) -> Policy {
    Policy::Mirror { copies }
}
