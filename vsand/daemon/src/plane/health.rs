//! Health: what is not as it should be, with the object and the next step, the worst first.
//!
//! [`findings`] looks at everything once. `vsanctl status` shows what comes out of it as it is, less what is muted
//! ([`mutes`]); `vsanctl health` groups it by check ([`checks`]), with those that found nothing. Pure, but for changes of
//! mutes, which are a document of the directory.
//!
//! What it must not know: how a report came here, what a terminal shows.

mod checks;
pub(super) mod mutes;
mod room;
mod volume;
mod wear;

use std::collections::BTreeSet;

use ferro_protocol::api::{
    DiskState, Health, HealthLevel, HealthReason, HealthReport, HostInfo, HostState, MaintenanceInfo,
    format_size,
};

use vsand_core::directory::FeatureLevel;

use super::errors::host_name;
use super::remote::HostReport;
use super::view::View;

/// A certificate with less left should have renewed itself long ago.
const CERTIFICATE_LEFT_MIN_S: u64 = 5 * 24 * 3600;
/// A host that joined so long ago should have come up.
const JOINING_MAX_S: u64 = 120;

fn reason(level: HealthLevel, code: &str, message: String, next_step: impl Into<String>) -> HealthReason {
    debug_assert!(checks::CHECKS.iter().any(|c| c.code == code), "{code} is not in the list of checks");
    HealthReason { level, code: code.to_owned(), message, next_step: next_step.into() }
}

/// One thing that a check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    /// What it is about, the same as long as it is there: a host, disk or volume by its id.
    pub subject: String,
    pub reason: HealthReason,
}

/// What was found so far, and what is looked at now.
#[derive(Default)]
struct Findings {
    about: String,
    list: Vec<Finding>,
}

impl Findings {
    fn about(&mut self, what: &str, id: impl std::fmt::Display) {
        self.about = format!("{what} {id}");
    }

    fn push(&mut self, reason: HealthReason) {
        self.list.push(Finding { subject: self.about.clone(), reason });
    }
}

/// Of a host without a cluster.
pub(super) fn without_cluster() -> Health {
    let one = reason(
        HealthLevel::Warning,
        "no_cluster",
        "this host is in no cluster yet".to_owned(),
        "make one with `vsanctl cluster bootstrap`, or join one with `vsanctl cluster join TOKEN`",
    );
    Health { level: one.level, reasons: vec![one] }
}

/// Of the cluster, without what is muted; and the codes of the checks that are.
pub(super) fn of(view: &View) -> (Health, Vec<String>) {
    let found = findings(view);
    let mutes = mutes::Mutes::in_force(&view.state);
    let muted: Vec<String> = checks::grouped(found.clone())
        .into_iter()
        .filter(|group| !group.subjects.is_empty() && mutes.hides(group, view.unix_s))
        .map(|group| group.check.code)
        .collect();
    let mut reasons: Vec<HealthReason> =
        found.into_iter().map(|f| f.reason).filter(|r| !muted.contains(&r.code)).collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
    (Health { level: reasons.first().map_or(HealthLevel::Ok, |r| r.level), reasons }, muted)
}

/// Of the cluster, by check.
pub(super) fn report(view: &View) -> HealthReport {
    let mutes = mutes::Mutes::in_force(&view.state);
    let mut level = HealthLevel::Ok;
    let mut checks = Vec::new();
    for mut group in checks::grouped(findings(view)) {
        if !mutes.hides(&group, view.unix_s) {
            level = level.max(group.check.level);
        }
        group.check.mute = mutes.show(&group, view.unix_s);
        checks.push(group.check);
    }
    HealthReport { level, checks }
}

/// All that was found, in the order in which it was looked at.
pub(super) fn findings(view: &View) -> Vec<Finding> {
    let mut found = Findings::default();
    found.about("host", view.me);
    if view.removed {
        // What it last heard of the others says nothing any more.
        let error = super::errors::removed();
        found.push(reason(HealthLevel::Critical, "host_removed", error.message, error.next_step));
        return found.list;
    }
    found.about("cluster", "directory");
    directory(view, &mut found);
    hosts(view, &mut found);
    level(view, &mut found);
    disks(view, &mut found);
    wear::disks(view, &mut found);
    wear::slow(view, &mut found);
    wear::volumes(view, &mut found);
    for record in view.state.volumes() {
        found.about("volume", record.id);
        volume::look_at(view, record, &mut found);
    }
    found.list
}

