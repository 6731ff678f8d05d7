//! The former release's program beside this one: hosts are upgraded one after the other under a client, and put back, until somebody
//! says that the cluster is upgraded. From then on the former release can't take part, and says so before it touches anything.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::hypervisor::{document, put_document};
use ferro_blackbox::lab::{former_dir, present_dir, with_hosts};
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, Lab, LabOptions, eventually};
use ferro_protocol::api::{ClusterInfo, DiskList, EventKind, HealthReport, UpgradeReport};

const HEAL_MAX: Duration = Duration::from_secs(90);
const GO_ON_MAX: Duration = Duration::from_secs(60);
/// Made and changed: the directory cuts its log after 5,000 changes and keeps 1,000, and who is behind that gets a snapshot.
const DOCUMENTS: usize = 3_600;
const WRITERS: usize = 8;
/// The last feature level that this release knows.
const NEWEST: u16 = 6;

/// Installs a release on a host and restarts it, under the volume's client.
fn run_on(lab: &Lab, host: &Host, release: &Path, load: &mut Workload) -> Result<()> {
    host.term()?;
    host.install(release, &["vsand", "vsanctl"])?;
    host.start()?;
    load.progress(200, GO_ON_MAX)?;
    lab.wait_healthy(HEAL_MAX).with_context(|| format!("with {} on {}", release.display(), host.name()))?;
    load.verify()
}

fn level(host: &Host) -> Result<(u16, u16)> {
    let info: ClusterInfo = host.ctl(&["cluster", "show"])?;
    Ok((info.feature_level, info.feature_level_known))
}

/// So many changes of the directory that its log does not reach back any more to where it was.
fn outdate_the_log(host: &Host) -> Result<()> {
    let write = |writer: usize| -> Result<()> {
        for n in 0..DOCUMENTS / WRITERS {
            let name = format!("filler/w{writer}-n{n}");
            put_document(host, &name, 0, "made")?;
            // This host hears of it a moment later.
            let made = eventually("the document is there", HEAL_MAX, || document(host, &name))?;
            put_document(host, &name, made.0, "changed")?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        writers
            .into_iter()
            .try_for_each(|writer| writer.join().map_err(|_| anyhow!("a writer panicked")).flatten())
    })
}

#[test]
fn hosts_are_upgraded_one_by_one_under_a_client_and_put_back_until_somebody_says_so() {
    with_hosts(LabOptions::default(), |lab| {
        let (former, present) = (former_dir()?, present_dir()?);
        for host in lab.hosts() {
            host.install(&former, &["vsand", "vsanctl"])?;
        }
        lab.form()?;
        let owner = lab.host(1);
        owner.create("data", "2G", "mirror:3")?;
        let mut load = Workload::start(&owner.open("data")?, Checker::new(), WorkloadOptions::new(17))?;
        load.progress(500, GO_ON_MAX)?;

        // One host of three; it can be put back, and taken up again.
        let (second, third) = (lab.host(2), lab.host(3));
        for release in [&present, &former, &present] {
            run_on(lab, second, release, &mut load)?;
        }
        ensure!(level(second)? == (1, NEWEST), "{:?}", level(second)?);
        let refused = second.ctl_refused(&["--yes", "cluster", "upgrade"], "upgrade_needed", 5)?;
        ensure!(refused.message.contains("host1") && refused.message.contains("host3"), "{refused:?}");
        ensure!(!refused.message.contains("host2"), "{refused:?}");
        // The volume's owner.
        run_on(lab, owner, &present, &mut load)?;
        former_release_gets_a_snapshot(lab, &mut load)?;

        // The last; and the cluster is still the former release's.
        run_on(lab, third, &present, &mut load)?;
        run_on(lab, third, &former, &mut load)?;
        run_on(lab, third, &present, &mut load)?;
        let health: HealthReport = owner.ctl(&["health"])?;
        let check = health.checks.iter().find(|c| c.code == "upgrade_unfinished").context("no such check")?;
        ensure!(check.reasons.len() == 1, "{check:?}");

        // With a host away it is not known whether it could follow.
        third.term()?;
        let refused = owner.ctl_refused(&["--yes", "cluster", "upgrade"], "host_unreachable", 6)?;
        ensure!(refused.message.contains("host3"), "{refused:?}");
        third.start()?;
        lab.wait_healthy(HEAL_MAX)?;
        let check: UpgradeReport = owner.ctl(&["cluster", "upgrade", "--check"])?;
        ensure!((check.from, check.to, check.done, check.hosts.len()) == (1, NEWEST, false, 3), "{check:?}");
        ensure!(level(owner)?.0 == 1, "a check changes nothing");
        let refused =
            owner.ctl_refused(&["policy", "apply", "raid5:2+1", "data"], "policy_not_convertible", 5)?;
        ensure!(refused.next_step.contains("cluster upgrade"), "{refused:?}");
        let done: UpgradeReport = owner.ctl(&["--yes", "cluster", "upgrade"])?;
        ensure!((done.from, done.to, done.done) == (1, NEWEST, true), "{done:?}");
        let again: UpgradeReport = third.ctl(&["--yes", "cluster", "upgrade"])?;
        ensure!((again.from, again.to, again.done) == (NEWEST, NEWEST, true), "{again:?}");
        eventually("an event tells of it", GO_ON_MAX, || owner.saw(EventKind::LevelRaised))?;
        load.progress(200, GO_ON_MAX)?;
        owner.ctl_ok(&["policy", "apply", "raid5:2+1", "data"])?;
        load.progress(200, GO_ON_MAX)?;

        there_is_no_way_back(lab, &former, &present, &mut load)?;
        load.verify()?;
        load.finish().map(drop)
    });
}

