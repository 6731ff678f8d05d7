//! Two switches' tunnels in one thread, over real sockets, with a clock that only the test moves.

mod age;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::Vni;
use ferro_protocol::time::Instant;
use ferro_transport::identity::IdentityHandle;
use vswitch_core::frame::{Csum, Gso, GsoKind, Offload, Tci};
use vswitch_core::hash::HashKey;
use vswitch_core::table::PeerIx;
use vswitch_core::tunnel::{FlowKey, Meta};

use super::super::testing::{Cluster, LIFETIME, host};
use super::{Congestion, Event, Settings, Tunnels};

const STEP: Duration = Duration::from_millis(1);
const OTHER: PeerIx = PeerIx(0);

struct Side {
    tunnels: Tunnels,
    identity: IdentityHandle,
    host: HostId,
    got: Vec<Vec<u8>>,
    events: Vec<Event>,
}

impl Side {
    fn new(now: Instant, identity: IdentityHandle, listen: &[&str], change: impl Fn(&mut Settings)) -> Self {
        let listen = listen.iter().map(|it| it.parse().unwrap()).collect();
        let mut settings = Settings::new(listen, HashKey(1, 2));
        settings.payload_max = 1452;
        change(&mut settings);
        let tunnels = Tunnels::new(now, settings, identity.clone()).unwrap();
        let host = identity.host();
        Self { tunnels, identity, host, got: Vec::new(), events: Vec::new() }
    }

    fn turn(&mut self, now: Instant) {
        let got = &mut self.got;
        let mut deliver = |_, frame: vswitch_core::tunnel::Arrived<'_>| got.push(frame.bytes.to_vec());
        while self.tunnels.receive(now, 256, &mut deliver) {}
        self.tunnels.handle_time(now, &mut deliver);
        self.tunnels.flush(now);
        self.events.extend(std::iter::from_fn(|| self.tunnels.poll_event()));
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.tunnels.addresses().collect()
    }

    fn up(&self) -> bool {
        self.tunnels.is_up(OTHER)
    }

    fn downs(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Down { .. })).count()
    }

    /// Ends as a process that is killed does: without a word.
    fn crash(mut self) -> Vec<SocketAddr> {
        self.tunnels.conns.clear();
        self.addresses()
    }

    fn lose(&mut self, filter: impl FnMut(usize, &[u8]) -> bool + Send + 'static) {
        self.tunnels.filter = Some(Box::new(filter));
    }
}

/// Host 1 dials, host 2 accepts.
struct Pair {
    now: Instant,
    cluster: Cluster,
    a: Side,
    b: Side,
}

impl Pair {
    fn new(listen: &[&str], change: impl Fn(&mut Settings) + Copy) -> Self {
        let cluster = Cluster::new(1);
        let now = Instant(5_000_000_000);
        let a = Side::new(now, cluster.handle(host(1)), listen, change);
        let b = Side::new(now, cluster.handle(host(2)), listen, change);
        let mut it = Self { now, cluster, a, b };
        it.meet();
        it
    }

    fn up() -> Self {
        let mut it = Self::new(&["127.0.0.1:0"], |_| {});
        it.until(1000, |it| it.a.up() && it.b.up());
        it
    }

    fn meet(&mut self) {
        self.a.tunnels.set_peer(self.now, OTHER, self.b.host, &self.b.addresses());
        self.b.tunnels.set_peer(self.now, OTHER, self.a.host, &self.a.addresses());
    }

    fn step(&mut self) {
        self.now = self.now + STEP;
        self.a.turn(self.now);
        self.b.turn(self.now);
    }

    fn run(&mut self, ms: u32) {
        (0..ms).for_each(|_| self.step());
    }

    fn until(&mut self, ms_max: u32, done: impl Fn(&Self) -> bool) -> u32 {
        for ms in 0..ms_max {
            if done(self) {
                return ms;
            }
            self.step();
        }
        panic!("not within {ms_max} ms; a {:?} b {:?}", self.a.tunnels.stats(), self.b.tunnels.stats());
    }

