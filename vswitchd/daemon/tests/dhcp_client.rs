//! A client that nobody here wrote, busybox's `udhcpc`, and the kernel's own IPv6, on TAPs of a real worker. It runs in a
//! network namespace of its own, which is gone when that process is. It needs root, `unshare`, `ip` and `busybox`.

mod rig;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use ferro_protocol::net::Mac;
use rig::{Rig, config, eventually, mac, name};
use vswitch_core::config::{Config, GroupIx};
use vswitchd::data::port::{Command, Event};
use vswitchd::endpoint::{Book, Rules, WallSeconds};
use vswitchd::ports::{PortDevice, TapPort};

const GROUPS: &str = "[[portgroup]]\nname = 'web'\nswitch = 'sw'\nvni = 5000\nmtu = 1400\n\
    gateway = { address = '10.0.0.1/24', pool = ['10.0.0.10', '10.0.0.19'], lease_s = 120 }\n\
    [[portgroup]]\nname = 'six'\nswitch = 'sw'\nvni = 6000\nmtu = 1400\ngateway = { address = 'fd00::1/64' }\n";

/// What udhcpc runs when something happened: it writes down what, and takes the address.
const SCRIPT: &str = "#!/bin/sh\n\
    [ \"$1\" = bound ] || exit 0\n\
    echo \"$ip $mask $router $mtu $lease $serverid\" > \"$SAID\"\n\
    ip addr flush dev \"$interface\"\n\
    ip addr add \"$ip/$mask\" dev \"$interface\"\n";

#[test]
fn a_foreign_client_gets_an_address_and_reaches_its_gateway() {
    let program = std::env::current_exe().unwrap();
    let run = Process::new("unshare")
        .arg("--net")
        .arg(program)
        .args(["--exact", "inner", "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .expect("unshare runs");
    let text = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
}

fn ip(arguments: &str) -> String {
    let run = Process::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    assert!(run.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).into_owned()
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn wall() -> WallSeconds {
    WallSeconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

fn both() -> Config {
    config(GROUPS, &["web", "six"])
}

/// A worker with both TAPs, which finds this book.
fn host(book: &Book) -> Rig {
    let rig = Rig::new(both());
    let book = Box::new(book.clone());
    rig.data.send(Command::LeaseBook { group: name("web"), wall: wall(), book }).unwrap();
    for n in 1..=2 {
        let tap = format!("tap{n}");
        let device = PortDevice::Tap(Box::new(TapPort::open(&tap, mac(n), 1400, false).unwrap()));
        let port = name(&format!("p{n}"));
        rig.data.ask_blocking(|answer| Command::Attach { name: port, device, answer }).unwrap().unwrap();
    }
    rig
}

/// What the plane does: wishes are written into the book, then answered.
fn write_down(rig: &mut Rig, book: &mut Book) {
    let rules = Rules::of(&both(), GroupIx(0)).unwrap();
    while let Ok(event) = rig.events.try_recv() {
        if let Event::LeaseWanted(wanted) = event {
            let answer = book.apply(&rules, wall(), &wanted);
            rig.data.send(Command::Lease { group: wanted.group, answer }).unwrap();
        }
    }
}

/// A client that runs, and what it was told. Killed, it says nothing more.
fn udhcpc(rig: &mut Rig, book: &mut Book, dir: &Path, arguments: &[&str]) -> (Killed, String) {
    let (script, said) = (dir.join("script"), dir.join("said"));
    fs::write(&script, SCRIPT).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    // There is none the first time.
    let _none = fs::remove_file(&said);
    let mut client = Process::new("busybox");
    client.args(["udhcpc", "-i", "tap1", "-f", "-n", "-t", "20", "-T", "1", "-O", "mtu", "-s"]).arg(&script);
    client.args(arguments).env("SAID", &said).stdout(Stdio::null()).stderr(Stdio::null());
    let client = Killed(client.spawn().expect("busybox is installed"));
    let mut text = String::new();
    eventually("the client has an address", || {
        write_down(rig, book);
        text = fs::read_to_string(&said).unwrap_or_default();
        text.ends_with('\n')
    });
    (client, text)
}

fn ping(to: &str, size: &str) -> bool {
    let run = Process::new("busybox").args(["ping", "-c", "1", "-W", "1", "-s", size, to]).output();
    run.expect("busybox is installed").status.success()
}

#[test]
#[ignore = "runs in a namespace: see a_foreign_client_gets_an_address_and_reaches_its_gateway"]
fn inner() {
    let dir = tempfile::tempdir().unwrap();
    let mut book = Book::default();
    let mut rig = host(&book);
    let (client, said) = udhcpc(&mut rig, &mut book, dir.path(), &[]);
    let (own, rest) = said.trim().split_once(' ').unwrap();
    assert_eq!(rest, "24 10.0.0.1 1400 120 10.0.0.1");
    let lease = book.of(mac(1)).expect("it is written down");
    assert_eq!((lease.ip.to_string(), lease.port.as_str()), (own.to_owned(), "p1"));
    eventually("the gateway answers", || ping("10.0.0.1", "56"));
    assert!(ping("10.0.0.1", "1372"), "as much as the MTU takes");
    let gateway: Mac = both().groups()[0].gateway.as_ref().unwrap().mac;
    assert!(ip("neigh show dev tap1").contains(&format!("10.0.0.1 lladdr {gateway}")));

    // The worker starts anew with what was written down; the client comes back.
    drop(client);
    drop(rig);
    let text = book.encode().unwrap();
    let mut book = Book::decode(&text).unwrap();
    let mut rig = host(&book);
    let (mut client, again) = udhcpc(&mut rig, &mut book, dir.path(), &["-R", "-r", "10.0.0.19"]);
    assert!(again.starts_with(own), "it keeps {own}, whatever it asks for: {again}");
    // And gives it back when it goes.
    let pid = client.0.id().to_string();
    assert!(Process::new("kill").arg(pid).status().expect("kill runs").success());
    eventually("it is given back", || {
        write_down(&mut rig, &mut book);
        client.0.try_wait().unwrap().is_some() && book.leases().count() == 0
    });

    // The kernel makes itself an address of what the router advertises.
    eventually("an address", || ip("-6 addr show dev tap2 scope global").contains("fd00::"));
    eventually("the gateway answers over IPv6", || ping("fd00::1", "56"));
    assert!(ip("-6 route show default").contains("dev tap2"));
}
