//! A host that somebody works on: it enters maintenance, is switched off, comes back and leaves it, with a client that writes all
//! the while; then everything moves off it, and it goes for good.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::process::run;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, Lab, LabOptions, eventually, while_holding, with_lab};
use ferro_protocol::api::{
    ComponentInfo, ComponentState, DiskList, EventKind, EventList, HealthReport, HostInfo, HostList,
    MaintenanceInfo, MaintenanceMode, ObjectDetails, Redundancy, Removal, Safety,
};
use ferro_protocol::ids::DiskId;

const SETTLE_MAX: Duration = Duration::from_secs(90);
/// The shortest that there is: a host which is merely away would have been replaced before it comes back.
const REPAIR_DELAY: Duration = Duration::from_secs(10);

fn maintenance(host: &Host, of: &str) -> Result<Option<MaintenanceInfo>> {
    let list: HostList = host.ctl(&["host", "list"])?;
    list.hosts.into_iter().find(|h| h.name == of).map(|h| h.maintenance).context("no such host")
}

fn disk_of(host: &Host, of: &str) -> Result<DiskId> {
    let list: DiskList = host.ctl(&["disk", "list"])?;
    list.disks.into_iter().find(|d| d.host_name == of).map(|d| d.id).context("it has no disk")
}

fn enter(host: &Host, of: &str, mode: &str) -> Result<HostInfo> {
    host.ctl(&["host", "maintenance", "enter", of, "--mode", mode])
}

fn not_entered(host: &Host, of: &str, mode: &str, code: &str, exit: i32, word: &str) -> Result<()> {
    let refused = host.ctl_refused(&["host", "maintenance", "enter", of, "--mode", mode], code, exit)?;
    ensure!(refused.message.contains(word), "{word} is not in {refused:?}");
    ensure!(maintenance(host, of)?.is_none(), "it was refused and entered");
    Ok(())
}

fn same(lab: &Lab, host: &Host, volume: &str, image: &str) -> Result<()> {
    let out = lab.dir().join(format!("{volume}.raw")).display().to_string();
    host.ctl_ok(&["volume", "export", volume, &out])?;
    run("cmp", &[image, &out])?;
    Ok(())
}

fn said(host: &Host, kind: EventKind, word: &str) -> Result<()> {
    let all: EventList = host.ctl(&["events", "-n", "5000"])?;
    let found = all.events.iter().any(|e| e.kind == kind && e.message.contains(word));
    ensure!(found, "no {kind:?} of {word}");
    Ok(())
}

/// Who has a copy of the volume beside host 1, and who has none.
fn cast<'a>(lab: &'a Lab, volume: &str) -> Result<(&'a Host, &'a Host)> {
    let holders = lab.host(1).hosts_of(volume)?;
    let holds = |n: &u8| holders.contains(&format!("host{n}"));
    let victim = [2, 3].into_iter().find(holds).context("all copies in one host")?;
    Ok((lab.host(victim), lab.host(5 - victim)))
}

#[test]
fn a_host_is_spared_waited_for_and_let_go_under_a_client() {
    let config = format!("repair_delay_s = {}\n", REPAIR_DELAY.as_secs());
    with_lab(LabOptions { config, ..LabOptions::default() }, |lab| {
        let owner = lab.host(1);
        owner.create("data", "2G", "mirror:2")?;
        let mut load = Workload::start(&owner.open("data")?, Checker::new(), WorkloadOptions::new(31))?;
        load.progress(300, Duration::from_secs(30))?;
        let (victim, third) = cast(lab, "data")?;
        let raw = lab.dir().join("in.raw");
        std::fs::write(&raw, vec![9; 12 << 20])?;
        let image = raw.display().to_string();
        victim.ctl_ok(&["volume", "import", "only", &image, "--create", "--policy", "mirror:1"])?;
        ensure!(owner.hosts_of("only")? == [victim.name()], "it is elsewhere");
        owner.ctl_ok(&["volume", "import", "par", &image, "--create", "--policy", "raid5:2+1"])?;
        let before = (owner.hosts_of("data")?, owner.hosts_of("par")?);

        refused_before_anything_moves(owner, victim)?;
        spared(owner, victim, third, &before)?;
        let is_as_before = |host: &Host| -> Result<()> {
            let now = (host.hosts_of("data")?, host.hosts_of("par")?);
            ensure!(now == before, "it was not waited for: {now:?}, and {before:?} before");
            Ok(())
        };

        // Away for longer than the repair delay, nothing is built elsewhere, and everything is there.
        victim.term()?;
        load.progress(200, Duration::from_secs(30))?;
        std::thread::sleep(REPAIR_DELAY + Duration::from_secs(3));
        load.progress(100, Duration::from_secs(30))?;
        is_as_before(owner)?;
        same(lab, owner, "only", &image)?;
        same(lab, owner, "par", &image)?;
        let health = owner.status()?.health;
        ensure!(!health.reasons.iter().any(|r| r.code == "host_offline"), "{health:?}");
        ensure!(maintenance(owner, &victim.name())?.is_some_and(|m| m.ready), "it is away, and may be");
        // Now nobody else can be spared: the other copies and shards are in the host that is away, as is a voter.
        not_entered(owner, &third.name(), "none", "would_lose_data", 5, "could not be read")?;
        not_entered(owner, &owner.name(), "none", "would_lose_data", 5, "could not be read")?;
        owner.ctl_refused(&["--yes", "host", "remove", &third.name()], "no_quorum", 6)?;
        owner.ctl_refused(&["safe-to-remove", "host", &third.name()], "not_safe", 5)?;

        victim.start()?;
        eventually("it knows that it is in maintenance", SETTLE_MAX, || {
            let info = maintenance(victim, &victim.name())?.context("it forgot")?;
            ensure!(info.mode == MaintenanceMode::EnsureAccess, "{info:?}");
            Ok(())
        })?;
        // Out of maintenance its copies are of those that were away for too long. But it is there, and catches up.
        owner.ctl_ok(&["host", "maintenance", "exit", &victim.name()])?;
        owner.ctl_refused(&["host", "maintenance", "exit", &victim.name()], "conflict", 4)?;
        lab.wait_healthy(SETTLE_MAX)?;
        third.term()?;
        third.start()?;
        lab.wait_healthy(SETTLE_MAX)?;
        ensure!(maintenance(third, &victim.name())?.is_none(), "it is still in maintenance");
        is_as_before(third)?;
        load.verify()?;
        said(third, EventKind::MaintenanceEntered, &victim.name())?;
        said(third, EventKind::MaintenanceLeft, &victim.name())?;

        // None moves nothing; a host that holds nothing that is needed may enter.
        let info = enter(owner, &victim.name(), "none").err().map(|e| e.to_string());
        ensure!(info.is_none(), "{info:?}");
        is_as_before(owner)?;
        owner.ctl_ok(&["host", "maintenance", "exit", &victim.name()])?;

        // Three hosts can't have three shards in two; without that volume everything moves.
        not_entered(owner, &victim.name(), "full", "policy_unsatisfiable", 5, "par")?;
        owner.ctl_ok(&["--yes", "volume", "delete", "par"])?;
        let info = while_holding(|| has_two_copies(owner, "data"), || enter(owner, &victim.name(), "full"))?;
        ensure!(info.maintenance.is_some_and(|m| m.ready && m.remaining_bytes == 0), "it is not ready");
        let now = owner.hosts_of("data")?;
        ensure!(!now.contains(&victim.name()) && now.len() == before.0.len(), "{now:?}");
        let safety: Safety = owner.ctl(&["safe-to-remove", "host", &victim.name()])?;
        ensure!(safety.safe && safety.volumes == 0, "{safety:?}");
        victim.kill9()?;
        load.progress(100, Duration::from_secs(30))?;
        ensure!(owner.volume("data")?.redundancy == Redundancy::Healthy, "{:?}", owner.volume("data")?);
        let gone: Removal = owner.ctl(&["--yes", "host", "remove", &victim.name()])?;
        ensure!(gone.removed && owner.status()?.hosts.len() == 2, "{gone:?}");
        load.verify()?;
        load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])
    });
}

