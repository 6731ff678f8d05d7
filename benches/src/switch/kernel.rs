//! The peer for super-frames and latency: the kernel's own bridge, and bridge and VXLAN, over veth, between network namespaces.
//!
//! ```text
//!   one host:   a ──veth── bridge ──veth── b
//!   two hosts:  a ──veth── bridge ─ vxlan ──veth── vxlan ─ bridge ──veth── b
//! ```

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::generator::Times;
use crate::netns::{Namespaces, inside, ip};
use crate::process::{self, Daemon, Stop};

const TIMEOUT: Duration = Duration::from_secs(20);
const ADDRESS: &str = "10.9.0";
const PORT: u16 = 5201;

/// A network of the kernel's own between namespaces, gone when this is dropped.
pub(super) struct Kernel {
    spaces: Namespaces,
}

impl Kernel {
    /// A bridge between two namespaces; with `vxlan`, two bridges and a VXLAN between them.
    pub(super) fn start(vxlan: bool, stop: &Stop) -> anyhow::Result<Self> {
        let suffixes: &[&str] = if vxlan { &["a", "b", "x", "y"] } else { &["a", "b", "x"] };
        let kernel = Self { spaces: Namespaces::make(suffixes, stop)? };
        let names = kernel.spaces.names();
        let [a, b] = [names[0].clone(), names[1].clone()];
        let [first, last] = [names[2].clone(), names[names.len() - 1].clone()];
        for host in &names[2..] {
            inside(host, &["link", "add", "bridge0", "type", "bridge"], stop)?;
            inside(host, &["link", "set", "bridge0", "up"], stop)?;
        }
        for (number, (guest, host)) in [(&a, &first), (&b, &last)].into_iter().enumerate() {
            let (port, address) = (format!("p{number}"), format!("{ADDRESS}.{}/24", number + 1));
            let peer = ["peer", "name", &port, "netns", host];
            let add = [&["link", "add", "eth0", "netns", guest.as_str(), "type", "veth"], &peer[..]].concat();
            ip(&add, stop)?;
            inside(host, &["link", "set", &port, "master", "bridge0", "up"], stop)?;
            inside(guest, &["addr", "add", &address, "dev", "eth0"], stop)?;
            inside(guest, &["link", "set", "eth0", "up"], stop)?;
        }
        if vxlan {
            let peer = ["peer", "name", "wire", "netns", &last];
            ip(&[&["link", "add", "wire", "netns", &first, "type", "veth"], &peer[..]].concat(), stop)?;
            for (number, host) in [(1, &first), (2, &last)] {
                let (local, remote) = (format!("10.8.0.{number}"), format!("10.8.0.{}", 3 - number));
                inside(host, &["addr", "add", &format!("{local}/24"), "dev", "wire"], stop)?;
                inside(host, &["link", "set", "wire", "up"], stop)?;
                let vxlan = ["link", "add", "vxlan0", "type", "vxlan", "id", "7", "dstport", "4789"];
                let ends = ["local", &local, "remote", &remote, "dev", "wire"];
                inside(host, &[&vxlan[..], &ends].concat(), stop)?;
                inside(host, &["link", "set", "vxlan0", "master", "bridge0", "up"], stop)?;
            }
            // The guests' packets and VXLAN's headers fit the wire.
            for guest in [&a, &b] {
                inside(guest, &["link", "set", "eth0", "mtu", "1450"], stop)?;
            }
        }
        Ok(kernel)
    }

    /// Gbit/s of one TCP stream, by iperf3.
    pub(super) fn stream(&self, time: Duration, stop: &Stop, log_dir: &Path) -> anyhow::Result<f64> {
        let log = log_dir.join("iperf3.log");
        let server = ["netns", "exec", &self.spaces.names()[1], "iperf3", "--server", "--one-off"];
        let mut daemon = Daemon::start("iperf3", Path::new("ip"), &server, log)?;
        let to = format!("{ADDRESS}.2");
        let seconds = time.as_secs().max(1).to_string();
        let began = Instant::now();
        loop {
            let mut client = Command::new("ip");
            client.args(["netns", "exec", &self.spaces.names()[0], "iperf3", "--json", "--client", &to]);
            client.args(["--time", &seconds, "--omit", "1"]);
            match process::output(&mut client, time + TIMEOUT, stop).and_then(|text| received(&text)) {
                Ok(rate) => return Ok(rate / 1e9),
                // It does not listen yet, or its address is not known yet.
                Err(_) if began.elapsed() < Duration::from_secs(5) => {
                    daemon.check()?;
                    stop.sleep(Duration::from_millis(100))?;
                }
                Err(error) => return Err(error.context("iperf3")),
            }
        }
    }

