//! One host: a network namespace with one link, a folder for its state, and its `vsand`.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ferro_protocol::api::{OpenedVolume, Status, TokenInfo, VolumeInfo};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::process::{self, Process, run};
use crate::wait::eventually;

/// How long a daemon may take until its API answers.
const START_MAX: Duration = Duration::from_secs(60);

/// One host of the laboratory.
#[derive(Debug)]
pub struct Host {
    pub(crate) number: u8,
    pub(crate) namespace: String,
    /// The namespace with the bridge, where the other end of the link is.
    pub(crate) switch: String,
    pub(crate) dir: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) bin: PathBuf,
    pub(crate) daemon: Mutex<Option<Process>>,
}

/// What `vsanctl` says when it did not do what it was asked.
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

impl Host {
    /// Its name in the cluster.
    pub fn name(&self) -> String {
        format!("host{}", self.number)
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The daemon's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// Where its disks are unless a test makes others.
    pub fn disks_dir(&self) -> PathBuf {
        self.dir.join("disks")
    }

    /// The configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("vsand.toml")
    }

    /// The API's socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/api.sock")
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Process>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts `vsand` and returns when its API answers.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        eventually(&format!("{}'s vsand answers", self.name()), START_MAX, || {
            if let Some(status) = self.daemon().as_mut().map(Process::ended).transpose()?.flatten() {
                bail!("{}'s vsand ended with {status}", self.name());
            }
            UnixStream::connect(self.socket()).map(drop).context("its socket")
        })
    }

    /// Starts `vsand` and does not wait for anything.
    pub fn spawn(&self) -> Result<()> {
        let mut daemon = self.daemon();
        ensure!(daemon.is_none(), "{}'s vsand runs already", self.name());
        let mut command = process::command(Some(&self.namespace), &self.bin.join("vsand"));
        command.arg("--config").arg(self.config());
        *daemon = Some(Process::start(command, &self.log)?);
        Ok(())
    }

    fn take(&self) -> Result<Process> {
        self.daemon().take().with_context(|| format!("{}'s vsand does not run", self.name()))
    }

    /// `kill -9`.
    pub fn kill9(&self) -> Result<()> {
        self.take()?.kill()
    }

    /// `kill -9`, if it runs.
    pub fn kill9_if_running(&self) {
        // Dropping it kills it.
        drop(self.daemon().take());
    }

    /// `SIGTERM`, until it has ended well.
    pub fn term(&self) -> Result<()> {
        let status = self.take()?.terminate()?;
        ensure!(status.success(), "{}'s vsand ended with {status} after SIGTERM", self.name());
        Ok(())
    }

    /// `SIGTERM`, and nothing more: [`Self::await_end`] says how it ended.
    pub fn begin_term(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// How the daemon ended, as soon as it has.
    pub fn await_end(&self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{}'s vsand ends", self.name());
        let status = eventually(&what, limit, || self.end().context("it runs"))?;
        self.take().map(drop)?;
        Ok(status)
    }

    /// `SIGSTOP`.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// `SIGCONT`.
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        self.daemon()
            .as_ref()
            .with_context(|| format!("{}'s vsand does not run", self.name()))?
            .signal(signal)
    }

    /// How the daemon ended by itself, if it has.
    pub fn end(&self) -> Option<ExitStatus> {
        self.daemon().as_mut().and_then(|daemon| daemon.ended().ok().flatten())
    }

    /// Whether the daemon was started and has not ended by itself.
    pub fn is_running(&self) -> bool {
        self.daemon().as_mut().is_some_and(|daemon| matches!(daemon.ended(), Ok(None)))
    }

    fn port(&self) -> String {
        format!("p{}", self.number)
    }

    /// Nothing leaves this host.
    pub fn cut_out(&self) -> Result<()> {
        run("tc", &["-n", &self.namespace, "qdisc", "replace", "dev", "eth0", "root", "blackhole"]).map(drop)
    }

    /// Nothing reaches this host.
    pub fn cut_in(&self) -> Result<()> {
        run("tc", &["-n", &self.switch, "qdisc", "replace", "dev", &self.port(), "root", "blackhole"])
            .map(drop)
    }

    /// The cable is pulled.
    pub fn cut_cable(&self) -> Result<()> {
        run("ip", &["-n", &self.switch, "link", "set", &self.port(), "down"]).map(drop)
    }

    /// This host's frames to one other get lost; all others arrive, those of that host too.
    pub fn cut_to(&self, other: &Self) -> Result<()> {
        let nobody = ["lladdr", "02:00:00:00:00:ff", "nud", "permanent", "dev", "eth0"];
        let address = other.address().to_string();
        run("ip", &[&["-n", &self.namespace, "neigh", "replace", &address], &nobody[..]].concat()).map(drop)
    }

    /// Undoes every cut.
    pub fn mend(&self) -> Result<()> {
        // What was not cut can't be removed: that is as good.
        let _none = run("tc", &["-n", &self.namespace, "qdisc", "del", "dev", "eth0", "root"]);
        let _none = run("tc", &["-n", &self.switch, "qdisc", "del", "dev", &self.port(), "root"]);
        let _none = run("ip", &["-n", &self.namespace, "neigh", "flush", "dev", "eth0", "nud", "permanent"]);
        run("ip", &["-n", &self.switch, "link", "set", &self.port(), "up"]).map(drop)
    }

    fn vsanctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("vsanctl"));
        command.arg("--socket").arg(self.socket()).args(["--timeout", "40", "-o", "json"]).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs `vsanctl` on this host and gives its answer.
    pub fn ctl<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let output = self.vsanctl(arguments).output().context("can't run vsanctl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{}: vsanctl {}: {}: {}",
            self.name(),
            arguments.join(" "),
            output.status,
            said.trim()
        );
        serde_json::from_slice(&output.stdout).with_context(|| {
            format!("vsanctl {} printed {:?}", arguments.join(" "), String::from_utf8_lossy(&output.stdout))
        })
    }

    /// The same for those whose answer does not matter.
    pub fn ctl_ok(&self, arguments: &[&str]) -> Result<()> {
        self.ctl::<Value>(arguments).map(drop)
    }

    /// Runs `vsanctl`, which must refuse: with this code and exit status, a message and a next step.
    pub fn ctl_refused(&self, arguments: &[&str], code: &str, exit: i32) -> Result<Refusal> {
        let output = self.vsanctl(arguments).output().context("can't run vsanctl")?;
        let asked = format!("{}: vsanctl {}", self.name(), arguments.join(" "));
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

    /// Runs `vsanctl`, which must find the arguments wrong by itself and say how they should be.
    pub fn ctl_usage(&self, arguments: &[&str]) -> Result<()> {
        let output = self.vsanctl(arguments).output().context("can't run vsanctl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(2) && said.len() > 20,
            "vsanctl {}: {} instead of a usage error: {said}",
            arguments.join(" "),
            output.status
        );
        Ok(())
    }

    /// The cluster at a glance, as this host sees it.
    pub fn status(&self) -> Result<Status> {
        self.ctl(&["status"])
    }

    /// One volume, as this host sees it.
    pub fn volume(&self, name: &str) -> Result<VolumeInfo> {
        self.ctl(&["volume", "show", name])
    }

    /// Makes a volume.
    pub fn create(&self, name: &str, size: &str, policy: &str) -> Result<()> {
        self.ctl_ok(&["volume", "create", name, "--size", size, "--policy", policy])
    }

    /// Opens a volume here and gives its socket.
    pub fn open(&self, name: &str) -> Result<PathBuf> {
        let opened: OpenedVolume = self.ctl(&["volume", "open", name])?;
        let socket = PathBuf::from(opened.socket);
        ensure!(socket.exists(), "the volume is open and its socket {} is not there", socket.display());
        Ok(socket)
    }

    /// A join token.
    pub fn token(&self) -> Result<String> {
        Ok(self.ctl::<TokenInfo>(&["cluster", "token"])?.token.0)
    }

    /// Gives a directory to the cluster.
    pub fn add_disk(&self, path: &Path, size: &str) -> Result<Value> {
        fs::create_dir_all(path)?;
        self.ctl(&["disk", "add", &path.display().to_string(), "--size", size])
    }

    /// Does something on this host's network: in a thread of its own that lives in the host's namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let namespace = fs::File::open(format!("/run/netns/{}", self.namespace))?;
        let thread = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(thread).join().map_err(|_| anyhow!("it panicked"))?)
    }

    /// Everything that the daemon has logged.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(&self.log)?)
    }

    /// Waits until the daemon has logged a line with all these words.
    pub fn logs(&self, words: &[&str]) -> Result<()> {
        eventually(&format!("{} logs {words:?}", self.name()), Duration::from_secs(10), || {
            let log = self.log()?;
            let found = log.lines().any(|line| words.iter().all(|word| line.contains(word)));
            ensure!(found, "no such line among {}", log.lines().count());
            Ok(())
        })
    }
}
