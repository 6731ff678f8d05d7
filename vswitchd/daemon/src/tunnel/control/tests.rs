//! Three hosts' meshes in one process, over loopback, each in its own thread as in the daemon.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Lanes, Mac, Sequence, Vni, Withdrawal};
use ferro_transport::identity::IdentityHandle;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::testing::{Cluster, LIFETIME, host};
use super::message::{Message, PART_MAX};
use super::{Mesh, MeshCommand, MeshError, MeshEvent, MeshPeer, MeshSettings, Revision};

/// Whatever should happen does so long before.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a trial is made that must come out well once.
const TRIALS: usize = 6;

/// Runs what must not be disturbed: where threads get no turn for as long as hosts wait for each other's heartbeats, they do
/// miss each other, and rightly. That comes by chance and what is looked for here comes each time, so a disturbed trial
/// is made anew.
async fn undisturbed(trial: impl AsyncFn() -> Result<(), String>) {
    let mut why = Vec::new();
    for _ in 0..TRIALS {
        match trial().await {
            Ok(()) => return,
            Err(disturbed) => why.push(disturbed),
        }
    }
    panic!("each of {TRIALS} times: {why:#?}");
}

/// Refuses a trial in which this was seen.
fn without(seen: &[MeshEvent], unwanted: impl Fn(&MeshEvent) -> bool) -> Result<(), String> {
    if seen.iter().any(unwanted) { Err(format!("{seen:?}")) } else { Ok(()) }
}

fn is_dead(event: &MeshEvent) -> bool {
    matches!(event, MeshEvent::Dead(_))
}

struct Node {
    host: HostId,
    mesh: Mesh,
    events: mpsc::Receiver<MeshEvent>,
    /// All that came.
    seen: Vec<MeshEvent>,
}

impl Node {
    fn new(identity: IdentityHandle, listen: &[&str], incarnation: u64) -> Self {
        let host = identity.host();
        let settings = MeshSettings {
            listen: listen.iter().map(|it| it.parse().unwrap()).collect(),
            data: vec![data(host)],
            applied: Revision(1),
            incarnation,
        };
        let (mesh, events) = Mesh::start(settings, identity).unwrap();
        Self { host, mesh, events, seen: Vec::new() }
    }

    async fn until(&mut self, wanted: impl Fn(&MeshEvent) -> bool) -> Duration {
        let begun = Instant::now();
        let wait = async {
            loop {
                let event = self.events.recv().await.unwrap();
                let done = wanted(&event);
                self.seen.push(event);
                if done {
                    return;
                }
            }
        };
        assert!(timeout(PATIENCE, wait).await.is_ok(), "not among {:?}", self.seen);
        begun.elapsed()
    }

    async fn until_is(&mut self, wanted: &MeshEvent) -> Duration {
        self.until(|event| event == wanted).await
    }

    /// What has come and what comes within this time.
    async fn rest(&mut self, time: Duration) -> &[MeshEvent] {
        let _over = timeout(time, async {
            while let Some(event) = self.events.recv().await {
                self.seen.push(event);
            }
        })
        .await;
        &self.seen
    }

    async fn send(&self, command: MeshCommand) {
        self.mesh.send(command).await.unwrap();
    }

    fn peer(&self) -> MeshPeer {
        MeshPeer { host: self.host, control: self.mesh.addresses().to_vec() }
    }

    async fn alive(&self, host: HostId) -> bool {
        self.mesh.peers().await.unwrap().iter().any(|peer| peer.host == host && peer.alive)
    }
}

fn data(host: HostId) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host.as_bytes()[0]], 7402))
}

async fn meet(nodes: &[&Node]) {
    let all: Vec<MeshPeer> = nodes.iter().map(|node| node.peer()).collect();
    for node in nodes {
        node.send(MeshCommand::Peers(all.clone())).await;
    }
}

