//! VMs in memory: just enough state for the verbs to mean something, with faults on demand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::{Path as Of, Query, State as Shared};
use axum::http::StatusCode;
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use ferro_protocol::api::switch::{Counters, Flow};
use ferro_protocol::api::vm::spec::NicSpec;
use ferro_protocol::api::vm::{
    AttachDisk, AttachNic, BalloonStats, ConsoleInfo, CpuCapacity, DiskStats, ExitCause, ExitReport,
    HostCapacity, HostVms, HypervisorHost, HypervisorStatus, KvmSupport, MemoryCapacity, NicStats, ResetVm,
    StartVm, StopVm, VmInfo, VmList, VmLog, VmName, VmPower, VmSpec, VmState, VmStats, VmStatus, VmTotals,
    VmmKind, VmmProcess,
};
use ferro_protocol::api::{
    ApiError, ErrorCode, FaultLine, Health, HealthLevel, HealthReason, OperationCounters,
};
use ferro_protocol::ids::{Epoch, HostId};
use ferro_transport::http::{Answer, Body, Failure};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

pub(crate) const HERE: HostId = HostId::from_bytes([1; 16]);
pub(crate) const BETA: HostId = HostId::from_bytes([2; 16]);

pub(crate) struct Memory {
    state: Mutex<State>,
    dir: PathBuf,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) vms: BTreeMap<VmName, VmInfo>,
    /// So many starts fail.
    pub(crate) starts_fail: u32,
    /// So many looks at a VM that is being started find it so.
    pub(crate) looks: u32,
    /// So many changes find that somebody else was quicker.
    pub(crate) races: u32,
    /// The guest does not hear its power button.
    pub(crate) deaf: bool,
    pub(crate) stopped: Option<StopVm>,
    /// What came in at consoles.
    pub(crate) typed: Vec<u8>,
    samples: u64,
    consoles: BTreeMap<VmName, tokio::sync::watch::Sender<u64>>,
}

impl Memory {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { state: Mutex::default(), dir: dir.to_owned() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn socket(&self, name: &VmName) -> PathBuf {
        self.dir.join(format!("{name}.console"))
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    /// The machine begins anew, and its console with it.
    pub(crate) fn begin_anew(&self, name: &str) {
        let mut state = self.state();
        let vm = state.vms.get_mut(&name.parse().unwrap()).unwrap();
        vm.status.incarnation += 1;
        let now = vm.status.incarnation;
        state.consoles[&name.parse().unwrap()].send_replace(now);
    }

    /// The console's connection ends, and the machine goes on.
    pub(crate) fn cut_off(&self, name: &str) {
        let state = self.state();
        let name: VmName = name.parse().unwrap();
        state.consoles[&name].send_replace(state.vms[&name].status.incarnation);
    }

    /// A console: it greets, gives everything back in capitals, and ends with its machine or when a newer client comes.
    fn serve_console(self: &Arc<Self>, name: &VmName) {
        let socket = self.socket(name);
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let (sender, run) = tokio::sync::watch::channel(1);
        self.state().consoles.insert(name.clone(), sender);
        let memory = self.clone();
        tokio::spawn(async move {
            let mut last: Option<tokio::task::JoinHandle<()>> = None;
            while let Ok((mut stream, _)) = listener.accept().await {
                if let Some(last) = last.take() {
                    last.abort();
                }
                let (memory, mut run) = (memory.clone(), run.clone());
                run.borrow_and_update();
                last = Some(tokio::spawn(async move {
                    let greeting = format!("\x1b[31mguest of run {} login: ", *run.borrow());
                    stream.write_all(greeting.as_bytes()).await.unwrap();
                    let mut buffer = [0; 1024];
                    loop {
                        let count = tokio::select! {
                            count = stream.read(&mut buffer) => count.unwrap_or(0),
                            _ = run.changed() => return,
                        };
                        if count == 0 {
                            return;
                        }
                        memory.state().typed.extend_from_slice(&buffer[..count]);
                        if stream.write_all(&buffer[..count].to_ascii_uppercase()).await.is_err() {
                            return;
                        }
                    }
                }));
            }
        });
    }
}

fn fail<T>(code: ErrorCode, message: impl Into<String>, next: &str) -> Result<T, Failure> {
    Err(ApiError::new(code, message, next).into())
}

impl State {
    fn find(&mut self, name: &VmName) -> Result<&mut VmInfo, Failure> {
        match self.vms.get_mut(name) {
            Some(vm) => Ok(vm),
            None => fail(
                ErrorCode::VmNotFound,
                format!("there is no VM {name}"),
                "see `vmctl list` for those there are",
            ),
        }
    }

