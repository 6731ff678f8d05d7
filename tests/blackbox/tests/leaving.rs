//! Disks and hosts that leave: what they hold is elsewhere before they go, with a client that writes all the while; and a
//! disk that was taken for dead and is not.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, Lab, LabOptions, eventually, while_holding, with_lab};
use ferro_protocol::api::{
    ComponentInfo, ComponentState, DiskInfo, DiskList, DiskState, Redundancy, Removal,
};
use ferro_protocol::ids::DiskId;
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions};

const SETTLE_MAX: Duration = Duration::from_secs(90);

fn disk(host: &Host, id: DiskId) -> Result<Option<DiskInfo>> {
    let list: DiskList = host.ctl(&["disk", "list"])?;
    Ok(list.disks.into_iter().find(|d| d.id == id))
}

fn is_healthy(watcher: &Host, volume: &str) -> Result<()> {
    let info = watcher.volume(volume)?;
    ensure!(info.redundancy == Redundancy::Healthy, "a copy is missing while it moves: {info:?}");
    Ok(())
}

fn all_in_sync(host: &Host, volume: &str, count: usize) -> Result<Vec<ComponentInfo>> {
    let all = host.components(volume)?;
    ensure!(all.len() == count && all.iter().all(|c| c.state == ComponentState::InSync), "{all:?}");
    Ok(all)
}

#[test]
fn what_leaves_is_emptied_first_under_a_client() {
    with_lab(LabOptions { hosts: 4, ..LabOptions::default() }, |lab| {
        let owner = lab.host(2);
        owner.create("data", "2G", "mirror:3")?;
        let socket = owner.open("data")?;
        let mut load = Workload::start(&socket, Checker::new(), WorkloadOptions::new(11))?;
        load.progress(500, Duration::from_secs(30))?;
        let other = |c: &&ComponentInfo| c.host_name != "host2";

        // The disk of another host that is online, and not by that host.
        let first = all_in_sync(owner, "data", 6)?;
        let leaves = first.iter().find(other).context("all copies in one host")?.clone();
        while_holding(
            || is_healthy(owner, "data"),
            || {
                let gone: Removal = owner.ctl(&["--yes", "disk", "remove", &leaves.disk.to_string()])?;
                ensure!(gone.removed, "{gone:?}");
                Ok(())
            },
        )?;
        ensure!(disk(owner, leaves.disk)?.is_none(), "it is still there");
        let now = all_in_sync(owner, "data", 6)?;
        ensure!(now.iter().all(|c| c.disk != leaves.disk), "{now:?}");
        load.progress(100, Duration::from_secs(10))?;
        load.verify()?;

        let number: u8 = leaves.host_name.trim_start_matches("host").parse()?;
        let emptied = lab.host(number);
        emptied.add_disk(&emptied.disks_dir().join("b"), "2G")?;
        lab.wait_healthy(SETTLE_MAX)?;

        // A whole host; not while a volume is open there.
        owner.ctl_refused(&["--yes", "host", "remove", "host2"], "object_in_use", 4)?;
        let leaves = now.iter().find(other).context("all copies in one host")?.clone();
        while_holding(
            || is_healthy(owner, "data"),
            || {
                let gone: Removal = owner.ctl(&["--yes", "host", "remove", &leaves.host_name])?;
                ensure!(gone.removed, "{gone:?}");
                Ok(())
            },
        )?;
        let status = owner.status()?;
        ensure!(status.hosts.len() == 3, "{:?}", status.hosts);
        let now = all_in_sync(owner, "data", 6)?;
        ensure!(now.iter().all(|c| c.host_name != leaves.host_name), "{now:?}");
        load.progress(100, Duration::from_secs(10))?;
        load.verify()?;

        refused_where_the_others_can_not(lab, owner, &now)?;
        load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])
    });
}

