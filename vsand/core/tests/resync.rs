//! How much a resync copies, and what an owner does whose seal is refused.

mod common;

use std::time::Duration;

use common::{CHUNK, Lab, OBJECT, disk};
use ferro_protocol::ids::Seq;
use ferro_protocol::peer::RequestId;
use ferro_protocol::units::{BLOCK_BYTES, CHUNK_BLOCKS, CHUNK_BYTES};
use vsand_core::directory::{Command, Policy, Sync};
use vsand_core::owner::guest::{GuestRequest, GuestResult};
use vsand_core::replica::Asker;

const ZERO_ALL: GuestRequest = GuestRequest::Zero { offset: 0, bytes: CHUNK_BYTES };
/// Longer than a disk may be silent, and than a resync takes.
const WHILE: Duration = Duration::from_secs(4);

fn alike(lab: &Lab) -> bool {
    lab.record().fully_redundant() && lab.disks[&disk(1)].blocks == lab.disks[&disk(2)].blocks
}

#[test]
fn a_delta_resync_copies_what_changed_and_no_more() {
    let mut lab = Lab::new(2);
    lab.write(0, 1);
    // The whole chunk is zeroed. The other disk does so, and is gone before it can say that it has: its mark lies before.
    lab.disk(2).mute = true;
    let zero = lab.begin(ZERO_ALL);
    lab.away(2);
    lab.pass(WHILE);
    assert_eq!(lab.result(zero), Some(&GuestResult::Done));
    let components = &lab.record().chunks[&CHUNK.index].components;
    let stale = components.iter().find(|c| c.disk == disk(2)).unwrap();
    assert!(matches!(stale.sync, Sync::Stale { stale_seq: Seq(1), .. }), "{stale:?}");
    let missed = 128;
    lab.write(1_000, missed / 2);
    lab.write(200_000, missed / 2);

    lab.back(2);
    lab.pass(WHILE);
    assert!(alike(&lab));
    assert_eq!((lab.disk(2).installed, lab.disk(2).installed_data), (missed, missed));
    assert_eq!(lab.resync_total_max, missed, "what the resync said it had to copy");
}

#[test]
fn zeros_that_were_missed_are_copied_without_data() {
    let mut lab = Lab::new(2);
    lab.write(7, 1);
    lab.away(2);
    lab.begin(ZERO_ALL);
    lab.write(1_000, 5);
    lab.pass(WHILE);

    lab.back(2);
    // Far less time than the data of a whole chunk would take at the rate that a busy guest leaves.
    for _ in 0..100 {
        lab.begin(GuestRequest::Flush);
        lab.pass(Duration::from_millis(10));
    }
    assert!(alike(&lab));
    let second = lab.disk(2);
    assert_eq!((second.installed, second.installed_data), (CHUNK_BLOCKS, 5));
    assert!(second.installs < CHUNK_BLOCKS / 200, "{} installs", second.installs);
    assert_eq!(lab.resync_total_max, 5);
}

#[test]
fn a_guest_that_waits_is_yielded_to_as_one_that_asks() {
    let mut lab = Lab::new(3);
    lab.write(0, 1);
    lab.away(3);
    lab.write(0, 1);
    lab.pass(WHILE);
    for piece in 0..64 {
        lab.write(piece * 256, 256);
    }
    lab.back(3);
    lab.pass(Duration::from_millis(20));
    // A disk that has much to do keeps the guest waiting, and all of its requests are in the queue.
    lab.disk(2).keep_back = true;
    let waits = lab.write(0, 1);
    lab.pass(Duration::from_millis(400));
    assert_eq!(lab.result(waits), None);
    let copied = u64::from(lab.disk(3).installed_data) * BLOCK_BYTES as u64;
    assert!(copied > 0 && copied < 40 << 20, "{} MiB of 64 in 0.4 s, at 64 MiB a second", copied >> 20);
}

#[test]
fn what_only_the_component_has_goes() {
    let mut lab = Lab::new(2);
    lab.write(0, 8);
    lab.away(2);
    lab.pass(WHILE);
    lab.write(3, 1);
    lab.pass(WHILE);
    // As if an old owner had written there, and nobody else had kept it.
    let (mut version, data) = lab.disk(2).blocks[5].clone();
    version.seq = Seq(version.seq.0 + 1);
    lab.disk(2).blocks[5] = (version, data);
    lab.back(2);
    lab.pass(WHILE);
    assert!(alike(&lab));
    assert_eq!(lab.disk(2).installed_data, 3, "blocks 3 and 5, and 4 between them");
}

