//! A virtual machine under QEMU whose disk is a volume's socket, or whose network card is a switch port's: the small test guest,
//! which runs commands that come over its second serial port (`deploy/guest/agent`).
//!
//! QEMU is killed when its [`Vm`] is dropped. It runs outside the hosts' namespaces.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::lab::{Lab, guest_dir};
use crate::process::{self, Process};
use crate::wait::eventually;

const MEMORY_MIB: u32 = 512;
/// Emulated and on a busy machine.
const BOOT_MAX: Duration = Duration::from_secs(120);

/// A running machine.
pub struct Vm {
    process: Process,
    console: PathBuf,
    /// What its agent has said, copied from the port. QEMU's own log of a port won't do: QEMU 7.2 writes to that twice what its
    /// socket does not take at once.
    agent_log: PathBuf,
    agent: UnixStream,
    requests: u32,
}

/// A command that runs in the machine.
#[derive(Clone, Debug)]
pub struct Running(String);

impl Vm {
    /// Boots the test guest with the volume as its disk, and waits until it takes commands.
    pub fn boot(lab: &Lab, name: &str, disk: &Path) -> Result<Self> {
        let socket = format!("socket,id=disk0,path={},{}", disk.display(), reconnect_option()?);
        Self::boot_with(lab, name, &["-chardev", &socket, "-device", "vhost-user-blk-pci,chardev=disk0"])
    }

    /// Boots it with a port of a switch as its network card.
    pub fn boot_on_switch(lab: &Lab, name: &str, port: &Path, mac: &str) -> Result<Self> {
        let socket = format!("socket,id=net0,path={},{}", port.display(), reconnect_option()?);
        // Without KVM, QEMU 7.2 crashes when a vhost-user network card's interrupts are messages.
        let card = format!("virtio-net-pci,netdev=net0,mac={mac},romfile=,vectors=0");
        let netdev = "vhost-user,id=net0,chardev=net0";
        Self::boot_with(lab, name, &["-chardev", &socket, "-netdev", netdev, "-device", &card])
    }

    fn boot_with(lab: &Lab, name: &str, devices: &[&str]) -> Result<Self> {
        let guest = guest_dir()?;
        let (kernel, initrd) = (guest.join("vmlinuz"), guest.join("testguest.img"));
        let (console, agent_log) = (lab.log(&format!("{name}.console")), lab.log(&format!("{name}.agent")));
        let port = lab.dir().join(format!("{name}.agent.sock"));
        let mut command = process::command(None, Path::new("qemu-system-x86_64"));
        // An old CPU: emulated AVX is slower than none. Shared memory: the disk's back end reads and writes it in place.
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-smp", "1"])
            .args([
                "-machine",
                "q35,accel=tcg,memory-backend=ram",
                "-cpu",
                "Nehalem",
                "-m",
                &MEMORY_MIB.to_string(),
            ])
            .args(["-object", &format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on")])
            .args(devices)
            .args([
                "-chardev",
                &format!("file,id=console,path={}", console.display()),
                "-serial",
                "chardev:console",
            ])
            .args(["-chardev", &format!("socket,id=agent,path={},server=on,wait=off", port.display())])
            .args(["-serial", "chardev:agent", "-kernel"])
            .arg(kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", "console=ttyS0 panic=-1 mitigations=off"]);
        let process = Process::start(command, &lab.log(name))?;
        let agent = eventually("the machine's command port is there", Duration::from_secs(30), || {
            UnixStream::connect(&port).with_context(|| port.display().to_string())
        })?;
        keep_what_it_says(&agent, &agent_log)?;
        let mut vm = Self { process, console, agent_log, agent, requests: 0 };
        eventually("the machine takes commands", BOOT_MAX, || {
            vm.alive()?;
            let log = fs::read_to_string(&vm.agent_log).unwrap_or_default();
            ensure!(log.contains("agent ready"), "its console says: {:?}", last_line(&vm.console));
            Ok(())
        })?;
        Ok(vm)
    }

    fn alive(&mut self) -> Result<()> {
        match self.process.ended()? {
            Some(status) => bail!("QEMU ended with {status}"),
            None => Ok(()),
        }
    }

    /// What the machine has printed.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    fn answers(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.agent_log).unwrap_or_default()).replace('\r', "")
    }

    /// Has the machine begin a command.
    pub fn begin(&mut self, command: &str) -> Result<Running> {
        self.requests += 1;
        let id = format!("r{}", self.requests);
        writeln!(self.agent, "{id} {}", STANDARD.encode(command)).context("the machine's command port")?;
        eventually("the machine begins a command", Duration::from_secs(30), || {
            self.alive()?;
            ensure!(self.answers().lines().any(|line| line == format!("<<{id}")), "no sign of {id}");
            Ok(())
        })?;
        Ok(Running(id))
    }

    /// Whether a command has ended.
    pub fn has_ended(&self, running: &Running) -> bool {
        self.answers().lines().any(|line| line.starts_with(&format!(">>{} ", running.0)))
    }

    /// Waits for a command's end: its status and what it printed.
    pub fn result(&mut self, running: &Running, limit: Duration) -> Result<(i32, String)> {
        let (from, to) = (format!("<<{}", running.0), format!(">>{} ", running.0));
        eventually("the machine answers", limit, || {
            self.alive()?;
            let answers = self.answers();
            let mut lines = answers.lines().skip_while(|line| *line != from).skip(1);
            let mut said = Vec::new();
            for line in lines.by_ref() {
                if let Some(status) = line.strip_prefix(&to) {
                    return Ok((status.trim().parse()?, said.join("\n")));
                }
                said.push(line);
            }
            bail!("it has printed {} lines so far", said.len())
        })
    }

    /// Runs a command that must succeed, and gives what it printed.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        let running = self.begin(command)?;
        let (status, said) = self.result(&running, limit)?;
        ensure!(status == 0, "in the machine, `{command}` ended with status {status}: {said}");
        Ok(said.trim().to_owned())
    }
}

/// Copies what comes from a machine's port into a file, until the machine has ended.
fn keep_what_it_says(port: &UnixStream, log: &Path) -> Result<()> {
    let (mut port, mut file) = (port.try_clone()?, File::create(log)?);
    std::thread::Builder::new().name("agent-port".to_owned()).spawn(move || {
        // A failure shows as a command that does not end.
        let _ = std::io::copy(&mut port, &mut file);
    })?;
    Ok(())
}

fn last_line(log: &Path) -> Option<String> {
    let text = fs::read(log).ok()?;
    String::from_utf8_lossy(&text).lines().next_back().map(str::to_owned)
}

/// What makes QEMU try again after the disk's back end went away; 9.2 renamed it.
fn reconnect_option() -> Result<&'static str> {
    let output =
        Command::new("qemu-system-x86_64").arg("--version").output().context("QEMU is not installed")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_whitespace().nth(3).context("QEMU does not say its version")?;
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    Ok(if version >= (9, 2) { "reconnect-ms=500" } else { "reconnect=1" })
}
