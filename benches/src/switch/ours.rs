//! Our side: `vswitchd` as an operator runs it without a cluster, one host or two with a tunnel between them on loopback.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use ferro_protocol::ids::{ClusterId, HostId};
use ferro_transport::UnixTime;
use ferro_transport::identity::{CA_LIFETIME, ClusterCa, HOST_CERT_LIFETIME, HostKey, IdentityDir};
use tempfile::TempDir;

use crate::process::{self, Daemon, Stop};
use crate::usage::Watched;

const START_TIMEOUT: Duration = Duration::from_secs(20);
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// What a frame between two hosts may carry: a super-frame's segments are of this size.
const MTU: u32 = 1500;

/// The programs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) vswitchd: PathBuf,
    pub(crate) vswctl: PathBuf,
}

impl Programs {
    /// Those beside this program.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let directory = process::own_directory()?;
        let find = |name| process::program_in(&directory, name);
        Ok(Self { vswitchd: find("vswitchd")?, vswctl: find("vswctl")? })
    }
}

/// A port of the switch, or of one of them.
#[derive(Clone, Debug)]
pub(super) struct PortAt {
    /// The host, 0 or 1.
    pub(super) host: usize,
    /// Its address.
    pub(super) mac: String,
}

struct Host {
    daemon: Daemon,
    run: PathBuf,
}

/// One or two switches with ports.
pub(super) struct Switches {
    // Ended before their directory is removed.
    hosts: Vec<Host>,
    ports: Vec<PathBuf>,
    vswctl: PathBuf,
    directory: TempDir,
}

impl Switches {
    /// Starts `hosts` of them (1 or 2) with these ports, all in one distributed port group, attached to sockets on which the
    /// switch listens.
    pub(super) fn start(
        programs: &Programs,
        hosts: usize,
        ports: &[PortAt],
        connections: u8,
        stop: &Stop,
    ) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("fb-sw-").tempdir().context("making a directory")?;
        let ids: Vec<HostId> = (1..=hosts as u8).map(|n| HostId::from_bytes([n; 16])).collect();
        if hosts > 1 {
            identities(directory.path(), &ids)?;
        }
        let network = network(ports)?;
        let mut switches =
            Self { hosts: Vec::new(), ports: Vec::new(), vswctl: programs.vswctl.clone(), directory };
        let udp = udp_ports()?;
        for (number, id) in ids.iter().enumerate() {
            let base = switches.directory.path().join(format!("h{number}"));
            let run = base.join("run");
            fs::create_dir_all(&run).with_context(|| format!("making {}", run.display()))?;
            let mut text = settings(number, &base, &run, connections, udp)?;
            for (other, peer) in ids.iter().enumerate().filter(|(_, peer)| *peer != id) {
                write!(
                    text,
                    "[[peer]]\nhost = \"{peer}\"\naddresses = [\"{}\"]\ncontrol_port = {}\ndata_port = {}\n",
                    loopback(other),
                    udp[0],
                    udp[1]
                )?;
            }
            text.push_str(&network);
            let path = base.join("vswitchd.toml");
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            let config = path.to_str().context("a path that is not UTF-8")?;
            let log = base.join("vswitchd.log");
            let name = format!("vswitchd h{number}");
            let mut daemon = Daemon::start(&name, &programs.vswitchd, &["--config", config], log)?;
            let api = run.join("api.sock");
            daemon.wait_until("API", START_TIMEOUT, stop, || UnixStream::connect(&api).is_ok())?;
            switches.hosts.push(Host { daemon, run });
        }
        for (number, port) in ports.iter().enumerate() {
            let name = format!("p{number}");
            switches.vswctl(port.host, &["port", "attach", &name], stop)?;
            let socket = switches.hosts[port.host].run.join("ports").join(format!("{name}.sock"));
            switches.hosts[port.host].daemon.wait_until("socket", START_TIMEOUT, stop, || socket.exists())?;
            switches.ports.push(socket);
        }
        Ok(switches)
    }

    /// The ports' sockets.
    pub(super) fn sockets(&self) -> Vec<&Path> {
        self.ports.iter().map(PathBuf::as_path).collect()
    }

    /// For `/proc`.
    pub(super) fn watched(&self) -> Vec<Watched> {
        self.hosts.iter().map(|host| host.daemon.watched()).collect()
    }

    /// What a daemon wrote last.
    pub(super) fn log_tails(&self) -> String {
        self.hosts.iter().map(|host| host.daemon.log_tail()).collect::<Vec<_>>().join("\n--\n")
    }

    fn vswctl(&self, host: usize, args: &[&str], stop: &Stop) -> anyhow::Result<String> {
        let mut command = Command::new(&self.vswctl);
        command.arg("--socket").arg(self.hosts[host].run.join("api.sock")).args(args);
        process::output(&mut command, COMMAND_TIMEOUT, stop)
    }
}

fn loopback(host: usize) -> String {
    format!("127.0.0.{}", host + 1)
}

/// Two ports that are free on loopback now.
fn udp_ports() -> anyhow::Result<[u16; 2]> {
    let free = || -> anyhow::Result<(TcpListener, u16)> {
        let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
        let port = listener.local_addr()?.port();
        Ok((listener, port))
    };
    let (first, second) = (free()?, free()?);
    Ok([first.1, second.1])
}

fn settings(
    number: usize,
    base: &Path,
    run: &Path,
    connections: u8,
    udp: [u16; 2],
) -> anyhow::Result<String> {
    // A JSON string is a TOML basic string.
    let quoted = |path: &Path| -> anyhow::Result<String> {
        Ok(serde_json::to_string(path.to_str().context("a path that is not UTF-8")?)?)
    };
    Ok(format!(
        "[host]\nalone = true\nname = \"h{number}\"\nstate_dir = {}\nrun_dir = {}\nidentity_dir = {}\ngroup = \"root\"\n\
         tunnel_addresses = [\"{}\"]\ncontrol_port = {}\ndata_port = {}\nconnections = {connections}\n",
        quoted(&base.join("state"))?,
        quoted(run)?,
        quoted(&base.join("identity"))?,
        loopback(number),
        udp[0],
        udp[1],
    ))
}

fn network(ports: &[PortAt]) -> anyhow::Result<String> {
    let mut text = format!(
        "[[switch]]\nname = \"s0\"\nmtu = {MTU}\n[[portgroup]]\nname = \"bench\"\nswitch = \"s0\"\nvni = 5001\n"
    );
    for (number, port) in ports.iter().enumerate() {
        write!(text, "[[port]]\nname = \"p{number}\"\ngroup = \"bench\"\nmac = \"{}\"\n", port.mac)?;
    }
    Ok(text)
}

/// One CA, and a certificate for each host: below `directory`, in `h0/identity` and so on.
pub(crate) fn identities(directory: &Path, hosts: &[HostId]) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("reading the clock")?;
    let now = UnixTime::since_unix_epoch(now);
    let ca = ClusterCa::create(ClusterId::from_bytes([7; 16]), now, CA_LIFETIME)?;
    for (number, host) in hosts.iter().enumerate() {
        let key = HostKey::generate(*host)?;
        let cert = ca.issue(&key.signing_request()?, *host, now, HOST_CERT_LIFETIME)?;
        let base = directory.join(format!("h{number}"));
        fs::create_dir_all(&base).with_context(|| format!("making {}", base.display()))?;
        IdentityDir::new(base.join("identity")).store_member(&ca, &cert, &key, now)?;
    }
    Ok(())
}
