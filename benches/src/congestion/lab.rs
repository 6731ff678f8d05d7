//! Two hosts with a wire between them, each a network namespace; and on each two machines.
//!
//! ```text
//!   a: g0 10.9.0.1 ─┐                                               ┌─ g0 10.9.0.2 :b
//!      g1 10.9.1.1 ─┴─ overlay ── wire 10.8.0.1 ═ tbf ═ 10.8.0.2 ── overlay ─┴─ g1 10.9.1.2
//! ```
//!
//! The overlay is ours, with TAP interfaces as machines, or VXLAN. The wire is a veth pair; a bottleneck is a token bucket
//! with a queue on each of its ends. The machines of one number are a network of their own.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ferro_protocol::ids::HostId;
use tempfile::TempDir;

use super::{Bottleneck, Overlay};
use crate::netns::{Namespaces, inside, ip};
use crate::process::{self, Daemon, Stop};
use crate::switch::ours::{Programs, identities};

const TIMEOUT: Duration = Duration::from_secs(30);
/// How many machines a host has.
pub(super) const GUESTS: u8 = 2;
const IPERF_PORT: &str = "5201";
pub(super) const ECHO_PORT: u16 = 7777;
/// What a token bucket passes at once.
const BURST: &str = "128kb";

/// See the module's documentation.
pub(super) struct Lab {
    // In this order: what runs in the namespaces ends first.
    daemons: Vec<Daemon>,
    spaces: Namespaces,
    directory: TempDir,
}

/// The address of a machine.
pub(super) fn guest(number: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, number, host + 1)
}

/// The address of a host on the wire.
pub(super) fn wire(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 8, 0, host + 1)
}

fn mac(number: u8, host: u8) -> String {
    format!("02:00:00:00:{number:02x}:{:02x}", host + 1)
}

