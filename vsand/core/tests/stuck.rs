//! A disk that answers all but one request, and one that is merely slow.

mod common;

use std::time::Duration;

use common::{CHUNK, Lab, disk};
use ferro_protocol::units::BLOCK_BYTES;
use vsand_core::owner::Trouble;
use vsand_core::owner::guest::{GuestRequest, GuestResult, GuestTag};

/// Guests go on within 2 s, whatever one request does.
const BOUND: Duration = Duration::from_millis(1_900);
const STEP: Duration = Duration::from_millis(50);

fn read(block: u64) -> GuestRequest {
    GuestRequest::Read { offset: block * BLOCK_BYTES as u64, bytes: BLOCK_BYTES as u64 }
}

fn in_sync(lab: &Lab) -> usize {
    lab.record().chunks[&CHUNK.index].in_sync().count()
}

fn stuck(lab: &Lab, n: u8) -> bool {
    lab.owner.troubles().any(|trouble| *trouble == Trouble::Stuck(disk(n)))
}

/// Time passes; `each` is done at each step of it.
fn pass(lab: &mut Lab, time: Duration, mut each: impl FnMut(&mut Lab, u32)) {
    for n in 0..(time.as_millis() / STEP.as_millis()) as u32 {
        each(lab, n);
        lab.pass(STEP);
    }
}

#[test]
fn one_stuck_write_holds_up_nobody_for_long() {
    let mut lab = Lab::new(3);
    lab.write(0, 1);
    lab.disk(3).keep_back = true;
    let write = lab.write(5, 1);
    lab.disk(3).keep_back = false;
    // All others are answered, those of the same kind too.
    pass(&mut lab, BOUND, |lab, n| {
        lab.write(100 + n, 1);
    });
    assert_eq!(lab.result(write), Some(&GuestResult::Done));
    assert_eq!((in_sync(&lab), stuck(&lab, 3)), (2, true));
    // It is not brought back while that would hold up guests again.
    let mut writes = Vec::new();
    pass(&mut lab, Duration::from_secs(10), |lab, n| writes.push(lab.write(200 + n, 1)));
    assert!(writes.iter().all(|w| lab.result(*w) == Some(&GuestResult::Done)));
    assert_eq!(in_sync(&lab), 2);
    // Once it has answered that one too, it is.
    lab.give_back(3);
    lab.pass(Duration::from_secs(4));
    assert_eq!((in_sync(&lab), stuck(&lab, 3)), (3, false));
    let blocks = |lab: &Lab, n| lab.disks[&disk(n)].blocks.clone();
    assert!(blocks(&lab, 1) == blocks(&lab, 3), "the stuck write took effect late and did harm");
}

#[test]
fn a_disk_whose_writes_are_stuck_may_go_on_reading() {
    let mut lab = Lab::new(2);
    lab.write(0, 1);
    lab.disk(1).keep_back = true;
    let write = lab.write(5, 1);
    lab.disk(1).keep_back = false;
    // The guest waits for it with all else that it wants to write; its reads go to that disk, since it is here.
    pass(&mut lab, BOUND, |lab, _| {
        lab.begin(read(0));
    });
    assert_eq!(lab.result(write), Some(&GuestResult::Done));
    assert_eq!(in_sync(&lab), 1);
}

#[test]
fn a_stuck_read_is_read_elsewhere_and_costs_no_copy() {
    let mut lab = Lab::new(2);
    lab.write(0, 4);
    lab.disk(1).keep_back = true;
    let first = lab.begin(read(0));
    lab.disk(1).keep_back = false;
    pass(&mut lab, BOUND, |lab, n| {
        lab.write(100 + n, 1);
    });
    assert!(matches!(lab.result(first), Some(GuestResult::Data(_))));
    assert_eq!((in_sync(&lab), stuck(&lab, 1)), (2, true));
    lab.give_back(1);
    lab.pass(STEP);
    assert!(!stuck(&lab, 1));
}

#[test]
fn the_last_copy_is_kept_and_waited_for() {
    let mut lab = Lab::new(2);
    lab.write(0, 1);
    lab.away(2);
    lab.write(1, 1);
    lab.pass(Duration::from_secs(2));
    assert_eq!(in_sync(&lab), 1);
    lab.disk(1).keep_back = true;
    let (write, first) = (lab.write(5, 1), lab.begin(read(0)));
    lab.disk(1).keep_back = false;
    pass(&mut lab, Duration::from_secs(20), |lab, n| {
        lab.write(100 + n, 1);
    });
    assert_eq!((lab.result(write), lab.result(first), in_sync(&lab)), (None, None, 1));
    lab.give_back(1);
    lab.pass(STEP);
    assert_eq!(lab.result(write), Some(&GuestResult::Done));
    assert!(matches!(lab.result(first), Some(GuestResult::Data(_))));
}

/// Everything takes three seconds on one disk, and the guest keeps it busy all the time.
#[test]
fn a_disk_is_not_dropped_for_being_busy() {
    let mut lab = Lab::new(3);
    lab.write(0, 1);
    lab.disk(3).keep_back = true;
    let mut writes: Vec<GuestTag> = Vec::new();
    pass(&mut lab, Duration::from_secs(20), |lab, n| {
        writes.push(lab.write(100 + n, 1));
        // The queue grows to three seconds, half as fast as time passes: something is answered all the while.
        if n >= 120 || n % 2 == 1 {
            lab.give_back_one(3);
        }
    });
    assert_eq!((in_sync(&lab), stuck(&lab, 3)), (3, false));
    let answered = writes.iter().filter(|w| lab.result(**w).is_some()).count();
    assert_eq!(writes.len() - answered, 60, "three seconds of writes are under way");
}
