//! How fast frames pass from guest to guest. Figures, not judgements: run it alone, in release, on a quiet machine:
//! `cargo test --release -p vswitchd --test speed -- --ignored --nocapture`.

mod rig;

use std::process::Command as Process;
use std::time::{Duration, Instant};

use ferro_vhost::frontend::{NetClient, NetClientOptions};
use ferro_vhost::net::VirtioNetHdr;
use rig::{LAN, PAIR, PLAIN, Rig, config, frame, mac, name, receive, send, super_frame};
use vswitchd::data::port::Command;
use vswitchd::ports::UplinkDevice;

const SPAN: Duration = Duration::from_secs(2);

/// One thread drives both guests without looking at what arrives; frames a second.
fn rate(rig: &Rig, header: VirtioNetHdr, bytes: &[u8], options: &NetClientOptions, merged: usize) -> f64 {
    let (mut one, mut two) = (rig.guest(1, options.clone()), rig.guest(2, options.clone()));
    while one.send_quietly(PAIR, header, bytes).unwrap() {}
    one.kick(PAIR).unwrap();
    let run = |span: Duration, one: &mut NetClient, two: &mut NetClient| {
        let (started, mut got) = (Instant::now(), 0);
        loop {
            for _ in 0..64 {
                let sent = one.resend(PAIR, bytes.len(), 64);
                if sent > 0 {
                    one.kick(PAIR).unwrap();
                }
                got += two.discard_rx(PAIR, 64);
            }
            if started.elapsed() >= span {
                return (got / merged) as f64 / started.elapsed().as_secs_f64();
            }
        }
    };
    run(Duration::from_millis(200), &mut one, &mut two);
    let rate = run(SPAN, &mut one, &mut two);
    drop((one, two));
    let port = rig.port(2);
    println!("    refused {:?}", port.drops.no_room);
    rig.unplug(1);
    rig.unplug(2);
    rate
}

fn frames(len: usize) {
    let rig = Rig::new(config(LAN, &["lan", "lan"]));
    let options = NetClientOptions { frame_bytes_max: 2000, ..NetClientOptions::default() };
    let rate = rate(&rig, PLAIN, &frame(mac(2), mac(1), len, 1), &options, 1);
    println!("{len} B: {:.2} M frames/s, {:.1} Gb/s", rate / 1e6, rate * len as f64 * 8e-9);
}

#[test]
#[ignore = "a measurement"]
fn small_frames() {
    frames(60);
}

#[test]
#[ignore = "a measurement"]
fn large_frames() {
    frames(1514);
}

#[test]
#[ignore = "a measurement"]
fn super_frames() {
    let rig = Rig::new(config(LAN, &["lan", "lan"]));
    let (header, bytes) = super_frame(65_000);
    for rx_buffer_bytes in [2048, 65_600] {
        let options = NetClientOptions { queue_size: 128, rx_buffer_bytes, ..NetClientOptions::default() };
        let merged = (bytes.len() + 12).div_ceil(rx_buffer_bytes as usize);
        let rate = rate(&rig, header, &bytes, &options, merged);
        let len = bytes.len();
        println!(
            "{len} B in {merged} buffers: {:.0} k frames/s, {:.1} Gb/s",
            rate / 1e3,
            rate * len as f64 * 8e-9
        );
    }
}

/// Frames that an interface of this namespace has received.
fn received(interface: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'));
    line.unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// From a guest to an uplink that is a veth, whose other end throws away what arrives:
/// `unshare --net cargo test --release -p vswitchd --test speed uplink -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, in a network namespace of its own"]
fn uplink() {
    for arguments in
        ["link add up0 type veth peer name far0", "link set up0 mtu 9000 up", "link set far0 mtu 9000 up"]
    {
        let run = Process::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(run.success(), "ip {arguments}");
    }
    let rig = Rig::new(config(LAN, &["lan"]));
    let device = UplinkDevice::open("up0").unwrap();
    rig.data.ask_blocking(|answer| Command::AddUplink { name: name("up0"), device, answer }).unwrap();
    for len in [60, 1514, 9014, 65_054] {
        let (header, bytes) =
            if len > 10_000 { super_frame(len - 54) } else { (PLAIN, frame(mac(2), mac(1), len, 1)) };
        let mut guest = rig.guest(1, NetClientOptions { queue_size: 128, ..NetClientOptions::default() });
        while guest.send_quietly(PAIR, header, &bytes).unwrap() {}
        guest.kick(PAIR).unwrap();
        let mut run = |span: Duration| {
            let (started, before) = (Instant::now(), received("far0"));
            while started.elapsed() < span {
                if guest.resend(PAIR, bytes.len(), 64) > 0 {
                    guest.kick(PAIR).unwrap();
                }
            }
            (received("far0") - before) as f64 / started.elapsed().as_secs_f64()
        };
        run(Duration::from_millis(200));
        let rate = run(SPAN);
        let refused = rig.snapshot().uplinks[0].drops;
        println!(
            "{len} B to an uplink: {:.0} k frames/s, {:.1} Gb/s; refused {}",
            rate / 1e3,
            rate * len as f64 * 8e-9,
            refused.no_room + refused.failed
        );
        drop(guest);
        rig.unplug(1);
    }
}

#[test]
#[ignore = "a measurement"]
fn ping_pong() {
    let rig = Rig::new(config(LAN, &["lan", "lan"]));
    let options = NetClientOptions { frame_bytes_max: 2000, ..NetClientOptions::default() };
    let (mut one, mut two) = (rig.guest(1, options.clone()), rig.guest(2, options));
    for (what, sleep, pause) in [
        ("polling", false, 0),
        ("asleep", true, 0),
        ("asleep, worker too", true, 500),
        ("polling, worker asleep", false, 500),
    ] {
        (one.sleep, two.sleep) = (sleep, sleep);
        let mut times: Vec<Duration> = Vec::new();
        for round in 0..1000 {
            std::thread::sleep(Duration::from_micros(pause));
            let started = Instant::now();
            send(&mut one, PLAIN, &frame(mac(2), mac(1), 60, round));
            receive(&mut two);
            send(&mut two, PLAIN, &frame(mac(1), mac(2), 60, round));
            receive(&mut one);
            times.push(started.elapsed());
        }
        times.sort_unstable();
        println!("there and back, {what}: {:?} median, {:?} of 99 %", times[500], times[990]);
    }
}

#[test]
#[ignore = "a measurement"]
fn idle() {
    let ports: Vec<&str> = vec!["lan"; 50];
    let rig = Rig::new(config(LAN, &ports));
    let options = NetClientOptions { queue_size: 16, frame_bytes_max: 2000, ..NetClientOptions::default() };
    let _guests: Vec<_> = (1..=50).map(|n| rig.guest(n, options.clone())).collect();
    let used = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<u64> =
            stat.rsplit(')').next().unwrap().split(' ').filter_map(|it| it.parse().ok()).collect();
        fields[10] + fields[11]
    };
    std::thread::sleep(Duration::from_millis(500));
    let before = (used(), rig.snapshot());
    std::thread::sleep(Duration::from_secs(10));
    let after = (used(), rig.snapshot());
    let (turns, ticks) = (after.1.turns - before.1.turns, after.0 - before.0);
    println!(
        "50 idle ports, 10 s: {turns} turns, {ticks} ticks of 10 ms of processor time for the whole process"
    );
}
