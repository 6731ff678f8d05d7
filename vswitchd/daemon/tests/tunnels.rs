//! Two workers in one process, each as a host, with a QUIC tunnel between them over loopback.

mod rig;

use std::net::SocketAddr;
use std::path::Path;

use ferro_protocol::ids::{ClusterId, HostId};
use ferro_protocol::net::Mac;
use ferro_transport::UnixTime;
use ferro_transport::identity::{CA_LIFETIME, ClusterCa, HostKey, IdentityDir, IdentityHandle};
use ferro_vhost::frontend::NetClientOptions;
use rig::{PLAIN, Rig, config, eventually, frame, host, mac, receive, send, super_frame};
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::Cause;
use vswitchd::data::clock;
use vswitchd::data::port::{Command, Event, PeerWord};
use vswitchd::tunnel::data::{Settings, Tunnels};

const WEB: &str =
    "[[portgroup]]\nname = 'web'\nswitch = 'sw'\nvni = 5000\nvlan = { access = 10 }\nmtu = 9000\n";

fn tunnels(dir: &Path, ca: &ClusterCa, n: u8) -> (Tunnels, Vec<SocketAddr>) {
    let (now, host) = (UnixTime::now(), host(n));
    let key = HostKey::generate(host).unwrap();
    let lifetime = std::time::Duration::from_secs(3600);
    let cert = ca.issue(&key.signing_request().unwrap(), host, now, lifetime).unwrap();
    let dir = IdentityDir::new(dir.join(format!("host{n}")));
    let identity = IdentityHandle::new(dir.store_member(ca, &cert, &key, now).unwrap()).unwrap();
    let settings = Settings::new(vec!["127.0.0.1:0".parse().unwrap()], HashKey(1, 2));
    let tunnels = Tunnels::new(clock::now(), settings, identity).unwrap();
    let addresses = tunnels.addresses().collect();
    (tunnels, addresses)
}

fn say(rig: &Rig, host: HostId, word: PeerWord) {
    rig.data.send(Command::PeerSaid { host, word }).unwrap();
}

/// What a new control connection from one to the other would say.
fn introduce(from: &Rig, to: &Rig, host: HostId) {
    let (networks, all) = from.data.ask_blocking(Command::Announced).unwrap();
    say(to, host, PeerWord::Snapshot(networks, all));
}

#[test]
fn guests_of_two_hosts_share_a_network() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(ClusterId::from_bytes([7; 16]), UnixTime::now(), CA_LIFETIME).unwrap();
    let (first, first_at) = tunnels(dir.path(), &ca, 1);
    let (second, second_at) = tunnels(dir.path(), &ca, 2);
    let mut a = Rig::with_tunnels(1, config(WEB, &["web", "web"]), Some(first));
    let b = Rig::with_tunnels(2, config(WEB, &["web", "web"]), Some(second));
    a.data.send(Command::Peer { host: host(2), addresses: second_at }).unwrap();
    b.data.send(Command::Peer { host: host(1), addresses: first_at }).unwrap();
    a.event("a connection", |event| matches!(event, Event::Path { up: true, .. }));
    eventually("the other side too", || {
        let stats = b.snapshot().tunnels.unwrap();
        stats.peers.iter().any(|peer| peer.connections.iter().any(|it| it.up))
    });

    let options = NetClientOptions { queue_size: 128, ..NetClientOptions::default() };
    let (mut one, mut two) = (a.guest(1, options.clone()), b.guest(2, options));
    a.event("port 1 is announced", |event| matches!(event, Event::Announce(it) if it.mac == mac(1)));
    // Before its heartbeats are heard, a host gets nothing.
    introduce(&a, &b, host(1));
    introduce(&b, &a, host(2));
    send(&mut one, PLAIN, &frame(mac(2), mac(1), 100, 0));
    eventually("it was dropped", || a.dropped(1, Cause::TunnelDown) == 1);
    for (rig, other) in [(&a, 2), (&b, 1)] {
        say(rig, host(other), PeerWord::Alive(true));
    }
    eventually("they know each other", || {
        [&a, &b].iter().all(|rig| rig.snapshot().peers[0].alive && rig.snapshot().addresses == 2)
    });

    for (round, len) in [60, 600, 1514, 9014].into_iter().enumerate() {
        let mine = frame(mac(2), mac(1), len, round);
        send(&mut one, PLAIN, &mine);
        assert_eq!(receive(&mut two).1, mine);
        let mine = frame(mac(1), mac(2), len, round);
        send(&mut two, PLAIN, &mine);
        assert_eq!(receive(&mut one).1, mine);
    }
    for payload in [5000, 60_000] {
        let (header, bytes) = super_frame(payload);
        send(&mut one, header, &bytes);
        let (got, arrived) = receive(&mut two);
        assert_eq!(arrived, bytes, "a super-frame arrives whole");
        assert_eq!((got.gso_type, got.gso_size, got.csum_start), (header.gso_type, 1000, 34));
    }
    let all = frame(Mac::BROADCAST, mac(2), 200, 5);
    send(&mut two, PLAIN, &all);
    assert_eq!(receive(&mut one).1, all);

    // The guest of port 2 moves here: its frames come here at once.
    let mut moved = a.guest(2, NetClientOptions::default());
    send(&mut one, PLAIN, &frame(mac(2), mac(1), 100, 8));
    assert_eq!(receive(&mut moved).1, frame(mac(2), mac(1), 100, 8));
    a.data.send(Command::PeerRemove(host(2))).unwrap();
    eventually("it is forgotten", || a.snapshot().peers.is_empty());
    send(&mut one, PLAIN, &all[..].to_vec().tap(|bytes| bytes[6..12].copy_from_slice(&mac(1).0)));
    assert_eq!(receive(&mut moved).1[..6], [0xff; 6]);
}

/// Changes a value in passing.
trait Tap: Sized {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Tap for Vec<u8> {}