    /// Round trips of a small UDP packet between processes that sleep, each after a pause.
    pub(super) fn ping_pong(
        &self,
        (time, pause): (Duration, Duration),
        stop: &Stop,
        log_dir: &Path,
    ) -> anyhow::Result<Times> {
        let program = std::env::current_exe().context("finding this program")?;
        let program = program.to_str().context("a path that is not UTF-8")?;
        let address = format!("{ADDRESS}.2:{PORT}");
        let echo = ["netns", "exec", &self.spaces.names()[1], program, "udp-echo", &address];
        let mut daemon = Daemon::start("udp-echo", Path::new("ip"), &echo, log_dir.join("echo.log"))?;
        stop.sleep(Duration::from_millis(300))?;
        daemon.check()?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.spaces.names()[0], program, "udp-ping", &address]);
        command.args([time.as_millis().to_string(), pause.as_millis().to_string()]);
        let text = process::output(&mut command, time + TIMEOUT, stop)?;
        let mut times = Times::new()?;
        for line in text.lines() {
            let said = || format!("udp-ping said {line:?}");
            let (round, way) = line.split_once(' ').with_context(said)?;
            times.round.saturating_record(round.parse().with_context(said)?);
            times.way.saturating_record(way.parse().with_context(said)?);
        }
        Ok(times)
    }
}

/// Nanoseconds of a clock that all processes of a machine share.
fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Sends back what comes, with the time at which it came, until it is told to stop.
pub(super) fn udp_echo(address: SocketAddr, stop: &Stop) -> anyhow::Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("listening on {address}"))?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut bytes = [0; 2048];
    while stop.check().is_ok() {
        match socket.recv_from(&mut bytes) {
            Ok((count, from)) => {
                bytes[..8].copy_from_slice(&clock().to_le_bytes());
                socket.send_to(&bytes[..count], from)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error).context("waiting for packets"),
        }
    }
    Ok(())
}

/// Bits a second in iperf3's report, which also says in JSON why it failed.
fn received(report: &str) -> anyhow::Result<f64> {
    let report: serde_json::Value = serde_json::from_str(report).context("iperf3's report is not JSON")?;
    if let Some(error) = report["error"].as_str() {
        bail!("iperf3: {error}");
    }
    report
        .pointer("/end/sum_received/bits_per_second")
        .and_then(serde_json::Value::as_f64)
        .context("iperf3 reports no rate")
}

/// Prints how long each round trip took, and of it the way there, in nanoseconds.
pub(super) fn udp_ping(address: SocketAddr, time: Duration, pause: Duration) -> anyhow::Result<()> {
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).context("making a socket")?;
    socket.connect(address).with_context(|| format!("connecting to {address}"))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut bytes, began, mut lost) = ([0_u8; 50], Instant::now(), 0);
    while began.elapsed() < time {
        std::thread::sleep(pause);
        let sent = clock();
        let answered = socket.send(&bytes).and_then(|_| socket.recv(&mut bytes));
        match answered {
            Ok(_) => {
                let round = clock() - sent;
                let arrived = bytes.first_chunk().map_or(0, |chunk| u64::from_le_bytes(*chunk));
                println!("{round} {}", arrived.saturating_sub(sent));
            }
            // The first may meet nobody.
            Err(error) if lost < 3 => {
                lost += 1;
                eprintln!("udp-ping: {error}");
            }
            Err(error) => bail!("no answer from {address}: {error}"),
        }
    }
    Ok(())
}
