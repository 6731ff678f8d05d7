//! One program that was started here, known by its process id and ended with its owner.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::eventually;

/// How long a program may take to end after it was told to.
const END_MAX: Duration = Duration::from_secs(30);
/// How long it may take to stand still.
const STOP_MAX: Duration = Duration::from_secs(10);

/// A running program. Dropped, it is killed.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

/// A command that is run in a network namespace and dies with the thread that starts it, so that a test which is itself
/// killed leaves nothing running.
pub fn command(namespace: Option<&str>, program: &Path) -> Command {
    let mut command = match namespace {
        Some(namespace) => {
            // Not `ip netns exec`: that makes a mount namespace too, and a disk mounted later is not seen there.
            let mut command = Command::new("nsenter");
            command.args([&format!("--net=/run/netns/{namespace}"), "setpriv"]);
            command
        }
        None => Command::new("setpriv"),
    };
    // Each of these becomes the next one: the process id is the program's.
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).env("NO_COLOR", "1");
    command
}

impl Process {
    /// Starts a command; what it prints is added to the file `log`.
    pub fn start(mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("can't start {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("signal {signal:?} to process {pid:?}"))
    }

    /// `SIGSTOP`, and waits until all its threads stand still: the others go on until the one that got the signal has had its turn.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        eventually("the process stands still", STOP_MAX, || {
            for thread in fs::read_dir(format!("/proc/{}/task", self.pid()))? {
                let stat = fs::read_to_string(thread?.path().join("stat"))?;
                // The state is behind the name, which may have anything in it.
                let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
                ensure!(state == Some('T'), "a thread is in state {state:?}");
            }
            Ok(())
        })
    }

    /// `SIGKILL`, and waits until it is gone.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// `SIGTERM`, and waits until it has ended.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > END_MAX {
                bail!("it does not end within {END_MAX:?} of SIGTERM; its log is {}", self.log.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already is as good.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Runs a command to its end; its output is part of the error.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("can't run {program}"))?;
    if !output.status.success() {
        bail!(
            "{program} {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