fn directory(view: &View, reasons: &mut Findings) {
    if view.quorum {
        return;
    }
    let missing: Vec<String> = view
        .voters
        .iter()
        .filter(|host| !view.is_online(**host))
        .map(|host| host_name(&view.state, *host))
        .collect();
    let next = if missing.is_empty() {
        "wait a few seconds for its voters to agree on a leader; if that lasts, see their logs".to_owned()
    } else {
        format!("bring back enough of the voters that do not answer: {}", missing.join(", "))
    };
    let message =
        "the cluster directory has no quorum: nothing can be changed, and volumes that need a change wait"
            .to_owned();
    reasons.push(reason(HealthLevel::Critical, "no_quorum", message, next));
}

fn hosts(view: &View, reasons: &mut Findings) {
    let mut versions = BTreeSet::new();
    for host in view.hosts() {
        reasons.about("host", host.id);
        let name = &host.name;
        let joined = view.state.hosts.get(&host.id).map_or(0, |h| h.joined_unix_s);
        if let Some(maintenance) = &host.maintenance {
            reasons.push(in_maintenance(&host, maintenance));
        }
        match host.state {
            HostState::Offline if host.maintenance.is_none() => {
                let since = host.last_seen_seconds.map_or_else(String::new, |s| format!(" for {}", span(s)));
                let leaving = if host.leaving_bytes.is_some() { ", which is leaving," } else { "" };
                let given_up = view.state.absences.of(host.id).is_some_and(|absence| absence.given_up);
                let becomes = if given_up {
                    "what it holds is being built elsewhere, as far as the other hosts can hold it; if it comes back, it gets what it missed"
                        .to_owned()
                } else if view.state.level < FeatureLevel::ABSENCES {
                    format!("data that it misses for {} is rebuilt elsewhere", span(view.repair_delay_s))
                } else {
                    format!(
                        "if it is away for {}, what it holds is built elsewhere",
                        span(view.repair_delay_s)
                    )
                };
                reasons.push(reason(
                    HealthLevel::Warning,
                    "host_offline",
                    format!("host {name}{leaving} is offline: it was not heard of{since}"),
                    format!("check its power, its network and `systemctl status vsand` there; {becomes}"),
                ));
            }
            HostState::Leaving => {
                let left = format_size(host.leaving_bytes.unwrap_or(0));
                reasons.push(reason(
                    HealthLevel::Ok,
                    "host_leaving",
                    format!("host {name} is leaving: {left} are still to be copied elsewhere"),
                    format!("wait; or keep it: `vsanctl host remove {name} --cancel`"),
                ));
            }
            HostState::Joining if view.unix_s.saturating_sub(joined) > JOINING_MAX_S => reasons.push(reason(
                HealthLevel::Warning,
                "host_not_up",
                format!("host {name} was let in and has not come up"),
                format!("start vsand there, or take it out: `vsanctl host remove {name}`"),
            )),
            _ => {}
        }
        if let Some(ends) = host.certificate_expires_unix_s
            && ends.saturating_sub(view.unix_s) < CERTIFICATE_LEFT_MIN_S
        {
            reasons.push(reason(
                HealthLevel::Warning,
                "certificate_expiring",
                format!("the certificate of host {name} ends in {}", span(ends.saturating_sub(view.unix_s))),
                format!("it renews itself; if it does not, see `journalctl -u vsand` on {name} and restart vsand there"),
            ));
        }
        versions.extend(host.version);
    }
    reasons.about("cluster", "hosts");
    if versions.len() > 1 {
        let all: Vec<String> = versions.into_iter().collect();
        reasons.push(reason(
            HealthLevel::Warning,
            "versions_differ",
            format!("the hosts run different versions of vsand: {}", all.join(", ")),
            "upgrade the older ones; `vsanctl host list` says which they are",
        ));
    }
}

/// All hosts know more than the cluster makes use of.
fn level(view: &View, reasons: &mut Findings) {
    let now = view.state.level;
    let known = |host| view.reports.get(host).map(|report: &HostReport| report.feature_level_known);
    let least = view.state.hosts.keys().map(known).min().flatten();
    if let Some(least) = least.filter(|least| *least > now) {
        reasons.about("cluster", "level");
        reasons.push(reason(
            HealthLevel::Ok,
            "upgrade_unfinished",
            format!("all hosts know feature level {least}, and the cluster is at {now}: an earlier release could still take part"),
            "when there is no need to go back to it, use `vsanctl cluster upgrade`",
        ));
    }
}

fn in_maintenance(host: &HostInfo, maintenance: &MaintenanceInfo) -> HealthReason {
    let name = &host.name;
    let how = match (host.state, maintenance.ready) {
        (HostState::Offline, _) => "it is offline, and nothing is rebuilt because of that".to_owned(),
        (_, true) => "it may be switched off".to_owned(),
        (_, false) if maintenance.remaining_bytes > 0 => {
            format!("{} are still to be moved", format_size(maintenance.remaining_bytes))
        }
        (_, false) => "it must not be switched off yet: something could not be read without it".to_owned(),
    };
    reason(
        HealthLevel::Ok,
        "host_maintenance",
        format!("host {name} is in maintenance, mode {}: {how}", maintenance.mode),
        format!("when the work is done: `vsanctl host maintenance exit {name}`"),
    )
}

