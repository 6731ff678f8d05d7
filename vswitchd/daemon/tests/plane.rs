//! The control plane with a real worker and a stand-in for `vsand` that can be taken away: what is in force stays in force,
//! whatever else is gone.

mod standin;

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ferro_protocol::api::switch::spec::{GatewaySpec, GroupSpec, PortSpec, SwitchSpec};
use ferro_protocol::api::switch::{
    Attachment, Change, ConfigSource, HostProgress, LinkState, Spec, SwitchStatus, Transaction,
};
use ferro_protocol::api::{ErrorCode, HealthLevel};
use ferro_protocol::net::{NetName, Sequence};
use standin::{HERE, StandIn, THERE};
use tokio::sync::mpsc;
use vswitch_core::bugs::Bugs;
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::Settings;
use vswitchd::api::control::ControlPlane;
use vswitchd::config::Config;
use vswitchd::data::port::{Command, DataHandle, Event};
use vswitchd::data::snapshot::Snapshot;
use vswitchd::endpoint::{LeaseAnswer, LeaseWanted, Refusal, Seen, Wish};
use vswitchd::plane::{Memory, Neighbours, Parts, Plane};
use vswitchd::tunnel::control::{MeshCommand, MeshEvent, PeerView, Revision};

const LONG: Duration = Duration::from_secs(20);

/// The other hosts, by hand.
#[derive(Default)]
struct Others {
    told: Mutex<Vec<MeshCommand>>,
}

#[async_trait]
impl Neighbours for Others {
    async fn tell(&self, command: MeshCommand) {
        self.told.lock().unwrap().push(command);
    }

    async fn peers(&self) -> Vec<PeerView> {
        Vec::new()
    }
}

/// A running switch in a directory of its own.
struct Host {
    plane: Plane,
    data: DataHandle,
    others: Arc<Others>,
    mesh: mpsc::Sender<MeshEvent>,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
}

/// The settings of a host in this directory, written if they are not there.
fn settings(dir: &Path, more: &str) -> Arc<Config> {
    let (state, run) = (dir.join("state"), dir.join("run"));
    for dir in [&state, &run.join("ports")] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let file = dir.join("vswitchd.toml");
    if !file.exists() {
        let dirs = format!(
            "[host]\nstate_dir = \"{}\"\nrun_dir = \"{}\"\nvsand_socket = \"{}\"\ntunnel_addresses = [\"127.0.0.1\"]\n",
            state.display(),
            run.display(),
            dir.join("vsand.sock").display()
        );
        std::fs::write(&file, dirs + more).unwrap();
    }
    Arc::new(Config::load(&file).unwrap())
}

impl Host {
    async fn start(dir: &Path, more: &str) -> Self {
        let config = settings(dir, more);
        let hash = HashKey(1, 2);
        let settings = Settings { host: HERE, hash, sequence: Sequence(1), bugs: Bugs::default() };
        let worker = vswitchd::data::start(settings, vswitchd::data::Spin::default(), None).unwrap();
        let others = Arc::new(Others::default());
        let (mesh, mesh_events) = mpsc::channel(64);
        let neighbours: Arc<dyn Neighbours> = Arc::<Others>::clone(&others);
        let plane = Plane::start(Parts {
            memory: Memory::load(&config.host.state_dir).unwrap(),
            config,
            host: HERE,
            data: worker.handle.clone(),
            data_events: worker.events,
            mesh: Some((neighbours, mesh_events)),
        });
        plane.ready().await;
        Self { plane, data: worker.handle, others, mesh, thread: Some(worker.thread) }
    }

    async fn stop(mut self) {
        self.plane.stop().await;
        self.data.ask(Command::Stop).await.unwrap();
        let thread = self.thread.take().unwrap();
        tokio::task::spawn_blocking(move || thread.join().unwrap().unwrap()).await.unwrap();
    }

    async fn status(&self) -> SwitchStatus {
        self.plane.status().await.unwrap()
    }

