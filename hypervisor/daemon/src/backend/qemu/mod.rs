//! QEMU as the back end of hosts whose KVM can't run an ordinary kernel: its emulation (TCG), with the same disks, ports and
//! console as under our vmm.
//!
//! ```text
//!   prepare: the kernel out of the volume (vmm --show-boot --extract) ──► QEMU's command line
//!   ready:   QMP answers ──► link: events are written down (`end`), the console is served
//!   cause:   what was written down, else the exit status
//! ```
//!
//! - A guest's *reset* resets QEMU's machine in place if nobody is here. If somebody is, QEMU is ended instead, and the daemon
//!   starts another one, with the kernel that the volume brings then.
//! - A guest's *panic* (pvpanic) ends QEMU with status 1; why is known from its event.
//! - A daemon that was started anew finds QEMU by its socket, and is linked to it by the first question.
//!
//! What it must not know: volumes, ports, control groups, the directory.

mod console;
mod link;
mod qmp;

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ferro_protocol::api::vm::spec::BootSpec;
use ferro_protocol::api::vm::{BalloonStats, ExitCause, VmmKind};
use ferro_protocol::api::{ApiError, ErrorCode};
use hypervisor_core::command::qemu::{self, Kernel};
use hypervisor_core::command::{DiskSocket, Machine};
use hypervisor_core::paths::Paths;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;

use self::link::Link;
use self::qmp::QmpError;
use super::{Backend, Program, Result, Running};
use crate::config::Config;
use crate::host::users::find_user;
use crate::keep::Ended;

/// How long the kernel may take out of its volume.
const EXTRACT_MAX: Duration = Duration::from_secs(60);
/// The most that is taken of what a program says.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// How often it is looked whether a program has ended.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long QEMU may take to say which one it is.
const VERSION_MAX: Duration = Duration::from_secs(10);

/// QEMU.
#[derive(Debug)]
pub struct Qemu {
    program: PathBuf,
    /// Our vmm, which takes kernels out of volumes.
    vmm: PathBuf,
    /// The user that they become.
    user: Option<u32>,
    group: String,
    /// By the VM's folder.
    links: Mutex<BTreeMap<String, Arc<Link>>>,
}

/// What `vmm --show-boot --extract` prints.
#[derive(Debug, Deserialize)]
struct Extracted {
    kernel: String,
    initrd: Option<String>,
    cmdline: String,
}

impl Qemu {
    /// The one that the configuration names.
    pub fn new(config: &Config) -> Self {
        let user = find_user(&config.vmm_user).map(|user| user.uid);
        Self {
            program: config.qemu.clone(),
            vmm: config.vmm.clone(),
            user: user.filter(|_| rustix::process::geteuid().is_root()),
            group: config.group.clone(),
            links: Mutex::default(),
        }
    }

    /// Whom QEMU and the reader of volumes become: the vmms' user, in the group that may use the sockets of this machine.
    fn identity(&self, machine: Machine<'_>) -> Option<(u32, u32)> {
        let sockets =
            machine.disks.iter().map(|disk| &disk.path).chain(machine.nics.iter().map(|nic| &nic.path));
        let group = sockets.filter_map(|path| std::fs::metadata(path).ok()).map(|meta| meta.gid()).next();
        let user = self.user?;
        Some((user, group.unwrap_or(user)))
    }