fn disks(view: &View, reasons: &mut Findings) {
    reasons.about("cluster", "disks");
    if view.state.disks.is_empty() {
        let message = "the cluster has no disks: no volume can be made".to_owned();
        let next = "give it one on each host: `vsanctl disk add PATH`";
        reasons.push(reason(HealthLevel::Warning, "no_disks", message, next));
    }
    for disk in view.disks() {
        reasons.about("disk", disk.id);
        let what = format!("disk {} of host {}", disk.path, disk.host_name);
        let why = disk.reason.as_deref().unwrap_or("unknown");
        // `leaving_bytes` is of all that leave, those that were overtaken by something worse too.
        let leaves = disk.leaving_bytes.is_some();
        match disk.state {
            DiskState::Failed if leaves => reasons.push(reason(
                HealthLevel::Warning,
                "disk_failed",
                format!("{what} is leaving and has failed: {why}"),
                format!(
                    "what was not copied yet is rebuilt from the other copies, then it goes by itself; or, if the cause is gone, `vsanctl disk revive {}` on {}",
                    disk.id, disk.host_name
                ),
            )),
            DiskState::Offline if leaves && view.is_online(disk.host) => reasons.push(reason(
                HealthLevel::Warning,
                "disk_offline",
                format!("{what} is leaving and is not served: {why}"),
                format!(
                    "put that right and restart vsand on {}; without it, what was not copied yet is rebuilt from the other copies after {}",
                    disk.host_name,
                    span(view.repair_delay_s)
                ),
            )),
            DiskState::Failed => reasons.push(reason(
                HealthLevel::Warning,
                "disk_failed",
                format!("{what} has failed: {why}"),
                format!(
                    "its data is rebuilt elsewhere; replace it and take it out with `vsanctl disk remove {0}`; or, if the cause is gone, `vsanctl disk revive {0}` on {1}",
                    disk.id, disk.host_name
                ),
            )),
            DiskState::Offline if view.is_online(disk.host) => reasons.push(reason(
                HealthLevel::Warning,
                "disk_offline",
                format!("{what} is not served: {why}"),
                format!("put that right and restart vsand on {}, or take the disk out: `vsanctl disk remove {}`", disk.host_name, disk.id),
            )),
            DiskState::Leaving if !view.state.leaving_hosts.contains_key(&disk.host) => {
                let left = format_size(disk.leaving_bytes.unwrap_or(0));
                reasons.push(reason(
                    HealthLevel::Ok,
                    "disk_leaving",
                    format!("{what} is leaving: {left} are still to be copied elsewhere"),
                    format!("wait; or keep it: `vsanctl disk remove {} --cancel`", disk.id),
                ));
            }
            DiskState::Online => room::disk(view, &disk, &what, reasons),
            _ => {}
        }
    }
}

