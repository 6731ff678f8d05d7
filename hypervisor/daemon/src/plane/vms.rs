//! What the API asks of VMs, done.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ferro_protocol::api::vm::spec::{DiskSpec, NicSpec};
use ferro_protocol::api::vm::{
    ConsoleInfo, DiskStats, HostCapacity, HypervisorStatus, NicStats, VmInfo, VmLog, VmName, VmPower, VmSpec,
    VmState, VmStats,
};
use ferro_protocol::api::{ApiError, ErrorCode, VolumeCounters};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{HostId, VolumeName};
use ferro_transport::directory::PutError;
use ferro_transport::documents;
use hypervisor_core::documents::{FORMAT, RunDocument, SpecDocument, Verb, run_name, spec_name};
use hypervisor_core::spec::{Vm, check, complete};
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::oneshot;

use super::cluster::{At, Cluster};
use super::{Plane, fail};
use crate::api::control::{ControlPlane, Result};
use crate::machine::process::usage;
use crate::machine::{Asker, Request, tail};
use crate::metrics;

/// How long the directory's view may take to show what was written.
const SHOW_MAX: Duration = Duration::from_secs(10);
/// What an order may take beside the time that it gives the guest.
const ORDER_MAX: Duration = Duration::from_secs(120);
/// Attempts at a document that others change at the same time.
const TRIES_MAX: u32 = 8;
/// The most of a log that is read: both halves of it.
const LOG_BYTES_MAX: usize = 8 << 20;

fn put_failed(what: &str, error: PutError) -> ApiError {
    match error {
        PutError::Overtaken(now) => ApiError::new(
            ErrorCode::Conflict,
            format!("{what}: somebody else changed it meanwhile"),
            "look at what is there now and try again; nothing was changed",
        )
        .with("revision", now),
        PutError::Unavailable(why) => fail::no_directory(format!("{what} ({why})")),
        PutError::Unknown(why) => fail::timed_out(format!("{what} ({why})")),
        PutError::Refused(error) => error,
    }
}

/// Runs to its end even if whoever waits for it goes away.
async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(fail::internal("the request", error)),
    }
}

/// What was left open in a specification is chosen; then it is checked, by itself.
fn completed(mut spec: VmSpec) -> Result<(VmSpec, Vm)> {
    let mut drawn = Ok(());
    complete(&mut spec, || {
        let mut bytes = [0; 5];
        if let Err(error) = OsRng.try_fill_bytes(&mut bytes) {
            drawn = Err(fail::internal("choosing an address", error));
        }
        bytes
    });
    drawn?;
    let vm = check(&spec).map_err(|faults| fail::invalid_vm(&spec.name, faults))?;
    Ok((spec, vm))
}

impl Plane {
    pub(super) async fn put<T: serde::Serialize>(
        &self,
        what: &str,
        name: &DocumentName,
        basis: u64,
        document: &T,
    ) -> Result<u64> {
        let text = documents::write(document).map_err(|error| fail::internal(what, error))?;
        self.directory.put(name, basis, text).await.map_err(|error| put_failed(what, error))
    }

    /// Waits until the view shows something.
    async fn shown(&self, what: &str, test: impl Fn(&Cluster) -> bool) -> Result<Arc<Cluster>> {
        let mut cluster = self.cluster.subscribe();
        let wait = cluster.wait_for(|seen| seen.as_ref().is_some_and(|seen| test(seen)));
        match tokio::time::timeout(SHOW_MAX, wait).await {
            Ok(Ok(seen)) => seen.clone().ok_or_else(|| fail::timed_out(what)),
            _ => Err(fail::timed_out(what)),
        }
    }

    fn info_of(&self, cluster: &Cluster, name: &VmName) -> Result<VmInfo> {
        self.info(cluster, name).ok_or_else(|| fail::vm_not_found(name))
    }

