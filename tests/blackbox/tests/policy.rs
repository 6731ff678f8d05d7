//! A volume gets another policy while a client writes to it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::endure::{HEAL_MAX, begin, read_everywhere};
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, LabOptions, eventually, with_lab};
use ferro_protocol::api::{ComponentState, EventKind, ObjectDetails, VolumeInfo};

/// How many copies each chunk has, all of them in sync.
fn copies(host: &Host) -> Result<usize> {
    let object: ObjectDetails = host.ctl(&["object", "show", "data"])?;
    let counts: Vec<usize> = object.chunks.iter().map(|c| c.components.len()).collect();
    let mut components = object.chunks.iter().flat_map(|c| &c.components);
    ensure!(components.all(|c| c.state == ComponentState::InSync), "not all are in sync: {object:?}");
    let first = counts.first().copied().context("no chunk is placed")?;
    ensure!(counts.iter().all(|count| *count == first), "chunks have {counts:?} copies");
    Ok(first)
}

#[test]
fn copies_become_more_and_fewer_under_a_client() {
    with_lab(LabOptions::default(), |lab| {
        let (owner, other) = (lab.host(2), lab.host(3));
        let mut load = begin(owner, "mirror:1", 31)?;
        ensure!(copies(owner)? == 1, "it has one copy");

        // On any host, and it is waited for.
        other.ctl_ok(&["policy", "apply", "mirror:3", "data"])?;
        ensure!(copies(owner)? == 3, "it has three copies when the command ends");
        load.progress(200, Duration::from_secs(30))?;
        load.verify()?;
        // They are worth something.
        other.kill9()?;
        load.progress(200, Duration::from_secs(30)).context("with a host less")?;
        load.verify()?;
        other.start()?;
        lab.wait_healthy(HEAL_MAX)?;

        other.ctl_ok(&["policy", "create", "pair", "--method", "mirror", "--failures", "1"])?;
        owner.ctl_ok(&["policy", "apply", "pair", "data"])?;
        eventually("the third copies go", Duration::from_secs(30), || {
            let count = copies(owner)?;
            ensure!(count == 2, "there are {count}");
            Ok(())
        })?;
        let info: VolumeInfo = owner.ctl(&["volume", "show", "data"])?;
        ensure!(info.policy.to_string() == "mirror:2", "{info:?}");
        eventually("it is told", Duration::from_secs(30), || {
            let event = owner.saw(EventKind::PolicyChanged)?;
            ensure!(event.message.contains("the policy mirror:2; before it was mirror:3"), "{event:?}");
            Ok(())
        })?;

        let refused =
            owner.ctl_refused(&["policy", "apply", "mirror:4", "data"], "policy_unsatisfiable", 5)?;
        ensure!(refused.next_step.contains("add hosts"), "{refused:?}");
        owner.ctl_refused(&["policy", "apply", "mirror:3", "data", "nothing"], "volume_not_found", 3)?;
        ensure!(copies(owner)? == 2, "what was refused has changed something");
        load.progress(100, Duration::from_secs(30))?;

        // Of a volume that nobody has open the copies are made too.
        load.verify()?;
        let checker = load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])?;
        owner.ctl_ok(&["policy", "apply", "mirror:3", "data"])?;
        ensure!(copies(owner)? == 3, "it has three copies again");
        let socket = owner.open("data")?;
        let load = Workload::start(&socket, checker, WorkloadOptions::new(32))?;
        read_everywhere(lab, owner, load)
    });
}
