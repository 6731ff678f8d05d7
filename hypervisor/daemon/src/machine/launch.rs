//! A VM's start, from nothing to a guest that runs; and its undoing. Each step is written down before it is taken, and a start that
//! fails anywhere is undone in reverse, to nothing: no lock, port, control group, socket or folder is left.
//!
//! ```text
//!   room ► volumes opened ► ports made, attached ► group ► vmm started ► its control socket answers
//!    ◄────────◄──────────────────◄───────────────────◄────────◄──────────────── any failure
//! ```
//!
//! A reset and a restart begin at the group: what they hold, they keep.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferro_protocol::api::vm::{ExitCause, VmName};
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_protocol::net::NetName;
use ferro_transport::local;
use hypervisor_core::command::{DiskSocket, Machine, NicSocket};
use hypervisor_core::paths::Paths;
use hypervisor_core::spec::{Nic, Vm, check};

use super::Services;
use super::named::{missing_group, port_of};
use super::process::ProcessId;
use super::record::{HeldPort, HeldVolume, Processes, Record};
use crate::backend::{Backend, Program};
use crate::host::capacity;
use crate::plane::fail;

/// How long a vmm may take until its control socket answers.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long the process beside it may take to start it.
const PID_MAX: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// A lock that was just taken is seen here after a moment.
const OWNER_MAX: Duration = Duration::from_secs(5);
/// How much of what a vmm said is shown when it did not start.
const SAID_BYTES_MAX: usize = 2000;

type Result<T> = std::result::Result<T, ApiError>;

/// What a launch has to know.
pub(super) struct Launch<'a> {
    pub(super) services: &'a Services,
    pub(super) name: &'a VmName,
    pub(super) record: &'a mut Record,
    /// What is held is this VM's own, of the run before: a reset, a restart.
    pub(super) holding: bool,
    /// Switch ports that were made for it by a host that had it before.
    pub(super) inherits: &'a [NetName],
}