    /// A frame each way that arrives.
    fn talk(&mut self) {
        let n = self.now.0;
        let (there, back) = (frame(n, 100), frame(n + 1, 1514));
        assert!(self.a.tunnels.send(self.now, OTHER, &plain(), flow(1), there.as_slice()));
        assert!(self.b.tunnels.send(self.now, OTHER, &plain(), flow(1), back.as_slice()));
        self.until(500, |it| it.b.got.contains(&there) && it.a.got.contains(&back));
    }
}

fn flow(hash: u32) -> FlowKey {
    FlowKey { hash, source: 0 }
}

fn plain() -> Meta {
    Meta { vni: Vni::new(10).unwrap(), tci: Tci(0), offload: Offload::NONE }
}

/// A frame that is like no other.
fn frame(n: u64, len: usize) -> Vec<u8> {
    n.to_be_bytes().iter().copied().cycle().take(len).collect()
}

/// A TCP super-frame over IPv4, with its headers in order.
fn super_frame(segments: usize, size: u16) -> (Meta, Vec<u8>) {
    let payload = segments * usize::from(size);
    let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let total = u16::try_from(40 + payload).unwrap().to_be_bytes();
    bytes.extend([0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    bytes.extend((0..payload).map(|at| (at / usize::from(size)) as u8));
    let gso = Some(Gso { kind: GsoKind::TcpV4, ecn: false, size });
    let offload = Offload { csum: Csum::Partial { start: 34, offset: 16 }, gso };
    (Meta { offload, ..plain() }, bytes)
}

#[test]
fn frames_of_all_sizes_cross_both_ways_over_one_connection() {
    let mut it = Pair::up();
    it.talk();
    let (meta, bytes) = super_frame(40, 1200);
    assert!(it.a.tunnels.send(it.now, OTHER, &meta, flow(7), bytes.as_slice()));
    it.until(100, |it| it.b.got.contains(&bytes));
    for (side, dialled) in [(&it.a, 1), (&it.b, 1)] {
        let stats = side.tunnels.stats();
        assert_eq!(stats.peers[0].connections.len(), dialled, "both knew each other at once: one connection");
        assert_eq!((stats.peers[0].no_path, stats.peers[0].full, stats.peers[0].malformed), (0, 0, 0));
        assert_eq!(side.events.len(), 1);
    }
    // Nothing to do: the timers are for keep-alives only.
    assert!(it.a.tunnels.next_at().unwrap() > it.now);
}

#[test]
fn what_cannot_be_sent_is_dropped_and_counted() {
    let mut it = Pair::new(&["127.0.0.1:0"], |_| {});
    let small = frame(1, 60);
    assert!(!it.a.tunnels.send(it.now, OTHER, &plain(), flow(1), small.as_slice()), "not connected yet");
    assert!(!it.a.tunnels.send(it.now, PeerIx(9), &plain(), flow(1), small.as_slice()), "no such peer");
    it.until(1000, |it| it.a.up() && it.b.up());
    assert!(!it.a.tunnels.send(it.now, OTHER, &plain(), flow(1), [].as_slice()));
    // Far more than may wait, while nobody reads.
    let (meta, bytes) = super_frame(40, 1400);
    let sent =
        (0..2000).filter(|_| it.a.tunnels.send(it.now, OTHER, &meta, flow(7), bytes.as_slice())).count();
    assert!(sent < 2000);
    let stats = &it.a.tunnels.stats().peers[0];
    assert_eq!((stats.no_path, stats.unsendable), (1, 1));
    assert!(stats.full >= (2000 - sent) as u64);
    it.run(200);
    it.talk();
}

#[test]
fn who_floods_leaves_room_for_who_comes_later() {
    let mut it = Pair::up();
    let (meta, bytes) = super_frame(40, 1400);
    let send = |it: &mut Pair, source: u16| {
        let flow = FlowKey { hash: 7, source };
        it.a.tunnels.send(it.now, OTHER, &meta, flow, bytes.as_slice())
    };
    // Nobody reads: all of it stays where it is.
    let flooded = (0..2000).filter(|_| send(&mut it, 1)).count();
    assert!(flooded < 2000);
    assert!(!send(&mut it, 1), "it has all that it may have");
    for other in 2..5 {
        assert!(send(&mut it, other), "{other} finds no room");
    }
    it.run(500);
    assert!(send(&mut it, 1), "what was sent is no longer its");
}

#[test]
fn a_neighbour_of_one_that_floods_keeps_its_share_of_a_slow_path() {
    // The neighbour does as TCP does: so much is on its way, and more only when some of it has arrived.
    const LEN: usize = 1400;
    const ON_ITS_WAY: usize = 192 << 10;
    let window = Congestion::WINDOW_MIN;
    let mut it = Pair::new(&["127.0.0.1:0"], |settings| settings.congestion = Congestion::Managed { window });
    it.until(1000, |it| it.a.up() && it.b.up());
    let (meta, flood) = super_frame(40, 1400);
    let (mut sent, mut arrived, mut before, mut flooded) = (0_u64, 0_u64, 0, 0);
    for ms in 0..600 {
        while it.a.tunnels.send(it.now, OTHER, &meta, FlowKey { hash: 1, source: 1 }, flood.as_slice()) {}
        while (sent - arrived) as usize * LEN < ON_ITS_WAY {
            let mine = frame(sent, LEN);
            let flow = FlowKey { hash: 1, source: 2 };
            assert!(
                it.a.tunnels.send(it.now, OTHER, &plain(), flow, mine.as_slice()),
                "there is always room"
            );
            sent += 1;
        }
        it.step();
        for got in it.b.got.drain(..) {
            if got.len() == LEN {
                assert_eq!(got, frame(arrived, LEN), "none is lost, and they come in order");
                arrived += 1;
            } else if ms >= 100 {
                flooded += got.len();
            }
        }
        if ms == 100 {
            before = arrived;
        }
    }
    let mine = (arrived - before) as usize * LEN;
    assert!(mine * 10 >= flooded * 7, "the neighbour sent {mine} bytes, the flood {flooded}");
}

#[test]
fn cubic_is_bounded_and_a_loss_is_felt_at_once() {
    const WINDOW: u32 = Congestion::WINDOW_MIN;
    let mut it =
        Pair::new(&["127.0.0.1:0"], |settings| settings.congestion = Congestion::Cubic { window: WINDOW });
    it.until(1000, |it| it.a.up() && it.b.up());
    let window = |it: &Pair| it.a.tunnels.stats().peers[0].connections[0].window;
    let feed = |it: &mut Pair, ms: u32| {
        for n in 0..ms {
            let (meta, bytes) = super_frame(40, 1400);
            for _ in 0..4 {
                let _full = it.a.tunnels.send(it.now, OTHER, &meta, flow(n), bytes.as_slice());
            }
            it.step();
            assert!(window(it) <= u64::from(WINDOW));
        }
    };
    // Long enough that CUBIC alone would be far above.
    feed(&mut it, 1500);
    assert_eq!(window(&it), u64::from(WINDOW), "the path loses nothing");
    // Only one: of a window that had grown in secret it would leave more than the bound.
    let mut lost = false;
    it.b.lose(move |_, bytes| bytes.len() > 600 && !std::mem::replace(&mut lost, true));
    let mut least = u64::from(WINDOW);
    for _ in 0..10 {
        feed(&mut it, 1);
        least = least.min(window(&it));
    }
    assert!(least < u64::from(WINDOW) * 3 / 4, "{least}");
}

#[test]
fn losses_cost_what_was_lost_and_no_more() {
    let mut it = Pair::up();
    let mut count = 0_u32;
    it.b.lose(move |_, bytes| {
        count += 1;
        bytes.len() > 600 && count.is_multiple_of(9)
    });
    let mut sent = BTreeSet::new();
    for n in 0..400_u64 {
        let bytes = frame(n * 0x0101_0101, 900);
        assert!(it.a.tunnels.send(it.now, OTHER, &plain(), flow(n as u32), bytes.as_slice()));
        sent.insert(bytes);
        it.step();
    }
    it.run(100);
    assert!(it.b.got.iter().all(|got| sent.contains(got)), "nothing is made up");
    assert!((300..400).contains(&it.b.got.len()), "{}", it.b.got.len());
    assert!(it.a.tunnels.stats().peers[0].connections[0].lost > 20);
    // Of a super-frame the segments that came are delivered.
    it.b.got.clear();
    for _ in 0..20 {
        let (meta, bytes) = super_frame(40, 1200);
        assert!(it.a.tunnels.send(it.now, OTHER, &meta, flow(7), bytes.as_slice()));
        it.run(5);
    }
    it.run(100);
    let segments: usize = it.b.got.iter().map(|bytes| (bytes.len() - 54) / 1200).sum();
    assert!((600..800).contains(&segments), "{segments} of 800");
    assert!(it.a.up() && it.a.downs() == 0);
}

#[test]
fn a_path_that_carries_less_is_followed_and_so_is_one_that_carries_more() {
    let mut it = Pair::up();
    let payload = |it: &Pair| it.a.tunnels.stats().peers[0].connections[0].payload;
    let traffic = |it: &mut Pair, ms: u32| {
        for n in 0..ms {
            let bytes = frame(u64::from(n), 1514);
            let _full = it.a.tunnels.send(it.now, OTHER, &plain(), flow(1), bytes.as_slice());
            it.step();
        }
    };
    traffic(&mut it, 500);
    assert!(payload(&it) >= 1440, "{}", payload(&it));
    it.b.lose(|_, bytes| bytes.len() > 1300);
    traffic(&mut it, 1000);
    assert!(payload(&it) <= 1300, "{}", payload(&it));
    it.b.got.clear();
    traffic(&mut it, 200);
    assert!(it.b.got.len() > 180, "{}", it.b.got.len());
    it.b.tunnels.filter = None;
    traffic(&mut it, 15_000);
    assert!(payload(&it) >= 1440, "{}", payload(&it));
    assert_eq!((it.a.downs(), it.b.downs()), (0, 0));
}

#[test]
fn a_peer_that_was_killed_is_back_within_a_second() {
    for dialler in [false, true] {
        let mut it = Pair::up();
        it.talk();
        let now = it.now;
        let again = |side: Side| {
            let (identity, host) = (side.identity.clone(), side.host);
            let addresses: Vec<String> = side.crash().iter().map(ToString::to_string).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let side = Side::new(now, identity, &addresses, |_| {});
            assert_eq!(side.host, host);
            side
        };
        let Pair { cluster, a, b, .. } = it;
        let (a, b) = if dialler { (again(a), b) } else { (a, again(b)) };
        it = Pair { now, cluster, a, b };
        it.meet();
        // The one that lives on thinks for a while that it is connected.
        it.until(1000, |it| it.a.up() && it.b.up() && it.a.tunnels.stats() != it.b.tunnels.stats());
        it.run(600);
        it.talk();
        let live = |side: &Side| side.tunnels.conns.iter().flatten().count();
        it.run(2000);
        assert_eq!((live(&it.a), live(&it.b)), (1, 1), "what is stale is forgotten");
    }
}

#[test]
fn who_stops_says_so() {
    let mut it = Pair::up();
    let Pair { now, a, mut b, .. } = it;
    drop(a);
    b.turn(now + STEP);
    assert!(!b.up() && b.downs() == 1);
    it = Pair::up();
    it.b.tunnels.remove_peer(it.now, OTHER);
    it.run(2);
    assert!(!it.a.up() && !it.b.up());
}

#[test]
fn flows_of_a_dead_path_move_and_the_others_stay() {
    let mut it = Pair::new(&["127.0.0.1:0", "127.0.0.2:0"], |settings| settings.connections = 2);
    let count = |side: &Side| side.tunnels.peers[0].as_ref().unwrap().works.iter().filter(|up| **up).count();
    // Two sockets to two addresses, twice.
    it.until(2000, |it| count(&it.a) == 8 && count(&it.b) == 8);
    let works = |it: &Pair| it.a.tunnels.peers[0].as_ref().unwrap().works.clone();
    let lanes = |it: &Pair| -> Vec<usize> {
        let works = works(it);
        (0..200).map(|flow| vswitch_core::tunnel::pin(HashKey(1, 2), flow, &works).unwrap()).collect()
    };
    let before = lanes(&it);
    // Socket 0 of b hears nothing any more, although it is still heard.
    it.b.lose(|socket, _| socket == 0);
    let silent = it.b.addresses()[0];
    let dead = it.until(500, |it| count(&it.a) == 4);
    assert!(dead > 250, "not before three heartbeats: {dead}");
    let after = lanes(&it);
    let works = works(&it);
    for (old, new) in before.iter().zip(&after) {
        assert!(if works[*old] { old == new } else { works[*new] });
    }
    it.talk();
    let lanes = &it.a.tunnels.peers[0].as_ref().unwrap().lanes;
    assert!(lanes.iter().all(|lane| lane.up != (lane.remote == silent)));
    it.b.tunnels.filter = None;
    it.until(3000, |it| count(&it.a) == 8 && count(&it.b) == 8);
    it.talk();
}

#[test]
fn new_keys_in_the_middle_cost_nothing() {
    let mut it = Pair::up();
    for round in 0..10 {
        let side = if round % 2 == 0 { &mut it.a } else { &mut it.b };
        side.tunnels.conns.iter_mut().flatten().for_each(|conn| conn.quic.force_key_update());
        it.talk();
        it.run(300);
    }
    assert_eq!((it.a.downs(), it.b.downs()), (0, 0));
}

#[test]
fn who_stood_still_blames_nobody() {
    let mut it = Pair::up();
    // Both machines sleep for an hour.
    it.now = it.now + Duration::from_secs(3600);
    it.run(300);
    assert_eq!((it.a.downs(), it.b.downs()), (0, 0));
    it.talk();
    // One of them stands still for 300 ms: it is not missed, and misses nobody.
    for _ in 0..300 {
        it.now = it.now + STEP;
        it.b.turn(it.now);
    }
    it.run(100);
    assert_eq!((it.a.downs(), it.b.downs()), (0, 0));
    // For 2 s: it is missed, but soon back.
    for _ in 0..2000 {
        it.now = it.now + STEP;
        it.b.turn(it.now);
    }
    it.run(100);
    assert_eq!((it.a.downs(), it.b.downs()), (0, 1));
    assert!(it.a.up() && it.b.up());
    it.talk();
}

/// Both try for two seconds; returns the sides for a look at their figures.
fn strangers(a: IdentityHandle, b: IdentityHandle, cluster: Cluster) -> Pair {
    let now = Instant(1);
    let side = |identity| Side::new(now, identity, &["127.0.0.1:0"], |_| {});
    let mut it = Pair { now, cluster, a: side(a), b: side(b) };
    it.meet();
    it.run(2000);
    it
}

#[test]
fn other_clusters_and_unknown_hosts_are_refused() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(1));
    let it = strangers(ours.handle(host(1)), theirs.handle(host(2)), theirs);
    assert!(!it.a.up() && !it.b.up() && it.b.tunnels.stats().sockets[0].refused > 0);
    let cluster = Cluster::new(1);
    let mut it = strangers(cluster.handle(host(1)), cluster.handle(host(3)), cluster);
    assert!(it.a.up(), "the certificates are good");
    // b expects another host at this address: certificates name hosts.
    it.b.tunnels.set_peer(it.now, OTHER, host(2), &it.a.addresses());
    it.run(2000);
    assert!(!it.a.up() && !it.b.up() && it.b.tunnels.stats().sockets[0].refused > 0);
    // And nobody at all.
    let before = it.b.tunnels.stats().sockets[0].refused;
    it.b.tunnels.remove_peer(it.now, OTHER);
    it.run(2000);
    assert!(!it.a.up() && it.b.tunnels.stats().sockets[0].refused > before);
    // a means another host than it reaches: it refuses.
    it.b.tunnels.set_peer(it.now, OTHER, it.a.host, &it.a.addresses());
    it.a.tunnels.set_peer(it.now, OTHER, host(9), &it.b.addresses());
    it.run(2000);
    assert!(!it.a.up() && !it.b.up());
}

