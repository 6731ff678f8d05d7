//! DPDK's `dpdk-testpmd` with two virtio-user ports: a front end that nobody here wrote, driven over its command line. It
//! generates frames on two ports and forwards what it receives, for tests and benchmarks.
//!
//! ```text
//!   say ──stdin──► dpdk-testpmd ──stdout, stderr──► a thread each ──► expect
//!                   │ port 0        │ port 1
//!              vhost-user socket  vhost-user socket
//! ```
//!
//! Debian's package `dpdk-dev` has the program. Without a directory of huge pages its memory is a memfd, which can be shared
//! just as well. It dies with the thread that starts it, so that a test which is killed leaves nothing running.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use ferro_protocol::net::Mac;

const PROGRAM: &str = "dpdk-testpmd";
/// How long an answer may take: the process starts, sockets are met.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines that wait to be read; then the program waits.
const LINES_MAX: usize = 4096;
/// Lines of its output that an error shows.
const TAIL_LINES: usize = 20;

/// What goes wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum TestpmdError {
    /// It can't be started.
    #[error("can't start {PROGRAM}: {0}; apt install dpdk-dev")]
    Start(std::io::Error),
    /// It takes no commands.
    #[error("can't tell {PROGRAM} {command:?}: {error}")]
    Say {
        /// The command.
        command: String,
        /// Why.
        error: std::io::Error,
    },
    /// It did not say what was waited for.
    #[error("{PROGRAM} did not say {wanted:?} in time:\n{said}")]
    Silent {
        /// What was waited for.
        wanted: String,
        /// What it said last.
        said: String,
    },
    /// It ended.
    #[error("{PROGRAM} has ended:\n{said}")]
    Ended {
        /// What it said last.
        said: String,
    },
    /// It did not say a number where one belongs.
    #[error("{PROGRAM} says no number in {line:?}")]
    NoNumber {
        /// The line.
        line: String,
    },
    /// Frames do not go round.
    #[error("from {before:?} to {now:?} only; {PROGRAM} said last:\n{said}")]
    Stuck {
        /// Both ports' counters at first.
        before: [TestpmdCounters; 2],
        /// At the end.
        now: [TestpmdCounters; 2],
        /// What it said last.
        said: String,
    },
}

/// One of its ports.
#[derive(Debug, Clone)]
pub struct TestpmdPort {
    /// The vhost-user socket.
    pub path: PathBuf,
    /// It listens on the socket, and the back end connects.
    pub listens: bool,
    /// Further arguments of the device, as in `queues=2`.
    pub arguments: Vec<String>,
}

impl TestpmdPort {
    /// A port that connects to a back end which listens.
    pub fn connecting(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), listens: false, arguments: Vec::new() }
    }

    /// A port that listens, and again when its back end has gone.
    pub fn listening(path: impl Into<PathBuf>) -> Self {
        Self { listens: true, ..Self::connecting(path) }
    }

    /// With a further argument of the device.
    #[must_use]
    pub fn with(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }
}

/// How it runs.
#[derive(Debug, Clone)]
pub struct TestpmdOptions {
    /// Where it puts its files.
    pub run_dir: PathBuf,
    /// A mounted hugetlbfs, or nothing: then ordinary memory.
    pub huge_dir: Option<PathBuf>,
    /// The processor of its command line.
    pub main_core: usize,
    /// The processor of its loop.
    pub loop_core: usize,
    /// Further options of testpmd itself, as in `--rxq=2`.
    pub arguments: Vec<String>,
}

impl TestpmdOptions {
    /// In ordinary memory, on processors 0 and 1.
    pub fn new(run_dir: impl Into<PathBuf>) -> Self {
        Self { run_dir: run_dir.into(), huge_dir: None, main_core: 0, loop_core: 1, arguments: Vec::new() }
    }

    fn command(&self, ports: &[TestpmdPort; 2]) -> Command {
        // Its answers go through a buffer of libc's, which would be written only when it is full.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "stdbuf", "-oL", PROGRAM]);
        let cores = format!("{},{}", self.main_core, self.loop_core);
        command.args(["-l", &cores, "--main-lcore", &self.main_core.to_string(), "-m", "256"]);
        command.args(["--no-pci", "--no-telemetry", "--no-shconf"]);
        match &self.huge_dir {
            Some(dir) => command.arg("--huge-dir").arg(dir).arg("--single-file-segments"),
            None => command.arg("--no-huge"),
        };
        for (number, (port, mac)) in ports.iter().zip(Testpmd::MACS).enumerate() {
            let mut device = format!("--vdev=net_virtio_user{number},path={},mac={mac}", port.path.display());
            for argument in port
                .listens
                .then_some("server=1")
                .into_iter()
                .chain(port.arguments.iter().map(String::as_str))
            {
                device.push(',');
                device.push_str(argument);
            }
            command.arg(device);
        }
        command.args(["--", "-i", "--total-num-mbufs=16384", "--mbuf-size=2176"]);
        // What a port sends is for the other one.
        let [first, second] = Testpmd::MACS;
        command.arg(format!("--eth-peer=0,{second}")).arg(format!("--eth-peer=1,{first}"));
        command.args(&self.arguments).env("XDG_RUNTIME_DIR", &self.run_dir);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// What one of its ports has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TestpmdCounters {
    /// Frames that it received.
    pub received: u64,
    /// Frames that it sent.
    pub sent: u64,
}

/// A running testpmd.
pub struct Testpmd {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Testpmd {
    /// The addresses of its two ports.
    pub const MACS: [Mac; 2] = [Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2])];