/// The last host of the former release was away, and gets its state from one of this release: only those can have led meanwhile.
fn former_release_gets_a_snapshot(lab: &Lab, load: &mut Workload) -> Result<()> {
    let third = lab.host(3);
    third.term()?;
    outdate_the_log(lab.host(2))?;
    third.start()?;
    lab.wait_healthy(HEAL_MAX).context("after a snapshot in a cluster of two releases")?;
    let theirs: ClusterInfo = third.ctl(&["cluster", "show"])?;
    ensure!(theirs.quorum && theirs.hosts == 3, "{theirs:?}");
    load.progress(200, GO_ON_MAX)?;
    load.verify()
}

fn there_is_no_way_back(lab: &Lab, former: &Path, present: &Path, load: &mut Workload) -> Result<()> {
    let third = lab.host(3);
    // What it has of the cluster says so when the host has heard of the level.
    eventually("host 3 has written the level down", GO_ON_MAX, || {
        let text = std::fs::read_to_string(third.state_dir().join("member.json"))?;
        ensure!(text.contains(&format!("\"feature_level\": {NEWEST}")), "{text}");
        Ok(())
    })?;
    third.term()?;
    third.install(former, &["vsand", "vsanctl"])?;
    third.spawn()?;
    let ended = third.await_end(GO_ON_MAX)?;
    ensure!(!ended.success(), "the former release took part: {ended}");
    third.logs(&["member.json", "feature_level"])?;
    third.install(present, &["vsand", "vsanctl"])?;
    third.start()?;
    lab.wait_healthy(HEAL_MAX).context("this release goes on where the former one was refused")?;
    load.progress(200, GO_ON_MAX)
}

#[test]
fn a_host_of_the_former_release_joins_when_it_was_upgraded() {
    with_hosts(LabOptions { hosts: 2, ..LabOptions::default() }, |lab| {
        let (first, second) = (lab.host(1), lab.host(2));
        first.start()?;
        first.ctl_ok(&["cluster", "bootstrap"])?;
        ensure!(level(first)? == (NEWEST, NEWEST), "{:?}", level(first)?);
        second.install(&former_dir()?, &["vsand", "vsanctl"])?;
        second.start()?;
        let token = first.token()?;
        let refused = second.ctl_refused(&["cluster", "join", &token], "token_refused", 5)?;
        ensure!(refused.message.contains("another version"), "{refused:?}");
        ensure!(first.status()?.hosts.len() == 1, "it was let in");
        // Its token is good still.
        second.term()?;
        second.install(&present_dir()?, &["vsand", "vsanctl"])?;
        second.start()?;
        second.ctl_ok(&["cluster", "join", &token])?;
        ensure!(first.status()?.hosts.len() == 2, "it was not let in");
        Ok(())
    });
}

#[test]
fn a_disk_that_was_removed_while_its_host_was_away_stays_away() {
    with_hosts(LabOptions::default(), |lab| {
        lab.form()?;
        let (first, third) = (lab.host(1), lab.host(3));
        let disks = |host: &Host| -> Result<DiskList> { host.ctl(&["disk", "list"]) };
        let all = disks(first)?.disks;
        let gone = all.iter().find(|d| d.host_name == "host3").context("no disk in host 3")?.clone();
        third.kill9()?;
        first.ctl_ok(&["--yes", "disk", "remove", &gone.id.to_string(), "--force"])?;
        third.start()?;
        // Not before it has heard what happened meanwhile, and looks again.
        eventually("host 3 gives the disk up", HEAL_MAX, || {
            ensure!(third.log()?.contains("gives the disk up"), "it has not");
            Ok(())
        })?;
        eventually("nobody lists it", HEAL_MAX, || {
            for host in [first, third] {
                let list = disks(host)?.disks;
                ensure!(list.len() == 2 && list.iter().all(|d| d.id != gone.id), "{list:?}");
            }
            Ok(())
        })?;
        lab.wait_healthy(HEAL_MAX)?;
        // Also not at its next start; but whoever means it gets it back.
        third.kill9()?;
        third.start()?;
        lab.wait_healthy(HEAL_MAX)?;
        ensure!(disks(first)?.disks.len() == 2, "{:?}", disks(first)?.disks);
        third.add_disk(&third.disks_dir().join("a"), "2G")?;
        lab.wait_healthy(HEAL_MAX)?;
        let back = disks(first)?.disks;
        ensure!(back.iter().any(|d| d.id == gone.id && d.host_name == "host3"), "{back:?}");
        Ok(())
    });
}
