//! The order that a replica keeps among requests: across connections and around installs. (What it promises across restarts
//! and owners, the simulator checks.)

use bytes::Bytes;
use ferro_protocol::ids::{ChunkId, ChunkIndex, DiskId, Epoch, ObjectId, Seq, Version};
use ferro_protocol::peer::{Refusal, Reply, Request, RequestId, Run};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange};
use vsand_core::bugs::Bugs;
use vsand_core::disk::{DiskError, DiskOp, DiskReply, Ticket};
use vsand_core::replica::{Asker, Effect, PROMISES_MAX, Replica};

const OBJECT: ObjectId = ObjectId::from_bytes([8; 16]);
const CHUNK: ChunkId = ChunkId { object: OBJECT, index: ChunkIndex(0) };

fn replica() -> Replica {
    Replica::new(DiskId::from_bytes([4; 16]), [], |_| false, Bugs::NONE)
}

fn ask(replica: &mut Replica, from: u64, id: u64, request: Request) -> Vec<Effect> {
    let payload = Bytes::from(vec![0; request.payload_bytes().unwrap()]);
    replica.handle_request(Asker(from), RequestId(id), request, payload);
    std::iter::from_fn(|| replica.poll()).collect()
}

fn answer(replica: &mut Replica, ticket: Ticket, reply: DiskReply) -> Vec<Effect> {
    replica.handle_disk(ticket, Ok(reply));
    std::iter::from_fn(|| replica.poll()).collect()
}

/// The only effect is an operation of the disk: its ticket.
fn disk_op(effects: &[Effect], expected: impl Fn(&DiskOp) -> bool) -> Ticket {
    match effects {
        [Effect::Disk(ticket, op)] if expected(op) => *ticket,
        other => panic!("{other:?}"),
    }
}

fn unsealed(effects: &[Effect]) -> bool {
    matches!(effects, [Effect::Answer { reply: Err(Refusal::Unsealed { .. }), .. }])
}

fn seal(replica: &mut Replica, from: u64, epoch: u32) {
    let effects = ask(replica, from, 0, Request::Seal { object: OBJECT, epoch: Epoch(epoch) });
    let promise = disk_op(&effects, |op| matches!(op, DiskOp::SetEpoch { .. }));
    let effects = answer(replica, promise, DiskReply::Done);
    let summary = disk_op(&effects, |op| matches!(op, DiskOp::Summarise { .. }));
    let effects = answer(replica, summary, DiskReply::Summary(Vec::new()));
    assert!(matches!(effects[..], [Effect::Answer { reply: Ok(Reply::Sealed { .. }), .. }]), "{effects:?}");
}

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).unwrap()
}

fn write(first: u32, count: u32, seq: u64) -> Request {
    let version = Version { epoch: Epoch(1), seq: Seq(seq) };
    Request::Write { chunk: CHUNK, range: range(first, count), version, watermark: Seq(0) }
}

fn install(first: u32, count: u32) -> Request {
    let version = Version { epoch: Epoch(1), seq: Seq(1) };
    let runs = vec![Run { range: range(first, count), version, mapped: true }];
    Request::Install { chunk: CHUNK, epoch: Epoch(1), runs }
}

#[test]
fn what_an_earlier_connection_still_brings_is_refused() {
    let mut replica = replica();
    seal(&mut replica, 1, 1);
    assert!(!unsealed(&ask(&mut replica, 1, 1, write(0, 1, 1))));
    // The owner has lost the connection and made another: all that the first one asked, it asks again.
    replica.handle_disk(Ticket(2), Ok(DiskReply::Done));
    while replica.poll().is_some() {}
    seal(&mut replica, 2, 1);
    assert!(
        unsealed(&ask(&mut replica, 1, 2, install(0, 1))),
        "a late install would undo what was written since"
    );
    assert!(unsealed(&ask(&mut replica, 1, 3, Request::Seal { object: OBJECT, epoch: Epoch(1) })));
    assert!(!unsealed(&ask(&mut replica, 2, 1, write(0, 1, 2))));
    // Another owner is another matter, whatever its connection is called.
    assert!(matches!(
        ask(&mut replica, 1, 4, Request::Seal { object: OBJECT, epoch: Epoch(2) })[..],
        [] | [Effect::Disk(..)]
    ));
}

