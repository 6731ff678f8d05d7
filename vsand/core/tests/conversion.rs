//! A volume gets another number of copies while it is in use.

mod common;

use std::time::Duration;

use common::{CHUNK, Lab, OBJECT, disk};
use ferro_protocol::ids::ObjectId;
use ferro_protocol::units::CHUNK_EXTENTS;
use vsand_core::directory::{Command, Outcome, Policy, Refused};
use vsand_core::owner::guest::GuestResult;

/// Longer than it takes to look for what is missing, and than a resync of little takes.
const WHILE: Duration = Duration::from_secs(6);

const fn mirror(copies: u8) -> Policy {
    Policy::Mirror { copies }
}

fn set(lab: &mut Lab, from: Policy, to: Policy) -> Result<Outcome, Refused> {
    lab.command(Command::SetPolicy { object: OBJECT, from, to })
}

fn copies(lab: &Lab) -> usize {
    lab.record().chunks[&CHUNK.index].components.len()
}

#[test]
fn copies_go_and_come_while_the_guest_writes() {
    let mut lab = Lab::new(3);
    lab.write(0, 8);
    for (from, to) in [(3, 1), (1, 3), (3, 2), (2, 3)] {
        set(&mut lab, mirror(from), mirror(to)).expect("there is place");
        assert_eq!(lab.record().policy, mirror(to));
        let mut written = Vec::new();
        for block in 0..20 {
            written.push(lab.write(block * 7, 3));
            lab.pass(WHILE / 20);
        }
        assert!(written.iter().all(|tag| lab.result(*tag) == Some(&GuestResult::Done)));
        assert_eq!(copies(&lab), usize::from(to), "{:?}", lab.record());
        assert!(lab.record().settled());
        let there: Vec<_> = lab.record().chunks[&CHUNK.index].in_sync().collect();
        assert_eq!(there.len(), usize::from(to));
        assert!(
            there.iter().all(|d| lab.disks[d].blocks == lab.disks[&there[0]].blocks),
            "from {from} to {to}"
        );
    }
}

#[test]
fn the_last_good_copies_stay_whatever_the_policy() {
    let mut lab = Lab::new(3);
    lab.write(0, 8);
    lab.away(2);
    lab.away(3);
    lab.write(3, 1);
    lab.pass(WHILE);
    set(&mut lab, mirror(3), mirror(2)).expect("fewer");
    lab.pass(WHILE);
    // Neither of the stale ones may go before another is good.
    assert_eq!(copies(&lab), 3, "{:?}", lab.record());
    lab.back(2);
    lab.pass(WHILE);
    assert_eq!(copies(&lab), 2);
    let good: Vec<_> = lab.record().chunks[&CHUNK.index].in_sync().collect();
    assert_eq!(good, [disk(1), disk(2)]);
}

#[test]
fn taken_back_half_way_nothing_is_left_over() {
    let mut lab = Lab::new(2);
    lab.write(0, 8);
    set(&mut lab, mirror(2), mirror(1)).expect("fewer");
    lab.pass(WHILE);
    let (kept, other) =
        if lab.record().chunks[&CHUNK.index].in_sync().any(|d| d == disk(1)) { (1, 2) } else { (2, 1) };
    lab.away(other);
    set(&mut lab, mirror(1), mirror(2)).expect("the disk is healthy as far as the directory knows");
    lab.pass(WHILE);
    assert_eq!(copies(&lab), 2);
    assert!(!lab.record().fully_redundant(), "it can't be filled");
    set(&mut lab, mirror(2), mirror(1)).expect("taken back");
    lab.pass(WHILE);
    assert_eq!(lab.record().chunks[&CHUNK.index].in_sync().collect::<Vec<_>>(), [disk(kept)]);
    assert!(lab.record().settled());
}

#[test]
fn what_can_not_be_is_refused_and_changes_nothing() {
    let mut lab = Lab::new(2);
    lab.write(0, 8);
    let parity = Policy::Parity { data: 2, parity: 1 };
    let mut refused = |from, to| {
        let before = lab.state.clone();
        let refused = set(&mut lab, from, to).expect_err("refused");
        assert_eq!(lab.state, before);
        refused
    };
    assert!(matches!(refused(mirror(2), mirror(3)), Refused::NoRoom { needed: 3, found: 2 }));
    assert!(matches!(refused(mirror(2), mirror(0)), Refused::BadPolicy { copies: 0 }));
    assert!(matches!(refused(mirror(2), mirror(5)), Refused::BadPolicy { copies: 5 }));
    assert_eq!(refused(mirror(2), parity), Refused::OtherMethod);
    assert!(matches!(refused(mirror(1), mirror(2)), Refused::Overtaken(_)));
    let nobody = ObjectId::from_bytes([77; 16]);
    let command = Command::SetPolicy { object: nobody, from: mirror(2), to: mirror(1) };
    assert_eq!(lab.command(command), Err(Refused::NoObject(nobody)));

    set(&mut lab, mirror(2), mirror(1)).expect("fewer");
    lab.pass(WHILE);
    // The other disk takes something, but not as much as the copy that there is.
    let holder = lab.record().chunks[&CHUNK.index].components[0].disk;
    let (other, big) = (if holder == disk(1) { disk(2) } else { disk(1) }, u64::from(CHUNK_EXTENTS));
    lab.command(Command::ReportUsage {
        used_extents: vec![(holder, big), (other, (1 << 20) * 95 / 100 - big / 2)],
    })
    .expect("accepted");
    let full = set(&mut lab, mirror(1), mirror(2)).expect_err("no room");
    assert!(matches!(full, Refused::NoSpaceFor { extents: 1.., .. }), "{full:?}");
}
