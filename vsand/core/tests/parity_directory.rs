//! Objects with parity in the directory: where their shards and logs go, what may fall out, what is moved, what is refused.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::cluster::{Cluster, create, object};
use common::{disk, host};
use ferro_protocol::ids::{ChunkIndex, DiskId, HostId, Role, Seq};
use vsand_core::directory::{ChunkRecord, Command, Departure, Policy, Refused, SyncChange};

const RAID5: Policy = Policy::Parity { data: 2, parity: 1 };
const RAID6: Policy = Policy::Parity { data: 4, parity: 2 };
const CHUNK: ChunkIndex = ChunkIndex(0);
const EMPTY: Option<Departure> = Some(Departure::WhenEmpty);

impl Cluster {
    /// The only disk of a shard.
    fn shard(&self, n: u8) -> DiskId {
        let disks = self.disks(CHUNK.shard(n));
        assert_eq!(disks.len(), 1, "shard {n}");
        disks[0]
    }

    fn out(&self, n: u8) -> SyncChange {
        SyncChange::Remove { chunk: CHUNK.shard(n), disk: self.shard(n), stale_seq: Seq(5) }
    }

    fn back(&self, n: u8) -> SyncChange {
        SyncChange::Add { chunk: CHUNK.shard(n), disk: self.shard(n) }
    }

    fn hosts(&self, index: ChunkIndex) -> BTreeSet<HostId> {
        self.disks(index).iter().map(|d| self.state.disks[d].host).collect()
    }
}

#[test]
fn an_index_tells_what_its_record_keeps() {
    let chunk = ChunkIndex(65_535);
    assert_eq!((chunk.role(), chunk.base()), (Role::Whole, chunk));
    for n in [0, 1, 5, ChunkIndex::SHARDS_MAX - 1] {
        let shard = chunk.shard(n);
        assert_eq!((shard.role(), shard.base()), (Role::Shard(n), chunk));
        assert_eq!((shard.log(), shard.shard(2)), (chunk.log(), chunk.shard(2)));
        let staged = shard.staged();
        assert!(staged.is_staged() && !shard.is_staged() && staged != shard);
        assert_eq!((staged.record(), shard.record(), staged.staged()), (shard, shard, staged));
        assert_eq!((staged.role(), staged.base(), staged.log()), (Role::Shard(n), chunk, chunk.log()));
    }
    for other in [chunk, chunk.log()] {
        assert_eq!((other.staged(), other.record(), other.is_staged()), (other, other, false));
    }
    assert_eq!((chunk.log().role(), chunk.log().base()), (Role::Log, chunk));
    let shown = [chunk, chunk.shard(3), chunk.shard(3).staged(), chunk.log()].map(|index| index.to_string());
    assert_eq!(shown, ["65535", "65535 shard 3", "65535 shard 3, staged", "65535 log"]);
    assert_eq!(
        RAID5.records(CHUNK).collect::<Vec<_>>(),
        [0, 1, 2].map(|n| CHUNK.shard(n)).into_iter().chain([CHUNK.log()]).collect::<Vec<_>>()
    );
    assert_eq!(Policy::Mirror { copies: 2 }.records(CHUNK.log()).collect::<Vec<_>>(), [CHUNK]);
}

#[test]
fn only_some_numbers_of_shards_are_possible() {
    for data in 0..=6 {
        for parity in 0..=3 {
            let mut c = Cluster::new(9, RAID5);
            c.ok(Command::DeleteObject { object: object() });
            let made = c.apply(create(Policy::Parity { data, parity }));
            if [(2, 1), (4, 1), (2, 2), (4, 2)].contains(&(data, parity)) {
                assert!(made.is_ok(), "{data}+{parity}");
            } else {
                assert_eq!(made, Err(Refused::BadParity { data, parity }));
            }
        }
    }
    let mut c = Cluster::new(5, RAID5);
    c.ok(Command::DeleteObject { object: object() });
    assert_eq!(c.apply(create(RAID6)), Err(Refused::NoRoom { needed: 6, found: 5 }));
}