impl Lab {
    /// Starts it all, and waits until the machines reach each other.
    pub(super) fn start(programs: &Programs, overlay: Overlay, stop: &Stop) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("fb-cg-").tempdir().context("making a directory")?;
        let spaces = Namespaces::make(&["a", "b"], stop)?;
        let [a, b] = [spaces.names()[0].clone(), spaces.names()[1].clone()];
        ip(&["link", "add", "wire", "netns", &a, "type", "veth", "peer", "name", "wire", "netns", &b], stop)?;
        for (host, name) in (0..).zip([&a, &b]) {
            inside(name, &["addr", "add", &format!("{}/24", wire(host)), "dev", "wire"], stop)?;
            inside(name, &["link", "set", "wire", "up"], stop)?;
        }
        let mut lab = Self { daemons: Vec::new(), spaces, directory };
        match overlay {
            Overlay::Vxlan => lab.vxlan(stop)?,
            Overlay::Ours { congestion, window_kib } => lab.ours(programs, congestion, window_kib, stop)?,
        }
        lab.servers(stop)?;
        Ok(lab)
    }

    fn vxlan(&self, stop: &Stop) -> anyhow::Result<()> {
        for (host, name) in (0..).zip(self.spaces.names()) {
            for number in 0..GUESTS {
                let (device, id) = (format!("g{number}"), (7 + u16::from(number)).to_string());
                let (local, remote) = (wire(host).to_string(), wire(1 - host).to_string());
                let add = ["link", "add", &device, "type", "vxlan", "id", &id, "dstport", "4789"];
                let ends = ["local", &local, "remote", &remote, "dev", "wire"];
                inside(name, &[&add[..], &ends].concat(), stop)?;
                let address = format!("{}/24", guest(number, host));
                inside(name, &["addr", "add", &address, "dev", &device], stop)?;
                inside(name, &["link", "set", &device, "mtu", "1450", "up"], stop)?;
            }
        }
        Ok(())
    }

    fn ours(
        &mut self,
        programs: &Programs,
        congestion: &str,
        window_kib: u32,
        stop: &Stop,
    ) -> anyhow::Result<()> {
        let ids = [1, 2].map(|n| HostId::from_bytes([n; 16]));
        identities(self.directory.path(), &ids)?;
        let names: Vec<String> = self.spaces.names().to_vec();
        let mut switches = Vec::new();
        for (host, name) in (0..).zip(&names) {
            let base = self.directory.path().join(format!("h{host}"));
            let path = base.to_str().context("a path that is not UTF-8")?;
            let (peer, there) = (ids[usize::from(1 - host)], wire(1 - host));
            let mut text = format!(
                "[host]\nalone = true\nname = 'h{host}'\nstate_dir = '{path}/state'\nrun_dir = '{path}/run'\n\
                 identity_dir = '{path}/identity'\ngroup = 'root'\ntunnel_addresses = ['{}']\n\
                 congestion = '{congestion}'\nwindow_kib = {window_kib}\n\
                 [[peer]]\nhost = '{peer}'\naddresses = ['{there}']\n[[switch]]\nname = 's0'\n",
                wire(host)
            );
            for number in 0..GUESTS {
                write!(
                    text,
                    "[[portgroup]]\nname = 'n{number}'\nswitch = 's0'\nvni = {}\n",
                    5000 + u32::from(number)
                )?;
                for at in 0..2 {
                    let mac = mac(number, at);
                    write!(text, "[[port]]\nname = 'h{at}g{number}'\ngroup = 'n{number}'\nmac = '{mac}'\n")?;
                }
            }
            std::fs::create_dir_all(base.join("run")).context("making a directory")?;
            let config = base.join("vswitchd.toml");
            std::fs::write(&config, text).with_context(|| format!("writing {}", config.display()))?;
            let (program, config) = (programs.vswitchd.to_string_lossy(), config.to_string_lossy());
            let args = ["netns", "exec", name, &*program, "--config", &*config];
            let log = base.join("vswitchd.log");
            let mut daemon = Daemon::start(&format!("vswitchd h{host}"), Path::new("ip"), &args, log)?;
            let api = base.join("run/api.sock");
            daemon.wait_until("API", TIMEOUT, stop, || UnixStream::connect(&api).is_ok())?;
            switches.push(daemon);
            for number in 0..GUESTS {
                let device = format!("g{number}");
                inside(name, &["tuntap", "add", "dev", &device, "mode", "tap", "vnet_hdr"], stop)?;
                inside(name, &["link", "set", &device, "address", &mac(number, host)], stop)?;
                let address = format!("{}/24", guest(number, host));
                inside(name, &["addr", "add", &address, "dev", &device], stop)?;
                let mut attach = Command::new(&programs.vswctl);
                attach.arg("--socket").arg(&api).args(["port", "attach", &format!("h{host}g{number}")]);
                attach.args(["--to", "tap", "--interface", &device]);
                process::output(&mut attach, TIMEOUT, stop)?;
                inside(name, &["link", "set", &device, "up"], stop)?;
            }
        }
        self.daemons.append(&mut switches);
        Ok(())
    }

    /// What the second host's machines answer with.
    fn servers(&mut self, stop: &Stop) -> anyhow::Result<()> {
        let name = self.spaces.names()[1].clone();
        let program = std::env::current_exe().context("finding this program")?;
        let program = program.to_string_lossy().into_owned();
        for (number, address) in (0..GUESTS).map(|number| guest(number, 1)).chain([wire(1)]).enumerate() {
            let address = address.to_string();
            let args = ["netns", "exec", &name, "iperf3", "--server", "--bind", &address, "-p", IPERF_PORT];
            let log = self.directory.path().join(format!("iperf3-{number}.log"));
            self.daemons.push(Daemon::start("iperf3", Path::new("ip"), &args, log)?);
        }
        let address = format!("{}:{ECHO_PORT}", guest(0, 1));
        let args = ["netns", "exec", &name, &program, "udp-echo", &address];
        let log = self.directory.path().join("echo.log");
        self.daemons.push(Daemon::start("udp-echo", Path::new("ip"), &args, log)?);
        let began = Instant::now();
        for to in (0..GUESTS).map(|number| guest(number, 1)) {
            // An answer means that tunnels, addresses and servers are all there.
            while self.iperf(to, None, Duration::from_secs(1), stop).is_err() {
                for daemon in &mut self.daemons {
                    daemon.check()?;
                }
                ensure!(began.elapsed() < TIMEOUT, "no machine at {to} answers\n{}", self.log_tails());
                stop.sleep(Duration::from_millis(200))?;
            }
        }
        Ok(())
    }

    fn log_tails(&self) -> String {
        self.daemons.iter().map(Daemon::log_tail).collect::<Vec<_>>().join("\n--\n")
    }

    /// Makes the wire's ends as narrow as asked.
    pub(super) fn narrow(&self, to: Bottleneck, stop: &Stop) -> anyhow::Result<()> {
        for name in self.spaces.names() {
            let tc = |args: &[&str]| {
                let mut command = Command::new("tc");
                command.args(["-netns", name, "qdisc"]).args(args);
                process::output(&mut command, TIMEOUT, stop).map(drop)
            };
            match to {
                // A veth has none unless it was given one.
                Bottleneck::None => drop(tc(&["del", "dev", "wire", "root"])),
                Bottleneck::Queue { mbit_s, bytes } => {
                    let (rate, limit) = (format!("{mbit_s}mbit"), bytes.to_string());
                    let bucket = ["tbf", "rate", &rate, "burst", BURST, "limit", &limit];
                    tc(&[&["replace", "dev", "wire", "root"], &bucket[..]].concat())?;
                }
            }
        }
        Ok(())
    }

    /// One TCP flow to an address of the second host, or so many Mbit/s of UDP; what iperf3 reports.
    pub(super) fn iperf(
        &self,
        to: Ipv4Addr,
        udp_mbit: Option<u64>,
        time: Duration,
        stop: &Stop,
    ) -> anyhow::Result<serde_json::Value> {
        let mut client = self.in_first("iperf3");
        client.args(["--json", "-p", IPERF_PORT, "--client", &to.to_string()]);
        client.args(["--connect-timeout", "2000", "--time", &time.as_secs().max(1).to_string()]);
        if let Some(rate) = udp_mbit {
            client.args(["--udp", "--length", "1400", "--bitrate", &format!("{rate}M")]);
        }
        if time > Duration::from_secs(1) {
            client.args(["--omit", "1"]);
        }
        let text =
            process::output(&mut client, time + TIMEOUT, stop).context("iperf3 (apt install iperf3)")?;
        let report: serde_json::Value = serde_json::from_str(&text).context("iperf3's report is not JSON")?;
        // It may say so and yet succeed.
        if let Some(error) = report["error"].as_str() {
            bail!("iperf3: {error}");
        }
        Ok(report)
    }

    /// Round trips from the first host's first machine to the second's, as [`super::probe::send`] prints them.
    pub(super) fn probe(&self, time: Duration, stop: &Stop) -> anyhow::Result<String> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut command = self.in_first(&program.to_string_lossy());
        command.args(["udp-probe", &format!("{}:{ECHO_PORT}", guest(0, 1)), &time.as_millis().to_string()]);
        process::output(&mut command, time + TIMEOUT, stop)
    }

    fn in_first(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.spaces.names()[0], program]);
        command
    }
}
