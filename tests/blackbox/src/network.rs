//! Switches in the laboratory: `vswitchd` on each host, TAP interfaces as machines, and traffic that knows how long it was
//! interrupted.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use crate::host::Host;
use crate::lab::Lab;
use crate::process::run;
use crate::wait::eventually;

/// How long switches may take until they know each other and a configuration.
pub const SWITCH_MAX: Duration = Duration::from_secs(40);
const PROBE_EVERY: Duration = Duration::from_millis(5);
const ECHO_PORT: u16 = 7777;

/// Writes each host's configuration: a tunnel address on each uplink, the network from the cluster directory.
pub fn configure(lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        let addresses: Vec<String> =
            (1..=lab.uplinks()).map(|uplink| format!("\"{}\"", host.uplink_address(uplink))).collect();
        let tunnels = format!("tunnel_addresses = [{}]\n", addresses.join(", "));
        std::fs::write(host.vswitchd().config(), settings(host) + &tunnels)?;
    }
    Ok(())
}

/// Starts the switch of a host without a cluster, with this network (the tables of its configuration beside `[host]`).
pub fn start_alone(host: &Host, network: &str) -> Result<()> {
    std::fs::write(host.vswitchd().config(), settings(host) + "alone = true\n" + network)?;
    host.vswitchd().start()
}

fn settings(host: &Host) -> String {
    format!(
        "[host]\nname = \"{}\"\nstate_dir = \"{}\"\nrun_dir = \"{}\"\nidentity_dir = \"{}\"\nvsand_socket = \"{}\"\n\
         group = \"root\"\n",
        host.name(),
        host.switch_state_dir().display(),
        host.switch_run_dir().display(),
        host.state_dir().join("identity").display(),
        host.socket().display(),
    )
}

/// Attaches a port to a socket on which the switch listens, and says which.
pub fn attach_socket(host: &Host, port: &str) -> Result<PathBuf> {
    host.vswitchd().ctl_ok(&["port", "attach", port])?;
    Ok(host.switch_run_dir().join("ports").join(format!("{port}.sock")))
}

/// Starts all switches and waits until each reaches all others.
pub fn start(lab: &Lab) -> Result<()> {
    configure(lab)?;
    for host in lab.hosts() {
        host.vswitchd().start()?;
    }
    wait_connected(lab)
}

/// Waits until each switch reaches all others.
pub fn wait_connected(lab: &Lab) -> Result<()> {
    eventually("all switches reach each other", SWITCH_MAX, || {
        for host in lab.hosts() {
            let status: Value = host.vswitchd().ctl(&["status"])?;
            let tunnels = status["tunnels"].as_array().context("no tunnels")?;
            let all = tunnels.iter().filter_map(|tunnel| tunnel["paths"].as_array()).flatten();
            let alive = all.clone().filter(|path| path["alive"] == true).count();
            // Each uplink of a host reaches each of the other's.
            let wanted = (lab.hosts().len() - 1) * usize::from(lab.uplinks()).pow(2);
            ensure!(alive == wanted && all.count() == wanted, "{}: {alive} paths: {status}", host.name());
        }
        Ok(())
    })
}

/// A TAP interface of a host as a machine: it has an address, and the host's own programs use it.
#[derive(Clone, Debug)]
pub struct Tap<'a> {
    /// Where it is.
    pub host: &'a Host,
    /// Its name, and that of its port.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
}

impl<'a> Tap<'a> {
    /// Makes a persistent interface with this address, which outlives the switch's restarts, and attaches the port of the
    /// same name to it.
    pub fn attach(host: &'a Host, name: &str, mac: &str, ip: Ipv4Addr) -> Result<Self> {
        let within = ["-n", host.namespace()];
        let ip_command = |args: &[&str]| run("ip", &[&within[..], args].concat()).map(drop);
        ip_command(&["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"])?;
        ip_command(&["link", "set", name, "address", mac])?;
        ip_command(&["addr", "add", &format!("{ip}/24"), "dev", name])?;
        let tap = Self { host, name: name.to_owned(), ip };
        tap.plug()?;
        ip_command(&["link", "set", name, "up"])?;
        Ok(tap)
    }

