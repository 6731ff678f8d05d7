//! A worker for tests, with guests: `ferro_vhost`'s front ends.

#![allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, NetName, Sequence};
use ferro_vhost::frontend::{NetClient, NetClientOptions, NetDestination};
use ferro_vhost::net::{QueuePair, VirtioNetHdr, gso_type, header_flag};
use tokio::sync::mpsc::Receiver;
use vswitch_core::bugs::Bugs;
use vswitch_core::config::{Config, validate};
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Cause, Settings};
use vswitchd::data::port::{AttachRefused, Command, DataHandle, Event};
use vswitchd::data::snapshot::{PortLink, PortView, Snapshot};
use vswitchd::data::{Spin, start};
use vswitchd::ports::vhost::{VhostSettings, VhostSocket};
use vswitchd::ports::{PortDevice, VhostPort};
use vswitchd::tunnel::data::Tunnels;

pub const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing is to be done to the frame.
pub const PLAIN: VirtioNetHdr = VirtioNetHdr {
    flags: 0,
    gso_type: 0,
    hdr_len: 0,
    gso_size: 0,
    csum_start: 0,
    csum_offset: 0,
    num_buffers: 0,
};
pub const PAIR: QueuePair = QueuePair(0);

pub fn name(text: &str) -> NetName {
    text.parse().unwrap()
}

/// The address of port `p{n}`.
pub fn mac(n: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, n])
}

pub fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

/// Ports p1, p2, ... of these groups on one switch.
pub fn config(groups: &str, ports: &[&str]) -> Config {
    let mut text = format!("[[switch]]\nname = 'sw'\nmtu = 9000\nuplinks = ['up0']\n{groups}");
    for (n, group) in (1..).zip(ports) {
        let mac = mac(n);
        for part in [
            "\n[[port]]\nname = 'p",
            &n.to_string(),
            "'\ngroup = '",
            group,
            "'\nmac = '",
            &mac.to_string(),
            "'\n",
        ] {
            text.push_str(part);
        }
    }
    validate(&toml::from_str(&text).expect("it can be read")).expect("it is right")
}

pub const LAN: &str = "[[portgroup]]\nname = 'lan'\nswitch = 'sw'\nvlan = { access = 20 }\nmtu = 9000\n";

pub struct Rig {
    pub data: DataHandle,
    pub events: Receiver<Event>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    dir: tempfile::TempDir,
    mtu: u16,
}

impl Rig {
    pub fn new(config: Config) -> Self {
        Self::with_tunnels(1, config, None)
    }

    pub fn with_tunnels(n: u8, config: Config, tunnels: Option<Tunnels>) -> Self {
        let settings = Settings {
            host: host(n),
            hash: HashKey(3, 5),
            sequence: Sequence(u64::from(n)),
            bugs: Bugs::NONE,
        };
        let worker = start(settings, Spin::default(), tunnels).unwrap();
        let rig = Self {
            data: worker.handle,
            events: worker.events,
            thread: Some(worker.thread),
            dir: tempfile::tempdir().unwrap(),
            mtu: 9000,
        };
        rig.configure(config);
        rig
    }

    pub fn configure(&self, config: Config) {
        self.data.ask_blocking(|done| Command::Configure(Box::new(config), done)).unwrap();
    }

    pub fn path(&self, n: u8) -> PathBuf {
        self.dir.path().join(format!("p{n}.sock"))
    }

    /// Opens port `p{n}`'s socket and plugs it in.
    pub fn plug(&self, n: u8, pairs: u16) {
        self.try_plug(n, pairs, &format!("p{n}.sock")).unwrap();
    }

    pub fn try_plug(&self, n: u8, pairs: u16, file: &str) -> Result<(), AttachRefused> {
        let port = name(&format!("p{n}"));
        let mut settings =
            VhostSettings::new(VhostSocket::Listen(self.dir.path().join(file)), mac(n), self.mtu);
        settings.pairs = pairs;
        let device = PortDevice::Vhost(Box::new(VhostPort::open(&port, &settings).unwrap()));
        self.data.ask_blocking(|answer| Command::Attach { name: port, device, answer }).unwrap()
    }