    /// Starts it; it has both ports when this returns, but a port that listens may have met nobody yet.
    pub fn start(options: &TestpmdOptions, ports: &[TestpmdPort; 2]) -> Result<Self, TestpmdError> {
        let mut child = options.command(ports).spawn().map_err(TestpmdError::Start)?;
        let (sender, lines) = sync_channel(LINES_MAX);
        if let Some(pipe) = child.stdout.take() {
            follow(pipe, sender.clone());
        }
        if let Some(pipe) = child.stderr.take() {
            follow(pipe, sender);
        }
        let mut testpmd = Self { child, lines, seen: Vec::new() };
        // Its prompt has no end of line: what answers a command is what can be waited for.
        testpmd.say("show port summary all")?;
        testpmd.expect("Number of available ports: 2")?;
        Ok(testpmd)
    }

    /// Gives it a command.
    pub fn say(&mut self, command: &str) -> Result<(), TestpmdError> {
        let failed = |error| TestpmdError::Say { command: command.to_owned(), error };
        match self.child.stdin.as_mut() {
            Some(pipe) => writeln!(pipe, "{command}").map_err(failed),
            None => Err(failed(std::io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Waits for a line with this text.
    pub fn expect(&mut self, text: &str) -> Result<String, TestpmdError> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => {
                    if self.seen.len() == LINES_MAX {
                        self.seen.drain(..LINES_MAX - TAIL_LINES);
                    }
                    self.seen.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(TestpmdError::Silent { wanted: text.to_owned(), said: self.tail() });
                }
                Err(RecvTimeoutError::Disconnected) => return Err(TestpmdError::Ended { said: self.tail() }),
            }
        }
    }

    /// What both ports have counted.
    pub fn counters(&mut self) -> Result<[TestpmdCounters; 2], TestpmdError> {
        self.say("show port stats all")?;
        let mut both = [TestpmdCounters::default(); 2];
        for counters in &mut both {
            counters.received = self.number("RX-packets:")?;
            counters.sent = self.number("TX-packets:")?;
        }
        Ok(both)
    }

    fn number(&mut self, name: &str) -> Result<u64, TestpmdError> {
        let line = self.expect(name)?;
        let rest = line.split(name).nth(1).and_then(|rest| rest.split_whitespace().next());
        rest.and_then(|text| text.parse().ok()).ok_or(TestpmdError::NoNumber { line })
    }

    /// Waits until each port has received and sent so many more frames.
    pub fn goes_round(&mut self, frames: u64) -> Result<(), TestpmdError> {
        let (deadline, before) = (Instant::now() + ANSWER_TIMEOUT, self.counters()?);
        loop {
            let now = self.counters()?;
            let more = |(now, before): (&TestpmdCounters, &TestpmdCounters)| {
                now.received >= before.received + frames && now.sent >= before.sent + frames
            };
            if now.iter().zip(&before).all(more) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(TestpmdError::Stuck { before, now, said: self.tail() });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as its user would; an error if it does not end.
    pub fn quit(mut self) -> Result<(), TestpmdError> {
        self.say("quit")?;
        if self.ends() {
            return Ok(());
        }
        Err(TestpmdError::Silent { wanted: "Bye".to_owned(), said: self.tail() })
    }

    fn ends(&mut self) -> bool {
        let deadline = Instant::now() + QUIT_TIMEOUT;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return true;
            }
            // It may wait for somebody to read what it says.
            self.seen.extend(self.lines.try_iter());
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }

    fn tail(&self) -> String {
        self.seen[self.seen.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // A listening one takes its sockets away when it is asked to end.
        if self.say("quit").is_ok() && self.ends() {
            return;
        }
        // These fail only for a process that has ended meanwhile.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn follow(pipe: impl Read + Send + 'static, lines: SyncSender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                break;
            }
        }
    });
}