    /// Attaches the port again.
    pub fn plug(&self) -> Result<()> {
        self.host.vswitchd().ctl_ok(&["port", "attach", &self.name, "--to", "tap", "--interface", &self.name])
    }

    /// Takes the interface away, and with it the machine.
    pub fn remove(self) -> Result<()> {
        self.host.vswitchd().ctl_ok(&["port", "detach", &self.name])?;
        run("ip", &["-n", self.host.namespace(), "link", "del", &self.name]).map(drop)
    }
}

/// Answers whatever comes, on one address of a host, until it is dropped.
#[derive(Debug)]
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// Begins.
    pub fn start(tap: &Tap<'_>) -> Result<Self> {
        let address = SocketAddr::from((tap.ip, ECHO_PORT));
        let socket = tap.host.within(|| UdpSocket::bind(address).context("binding the echo's socket"))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut bytes = [0; 2048];
            while !over.load(Ordering::Relaxed) {
                if let Ok((count, from)) = socket.recv_from(&mut bytes) {
                    // What can't be sent is lost, as on any network.
                    let _lost = socket.send_to(&bytes[..count], from);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ended = thread.join();
        }
    }
}

/// What a [`Probe`] saw.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Packets that were sent.
    pub sent: u32,
    /// Packets that came back.
    pub answered: u32,
    /// The longest time without an answer, between the first and the last one, or until the end.
    pub silence: Duration,
}

/// Small packets between two machines, two hundred a second, each of which comes back.
#[derive(Debug)]
pub struct Probe {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Probe {
    /// Begins, from one machine to another where an [`Echo`] answers; once the first answer is there.
    pub fn start(from: &Tap<'_>, to: Ipv4Addr) -> Result<Self> {
        let local = SocketAddr::from((from.ip, 0));
        let socket = from.host.within(|| {
            let socket = UdpSocket::bind(local).context("binding the probe's socket")?;
            socket.connect((to, ECHO_PORT))?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(PROBE_EVERY))?;
        eventually(&format!("{to} answers {}", from.name), SWITCH_MAX, || {
            socket.send(&[0])?;
            socket.recv(&mut [0; 64]).map(drop).context("no answer")
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&stop);
        let thread = std::thread::spawn(move || Ok(Self::probe(&socket, &over)));
        Ok(Self { stop, thread })
    }

    fn probe(socket: &UdpSocket, over: &AtomicBool) -> Seen {
        let mut seen = Seen { sent: 0, answered: 0, silence: Duration::ZERO };
        let (mut last, mut next) = (Instant::now(), Instant::now());
        while !over.load(Ordering::Relaxed) {
            if Instant::now() >= next {
                next += PROBE_EVERY;
                // A host without a way there says so at once; the packet is as good as lost.
                if socket.send(&seen.sent.to_be_bytes()).is_ok() {
                    seen.sent += 1;
                }
            }
            if socket.recv(&mut [0; 64]).is_ok() {
                seen.answered += 1;
                seen.silence = seen.silence.max(last.elapsed());
                last = Instant::now();
            }
        }
        seen.silence = seen.silence.max(last.elapsed());
        seen
    }

    /// Ends.
    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the probe panicked"))?
    }
}

/// Whether one packet from a machine to an address is answered within a second.
pub fn answers(from: &Tap<'_>, to: Ipv4Addr) -> Result<bool> {
    let local = SocketAddr::from((from.ip, 0));
    from.host.within(|| {
        let socket = UdpSocket::bind(local)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        socket.connect((to, ECHO_PORT))?;
        Ok(socket.send(&[1]).is_ok() && socket.recv(&mut [0; 64]).is_ok())
    })
}