#[test]
fn a_chunk_is_placed_with_all_that_belongs_to_it() {
    for (hosts, policy, components) in [(3, RAID5, 1), (6, RAID6, 1), (9, RAID6, 1)] {
        let mut c = Cluster::placed(hosts, policy);
        let shards: BTreeSet<HostId> = c.record().shards(CHUNK).flat_map(|(i, _)| c.hosts(i)).collect();
        assert_eq!(shards.len(), policy.domains(), "a shard shares its fault domain");
        assert!(c.record().shards(CHUNK).all(|(_, s)| s.components.len() == components));
        assert!(c.state.is_settled(c.record()) && !c.record().chunks.contains_key(&CHUNK));
        assert_eq!(
            c.hosts(CHUNK.shard(0)),
            BTreeSet::from([host(1)]),
            "the first data shard is with the owner"
        );
        let (log, data) = (c.hosts(CHUNK.log()), policy.sufficient() as u8);
        assert_eq!(log.len(), policy.components(CHUNK.log()));
        assert!(log.contains(&host(1)));
        for n in 1..data {
            assert!(log.is_disjoint(&c.hosts(CHUNK.shard(n))), "the log is where reads go");
        }
        assert!(matches!(c.place(CHUNK), Err(Refused::Overtaken(_))));
        for role in [CHUNK.shard(0), CHUNK.log(), ChunkIndex(8)] {
            assert_eq!(c.place(role), Err(Refused::NoComponent(role)));
        }
        c.place(ChunkIndex(7)).expect("another");
    }
}

#[test]
fn parity_takes_turns() {
    let mut c = Cluster::new(6, RAID6);
    let mut parity: BTreeMap<DiskId, u32> = BTreeMap::new();
    for n in 0..5 {
        c.place(ChunkIndex(n)).expect("there is room");
        for shard in [4, 5] {
            *parity.entry(c.disks(ChunkIndex(n).shard(shard))[0]).or_default() += 1;
        }
    }
    assert_eq!(parity.len(), 5, "{parity:?}");
}

#[test]
fn shards_fall_out_as_long_as_enough_are_left() {
    let mut c = Cluster::placed(6, RAID6);
    c.change(vec![c.out(0)]).expect("five are left");
    assert_eq!(c.record().chunks[&CHUNK.shard(0)].in_sync().count(), 0);
    assert!(!c.record().fully_redundant());
    let refused = c.change(vec![c.out(1), c.out(5)]);
    assert_eq!(refused, Err(Refused::TooFewShards { chunk: CHUNK, needed: 4, left: 3 }));
    c.change(vec![c.out(5)]).expect("four are left");
    assert_eq!(c.change(vec![c.out(1)]), Err(Refused::TooFewShards { chunk: CHUNK, needed: 4, left: 3 }));
    c.change(vec![c.out(1), c.back(0)]).expect("one for the other");
    c.change(vec![c.back(5), c.back(1)]).expect("all are back");
    assert!(c.state.is_settled(c.record()));
    // The log is a mirror.
    let log = c.disks(CHUNK.log());
    let out = |disk| SyncChange::Remove { chunk: CHUNK.log(), disk, stale_seq: Seq(5) };
    c.change(vec![out(log[0]), out(log[2])]).expect("one copy is left");
    assert_eq!(c.change(vec![out(log[1])]), Err(Refused::LastInSync(CHUNK.log())));
    assert_eq!(c.change(vec![out(disk(60))]), Err(Refused::NoComponent(CHUNK.log())));
}