/// A length of time for people.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::view::tests::{disk_id, healthy, host_id, kill, stale};
    use super::*;
    use std::sync::Arc;
    use vsand_core::directory::{Absence, Command, DiskHealth};

    pub(super) fn shown(view: &View) -> Health {
        of(view).0
    }

    pub(super) fn codes(health: &Health) -> Vec<&str> {
        health.reasons.iter().map(|r| r.code.as_str()).collect()
    }

    #[test]
    fn nothing_to_say_when_all_is_well() {
        let health = shown(&healthy());
        assert_eq!((health.level, codes(&health)), (HealthLevel::Ok, vec![]));
    }

    #[test]
    fn a_dead_host_is_named_with_what_it_costs() {
        let mut view = healthy();
        kill(&mut view, 3);
        stale(&mut view, 3, 5);
        let health = shown(&view);
        assert_eq!(health.level, HealthLevel::Warning);
        assert_eq!(codes(&health), ["host_offline", "volume_degraded"]);
        assert!(health.reasons[0].message.contains("host3") && health.reasons[0].message.contains("30 s"));
        assert!(health.reasons[1].next_step.contains("host3"), "{:?}", health.reasons[1]);
    }

    #[test]
    fn a_host_that_was_given_up_is_said_to_be() {
        let mut view = healthy();
        kill(&mut view, 3);
        let next = |view: &View| shown(view).reasons.first().map(|r| r.next_step.clone()).unwrap();
        assert!(
            next(&view).contains("if it is away for 60 min, what it holds is built elsewhere"),
            "{}",
            next(&view)
        );
        let lease = view.state.hosts[&host_id(3)].lease;
        let absence = Absence { since_unix_s: 1, given_up: true };
        let command = Command::HostAway { host: host_id(3), lease, absence };
        Arc::make_mut(&mut view.state).apply(1 << 20, command).unwrap();
        assert!(next(&view).contains("what it holds is being built elsewhere"), "{}", next(&view));
        let mut low = healthy();
        kill(&mut low, 3);
        Arc::make_mut(&mut low.state).level = FeatureLevel::CONVERSIONS;
        assert!(next(&low).contains("data that it misses"), "{}", next(&low));
    }

    #[test]
    fn the_worst_comes_first() {
        let mut view = healthy();
        view.quorum = false;
        kill(&mut view, 2);
        kill(&mut view, 3);
        let health = shown(&view);
        assert_eq!(health.level, HealthLevel::Critical);
        assert_eq!(codes(&health)[0], "no_quorum");
        assert!(health.reasons[0].next_step.contains("host2, host3"));
    }

    #[test]
    fn disks_that_failed_or_are_full_are_named() {
        let mut view = healthy();
        let state = Arc::make_mut(&mut view.state);
        state.disks.get_mut(&disk_id(2)).unwrap().health = DiskHealth::Dead("EIO".to_owned());
        view.reports.get_mut(&host_id(3)).unwrap().disks[0].extents_used = 960;
        let health = shown(&view);
        assert!(
            codes(&health).contains(&"disk_failed") && codes(&health).contains(&"disk_full"),
            "{health:?}"
        );
    }

    #[test]
    fn a_volume_of_a_dead_owner_says_how_to_get_it_back() {
        let mut view = healthy();
        view.me = host_id(2);
        kill(&mut view, 1);
        let health = shown(&view);
        let owner = health.reasons.iter().find(|r| r.code == "owner_offline").unwrap();
        assert!(owner.next_step.contains("vsanctl lock break"), "{owner:?}");
    }

    #[test]
    fn a_disk_that_leaves_and_fails_says_both() {
        let mut view = healthy();
        let state = Arc::make_mut(&mut view.state);
        state.leaving_disks.insert(disk_id(3), vsand_core::directory::Departure::WhenEmpty);
        state.disks.get_mut(&disk_id(3)).unwrap().health = DiskHealth::Dead("EIO".to_owned());
        view.reports.get_mut(&host_id(3)).unwrap().disks[0].failure = Some("EIO".to_owned());
        let found = view.disks().into_iter().find(|d| d.id == disk_id(3)).unwrap();
        assert_eq!((found.state, found.leaving_bytes), (DiskState::Failed, Some(10 << 20)));
        let health = shown(&view);
        let both = health.reasons.iter().find(|r| r.code == "disk_failed").unwrap();
        assert!(both.message.contains("is leaving and has failed: EIO"), "{both:?}");
        assert!(both.next_step.contains("goes by itself"), "{both:?}");
        kill(&mut view, 3);
        Arc::make_mut(&mut view.state)
            .leaving_hosts
            .insert(host_id(3), vsand_core::directory::Departure::WhenEmpty);
        let health = shown(&view);
        let host = health.reasons.iter().find(|r| r.code == "host_offline").unwrap();
        assert!(host.message.contains("host3, which is leaving, is offline"), "{host:?}");
    }

    #[test]
    fn copies_in_one_fault_domain_are_named() {
        let mut view = healthy();
        for n in [2, 3] {
            Arc::make_mut(&mut view.state).hosts.get_mut(&host_id(n)).unwrap().fault_domain =
                "rack".to_owned();
        }
        let health = shown(&view);
        assert_eq!(codes(&health), ["copies_share_fault_domain"]);
        let one = &health.reasons[0];
        assert!(one.message.contains("copies of a chunk in one fault domain, rack"), "{one:?}");
        assert!(one.message.contains("/disk of host host2, /disk of host host3"), "{one:?}");
        // A copy that is leaving is on its way out of it.
        let leaving = &mut Arc::make_mut(&mut view.state).leaving_disks;
        leaving.insert(disk_id(3), vsand_core::directory::Departure::WhenEmpty);
        assert_eq!(codes(&shown(&view)), ["disk_leaving"]);
    }

    #[test]
    fn a_removed_host_says_only_that() {
        let mut view = healthy();
        view.removed = true;
        kill(&mut view, 2);
        assert_eq!(codes(&shown(&view)), ["host_removed"]);
    }

    #[test]
    fn spans_read_well() {
        for (s, text) in [(30, "30 s"), (3_600, "60 min"), (10_000, "2 h"), (864_000, "10 days")] {
            assert_eq!(span(s), text);
        }
    }
}