#[test]
fn a_source_that_left_the_in_sync_set_is_not_asked_what_has_changed() {
    let mut lab = Lab::new(3);
    lab.write(0, 1);
    lab.away(3);
    lab.write(1, 1);
    lab.pass(WHILE);
    // The first disk, which a resync asks first because it is here, freezes under a write. The third comes back: its resync
    // waits for the writes that began before it, and they do not go to it by themselves.
    lab.disk(1).frozen = true;
    let missed = lab.write(5, 1);
    lab.back(3);
    lab.pass(Duration::from_millis(100));
    assert_eq!(lab.owner.resyncs(lab.now.mono).len(), 1);
    // The first leaves the in-sync set without that write, and then answers again.
    lab.pass(Duration::from_secs(1));
    assert_eq!(lab.result(missed), Some(&GuestResult::Done));
    lab.back(1);
    lab.pass(WHILE);
    assert!(lab.record().fully_redundant());
    let of = |lab: &Lab, n| lab.disks[&disk(n)].blocks[5].clone();
    assert!(of(&lab, 2).1.is_some());
    assert_eq!(of(&lab, 3).0, of(&lab, 2).0, "a write that was acknowledged is missing on a disk in sync");
    assert_eq!(of(&lab, 1).0, of(&lab, 2).0);
}

#[test]
fn a_seal_that_is_refused_again_and_again_asks_for_another_connection() {
    let mut lab = Lab::new(2);
    let write = lab.write(0, 1);
    assert_eq!(lab.result(write), Some(&GuestResult::Done));
    lab.away(2);
    // The disk's host has seen a later connection of this owner, which is gone, and has not noticed yet.
    let epoch = lab.owner.epoch();
    let seal = ferro_protocol::peer::Request::Seal { object: OBJECT, epoch };
    lab.disk(2).replica.handle_request(Asker(100), RequestId(1), seal, bytes::Bytes::new());
    lab.back(2);
    lab.pass(Duration::from_millis(60));
    assert_eq!(lab.reconnects, [], "it may notice");
    lab.pass(Duration::from_millis(60));
    assert_eq!(lab.reconnects, [disk(2)]);
    // The driver makes another connection, and everything goes on.
    lab.away(2);
    lab.disk(2).asker = 200;
    lab.back(2);
    lab.pass(Duration::from_millis(50));
    let write = lab.write(0, 1);
    assert_eq!(lab.result(write), Some(&GuestResult::Done));
    assert_eq!(lab.disk(2).blocks[0].1.as_ref().map(bytes::Bytes::len), Some(BLOCK_BYTES));
    assert!(alike(&lab));
}

#[test]
fn an_owner_whose_lock_is_gone_ends() {
    let mut lab = Lab::new(2);
    lab.owner.handle_lock_lost();
    let read = lab.begin(GuestRequest::Read { offset: 0, bytes: 512 });
    assert!(lab.fenced && lab.result(read).is_none());
}

#[test]
fn a_disk_that_says_what_can_not_be_is_left_out() {
    let mut lab = Lab::new(2);
    lab.write(0, 1);
    lab.disk(2).blocks[9].0.seq = Seq(u64::MAX);
    lab.take_over();
    let write = lab.write(1, 1);
    lab.pass(WHILE);
    assert_eq!(lab.result(write), Some(&GuestResult::Done));
    let in_sync: Vec<_> = lab.record().chunks[&CHUNK.index].in_sync().collect();
    assert_eq!(in_sync, [disk(1)]);
}

#[test]
fn what_a_component_was_asked_in_a_former_life_is_not_listened_to() {
    let mirror = |copies| Policy::Mirror { copies };
    let set = |lab: &mut Lab, from, to| {
        lab.command(Command::SetPolicy { object: OBJECT, from: mirror(from), to: mirror(to) })
            .expect("accepted");
    };
    let mut lab = Lab::new(3);
    lab.away(3);
    lab.write(0, 8);
    lab.pass(WHILE);
    set(&mut lab, 3, 2);
    // A new owner begins to bring the third up to date, hears nothing of it, and takes it away because two will do.
    lab.disk(3).up = true;
    lab.disk(3).frozen = true;
    lab.take_over();
    lab.pass(Duration::from_millis(20));
    assert!(lab.record().settled(), "{:?}", lab.record());
    lab.away(3);
    lab.pass(WHILE);
    // It is needed after all, and there. The others take a moment to say what they have.
    set(&mut lab, 2, 3);
    lab.pass(2 * WHILE);
    assert_eq!(lab.record().chunks[&CHUNK.index].components.len(), 3, "{:?}", lab.record());
    lab.disk(1).keep_back = true;
    lab.disk(2).keep_back = true;
    lab.disk(3).keep_back = true;
    lab.back(3);
    lab.pass(Duration::from_millis(20));
    lab.disk(3).keep_back = false;
    lab.give_back(3);
    for n in [1, 2] {
        lab.pass(Duration::from_millis(100));
        lab.disk(n).keep_back = false;
        lab.give_back(n);
    }
    lab.pass(WHILE);
    assert!(lab.record().settled(), "{:?}", lab.record());
    assert!(
        [2, 3].iter().all(|n| lab.disks[&disk(*n)].blocks == lab.disks[&disk(1)].blocks),
        "one lacks something"
    );
}