fn announcement(n: u32) -> Announcement {
    let [_, a, b, c] = n.to_be_bytes();
    Announcement {
        vni: Vni::new(10).unwrap(),
        lanes: Lanes::One(None),
        mac: Mac([2, 0, 0, a, b, c]),
        ips: Vec::new(),
        port: "vm1".parse().unwrap(),
        sequence: Sequence(u64::from(n) + 1),
    }
}

async fn three(cluster: &Cluster) -> [Node; 3] {
    let node = |n: u8| Node::new(cluster.handle(host(n)), &["127.0.0.1:0"], u64::from(n));
    let mut nodes = [node(1), node(2), node(3)];
    nodes[0].send(MeshCommand::Announce(announcement(1))).await;
    nodes[0].send(MeshCommand::Networks(vec![Vni::new(10).unwrap()])).await;
    meet(&nodes.each_ref()).await;
    for (at, node) in nodes.iter_mut().enumerate() {
        for other in [1, 2, 3].map(host).into_iter().filter(|it| *it != host(at as u8 + 1)) {
            let told =
                |event: &MeshEvent| matches!(event, MeshEvent::Snapshot { host, .. } if *host == other);
            if !node.seen.iter().any(told) {
                node.until(told).await;
            }
            if !node.seen.contains(&MeshEvent::Alive(other)) {
                node.until_is(&MeshEvent::Alive(other)).await;
            }
            assert!(node.seen.contains(&MeshEvent::DataAddresses(other, vec![data(other)])));
            assert!(node.seen.contains(&MeshEvent::Applied(other, Revision(1))));
        }
    }
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn hosts_find_each_other_and_tell_all_they_know() {
    undisturbed(async || {
        let cluster = Cluster::new(1);
        let [one, mut two, mut three] = three(&cluster).await;
        let (networks, announcements) = (vec![Vni::new(10).unwrap()], vec![announcement(1)]);
        let snapshot = MeshEvent::Snapshot { host: host(1), networks, announcements };
        for node in [&two, &three] {
            assert!(node.seen.contains(&snapshot));
        }
        one.send(MeshCommand::Announce(announcement(2))).await;
        let Announcement { vni, lanes, mac, sequence, .. } = announcement(1);
        let withdrawal = Withdrawal { vni, lanes, mac, sequence };
        one.send(MeshCommand::Withdraw(withdrawal)).await;
        one.send(MeshCommand::Networks(Vec::new())).await;
        one.send(MeshCommand::DataAddresses(Vec::new())).await;
        one.send(MeshCommand::Applied(Revision(7))).await;
        for node in [&mut two, &mut three] {
            node.until_is(&MeshEvent::Applied(host(1), Revision(7))).await;
            // On a new connection all is told anew, in one piece.
            without(&node.seen, is_dead)?;
            for event in [
                MeshEvent::Announce(host(1), announcement(2)),
                MeshEvent::Withdraw(host(1), withdrawal),
                MeshEvent::Networks(host(1), Vec::new()),
                MeshEvent::DataAddresses(host(1), Vec::new()),
            ] {
                assert_eq!(node.seen.iter().filter(|seen| **seen == event).count(), 1, "{event:?}");
            }
        }
        let view = two.mesh.peers().await.unwrap();
        assert_eq!((view.len(), view[0].applied, view[0].paths.len()), (2, Some(Revision(7)), 1));
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_stands_still_is_missed_soon_and_blames_nobody() {
    undisturbed(async || {
        let cluster = Cluster::new(1);
        let [mut one, mut two, mut three] = three(&cluster).await;
        two.mesh.stall(Duration::from_millis(1500)).await;
        let took = one.until_is(&MeshEvent::Dead(host(2))).await;
        if took <= Duration::from_millis(200) {
            return Err(format!("missed before three heartbeats: after {took:?}"));
        }
        three.until_is(&MeshEvent::Dead(host(2))).await;
        // It had stood still until here: a host that is missed only after that was not missed because of it.
        one.until_is(&MeshEvent::Alive(host(2))).await;
        three.until_is(&MeshEvent::Alive(host(2))).await;
        without(two.rest(Duration::from_millis(300)).await, is_dead)?;
        // The others never lost each other.
        for (node, other) in [(&one, 3), (&three, 1)] {
            without(&node.seen, |event| *event == MeshEvent::Dead(host(other)))?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_host_that_stops_or_starts_anew_is_noticed_at_once() {
    let cluster = Cluster::new(1);
    let [mut one, two, three] = three(&cluster).await;
    let Node { mesh, events, .. } = two;
    let address = mesh.addresses()[0].to_string();
    drop((mesh, events));
    one.until_is(&MeshEvent::Dead(host(2))).await;
    // The port is free when its thread has ended.
    let begun = Instant::now();
    while std::net::UdpSocket::bind(&address).is_err() {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut two = Node::new(cluster.handle(host(2)), &[&address], 77);
    two.send(MeshCommand::Announce(announcement(5))).await;
    meet(&[&one, &two, &three]).await;
    let all = vec![announcement(5)];
    let wanted = |event: &MeshEvent| matches!(event, MeshEvent::Snapshot { announcements, .. } if *announcements == all);
    one.until(wanted).await;
    two.until(|event| matches!(event, MeshEvent::Snapshot { host: from, .. } if *from == host(1))).await;
    // One that was removed is told nothing more, and let in no more.
    one.send(MeshCommand::Peers(vec![three.peer()])).await;
    one.until_is(&MeshEvent::Dead(host(2))).await;
    two.until_is(&MeshEvent::Dead(host(1))).await;
    assert!(!one.alive(host(2)).await && one.alive(host(3)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn one_of_two_paths_is_enough_and_the_story_is_told_anew_on_it() {
    undisturbed(async || {
        let cluster = Cluster::new(1);
        let both = ["127.0.0.1:0", "127.0.0.2:0"];
        let mut one = Node::new(cluster.handle(host(1)), &both, 1);
        let mut two = Node::new(cluster.handle(host(2)), &both, 2);
        meet(&[&one, &two]).await;
        let mut ups = std::collections::BTreeSet::new();
        while ups.len() < 4 {
            one.until(|event| matches!(event, MeshEvent::PathUp(..))).await;
            ups.extend(one.seen.iter().filter_map(|event| match event {
                MeshEvent::PathUp(_, path) => Some(*path),
                _ => None,
            }));
        }
        two.rest(Duration::from_millis(200)).await;
        // Host 1 says nothing on its first socket, and hears nothing.
        let silent = one.mesh.addresses()[0];
        one.seen.clear();
        two.seen.clear();
        one.mesh.mute(Some(silent)).await;
        for _ in 0..2 {
            two.until(|event| matches!(event, MeshEvent::PathDown(..))).await;
        }
        one.send(MeshCommand::Announce(announcement(9))).await;
        two.until(|event| match event {
            MeshEvent::Announce(_, it) => *it == announcement(9),
            MeshEvent::Snapshot { announcements, .. } => announcements.contains(&announcement(9)),
            _ => false,
        })
        .await;
        without(one.rest(Duration::from_millis(100)).await, is_dead)?;
        without(&two.seen, is_dead)?;
        one.mesh.mute(None).await;
        for _ in 0..2 {
            two.until(|event| matches!(event, MeshEvent::PathUp(..))).await;
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn many_addresses_arrive_in_one_piece() {
    let cluster = Cluster::new(1);
    let one = Node::new(cluster.handle(host(1)), &["127.0.0.1:0"], 1);
    let mut two = Node::new(cluster.handle(host(2)), &["127.0.0.1:0"], 2);
    let count = 10 * PART_MAX + 1;
    for n in 0..count {
        one.send(MeshCommand::Announce(announcement(n as u32))).await;
    }
    meet(&[&one, &two]).await;
    two.until(|event| matches!(event, MeshEvent::Snapshot { .. })).await;
    let Some(MeshEvent::Snapshot { announcements, .. }) = two.seen.last() else { unreachable!() };
    assert_eq!(announcements.len(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn strangers_are_refused() {
    let (ours, theirs) = (Cluster::new(1), Cluster::new(1));
    let one = Node::new(ours.handle(host(1)), &["127.0.0.1:0"], 1);
    let other_cluster = Node::new(theirs.handle(host(2)), &["127.0.0.1:0"], 2);
    meet(&[&one, &other_cluster]).await;
    let trouble = async |node: &Node, part: &str| {
        let begun = Instant::now();
        loop {
            let peers = node.mesh.peers().await.unwrap();
            assert!(peers.iter().all(|peer| !peer.alive));
            if peers.iter().any(|peer| peer.trouble.as_ref().is_some_and(|it| it.contains(part))) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{peers:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    trouble(&one, "certificate").await;
    // A host of the cluster that the other does not know.
    let unknown = Node::new(ours.handle(host(3)), &["127.0.0.1:0"], 3);
    one.send(MeshCommand::Peers(vec![unknown.peer()])).await;
    trouble(&one, "not known here").await;
    // Certificates that have run out.
    let three = Node::new(ours.handle(host(4)), &["127.0.0.1:0"], 4);
    ours.pass(LIFETIME * 2);
    meet(&[&one, &three]).await;
    trouble(&one, "xpired").await;
}

/// A host of the cluster that breaks the rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_breaks_the_rules_is_cut_off() {
    let cluster = Cluster::new(1);
    let two = Node::new(cluster.handle(host(2)), &["127.0.0.1:0"], 2);
    two.send(MeshCommand::Peers(vec![MeshPeer { host: host(1), control: Vec::new() }])).await;
    let tls = ferro_transport::tls::quic::client(&cluster.handle(host(1)), super::message::PROTOCOL).unwrap();
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(std::sync::Arc::new(tls)));
    let encoded = |message: Message| message.encode().unwrap();
    for bytes in [
        encoded(Message::End),
        encoded(Message::Announce(announcement(1))),
        u32::MAX.to_le_bytes().to_vec(),
        vec![3, 0, 0, 0, 255, 255, 255],
        Vec::new(),
    ] {
        let name = ferro_transport::tls::quic::server_name(host(2));
        let connection = endpoint.connect(two.mesh.addresses()[0], &name).unwrap().await.unwrap();
        let mut stream = connection.open_uni().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        if bytes.is_empty() {
            stream.finish().unwrap();
            // A stream of which nothing was sent does not exist for the other side until it ends.
        }
        assert!(timeout(PATIENCE, connection.closed()).await.is_ok(), "{bytes:?}");
        assert!(!two.alive(host(1)).await);
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let cluster = Cluster::new(1);
    let start = |listen: &[&str]| {
        let listen = listen.iter().map(|it| it.parse().unwrap()).collect();
        let settings = MeshSettings { listen, data: Vec::new(), applied: Revision(0), incarnation: 0 };
        Mesh::start(settings, cluster.handle(host(1))).map(|_| ())
    };
    assert!(matches!(start(&[]), Err(MeshError::Addresses(0))));
    assert!(matches!(start(&["[::]:0"]), Err(MeshError::Unspecified(_))));
    assert!(matches!(start(&["192.0.2.1:1"]), Err(MeshError::Socket { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn wall_clocks_that_jump_cut_nobody_off() {
    let year = Duration::from_secs(365 * 24 * 3600);
    undisturbed(async || {
        let cluster = Cluster::new(1);
        let mut nodes = three(&cluster).await;
        for (forwards, back) in [(10 * year, Duration::ZERO), (Duration::ZERO, 20 * year)] {
            cluster.pass(forwards);
            cluster.set_back(back);
            for node in &mut nodes {
                let before = node.seen.len();
                let since = &node.rest(Duration::from_millis(500)).await[before..];
                without(since, |event| is_dead(event) || matches!(event, MeshEvent::PathDown(..)))?;
            }
            cluster.set_back(forwards);
            cluster.pass(back);
        }
        let [one, mut two, _three] = nodes;
        one.send(MeshCommand::Applied(Revision(9))).await;
        two.until_is(&MeshEvent::Applied(host(1), Revision(9))).await;
        Ok(())
    })
    .await;
}
