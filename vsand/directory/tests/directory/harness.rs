//! Hosts in one process: each has its own runtime (dropping it is a power cut), a real database in a temporary
//! folder, and a network that can be cut in each direction.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ferro_protocol::ids::{ClusterId, HostId};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use vsand_directory::{
    CallError, Candidate, Config, DecodeError, Directory, DirectoryError, Role, StateMachine, Step,
    Transport, service,
};

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([0xc1; 16]);
/// Everything here takes milliseconds to two seconds; this only bounds a hang.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Default, Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Toy {
    pub(crate) values: BTreeMap<String, u64>,
    pub(crate) ballast: Vec<u8>,
    pub(crate) commands: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    Add { key: String, n: u64 },
    Swap { key: String, expected: u64, new: u64 },
    Ballast(Vec<u8>),
}

impl StateMachine for Toy {
    type Command = Command;
    /// The new value, or the one that was not expected.
    type Response = Result<u64, u64>;

    const SNAPSHOTS: RangeInclusive<u8> = 3..=3;

    fn write(&self) -> Result<(u8, Vec<u8>), postcard::Error> {
        Ok((3, postcard::to_allocvec(self)?))
    }

    fn read(_version: u8, bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        Ok(postcard::take_from_bytes(bytes)?)
    }

    fn apply(&mut self, _index: u64, command: Command) -> Result<u64, u64> {
        self.commands += 1;
        match command {
            Command::Add { key, n } => {
                let value = self.values.entry(key).or_default();
                *value += n;
                Ok(*value)
            }
            Command::Swap { key, expected, new } => {
                let value = self.values.entry(key).or_default();
                if *value != expected {
                    return Err(*value);
                }
                *value = new;
                Ok(new)
            }
            Command::Ballast(mut bytes) => {
                self.ballast.append(&mut bytes);
                Ok(self.ballast.len() as u64)
            }
        }
    }
}

pub(crate) fn add(key: &str, n: u64) -> Command {
    Command::Add { key: key.into(), n }
}

#[derive(Default)]
pub(crate) struct Net {
    nodes: Mutex<HashMap<HostId, Directory<Toy>>>,
    cut: Mutex<HashSet<(HostId, HostId)>>,
    /// Each message takes up to so many milliseconds, its own number.
    pub(crate) delay_ms_max: Mutex<u64>,
    sent: Mutex<u64>,
    /// Answers to proposals vanish.
    lose_answers: Mutex<bool>,
    pub(crate) snapshot_pieces: Mutex<u64>,
}

impl Net {
    /// The host, if it is up.
    pub(crate) fn node(&self, n: u8) -> Option<Directory<Toy>> {
        self.nodes.lock().unwrap().get(&host(n)).cloned()
    }

    async fn delay(&self) {
        let max = *self.delay_ms_max.lock().unwrap();
        let number = {
            let mut sent = self.sent.lock().unwrap();
            *sent += 1;
            *sent
        };
        if max > 0 {
            tokio::time::sleep(Duration::from_millis(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (max + 1)))
                .await;
        }
    }

    fn is_cut(&self, from: HostId, to: HostId) -> bool {
        self.cut.lock().unwrap().contains(&(from, to))
    }
}

struct Port {
    net: Arc<Net>,
    me: HostId,
}

impl Transport for Port {
    fn call<'a>(
        &'a self,
        target: HostId,
        address: &'a str,
        service: u16,
        payload: Vec<u8>,
    ) -> BoxFuture<'a, Result<Vec<u8>, CallError>> {
        Box::pin(async move {
            assert_eq!(address, address_of(target));
            if self.net.is_cut(self.me, target) {
                return std::future::pending().await;
            }
            self.net.delay().await;
            let node = self.net.nodes.lock().unwrap().get(&target).cloned();
            let Some(node) = node else { return Err(CallError::NotSent("connection refused".into())) };
            if service == service::SNAPSHOT {
                *self.net.snapshot_pieces.lock().unwrap() += 1;
            }
            let answer = node.handle(self.me, service, &payload).await;
            drop(node);
            self.net.delay().await;
            if self.net.is_cut(target, self.me) {
                return std::future::pending().await;
            }
            if service == service::PROPOSE && *self.net.lose_answers.lock().unwrap() {
                return Err(CallError::NoAnswer("connection reset".into()));
            }
            Ok(answer)
        })
    }
}

