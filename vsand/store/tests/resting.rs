//! What is in memory of extents that nobody asks for.

#[allow(unreachable_pub, reason = "shared with other test binaries")]
mod common;

use std::time::{Duration, Instant};

use common::{Harness, chunk, clean, content, fresh, object, range, version, write, zero};
use ferro_protocol::ids::Seq;
use vsand_core::disk::DiskOp;
use vsand_store::StoreConfig;

/// What a large volume costs while nobody asks for anything is its extents at rest.
#[test]
fn extents_rest_when_a_checkpoint_has_stored_them_and_wake_as_they_were() {
    let (_dir, path, h) = fresh(300 << 20);
    h.shut_down();
    let config =
        || StoreConfig { cached_extents: 8, checkpoint_ns_max: 10_000_000, ..StoreConfig::default() };
    let mut h = Harness::open(&path, config());
    let (c, extents) = (chunk(1, 0), 200);
    let place = |extent: u32| range(extent * 256 + extent % 200, 1);
    let rest = |h: &mut Harness| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while h.store.stats().extents_awake > 8 {
            assert!(Instant::now() < deadline, "{:?}", h.store.stats());
            let wait = if h.store.has_work() { Duration::ZERO } else { Duration::from_millis(20) };
            h.turn(wait);
        }
    };
    for extent in 0..extents {
        h.done(write(c, place(extent), version(1, u64::from(extent) + 1)));
    }
    rest(&mut h);
    // Some are written again, some are looked at only, and one loses all that it has.
    for extent in (0..extents).step_by(3) {
        h.done(write(c, place(extent), version(1, 1_000 + u64::from(extent))));
    }
    h.done(zero(c, range(256, 256), version(1, 2_000)));
    let look = |h: &mut Harness| {
        let list = h.run(DiskOp::List { chunk: c, since: Seq(100), from_block: 0, runs_max: 4096 }).unwrap();
        let summary = h.run(DiskOp::Summarise { object: object(1) }).unwrap();
        (list, summary, h.store.stats().extents_used)
    };
    let before = look(&mut h);
    assert_eq!(before.2, extents - 1);
    rest(&mut h);
    assert!(look(&mut h) == before);
    // Half a minute without a request.
    for second in 30..34 {
        h.store.tick(h.now() + second * 1_000_000_000, &mut h.ring);
    }
    assert_eq!(h.store.stats().extents_awake, 0);
    assert!(look(&mut h) == before);
    for extent in (0..extents).filter(|extent| *extent != 1) {
        let seq = if extent % 3 == 0 { 1_000 + extent } else { extent + 1 };
        assert!(
            h.read(c, place(extent)) == content(place(extent), version(1, seq.into())),
            "extent {extent}"
        );
    }
    rest(&mut h);
    // Removed while they rest: their places are free again.
    h.done(DiskOp::Remove { object: object(1), chunk: None });
    rest(&mut h);
    assert_eq!(h.store.stats().extents_used, 0);
    h.shut_down();
    assert_eq!(clean(&path).extents, 0);
}
