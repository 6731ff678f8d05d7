//! One host's switch as a bridge with ports of which each takes and gives frames: ours, and Open vSwitch, so that both can be
//! given the same.
//!
//! ```text
//!            ┌─ Ours: vswitchd, each port a vhost-user socket ─┐
//!   send ──► │                                                 │ ──► received
//!            └─ Theirs: ovs-vswitchd, each port a TAP ─────────┘
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferro_protocol::api::switch::{LinkState, PortInfo};
use ferro_protocol::net::Mac;
use ferro_vhost::frontend::{NetClient, NetClientOptions, NetDestination};
use ferro_vhost::net::{QueuePair, VirtioNetHdr, feature};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::host::Host;
use crate::lab::Lab;
use crate::network;
use crate::process::{Process, command};
use crate::wait::eventually;

const START_MAX: Duration = Duration::from_secs(20);
/// Larger than any frame of a bridge here.
const FRAME_BYTES_MAX: usize = 16_384;
const PAIR: QueuePair = QueuePair(0);
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// A port's VLANs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortVlan {
    /// Untagged frames only, which are in no VLAN.
    None,
    /// Untagged frames only, which are in this one.
    Access(u16),
    /// Tagged frames of these, and untagged ones in the native VLAN, if there is one.
    Trunk {
        /// First and last of each range.
        ranges: &'static [(u16, u16)],
        /// The native VLAN.
        native: Option<u16>,
    },
    /// Everything.
    Guest,
}

impl PortVlan {
    /// Whether the port is in a VLAN; 0 is none.
    pub fn carries(self, vid: u16) -> bool {
        match self {
            Self::None => vid == 0,
            Self::Access(own) => vid == own,
            Self::Trunk { ranges, native } => {
                native == Some(vid) || ranges.iter().any(|(first, last)| (*first..=*last).contains(&vid))
            }
            Self::Guest => true,
        }
    }

    /// The VLAN of an untagged frame.
    pub fn native(self) -> Option<u16> {
        match self {
            Self::None | Self::Guest => Some(0),
            Self::Access(own) => Some(own),
            Self::Trunk { native, .. } => native,
        }
    }

    /// As our configuration has it.
    fn toml(self) -> String {
        match self {
            Self::None => "\"none\"".to_owned(),
            Self::Access(vlan) => format!("{{ access = {vlan} }}"),
            Self::Trunk { ranges, native } => {
                let ranges: Vec<String> =
                    ranges.iter().map(|(first, last)| format!("[{first}, {last}]")).collect();
                let native = native.map_or(String::new(), |vlan| format!(", native = {vlan}"));
                format!("{{ trunk = {{ ranges = [{}]{native} }} }}", ranges.join(", "))
            }
            Self::Guest => "\"guest\"".to_owned(),
        }
    }

    /// As columns of Open vSwitch's table of ports.
    fn columns(self) -> Vec<String> {
        match self {
            Self::None => vec!["vlan_mode=trunk".to_owned(), "trunks=0".to_owned()],
            Self::Access(vlan) => vec!["vlan_mode=access".to_owned(), format!("tag={vlan}")],
            Self::Trunk { ranges, native } => {
                let all: Vec<String> =
                    ranges.iter().flat_map(|(a, b)| *a..=*b).map(|it| it.to_string()).collect();
                let mut columns = vec![format!("trunks={}", all.join(","))];
                match native {
                    Some(vlan) => {
                        columns.extend(["vlan_mode=native-untagged".to_owned(), format!("tag={vlan}")])
                    }
                    None => columns.push("vlan_mode=trunk".to_owned()),
                }
                columns
            }
            Self::Guest => vec!["vlan_mode=trunk".to_owned()],
        }
    }
}

/// A port.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// Its name.
    pub name: &'static str,
    /// Its VLANs.
    pub vlan: PortVlan,
}

impl Port {
    /// The address of the network card of the port at this place.
    pub const fn mac(at: usize) -> Mac {
        Mac([0x02, 0xaa, 0, 0, 0, at as u8])
    }
}

/// A bridge that is given frames and gives frames.
pub trait Bridge {
    /// A frame into a port, by its place.
    fn send(&mut self, port: usize, frame: &[u8]) -> Result<()>;

    /// All frames that have come out since, each with the place of its port.
    fn received(&mut self) -> Result<Vec<(usize, Vec<u8>)>>;
}

// ---- ours ----

/// Our switch, alone on its host.
pub struct Ours {
    clients: Vec<NetClient>,
}

impl Ours {
    /// Starts it with these ports, which may use any address and learn those behind them.
    pub fn start(host: &Host, ports: &[Port], mtu: u16) -> Result<Self> {
        let mut text = format!("[[switch]]\nname = \"s0\"\nmtu = {mtu}\n");
        for (at, port) in ports.iter().enumerate() {
            let (name, vlan, mac) = (port.name, port.vlan.toml(), Port::mac(at));
            let group = format!(
                "[[portgroup]]\nname = \"{name}\"\nswitch = \"s0\"\nvlan = {vlan}\nlearning = {{ limit = 1024 }}\n\
                 flood_neighbours = true\nsecurity = {{ forged_transmits = true, mac_change = true }}\n\
                 [[port]]\nname = \"{name}\"\ngroup = \"{name}\"\nmac = \"{mac}\"\n"
            );
            text.push_str(&group);
        }
        network::start_alone(host, &text)?;
        let mut clients = Vec::new();
        for port in ports {
            let socket = network::attach_socket(host, port.name)?;
            // Frames as they are on a wire: nothing is left to be done to them.
            let options = NetClientOptions {
                features: feature::MRG_RXBUF,
                frame_bytes_max: FRAME_BYTES_MAX,
                ..NetClientOptions::default()
            };
            clients.push(NetClient::new(NetDestination::Connect(socket), options)?);
        }
        eventually("all ports are up", START_MAX, || {
            for port in ports {
                let info: PortInfo = host.vswitchd().ctl(&["port", "show", port.name])?;
                ensure!(info.link == Some(LinkState::Up), "{info:?}");
            }
            Ok(())
        })?;
        Ok(Self { clients })
    }
}