#[test]
fn a_lost_shard_is_built_elsewhere() {
    let mut c = Cluster::placed(4, RAID5);
    let (lost, spare) =
        (c.shard(1), (1..=4).map(disk).find(|d| !(0..3).any(|n| c.shard(n) == *d)).expect("one of four"));
    assert_eq!(c.repair(CHUNK.shard(1), Some(lost)), Err(Refused::NoComponent(CHUNK.shard(1))), "it is good");
    assert!(matches!(c.repair(CHUNK.shard(1), None), Err(Refused::TooMuch(_))), "it has its component");
    c.change(vec![c.out(1)]).expect("two are left");
    assert!(matches!(c.repair(CHUNK.shard(1), None), Err(Refused::TooMuch(_))), "that has to go first");
    c.repair(CHUNK.shard(1), Some(lost)).expect("the fourth host has room");
    assert_eq!(c.shard(1), spare);
    c.change(vec![c.back(1)]).expect("built");
    assert!(c.state.is_settled(c.record()));
    // With all hosts in use there is no place but on the same one.
    let mut c = Cluster::placed(3, RAID5);
    c.change(vec![c.out(1)]).expect("two are left");
    let lost = c.shard(1);
    assert_eq!(c.repair(CHUNK.shard(1), Some(lost)), Err(Refused::NoRoom { needed: 3, found: 2 }));
    c.put_disk(11, c.state.disks[&lost].host.as_bytes()[0], 1 << 20, 500);
    c.repair(CHUNK.shard(1), Some(lost)).expect("another disk there");
    assert_eq!(c.shard(1), disk(11));
}

#[test]
fn a_shard_whose_disk_was_removed_is_built_anew() {
    let mut c = Cluster::placed(4, RAID5);
    let gone = c.shard(2);
    c.ok(Command::RemoveDisk { disk: gone, unix_s: 0 });
    assert!(c.disks(CHUNK.shard(2)).is_empty() && c.record().chunks.contains_key(&CHUNK.shard(2)));
    assert!(!c.state.is_settled(c.record()));
    // Nothing else may go or fall out now.
    let next = Command::RemoveDisk { disk: c.shard(0), unix_s: 0 };
    assert!(matches!(c.apply(next), Err(Refused::WouldLoseData { chunks: 1, .. })));
    assert!(matches!(c.change(vec![c.out(0)]), Err(Refused::TooFewShards { left: 1, .. })));
    assert_eq!(c.trim(CHUNK.shard(2)), Err(Refused::NothingSpare(CHUNK.shard(2))));
    c.repair(CHUNK.shard(2), None).expect("a place in the fourth host");
    c.change(vec![c.back(2)]).expect("built");
    assert_eq!(c.record().shards(CHUNK).flat_map(|(i, _)| c.hosts(i)).collect::<BTreeSet<_>>().len(), 3);
}

#[test]
fn what_too_few_shards_would_be_left_without_does_not_go() {
    let at_once = Some(Departure::AtOnce);
    let mut c = Cluster::placed(6, RAID6);
    let (dead, out, third) = (c.shard(3), c.shard(4), c.shard(5));
    c.ok(Command::DiskDied { disk: dead, reason: "EIO".to_owned() });
    let leave = |disk| Command::LeaveDisk { disk, departure: at_once };
    assert!(c.state.clone().apply(100, leave(third)).is_ok(), "four that work are left");
    c.change(vec![c.out(4)]).expect("five are in sync, four of them work");
    assert!(matches!(c.apply(leave(third)), Err(Refused::WouldLoseData { chunks: 1, .. })));
    let log_elsewhere = |c: &Cluster, disk| !c.disks(CHUNK.log()).contains(&disk);
    assert!(c.state.clone().apply(100, leave(dead)).is_ok(), "what is dead may go");
    assert!(c.state.clone().apply(100, leave(out)).is_ok() || !log_elsewhere(&c, out), "and what fell out");
}

