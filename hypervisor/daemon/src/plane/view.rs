//! The cluster and this host as the API shows them.

use ferro_protocol::api::vm::{
    HostVms, HypervisorHost, HypervisorStatus, VmInfo, VmName, VmPower, VmState, VmStatus, VmTotals,
};
use ferro_protocol::api::{Health, HealthLevel, HealthReason};
use ferro_protocol::ids::HostId;

use super::Plane;
use super::cluster::{At, Cluster};
use crate::host::users::find_user;

fn status_elsewhere(cluster: &Cluster, name: &VmName, host: HostId, wanted: VmPower) -> VmStatus {
    let said = cluster.reports.get(&host).and_then(|report| report.document.it.vms.get(name));
    let status = said.map_or_else(VmStatus::never_started, |vm| vm.status.clone());
    if cluster.answers(host) || (wanted == VmPower::Off && !status.state.is_active()) {
        return status;
    }
    let detail = format!("the hypervisord of host {} does not answer", cluster.name(host));
    VmStatus { state: VmState::Unknown, process: None, detail: Some(detail), ..status }
}

impl Plane {
    /// One VM, as far as it is known here.
    pub(super) fn info(&self, cluster: &Cluster, name: &VmName) -> Option<VmInfo> {
        let At { revision, it: spec } = cluster.specs.get(name)?;
        let run = cluster.runs.get(name).map(|at| &at.it);
        let own = self.machine(name).map(|machine| machine.snapshot());
        let own =
            own.filter(|own| own.status.state.is_active() || run.is_none_or(|run| run.host == cluster.me));
        let wanted = match &own {
            Some(own) if own.status.state.is_active() => own.wanted,
            _ => run.map_or(VmPower::Off, |run| run.wanted),
        };
        let (host, status) = match (own, run) {
            (Some(own), _) => (Some(cluster.me), own.status),
            (None, Some(run)) if run.host != cluster.me => {
                (Some(run.host), status_elsewhere(cluster, name, run.host, wanted))
            }
            _ => (None, VmStatus::never_started()),
        };
        // One that is off is nobody's.
        let host = host.filter(|_| status.state != VmState::Off);
        Some(VmInfo {
            name: name.clone(),
            spec: spec.clone(),
            revision: *revision,
            wanted,
            host_name: host.map(|host| cluster.name(host)),
            here: host == Some(cluster.me),
            host,
            status,
        })
    }

    /// The hypervisor at a glance.
    pub(super) fn glance(&self) -> HypervisorStatus {
        let capacity = self.capacity();
        let cluster = self.seen();
        let infos: Vec<VmInfo> = cluster.as_ref().map_or_else(Vec::new, |cluster| {
            cluster.specs.keys().filter_map(|name| self.info(cluster, name)).collect()
        });
        let on = |host: HostId| {
            let mut count = HostVms::default();
            for info in infos.iter().filter(|info| info.host == Some(host)) {
                match info.status.state {
                    VmState::Failed => count.failed += 1,
                    VmState::Off | VmState::Unknown => {}
                    _ => count.active += 1,
                }
            }
            count
        };
        let mut hosts: Vec<HypervisorHost> = cluster.as_ref().map_or_else(Vec::new, |cluster| {
            let others = cluster.reports.iter().filter(|(host, _)| **host != cluster.me);
            others
                .map(|(host, report)| HypervisorHost {
                    answers: cluster.answers(*host),
                    silent_s: Some(report.seen.elapsed().as_secs()),
                    vms: on(*host),
                    capacity: report.document.it.capacity.clone(),
                })
                .collect()
        });
        hosts.push(HypervisorHost {
            answers: true,
            silent_s: None,
            vms: on(capacity.host),
            capacity: capacity.clone(),
        });
        hosts.sort_by(|a, b| a.capacity.host_name.cmp(&b.capacity.host_name));
        let count = |test: fn(VmState) -> bool| {
            u32::try_from(infos.iter().filter(|info| test(info.status.state)).count()).unwrap_or(u32::MAX)
        };
        let vms = VmTotals {
            defined: u32::try_from(infos.len()).unwrap_or(u32::MAX),
            running: count(|state| matches!(state, VmState::Running | VmState::Paused)),
            failed: count(|state| state == VmState::Failed),
        };
        let directory = self.lost().is_none();
        HypervisorStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: capacity.host,
            host_name: capacity.host_name,
            health: self.health(&infos, &hosts),
            directory,
            vms,
            hosts,
        }
    }

    fn health(&self, infos: &[VmInfo], hosts: &[HypervisorHost]) -> Health {
        let mut reasons = Vec::new();
        let mut add = |level, code: &str, message: String, next_step: &str| {
            reasons.push(HealthReason {
                level,
                code: code.to_owned(),
                message,
                next_step: next_step.to_owned(),
            });
        };
        for info in infos {
            let detail = info.status.detail.as_deref().unwrap_or("nobody knows why");
            match info.status.state {
                VmState::Failed => add(
                    HealthLevel::Critical,
                    "vm_failed",
                    format!("VM {} has failed: {detail}", info.name),
                    "look at `vmctl logs --previous`, then start it again or kill it",
                ),
                VmState::Unknown => add(
                    HealthLevel::Critical,
                    "vm_unknown",
                    format!("VM {}: {detail}", info.name),
                    "see `vsanctl status` for that host",
                ),
                _ => {}
            }
        }
        for (name, snapshot) in self.snapshots().into_iter().filter(|(_, snapshot)| snapshot.leftovers) {
            let detail = snapshot.status.detail.unwrap_or_default();
            let message = format!("VM {name} is off, and not all that it had is given back: {detail}");
            add(
                HealthLevel::Warning,
                "vm_leftovers",
                message,
                "see that vsand and vswitchd run; it is tried again",
            );
        }
        for host in hosts.iter().filter(|host| !host.answers) {
            let message = format!("the hypervisord of host {} does not answer", host.capacity.host_name);
            add(HealthLevel::Warning, "host_silent", message, "see `systemctl status hypervisord` there");
        }
        if self.seen().is_some_and(|cluster| !cluster.quorum) && self.lost().is_none() {
            let message =
                "the cluster directory has no quorum: no VM can be made, changed or started".to_owned();
            add(HealthLevel::Critical, "no_quorum", message, "bring hosts back; see `vsanctl status`");
        }
        if let Some(why) = self.lost() {
            let message = format!("the cluster directory can't be asked: {why}");
            add(HealthLevel::Warning, "no_directory", message, "VMs that run go on; see `vsanctl status`");
        }
        let own = self.services.groups.describe();
        if !own.1 {
            let next = "mount cgroup v2 with the controllers cpu and memory, or boot with systemd";
            add(HealthLevel::Warning, "limits_not_kept", own.0, next);
        }
        let user = &self.services.config.vmm_user;
        if rustix::process::geteuid().is_root() && find_user(user).is_none() {
            let message =
                format!("there is no user {user}: vmms run as the user that they choose themselves");
            add(
                HealthLevel::Warning,
                "no_vmm_user",
                message,
                "make it: `useradd --system --no-create-home --shell /usr/sbin/nologin ferro-vmm`",
            );
        }
        reasons.sort_by_key(|reason| std::cmp::Reverse(reason.level));
        let level = reasons.first().map_or(HealthLevel::Ok, |reason| reason.level);
        Health { level, reasons }
    }
}