/// Three hosts are left for three copies.
fn refused_where_the_others_can_not(lab: &Lab, owner: &Host, now: &[ComponentInfo]) -> Result<()> {
    let one = now.iter().find(|c| c.host_name != "host2").context("all copies in one host")?;
    let id = one.disk.to_string();
    let refusal = owner.ctl_refused(&["--yes", "disk", "remove", &id], "policy_unsatisfiable", 5)?;
    ensure!(refusal.message.contains("data") && refusal.next_step.contains("--force"), "{refusal:?}");
    owner.ctl_refused(&["--yes", "host", "remove", &one.host_name], "policy_unsatisfiable", 5)?;
    owner.ctl_refused(&["disk", "remove", &id, "--cancel"], "conflict", 4)?;
    let kept = disk(owner, one.disk)?.context("it is gone")?;
    ensure!(kept.state == DiskState::Online && kept.leaving_bytes.is_none(), "{kept:?}");
    // By force, a copy is missing afterwards, and said to be.
    let gone: Removal = owner.ctl(&["--yes", "disk", "remove", &id, "--force"])?;
    ensure!(gone.removed, "{gone:?}");
    ensure!(owner.volume("data")?.redundancy == Redundancy::Degraded, "{:?}", owner.volume("data")?);
    let number: u8 = one.host_name.trim_start_matches("host").parse()?;
    let host = lab.host(number);
    host.add_disk(&host.disks_dir().join("again"), "2G")?;
    eventually("the missing copy is built on the new disk", SETTLE_MAX, || {
        all_in_sync(owner, "data", 6).map(drop)
    })
}

#[test]
fn a_removal_can_be_taken_back() {
    with_lab(LabOptions { hosts: 4, ..LabOptions::default() }, |lab| {
        let host = lab.host(1);
        host.create("small", "64M", "mirror:3")?;
        let socket = host.open("small")?;
        let mut client = BlkClient::connect(&socket, ClientOptions::default())?;
        for block in 0..64 {
            client.write(Sector(block * 128), &vec![block as u8 + 1; 65_536])?;
        }
        let before = all_in_sync(host, "small", 3)?;
        let spare = (1..=4).find(|n| !before.iter().any(|c| c.host_name == format!("host{n}")));
        let spare = lab.host(spare.context("three copies in four hosts")?);
        // Where the copy would go nobody is: the move begins and waits.
        spare.kill9()?;
        let id = before.iter().find(|c| c.host_name != "host1").context("one host")?.disk;
        let begun: Removal = host.ctl(&["--yes", "disk", "remove", &id.to_string(), "--no-wait"])?;
        ensure!(!begun.removed, "{begun:?}");
        eventually("another component is placed", Duration::from_secs(20), || {
            let all = host.components("small")?;
            ensure!(all.len() == 4, "{all:?}");
            Ok(())
        })?;
        eventually("what is left to move is said", Duration::from_secs(20), || {
            let leaving = disk(host, id)?.context("it is gone")?;
            let left = leaving.leaving_bytes.unwrap_or(0);
            ensure!(leaving.state == DiskState::Leaving && left >= 4 << 20, "{leaving:?}");
            Ok(())
        })?;
        ensure!(host.volume("small")?.redundancy == Redundancy::Healthy, "{:?}", host.volume("small")?);
        let health = host.status()?.health;
        ensure!(health.reasons.iter().any(|r| r.code == "disk_leaving"), "{health:?}");

        host.ctl_ok(&["disk", "remove", &id.to_string(), "--cancel"])?;
        eventually("it is as before", Duration::from_secs(30), || {
            let all = all_in_sync(host, "small", 3)?;
            ensure!(all.iter().any(|c| c.disk == id), "{all:?}");
            Ok(())
        })?;
        spare.start()?;
        lab.wait_healthy(SETTLE_MAX)?;
        for block in 0..64 {
            let mut read = vec![0; 65_536];
            client.read(Sector(block * 128), &mut read)?;
            ensure!(read == vec![block as u8 + 1; 65_536], "block {block} is something else");
        }
        Ok(())
    });
}