#[test]
fn a_shard_moves_before_its_disk_goes() {
    let mut c = Cluster::placed(4, RAID5);
    let (leaves, spare) =
        (c.shard(1), (1..=4).map(disk).find(|d| !(0..3).any(|n| c.shard(n) == *d)).expect("one of four"));
    c.ok(Command::LeaveDisk { disk: leaves, departure: EMPTY });
    assert!(!c.state.is_settled(c.record()));
    c.repair(CHUNK.shard(1), None).expect("one more");
    assert_eq!(c.disks(CHUNK.shard(1)), [leaves, spare]);
    assert!(c.repair(CHUNK.shard(1), None).is_err(), "one more is enough");
    assert_eq!(c.trim(CHUNK.shard(1)), Err(Refused::NothingSpare(CHUNK.shard(1))), "the new one is empty");
    c.change(vec![SyncChange::Add { chunk: CHUNK.shard(1), disk: spare }]).expect("filled");
    c.trim(CHUNK.shard(1)).expect("the new one is enough");
    assert_eq!(c.shard(1), spare);
    // What is left of it there is a copy of the log at most.
    if c.disks(CHUNK.log()).contains(&leaves) {
        c.repair(CHUNK.log(), None).expect("one more");
        let new = *c.disks(CHUNK.log()).last().expect("three");
        c.change(vec![SyncChange::Add { chunk: CHUNK.log(), disk: new }]).expect("filled");
        c.trim(CHUNK.log()).expect("moved");
    }
    assert!(c.state.is_settled(c.record()));
    c.ok(Command::RemoveDisk { disk: leaves, unix_s: 0 });
}

#[test]
fn shards_that_find_no_other_fault_domain_stay() {
    let mut c = Cluster::placed(6, RAID6);
    let leave = Command::LeaveHost { host: host(3), departure: EMPTY };
    assert!(matches!(c.apply(leave.clone()), Err(Refused::CantMove { needed: 6, found: 5, .. })));
    // Another disk in the same host does for a disk, not for the host.
    c.put_disk(13, 3, 1 << 20, 500);
    assert!(matches!(c.apply(leave), Err(Refused::CantMove { needed: 6, found: 5, .. })));
    let of_third = (0..6).find(|n| c.shard(*n) == disk(3)).expect("all six hosts have one");
    c.ok(Command::LeaveDisk { disk: disk(3), departure: EMPTY });
    c.repair(CHUNK.shard(of_third), None).expect("the other disk");
    assert_eq!(c.disks(CHUNK.shard(of_third)), [disk(3), disk(13)]);
    // Two at once, each into its own host, whatever has most room.
    let mut c = Cluster::placed(6, RAID6);
    c.put_disk(11, 1, 1 << 20, 500);
    c.put_disk(12, 2, 1 << 20, 500);
    c.ok(Command::LeaveDisk { disk: disk(1), departure: EMPTY });
    c.ok(Command::LeaveDisk { disk: disk(2), departure: EMPTY });
    for n in 0..6 {
        if [disk(1), disk(2)].contains(&c.shard(n)) {
            c.repair(CHUNK.shard(n), None).expect("the other disk of its host");
            assert_eq!(c.hosts(CHUNK.shard(n)).len(), 1);
        }
    }
}

/// Numbers that look random, from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len() as u64) as usize])
    }
}