#[test]
fn expired_certificates_are_refused_and_renewed_ones_followed() {
    let mut it = Pair::up();
    it.cluster.pass(LIFETIME + Duration::from_secs(10));
    it.run(500);
    assert!(it.a.up() && it.b.up(), "connections that stand are not touched");
    let cut = |it: &mut Pair| {
        it.b.tunnels.remove_peer(it.now, OTHER);
        it.run(100);
        it.meet();
        it.run(2500);
    };
    cut(&mut it);
    assert!(!it.a.up() && !it.b.up());
    let renewed = it.cluster.identity(host(1));
    it.a.identity.replace(renewed).unwrap();
    cut(&mut it);
    assert!(!it.a.up() && !it.b.up(), "b's is still old");
    let renewed = it.cluster.identity(host(2));
    it.b.identity.replace(renewed).unwrap();
    cut(&mut it);
    assert!(it.a.up() && it.b.up());
    it.talk();
}

#[test]
fn other_protocols_are_refused() {
    let mut it = Pair::new(&["127.0.0.1:0"], |_| {});
    let other = ferro_transport::tls::quic::client(&it.a.identity, b"ferro-tunnel/2").unwrap();
    let other = quinn_proto::crypto::rustls::QuicClientConfig::try_from(other).unwrap();
    it.a.tunnels.quic.client = vec![quinn_proto::ClientConfig::new(std::sync::Arc::new(other))];
    it.run(1000);
    assert!(!it.a.up() && !it.b.up() && it.b.tunnels.stats().sockets[0].refused > 0);
    // Plain text, and noise that looks like a connection's beginning.
    let stranger = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let before = it.b.tunnels.stats().sockets[0].foreign;
    for len in [1, 20, 200, 1300] {
        stranger.send_to(&vec![b'!'; len], it.b.addresses()[0]).unwrap();
        stranger.send_to(&vec![0xc0; len], it.b.addresses()[0]).unwrap();
    }
    it.run(10);
    assert!(it.b.tunnels.stats().sockets[0].foreign >= before + 4);
}