impl Launch<'_> {
    /// Starts the VM. On failure nothing of it is left, but what [`Launch::release`] could not give back now.
    pub(super) async fn run(&mut self) -> Result<Child> {
        match self.steps().await {
            Ok(child) => Ok(child),
            Err(mut error) => {
                let left = self.release().await;
                if !left.is_empty() {
                    let left: Vec<String> = left.into_iter().map(|error| error.message).collect();
                    error = error.with("left", left.join("; "));
                }
                Err(error)
            }
        }
    }

    fn save(&self) -> Result<()> {
        self.record.save(&self.services.config.state_dir, self.name).map_err(|error| {
            ApiError::new(ErrorCode::Io, error.to_string(), "see that the state directory can be written")
        })
    }

    async fn steps(&mut self) -> Result<Child> {
        // What an earlier run could not give back, or a start that a daemon before us did not end, is none of this one's.
        if !self.holding
            && !self.record.held.is_empty()
            && let Some(left) = self.release().await.into_iter().next()
        {
            return Err(left);
        }
        let vm =
            check(&self.record.spec).map_err(|faults| fail::invalid_vm(&self.record.spec.name, faults))?;
        let paths = self.services.paths(self.name)?;
        let (backend, why) = self.services.backends.choose(vm.vmm)?;
        (self.record.kind, self.record.kind_why) = (backend.kind(), why);
        let room = capacity::room(&self.services.config);
        self.services.claims.admit(&room, &self.services.host_name(), &vm, backend.kind())?;

        self.folders(&paths)?;
        for disk in &vm.disks {
            self.open_volume(disk.volume.clone(), disk.read_only).await?;
        }
        self.learn_epoch(&vm).await?;
        for nic in &vm.nics {
            self.attach_port(nic).await?;
        }
        self.group().await?;
        self.start(&vm, &paths, backend.as_ref()).await
    }

    fn folders(&mut self, paths: &Paths) -> Result<()> {
        self.record.held.folder = true;
        self.save()?;
        fs::create_dir_all(&paths.kept)
            .map_err(|error| fail::io(format!("making the folder {}", paths.kept), error))?;
        local::folder(Path::new(&paths.run), &self.services.config.group).map_err(|error| {
            fail::io("making the folder of its sockets".to_owned(), std::io::Error::other(error))
        })?;
        // What an earlier run has left there would be taken for this one's.
        for file in [paths.api(), paths.console(), paths.pid(), paths.exit()] {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(fail::io(format!("removing {file}"), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn open_volume(&mut self, name: ferro_protocol::ids::VolumeName, read_only: bool) -> Result<()> {
        // One that is held is opened again, which changes nothing unless the lock was lost while nobody ran.
        let held = self.record.held.volumes.iter().position(|held| held.name == name);
        let at = if let Some(at) = held {
            at
        } else {
            // Opening one that is open here already would give us another program's disk.
            let info = self.services.vsand.volume(&name).await?;
            if let Some(owner) = info.owner.filter(|_| info.socket.is_some()) {
                let message = format!(
                    "volume {name} is open on host {} already, and not for a VM of hypervisord",
                    owner.host_name
                );
                let next = format!("end what uses it, then `vsanctl volume close {name}`");
                return Err(ApiError::new(ErrorCode::ObjectInUse, message, next));
            }
            self.record.held.volumes.push(HeldVolume {
                name: name.clone(),
                socket: None,
                queues: 1,
                read_only,
            });
            self.save()?;
            self.record.held.volumes.len() - 1
        };
        match self.services.vsand.open(&name, read_only).await {
            Ok(opened) => {
                let held = &mut self.record.held.volumes[at];
                (held.socket, held.queues) = (Some(opened.socket), opened.queues);
                self.save()
            }
            Err(error) => {
                // What was refused was not done; what nobody answered may have been, and is closed with the rest.
                if !matches!(error.code, ErrorCode::TimedOut | ErrorCode::Unavailable) {
                    self.record.held.volumes.remove(at);
                }
                Err(error)
            }
        }
    }

    async fn learn_epoch(&mut self, vm: &Vm) -> Result<()> {
        let Some(first) = vm.disks.first() else { return Ok(()) };
        let began = tokio::time::Instant::now();
        loop {
            let info = self.services.vsand.volume(&first.volume).await?;
            if info.socket.is_some() && info.owner.is_some() {
                self.record.epoch = Some(info.epoch);
                return self.save();
            }
            if began.elapsed() > OWNER_MAX {
                let message = format!("volume {} was opened and is not open", first.volume);
                return Err(ApiError::new(
                    ErrorCode::Unavailable,
                    message,
                    "see `vsanctl status`, then start the VM again",
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn attach_port(&mut self, nic: &Nic) -> Result<()> {
        let name = &nic.port;
        let held = self.record.held.ports.iter().position(|held| held.name == *name);
        let there = self.services.vswitchd.port(name).await?;
        if let Some(port) = &there {
            let other = port.group != nic.group.as_str() || port.mac != nic.mac;
            if other {
                let message = format!(
                    "switch port {name} is in port group {} with address {}, and the VM's card in {} with {}",
                    port.group, port.mac, nic.group, nic.mac
                );
                let next =
                    format!("give the card another port, or remove that one (`vswctl port delete {name}`)");
                return Err(ApiError::new(ErrorCode::Conflict, message, next));
            }
            if port.attachment.is_some() && held.is_none() {
                let message =
                    format!("switch port {name} is attached on this host already, and not for this VM");
                let next = format!("detach it first: `vswctl port detach {name}`");
                return Err(ApiError::new(ErrorCode::PortAttached, message, next));
            }
        }
        let at = if let Some(at) = held {
            at
        } else {
            let made = there.is_none() || self.inherits.contains(name);
            let port = HeldPort { name: name.clone(), made, socket: None, mtu: 1500 };
            self.record.held.ports.push(port);
            self.save()?;
            self.record.held.ports.len() - 1
        };
        if there.is_none()
            && let Err(error) = self.services.vswitchd.make(port_of(nic)).await
        {
            if !matches!(error.code, ErrorCode::TimedOut | ErrorCode::Unavailable) {
                self.record.held.ports.remove(at);
            }
            return Err(missing_group(error, nic));
        }
        let (port, socket) = self.services.vswitchd.attach(name, 1).await?;
        let held = &mut self.record.held.ports[at];
        (held.socket, held.mtu) = (Some(socket), port.mtu);
        self.save()
    }

    async fn group(&mut self) -> Result<()> {
        // Of the run before there may be something left in it.
        let mut problems = Vec::new();
        self.release_group(&mut problems).await;
        if let Some(error) = problems.pop() {
            return Err(error);
        }
        let failed = |error| fail::io(format!("making the control group of VM {}", self.name), error);
        let group = self.services.groups.make(self.name, self.record.incarnation).map_err(failed)?;
        self.record.held.group.clone_from(&group);
        self.services.claims.set_group(self.name, group);
        self.save()
    }

    async fn start(&mut self, vm: &Vm, paths: &Paths, backend: &dyn Backend) -> Result<Child> {
        let held = &self.record.held;
        let socket = |socket: &Option<String>| socket.clone().unwrap_or_default();
        let disk = |held: &HeldVolume| DiskSocket {
            path: socket(&held.socket),
            queues: held.queues,
            read_only: held.read_only,
        };
        let disks: Vec<DiskSocket> = held.volumes.iter().map(disk).collect();
        let nics: Vec<NicSocket> = vm
            .nics
            .iter()
            .zip(&held.ports)
            .map(|(nic, held)| NicSocket {
                path: socket(&held.socket),
                mac: nic.mac,
                mtu: held.mtu,
                queues: 1,
            })
            .collect();
        let program = backend.prepare(Machine { vm, paths, disks: &disks, nics: &nics }).await?;
        let mut child = self.spawn(paths, &program)?;
        match self.await_ready(vm, paths, backend, &mut child).await {
            Ok(()) => {
                self.open_console(paths);
                self.record.launched = true;
                self.save()?;
                self.services.balance().await;
                if let Some(limit) = vm.memory.limit_bytes {
                    backend.set_balloon(paths, vm.memory_bytes - limit).await?;
                }
                Ok(child)
            }
            Err(error) => {
                // Nobody else knows of it yet.
                let _gone = child.kill();
                let _status = child.wait();
                Err(error)
            }
        }
    }

    /// The console is for the service group, as our own socket is; its control socket is ours alone. The vmm has made both, as its
    /// user's or root's.
    fn open_console(&self, paths: &Paths) {
        let console = paths.console();
        if !Path::new(&console).exists() {
            return;
        }
        if let Err(error) = local::give_to_group(Path::new(&console), &self.services.config.group) {
            tracing::warn!(socket = console, %error, "the console stays root's alone");
        }
    }

    fn spawn(&self, paths: &Paths, program: &Program) -> Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(paths.vmm_log());
        let log = log.map_err(|error| fail::io(format!("opening {}", paths.vmm_log()), error))?;
        let errors = log.try_clone().map_err(|error| fail::io("the vmm's log".to_owned(), error))?;
        let room = capacity::room(&self.services.config);
        let limits = self.services.claims.limits(&room);
        let (mut words, mut folder) = (Vec::new(), None);
        if let (Some(group), Some((_, limits))) = (&self.record.held.group, limits.get(self.name)) {
            (words, folder) = group.entrance(limits);
            if folder.is_some() {
                let failed =
                    |error| fail::io(format!("setting the control group of VM {}", self.name), error);
                self.services.groups.set(group, limits).map_err(failed)?;
            }
        }
        words.push(self.services.program.display().to_string());
        words.extend(["keep", "--pid-file"].map(str::to_owned));
        words.extend([paths.pid(), "--exit-file".to_owned(), paths.exit()]);
        if let Some(folder) = folder {
            words.extend(["--cgroup".to_owned(), folder.display().to_string()]);
        }
        words.extend(["--".to_owned(), program.program.display().to_string()]);
        words.extend(program.arguments.iter().cloned());
        let (first, rest) = words.split_first().expect("there is a program");
        tracing::debug!(vm = %self.name, command = %words.join(" "), "the vmm is started");
        let mut command = Command::new(first);
        command.args(rest).current_dir("/").stdin(Stdio::null()).stdout(log).stderr(errors);
        // Signals of a terminal that this daemon runs in are not for VMs.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command.spawn().map_err(|error| fail::io(format!("starting {first}"), error))
    }

    async fn await_ready(
        &mut self,
        vm: &Vm,
        paths: &Paths,
        backend: &dyn Backend,
        child: &mut Child,
    ) -> Result<()> {
        let began = tokio::time::Instant::now();
        loop {
            let ended = child.try_wait().map_err(|error| fail::io("watching the vmm".to_owned(), error))?;
            if ended.is_some() {
                return self.ended_early(paths, backend);
            }
            if self.record.held.processes.is_none() {
                if let Some(processes) = processes(child.id(), Path::new(&paths.pid())) {
                    self.record.held.processes = Some(processes);
                    self.save()?;
                } else if began.elapsed() > PID_MAX {
                    return Err(self.vmm_failed("it was not started in time", paths));
                }
            } else if backend.ready(paths).await.is_some() {
                return Ok(());
            }
            if began.elapsed() > READY_MAX {
                let why = format!("its control socket did not answer within {} s", READY_MAX.as_secs());
                return Err(self.vmm_failed(&why, paths));
            }
            tracing::trace!(vm = %vm.name, "the vmm is not ready yet");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The vmm has ended before it was ready: a guest that ended by itself had begun, and is as one that ends later.
    fn ended_early(&self, paths: &Paths, backend: &dyn Backend) -> Result<()> {
        let (cause, words) = backend.cause(paths, crate::keep::read_end(Path::new(&paths.exit())));
        match cause {
            ExitCause::PoweredOff | ExitCause::Reset | ExitCause::Panicked | ExitCause::CpuCrashed => Ok(()),
            _ => Err(self.vmm_failed(&words, paths)),
        }
    }

    fn vmm_failed(&self, why: &str, paths: &Paths) -> ApiError {
        let said = tail(Path::new(&paths.vmm_log()), SAID_BYTES_MAX);
        let last = last_words(&said).unwrap_or("it said nothing");
        ApiError::new(
            ErrorCode::VmmFailed,
            format!("VM {} did not start: {why}: {last}", self.name),
            format!("see {} for all that it said; nothing of the VM is left running", paths.vmm_log()),
        )
        .with("log", said)
    }

    /// Gives everything back, in reverse. What can't be now stays written down and is told.
    pub(super) async fn release(&mut self) -> Vec<ApiError> {
        let mut problems = Vec::new();
        self.record.launched = false;
        if let Some(processes) = self.record.held.processes {
            match end_all(processes).await {
                Ok(()) => self.record.held.processes = None,
                Err(error) => problems.push(fail::io(format!("ending the vmm of VM {}", self.name), error)),
            }
        }
        if self.record.held.processes.is_none() {
            self.release_group(&mut problems).await;
            self.release_ports(&mut problems).await;
            self.release_volumes(&mut problems).await;
            self.release_folder(&mut problems);
        }
        if self.record.held.volumes.is_empty() {
            self.record.epoch = None;
        }
        if self.record.held.is_empty() {
            self.services.claims.give_back(self.name);
            self.services.balance().await;
        }
        if let Err(error) = self.save() {
            problems.push(error);
        }
        problems
    }

    async fn release_group(&mut self, problems: &mut Vec<ApiError>) {
        let Some(group) = self.record.held.group.clone() else { return };
        let ended = tokio::task::spawn_blocking(move || group.end()).await;
        match ended {
            Ok(Ok(())) => {
                self.record.held.group = None;
                self.services.claims.set_group(self.name, None);
            }
            Ok(Err(error)) => {
                problems.push(fail::io(format!("removing the control group of VM {}", self.name), error));
            }
            Err(error) => problems.push(fail::internal("removing a control group", error)),
        }
    }

    async fn release_ports(&mut self, problems: &mut Vec<ApiError>) {
        for port in std::mem::take(&mut self.record.held.ports).into_iter().rev() {
            let mut given = self.services.vswitchd.detach(&port.name).await;
            if given.is_ok() && port.made {
                given = match self.services.is_elsewhere(self.name).await {
                    // It goes with the VM, and the host that has that takes it away.
                    Some(true) => Ok(()),
                    Some(false) => self.services.vswitchd.remove(&port.name).await,
                    None => Err(fail::no_directory(format!("removing switch port {}", port.name))),
                };
            }
            if let Err(error) = given {
                problems.push(error);
                self.record.held.ports.insert(0, HeldPort { socket: None, ..port });
            }
        }
    }

    async fn release_volumes(&mut self, problems: &mut Vec<ApiError>) {
        for volume in std::mem::take(&mut self.record.held.volumes).into_iter().rev() {
            if let Err(error) = self.services.vsand.close(&volume.name).await {
                problems.push(error);
                self.record.held.volumes.insert(0, HeldVolume { socket: None, ..volume });
            }
        }
    }

    fn release_folder(&mut self, problems: &mut Vec<ApiError>) {
        if !self.record.held.folder {
            return;
        }
        let removed = self.services.paths(self.name).map(|paths| (fs::remove_dir_all(&paths.run), paths.run));
        match removed {
            Ok((Err(error), folder)) if error.kind() != std::io::ErrorKind::NotFound => {
                problems.push(fail::io(format!("removing {folder}"), error));
            }
            _ => self.record.held.folder = false,
        }
    }
}

/// The processes, as soon as the vmm's number is written down.
fn processes(keeper: u32, pid_file: &Path) -> Option<Processes> {
    let pid = fs::read_to_string(pid_file).ok()?.parse().ok()?;
    Some(Processes { keeper: ProcessId::of(keeper).ok()?, vmm: ProcessId::of(pid).ok()? })
}

/// Ends the vmm, and with it the process that waits for it.
async fn end_all(processes: Processes) -> std::io::Result<()> {
    for process in [processes.vmm, processes.keeper] {
        if let Some(handle) = process.open()? {
            handle.kill()?;
            tokio::time::timeout(Duration::from_secs(10), handle.ended())
                .await
                .map_err(|_| std::io::Error::other(format!("process {} does not end", process.pid)))??;
        }
    }
    Ok(())
}

/// The last line of a log, without its time, level and span.
fn last_words(log: &str) -> Option<&str> {
    let line = log.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    let words = line.split_once(" ERROR ").map_or(line, |(_, words)| words.trim_start());
    match words.split_once("}: ") {
        Some((span, words)) if span.starts_with("vm{") => Some(words),
        _ => Some(words),
    }
}

/// The end of a file.
pub(crate) fn tail(path: &Path, bytes_max: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes_max as u64)))?;
        let mut bytes = Vec::new();
        file.take(bytes_max as u64).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_log_the_last_words_are_told() {
        let log = "2026-01-01T00:00:00Z  INFO vm{name=\"a\"}: begun\n2026-01-01T00:00:01Z ERROR vm{name=\"a\"}: no kernel\n\n";
        assert_eq!(last_words(log), Some("no kernel"));
        assert_eq!(last_words("qemu: {no}: ERROR\n"), Some("qemu: {no}: ERROR"));
        assert_eq!(last_words(" \n"), None);
    }
}
