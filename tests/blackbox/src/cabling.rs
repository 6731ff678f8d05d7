//! The physical network behind a host's uplinks: a switch for each cable, and one that they all lead to, with somebody to talk to.
//!
//! ```text
//!            cut ─┐      ┌─ cut behind
//!   host: eth1 ───┴─ a1 ─┴─┐
//!         eth2 ───── a2 ───┼─ core ─── far0 of another host of the laboratory
//!         eth3 ───── a3 ───┘
//! ```
//!
//! Machines are TAPs of the host, each in a subnet of its own, so that the host's kernel sends what is one's by its TAP.
//! All of them are bridges of the kernel without a spanning tree, in the namespace between the hosts.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, RawProtocol, RecvFlags, SocketFlags, SocketType, socket_with};

use crate::host::Host;
use crate::lab::Lab;
use crate::network::Tap;
use crate::process::run;

/// What notifies switches (RFC 903).
const RARP: u16 = 0x8035;

/// A host's cables.
#[derive(Debug)]
pub struct Cabling<'a> {
    between: String,
    far: &'a Host,
}

impl<'a> Cabling<'a> {
    /// Connects interfaces `eth1` and so on of a host with `far0` of another one.
    pub fn new(lab: &'a Lab, host: &Host, uplinks: u8, far: &'a Host) -> Result<Self> {
        let it = Self { between: lab.between(), far };
        // An address is known at its own interface only.
        let quiet = ["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"];
        run("ip", &[&["netns", "exec", host.namespace()][..], &quiet].concat())?;
        it.ip(&["link", "add", "core", "type", "bridge"])?;
        it.ip(&["link", "set", "core", "up"])?;
        for n in 1..=uplinks {
            let (bridge, port, up, down) = Self::names(n);
            it.ip(&["link", "add", &bridge, "type", "bridge"])?;
            it.ip(&["link", "set", &bridge, "up"])?;
            it.ip(&["link", "add", &up, "type", "veth", "peer", "name", &down])?;
            it.ip(&["link", "set", &up, "master", &bridge, "up"])?;
            it.ip(&["link", "set", &down, "master", "core", "up"])?;
            let eth = format!("eth{n}");
            let peer = ["type", "veth", "peer", "name", &eth, "netns", host.namespace()];
            it.ip(&[&["link", "add", &port][..], &peer].concat())?;
            it.ip(&["link", "set", &port, "master", &bridge, "up"])?;
            run("ip", &["-n", host.namespace(), "link", "set", &eth, "up"])?;
        }
        let peer = ["type", "veth", "peer", "name", "far0", "netns", far.namespace()];
        it.ip(&[&["link", "add", "far"][..], &peer].concat())?;
        it.ip(&["link", "set", "far", "master", "core", "up"])?;
        run("ip", &["-n", far.namespace(), "link", "set", "far0", "up"])?;
        Ok(it)
    }

    fn ip(&self, arguments: &[&str]) -> Result<()> {
        run("ip", &[&["-n", &self.between], arguments].concat()).map(drop)
    }

    /// Its switch, that one's port to the host, and both ends of the cable to the core.
    fn names(n: u8) -> (String, String, String, String) {
        let names = ["a", "h", "up", "down"].map(|name| format!("{name}{n}"));
        let [bridge, port, up, down] = names;
        (bridge, port, up, down)
    }

    /// Gives the one on the other side one more address, as a machine of its own.
    pub fn far(&self, ip: Ipv4Addr) -> Result<Tap<'a>> {
        let address = format!("{ip}/24");
        run("ip", &["-n", self.far.namespace(), "addr", "add", &address, "dev", "far0"])?;
        Ok(Tap { host: self.far, name: "far0".to_owned(), ip })
    }

    /// A cable between host and switch is pulled out, or put back.
    pub fn plug(&self, n: u8, plugged: bool) -> Result<()> {
        self.ip(&["link", "set", &Self::names(n).1, if plugged { "up" } else { "down" }])
    }

    /// The same for the cable between the switch and the core: the host's link stays up.
    pub fn plug_behind(&self, n: u8, plugged: bool) -> Result<()> {
        self.ip(&["link", "set", &Self::names(n).3, if plugged { "up" } else { "down" }])
    }

    /// Who tells switches where they are, as the far side hears it while `work` is done and until all of these were heard.
    pub fn notified(&self, wanted: &[[u8; 6]], work: impl FnOnce() -> Result<()>) -> Result<()> {
        let socket = self.far.within(|| {
            let protocol = RawProtocol::new(u32::from(RARP.to_be())).context("a protocol")?;
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let protocol = Some(rustix::net::Protocol::from_raw(protocol));
            Ok(socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)?)
        })?;
        work()?;
        let (mut missing, began) = (wanted.to_vec(), Instant::now());
        while !missing.is_empty() {
            ensure!(began.elapsed() < Duration::from_secs(5), "not told where they are: {missing:02x?}");
            let mut frame = [0; 256];
            match rustix::net::recv(&socket, &mut frame[..], RecvFlags::empty()) {
                Ok((_, bytes)) if bytes >= 14 => missing.retain(|mac| frame[6..12] != *mac),
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        Ok(())
    }
}
