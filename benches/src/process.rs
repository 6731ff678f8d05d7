//! Processes that we start and always end: by their own id, never by name.
//!
//! A daemon is ended when its [`Daemon`] is dropped, so an error or an interruption anywhere leaves none behind; should
//! this process itself be killed outright, the kernel ends the daemons (`setpriv --pdeathsig`).

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

use crate::usage::Watched;

const POLL: Duration = Duration::from_millis(20);
/// How long a daemon may take to end by itself before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// Lines of a log shown with an error.
const LOG_TAIL_LINES: usize = 15;

/// Set once the person asked us to stop (Ctrl-C, SIGTERM).
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// One that is set by SIGINT, SIGTERM and SIGHUP.
    pub fn on_signals() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
        {
            signal_hook::flag::register(signal, Arc::clone(&flag)).context("watching for signals")?;
        }
        Ok(Self(flag))
    }

    /// Sets it.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// An error if it is set.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted; everything that was started is being ended");
        }
        Ok(())
    }

    /// Sleeps, in small steps, an error as soon as it is set.
    pub fn sleep(&self, how_long: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + how_long;
        while Instant::now() < until {
            self.check()?;
            std::thread::sleep(POLL.min(how_long));
        }
        self.check()
    }
}

/// The folder of the running program, where cargo puts the others too.
pub fn own_directory() -> anyhow::Result<PathBuf> {
    let here = std::env::current_exe().context("finding this program")?;
    here.parent().map(Path::to_owned).context("this program has no directory")
}

/// This package's folder: what `cargo run` says now, or what it was when this program was built.
pub fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// A program of ours in a folder, as it was built there.
pub fn program_in(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    if !path.is_file() {
        bail!("{} is not there: build it with `cargo build --release --bin {name}`", path.display());
    }
    Ok(path)
}

/// A process that runs until this is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a program with its output going to `log`. The kernel ends it with the *thread* that called this, so call it
    /// from one that lives as long as the daemon is needed.
    pub fn start(name: &str, program: &Path, args: &[&str], log: PathBuf) -> anyhow::Result<Self> {
        let out = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let err = out.try_clone().with_context(|| format!("opening {} again", log.display()))?;
        // setpriv replaces itself by the program, so the id is the program's.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {} (setpriv is part of util-linux)", program.display()))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// For `/proc`.
    pub fn watched(&self) -> Watched {
        Watched { name: self.name.clone(), pid: self.child.id() }
    }

    /// Ends it at once.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.child
            .kill()
            .and_then(|()| self.child.wait())
            .with_context(|| format!("killing {}", self.name))?;
        Ok(())
    }

    /// An error with the end of its log if it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait().with_context(|| format!("looking after {}", self.name))? {
            bail!("{} ended with {status}\n{}", self.name, log_tail(&self.log));
        }
        Ok(())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Waits until `ready` says so, for at most `timeout`.
    pub fn wait_until(
        &mut self,
        what: &str,
        timeout: Duration,
        stop: &Stop,
        mut ready: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let started = Instant::now();
        while !ready() {
            self.check()?;
            if started.elapsed() > timeout {
                bail!("{}: no {what} after {} s\n{}", self.name, timeout.as_secs(), self.log_tail());
            }
            stop.sleep(POLL)?;
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end_child(&mut self.child, &self.name, rustix::process::kill_process);
    }
}

fn end_child(child: &mut Child, name: &str, kill: impl Fn(Pid, Signal) -> rustix::io::Result<()>) {
    // A child that was not waited for keeps its id, so the signal cannot reach another process.
    if matches!(child.try_wait(), Ok(Some(_))) {
        return;
    }
    let pid = Pid::from_child(child);
    if let Err(error) = kill(pid, Signal::TERM) {
        eprintln!("ferro-bench: asking {name} (pid {}) to end: {error}", child.id());
    }
    let asked = Instant::now();
    while asked.elapsed() < STOP_TIMEOUT {
        if matches!(child.try_wait(), Ok(Some(_))) {
            return;
        }
        std::thread::sleep(POLL);
    }
    eprintln!(
        "ferro-bench: {name} (pid {}) did not end in {} s: killing it",
        child.id(),
        STOP_TIMEOUT.as_secs()
    );
    if let Err(error) =
        kill(pid, Signal::KILL).map_err(std::io::Error::from).and_then(|()| child.wait().map(drop))
    {
        eprintln!("ferro-bench: killing {name} (pid {}): {error}", child.id());
    }
}

/// Runs a command to its end, with each line of its output handed to `on_line` as it comes. Fails, with the end of what
/// it wrote to its standard error, if it does not succeed within `timeout`; then it and its process group are ended.
pub fn run(
    command: &mut Command,
    timeout: Duration,
    stop: &Stop,
    mut on_line: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let shown = shown(command);
    let errors = tempfile::NamedTempFile::new().context("making a file for error messages")?;
    let error_file = errors.reopen().context("opening the file for error messages")?;
    let mut running = Running(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(error_file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {shown}"))?,
    );
    let lines = line_channel(&mut running.0).with_context(|| format!("reading from {shown}"))?;
    let started = Instant::now();
    loop {
        while let Ok(line) = lines.try_recv() {
            on_line(&line)?;
        }
        if let Some(status) = running.0.try_wait().with_context(|| format!("waiting for {shown}"))? {
            return finish(status, &shown, &lines, errors.path(), on_line);
        }
        if started.elapsed() > timeout {
            bail!("{shown}: not done after {} s\n{}", timeout.as_secs(), log_tail(errors.path()));
        }
        stop.sleep(POLL)?;
    }
}

/// Runs a command to its end and returns its standard output.
pub fn output(command: &mut Command, timeout: Duration, stop: &Stop) -> anyhow::Result<String> {
    let mut text = String::new();
    run(command, timeout, stop, |line| {
        text.push_str(line);
        text.push('\n');
        Ok(())
    })?;
    Ok(text)
}

fn finish(
    status: ExitStatus,
    shown: &str,
    lines: &mpsc::Receiver<String>,
    errors: &Path,
    mut on_line: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Something it left running may hold the pipe open, so wait for the rest of the lines only a little.
    while let Ok(line) = lines.recv_timeout(Duration::from_millis(500)) {
        on_line(&line)?;
    }
    if !status.success() {
        bail!("{shown}: {status}\n{}", log_tail(errors));
    }
    Ok(())
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Its whole group: a script is nothing without what it started.
        end_child(&mut self.0, "a command", rustix::process::kill_process_group);
    }
}

fn line_channel(child: &mut Child) -> anyhow::Result<mpsc::Receiver<String>> {
    let out = child.stdout.take().context("it has no output")?;
    let (sender, receiver) = mpsc::sync_channel(1024);
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines() {
            let Ok(line) = line else { break };
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    Ok(receiver)
}

fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    format!("`{text}`")
}

fn log_tail(path: &Path) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..];
    if tail.is_empty() { "(it wrote nothing)".to_owned() } else { tail.join("\n") }
}