    async fn kernel(&self, machine: Machine<'_>) -> Result<Kernel> {
        let boot = match &machine.vm.boot {
            BootSpec::Files(files) => {
                return Ok(Kernel {
                    kernel: files.kernel.clone(),
                    initrd: files.initrd.clone(),
                    cmdline: files.cmdline.clone(),
                });
            }
            BootSpec::Volume(boot) => boot,
        };
        let name = &machine.vm.name;
        let Some(DiskSocket { path, .. }) = machine.disks.first() else {
            let message = format!("VM {name} has neither a disk nor a kernel's file to boot");
            return Err(ApiError::new(ErrorCode::InvalidVm, message, "give it a volume, or a --kernel"));
        };
        let folder = PathBuf::from(&machine.paths.run).join("boot");
        let identity = self.identity(machine);
        folder_for(&folder, identity.map(|(user, _)| user)).map_err(|error| {
            io_error(&format!("making the folder {} for the kernel of VM {name}", folder.display()), &error)
        })?;
        let mut command = Command::new(&self.vmm);
        command.arg("--show-boot").arg("--extract").arg(&folder).arg("--disk").arg(path);
        // One word each, because they may begin with a hyphen.
        if let Some(entry) = &boot.entry {
            command.arg(format!("--boot-entry={entry}"));
        }
        if let Some(more) = &boot.cmdline_append {
            command.arg(format!("--cmdline={more}"));
        }
        if let Some((user, group)) = identity {
            command.uid(user).gid(group);
        }
        let text = output(command, &self.vmm, EXTRACT_MAX).await.map_err(|why| {
            let message = format!("VM {name}: the kernel can't be taken out of its first volume: {why}");
            let next = "see that the volume has a system on it, or give the VM a kernel's file (`vmctl set --kernel`)";
            ApiError::new(ErrorCode::VmmFailed, message, next)
        })?;
        let extracted: Extracted = serde_json::from_str(&text).map_err(|error| {
            let message =
                format!("VM {name}: what the vmm says of the volume's kernel can't be understood: {error}");
            ApiError::new(
                ErrorCode::VmmFailed,
                message,
                "use the vmm and the hypervisord that belong together",
            )
        })?;
        Ok(Kernel { kernel: extracted.kernel, initrd: extracted.initrd, cmdline: extracted.cmdline })
    }

    /// The option that has QEMU connect again after a back end went away, as this QEMU spells it.
    async fn reconnect(&self) -> Result<&'static str> {
        let mut command = Command::new(&self.program);
        command.arg("--version");
        let text = output(command, &self.program, VERSION_MAX).await.map_err(|why| {
            let message =
                format!("QEMU at {} does not say which version it is: {why}", self.program.display());
            ApiError::new(ErrorCode::NotSupported, message, "install it anew (`qemu-system-x86`)")
                .with("vmm", "qemu")
        })?;
        Ok(if version(&text) >= Some((9, 2)) { "reconnect-ms=1000" } else { "reconnect=1" })
    }

    /// The link to a QEMU that runs; made anew where there is none.
    async fn link(&self, paths: &Paths) -> std::result::Result<Arc<Link>, QmpError> {
        let mut links = self.links.lock().await;
        links.retain(|_, link| link.is_open());
        if let Some(link) = links.get(&paths.run) {
            return Ok(Arc::clone(link));
        }
        let link = Arc::new(Link::new(paths, &self.group).await?);
        links.insert(paths.run.clone(), Arc::clone(&link));
        Ok(link)
    }

    async fn ask(&self, paths: &Paths, command: &'static str, arguments: Value) -> Result<Value> {
        let asked = async { self.link(paths).await?.ask(command, arguments).await };
        asked.await.map_err(|error| api_error(&error))
    }

    async fn look(&self, paths: &Paths) -> std::result::Result<Running, QmpError> {
        let link = self.link(paths).await?;
        let status = link.ask("query-status", Value::Null).await?;
        // It refuses where there is no balloon, or none that the guest drives.
        let balloon = link.ask("query-balloon", Value::Null).await.ok();
        let actual = balloon.as_ref().and_then(|it| it.get("actual")).and_then(Value::as_u64);
        let balloon = match (actual, link.memory_bytes().await) {
            (Some(left), Some(all)) => Some(BalloonStats {
                target_bytes: link.balloon_target(),
                actual_bytes: all.saturating_sub(left),
                ..BalloonStats::default()
            }),
            _ => None,
        };
        let word = status.get("status").and_then(Value::as_str).unwrap_or_default();
        Ok(Running { paused: word == "paused", cpu_time_us: None, balloon })
    }
}

