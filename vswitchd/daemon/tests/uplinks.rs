//! Uplinks and TAPs, with the kernel on the other side. Each test runs this program again in a network namespace of its own,
//! which is gone when that process is: nothing touches the machine's network, and nothing is left behind. They need root.

mod rig;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command as Process, Stdio};
use std::time::Duration;

use ferro_vhost::frontend::{NetClient, NetClientOptions};
use ferro_vhost::net::VirtioNetHdr;
use rig::{LAN, PATIENCE, PLAIN, Rig, config, eventually, frame, mac, name, receive, send, super_frame};
use vswitchd::data::port::{Command, Event};
use vswitchd::data::snapshot::PortLink;
use vswitchd::ports::{OpenError, PortDevice, TapPort, TapRefused, UplinkDevice};

/// Without a VLAN: not every kernel has interfaces for them.
const PLAIN_LAN: &str = "[[portgroup]]\nname = 'lan'\nswitch = 'sw'\nmtu = 1500\n";
const ECHO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 7);

/// Runs one of the ignored tests below in a new network namespace.
fn in_a_namespace(test: &str) {
    let program = std::env::current_exe().unwrap();
    let run = Process::new("unshare")
        .args(["--net", "--mount"])
        .arg(program)
        .args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .expect("unshare runs");
    let text = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn an_uplink_carries_frames_tags_and_super_frames() {
    in_a_namespace("inner_uplink");
}

#[test]
fn the_kernel_talks_through_tap_and_uplink() {
    in_a_namespace("inner_kernel");
}

#[test]
fn a_link_that_goes_is_noticed() {
    in_a_namespace("inner_link");
}

#[test]
fn a_tap_outlives_a_restart_and_goes_with_its_port() {
    in_a_namespace("inner_tap");
}

/// Makes sure that this is not the machine's own network: a new namespace has nothing but a loopback that is down.
fn ip(arguments: &str) {
    let run = Process::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    assert!(run.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&run.stderr));
}

fn add_uplink(rig: &Rig, interface: &str) {
    let device = UplinkDevice::open(interface).unwrap();
    rig.data.ask_blocking(|answer| Command::AddUplink { name: name("up0"), device, answer }).unwrap();
}

fn up(rig: &Rig) -> bool {
    rig.snapshot().uplinks[0].up
}

fn veth() {
    ip("link add up0 type veth peer name far0");
    for interface in ["up0", "far0"] {
        ip(&format!("link set {interface} mtu 9000 up"));
    }
}

/// The next frame that no switch made: where ports are is told when they come (RARP).
fn receive_sent(client: &mut NetClient) -> (VirtioNetHdr, Vec<u8>) {
    loop {
        let (header, bytes) = receive(client);
        if bytes[12..14] != [0x80, 0x35] {
            return (header, bytes);
        }
    }
}