fn random_command(dice: &mut Dice, c: &Cluster) -> Command {
    let basis = c.basis();
    let indices: Vec<ChunkIndex> = c.record().chunks.keys().copied().collect();
    let any = disk(1 + dice.below(16) as u8);
    let chunk = dice.pick(&indices).unwrap_or(CHUNK.log());
    let of_chunk: Vec<DiskId> =
        c.record().chunks.get(&chunk).into_iter().flat_map(|r| &r.components).map(|c| c.disk).collect();
    let component = dice.pick(&of_chunk).unwrap_or(any);
    let departure = [None, EMPTY, EMPTY, Some(Departure::AtOnce)][dice.below(4) as usize];
    match dice.below(16) {
        0 => Command::PlaceChunk { basis, chunk: ChunkIndex(dice.below(4) as u32), near: host(1) },
        1..=6 => {
            let change = |dice: &mut Dice, (chunk, disk)| {
                if dice.below(5) < 3 {
                    SyncChange::Add { chunk, disk }
                } else {
                    SyncChange::Remove { chunk, disk, stale_seq: Seq(dice.below(9)) }
                }
            };
            let mut changes = vec![change(dice, (chunk, component))];
            // Others of the same chunk.
            for _ in 0..dice.below(3) {
                let others: Vec<ChunkIndex> =
                    indices.iter().copied().filter(|i| i.base() == chunk.base()).collect();
                let Some(other) = dice.pick(&others) else { continue };
                let Some(of) = c.record().chunks[&other].components.first() else { continue };
                changes.push(change(dice, (other, of.disk)));
            }
            Command::ChangeSync { basis, changes, unix_s: 1 }
        }
        7..=9 => Command::Repair { basis, chunk, drop: (dice.below(2) == 0).then_some(component), unix_s: 1 },
        10 | 11 => Command::Trim { basis, chunk },
        12 => Command::LeaveDisk { disk: any, departure },
        13 => Command::LeaveHost { host: host(1 + dice.below(8) as u8), departure },
        14 if dice.below(3) == 0 => Command::RemoveDisk { disk: any, unix_s: 1 },
        // It stays in its host, and comes back to life.
        _ => {
            let n = 1 + dice.below(16) as u8;
            if dice.below(4) == 0 {
                return Command::DiskDied { disk: disk(n), reason: String::new() };
            }
            let (on, path) = (host((n - 1) % 8 + 1), String::new());
            let used_extents = dice.below(1_000);
            Command::PutDisk { disk: disk(n), host: on, path, capacity_extents: 1_000, used_extents }
        }
    }
}

fn check(c: &Cluster, after: &str) {
    let record = c.record();
    let good = |r: &ChunkRecord| r.in_sync().next().is_some();
    let bases: BTreeSet<ChunkIndex> = record.chunks.keys().map(|i| i.base()).collect();
    let asked: BTreeSet<ChunkIndex> = bases.iter().flat_map(|b| record.policy.records(*b)).collect();
    assert!(record.chunks.keys().eq(asked.iter()), "{after}: {:?}", record.chunks.keys());
    for base in bases {
        assert!(good(&record.chunks[&base.log()]), "{after}: no log of {base}");
        let in_sync = record.shards(base).filter(|(_, s)| good(s)).count();
        assert!(in_sync >= record.policy.sufficient(), "{after}: {in_sync} shards of {base}");
        let mut seen = BTreeSet::new();
        for (_, shard) in record.shards(base) {
            let disks = shard.components.iter().map(|component| component.disk);
            let domains: BTreeSet<&str> = disks.filter_map(|d| c.state.fault_domain(d)).collect();
            for domain in domains {
                assert!(seen.insert(domain), "{after}: two shards of {base} in {domain}");
            }
        }
    }
}

#[test]
fn whatever_is_asked_enough_is_left_of_every_chunk() {
    let (mut accepted, mut repaired, mut trimmed) = (0_u32, 0_u32, 0_u32);
    for seed in 0..400 {
        let mut dice = Dice(seed);
        let policies =
            [RAID5, RAID6, Policy::Parity { data: 2, parity: 2 }, Policy::Parity { data: 4, parity: 1 }];
        let mut c = Cluster::new(8, policies[seed as usize % 4]);
        for n in 9..=16 {
            c.put_disk(n, n - 8, 1 << 20, 500);
        }
        for _ in 0..300 {
            let command = random_command(&mut dice, &c);
            let said = format!("seed {seed}, {command:?}");
            if c.apply(command).is_ok() {
                accepted += 1;
                repaired += u32::from(said.contains("Repair"));
                trimmed += u32::from(said.contains("Trim"));
            }
            check(&c, &said);
        }
    }
    // It would prove nothing if all were refused.
    assert!(accepted > 10_000 && repaired > 2_000 && trimmed > 50, "{accepted}, {repaired}, {trimmed}");
}