fn api_error(error: &QmpError) -> ApiError {
    let code = match error {
        QmpError::Late { .. } => ErrorCode::TimedOut,
        QmpError::Closed | QmpError::Io(_) => ErrorCode::Unavailable,
        QmpError::Refused { .. } | QmpError::Nonsense(_) => ErrorCode::VmmFailed,
    };
    ApiError::new(code, error.to_string(), "see `vmctl show` whether the VM still runs, and try again")
}

fn io_error(doing: &str, error: &std::io::Error) -> ApiError {
    ApiError::new(
        ErrorCode::Io,
        format!("{doing}: {error}"),
        "see that hypervisord's directories can be written",
    )
}

/// A folder that only this user can look into.
fn folder_for(folder: &Path, user: Option<u32>) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    match user {
        Some(user) => std::os::unix::fs::chown(folder, Some(user), None),
        None => Ok(()),
    }
}

/// What a program prints, or why it failed in its own words. It is short: what does not fit into a pipe is not waited for.
async fn output(command: Command, program: &Path, within: Duration) -> std::result::Result<String, String> {
    let program = program.display().to_string();
    let words = program.clone();
    let ran = tokio::task::spawn_blocking(move || output_of(command, &words, within)).await;
    ran.map_err(|error| format!("{program} could not be watched: {error}"))?
}

