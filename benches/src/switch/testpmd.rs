//! DPDK's `dpdk-testpmd` as the load: one process with two virtio-user ports that sends back out of each port what came in
//! by the other, so that a fixed number of frames goes round through whatever switch is between the ports. The same loop
//! drives us and Open vSwitch.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::process::Stop;

/// The addresses of its two ports.
pub(super) const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
const PROGRAM: &str = "dpdk-testpmd";
/// How long an answer may take: the process starts, two sockets are met.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Who listens on the two sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Listener {
    /// The switch.
    Switch,
    /// testpmd.
    Testpmd,
}

/// One loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Bytes of a frame, without its checksum.
    pub(super) frame_bytes: u16,
    /// Frames that go round in each direction.
    pub(super) in_flight: u16,
}

/// How it runs: where huge pages are, and on which processors.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    /// A mounted hugetlbfs, or nothing: then ordinary memory.
    pub(super) huge_dir: Option<PathBuf>,
    /// For its command line.
    pub(super) main_core: usize,
    /// For the loop.
    pub(super) loop_core: usize,
}

/// A running testpmd.
pub(super) struct Testpmd {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Testpmd {
    /// Starts it on two sockets.
    pub(super) fn start(
        setting: &Setting,
        sockets: [&Path; 2],
        listener: Listener,
        run_dir: &Path,
    ) -> anyhow::Result<Self> {
        // Its answers go through a buffer of libc's, which would be written only when it is full.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "stdbuf", "-oL", PROGRAM]);
        let cores = format!("{},{}", setting.main_core, setting.loop_core);
        command.args(["-l", &cores, "--main-lcore", &setting.main_core.to_string(), "-m", "256"]);
        command.args(["--no-pci", "--no-telemetry", "--no-shconf"]);
        match &setting.huge_dir {
            Some(dir) => command.arg("--huge-dir").arg(dir).arg("--single-file-segments"),
            None => command.arg("--no-huge"),
        };
        let server = if listener == Listener::Testpmd { ",server=1" } else { "" };
        for (number, (path, mac)) in sockets.iter().zip(MACS).enumerate() {
            let path = path.to_str().context("a socket's path is not UTF-8")?;
            command
                .arg(format!("--vdev=net_virtio_user{number},path={path},mac={mac},queue_size=1024{server}"));
        }
        command.args(["--", "-i", "--total-num-mbufs=16384", "--mbuf-size=2176"]);
        command.args(["--no-lsc-interrupt", "--rxd=1024", "--txd=1024"]);
        // What a port sends is for the other one.
        command.arg(format!("--eth-peer=0,{}", MACS[1])).arg(format!("--eth-peer=1,{}", MACS[0]));
        let mut child = command
            .env("XDG_RUNTIME_DIR", run_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {PROGRAM}: apt install dpdk-dev"))?;
        let out = child.stdout.take().context("it has no output")?;
        let (sender, lines) = sync_channel(4096);
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut testpmd = Self { child, lines, seen: Vec::new() };
        testpmd.say("show port summary all")?;
        testpmd.expect("Number of available ports: 2")?;
        Ok(testpmd)
    }

    /// Frames a second through the switch, both directions together, over `time` after a warm-up.
    pub(super) fn rate(&mut self, load: Load, time: Duration, stop: &Stop) -> anyhow::Result<f64> {
        self.say(&format!("set txpkts {}", load.frame_bytes))?;
        self.say(&format!("set burst {}", load.in_flight))?;
        self.say("start tx_first")?;
        stop.sleep(Duration::from_millis(700))?;
        let (before, began) = (self.received()?, Instant::now());
        stop.sleep(time)?;
        let (after, took) = (self.received()?, began.elapsed());
        self.say("stop")?;
        self.expect("Done.")?;
        if after == before {
            bail!("no frame came through the switch:\n{}", self.tail());
        }
        Ok((after - before) as f64 / took.as_secs_f64())
    }

    fn received(&mut self) -> anyhow::Result<u64> {
        self.say("show port stats all")?;
        let mut sum = 0;
        for _ in 0..2 {
            let line = self.expect("RX-packets:")?;
            let number = line.split("RX-packets:").nth(1).and_then(|rest| rest.split_whitespace().next());
            sum +=
                number.and_then(|text| text.parse::<u64>().ok()).with_context(|| format!("in {line:?}"))?;
        }
        Ok(sum)
    }

    fn say(&mut self, command: &str) -> anyhow::Result<()> {
        let pipe = self.child.stdin.as_mut().context("it has no input")?;
        writeln!(pipe, "{command}").with_context(|| format!("telling {PROGRAM}: {command}"))
    }

    fn expect(&mut self, text: &str) -> anyhow::Result<String> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(line) => self.seen.push(line),
                Err(RecvTimeoutError::Timeout) => bail!("{PROGRAM} did not say {text:?}:\n{}", self.tail()),
                Err(RecvTimeoutError::Disconnected) => bail!("{PROGRAM} has ended:\n{}", self.tail()),
            }
        }
    }

    fn tail(&self) -> String {
        self.seen[self.seen.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let asked = self.say("quit").is_ok();
        let deadline = Instant::now() + Duration::from_secs(5);
        while asked && Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // It fails only for a process that has ended meanwhile.
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
