//! What the control plane in memory tells of health, events, room and safety: the same each time.

use ferro_protocol::api::{
    CapacityReport, CapacityTotals, EventInfo, EventKind, EventLevel, EventList, EventWitness, HealthCheck,
    HealthLevel, HealthMute, HealthReason, HostCapacity, HostInfo, LossForecast, LossKind, MuteRequest,
    PolicyCapacity, PossibleAction, Safety,
};
use vsand::api::control::EventQuery;

use super::control::{DISK, HERE, HERE_NAME, THERE};

pub(crate) fn offline() -> HealthReason {
    HealthReason {
        level: HealthLevel::Warning,
        code: "host_offline".to_owned(),
        message: "host beta does not answer for 2m 5s\x1b[2J".to_owned(),
        next_step: "start it, or take it out with `vsanctl host remove beta`".to_owned(),
    }
}

pub(crate) fn checks(mute: Option<&MuteRequest>) -> Vec<HealthCheck> {
    let check = |code: &str, title: &str, reasons: Vec<HealthReason>| HealthCheck {
        code: code.to_owned(),
        title: title.to_owned(),
        explanation: "What it means.".to_owned(),
        level: reasons.first().map_or(HealthLevel::Ok, |r| r.level),
        reasons,
        mute: None,
    };
    let mut offline = check("host_offline", "hosts are online", vec![offline()]);
    offline.mute = mute.map(|mute| HealthMute {
        until_unix_s: 10_000 + mute.seconds,
        seconds_left: mute.seconds,
        since_unix_s: 10_000,
        by: HERE_NAME.to_owned(),
        reason: mute.reason.clone(),
        in_force: true,
    });
    vec![offline, check("disk_failed", "disks work", vec![])]
}

pub(crate) fn capacity(hosts: Vec<HostInfo>) -> CapacityReport {
    let totals = CapacityTotals {
        total_bytes: 200 << 30,
        used_bytes: 24 << 30,
        free_bytes: 166 << 30,
        reserved_bytes: 10 << 30,
        kept_bytes: 2 << 30,
        provisioned_bytes: 40 << 30,
        promised_bytes: 80 << 30,
        thin_savings_bytes: 56 << 30,
    };
    let host = |info: HostInfo| HostCapacity {
        host: info.id,
        name: info.name,
        state: info.state,
        fault_domain: info.fault_domain,
        disks: info.disks,
        total_bytes: info.capacity_bytes,
        used_bytes: info.used_bytes,
        promised_bytes: 40 << 30,
    };
    let policy = PolicyCapacity {
        policy: "mirror:2".to_owned(),
        volumes: 4,
        provisioned_bytes: 40 << 30,
        stored_bytes: 24 << 30,
        promised_bytes: 80 << 30,
    };
    let loss = LossForecast {
        kind: LossKind::Host,
        host: HERE,
        disk: None,
        name: HERE_NAME.to_owned(),
        volumes: 4,
        rebuild_bytes: 12 << 30,
        rebuilt: false,
        unavailable: 4,
        unavailable_volumes: ["a", "b", "c", "d"].iter().map(|n| n.parse().unwrap()).collect(),
        unplaced: 0,
        unplaced_volumes: vec![],
        used_percent_after: 24,
    };
    let disk = LossForecast {
        kind: LossKind::Disk,
        disk: Some(DISK),
        name: "/disk0 of host alpha".to_owned(),
        rebuilt: true,
        unavailable: 0,
        unavailable_volumes: vec![],
        ..loss.clone()
    };
    let hosts = hosts.into_iter().map(host).collect();
    CapacityReport { totals, hosts, policies: vec![policy], losses: vec![loss, disk] }
}

pub(crate) fn events(query: EventQuery) -> EventList {
    let event = |seq: u64, kind, level, message: &str| EventInfo {
        at_unix_ms: 1_795_291_200_000 + seq * 1_000,
        kind,
        level,
        subject: format!("host {THERE}"),
        check: (kind == EventKind::HealthRaised).then(|| "host_offline".to_owned()),
        message: message.to_owned(),
        seen_by: vec![EventWitness { host: HERE, host_name: HERE_NAME.to_owned(), seq }],
    };
    let mut events = vec![
        event(1, EventKind::HostJoined, EventLevel::Info, "host beta was let into the cluster"),
        event(2, EventKind::HostDown, EventLevel::Warning, "host beta is offline\x1b[2J"),
        event(3, EventKind::HealthRaised, EventLevel::Warning, "host beta is offline"),
    ];
    events.retain(|e| e.at_unix_ms >= query.since_ms);
    let left_out = events.len().saturating_sub(query.limit as usize);
    events.drain(..left_out);
    let silent_hosts = if query.local { vec![] } else { vec!["beta".to_owned()] };
    EventList { events, silent_hosts, more: left_out > 0 }
}

/// Of host alpha.
pub(crate) fn safety(safe: bool) -> Safety {
    let refusal = "it holds the last copy of 3 chunks".to_owned();
    let action = |command: &str, possible: bool| PossibleAction {
        command: command.to_owned(),
        possible,
        moved_bytes: 3 << 30,
        refusal: (!possible).then(|| refusal.clone()),
        next_step: (!possible).then(|| "add disks".to_owned()),
    };
    let unavailable_volumes = if safe { vec![] } else { vec!["web".parse().unwrap()] };
    Safety {
        name: "host alpha".to_owned(),
        safe,
        used_bytes: 12 << 30,
        volumes: 4,
        rebuild_bytes: 12 << 30,
        unavailable_volumes,
        unplaced_volumes: vec![],
        open_volumes: vec![],
        keeps_quorum: safe,
        actions: vec![
            action("vsanctl host remove alpha --force", safe),
            action("vsanctl host maintenance enter alpha --mode full", true),
        ],
    }
}