fn output_of(mut command: Command, program: &str, within: Duration) -> std::result::Result<String, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).current_dir("/");
    let mut child = command.spawn().map_err(|error| format!("{program} can't be started: {error}"))?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if began.elapsed() < within => std::thread::sleep(LOOK_EVERY),
            late => {
                // It has to be gone before anything else is done to its volume.
                let _gone = child.kill();
                let _status = child.wait();
                return Err(match late {
                    Err(error) => format!("{program} could not be watched: {error}"),
                    Ok(_) => format!("{program} took longer than {} s", within.as_secs()),
                });
            }
        }
    };
    let said = |pipe: Option<&mut dyn Read>| {
        let mut bytes = Vec::new();
        if let Some(pipe) = pipe {
            // What can't be read any more was not said.
            let _ = pipe.take(OUTPUT_BYTES_MAX).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    if status.success() {
        return Ok(said(child.stdout.as_mut().map(|pipe| pipe as &mut dyn Read)));
    }
    let why = said(child.stderr.as_mut().map(|pipe| pipe as &mut dyn Read));
    let last = why.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it does not say why");
    Err(last.trim().to_owned())
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split("version ").nth(1)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[async_trait]
impl Backend for Qemu {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn available(&self) -> Result<()> {
        if self.program.is_file() {
            return Ok(());
        }
        let message = format!("there is no QEMU at {}", self.program.display());
        let next = "install it (`apt install qemu-system-x86`), or name it in hypervisord.toml (`qemu`)";
        Err(ApiError::new(ErrorCode::NotSupported, message, next).with("vmm", "qemu"))
    }

    async fn prepare(&self, machine: Machine<'_>) -> Result<Program> {
        // Of an earlier run: it would be taken for this one's end.
        link::forget(machine.paths)
            .map_err(|error| io_error("removing what an earlier QEMU has left", &error))?;
        self.links.lock().await.remove(&machine.paths.run);
        if let Some(disk) = machine.disks.iter().find(|disk| disk.read_only) {
            tracing::debug!(socket = %disk.path, "its back end offers this disk as one that is only read");
        }
        let reconnect = self.reconnect().await?;
        let kernel = self.kernel(machine).await?;
        let mut arguments = qemu::arguments(machine, &kernel, reconnect);
        let sandbox = "on,obsolete=deny,elevateprivileges=children,spawn=deny,resourcecontrol=deny";
        arguments.extend(["-sandbox", sandbox].map(str::to_owned));
        match self.identity(machine) {
            Some((user, group)) => arguments.extend(["-runas".to_owned(), format!("{user}:{group}")]),
            None if rustix::process::geteuid().is_root() => {
                tracing::warn!(vm = %machine.vm.name, "QEMU runs as root: there is no user for it (`vmm_user`)");
            }
            None => {}
        }
        Ok(Program { program: self.program.clone(), arguments })
    }

    async fn ready(&self, paths: &Paths) -> Option<Running> {
        self.look(paths).await.ok()
    }

    async fn state(&self, paths: &Paths) -> Result<Running> {
        self.look(paths).await.map_err(|error| api_error(&error))
    }

    async fn pause(&self, paths: &Paths) -> Result<()> {
        // Its answer comes when the processors stand still.
        self.ask(paths, "stop", Value::Null).await.map(drop)
    }

    async fn resume(&self, paths: &Paths) -> Result<()> {
        self.ask(paths, "cont", Value::Null).await.map(drop)
    }

    async fn power_button(&self, paths: &Paths) -> Result<()> {
        self.ask(paths, "system_powerdown", Value::Null).await.map(drop)
    }

    async fn set_balloon(&self, paths: &Paths, bytes: u64) -> Result<()> {
        let link = self.link(paths).await.map_err(|error| api_error(&error))?;
        let Some(all) = link.memory_bytes().await else {
            return Err(api_error(&QmpError::Closed));
        };
        let left = all.saturating_sub(bytes);
        link.ask("balloon", json!({ "value": left })).await.map_err(|error| api_error(&error))?;
        link.set_balloon_target(bytes);
        Ok(())
    }

    fn cause(&self, paths: &Paths, ended: Ended) -> (ExitCause, String) {
        // Nothing but its event tells a panic from another failure.
        let matters = matches!(ended, Ended::Status(status) if status != 0);
        cause(link::end(paths, matters).as_deref(), ended)
    }
}

/// What QEMU's end says: the words of its `SHUTDOWN` event (QEMU's qapi/run-state.json, `ShutdownCause`), if somebody was here to
/// hear it, else its exit status.
fn cause(word: Option<&str>, ended: Ended) -> (ExitCause, String) {
    let text = |text: &str| text.to_owned();
    match (word, ended) {
        (Some(link::PANICKED | "guest-panic"), _) => {
            (ExitCause::Panicked, text("the guest's kernel panicked"))
        }
        (Some(link::RESET | "guest-reset"), _) => (ExitCause::Reset, text("the guest reset the machine")),
        (_, Ended::Signal(signal)) => (ExitCause::Died, format!("signal {signal} ended QEMU")),
        (_, Ended::Unknown) => (ExitCause::Died, text("QEMU has gone, and nobody saw how")),
        (Some("host-signal" | "host-qmp-quit"), _) => {
            (ExitCause::Died, text("QEMU was told to end, and not by us"))
        }
        (_, Ended::Status(0)) => (ExitCause::PoweredOff, text("the guest switched the machine off")),
        (_, Ended::Status(status)) => {
            let why = "its guest's kernel panicked, or its own log says why";
            (ExitCause::Died, format!("QEMU ended with status {status}: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(version("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright"), Some((7, 2)));
        assert_eq!(version("QEMU emulator version 10.0.2"), Some((10, 0)));
        assert_eq!(version("something else"), None);
        assert!(
            version("version 9.2.0") >= Some((9, 2))
                && version("version 9.1.9") < Some((9, 2))
                && None < Some((9, 2))
        );
    }

    #[test]
    fn an_end_is_told_by_what_was_heard_and_else_by_its_status() {
        let of = |word, ended| cause(word, ended).0;
        assert_eq!(of(Some("guest-shutdown"), Ended::Status(0)), ExitCause::PoweredOff);
        assert_eq!(of(Some("guest-reset"), Ended::Status(0)), ExitCause::Reset);
        assert_eq!(of(Some(link::RESET), Ended::Status(0)), ExitCause::Reset);
        assert_eq!(of(Some("guest-panic"), Ended::Status(1)), ExitCause::Panicked);
        assert_eq!(of(None, Ended::Status(0)), ExitCause::PoweredOff);
        assert_eq!(of(None, Ended::Status(1)), ExitCause::Died);
        assert_eq!(of(Some("guest-shutdown"), Ended::Signal(9)), ExitCause::Died);
        assert_eq!(of(None, Ended::Unknown), ExitCause::Died);
    }
}