    pub fn unplug(&self, n: u8) -> bool {
        let name = name(&format!("p{n}"));
        self.data.ask_blocking(|answer| Command::Detach { name, answer }).unwrap()
    }

    /// A guest behind port `p{n}`, running.
    pub fn guest(&self, n: u8, options: NetClientOptions) -> NetClient {
        self.plug(n, options.pairs);
        self.connect(n, options)
    }

    pub fn connect(&self, n: u8, options: NetClientOptions) -> NetClient {
        let pairs = usize::from(options.pairs);
        let client = NetClient::new(NetDestination::Connect(self.path(n)), options).unwrap();
        eventually("the guest runs", || {
            let port = self.port(n);
            port.link == PortLink::Running && port.pairs == pairs
        });
        client
    }

    pub fn snapshot(&self) -> Box<Snapshot> {
        self.data.ask_blocking(Command::Snapshot).unwrap()
    }

    pub fn port(&self, n: u8) -> PortView {
        let name = name(&format!("p{n}"));
        self.snapshot().ports.into_iter().find(|port| port.name == name).unwrap()
    }

    pub fn dropped(&self, n: u8, cause: Cause) -> u64 {
        self.port(n).counters.of(cause)
    }

    /// The next event that this is true of; others are passed over.
    pub fn event(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.events.try_recv() {
                Ok(event) if wanted(&event) => return event,
                Ok(_) => {}
                Err(_) => {
                    assert!(Instant::now() < deadline, "no event in time: {what}");
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let stopped = self.data.ask_blocking(Command::Stop);
        let ended = self.thread.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            stopped.unwrap();
            ended.unwrap().unwrap().unwrap();
        }
    }
}

/// Waits for something that another thread does.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A frame of no known protocol.
pub fn frame(dst: Mac, src: Mac, len: usize, seed: usize) -> Vec<u8> {
    let mut bytes = [dst.0, src.0].concat();
    bytes.extend([0x88, 0xb6]);
    bytes.extend((bytes.len()..len).map(|at| (seed.wrapping_mul(31).wrapping_add(at * 7) >> 2) as u8));
    bytes
}

pub fn send(client: &mut NetClient, header: VirtioNetHdr, frame: &[u8]) {
    assert!(client.send(PAIR, header, frame).unwrap(), "the ring has room");
}

pub fn receive(client: &mut NetClient) -> (VirtioNetHdr, Vec<u8>) {
    let mut bytes = Vec::new();
    let header = client.recv(PAIR, &mut bytes, PATIENCE).unwrap();
    (header, bytes)
}

/// TCP over IPv4 between ports 1 and 2, of 1,000-byte segments.
pub fn super_frame(payload: usize) -> (VirtioNetHdr, Vec<u8>) {
    let mut bytes = [mac(2).0, mac(1).0].concat();
    bytes.extend([8, 0, 0x45, 0]);
    bytes.extend(((40 + payload) as u16).to_be_bytes());
    bytes.extend([0x12, 0x34, 0x40, 0, 64, 6]);
    let head: Vec<u8> = [&bytes[14..24], &[0, 0, 10, 0, 0, 1, 10, 0, 0, 2]].concat();
    bytes.extend((!sum(&head, 0)).to_be_bytes());
    bytes.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x04, 0xd2, 0, 80, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 1, 0]);
    bytes.extend(sum(&[10, 0, 0, 1, 10, 0, 0, 2], 20 + payload as u32 + 6).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend((0..payload).map(|n| (n * 7 + n / 256) as u8));
    let header = VirtioNetHdr {
        flags: header_flag::NEEDS_CSUM,
        gso_type: gso_type::TCPV4,
        hdr_len: 54,
        gso_size: 1000,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };
    (header, bytes)
}

/// The sum of RFC 1071.
pub fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
