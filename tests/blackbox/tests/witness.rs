//! Two hosts with data and a third that has none and votes: any one of them may die. A mirror that asks for more copies than there are
//! hosts with disks is made if somebody insists, and gets the others when there is a place.

use std::time::Duration;

use anyhow::{Result, ensure};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, Lab, LabOptions, eventually};
use ferro_protocol::api::Redundancy;

const HEAL_MAX: Duration = Duration::from_secs(90);
const GO_ON_MAX: Duration = Duration::from_secs(30);

/// Hosts 1 and 2 with disks; host 3 is the witness.
fn form(lab: &Lab) -> Result<()> {
    lab.form_without_disks()?;
    for n in [1, 2] {
        let host = lab.host(n);
        host.add_disk(&host.disks_dir().join("a"), "1G")?;
    }
    lab.wait_healthy(HEAL_MAX)
}

fn is(host: &Host, volume: &str, wanted: Redundancy) -> Result<()> {
    let info = host.volume(volume)?;
    ensure!(info.redundancy == wanted, "{info:?}");
    Ok(())
}

/// On the first 256 MiB.
fn options(seed: u64) -> WorkloadOptions {
    let mut options = WorkloadOptions::new(seed);
    options.regions.truncate(1);
    options
}

#[test]
fn any_one_of_two_hosts_and_a_witness_may_die() {
    let config = "[rebalance]\nspread_percent = 0\n".to_owned();
    with_hosts(LabOptions { config, ..LabOptions::default() }, |lab| {
        form(lab)?;
        let owner = lab.host(1);
        owner.create("data", "256M", "mirror:2")?;
        let mut load = Workload::start(&owner.open("data")?, Checker::new(), options(7))?;
        load.progress(200, GO_ON_MAX)?;
        // The other copy, then the witness. It has nothing of the volume.
        ensure!(owner.hosts_of("data")? == ["host1", "host2"], "{:?}", owner.hosts_of("data")?);
        for n in [2, 3] {
            let victim = lab.host(n);
            victim.kill9()?;
            load.progress(200, GO_ON_MAX)?;
            victim.start()?;
            eventually("it is back", HEAL_MAX, || is(owner, "data", Redundancy::Healthy))?;
            lab.wait_healthy(HEAL_MAX)?;
        }
        load.verify()?;
        let checker = load.finish()?;
        // Then the owner itself: the other host takes over, which it may only because the witness agrees.
        owner.kill9()?;
        let second = lab.host(2);
        eventually("the lock can be broken", GO_ON_MAX, || {
            second.ctl_ok(&["--yes", "lock", "break", "data"])
        })?;
        let mut load = Workload::start(&second.open("data")?, checker, options(8))?;
        load.verify()?;
        load.progress(200, GO_ON_MAX)?;
        owner.start()?;
        eventually("the first host's copy follows", HEAL_MAX, || is(second, "data", Redundancy::Healthy))?;
        load.verify()?;
        load.finish().map(drop)
    });
}

#[test]
fn a_forced_mirror_gets_its_missing_copy_when_there_is_a_place() {
    let config = "[rebalance]\nspread_percent = 0\n".to_owned();
    with_hosts(LabOptions { config, ..LabOptions::default() }, |lab| {
        form(lab)?;
        let owner = lab.host(1);
        let create = ["volume", "create", "three", "--size", "256M", "--policy", "mirror:3"];
        owner.ctl_refused(&create, "policy_unsatisfiable", 5)?;
        owner.ctl_ok(&[&create[..], &["--force-provisioning"]].concat())?;
        let parity =
            ["volume", "create", "four", "--size", "1G", "--policy", "raid5", "--force-provisioning"];
        owner.ctl_refused(&parity, "bad_policy", 2)?;
        let mut load = Workload::start(&owner.open("three")?, Checker::new(), options(9))?;
        load.progress(200, GO_ON_MAX)?;
        ensure!(owner.hosts_of("three")? == ["host1", "host2"], "{:?}", owner.hosts_of("three")?);
        is(owner, "three", Redundancy::Degraded)?;
        let info = owner.volume("three")?;
        ensure!(info.failures_left == 1 && info.force_provisioning, "{info:?}");
        let third = lab.host(3);
        third.add_disk(&third.disks_dir().join("a"), "1G")?;
        eventually("the third copy is made", HEAL_MAX, || {
            is(owner, "three", Redundancy::Healthy)?;
            ensure!(
                owner.hosts_of("three")? == ["host1", "host2", "host3"],
                "{:?}",
                owner.hosts_of("three")?
            );
            Ok(())
        })?;
        load.progress(100, GO_ON_MAX)?;
        load.verify()?;
        load.finish().map(drop)
    });
}