    async fn put_spec(&self, name: &VmName, basis: u64, spec: VmSpec) -> Result<VmInfo> {
        let what = format!("writing down VM {name}");
        let document = SpecDocument { format: FORMAT, spec };
        let revision = self.put(&what, &spec_name(name), basis, &document).await?;
        let seen =
            self.shown(&what, |seen| seen.specs.get(name).is_some_and(|at| at.revision >= revision)).await?;
        self.info_of(&seen, name)
    }

    /// Changes the specification of a VM that is off, on the basis that is given or of what is there.
    async fn change_spec(
        &self,
        name: &VmName,
        basis: Option<u64>,
        change: impl Fn(&VmSpec) -> Result<VmSpec>,
    ) -> Result<VmInfo> {
        let mut tries = 0;
        loop {
            let cluster = self.known()?;
            let info = self.info_of(&cluster, name)?;
            if let Some(basis) = basis.filter(|basis| *basis != info.revision) {
                tracing::debug!(vm = %name, basis, "a change was made for another revision");
                return Err(fail::overtaken(name, info.revision));
            }
            must_be_off(&info)?;
            let (spec, vm) = completed(change(&info.spec)?)?;
            self.services.check_named(&vm, check(&info.spec).ok().as_ref()).await?;
            match self.put_spec(name, info.revision, spec).await {
                Err(error) if error.code == ErrorCode::Conflict && basis.is_none() && tries < TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                other => return other,
            }
        }
    }

    async fn create_vm(&self, spec: VmSpec) -> Result<VmInfo> {
        let (spec, vm) = completed(spec)?;
        let name: VmName = spec.name.parse().map_err(|error| fail::internal("the name", error))?;
        let cluster = self.known()?;
        self.services.paths(&name)?;
        let taken = || {
            let next = "choose another name, or change what is there (`vmctl set`)";
            ApiError::new(ErrorCode::NameTaken, format!("there is a VM {name} already"), next)
        };
        if cluster.specs.contains_key(&name) {
            return Err(taken());
        }
        self.services.check_named(&vm, None).await?;
        match self.put_spec(&name, 0, spec).await {
            Err(error) if error.code == ErrorCode::Conflict => Err(taken()),
            other => other,
        }
    }

    async fn delete_vm(&self, name: &VmName) -> Result<()> {
        let cluster = self.known()?;
        let info = self.info_of(&cluster, name)?;
        must_be_off(&info)?;
        if let Some(machine) = self.machine(name)
            && machine.snapshot().leftovers
        {
            let message = format!("VM {name} is off, and not all that it had is given back yet");
            return Err(ApiError::new(
                ErrorCode::VmNotOff,
                message,
                "see `vmctl status`, and try again in a moment",
            ));
        }
        let what = format!("deleting VM {name}");
        let deleted = self.directory.delete(&spec_name(name), info.revision).await;
        deleted.map_err(|error| put_failed(&what, error))?;
        if let Some(run) = cluster.runs.get(name)
            && let Err(error) = self.directory.delete(&run_name(name), run.revision).await
        {
            // Without a specification it means nothing; the next VM of the name goes on from it.
            tracing::warn!(vm = %name, %error, "what was known of whose it was stays");
        }
        self.shown(&what, |seen| !seen.specs.contains_key(name)).await.map(drop)
    }

    /// The host that is meant.
    fn host_by_name(cluster: &Cluster, host: Option<&str>) -> Result<HostId> {
        let Some(host) = host else { return Ok(cluster.me) };
        let found = cluster.names.iter().find(|(id, name)| *name == host || id.to_string() == host);
        found.map(|(id, _)| *id).ok_or_else(|| {
            let message = format!("there is no host {host} in the cluster");
            ApiError::new(ErrorCode::HostNotFound, message, "see `vsanctl host list` for those there are")
        })
    }