#[test]
fn a_disk_that_was_taken_for_dead_comes_back() {
    ferro_blackbox::lab::with_hosts(LabOptions::default(), |lab| {
        lab.form_without_disks()?;
        let (owner, sick) = (lab.host(1), lab.host(3));
        for host in [owner, lab.host(2)] {
            host.add_disk(&host.disks_dir().join("a"), "2G")?;
        }
        let loose = lab.loop_disk(sick, "xfs", 3 << 30)?;
        sick.add_disk(loose.mount(), "2G")?;
        lab.wait_healthy(SETTLE_MAX)?;
        owner.create("data", "2G", "mirror:3")?;
        let mut load = Workload::start(&owner.open("data")?, Checker::new(), WorkloadOptions::new(13))?;
        load.progress(300, Duration::from_secs(30))?;

        loose.fail()?;
        let failed = eventually("the failed disk is known", Duration::from_secs(30), || {
            let list: DiskList = owner.ctl(&["disk", "list"])?;
            list.disks.into_iter().find(|d| d.state == DiskState::Failed).context("none has failed")
        })?;
        load.progress(200, Duration::from_secs(30))?;
        let id = failed.id.to_string();
        let refusal = owner.ctl_refused(&["disk", "revive", &id], "conflict", 4)?;
        ensure!(refusal.next_step.contains("host3"), "{refusal:?}");
        // As long as the cause is there it stays dead, with the reason.
        let refusal: Result<DiskInfo> = sick.ctl(&["disk", "revive", &id]);
        ensure!(refusal.is_err(), "a disk with EIO was revived: {refusal:?}");
        ensure!(
            disk(owner, failed.id)?.is_some_and(|d| d.state == DiskState::Failed),
            "it is not dead any more"
        );

        loose.remount()?;
        let revived: DiskInfo = sick.ctl(&["disk", "revive", &id])?;
        ensure!(revived.id == failed.id && revived.state == DiskState::Online, "{revived:?}");
        sick.ctl_refused(&["disk", "revive", &id], "conflict", 4)?;
        lab.wait_healthy(SETTLE_MAX)?;
        all_in_sync(owner, "data", 6)?;
        load.verify()?;
        let checker = load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])?;
        // It has what it missed: read where it is the local copy.
        let checker = Workload::start(&sick.open("data")?, checker, WorkloadOptions::new(14))?.finish()?;
        ensure!(checker.writes() > 0, "nothing was checked");
        Ok(())
    });
}

#[test]
fn a_disk_that_leaves_and_dies_is_both() {
    ferro_blackbox::lab::with_hosts(LabOptions { hosts: 4, ..LabOptions::default() }, |lab| {
        lab.form_without_disks()?;
        let (owner, sick, spare) = (lab.host(1), lab.host(3), lab.host(4));
        for host in [owner, lab.host(2)] {
            host.add_disk(&host.disks_dir().join("a"), "2G")?;
        }
        let dying = lab.loop_disk(sick, "xfs", 3 << 30)?;
        sick.add_disk(dying.mount(), "2G")?;
        lab.wait_healthy(SETTLE_MAX)?;
        owner.create("data", "2G", "mirror:3")?;
        let mut load = Workload::start(&owner.open("data")?, Checker::new(), WorkloadOptions::new(15))?;
        load.progress(300, Duration::from_secs(30))?;
        // The only disk that could take its place is in a host that is away by then: the move begins and waits.
        spare.add_disk(&spare.disks_dir().join("a"), "2G")?;
        let id = owner.components("data")?.iter().find(|c| c.host_name == "host3").context("host3")?.disk;
        spare.kill9()?;
        let begun: Removal = owner.ctl(&["--yes", "disk", "remove", &id.to_string(), "--no-wait"])?;
        ensure!(!begun.removed, "{begun:?}");

        dying.fail()?;
        eventually("it is said to have failed while it was leaving", Duration::from_secs(30), || {
            let both = disk(owner, id)?.context("it is gone")?;
            ensure!(both.state == DiskState::Failed && both.leaving_bytes.is_some_and(|b| b > 0), "{both:?}");
            let health = owner.status()?.health;
            let said = health.reasons.iter().find(|r| r.code == "disk_failed").context("not said")?;
            ensure!(said.message.contains("is leaving and has failed"), "{said:?}");
            Ok(())
        })?;
        // Its data comes from the others, then it goes as if it had been well.
        spare.start()?;
        eventually("it is gone, and the copy is elsewhere", SETTLE_MAX, || {
            ensure!(disk(owner, id)?.is_none(), "it is still there");
            let all = all_in_sync(owner, "data", 6)?;
            ensure!(all.iter().any(|c| c.host_name == "host4"), "{all:?}");
            Ok(())
        })?;
        load.verify()?;
        load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])
    });
}