#[test]
#[ignore = "runs in a namespace: see an_uplink_carries_frames_tags_and_super_frames"]
fn inner_uplink() {
    veth();
    let here = Rig::new(config(LAN, &["lan"]));
    // Its first port is the other one's second: two hosts on one wire.
    let there = Rig::new(config(LAN, &["lan", "lan"]));
    add_uplink(&here, "up0");
    add_uplink(&there, "far0");
    eventually("both are up", || up(&here) && up(&there));
    let options = NetClientOptions { queue_size: 128, ..NetClientOptions::default() };
    let (mut one, mut two) = (here.guest(1, options.clone()), there.guest(2, options));
    for (round, len) in [60, 61, 1514, 5000, 9014].into_iter().enumerate() {
        let mine = frame(mac(2), mac(1), len, round);
        send(&mut one, PLAIN, &mine);
        assert_eq!(receive_sent(&mut two).1, mine);
        let mine = frame(mac(1), mac(2), len, round);
        send(&mut two, PLAIN, &mine);
        assert_eq!(receive_sent(&mut one).1, mine);
    }
    for payload in [1001, 8000, 60_000, 65_000] {
        let (header, bytes) = super_frame(payload);
        send(&mut one, header, &bytes);
        let (got, arrived) = receive_sent(&mut two);
        assert_eq!(arrived, bytes, "whole, through both sockets and their tags");
        assert_eq!((got.flags, got.gso_type, got.gso_size), (header.flags, header.gso_type, header.gso_size));
        assert_eq!((got.csum_start, got.csum_offset, got.hdr_len), (34, 16, 54));
    }
    let (here, there) = (here.snapshot(), there.snapshot());
    assert_eq!((here.ports[0].counters.from.frames, there.ports[0].counters.from.frames), (9, 5));
    assert_eq!(there.uplinks[0].interface.as_deref(), Some("far0"));
    let drops = [here.uplinks[0].drops, there.uplinks[0].drops];
    assert!(drops.iter().all(|drops| drops.all().iter().all(|(_, n)| *n == 0)), "{drops:?}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

#[test]
#[ignore = "runs in a namespace: see the_kernel_talks_through_tap_and_uplink"]
fn inner_kernel() {
    veth();
    // The other host: a namespace with the far end, and an echo in it.
    let program = std::env::current_exe().unwrap();
    let mut other = Process::new("unshare");
    other.arg("--net").arg(program).args(["--exact", "inner_echo", "--ignored", "--nocapture"]);
    let mut other = Killed(other.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
    let pid = other.0.id();
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    eventually("its namespace is there", || {
        std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|it| it != own)
    });
    ip(&format!("link set far0 netns {pid}"));
    other.0.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();

    let rig = Rig::new(config(PLAIN_LAN, &["lan"]));
    add_uplink(&rig, "up0");
    let device = PortDevice::Tap(Box::new(TapPort::open("tap1", mac(1), 1500, false).unwrap()));
    ip("addr add 10.0.0.1/24 dev tap1");
    rig.data.ask_blocking(|answer| Command::Attach { name: name("p1"), device, answer }).unwrap().unwrap();
    assert_eq!((rig.port(1).link, rig.port(1).kind), (PortLink::Running, "tap"));
    let mut stream = None;
    eventually("the other host answers", || {
        stream = TcpStream::connect_timeout(&ECHO, Duration::from_millis(500)).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = stream.try_clone().unwrap();
    let data: Vec<u8> = (0..4_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stream.write_all(&sent).map(|()| stream));
    let mut back = vec![0; data.len()];
    reader.read_exact(&mut back).unwrap();
    writer.join().unwrap().unwrap();
    assert!(back == data, "what came back is what went");
    let port = rig.port(1);
    assert!(port.counters.from.bytes > 4_000_000 && port.counters.to.bytes > 4_000_000);
    assert!(port.counters.from.frames < 2500, "super-frames stay whole: {:?}", port.counters.from);
    // Its MTU follows the policy.
    rig.configure(config(&PLAIN_LAN.replace("mtu = 1500", "mtu = 1400"), &["lan"]));
    assert_eq!(std::fs::read_to_string("/proc/net/dev").unwrap().matches("tap1").count(), 1);
    let run = Process::new("ip").args(["-o", "link", "show", "tap1"]).output().unwrap();
    assert!(String::from_utf8_lossy(&run.stdout).contains("mtu 1400"));
}

#[test]
#[ignore = "the other host of inner_kernel"]
fn inner_echo() {
    let mut go = String::new();
    std::io::stdin().read_line(&mut go).unwrap();
    ip("link set far0 mtu 1500 up");
    ip("addr add 10.0.0.2/24 dev far0");
    let listener = TcpListener::bind(ECHO).unwrap();
    for stream in listener.incoming() {
        let (mut reader, mut writer) = (stream.as_ref().unwrap(), stream.as_ref().unwrap());
        // Who connects hangs up at the end.
        let _ended = std::io::copy(&mut reader, &mut writer);
    }
}

#[test]
#[ignore = "runs in a namespace: see a_link_that_goes_is_noticed"]
fn inner_link() {
    veth();
    let mut rig = Rig::new(config(LAN, &["lan"]));
    assert!(UplinkDevice::open("none0").is_err());
    add_uplink(&rig, "up0");
    let link = |wanted: bool| move |event: &Event| matches!(event, Event::Uplink { up, .. } if *up == wanted);
    rig.event("up", link(true));
    ip("link set far0 down");
    rig.event("the carrier is lost", link(false));
    ip("link set far0 up");
    rig.event("it is back", link(true));
    rig.data.send(Command::Link { uplink: name("up0"), up: false }).unwrap();
    rig.event("held down", link(false));
    rig.data.send(Command::Link { uplink: name("up0"), up: true }).unwrap();
    rig.event("let go", link(true));
    // The same configuration again is no change.
    rig.configure(config(LAN, &["lan"]));
    assert!(up(&rig));
    ip("link del up0");
    rig.event("gone", |event| matches!(event, Event::UplinkGone(_)));
    assert!(!up(&rig));
    veth();
    add_uplink(&rig, "up0");
    rig.event("another of its name", link(true));
    let removed = |answer| Command::RemoveUplink { name: name("up0"), answer };
    assert!(rig.data.ask_blocking(removed).unwrap());
    rig.event("without a card", link(false));
}

fn ip_says(arguments: &str) -> String {
    let run = Process::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    String::from_utf8_lossy(&run.stdout).into_owned()
}

fn refused(interface: &str) -> TapRefused {
    match TapPort::open(interface, mac(1), 1500, false) {
        Err(OpenError::Tap { why, .. }) => why,
        other => panic!("{interface}: {other:?}"),
    }
}

#[test]
fn a_host_without_taps_is_told_apart_from_one_that_may_not_use_them() {
    // In a mount namespace too: /dev/net is hidden there.
    in_a_namespace("inner_refusals");
}

#[test]
#[ignore = "runs in a namespace: see a_host_without_taps_is_told_apart_from_one_that_may_not_use_them"]
fn inner_refusals() {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    // Of this thread only.
    let mut sets = capabilities(None).unwrap();
    let all = sets.effective;
    sets.effective = all.difference(CapabilitySet::NET_ADMIN);
    set_capabilities(None, sets).unwrap();
    assert_eq!(refused("tap1"), TapRefused::Permission, "to make one");
    // It may make interfaces, and no device nodes: as in its unit.
    let run = Process::new("mount").args(["-t", "tmpfs", "none", "/dev/net"]).status().expect("mount runs");
    assert!(run.success());
    sets.effective = all.difference(CapabilitySet::MKNOD);
    set_capabilities(None, sets).unwrap();
    assert_eq!(refused("tap1"), TapRefused::NoTun);
    assert_eq!(ip_says("link show tap1"), "");
}

fn attach_tap(rig: &Rig, ours: bool) {
    let device = PortDevice::Tap(Box::new(TapPort::open("tap1", mac(1), 1500, ours).unwrap()));
    rig.data.ask_blocking(|answer| Command::Attach { name: name("p1"), device, answer }).unwrap().unwrap();
}

fn persist(rig: &Rig, stays: bool) {
    let persist = |answer| Command::Persist { name: name("p1"), stays, answer };
    assert!(rig.data.ask_blocking(persist).unwrap());
}

#[test]
#[ignore = "runs in a namespace: see a_tap_outlives_a_restart_and_goes_with_its_port"]
fn inner_tap() {
    let before = ip_says("-d link show lo");
    assert_eq!(refused("lo"), TapRefused::NoTap);
    assert_eq!(refused("a/b"), TapRefused::Name);
    ip("tuntap add dev tun1 mode tun");
    assert_eq!(refused("tun1"), TapRefused::NoTap);
    assert_eq!(ip_says("-d link show lo"), before, "nothing has changed");

    // As long as nobody has written down that it was made here, it goes with its program.
    let rig = Rig::new(config(PLAIN_LAN, &["lan"]));
    attach_tap(&rig, false);
    drop(rig);
    assert_eq!(ip_says("link show tap1"), "");
    let rig = Rig::new(config(PLAIN_LAN, &["lan"]));
    attach_tap(&rig, false);
    persist(&rig, true);
    persist(&rig, false);
    drop(rig);
    assert_eq!(ip_says("link show tap1"), "");
    let rig = Rig::new(config(PLAIN_LAN, &["lan"]));
    attach_tap(&rig, false);
    assert_eq!(refused("tap1"), TapRefused::Busy);
    persist(&rig, true);
    ip("addr add 10.0.0.1/24 dev tap1");
    drop(rig);
    let kept = ip_says("addr show tap1");
    assert!(kept.contains("10.0.0.1/24") && kept.contains(&mac(1).to_string()), "{kept}");
    // The next one finds it, and knows it for its own.
    let rig = Rig::new(config(PLAIN_LAN, &["lan"]));
    attach_tap(&rig, true);
    assert_eq!(rig.port(1).link, PortLink::Running);
    assert!(ip_says("addr show tap1").contains("10.0.0.1/24"));
    assert!(rig.unplug(1));
    assert_eq!(ip_says("link show tap1"), "");
    // Somebody else's stays, with the address that it has.
    ip("tuntap add dev tap1 mode tap");
    ip("link set tap1 address 52:54:00:00:00:09");
    attach_tap(&rig, false);
    assert!(rig.unplug(1));
    assert!(ip_says("link show tap1").contains("52:54:00:00:00:09"));
    // One that the worker never had.
    TapPort::remove("tap1").unwrap();
    assert_eq!(ip_says("link show tap1"), "");
    TapPort::remove("tap1").unwrap();
    // A port that the switch does not know leaves nothing behind.
    let device = PortDevice::Tap(Box::new(TapPort::open("tap2", mac(2), 1500, false).unwrap()));
    let attached = rig.data.ask_blocking(|answer| Command::Attach { name: name("none"), device, answer });
    assert!(attached.unwrap().is_err());
    assert_eq!(ip_says("link show tap2"), "");
}