    async fn start_vm(&self, name: &VmName, host: Option<String>) -> Result<VmInfo> {
        let mut tries = 0;
        loop {
            let cluster = self.known()?;
            let target = Self::host_by_name(&cluster, host.as_deref())?;
            let info = self.info_of(&cluster, name)?;
            may_start(&cluster, &info, target)?;
            self.may_take_over(&cluster, &info, target).await?;
            if info.host == Some(target) && info.status.state == VmState::Running {
                return Ok(info);
            }
            let run = cluster.runs.get(name);
            let document = RunDocument {
                format: FORMAT,
                host: target,
                epoch: None,
                wanted: VmPower::On,
                incarnation: run.map_or(0, |run| run.it.incarnation),
                order: self.next_order(&cluster, name, target),
                verb: Some(Verb::Start),
                ports: run.map_or_else(Vec::new, |run| run.it.ports.clone()),
            };
            let what = format!("starting VM {name}");
            let basis = run.map_or(0, |run| run.revision);
            match self.put(&what, &run_name(name), basis, &document).await {
                Ok(_) => return self.ordered(name, target, document.order, ORDER_MAX).await,
                Err(error) if error.code == ErrorCode::Conflict && tries < TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether a VM can be started on this host while nobody can say whether it runs on another, which does not answer: as long
    /// as that has the lock of its first disk, it may run there.
    async fn may_take_over(&self, cluster: &Cluster, info: &VmInfo, target: HostId) -> Result<()> {
        let (Some(host), Some(disk)) = (info.host, info.spec.disks.first()) else { return Ok(()) };
        let Ok(volume) = disk.volume.parse() else { return Ok(()) };
        if host == target || cluster.answers(host) {
            return Ok(());
        }
        let owner = self.services.vsand.volume(&volume).await?.owner;
        match owner.filter(|owner| owner.host != target) {
            Some(owner) => Err(fail::may_run_elsewhere(&info.name, &volume, &owner.host_name)),
            None => Ok(()),
        }
    }

    /// A number that the host has not come to yet, whatever became of the document in between.
    fn next_order(&self, cluster: &Cluster, name: &VmName, host: HostId) -> u64 {
        let written = cluster.runs.get(name).map_or(0, |run| run.it.order);
        let reported = cluster.reports.get(&host).and_then(|report| report.document.it.vms.get(name));
        let reported = reported.map_or(0, |vm| vm.order);
        let own =
            self.machine(name).filter(|_| host == cluster.me).map_or(0, |machine| machine.snapshot().order);
        written.max(reported).max(own) + 1
    }

    async fn order_vm(&self, name: &VmName, verb: Verb) -> Result<VmInfo> {
        let wait = match verb {
            Verb::Stop { timeout_s, .. } => ORDER_MAX + Duration::from_secs(u64::from(timeout_s)),
            _ => ORDER_MAX,
        };
        // What this host has is told at once, directory or not.
        if let Some(machine) = self.machine(name)
            && (machine.snapshot().status.state.is_active() || self.is_here(name))
        {
            let spec = Box::new(machine.snapshot().spec);
            let (answer, answered) = oneshot::channel();
            let (inherits, asker) = (Vec::new(), Asker::Here(answer));
            let asked = machine.ask(Request::Do { verb, spec, inherits, asker }).await;
            let what = format!("VM {name}");
            let gone = || fail::internal(&what, "its task has ended");
            if !asked {
                return Err(gone());
            }
            let answer = tokio::time::timeout(wait, answered).await.map_err(|_| fail::timed_out(&what))?;
            answer.map_err(|_| gone())??;
            return match self.seen() {
                Some(cluster) => self.info_of(&cluster, name),
                None => Err(fail::no_cluster(&self.lost().unwrap_or_default())),
            };
        }
        self.order_elsewhere(name, verb, wait).await
    }

    fn is_here(&self, name: &VmName) -> bool {
        self.seen().is_some_and(|seen| seen.runs.get(name).is_some_and(|run| run.it.host == seen.me))
    }

    async fn order_elsewhere(&self, name: &VmName, verb: Verb, wait: Duration) -> Result<VmInfo> {
        let mut tries = 0;
        loop {
            let cluster = self.known()?;
            let info = self.info_of(&cluster, name)?;
            let Some(At { revision, it: run }) = cluster.runs.get(name) else {
                return never_ran(info, verb);
            };
            if !info.status.state.is_active() && info.status.state != VmState::Failed {
                return never_ran(info, verb);
            }
            if !cluster.answers(run.host) {
                return Err(fail::host_unreachable(name, &cluster.name(run.host)));
            }
            let wanted = match verb {
                Verb::Start | Verb::Reset | Verb::Resume => VmPower::On,
                Verb::Pause => VmPower::Paused,
                Verb::Stop { .. } | Verb::Kill => VmPower::Off,
            };
            let order = self.next_order(&cluster, name, run.host);
            let document = RunDocument { wanted, order, verb: Some(verb), ..run.clone() };
            match self
                .put(
                    &format!("telling host {}", cluster.name(run.host)),
                    &run_name(name),
                    *revision,
                    &document,
                )
                .await
            {
                Ok(_) => return self.ordered(name, run.host, order, wait).await,
                Err(error) if error.code == ErrorCode::Conflict && tries < TRIES_MAX => {
                    tries += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until a host has come to an order's end, and says how.
    async fn ordered(&self, name: &VmName, host: HostId, order: u64, wait: Duration) -> Result<VmInfo> {
        let what = format!("VM {name}");
        let refused = if self.known()?.me == host {
            let ended = async {
                let mut cluster = self.cluster.subscribe();
                let machine = loop {
                    if let Some(machine) = self.machine(name) {
                        break machine;
                    }
                    // It is made when the order is seen.
                    if cluster.changed().await.is_err() {
                        return None;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                };
                let mut snapshot = machine.watch();
                let done = snapshot.wait_for(|snapshot| snapshot.order >= order).await.ok()?;
                Some(done.refused.clone())
            };
            tokio::time::timeout(wait, ended).await
        } else {
            let ended = async {
                let mut cluster = self.cluster.subscribe();
                let said = cluster
                    .wait_for(|seen| {
                        report_of(seen.as_deref(), host, name).is_some_and(|(at, _)| at >= order)
                    })
                    .await
                    .ok()?;
                report_of(said.as_deref(), host, name).map(|(_, refused)| refused)
            };
            tokio::time::timeout(wait, ended).await
        };
        match refused {
            Ok(Some(None)) => {}
            Ok(Some(Some(error))) => return Err(error),
            Ok(None) => return Err(fail::internal(&what, "its task has ended")),
            Err(_) => return Err(fail::timed_out(&what)),
        }
        let cluster = self.known()?;
        self.info_of(&cluster, name)
    }

    /// The VM on this host, or on which it is.
    fn here(&self, name: &VmName) -> Result<crate::machine::Snapshot> {
        let machine = self.machine(name).map(|machine| machine.snapshot());
        if let Some(snapshot) = machine.as_ref().filter(|snapshot| snapshot.status.state.is_active()) {
            return Ok(snapshot.clone());
        }
        let cluster = self.known()?;
        let info = self.info_of(&cluster, name)?;
        match (info.host, machine) {
            (Some(host), _) if host != cluster.me => Err(fail::elsewhere(name, &cluster.name(host))),
            (_, Some(snapshot)) => Ok(snapshot),
            (_, None) => Err(fail::not_running(name, info.status.state)),
        }
    }
}

fn report_of(cluster: Option<&Cluster>, host: HostId, name: &VmName) -> Option<(u64, Option<ApiError>)> {
    let vm = cluster?.reports.get(&host)?.document.it.vms.get(name)?;
    Some((vm.order, vm.refused.clone()))
}

fn may_start(cluster: &Cluster, info: &VmInfo, target: HostId) -> Result<()> {
    let name = &info.name;
    if !cluster.answers(target) {
        let host = cluster.name(target);
        let message =
            format!("VM {name} can't be started on host {host}: the hypervisord there does not answer");
        let next = format!("see `systemctl status hypervisord` on {host}, or choose another host");
        return Err(ApiError::new(ErrorCode::HostUnreachable, message, next).with("host", host));
    }
    let Some(host) = info.host.filter(|host| *host != target) else { return Ok(()) };
    // On a host that does not answer it may run or not: its disk's lock decides.
    if cluster.answers(host) && info.status.state.is_active() {
        let host = cluster.name(host);
        return Err(fail::not_off(name, info.status.state, Some(&host)));
    }
    Ok(())
}

/// What an order does to a VM that nobody has.
fn never_ran(info: VmInfo, verb: Verb) -> Result<VmInfo> {
    match verb {
        Verb::Stop { .. } | Verb::Kill => Ok(info),
        _ => Err(fail::not_running(&info.name, info.status.state)),
    }
}

fn must_be_off(info: &VmInfo) -> Result<()> {
    if info.status.state.is_active() {
        return Err(fail::not_off(&info.name, info.status.state, info.host_name.as_deref()));
    }
    Ok(())
}

fn device_not_found(name: &VmName, what: String) -> ApiError {
    ApiError::new(
        ErrorCode::DeviceNotFound,
        format!("VM {name} has no {what}"),
        format!("see `vmctl show {name}`"),
    )
}

#[async_trait]
impl ControlPlane for Arc<Plane> {
    async fn status(&self) -> Result<HypervisorStatus> {
        Ok(self.glance())
    }

    async fn host(&self) -> Result<HostCapacity> {
        Ok(self.capacity())
    }

    async fn vms(&self) -> Result<Vec<VmInfo>> {
        let cluster = self.known()?;
        Ok(cluster.specs.keys().filter_map(|name| self.info(&cluster, name)).collect())
    }

    async fn vm(&self, name: &VmName) -> Result<VmInfo> {
        let cluster = self.known()?;
        self.info_of(&cluster, name)
    }

    async fn create(&self, spec: VmSpec) -> Result<VmInfo> {
        let plane = Arc::clone(self);
        detached(async move { plane.create_vm(spec).await }).await
    }

    async fn replace(&self, name: &VmName, spec: VmSpec, basis: Option<u64>) -> Result<VmInfo> {
        let (plane, name) = (Arc::clone(self), name.clone());
        detached(async move { plane.change_spec(&name, basis, |_| Ok(spec.clone())).await }).await
    }

    async fn delete(&self, name: &VmName) -> Result<()> {
        let (plane, name) = (Arc::clone(self), name.clone());
        detached(async move { plane.delete_vm(&name).await }).await
    }

    async fn start(&self, name: &VmName, host: Option<String>) -> Result<VmInfo> {
        let (plane, name) = (Arc::clone(self), name.clone());
        detached(async move { plane.start_vm(&name, host).await }).await
    }

    async fn order(&self, name: &VmName, verb: Verb) -> Result<VmInfo> {
        let (plane, name) = (Arc::clone(self), name.clone());
        detached(async move { plane.order_vm(&name, verb).await }).await
    }

    async fn attach_disk(&self, name: &VmName, disk: DiskSpec) -> Result<VmInfo> {
        let add = |spec: &VmSpec| {
            let mut spec = spec.clone();
            spec.disks.push(disk.clone());
            Ok(spec)
        };
        self.change_spec(name, None, add).await
    }

    async fn detach_disk(&self, name: &VmName, volume: &VolumeName) -> Result<VmInfo> {
        let take = |spec: &VmSpec| {
            let mut spec = spec.clone();
            let before = spec.disks.len();
            spec.disks.retain(|disk| disk.volume != volume.as_str());
            if spec.disks.len() == before {
                return Err(device_not_found(name, format!("volume {volume}")));
            }
            Ok(spec)
        };
        self.change_spec(name, None, take).await
    }

    async fn attach_nic(&self, name: &VmName, nic: NicSpec) -> Result<VmInfo> {
        let add = |spec: &VmSpec| {
            let mut spec = spec.clone();
            spec.nics.push(nic.clone());
            Ok(spec)
        };
        self.change_spec(name, None, add).await
    }

    async fn detach_nic(&self, name: &VmName, index: usize) -> Result<VmInfo> {
        let take = |spec: &VmSpec| {
            let mut spec = spec.clone();
            if index >= spec.nics.len() {
                return Err(device_not_found(name, format!("network card {index}")));
            }
            spec.nics.remove(index);
            Ok(spec)
        };
        self.change_spec(name, None, take).await
    }

    async fn stats(&self, name: &VmName) -> Result<VmStats> {
        let snapshot = self.here(name)?;
        let process = snapshot.status.process.as_ref();
        let process = process.ok_or_else(|| fail::not_running(name, snapshot.status.state))?;
        let (used, resident) = usage(process.pid).unwrap_or_default();
        let said = match self.services.backends.of(process.kind) {
            Some(backend) => backend.state(&self.services.paths(name)?).await.unwrap_or_default(),
            None => crate::backend::Running::default(),
        };
        // Without vsand or vswitchd there are no counters of theirs, and that is shown as none.
        let volumes = self.services.vsand.top().await.map(|top| top.volumes).unwrap_or_default();
        let of_volume =
            |name: &str| volumes.iter().find(|volume: &&VolumeCounters| volume.name.as_str() == name);
        let disks = snapshot.spec.disks.iter().filter_map(|disk| {
            let counters = of_volume(&disk.volume).map(|volume| volume.counters);
            Some(DiskStats { volume: disk.volume.parse().ok()?, counters })
        });
        let disks = disks.collect();
        let mut nics = Vec::new();
        for nic in &snapshot.spec.nics {
            let (port, mac) = (nic.port.clone().unwrap_or_default(), nic.mac.clone().unwrap_or_default());
            let info = match port.parse() {
                Ok(name) => self.services.vswitchd.port(&name).await.ok().flatten(),
                Err(_) => None,
            };
            nics.push(NicStats { port, mac, counters: info.and_then(|info| info.counters) });
        }
        Ok(VmStats {
            name: name.clone(),
            at_us: metrics::now_us(),
            incarnation: snapshot.status.incarnation,
            cpus: snapshot.spec.cpus,
            cpu_time_us: said.cpu_time_us.unwrap_or(used),
            memory_bytes: snapshot.spec.memory_bytes,
            resident_bytes: resident,
            balloon: said.balloon,
            disks,
            nics,
        })
    }

    async fn log(&self, name: &VmName, previous: bool, lines: u32) -> Result<VmLog> {
        self.here(name)?;
        let paths = self.services.paths(name)?;
        let file = if previous { paths.previous_log() } else { paths.console_log() };
        let missing = || {
            let which = if previous { "of the run before the last failure " } else { "" };
            let message = format!("there is no log {which}of VM {name}'s console on this host");
            ApiError::new(
                ErrorCode::LogNotFound,
                message,
                format!("see `vmctl show {name}` for where it ran and how it ended"),
            )
        };
        let read = tokio::task::spawn_blocking(move || {
            let (older, newer) = (format!("{file}.1"), file);
            if !std::path::Path::new(&newer).exists() {
                return None;
            }
            Some(tail(older.as_ref(), LOG_BYTES_MAX / 2) + &tail(newer.as_ref(), LOG_BYTES_MAX / 2))
        });
        let text = read.await.map_err(|error| fail::internal("reading a log", error))?.ok_or_else(missing)?;
        let lines = lines as usize;
        let from = text.lines().count().saturating_sub(lines);
        let shown: String = text.split_inclusive('\n').skip(from).collect();
        Ok(VmLog { text: shown, cut: from > 0 })
    }

    async fn console(&self, name: &VmName) -> Result<ConsoleInfo> {
        let snapshot = self.here(name)?;
        if snapshot.status.process.is_none() {
            return Err(fail::not_running(name, snapshot.status.state));
        }
        let paths = self.services.paths(name)?;
        Ok(ConsoleInfo { socket: paths.console(), log: paths.console_log() })
    }

    async fn metrics(&self) -> Result<String> {
        metrics::render(&self.glance(), &self.snapshots())
            .map_err(|error| fail::internal("the counters", error))
    }
}