impl Bridge for Ours {
    fn send(&mut self, port: usize, frame: &[u8]) -> Result<()> {
        let sent = self.clients[port].send(PAIR, VirtioNetHdr::default(), frame)?;
        ensure!(sent, "the ring of port {port} is full");
        Ok(())
    }

    fn received(&mut self) -> Result<Vec<(usize, Vec<u8>)>> {
        let mut all = Vec::new();
        for (port, client) in self.clients.iter_mut().enumerate() {
            let mut frame = Vec::new();
            while let Some(header) = client.try_recv(PAIR, &mut frame)? {
                ensure!(header.flags == 0 && header.gso_type == 0, "port {port} got {header:?}");
                all.push((port, std::mem::take(&mut frame)));
            }
        }
        Ok(all)
    }
}

// ---- theirs ----

/// Open vSwitch with its userspace datapath, in the host's network namespace and a directory of its own, beside whatever
/// Open vSwitch the machine may run.
pub struct Theirs {
    // Dropped in this order.
    _vswitchd: Process,
    _database: Process,
    taps: Vec<SyncDevice>,
    run: PathBuf,
    buffer: Vec<u8>,
}

impl Theirs {
    /// Starts it with these ports.
    pub fn start(lab: &Lab, host: &Host, ports: &[Port], mtu: u16) -> Result<Self> {
        ensure!(Path::new(SCHEMA).is_file(), "{SCHEMA} is missing: apt install openvswitch-switch");
        let run = lab.dir().join("ovs");
        std::fs::create_dir_all(&run)?;
        let at = |name: &str| run.join(name).display().to_string();
        let taps = ports.iter().map(|port| tap(host, port.name, mtu)).collect::<Result<Vec<_>>>()?;
        tool(&run, "ovsdb-tool", &["create", &at("conf.db"), SCHEMA])?;
        let daemon = |program: &str, arguments: &[&str]| {
            let mut command = command(Some(host.namespace()), Path::new(program));
            command.args(arguments).env("OVS_RUNDIR", &run).env("OVS_LOGDIR", &run);
            Process::start(command, &lab.log(program))
        };
        let (database_socket, control) = (at("db.sock"), format!("--unixctl={}", at("db.ctl")));
        let remote = format!("--remote=punix:{database_socket}");
        let database = daemon("ovsdb-server", &[&at("conf.db"), &remote, &control])?;
        eventually("Open vSwitch's database listens", START_MAX, || {
            ensure!(Path::new(&database_socket).exists(), "no socket");
            Ok(())
        })?;
        let database_at = format!("--db=unix:{database_socket}");
        tool(&run, "ovs-vsctl", &[&database_at, "--no-wait", "init"])?;
        let control = format!("--unixctl={}", at("vswitchd.ctl"));
        let vswitchd = daemon("ovs-vswitchd", &[&format!("unix:{database_socket}"), &control])?;
        let mut arguments: Vec<String> = [
            &database_at,
            "--timeout=20",
            "add-br",
            "br0",
            "--",
            "set",
            "bridge",
            "br0",
            "datapath_type=netdev",
        ]
        .map(str::to_owned)
        .to_vec();
        for port in ports {
            arguments.extend(["--", "add-port", "br0", port.name].map(str::to_owned));
            arguments.extend(port.vlan.columns());
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        tool(&run, "ovs-vsctl", &arguments)?;
        Ok(Self { _vswitchd: vswitchd, _database: database, taps, run, buffer: vec![0; FRAME_BYTES_MAX] })
    }

    /// What it has decided for flows is forgotten; what it has learned is not. It follows a change of what is known only by and
    /// by, where we do so at once.
    pub fn decide_anew(&self) -> Result<()> {
        let control = self.run.join("vswitchd.ctl").display().to_string();
        tool(&self.run, "ovs-appctl", &["-t", &control, "revalidator/purge"])
    }
}

impl Bridge for Theirs {
    fn send(&mut self, port: usize, frame: &[u8]) -> Result<()> {
        let sent = self.taps[port].send(frame).with_context(|| format!("port {port}"))?;
        ensure!(sent == frame.len(), "only {sent} bytes of a frame into port {port}");
        Ok(())
    }

    fn received(&mut self) -> Result<Vec<(usize, Vec<u8>)>> {
        let mut all = Vec::new();
        for (port, tap) in self.taps.iter().enumerate() {
            loop {
                match tap.recv(&mut self.buffer) {
                    Ok(bytes) => all.push((port, self.buffer[..bytes].to_vec())),
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).with_context(|| format!("port {port}")),
                }
            }
        }
        Ok(all)
    }
}

/// The wire of a TAP interface: the switch has the interface.
fn tap(host: &Host, name: &str, mtu: u16) -> Result<SyncDevice> {
    host.within(|| {
        // Nothing is heard there but what was sent.
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
        let tap = DeviceBuilder::new().name(name).layer(Layer::L2).mtu(mtu).build_sync()?;
        tap.set_nonblocking(true)?;
        Ok(tap)
    })
    .with_context(|| format!("TAP interface {name}"))
}

fn tool(run: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).env("OVS_RUNDIR", run).env("OVS_LOGDIR", run);
    let output =
        command.output().with_context(|| format!("can't run {program}: apt install openvswitch-switch"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        bail!("{program} {}: {}: {}", arguments.join(" "), output.status, said.trim());
    }
    Ok(())
}