/// What would make something unreadable, or throw out a guest.
fn refused_before_anything_moves(owner: &Host, victim: &Host) -> Result<()> {
    let name = victim.name();
    let unsafe_now = owner.ctl_refused(&["safe-to-remove", "host", &name], "not_safe", 5)?;
    ensure!(unsafe_now.next_step.contains("maintenance enter"), "{unsafe_now:?}");
    let disk = disk_of(owner, &name)?.to_string();
    owner.ctl_refused(&["safe-to-remove", "disk", &disk], "not_safe", 5)?;
    not_entered(owner, &name, "none", "would_lose_data", 5, "only")?;
    victim.open("only")?;
    not_entered(owner, &name, "ensure-access", "object_in_use", 4, "only")?;
    victim.ctl_ok(&["volume", "close", "only"])?;
    owner.ctl_usage(&["host", "maintenance", "enter", &name, "--mode", "gently"])?;
    owner.ctl_refused(&["host", "maintenance", "enter", "nobody"], "host_not_found", 3)?;
    Ok(())
}

/// The host enters: what has no second copy moves, and nothing else; everybody knows.
fn spared(owner: &Host, victim: &Host, third: &Host, before: &(Vec<String>, Vec<String>)) -> Result<()> {
    let name = victim.name();
    let info = enter(owner, &name, "ensure-access")?;
    ensure!(info.maintenance.as_ref().is_some_and(|m| m.ready && m.remaining_bytes == 0), "{info:?}");
    ensure!(!owner.hosts_of("only")?.contains(&name), "it did not move");
    let now = (owner.hosts_of("data")?, owner.hosts_of("par")?);
    ensure!(now == *before, "these did not have to: {now:?}");
    victim.ctl_refused(&["volume", "open", "only"], "conflict", 4)?;
    let of_all = |host: &Host| -> Result<()> {
        let health = host.status()?.health;
        ensure!(health.reasons.iter().any(|r| r.code == "host_maintenance"), "{health:?}");
        let report: HealthReport = host.ctl(&["health"])?;
        let check = report.checks.iter().find(|c| c.code == "host_maintenance").context("not listed")?;
        ensure!(check.reasons.iter().any(|r| r.message.contains(&name)), "{check:?}");
        Ok(())
    };
    eventually("the others know of it", SETTLE_MAX, || of_all(third))?;
    let safety: Safety = owner.ctl(&["safe-to-remove", "host", &name])?;
    ensure!(safety.safe && safety.keeps_quorum && safety.volumes >= 2, "{safety:?}");
    owner.ctl_ok(&["safe-to-remove", "disk", &disk_of(owner, &name)?.to_string()])
}

/// Whether each chunk of the volume has two copies.
fn has_two_copies(watcher: &Host, volume: &str) -> Result<()> {
    let object: ObjectDetails = watcher.ctl(&["object", "show", volume])?;
    let good = |c: &&ComponentInfo| c.state == ComponentState::InSync;
    let fewest = object.chunks.iter().map(|c| c.components.iter().filter(good).count()).min();
    ensure!(fewest.is_none_or(|n| n >= 2), "a copy is missing while it moves: {object:?}");
    Ok(())
}
