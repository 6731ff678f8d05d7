//! A mirror becomes shards and shards a mirror, while a client writes to them, while a host dies, and while nobody has them open.

use std::time::Duration;

use anyhow::{Result, ensure};
use ferro_blackbox::endure::{HEAL_MAX, begin, read_everywhere};
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, LabOptions, eventually, with_lab};
use ferro_protocol::api::{EventKind, VolumeInfo};

/// How long a volume of these tests may take to become another.
const CONVERT_MAX: Duration = Duration::from_secs(120);
const STEP_MAX: Duration = Duration::from_secs(30);

/// It is kept so, and nothing is made of it any more.
fn is_now(host: &Host, policy: &str) -> Result<VolumeInfo> {
    let info = host.volume("data")?;
    ensure!(info.policy.to_string() == policy && info.conversion.is_none(), "it is not {policy}: {info:?}");
    Ok(info)
}

#[test]
fn a_mirror_becomes_shards_and_shards_a_mirror_under_a_client() {
    with_lab(LabOptions::default(), |lab| {
        let (owner, other) = (lab.host(2), lab.host(3));
        let mut load = begin(owner, "mirror:2", 71)?;
        let before = owner.volume("data")?.object;
        other.ctl_ok(&["volume", "limit", "data", "--iops", "5000"])?;

        // On any host, and it is waited for.
        other.ctl_ok(&["policy", "apply", "raid5", "data"])?;
        let info = is_now(owner, "raid5:2+1")?;
        ensure!(info.object != before, "it is the same object");
        ensure!(info.limits.iops == Some(5_000), "its limits are gone: {info:?}");
        load.progress(200, STEP_MAX)?;
        load.verify()?;
        eventually("it is told", STEP_MAX, || {
            let event = owner.saw(EventKind::PolicyChanged)?;
            ensure!(event.message.contains("raid5:2+1") && event.message.contains("mirror:2"), "{event:?}");
            Ok(())
        })?;
        // The shards are worth something.
        other.kill9()?;
        load.progress(200, STEP_MAX)?;
        load.verify()?;
        other.start()?;
        lab.wait_healthy(HEAL_MAX)?;

        // Back again; on the way the owner's daemon dies, and the client waits for it.
        owner.ctl_ok(&["policy", "apply", "mirror:2", "data", "--no-wait"])?;
        owner.kill9()?;
        owner.start()?;
        load.progress(100, CONVERT_MAX)?;
        eventually("it is a mirror again", CONVERT_MAX, || is_now(owner, "mirror:2"))?;
        load.progress(200, STEP_MAX)?;
        load.verify()?;
        lab.wait_healthy(HEAL_MAX)?;
        read_everywhere(lab, owner, load)
    });
}

#[test]
fn a_conversion_can_be_stopped_and_one_of_a_closed_volume_is_made() {
    with_lab(LabOptions::default(), |lab| {
        let (owner, away) = (lab.host(1), lab.host(3));
        let mut load = begin(owner, "mirror:2", 73)?;
        let before = owner.volume("data")?.object;
        owner.ctl_refused(&["policy", "apply", "raid6:4+2", "data"], "policy_unsatisfiable", 5)?;
        ensure!(is_now(owner, "mirror:2")?.object == before, "what was refused has changed something");

        // A shard finds no disk that answers: it is filled, and can't take the volume's place.
        away.kill9()?;
        load.progress(50, STEP_MAX)?;
        owner.ctl_ok(&["policy", "apply", "raid5", "data", "--no-wait"])?;
        eventually("all is copied", CONVERT_MAX, || {
            let info = owner.volume("data")?;
            let copied = info.conversion.as_ref().and_then(|conversion| conversion.copied_bytes);
            ensure!(copied == Some(info.size_bytes), "{info:?}");
            Ok(())
        })?;
        load.progress(100, STEP_MAX)?;
        let listed: Vec<VolumeInfo> =
            owner.ctl::<ferro_protocol::api::VolumeList>(&["volume", "list"])?.volumes;
        ensure!(listed.len() == 1, "what is being filled is a volume: {listed:?}");
        // As it is after all.
        owner.ctl_ok(&["policy", "apply", "mirror:2", "data", "--no-wait"])?;
        ensure!(is_now(owner, "mirror:2")?.object == before, "it is another object");
        load.progress(100, STEP_MAX)?;
        load.verify()?;
        away.start()?;
        lab.wait_healthy(HEAL_MAX)?;

        // Of a volume that nobody has open.
        let checker = load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])?;
        away.ctl_ok(&["policy", "apply", "raid5", "data"])?;
        is_now(owner, "raid5:2+1")?;
        let load = Workload::start(&owner.open("data")?, checker, WorkloadOptions::new(74))?;
        read_everywhere(lab, owner, load)
    });
}