pub(crate) fn host(n: u8) -> HostId {
    HostId::from_bytes([n; 16])
}

pub(crate) fn address_of(host: HostId) -> String {
    format!("10.0.0.{}", host.as_bytes()[0])
}

pub(crate) struct Node {
    pub(crate) directory: Directory<Toy>,
    runtime: Option<Runtime>,
}

/// Some hosts, numbered from 1.
pub(crate) struct Hosts {
    pub(crate) net: Arc<Net>,
    dirs: HashMap<u8, TempDir>,
    pub(crate) up: BTreeMap<u8, Node>,
    pub(crate) snapshot_every: u64,
    /// Host → fault domain; its own if absent.
    pub(crate) domains: HashMap<u8, String>,
}

impl Hosts {
    pub(crate) fn new() -> Self {
        let (net, dirs, up, domains) = Default::default();
        Self { net, dirs, up, snapshot_every: 5000, domains }
    }

    /// A cluster of hosts 1 to `count`, with as many voters as the rules want.
    pub(crate) async fn cluster(count: u8) -> Self {
        let mut hosts = Self::new();
        hosts.grow(count).await;
        hosts
    }

    pub(crate) async fn grow(&mut self, count: u8) {
        self.start(1).await;
        self.directory(1).bootstrap().await.unwrap();
        self.leader().await;
        for n in 2..=count {
            self.start(n).await;
        }
        self.settle().await;
    }

    pub(crate) fn config(&mut self, n: u8) -> Config {
        let dir = self.dirs.entry(n).or_insert_with(|| TempDir::new().unwrap());
        let mut config = Config::new(CLUSTER, host(n), dir.path().join("directory"), address_of(host(n)));
        config.fault_domain = self.domain(n);
        config.snapshot_every = self.snapshot_every;
        config.entries_kept = self.snapshot_every.min(1000) / 2;
        config.timing.lonely_after = Duration::from_millis(600);
        config
    }

    fn domain(&self, n: u8) -> String {
        self.domains.get(&n).cloned().unwrap_or_else(|| format!("rack {n}"))
    }