#[test]
fn handshakes_that_nobody_finishes_keep_nobody_out() {
    let mut it = Pair::new(&["127.0.0.1:0"], |_| {});
    let (to, name) = (it.b.addresses()[0], ferro_transport::tls::quic::server_name(host(2)));
    // Many begin from a's address, as if by somebody who can't read the answers.
    for n in 0..60 {
        let config = it.a.tunnels.quic.client[0].clone();
        let now = it.a.tunnels.clock.quic();
        let socket = &mut it.a.tunnels.sockets[0];
        let (_, mut connection) = socket.endpoint.connect(now, config, to, &name).unwrap();
        let mut bytes = Vec::new();
        let transmit = connection.poll_transmit(now, 1, &mut bytes).unwrap();
        socket.send(&transmit, &bytes);
        it.b.turn(it.now);
        let pending = it.b.tunnels.conns.iter().flatten().count();
        assert!(pending <= usize::from(Settings::CONNECTIONS_MAX), "{pending} after {n}");
    }
    it.until(1000, |it| it.a.up() && it.b.up());
    it.talk();
}

#[test]
fn settings_out_of_range_are_refused() {
    let cluster = Cluster::new(1);
    let good = Settings::new(vec!["127.0.0.1:0".parse().unwrap()], HashKey(1, 2));
    let open = |settings| Tunnels::new(Instant(0), settings, cluster.handle(host(1))).map(|_| ());
    assert!(open(good.clone()).is_ok());
    let bad = |change: fn(&mut Settings)| {
        let mut settings = good.clone();
        change(&mut settings);
        open(settings).unwrap_err().to_string()
    };
    assert!(bad(|it| it.listen.clear()).starts_with("0 tunnel addresses"));
    assert!(bad(|it| it.listen = vec!["0.0.0.0:0".parse().unwrap()]).contains("stands for all"));
    assert!(bad(|it| it.listen = vec!["192.0.2.1:1".parse().unwrap()]).contains("cannot open"));
    assert!(bad(|it| it.connections = 0).starts_with("0 connections"));
    assert!(bad(|it| it.payload_max = 1199).contains("1199"));
    assert!(bad(|it| it.queue_bytes = 1).contains("queue of 1 bytes"));
    assert!(bad(|it| it.congestion = Congestion::Managed { window: 1 }).contains("window of 1 bytes"));
}
