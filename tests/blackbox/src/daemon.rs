//! One daemon of a host: its process, its configuration, its API's socket, and the tool that speaks to it.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::process::{self, Process};
use crate::wait::eventually;

/// How long a daemon may take until its API answers.
const START_MAX: Duration = Duration::from_secs(60);

/// How long it may take to tell its metrics.
const METRICS_MAX: Duration = Duration::from_secs(10);

/// A daemon that may run or not.
#[derive(Debug)]
pub struct Daemon {
    /// "host1's vsand".
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) program: PathBuf,
    pub(crate) tool: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) process: Mutex<Option<Process>>,
}

/// What a tool says when it did not do what it was asked.
#[derive(Clone, Debug, Deserialize)]
pub struct Refusal {
    /// The kind of failure.
    pub code: String,
    /// What failed.
    pub message: String,
    /// What to do.
    pub next_step: String,
    /// The exit code, as it says itself; compared with the real one.
    pub exit_code: i32,
}

impl Daemon {
    /// The configuration.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// The API's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it and returns when its API answers.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        eventually(&format!("{} answers", self.name), START_MAX, || {
            if let Some(status) = self.process().as_mut().map(Process::ended).transpose()?.flatten() {
                bail!("{} ended with {status}", self.name);
            }
            UnixStream::connect(self.socket()).map(drop).context("its socket")
        })
    }

    /// Starts it and does not wait for anything.
    pub fn spawn(&self) -> Result<()> {
        let mut process = self.process();
        ensure!(process.is_none(), "{} runs already", self.name);
        let mut command = process::command(Some(&self.namespace), &self.program);
        command.arg("--config").arg(&self.config);
        *process = Some(Process::start(command, &self.log)?);
        Ok(())
    }

    fn take(&self) -> Result<Process> {
        self.process().take().with_context(|| format!("{} does not run", self.name))
    }

    /// `kill -9`.
    pub fn kill9(&self) -> Result<()> {
        self.take()?.kill()
    }

    /// Its process id, if it was started.
    pub fn pid(&self) -> Option<u32> {
        self.process().as_ref().map(Process::pid)
    }

    /// `kill -9`, if it runs.
    pub fn kill9_if_running(&self) {
        // Dropping it kills it.
        drop(self.process().take());
    }

    /// `SIGTERM`, until it has ended well.
    pub fn term(&self) -> Result<()> {
        let status = self.take()?.terminate()?;
        ensure!(status.success(), "{} ended with {status} after SIGTERM", self.name);
        Ok(())
    }

    /// `SIGTERM`, and nothing more: [`Self::await_end`] says how it ended.
    pub fn begin_term(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// How the daemon ended, as soon as it has.
    pub fn await_end(&self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} ends", self.name);
        let status = eventually(&what, limit, || self.end().context("it runs"))?;
        self.take().map(drop)?;
        Ok(status)
    }

    /// `SIGSTOP`; when this returns it stands still.
    pub fn stop(&self) -> Result<()> {
        self.process().as_ref().with_context(|| format!("{} does not run", self.name))?.pause()
    }

    /// `SIGCONT`.
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.process().as_ref().with_context(|| format!("{} does not run", self.name))?.signal(signal)
    }

    /// How the daemon ended by itself, if it has.
    pub fn end(&self) -> Option<ExitStatus> {
        self.process().as_mut().and_then(|process| process.ended().ok().flatten())
    }

    /// Whether the daemon was started and has not ended by itself.
    pub fn is_running(&self) -> bool {
        self.process().as_mut().is_some_and(|process| matches!(process.ended(), Ok(None)))
    }

    fn tool(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tool);
        command.arg("--socket").arg(self.socket()).args(["--timeout", "40", "-o", "json"]).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs the daemon's tool and gives its answer.
    pub fn ctl<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let output = self.tool(arguments).output().context("can't run its tool")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{}: {} {}: {}: {}",
            self.name,
            self.tool.display(),
            arguments.join(" "),
            output.status,
            said.trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("{} printed {:?}", arguments.join(" "), String::from_utf8_lossy(&output.stdout))
        })
    }

    /// The same for those whose answer does not matter.
    pub fn ctl_ok(&self, arguments: &[&str]) -> Result<()> {
        self.ctl::<Value>(arguments).map(drop)
    }

    /// Runs the tool, which must refuse: with this code and exit status, a message and a next step.
    pub fn ctl_refused(&self, arguments: &[&str], code: &str, exit: i32) -> Result<Refusal> {
        let output = self.tool(arguments).output().context("can't run its tool")?;
        let asked = format!("{}: {}", self.name, arguments.join(" "));
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            !output.status.success(),
            "{asked} was not refused: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        let line = said.lines().rfind(|line| line.starts_with('{'));
        let refusal: Refusal = line
            .and_then(|line| serde_json::from_str(line).ok())
            .with_context(|| format!("{asked} failed without JSON: {said}"))?;
        ensure!(
            refusal.code == code && output.status.code() == Some(exit) && refusal.exit_code == exit,
            "{asked}: {} was expected with exit status {exit}, and it ended with {}: {refusal:?}",
            code,
            output.status
        );
        ensure!(
            !refusal.message.is_empty() && !refusal.next_step.is_empty(),
            "{asked}: says too little: {refusal:?}"
        );
        Ok(refusal)
    }

    /// Runs the tool, which must find the arguments wrong by itself and say how they should be.
    pub fn ctl_usage(&self, arguments: &[&str]) -> Result<()> {
        let output = self.tool(arguments).output().context("can't run its tool")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2) && said.len() > 20,
            "{}: {} instead of a usage error: {said}",
            arguments.join(" "),
            output.status
        );
        Ok(())
    }

    /// A metric of the daemon, the sum of all its rows.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(METRICS_MAX))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let rows = text.lines().filter_map(|line| {
            let (row, value) = line.rsplit_once(' ')?;
            (row.split('{').next() == Some(name)).then_some(value)
        });
        let values: Vec<f64> = rows.map(|value| value.trim().parse()).collect::<Result<_, _>>()?;
        ensure!(!values.is_empty(), "{}: there is no metric {name}", self.name);
        Ok(values.into_iter().sum())
    }

    /// Everything that the daemon has logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Waits until the daemon has logged a line with all these words.
    pub fn logs(&self, words: &[&str]) -> Result<()> {
        eventually(&format!("{} logs {words:?}", self.name), Duration::from_secs(10), || {
            let log = self.log()?;
            let found = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(found, "no such line among {}", log.lines().count());
            Ok(())
        })
    }
}