    /// Waits until the status is like this.
    async fn until(&self, what: &str, is: impl Fn(&SwitchStatus) -> bool) -> SwitchStatus {
        let start = Instant::now();
        loop {
            let status = self.status().await;
            if is(&status) {
                return status;
            }
            assert!(start.elapsed() < LONG, "{what}: {status:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Changes the network, and waits until the change is in force here.
    async fn change(&self, changes: Vec<Change>) -> u64 {
        let done = self.plane.transact(transaction(changes)).await.unwrap();
        let applied = self.plane.applied(done.revision, LONG).await.unwrap();
        let here = applied.hosts.iter().find(|host| host.this_host).unwrap();
        assert_eq!(here.progress, HostProgress::Applied);
        done.revision
    }

    async fn peer(&self, event: MeshEvent) {
        self.mesh.send(event).await.unwrap();
    }
}

fn transaction(changes: Vec<Change>) -> Transaction {
    Transaction { basis: None, changes, dry_run: false, confirm_within_s: None }
}

fn network(vlan: u32) -> Vec<Change> {
    let switch = SwitchSpec { name: "s0".to_owned(), mtu: 1500, uplinks: Vec::new(), team: None };
    vec![Change::AddSwitch(switch), Change::AddGroup(group("g0", vlan)), Change::AddPort(port("p0", 1))]
}

fn group(name: &str, vlan: u32) -> GroupSpec {
    let vlan = ferro_protocol::api::switch::spec::VlanSpec::Access(vlan);
    GroupSpec { name: name.to_owned(), switch: "s0".to_owned(), vlan, ..GroupSpec::default() }
}

fn port(name: &str, n: u8) -> PortSpec {
    PortSpec {
        name: name.to_owned(),
        group: "g0".to_owned(),
        mac: format!("02:00:00:00:00:{n:02x}"),
        ..PortSpec::default()
    }
}

fn name(text: &str) -> NetName {
    text.parse().unwrap()
}

fn socket() -> Attachment {
    Attachment::VhostUser { socket: None, connect: false, queue_pairs: 1 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_comes_from_the_directory_and_stays_without_it() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody is there at the start: that is no reason not to run.
    let host = Host::start(dir.path(), "").await;
    let status = host.status().await;
    assert_eq!((status.source, status.revision), (ConfigSource::LocalCopy, 0));
    let refused = host.plane.transact(transaction(network(10))).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoQuorum, "{refused}");

    let vsand = StandIn::start(&dir.path().join("vsand.sock"));
    host.until("the directory is found", |status| status.source == ConfigSource::Directory).await;
    let first = host.change(network(10)).await;
    assert_eq!(vsand.revision_of("switch/network"), Some(first));
    let info = host.plane.attach(&name("p0"), socket()).await.unwrap();
    assert_eq!((info.link, info.group.as_str()), (Some(LinkState::Down), "g0"));
    let path = dir.path().join("run/ports/p0.sock");
    assert!(path.exists());

    // No quorum: nothing can be changed in the directory, everything can be done here.
    vsand.quorum(false);
    host.until("the loss is seen", |status| status.health.reasons.iter().any(|it| it.code == "no_quorum"))
        .await;
    let refused =
        host.plane.transact(transaction(vec![Change::RemovePort("p0".to_owned())])).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::NoQuorum, "{refused}");
    host.plane.detach(&name("p0")).await.unwrap();
    host.plane.attach(&name("p0"), socket()).await.unwrap();

    // Nobody there: the same, and over a restart.
    drop(vsand);
    host.until("the loss is seen", |status| status.source == ConfigSource::LocalCopy).await;
    host.stop().await;
    let host = Host::start(dir.path(), "").await;
    let status = host.status().await;
    assert_eq!((status.source, status.revision, status.groups), (ConfigSource::LocalCopy, first, 1));
    let ports = host.plane.ports().await.unwrap();
    assert_eq!(ports[0].link, Some(LinkState::Down), "it has its device again: {ports:?}");
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    host.plane.detach(&name("p0")).await.unwrap();

    // It comes back with something newer.
    let vsand = StandIn::start(&dir.path().join("vsand.sock"));
    vsand.put("switch/network", &standin::network_text(&Spec::default()));
    host.until("the newer network", |status| status.groups == 0 && status.revision > first).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn this_host_says_what_it_has_and_hears_what_others_have() {
    let dir = tempfile::tempdir().unwrap();
    let vsand = StandIn::start(&dir.path().join("vsand.sock"));
    vsand.put(&format!("switch/host/{THERE}"), &standin::host_text("beta", 0));
    let host = Host::start(dir.path(), "").await;
    let revision = host.change(network(10)).await;
    let waiting = host.plane.applied(revision, Duration::ZERO).await.unwrap();
    let there = waiting.hosts.iter().find(|it| it.host == THERE).unwrap();
    assert_eq!((there.name.as_str(), there.progress), ("beta", HostProgress::Unreachable));
    assert!(waiting.hosts.iter().any(|it| it.this_host && it.name == "alpha"), "as the cluster calls it");
    assert!(waiting.is_settled(), "nobody waits for a host that does not answer");
    host.peer(MeshEvent::Alive(THERE)).await;
    host.until("it answers", |status| status.tunnels.iter().any(|tunnel| tunnel.alive)).await;
    assert!(!host.plane.applied(revision, Duration::ZERO).await.unwrap().is_settled());
    host.peer(MeshEvent::Applied(THERE, Revision(revision))).await;
    assert!(host.plane.applied(revision, LONG).await.unwrap().is_settled());

    // In the directory, for those who were not there; and to the mesh.
    let own = format!("switch/host/{HERE}");
    let start = Instant::now();
    while !vsand.text_of(&own).is_some_and(|text| text.contains(&format!("\"applied\":{revision}"))) {
        assert!(start.elapsed() < LONG, "{:?}", vsand.text_of(&own));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let told = host.others.told.lock().unwrap().clone();
    assert!(told.contains(&MeshCommand::Applied(Revision(revision))), "{told:?}");
    let peers = told
        .iter()
        .any(|it| matches!(it, MeshCommand::Peers(peers) if peers.iter().any(|it| it.host == THERE)));
    assert!(peers, "{told:?}");

    // A host that left the cluster is no peer, whatever its document says.
    vsand.remove_host(THERE);
    host.until("it is gone", |status| status.tunnels.is_empty()).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_is_refused_before_anything_changes() {
    let dir = tempfile::tempdir().unwrap();
    let vsand = StandIn::start(&dir.path().join("vsand.sock"));
    let host = Host::start(dir.path(), "").await;
    host.until("the directory is found", |status| status.source == ConfigSource::Directory).await;
    let half = network(10).into_iter().chain([Change::AddGroup(group("bad", 4095))]).collect();
    let refused = host.plane.transact(transaction(half)).await.unwrap_err();
    assert_eq!((refused.code, refused.faults.len()), (ErrorCode::InvalidNetwork, 1), "{refused}");
    assert_eq!(vsand.revision_of("switch/network"), None);
    let dry = Transaction { dry_run: true, ..transaction(network(10)) };
    assert!(host.plane.transact(dry).await.unwrap().changed);
    assert_eq!(vsand.revision_of("switch/network"), None);

    let revision = host.change(network(10)).await;
    let late =
        Transaction { basis: Some(revision - 1), ..transaction(vec![Change::RemovePort("p0".to_owned())]) };
    assert_eq!(host.plane.transact(late).await.unwrap_err().code, ErrorCode::Conflict);
    // A document that this version can't read, or that can't be, is reported; the last good one stays.
    for bad in ["{\"format\":9}", "not json", &standin::network_text(&bad_spec())] {
        vsand.put("switch/network", bad);
        let seen = vsand.revision_of("switch/network").unwrap();
        let status = host.until("it is seen", |status| status.revision == seen).await;
        assert_eq!((status.applied_revision, status.groups), (revision, 1));
        assert!(status.health.reasons.iter().any(|it| it.code == "network_refused"), "{status:?}");
    }

    assert_eq!(host.plane.attach(&name("p9"), socket()).await.unwrap_err().code, ErrorCode::PortNotFound);
    assert_eq!(host.plane.detach(&name("p0")).await.unwrap_err().code, ErrorCode::PortNotAttached);
    host.plane.attach(&name("p0"), socket()).await.unwrap();
    host.plane.attach(&name("p0"), socket()).await.unwrap();
    let tap = Attachment::Tap { interface: "ferro-none".to_owned() };
    assert_eq!(host.plane.attach(&name("p0"), tap).await.unwrap_err().code, ErrorCode::PortAttached);
    host.stop().await;
}

fn bad_spec() -> Spec {
    let (spec, _) = vswitch_core::config::transact(&Spec::default(), &network(10)).unwrap();
    Spec { groups: vec![group("g0", 4095)], ..spec }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_is_confirmed_or_undone() {
    let dir = tempfile::tempdir().unwrap();
    let _vsand = StandIn::start(&dir.path().join("vsand.sock"));
    let host = Host::start(dir.path(), "").await;
    host.until("the directory is found", |status| status.source == ConfigSource::Directory).await;
    let first = host.change(network(10)).await;
    let ask = |within, vlan| Transaction {
        confirm_within_s: Some(within),
        ..transaction(vec![Change::SetGroup(group("g0", vlan))])
    };
    // Nobody confirms.
    let asked = host.plane.transact(ask(1, 20)).await.unwrap();
    host.until("it waits", |status| {
        status.unconfirmed.as_ref().is_some_and(|it| it.revision == asked.revision)
    })
    .await;
    let status = host.until("it is undone", |status| status.applied_revision > asked.revision).await;
    assert_eq!(status.unconfirmed, None);
    let config = host.plane.config().await.unwrap();
    assert_eq!(config.spec.groups[0], group("g0", 10));
    assert!(config.revision > first);
    // Somebody does.
    let asked = host.plane.transact(ask(3600, 30)).await.unwrap();
    host.until("it waits", |status| status.unconfirmed.is_some()).await;
    assert_eq!(host.plane.confirm(first).await.unwrap_err().code, ErrorCode::RevisionNotFound);
    host.plane.confirm(asked.revision).await.unwrap();
    host.until("it holds", |status| status.unconfirmed.is_none()).await;
    assert_eq!(host.plane.config().await.unwrap().spec.groups[0], group("g0", 30));
    // Somebody takes it back at once.
    let asked = host.plane.transact(ask(3600, 40)).await.unwrap();
    host.until("it waits", |status| status.unconfirmed.is_some()).await;
    host.plane.undo(asked.revision).await.unwrap();
    host.until("it is undone", |status| status.applied_revision > asked.revision).await;
    assert_eq!(host.plane.config().await.unwrap().spec.groups[0], group("g0", 30));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_copy_is_reported_and_not_used() {
    let dir = tempfile::tempdir().unwrap();
    let vsand = StandIn::start(&dir.path().join("vsand.sock"));
    let host = Host::start(dir.path(), "").await;
    host.until("the directory is found", |status| status.source == ConfigSource::Directory).await;
    host.change(network(10)).await;
    host.stop().await;
    let copy = dir.path().join("state/network.copy");
    let mut bytes = std::fs::read(&copy).unwrap();
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    drop(vsand);
    let host = Host::start(dir.path(), "").await;
    let status = host.status().await;
    assert_eq!((status.groups, status.revision), (0, 0));
    assert!(status.health.reasons.iter().any(|it| it.code == "state_damaged"), "{status:?}");
    assert!(dir.path().join("state/network.copy.damaged").exists());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alone_the_file_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let file = "alone = true\n[[switch]]\nname = \"s0\"\n[[portgroup]]\nname = \"g0\"\nswitch = \"s0\"\nvlan = { access = 10 }\n";
    let host = Host::start(dir.path(), file).await;
    let status = host.status().await;
    assert_eq!((status.source, status.revision, status.groups), (ConfigSource::File, 1, 1));
    host.change(vec![Change::AddPort(port("p0", 1))]).await;
    host.plane.attach(&name("p0"), socket()).await.unwrap();
    let missing =
        host.plane.transact(transaction(vec![Change::RemovePort("p9".to_owned())])).await.unwrap_err();
    assert_eq!(missing.code, ErrorCode::PortNotFound);
    host.stop().await;
    let host = Host::start(dir.path(), "").await;
    let status = host.status().await;
    assert_eq!((status.revision, status.ports.defined, status.ports.attached), (2, 1, 1));
    assert!(status.hosts.is_empty());
    // Nobody confirms: the file is as it was.
    let asked =
        Transaction { confirm_within_s: Some(1), ..transaction(vec![Change::RemovePort("p0".to_owned())]) };
    let asked = host.plane.transact(asked).await.unwrap();
    host.until("it is undone", |status| {
        status.applied_revision > asked.revision && status.ports.defined == 1
    })
    .await;
    let text = std::fs::read_to_string(dir.path().join("vswitchd.toml")).unwrap();
    assert!(text.contains("p0") && text.contains("alone = true"), "{text}");
    let again = host.until("its device is back", |status| status.ports.attached == 1).await;
    assert_eq!(again.source, ConfigSource::File);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uplink_that_is_not_there_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = "alone = true\n[[switch]]\nname = \"s0\"\nuplinks = [\"ferro-none0\"]\n";
    let host = Host::start(dir.path(), file).await;
    let status = host.status().await;
    assert_eq!(status.uplinks[0].link, LinkState::Missing);
    assert!(status.uplinks[0].detail.as_ref().is_some_and(|it| !it.is_empty()), "{status:?}");
    host.stop().await;
}

// ---- leases, and going back, with a worker by hand ----

/// A worker that says yes to all and remembers what it was told of leases.
fn yes(
    port: vswitchd::data::port::DataPort,
    told: Arc<Mutex<Vec<(NetName, LeaseAnswer)>>>,
    gateways: Arc<Mutex<Vec<(NetName, Seen)>>>,
) {
    std::thread::spawn(move || {
        loop {
            match port.next() {
                Some(Command::Configure(_, answer)) => answer.send(()).unwrap(),
                Some(Command::Snapshot(answer)) => {
                    let gateways = gateways.lock().unwrap().clone();
                    drop(answer.send(Box::new(Snapshot { gateways, ..Snapshot::default() })));
                }
                Some(Command::Announced(answer)) => drop(answer.send((Vec::new(), Vec::new()))),
                Some(Command::Lease { group, answer }) => told.lock().unwrap().push((group, answer)),
                Some(Command::Stop(answer)) => return answer.send(()).unwrap(),
                Some(_) => {}
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    });
}

fn wish(n: u8, port: &str, last: u8) -> LeaseWanted {
    LeaseWanted {
        group: name("g0"),
        port: name(port),
        mac: format!("02:00:00:00:00:{n:02x}").parse().unwrap(),
        ip: Ipv4Addr::new(10, 5, 0, last),
        wish: Wish::Lease,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_without_a_free_address_is_in_the_health_for_a_while() {
    let dir = tempfile::tempdir().unwrap();
    let (data, worker, events) = vswitchd::data::port::channel().unwrap();
    let gateways: Arc<Mutex<Vec<(NetName, Seen)>>> = Arc::default();
    yes(worker, Arc::default(), Arc::clone(&gateways));
    let config = settings(dir.path(), "");
    let memory = Memory::load(&dir.path().join("state")).unwrap();
    let plane = Plane::start(Parts {
        config,
        memory,
        host: HERE,
        data: data.clone(),
        data_events: events,
        mesh: None,
    });
    let alarm = async |at: Option<Duration>| {
        let pool_full_at = at.map(|ago| vswitchd::data::clock::now() - ago);
        let seen = Seen { pool_full: 1, pool_full_at, ..Seen::default() };
        *gateways.lock().unwrap() = vec![(name("web"), Seen::default()), (name("guests"), seen)];
        let health = plane.status().await.unwrap().health;
        health.reasons.into_iter().find(|reason| reason.code == "dhcp_pool_full")
    };
    assert_eq!(alarm(None).await, None);
    let reason = alarm(Some(Duration::from_secs(60))).await.expect("a minute ago");
    assert_eq!(reason.level, HealthLevel::Warning);
    assert!(reason.message.contains("port group guests"), "{reason:?}");
    assert!(reason.next_step.contains("portgroup set guests --dhcp"), "{reason:?}");
    assert_eq!(
        alarm(Some(Duration::from_secs(601))).await,
        None,
        "somebody has found one since, or nobody asks"
    );
    plane.stop().await;
    data.ask(Command::Stop).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_written_before_they_are_given_and_kept_without_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let vsand = StandIn::start(&dir.path().join("vsand.sock"));
    let (mut spec, _) = vswitch_core::config::transact(&Spec::default(), &network(10)).unwrap();
    spec.groups[0].gateway = vec![GatewaySpec {
        address: "10.5.0.1/24".to_owned(),
        pool: Some(("10.5.0.10".to_owned(), "10.5.0.20".to_owned())),
        lease_s: 600,
    }];
    spec.ports.push(port("p1", 2));
    vsand.put("switch/network", &standin::network_text(&spec));

    let (data, worker, own_events) = vswitchd::data::port::channel().unwrap();
    drop(own_events);
    let told: Arc<Mutex<Vec<(NetName, LeaseAnswer)>>> = Arc::default();
    yes(worker, Arc::clone(&told), Arc::default());
    let (events, data_events) = mpsc::channel(16);
    let config = settings(dir.path(), "");
    let memory = Memory::load(&dir.path().join("state")).unwrap();
    let plane =
        Plane::start(Parts { config, memory, host: HERE, data: data.clone(), data_events, mesh: None });
    let answered = async |wanted: LeaseWanted| {
        let before = told.lock().unwrap().len();
        events.send(Event::LeaseWanted(wanted)).await.unwrap();
        let start = Instant::now();
        while told.lock().unwrap().len() == before {
            assert!(start.elapsed() < LONG, "no answer");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        told.lock().unwrap().last().unwrap().1.clone()
    };
    let start = Instant::now();
    while plane.config().await.unwrap().spec.groups.is_empty() {
        assert!(start.elapsed() < LONG);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let LeaseAnswer::Granted(lease) = answered(wish(1, "p0", 12)).await else { panic!("not granted") };
    assert_eq!(lease.ip, Ipv4Addr::new(10, 5, 0, 12));
    assert!(vsand.text_of("switch/leases/g0").unwrap().contains("10.5.0.12"), "written before it was given");
    // Another host was faster: what it wrote holds, and the wish is looked at anew.
    let text = vsand.text_of("switch/leases/g0").unwrap();
    let theirs = text
        .replace("10.5.0.12", "10.5.0.13")
        .replace("02:00:00:00:00:01", "02:00:00:00:00:02")
        .replace("p0", "p1");
    vsand.put("switch/leases/g0", &theirs);
    let taken = answered(wish(1, "p0", 13)).await;
    assert!(matches!(taken, LeaseAnswer::Refused { why: Refusal::Taken, .. }), "{taken:?}");
    let granted = answered(wish(1, "p0", 14)).await;
    assert!(matches!(granted, LeaseAnswer::Granted(_)), "{granted:?}");

    // Nobody to write it down: who has one keeps it, nobody gets a new one.
    drop(vsand);
    let kept = answered(wish(1, "p0", 14)).await;
    assert!(matches!(kept, LeaseAnswer::Granted(_)), "{kept:?}");
    for wanted in [wish(1, "p0", 15), wish(9, "p1", 16)] {
        let refused = answered(wanted).await;
        assert!(matches!(refused, LeaseAnswer::Refused { why: Refusal::Unavailable, .. }), "{refused:?}");
    }
    plane.stop().await;
    data.ask(Command::Stop).await.unwrap();
}
