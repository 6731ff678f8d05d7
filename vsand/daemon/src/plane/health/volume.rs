//! What is not as it should be with a volume: copies, its lock, its import, its conversion, and what its guest waits for.

use std::collections::BTreeSet;

use ferro_protocol::api::{HealthLevel, HealthReason, Redundancy};
use ferro_protocol::fault_domain::is_within;
use vsand_core::directory::{Content, LockKind, ObjectRecord, Policy};

use super::{Findings, reason, span};
use crate::plane::errors::host_name;
use crate::plane::parts::SharedDomain;
use crate::plane::remote::TroubleReport;
use crate::plane::view::{View, api_policy};

pub(super) fn look_at(view: &View, record: &ObjectRecord, reasons: &mut Findings) {
    let name = &record.name;
    match view.redundancy(record) {
        Redundancy::Healthy => {}
        Redundancy::Resyncing => reasons.push(reason(
            HealthLevel::Warning,
            "volume_resyncing",
            format!("volume {name} is being brought back to all its copies"),
            "wait; `vsanctl resync list` says how long it takes",
        )),
        Redundancy::Degraded => reasons.push(reason(
            HealthLevel::Warning,
            "volume_degraded",
            format!(
                "volume {name} has fewer good copies than its policy asks for: it stands {}",
                match view.failures_left(record) {
                    0 => "no further failure".to_owned(),
                    1 => "one more failure".to_owned(),
                    n => format!("{n} more failures"),
                }
            ),
            degraded_next_step(view, record),
        )),
        Redundancy::Unavailable => reasons.push(reason(
            HealthLevel::Critical,
            "volume_unavailable",
            match record.policy {
                Policy::Mirror { .. } => {
                    format!("volume {name} can't be read or written: no good copy of a part of it can be reached")
                }
                Policy::Parity { .. } => format!(
                    "volume {name} can't be read or written: of a part of it too few shards, or no copy of the log, can be reached"
                ),
            },
            format!(
                "bring back one of the hosts that have one; `vsanctl object show {}` says which",
                record.id
            ),
        )),
    }
    if let Some(shared) = view.shared_domain(record) {
        reasons.push(shares_domain(view, record, &shared));
    }
    misplaced(view, record, reasons);
    if let Some(lock) = record.lock.filter(|l| l.kind != LockKind::Background && !view.is_online(l.host)) {
        let host = host_name(&view.state, lock.host);
        reasons.push(reason(
            HealthLevel::Warning,
            "owner_offline",
            format!("volume {name} is open on host {host}, which is offline"),
            format!(
                "to start its virtual machine on another host, break the lock first: `vsanctl lock break {}`",
                record.id
            ),
        ));
    }
    let importing = record.lock.is_some_and(|lock| lock.kind == LockKind::Transfer);
    if record.content == Content::Importing && !importing {
        reasons.push(reason(
            HealthLevel::Warning,
            "volume_incomplete",
            format!("volume {name} holds an import that was never completed"),
            format!("repeat `vsanctl volume import {name} FILE`, or delete the volume"),
        ));
    }
    if let Some(conversion) = view.conversion(record)
        && let Some(why) = conversion.waits
    {
        reasons.push(reason(
            HealthLevel::Warning,
            "conversion_waits",
            format!("volume {name} is to become {}, and that does not go on: {why}", conversion.policy),
            format!(
                "it is tried again by itself; put right what it says, or keep the volume as it is: `vsanctl policy apply {} {name}`",
                api_policy(record.policy)
            ),
        ));
    }
    for trouble in view.volume_report(record).into_iter().flat_map(|r| &r.troubles) {
        reasons.push(stalled(view, record, *trouble));
    }
}