    fn off(&mut self, name: &VmName) -> Result<&mut VmInfo, Failure> {
        let vm = self.find(name)?;
        if vm.status.state.is_active() {
            return fail(ErrorCode::VmNotOff, format!("VM {name} is running on host alpha"), "stop it first");
        }
        Ok(vm)
    }

    fn running(&mut self, name: &VmName) -> Result<&mut VmInfo, Failure> {
        let vm = self.find(name)?;
        if !vm.status.state.is_active() {
            return fail(ErrorCode::VmNotRunning, format!("VM {name} is off"), "start it first");
        }
        if !vm.here {
            return fail(ErrorCode::VmElsewhere, format!("VM {name} is on host beta"), "run this there");
        }
        Ok(vm)
    }
}

fn set(vm: &mut VmInfo, state: VmState, wanted: VmPower) {
    vm.status.state = state;
    vm.wanted = wanted;
    vm.status.since_unix_s += 1;
    if state == VmState::Off {
        vm.status.process = None;
    }
}

type Memories = Shared<Arc<Memory>>;

pub(crate) fn router(memory: Arc<Memory>) -> Router {
    Router::new()
        .route("/v1/vms", get(list).post(create))
        .route("/v1/vms/{name}", get(show).put(replace).delete(remove))
        .route("/v1/vms/{name}/start", post(start))
        .route("/v1/vms/{name}/stop", post(stop))
        .route("/v1/vms/{name}/kill", post(kill))
        .route("/v1/vms/{name}/reset", post(reset))
        .route("/v1/vms/{name}/pause", post(pause))
        .route("/v1/vms/{name}/resume", post(resume))
        .route("/v1/vms/{name}/disks", post(attach_disk))
        .route("/v1/vms/{name}/disks/{volume}", delete(detach_disk))
        .route("/v1/vms/{name}/nics", post(attach_nic))
        .route("/v1/vms/{name}/nics/{index}", delete(detach_nic))
        .route("/v1/vms/{name}/stats", get(stats))
        .route("/v1/vms/{name}/log", get(log))
        .route("/v1/vms/{name}/console", get(console))
        .route("/v1/host", get(host))
        .route("/v1/status", get(status))
        .with_state(memory)
}

async fn list(Shared(memory): Memories) -> Answer<VmList> {
    Ok(Json(VmList { vms: memory.state().vms.values().cloned().collect() }))
}

async fn create(Shared(memory): Memories, Body(mut spec): Body<VmSpec>) -> Answer<VmInfo> {
    let name: VmName = spec.name.parse().unwrap();
    let mut state = memory.state();
    if state.vms.contains_key(&name) {
        return fail(ErrorCode::NameTaken, format!("there is a VM {name} already"), "choose another name");
    }
    let fault = |kind: &str, name: &str, problem: &str| FaultLine {
        kind: kind.to_owned(),
        name: name.to_owned(),
        problem: problem.to_owned(),
    };
    let mut faults = Vec::new();
    if spec.cpus > 64 {
        faults.push(fault("VM", name.as_str(), "it has more than 64 processors"));
    }
    faults.extend(
        spec.disks
            .iter()
            .filter(|it| it.volume == "ghost")
            .map(|it| fault("disk", &it.volume, "there is no such volume")),
    );
    if !faults.is_empty() {
        let text = format!("VM {name} can't be like this, for {} reasons", faults.len());
        let error =
            ApiError::new(ErrorCode::InvalidVm, text, "put that right and try again; nothing was changed");
        return Err(error.with_faults(faults).into());
    }
    for (at, nic) in spec.nics.iter_mut().enumerate() {
        fill(nic, &name, at);
    }
    let info = VmInfo {
        name: name.clone(),
        spec,
        revision: 1,
        wanted: VmPower::Off,
        host: None,
        host_name: None,
        here: false,
        status: VmStatus::never_started(),
    };
    state.vms.insert(name, info.clone());
    Ok(Json(info))
}

fn fill(nic: &mut NicSpec, name: &VmName, at: usize) {
    nic.mac.get_or_insert_with(|| format!("52:54:00:00:00:0{at}"));
    nic.port.get_or_insert_with(|| format!("{name}.{at}"));
}

async fn show(Shared(memory): Memories, Of(name): Of<VmName>) -> Answer<VmInfo> {
    let mut state = memory.state();
    let looks = state.looks;
    state.looks = looks.saturating_sub(1);
    let vm = state.find(&name)?;
    if looks == 1 && vm.status.state == VmState::Starting {
        set(vm, VmState::Running, VmPower::On);
    }
    Ok(Json(vm.clone()))
}

#[derive(Deserialize)]
struct Basis {
    basis: u64,
}

async fn replace(
    Shared(memory): Memories,
    Of(name): Of<VmName>,
    Query(on): Query<Basis>,
    Body(spec): Body<VmSpec>,
) -> Answer<VmInfo> {
    let mut state = memory.state();
    let raced = state.races > 0;
    state.races = state.races.saturating_sub(1);
    let vm = state.off(&name)?;
    if raced {
        vm.revision += 1;
    }
    if vm.revision != on.basis {
        return fail(ErrorCode::Conflict, format!("VM {name} has changed meanwhile"), "try again");
    }
    vm.spec = spec;
    vm.revision += 1;
    Ok(Json(vm.clone()))
}

async fn remove(Shared(memory): Memories, Of(name): Of<VmName>) -> Result<StatusCode, Failure> {
    let mut state = memory.state();
    state.off(&name)?;
    state.vms.remove(&name);
    Ok(StatusCode::NO_CONTENT)
}

async fn start(Shared(memory): Memories, Of(name): Of<VmName>, Body(wish): Body<StartVm>) -> Answer<VmInfo> {
    let info = {
        let mut state = memory.state();
        let (fails, looks) = (state.starts_fail > 0, state.looks);
        state.starts_fail = state.starts_fail.saturating_sub(1);
        let vm = state.off(&name)?;
        if vm.spec.memory_bytes > 1 << 40 {
            return fail(
                ErrorCode::NoCapacity,
                format!("VM {name} needs 2 TiB and host alpha has 6 GiB free"),
                "stop others",
            );
        }
        let here = wish.host.as_deref().is_none_or(|host| host == "alpha");
        vm.host = Some(if here { HERE } else { BETA });
        vm.host_name = Some(if here { "alpha" } else { "beta" }.to_owned());
        vm.here = here;
        vm.status.incarnation += 1;
        vm.status.epoch = Some(Epoch(3));
        if fails {
            set(vm, VmState::Failed, VmPower::On);
            vm.status.detail = Some("its kernel can't be read".to_owned());
            return Ok(Json(vm.clone()));
        }
        vm.status.detail = None;
        let why = Some("KVM runs no stock kernel here".to_owned());
        vm.status.process = Some(VmmProcess { kind: VmmKind::Qemu, why, pid: 4711 });
        set(vm, if looks > 0 { VmState::Starting } else { VmState::Running }, VmPower::On);
        vm.clone()
    };
    if info.here {
        std::fs::write(memory.log(name.as_str()), "Linux version 6.1\n\x1b[2Jlogin: ").unwrap();
        memory.serve_console(&name);
    }
    Ok(Json(info))
}

async fn stop(Shared(memory): Memories, Of(name): Of<VmName>, Body(wish): Body<StopVm>) -> Answer<VmInfo> {
    let mut state = memory.state();
    let deaf = state.deaf && !wish.force;
    state.stopped = Some(wish);
    let vm = state.running(&name)?;
    if deaf {
        return fail(ErrorCode::TimedOut, format!("VM {name} is not off within 1 s"), "use --force");
    }
    set(vm, VmState::Off, VmPower::Off);
    let detail = "the guest switched it off".to_owned();
    vm.status.last_exit =
        Some(ExitReport { cause: ExitCause::PoweredOff, detail, at_unix_s: 1, log_kept: true });
    Ok(Json(vm.clone()))
}

async fn kill(Shared(memory): Memories, Of(name): Of<VmName>) -> Answer<VmInfo> {
    let mut state = memory.state();
    let vm = state.find(&name)?;
    set(vm, VmState::Off, VmPower::Off);
    Ok(Json(vm.clone()))
}

async fn reset(Shared(memory): Memories, Of(name): Of<VmName>, Body(_): Body<ResetVm>) -> Answer<VmInfo> {
    memory.state().running(&name)?;
    memory.begin_anew(name.as_str());
    Ok(Json(memory.state().find(&name)?.clone()))
}

async fn pause(Shared(memory): Memories, Of(name): Of<VmName>) -> Answer<VmInfo> {
    let mut state = memory.state();
    let vm = state.running(&name)?;
    set(vm, VmState::Paused, VmPower::Paused);
    Ok(Json(vm.clone()))
}

async fn resume(Shared(memory): Memories, Of(name): Of<VmName>) -> Answer<VmInfo> {
    let mut state = memory.state();
    let vm = state.running(&name)?;
    set(vm, VmState::Running, VmPower::On);
    Ok(Json(vm.clone()))
}

async fn attach_disk(
    Shared(memory): Memories,
    Of(name): Of<VmName>,
    Body(wish): Body<AttachDisk>,
) -> Answer<VmInfo> {
    let mut state = memory.state();
    let vm = state.off(&name)?;
    vm.spec.disks.push(wish.disk);
    Ok(Json(vm.clone()))
}

async fn detach_disk(Shared(memory): Memories, Of((name, volume)): Of<(VmName, String)>) -> Answer<VmInfo> {
    let mut state = memory.state();
    let vm = state.off(&name)?;
    let before = vm.spec.disks.len();
    vm.spec.disks.retain(|disk| disk.volume != volume);
    if vm.spec.disks.len() == before {
        return fail(
            ErrorCode::DeviceNotFound,
            format!("VM {name} has no disk {volume}"),
            "see `vmctl show`",
        );
    }
    Ok(Json(vm.clone()))
}

async fn attach_nic(
    Shared(memory): Memories,
    Of(name): Of<VmName>,
    Body(wish): Body<AttachNic>,
) -> Answer<VmInfo> {
    let mut state = memory.state();
    let vm = state.off(&name)?;
    let mut nic = wish.nic;
    fill(&mut nic, &name, vm.spec.nics.len());
    vm.spec.nics.push(nic);
    Ok(Json(vm.clone()))
}

async fn detach_nic(Shared(memory): Memories, Of((name, at)): Of<(VmName, usize)>) -> Answer<VmInfo> {
    let mut state = memory.state();
    let vm = state.off(&name)?;
    if at >= vm.spec.nics.len() {
        return fail(
            ErrorCode::DeviceNotFound,
            format!("VM {name} has no network card {at}"),
            "see `vmctl show`",
        );
    }
    vm.spec.nics.remove(at);
    Ok(Json(vm.clone()))
}

async fn stats(Shared(memory): Memories, Of(name): Of<VmName>) -> Answer<VmStats> {
    let mut state = memory.state();
    state.samples += 1;
    let n = state.samples;
    let vm = state.running(&name)?;
    let operations = OperationCounters { reads: 1000 * n, read_bytes: 4_000_000 * n, ..Default::default() };
    let counters = Counters { from: Flow { frames: n, bytes: 2_000_000 * n }, ..Default::default() };
    let disk = |it: &ferro_protocol::api::vm::spec::DiskSpec| DiskStats {
        volume: it.volume.parse().unwrap(),
        counters: Some(operations),
    };
    let nic = |it: &NicSpec| NicStats {
        port: it.port.clone().unwrap(),
        mac: it.mac.clone().unwrap(),
        counters: Some(counters.clone()),
    };
    Ok(Json(VmStats {
        name: name.clone(),
        at_us: 1_000_000 * n,
        incarnation: vm.status.incarnation,
        cpus: vm.spec.cpus,
        cpu_time_us: 1_500_000 * n,
        memory_bytes: vm.spec.memory_bytes,
        resident_bytes: 300 << 20,
        balloon: Some(BalloonStats { actual_bytes: 64 << 20, ..Default::default() }),
        disks: vm.spec.disks.iter().map(disk).collect(),
        nics: vm.spec.nics.iter().map(nic).collect(),
    }))
}

#[derive(Deserialize)]
struct Which {
    previous: bool,
    lines: u32,
}

async fn log(Shared(memory): Memories, Of(name): Of<VmName>, Query(which): Query<Which>) -> Answer<VmLog> {
    memory.state().find(&name)?;
    if which.previous {
        return Ok(Json(VmLog { text: "Kernel panic\n".to_owned(), cut: false }));
    }
    match std::fs::read_to_string(memory.log(name.as_str())) {
        Ok(text) if which.lines == 1 => {
            let last = text.lines().last().unwrap_or_default().to_owned();
            Ok(Json(VmLog { text: last, cut: true }))
        }
        Ok(text) => Ok(Json(VmLog { text, cut: false })),
        Err(_) => fail(ErrorCode::LogNotFound, format!("VM {name} was never started here"), "start it"),
    }
}

async fn console(Shared(memory): Memories, Of(name): Of<VmName>) -> Answer<ConsoleInfo> {
    memory.state().running(&name)?;
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    Ok(Json(ConsoleInfo { socket: text(memory.socket(&name)), log: text(memory.log(name.as_str())) }))
}

fn capacity(host: HostId, name: &str) -> HostCapacity {
    HostCapacity {
        host,
        host_name: name.to_owned(),
        cpu: CpuCapacity {
            count: 2,
            reservable_percent: 200,
            reserved_percent: 50,
            free_percent: 150,
            virtual_count: 3,
        },
        memory: MemoryCapacity {
            total_bytes: 8 << 30,
            usable_bytes: 7 << 30,
            granted_bytes: 1 << 30,
            reserved_bytes: 1 << 29,
            free_bytes: 6 << 30,
            huge_2m_free_bytes: 4 << 20,
            huge_1g_free_bytes: 0,
        },
        kvm: KvmSupport {
            usable: true,
            stock_kernels: false,
            detail: "the processor has neither VT-x nor SVM".to_owned(),
        },
        qemu: Some("/usr/bin/qemu-system-x86_64".to_owned()),
        control_groups: "version 2".to_owned(),
        limits_enforced: true,
    }
}

async fn host() -> Answer<HostCapacity> {
    Ok(Json(capacity(HERE, "alpha")))
}

async fn status(Shared(memory): Memories) -> Answer<HypervisorStatus> {
    let state = memory.state();
    let of = |wanted: VmState| state.vms.values().filter(|vm| vm.status.state == wanted).count() as u32;
    let one = |host, name: &str, silent_s: Option<u64>| HypervisorHost {
        answers: silent_s.is_none(),
        silent_s,
        vms: HostVms { active: of(VmState::Running), failed: of(VmState::Failed) },
        capacity: capacity(host, name),
    };
    let reasons = vec![HealthReason {
        level: HealthLevel::Warning,
        code: "host_silent".to_owned(),
        message: "host beta does not answer".to_owned(),
        next_step: "look after it".to_owned(),
    }];
    Ok(Json(HypervisorStatus {
        version: "0.1.0".to_owned(),
        host: HERE,
        host_name: "alpha".to_owned(),
        health: Health { level: HealthLevel::Warning, reasons },
        directory: true,
        vms: VmTotals {
            defined: state.vms.len() as u32,
            running: of(VmState::Running),
            failed: of(VmState::Failed),
        },
        hosts: vec![one(HERE, "alpha", None), one(BETA, "beta", Some(125))],
    }))
}
