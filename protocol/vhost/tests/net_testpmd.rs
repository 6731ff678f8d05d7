//! A front end that nobody here wrote: DPDK's virtio-user, in `dpdk-testpmd` (Debian's package `dpdk-dev`), without huge
//! pages. It generates frames on two ports and forwards what it receives, through the test's switch.

mod netlab;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ferro_vhost::net::{NetEvent, NetSettings, feature};
use netlab::{Meet, PATIENCE, Switch, eventually, sockets};

/// A testpmd with two virtio-user ports, driven over its command line.
struct Testpmd {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Testpmd {
    fn start(dir: &Path, devices: [String; 2], options: &[&str]) -> Self {
        // Its answers go through a buffer of libc's, which would be written when it is full.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "dpdk-testpmd"]);
        command.args(["--no-huge", "-m", "256", "--no-pci", "--no-telemetry", "--no-shconf", "-l", "0,1"]);
        for device in devices {
            command.arg(format!("--vdev={device}"));
        }
        command.args(["--", "-i", "--total-num-mbufs=8192", "--mbuf-size=2176"]).args(options);
        command
            .env("XDG_RUNTIME_DIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let version = Command::new("dpdk-testpmd").arg("-v").output();
        assert!(version.is_ok(), "{version:?}: this test needs dpdk-testpmd, of Debian's package dpdk-dev");
        let mut child = command.spawn().unwrap();
        let (tx, lines) = channel();
        for pipe in [
            Box::new(child.stdout.take().unwrap()) as Box<dyn std::io::Read + Send>,
            Box::new(child.stderr.take().unwrap()),
        ] {
            let tx = tx.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    if tx.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        let mut testpmd = Self { child, lines, seen: Vec::new() };
        // Its prompt has no end of line: what answers a command is what can be waited for.
        testpmd.say("show port summary all");
        testpmd.expect("Number of available ports: 2");
        testpmd
    }

    fn say(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    #[track_caller]
    fn expect(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) => self.seen.push(line),
                Err(error) => panic!("{error}: no {text:?} from dpdk-testpmd:\n{}", self.seen.join("\n")),
            }
        }
    }

    /// Frames that a port has received and sent, by its own counters.
    #[track_caller]
    fn counters(&mut self, port: u16) -> (u64, u64) {
        let number = |line: &str, name: &str| -> u64 {
            let rest = line.split(name).nth(1).unwrap();
            rest.split_whitespace().next().unwrap().parse().unwrap()
        };
        self.say(&format!("show port stats {port}"));
        let received = number(&self.expect("RX-packets:"), "RX-packets:");
        let sent = number(&self.expect("TX-packets:"), "TX-packets:");
        (received, sent)
    }

    /// Waits until frames go round.
    #[track_caller]
    fn runs(&mut self, frames: u64) {
        let deadline = Instant::now() + PATIENCE;
        let before = [self.counters(0), self.counters(1)];
        loop {
            let now = [self.counters(0), self.counters(1)];
            let more = |port: usize| {
                now[port].0 >= before[port].0 + frames && now[port].1 >= before[port].1 + frames
            };
            if more(0) && more(1) {
                return;
            }
            assert!(Instant::now() < deadline, "from {before:?} to {now:?} only\n{}", self.seen.join("\n"));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn quit(mut self) {
        self.say("quit");
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "dpdk-testpmd does not quit");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        // Gone already after `quit`.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn vdev(number: usize, path: &Path, more: &str) -> String {
    format!("net_virtio_user{number},path={},mac=02:00:00:00:00:0{number}{more}", path.display())
}

#[test]
fn frames_of_all_sizes_go_round_between_two_ports() {
    for (more, txpkts) in
        [("", "64"), (",mrg_rxbuf=0,in_order=0", "1514"), (",queue_size=1024", "64,1400,2000,2000")]
    {
        let (dir, paths) = sockets::<2>();
        let switch = Switch::listening(&paths, &NetSettings::default());
        let devices = [vdev(0, &paths[0], more), vdev(1, &paths[1], more)];
        let mut testpmd = Testpmd::start(dir.path(), devices, &[]);
        testpmd.say(&format!("set txpkts {txpkts}"));
        testpmd.say("start tx_first");
        testpmd.runs(20_000);
        testpmd.say("stop");
        testpmd.quit();
        let detached = |port| switch.saw(port, &NetEvent::Detached);
        eventually("the end", || detached(0) && detached(1));
        let events = switch.shared.events.lock().unwrap().clone();
        assert!(!events.iter().any(|(_, event)| matches!(event, NetEvent::Broken(_))), "{events:?}");
        let outcome = *switch.shared.outcome.lock().unwrap();
        assert_eq!((outcome.bad_header, outcome.bad_length), (0, 0));
    }
}

#[test]
fn several_queues_with_checksums_and_segmentation_negotiated() {
    let (dir, paths) = sockets::<2>();
    let switch = Switch::listening(&paths, &NetSettings::default());
    let devices = [vdev(0, &paths[0], ",queues=2"), vdev(1, &paths[1], ",queues=2")];
    let mut testpmd = Testpmd::start(dir.path(), devices, &["--rxq=2", "--txq=2"]);
    testpmd.say("start tx_first");
    testpmd.runs(20_000);
    assert_eq!(switch.shared.receiving.lock().unwrap()[0].len(), 2);
    testpmd.say("stop");
    testpmd.say("show port 0 tx_offload capabilities");
    let capabilities = testpmd.expect("Per Port");
    assert!(capabilities.contains("TCP_CKSUM") && capabilities.contains("TCP_TSO"), "{capabilities}");
    testpmd.quit();
    let sum = *switch.shared.outcome.lock().unwrap();
    assert_eq!((sum.bad_header, sum.bad_length), (0, 0));
    assert_ne!(NetSettings::default().offered() & feature::HOST_TSO4, 0);
}

#[test]
fn a_switch_restarts_under_front_ends_that_listen() {
    let (dir, paths) = sockets::<2>();
    let ports: Vec<Meet> = paths.iter().cloned().map(Meet::Connect).collect();
    let switch = Switch::start(&ports, &NetSettings::default());
    let devices = [vdev(0, &paths[0], ",server=1"), vdev(1, &paths[1], ",server=1")];
    let mut testpmd = Testpmd::start(dir.path(), devices, &[]);
    testpmd.say("start tx_first");
    testpmd.runs(10_000);
    switch.kill();
    let switch = Switch::start(&ports, &NetSettings::default());
    // Its kernel accepts us before it has seen the old connection go: connected is not yet back.
    eventually("the rings", || {
        let receiving = switch.shared.receiving.lock().unwrap();
        receiving.len() == 2 && receiving.iter().all(|pairs| !pairs.is_empty())
    });
    // What was under way is lost, so there is nothing left to forward: begin again.
    testpmd.say("stop");
    testpmd.say("start tx_first");
    testpmd.runs(10_000);
    testpmd.quit();
}