/// Copies in one fault domain: nothing moves by itself, because whoever moves racks about has more to change.
fn shares_domain(view: &View, record: &ObjectRecord, shared: &SharedDomain) -> HealthReason {
    let places: Vec<String> = shared
        .disks
        .iter()
        .filter_map(|disk| view.state.disks.get(disk))
        .map(|disk| format!("{} of host {}", disk.path, host_name(&view.state, disk.host)))
        .collect();
    let SharedDomain { chunks, domain, .. } = shared;
    let chunks = if *chunks == 1 { "a chunk".to_owned() } else { format!("{chunks} chunks") };
    let one = shared.disks.last().map_or_else(String::new, ToString::to_string);
    reason(
        HealthLevel::Warning,
        "copies_share_fault_domain",
        format!(
            "volume {} has copies of {chunks} in one fault domain, {domain} ({}): one failure there takes them together",
            record.name,
            places.join(", ")
        ),
        format!(
            "move one: `vsanctl disk remove {one}` empties that disk into other fault domains, then add it again; or set the fault domain of its host back with `vsanctl host set`"
        ),
    )
}

/// Data that is not where its volume is rather kept.
fn misplaced(view: &View, record: &ObjectRecord, reasons: &mut Findings) {
    let (name, placement) = (&record.name, view.placement(record));
    let domains = || view.state.hosts.values().map(|host| host.fault_domain.as_str());
    let gone = |place: &&String| !domains().any(|domain| is_within(domain, place));
    if let Some(place) = placement.prefer.iter().find(gone) {
        reasons.push(reason(
            HealthLevel::Warning,
            "volume_misplaced",
            format!("volume {name} is rather to be in {place}, and no host is there any more"),
            format!("name other places, or none: `vsanctl volume place {name} --anywhere`"),
        ));
    }
    let parts = match view.state.misplaced(record) {
        0 => return,
        1 => "a part".to_owned(),
        n => format!("{n} parts"),
    };
    reasons.push(reason(
        HealthLevel::Warning,
        "volume_misplaced",
        format!("{parts} of volume {name} could be nearer to where it is to be: {placement}"),
        "wait: they move by themselves, one after the other, when nothing is repaired and there is room; if that does not go on, add disks there",
    ));
}

fn degraded_next_step(view: &View, record: &ObjectRecord) -> String {
    let offline: BTreeSet<String> = record
        .chunks
        .values()
        .flat_map(|c| &c.components)
        .filter(|c| !view.is_disk_online(c.disk))
        .filter_map(|c| view.state.disks.get(&c.disk))
        .map(|disk| host_name(&view.state, disk.host))
        .collect();
    if offline.is_empty() {
        return "add disks on further hosts if there are too few; it is repaired by itself as soon as it can be".to_owned();
    }
    let hosts: Vec<String> = offline.into_iter().collect();
    format!(
        "bring back the disks of {}; without them it is repaired elsewhere after {}",
        hosts.join(", "),
        span(view.repair_delay_s)
    )
}

fn stalled(view: &View, record: &ObjectRecord, trouble: TroubleReport) -> HealthReason {
    let name = &record.name;
    let place = |disk| {
        let disk = view.state.disks.get(disk);
        let host = disk.map_or_else(String::new, |d| format!(" of host {}", host_name(&view.state, d.host)));
        (disk.map_or("?", |d| d.path.as_str()), host)
    };
    let (code, message, next) = match trouble {
        TroubleReport::Stuck(disk) => {
            let (path, host) = place(&disk);
            let message = format!(
                "disk {path}{host} does not answer some requests of volume {name}, and answers others; the volume goes on \
                 with its other copies"
            );
            let next = "look at the kernel's log on that host; replace the disk, or restart vsand there once it is well";
            return reason(HealthLevel::Warning, "disk_stuck", message, next);
        }
        TroubleReport::Full(disk) => {
            let (path, host) = place(&disk);
            (
                "volume_waits_for_space",
                format!("writes to volume {name} wait: disk {path}{host} is full"),
                "free space on it by deleting volumes or discarding inside guests, or take it out after adding others",
            )
        }
        TroubleReport::NoPlace(chunk) => (
            "volume_waits_for_space",
            format!("writes to volume {name} wait: no disks can take its chunk {chunk}"),
            "add disks, on as many hosts as the policy asks for",
        ),
        TroubleReport::Unreachable(chunk) => (
            "volume_waits_for_data",
            format!("I/O of volume {name} waits: no good copy of its chunk {chunk} answers"),
            "bring back the hosts that have one; nothing is lost as long as they come back",
        ),
        TroubleReport::NoDirectory => (
            "volume_waits_for_directory",
            format!("I/O of volume {name} waits for the cluster directory"),
            "bring back enough of the directory's voters",
        ),
    };
    reason(HealthLevel::Critical, code, message, next)
}