#[test]
fn changes_wait_for_the_installs_that_they_overlap() {
    let mut replica = replica();
    seal(&mut replica, 1, 1);
    let first = disk_op(&ask(&mut replica, 1, 1, install(0, 4)), |op| matches!(op, DiskOp::Install { .. }));
    assert!(
        ask(&mut replica, 1, 2, write(3, 2, 5)).is_empty(),
        "the disk might carry it out before the install"
    );
    assert!(ask(&mut replica, 1, 3, install(3, 4)).is_empty());
    assert!(ask(&mut replica, 1, 4, write(6, 1, 6)).is_empty(), "nor before an install that waits itself");
    let free = disk_op(&ask(&mut replica, 1, 5, write(8, 1, 7)), |op| matches!(op, DiskOp::Write { .. }));
    assert_eq!(answer(&mut replica, free, DiskReply::Done).len(), 1, "it waits for nothing");

    let effects = answer(&mut replica, first, DiskReply::Done);
    let [
        Effect::Answer { .. },
        Effect::Disk(_, DiskOp::Write { .. }),
        Effect::Disk(second, DiskOp::Install { .. }),
    ] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    let effects = answer(&mut replica, *second, DiskReply::Done);
    let [Effect::Answer { .. }, Effect::Disk(_, DiskOp::Write { range, data, .. })] = &effects[..] else {
        panic!("{effects:?}")
    };
    assert_eq!((range.first(), data.len()), (6, BLOCK_BYTES));
}

#[test]
fn a_seal_waits_for_changes_that_wait() {
    let mut replica = replica();
    seal(&mut replica, 1, 1);
    let first = disk_op(&ask(&mut replica, 1, 1, install(0, 4)), |op| matches!(op, DiskOp::Install { .. }));
    assert!(ask(&mut replica, 1, 2, write(3, 2, 5)).is_empty());
    assert!(ask(&mut replica, 9, 0, Request::Seal { object: OBJECT, epoch: Epoch(2) }).is_empty());
    let effects = answer(&mut replica, first, DiskReply::Done);
    let [Effect::Answer { .. }, Effect::Disk(write, DiskOp::Write { .. })] = &effects[..] else {
        panic!("{effects:?}")
    };
    let effects = answer(&mut replica, *write, DiskReply::Done);
    assert!(
        matches!(&effects[..], [Effect::Answer { .. }, Effect::Disk(_, DiskOp::SetEpoch { .. })]),
        "{effects:?}"
    );
}