    pub(crate) async fn try_start(&mut self, n: u8, was_member: bool) -> Result<(), DirectoryError> {
        let mut config = self.config(n);
        config.was_member = was_member;
        let port = Arc::new(Port { net: Arc::clone(&self.net), me: host(n) });
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let opened = runtime.spawn(Directory::<Toy>::open(config, port)).await.unwrap();
        let directory = match opened {
            Ok(directory) => directory,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        self.net.nodes.lock().unwrap().insert(host(n), directory.clone());
        self.up.insert(n, Node { directory, runtime: Some(runtime) });
        Ok(())
    }

    pub(crate) async fn start(&mut self, n: u8) {
        self.try_start(n, false).await.unwrap();
    }

    /// Stops a host between two instructions: nothing is shut down, nothing is flushed.
    pub(crate) fn kill(&mut self, n: u8) {
        self.net.nodes.lock().unwrap().remove(&host(n));
        let mut node = self.up.remove(&n).expect("it was up");
        let runtime = node.runtime.take().unwrap();
        drop(node);
        // Waits until the tasks are gone, and with them the database's lock.
        tokio::task::block_in_place(|| runtime.shutdown_timeout(Duration::from_secs(5)));
    }

    pub(crate) async fn restart(&mut self, n: u8) {
        // A call from another host may hold the old handle for a moment.
        let until = Instant::now() + PATIENCE;
        loop {
            match self.try_start(n, true).await {
                Ok(()) => return,
                Err(error) if Instant::now() > until => panic!("host {n} does not start: {error}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    pub(crate) fn wipe(&mut self, n: u8) {
        self.dirs.remove(&n);
    }

    pub(crate) fn directory(&self, n: u8) -> &Directory<Toy> {
        &self.up[&n].directory
    }

    pub(crate) fn cut(&self, from: u8, to: u8) {
        self.net.cut.lock().unwrap().insert((host(from), host(to)));
    }

    /// Cuts both directions between `n` and every other host.
    pub(crate) fn isolate(&self, n: u8) {
        for other in (1..10).filter(|other| *other != n) {
            self.cut(n, other);
            self.cut(other, n);
        }
    }

    pub(crate) fn heal(&self) {
        self.net.cut.lock().unwrap().clear();
    }

    pub(crate) fn lose_answers(&self, lose: bool) {
        *self.net.lose_answers.lock().unwrap() = lose;
    }

    pub(crate) fn candidates(&self, all: impl IntoIterator<Item = u8>) -> Vec<Candidate> {
        let each = |n: u8| Candidate {
            host: host(n),
            address: address_of(host(n)),
            fault_domain: self.domain(n),
            alive: self.up.contains_key(&n),
            long_absent: false,
            voter: false,
        };
        all.into_iter().map(each).collect()
    }

    /// Reconciles with all hosts that are up, until nothing is left to do.
    pub(crate) async fn settle(&self) {
        let candidates = self.candidates(self.up.keys().copied());
        self.settle_with(&candidates).await;
    }

    pub(crate) async fn settle_with(&self, candidates: &[Candidate]) {
        let until = Instant::now() + PATIENCE;
        // Nothing to do may mean that a learner has not caught up yet: the voters must be right, too.
        let mut quiet = 0;
        while quiet < 3 {
            assert!(Instant::now() < until, "the membership does not settle");
            let leader = self.leader().await;
            match self.directory(leader).reconcile_membership(candidates).await {
                Ok(Step::Nothing) => quiet += 1,
                Ok(_) | Err(_) => quiet = 0,
            }
            tokio::time::sleep(Duration::from_millis(if quiet > 0 { 150 } else { 10 })).await;
        }
    }

    /// The host that leads with a majority behind it.
    pub(crate) async fn leader(&self) -> u8 {
        self.eventually("a leader", || {
            let leads = |node: &Node| {
                let status = node.directory.status();
                status.role == Role::Leader && !status.without_quorum
            };
            self.up
                .iter()
                .filter(|(_, node)| leads(node))
                .max_by_key(|(_, n)| n.directory.status().term)
                .map(|(n, _)| *n)
        })
        .await
    }

    pub(crate) async fn eventually<T>(&self, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < until, "waited in vain for {what}: {:#?}", self.statuses());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn statuses(&self) -> Vec<vsand_directory::Status> {
        self.up.values().map(|node| node.directory.status()).collect()
    }

    /// Proposes on host `n`, again as long as it surely was not applied.
    pub(crate) async fn add(&self, n: u8, key: &str) -> u64 {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.directory(n).propose(&add(key, 1)).await {
                Ok(answer) => return answer.unwrap(),
                Err(DirectoryError::NoLeader { .. } | DirectoryError::NoQuorum { .. })
                    if Instant::now() < until => {}
                Err(error) => panic!("proposing on host {n}: {error}"),
            }
        }
    }

    /// Waits until every host that is up shows `value` under `key`.
    pub(crate) async fn all_show(&self, key: &str, value: u64) {
        for (n, node) in &self.up {
            let shows = || (node.directory.state().values.get(key) == Some(&value)).then_some(());
            self.eventually(&format!("host {n} to show {key} = {value}"), shows).await;
        }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        self.net.nodes.lock().unwrap().clear();
        for node in self.up.values_mut() {
            if let Some(runtime) = node.runtime.take() {
                runtime.shutdown_background();
            }
        }
    }
}

/// Runs a test with a bound on its time.
pub(crate) fn run(test: impl Future<Output = ()> + Send + 'static) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let test = tokio::spawn(test);
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs").unwrap();
    });
}