#[cfg(test)]
mod tests {
    use super::super::super::view::tests::{healthy, host_id};
    use super::super::tests::{codes, shown};
    use super::*;
    use crate::plane::remote::{ConversionReport, VolumeReport};
    use std::sync::Arc;
    use vsand_core::directory::{Command, Preference};

    #[test]
    fn a_conversion_that_does_not_go_on_says_why() {
        let mut view = healthy();
        let record = Arc::clone(view.state.volumes().next().unwrap());
        let raid5 = Policy::Parity { data: 2, parity: 1 };
        let command = Command::SetPolicy { object: record.id, from: record.policy, to: raid5 };
        Arc::make_mut(&mut view.state).apply(2, command).expect("there is room");
        let report = |waits: Option<&str>| VolumeReport {
            object: record.id,
            epoch: record.epoch,
            attached: true,
            troubles: Vec::new(),
            resyncs: Vec::new(),
            conversion: Some(ConversionReport { copied_bytes: 0, waits: waits.map(str::to_owned) }),
        };
        view.reports.get_mut(&host_id(1)).unwrap().volumes = vec![report(None)];
        assert_eq!(codes(&shown(&view)), Vec::<&str>::new());
        view.reports.get_mut(&host_id(1)).unwrap().volumes = vec![report(Some("there is no room"))];
        let health = shown(&view);
        assert_eq!(codes(&health), ["conversion_waits"]);
        let said = &health.reasons[0];
        assert!(said.message.contains("raid5:2+1") && said.message.contains("there is no room"), "{said:?}");
        assert!(said.next_step.contains("policy apply mirror:3 root"), "{said:?}");
    }

    #[test]
    fn what_is_not_where_it_is_to_be_is_named() {
        let mut view = healthy();
        let record = Arc::clone(view.state.volumes().next().unwrap());
        let domain = |view: &mut View, n: u8, domain: &str| {
            let hosts = &mut Arc::make_mut(&mut view.state).hosts;
            hosts.get_mut(&host_id(n)).unwrap().fault_domain = domain.to_owned();
        };
        for (n, at) in [(1, "lyon/a"), (2, "lyon/b"), (3, "lyon/c")] {
            domain(&mut view, n, at);
        }
        let preference = Preference { places: vec!["lyon".to_owned()], across_sites: false };
        let command = Command::Prefer { object: record.id, preference };
        Arc::make_mut(&mut view.state).apply(2, command).expect("they are there");
        assert_eq!(codes(&shown(&view)), Vec::<&str>::new());
        // A fourth disk in the site, while one copy is out of it.
        domain(&mut view, 3, "brest/a");
        assert_eq!(codes(&shown(&view)), Vec::<&str>::new(), "there is no better place");
        let disks = &mut Arc::make_mut(&mut view.state).disks;
        let mut fourth = disks.values().next().unwrap().clone();
        (fourth.id, fourth.host) = (ferro_protocol::ids::DiskId::from_bytes([99; 16]), host_id(4));
        disks.insert(fourth.id, fourth);
        let mut host = view.state.hosts[&host_id(1)].clone();
        (host.id, host.fault_domain) = (host_id(4), "lyon/d".to_owned());
        Arc::make_mut(&mut view.state).hosts.insert(host.id, host);
        let health = shown(&view);
        let said = health.reasons.iter().find(|r| r.code == "volume_misplaced").expect("said");
        assert!(said.message.contains("a part of volume root") && said.message.contains("lyon"), "{said:?}");
        for n in [1, 2, 4] {
            domain(&mut view, n, &format!("nice/{n}"));
        }
        let health = shown(&view);
        let said = health.reasons.iter().find(|r| r.code == "volume_misplaced").expect("said");
        assert!(said.message.contains("no host is there any more"), "{said:?}");
    }
}