#[test]
fn names_that_are_made_up_do_not_fill_the_disk() {
    let mut replica = replica();
    seal(&mut replica, 1, 1);
    let write = disk_op(&ask(&mut replica, 1, 1, write(0, 1, 1)), |op| matches!(op, DiskOp::Write { .. }));
    answer(&mut replica, write, DiskReply::Done);
    let made_up = |n: u32| {
        let mut bytes = [1; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        ObjectId::from_bytes(bytes)
    };
    let seal_of = |object| Request::Seal { object, epoch: Epoch(1) };
    for n in 0..PROMISES_MAX {
        assert!(matches!(ask(&mut replica, 2, 0, seal_of(made_up(n)))[..], [Effect::Disk(..)]));
    }
    let refused = |effects: &[Effect]| {
        matches!(effects, [Effect::Answer { reply: Err(Refusal::TooManyObjects { promises_max }), .. }]
            if *promises_max == PROMISES_MAX)
    };
    assert!(refused(&ask(&mut replica, 2, 0, seal_of(made_up(PROMISES_MAX)))));
    // What is known goes on, and what has data does not count.
    seal(&mut replica, 1, 2);
    assert!(matches!(ask(&mut replica, 2, 0, seal_of(made_up(0)))[..], []), "its first seal is under way");
}

#[test]
fn a_promise_to_an_object_that_is_gone_goes() {
    let mut replica = replica();
    seal(&mut replica, 1, 1);
    assert_eq!(replica.promises().collect::<Vec<_>>(), [OBJECT]);
    let read = Request::Read { chunk: CHUNK, epoch: Epoch(1), range: range(0, 1) };
    let under_way =
        disk_op(&ask(&mut replica, 1, 1, write(0, 1, 1)), |op| matches!(op, DiskOp::Write { .. }));
    replica.forget_object(OBJECT);
    assert!(replica.poll().is_none(), "a change of it is under way");
    answer(&mut replica, under_way, DiskReply::Done);
    replica.forget_object(OBJECT);
    let effects: Vec<Effect> = std::iter::from_fn(|| replica.poll()).collect();
    let removal = disk_op(&effects, |op| matches!(op, DiskOp::Remove { object: OBJECT, chunk: None }));
    assert!(unsealed(&ask(&mut replica, 1, 2, read.clone())));
    assert!(unsealed(&ask(&mut replica, 2, 0, Request::Seal { object: OBJECT, epoch: Epoch(2) })));
    assert!(answer(&mut replica, removal, DiskReply::Done).is_empty());
    assert_eq!(replica.promises().count(), 0);
    assert!(unsealed(&ask(&mut replica, 1, 3, read)));
}

const SHARD: ChunkId = ChunkId { object: OBJECT, index: CHUNK.index.shard(1) };
const STAGED: ChunkId = ChunkId { object: OBJECT, index: SHARD.index.staged() };

fn version(seq: u64) -> Version {
    Version { epoch: Epoch(1), seq: Seq(seq) }
}

fn promote(extent: u32) -> Request {
    Request::Promote { chunk: SHARD, extent, version: version(9), watermark: Seq(3) }
}

#[test]
fn what_is_staged_comes_in_force_by_the_owner_that_sealed_only() {
    let mut replica = replica();
    assert!(unsealed(&ask(&mut replica, 1, 1, promote(2))));
    seal(&mut replica, 1, 1);
    let ticket = disk_op(&ask(&mut replica, 1, 2, promote(2)), |op| {
        *op == DiskOp::Promote { to: SHARD, from: STAGED.index, extent: 2, watermark: Seq(3) }
    });
    replica.handle_disk(ticket, Err(DiskError::NotStaged));
    let effects: Vec<Effect> = std::iter::from_fn(|| replica.poll()).collect();
    assert!(matches!(effects[..], [Effect::Answer { reply: Err(Refusal::NotStaged), .. }]), "{effects:?}");
    let forget = Request::Forget { chunk: SHARD, version: version(10), first: 1, end: 4 };
    disk_op(&ask(&mut replica, 1, 3, forget), |op| *op == DiskOp::Forget { chunk: STAGED, first: 1, end: 4 });
    // A later owner is promised nothing of what is under way.
    let effects = ask(&mut replica, 2, 4, Request::Seal { object: OBJECT, epoch: Epoch(2) });
    assert!(effects.is_empty(), "{effects:?}");
}

#[test]
fn what_is_staged_goes_with_its_shard() {
    let mut replica = replica();
    seal(&mut replica, 1, 1);
    replica.condemn(SHARD);
    assert!(unsealed(&ask(&mut replica, 1, 1, promote(0))));
    let stage = Request::Write { chunk: STAGED, range: range(0, 1), version: version(2), watermark: Seq(0) };
    assert!(unsealed(&ask(&mut replica, 1, 2, stage.clone())));
    replica.pardon(SHARD);
    disk_op(
        &ask(&mut replica, 1, 3, stage),
        |op| matches!(op, DiskOp::Write { chunk, .. } if *chunk == STAGED),
    );
}

#[test]
fn only_extents_of_shards_can_be_staged() {
    let extents = ferro_protocol::units::CHUNK_EXTENTS;
    let forget = |first, end| Request::Forget { chunk: SHARD, version: version(1), first, end };
    let of = |chunk| Request::Promote { chunk, extent: 0, version: version(1), watermark: Seq(0) };
    let bad = [promote(extents), promote(u32::MAX), forget(3, 3), forget(4, 3), forget(0, extents + 1)];
    let others = [of(CHUNK), of(ChunkId { index: CHUNK.index.log(), ..CHUNK }), of(STAGED)];
    for request in bad.into_iter().chain(others) {
        assert!(matches!(request.payload_bytes(), Err(Refusal::Malformed(_))), "{request:?}");
    }
    assert_eq!((promote(extents - 1).payload_bytes(), forget(0, extents).payload_bytes()), (Ok(0), Ok(0)));
}
