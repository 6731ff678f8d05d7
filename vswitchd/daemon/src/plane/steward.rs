//! The one who changes what the control plane knows: takes what happens, one by one, and after each brings the worker, the
//! mesh, the files and the directory to what holds now.
//!
//! ```text
//!   directory, worker, mesh, API, time ──Input──► take (state) ──► settle: worker, mesh ──► keep: files
//!                                                                                       └─► Publisher: directory
//! ```
//!
//! Nothing here waits for the directory, so nothing that the worker needs hangs on it: what is to be written there is
//! handed to tasks that try for as long as it takes. What can't be done now (a network card that is not there, a socket in
//! use) is noted, shown, and tried again every [`RETRY`].

mod outlets;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::api::ErrorClass;
use ferro_protocol::api::switch::Spec;
use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, NetName, Withdrawal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use vswitch_core::config::{Gateway, Group};

use super::documents::{self, NetworkDocument};
use super::files::{Copy, Files};
use super::keeper::Effect;
use super::state::{Claim, Uplink};
use super::{Shared, leases};
use crate::data::clock;
use crate::data::port::{Command, Event as DataEvent, PeerWord, SendError};
use crate::data::snapshot::PortLink;
use crate::endpoint::LeaseWanted;
use crate::tunnel::control::{MeshCommand, MeshEvent, MeshPeer, Revision};
use ferro_transport::directory::{Event as DirectoryEvent, View};

/// What can't be done now is tried again so often.
const RETRY: Duration = Duration::from_secs(1);
/// The copy is written so often, as long as what is in force stays the same.
const KEEP_EVERY: Duration = Duration::from_secs(1);
/// How long the worker may take for an answer.
pub(super) const WORKER_MAX: Duration = Duration::from_secs(5);

/// What happens.
#[derive(Debug)]
pub(super) enum Input {
    /// The directory says something, or nothing.
    Directory(DirectoryEvent),
    /// The worker says something.
    Data(DataEvent),
    /// The mesh says something.
    Mesh(MeshEvent),
    /// The network of a host that is alone is another; answered when it is in force.
    Document(u64, Box<NetworkDocument>, oneshot::Sender<()>),
    /// Somebody keeps a revision; answered with whether it waited for that.
    Confirm(u64, oneshot::Sender<bool>),
    /// Somebody undoes a revision; answered with whether that could be.
    Undo(u64, oneshot::Sender<bool>),
    /// Time has passed.
    Time,
}

/// See the module.
pub(super) struct Steward {
    shared: Arc<Shared>,
    files: Files,
    /// What the worker was told of peers.
    worker_peers: BTreeMap<HostId, Vec<SocketAddr>>,
    /// The revision that the mesh was told.
    mesh_applied: Option<u64>,
    /// Cards that the worker has.
    cards: BTreeSet<NetName>,
    /// When the copy was last written.
    kept_at: Option<std::time::Instant>,
    /// The revision that is being undone, and who does it.
    undoing: Option<(u64, JoinHandle<()>)>,
    /// To who writes leases down.
    wishes: mpsc::Sender<LeaseWanted>,
    /// The revisions of the books of leases that the worker has.
    books: BTreeMap<NetName, u64>,
}

impl Steward {
    /// Of a plane.
    pub(super) fn new(shared: Arc<Shared>, files: Files, wishes: mpsc::Sender<LeaseWanted>) -> Self {
        let (worker_peers, books) = (BTreeMap::new(), BTreeMap::new());
        Self {
            shared,
            files,
            worker_peers,
            mesh_applied: None,
            cards: BTreeSet::new(),
            kept_at: None,
            undoing: None,
            wishes,
            books,
        }
    }

    /// Works until nobody tells it anything.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        self.settle().await;
        self.shared.changed.send_modify(|count| *count += 1);
        let mut retry = tokio::time::interval(RETRY);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.shared.state().keeper.next_at();
            let due = wake.map_or(RETRY, |at| at.since(clock::now())).min(RETRY);
            let input = tokio::select! {
                input = inputs.recv() => match input {
                    Some(input) => input,
                    None => return,
                },
                _ = retry.tick() => Input::Time,
                () = tokio::time::sleep(due) => Input::Time,
            };
            let mut more = vec![input];
            // A flood of announcements is one pass, not a thousand.
            while more.len() < 256
                && let Ok(input) = inputs.try_recv()
            {
                more.push(input);
            }
            for input in more {
                self.take(input).await;
            }
            self.settle().await;
            self.shared.changed.send_modify(|count| *count += 1);
        }
    }

    async fn take(&mut self, input: Input) {
        let now = clock::now();
        match input {
            Input::Directory(DirectoryEvent::View(view)) => self.take_view(view),
            Input::Directory(DirectoryEvent::Lost(why)) => self.shared.state().lost = Some(why),
            Input::Data(event) => self.take_data(event).await,
            Input::Mesh(event) => self.take_mesh(event),
            Input::Document(revision, document, answer) => {
                let effects = self.shared.state().keeper.handle_document(now, revision, &document);
                self.carry_out(effects);
                self.settle().await;
                let _gone = answer.send(());
            }
            Input::Confirm(revision, answer) => {
                let effects = self.shared.state().keeper.confirm(revision);
                let _gone = answer.send(effects.is_some());
                self.carry_out(effects.unwrap_or_default());
            }
            Input::Undo(revision, answer) => {
                let effects = self.shared.state().keeper.undo(now, revision);
                let _gone = answer.send(effects.is_some());
                self.carry_out(effects.unwrap_or_default());
            }
            Input::Time => {
                let effects = {
                    let mut state = self.shared.state();
                    let connected = state.connected();
                    state.keeper.handle_connected(now, connected);
                    state.keeper.handle_time(now)
                };
                self.carry_out(effects);
            }
        }
    }

    fn take_view(&mut self, view: Arc<View>) {
        let now = clock::now();
        let mut state = self.shared.state();
        state.lost = None;
        state.take_peers(&view);
        if let (None, Some(name)) = (&self.shared.config.host.name, view.hosts.get(&state.host)) {
            state.name.clone_from(name);
        }
        state.view_dirty = true;
        let network = view.documents.get(&documents::network_name());
        let effects = match network.map(|text| (text.revision, documents::read_network(&text.content))) {
            Some((revision, Ok(document))) => state.keeper.handle_document(now, revision, &document),
            Some((revision, Err(error))) => {
                tracing::error!(revision, %error, "the network's document can't be used; the last good one stays");
                state.keeper.refuse(revision, error.to_string())
            }
            None => Vec::new(),
        };
        let refused =
            network.map(|text| text.revision).filter(|it| state.keeper.kept().rolled_back == Some(*it));
        state.view = Some(Arc::clone(&view));
        drop(state);
        self.carry_out(effects);
        if let Some(revision) = refused {
            self.insist(revision);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let mut state = self.shared.state();
            match effect {
                Effect::Apply(network) => {
                    let revision = state.keeper.kept().current.revision;
                    tracing::info!(revision, "a network is put into force");
                    state.network = Arc::from(network);
                    state.configured = false;
                }
                Effect::Keep => {
                    state.dirty = true;
                    if let Some((revision, why)) = state.keeper.failed() {
                        tracing::error!(revision, why, "this host can't take the network over");
                    }
                }
                Effect::Undo { revision, spec } => {
                    if state.keeper.kept().rolled_back == Some(revision) {
                        tracing::error!(
                            revision,
                            "cut off from the other hosts by a change: it was gone back on"
                        );
                    }
                    drop(state);
                    self.undo(revision, *spec);
                }
            }
        }
    }

    /// Asks for what was before a revision, for as long as that is the newest.
    fn undo(&mut self, revision: u64, spec: Spec) {
        let shared = Arc::clone(&self.shared);
        let undoing = tokio::spawn(async move {
            tracing::warn!(revision, "undoing a change of the network");
            let document = NetworkDocument::new(spec, true, None);
            loop {
                let Err(error) = shared.put_network(revision, document.clone()).await else { return };
                // Whoever was cut off may have to wait for the directory.
                let again = matches!(error.code.class(), ErrorClass::Unavailable | ErrorClass::TimedOut);
                if !again {
                    tracing::warn!(revision, error = %error.message, "the change is not undone");
                    return;
                }
                tokio::time::sleep(RETRY).await;
            }
        });
        if let Some(older) = self.undoing.replace((revision, undoing)) {
            older.1.abort();
        }
    }

    /// A change that this host went back on is still what the directory says.
    fn insist(&mut self, revision: u64) {
        let under_way =
            self.undoing.as_ref().is_some_and(|(of, task)| *of == revision && !task.is_finished());
        if !under_way {
            let spec = self.shared.state().keeper.kept().current.spec.clone();
            self.undo(revision, spec);
        }
    }

    // ---- the worker ----

    async fn take_data(&mut self, event: DataEvent) {
        let (mut say, mut all) = (Vec::new(), false);
        {
            let mut state = self.shared.state();
            match event {
                DataEvent::Announce(it) => {
                    state.announced.insert(claim(&it), it.sequence);
                    say.push(MeshCommand::Announce(it));
                }
                DataEvent::Withdraw(it) => {
                    state.announced.remove(&(it.vni, it.lanes, it.mac));
                    say.push(MeshCommand::Withdraw(it));
                }
                DataEvent::Networks(networks) => say.push(MeshCommand::Networks(networks)),
                DataEvent::Frozen { vni, mac } => {
                    tracing::warn!(?vni, %mac, "an address moves too often: two machines have it, it stays where it is");
                    if state.frozen.len() < FROZEN_MAX {
                        state.frozen.insert((vni, mac));
                    }
                }
                DataEvent::Port { name, link } => {
                    if let Some(port) = state.ports.get_mut(&name) {
                        if matches!(link, PortLink::Detached | PortLink::Removed) {
                            port.plugged = false;
                        }
                        port.link = Some(link);
                    }
                }
                DataEvent::Uplink { name, up } => {
                    tracing::info!(uplink = %name, up, "an uplink's link has changed");
                    state.uplinks.entry(name).or_default().up = up;
                }
                DataEvent::UplinkGone(name) => {
                    let uplink = state.uplinks.entry(name.clone()).or_default();
                    *uplink =
                        Uplink { trouble: Some("its interface has gone".to_owned()), ..Uplink::default() };
                    self.cards.remove(&name);
                }
                DataEvent::Path { host, path, up } => {
                    tracing::debug!(%host, %path, up, "a data connection has changed");
                }
                // A machine whose wish is lost asks again.
                DataEvent::LeaseWanted(wanted) => drop(self.wishes.try_send(wanted)),
                DataEvent::Missed => all = true,
            }
        }
        if all {
            self.say_everything().await;
        }
        for command in say {
            self.shared.tell_mesh(command).await;
        }
    }

    /// Events of the worker were lost: everything that peers must know is asked for and said anew.
    async fn say_everything(&mut self) {
        let Some((networks, announcements)) = self.shared.ask(Command::Announced).await else { return };
        let gone: Vec<Withdrawal> = {
            let mut state = self.shared.state();
            let now: BTreeMap<Claim, _> = announcements.iter().map(|it| (claim(it), it.sequence)).collect();
            let before = std::mem::replace(&mut state.announced, now);
            let gone = before.into_iter().filter(|(claim, _)| !state.announced.contains_key(claim));
            gone.map(|((vni, lanes, mac), sequence)| Withdrawal { vni, lanes, mac, sequence }).collect()
        };
        self.shared.tell_mesh(MeshCommand::Networks(networks)).await;
        for it in gone {
            self.shared.tell_mesh(MeshCommand::Withdraw(it)).await;
        }
        for it in announcements {
            self.shared.tell_mesh(MeshCommand::Announce(it)).await;
        }
    }

    // ---- the mesh ----

    fn take_mesh(&mut self, event: MeshEvent) {
        let now = clock::now();
        let mut state = self.shared.state();
        let (host, word) = match event {
            MeshEvent::Alive(host) | MeshEvent::Dead(host) => {
                let alive = matches!(event, MeshEvent::Alive(_));
                let name = state.host_name(host);
                if alive {
                    tracing::info!(host = name, "a host answers");
                } else {
                    tracing::warn!(host = name, "a host does not answer any more");
                }
                if let Some(peer) = state.peers.get_mut(&host) {
                    (peer.alive, peer.since) = (alive, Some(now));
                }
                let connected = state.connected();
                state.keeper.handle_connected(now, connected);
                (host, PeerWord::Alive(alive))
            }
            MeshEvent::PathUp(host, path) | MeshEvent::PathDown(host, path) => {
                let up = matches!(event, MeshEvent::PathUp(..));
                tracing::debug!(host = %state.host_name(host), %path, up, "a path has changed");
                return;
            }
            MeshEvent::DataAddresses(host, data) => {
                if let Some(peer) = state.peers.get_mut(&host) {
                    (peer.data, peer.data_said) = (data, true);
                }
                return;
            }
            MeshEvent::Applied(host, Revision(revision)) => {
                if let Some(peer) = state.peers.get_mut(&host) {
                    peer.applied = revision;
                }
                return;
            }
            MeshEvent::Snapshot { host, networks, announcements } => {
                state.claims.retain(|(by, _), _| *by != host);
                let claims = announcements.iter().map(|it| ((host, claim(it)), it.port.clone()));
                state.claims.extend(claims);
                if let Some(peer) = state.peers.get_mut(&host) {
                    peer.networks.clone_from(&networks);
                }
                (host, PeerWord::Snapshot(networks, announcements))
            }
            MeshEvent::Networks(host, networks) => {
                if let Some(peer) = state.peers.get_mut(&host) {
                    peer.networks.clone_from(&networks);
                }
                (host, PeerWord::Networks(networks))
            }
            MeshEvent::Announce(host, it) => {
                state.claims.insert((host, claim(&it)), it.port.clone());
                (host, PeerWord::Announce(it))
            }
            MeshEvent::Withdraw(host, it) => {
                state.claims.remove(&(host, (it.vni, it.lanes, it.mac)));
                (host, PeerWord::Withdraw(it))
            }
        };
        drop(state);
        // The worker must know a host before what it says.
        self.tell_peers();
        self.send(Command::PeerSaid { host, word });
    }

    /// Peers and their addresses, to the worker.
    fn tell_peers(&mut self) {
        let state = self.shared.state();
        let gone: Vec<HostId> =
            self.worker_peers.keys().filter(|host| !state.peers.contains_key(host)).copied().collect();
        let new: Vec<(HostId, Vec<SocketAddr>)> = state
            .peers
            .iter()
            .filter(|(host, peer)| self.worker_peers.get(host) != Some(&peer.data))
            .map(|(host, peer)| (*host, peer.data.clone()))
            .collect();
        drop(state);
        for host in gone {
            if self.send(Command::PeerRemove(host)) {
                self.worker_peers.remove(&host);
            }
        }
        for (host, addresses) in new {
            if self.send(Command::Peer { host, addresses: addresses.clone() }) {
                self.worker_peers.insert(host, addresses);
            }
        }
    }

    /// Whether the worker has taken it. One that is too far behind gets it with the next pass, or says that it missed it.
    fn send(&self, command: Command) -> bool {
        match self.shared.data.send(command) {
            Ok(()) => true,
            Err(error @ (SendError::Busy | SendError::Gone)) => {
                tracing::warn!(%error, "a command was not taken");
                false
            }
        }
    }

    // ---- what must hold ----

    async fn settle(&mut self) {
        self.tell_peers();
        self.configure().await;
        self.books();
        self.tell_mesh().await;
        self.uplinks().await;
        self.ports().await;
        self.keep().await;
        self.shared.publish();
    }

    /// The books of all port groups that give addresses, to their gateways.
    fn books(&mut self) {
        let groups: Vec<NetName> = {
            let state = self.shared.state();
            if !state.configured {
                return;
            }
            let gives = |group: &&Group| group.gateway.as_ref().is_some_and(Gateway::serves_dhcp);
            state.network.groups().iter().filter(gives).map(|group| group.name.clone()).collect()
        };
        for group in groups {
            match self.shared.book(&group) {
                Ok((revision, book)) if self.books.get(&group) != Some(&revision) => {
                    let (wall, book) = (leases::wall(), Box::new(book));
                    if self.send(Command::LeaseBook { group: group.clone(), wall, book }) {
                        self.books.insert(group, revision);
                    }
                }
                Ok(_) => {}
                Err(why) => {
                    // Once for each revision of the directory would do; a document of ours is not broken every day.
                    tracing::debug!(%group, why, "a lease book can't be used");
                }
            }
        }
    }

    async fn configure(&mut self) {
        let network = {
            let state = self.shared.state();
            if state.configured {
                return;
            }
            Arc::clone(&state.network)
        };
        let told = self.shared.ask(|answer| Command::Configure(Box::new((*network).clone()), answer)).await;
        // A gateway that is new has no book yet.
        self.books.clear();
        let mut state = self.shared.state();
        // Another one may have come meanwhile.
        state.configured = told.is_some() && Arc::ptr_eq(&network, &state.network);
        state.uplinks.retain(|name, _| network.uplink(name).is_some());
    }

    async fn tell_mesh(&mut self) {
        let (peers, applied) = {
            let mut state = self.shared.state();
            let told = std::mem::replace(&mut state.peers_told, true);
            let peers: Option<Vec<MeshPeer>> = (!told).then(|| {
                let each = |(host, peer): (&HostId, &super::state::Peer)| MeshPeer {
                    host: *host,
                    control: peer.control.clone(),
                };
                state.peers.iter().map(each).collect()
            });
            let applied = state.configured.then(|| state.keeper.kept().current.revision);
            (peers, applied)
        };
        if let Some(peers) = peers {
            self.shared.tell_mesh(MeshCommand::Peers(peers)).await;
        }
        if applied.is_some() && applied != self.mesh_applied {
            self.mesh_applied = applied;
            self.shared.tell_mesh(MeshCommand::Applied(Revision(applied.unwrap_or_default()))).await;
        }
    }

    /// Writes down what has changed.
    async fn keep(&mut self) {
        let copy = {
            let mut state = self.shared.state();
            // What is in force is written at once; what else the directory says, such as leases, now and then.
            let due = state.view_dirty && self.kept_at.is_none_or(|at| at.elapsed() >= KEEP_EVERY);
            if !std::mem::take(&mut state.dirty) && !due {
                return;
            }
            state.view_dirty = false;
            Copy { kept: state.keeper.kept().clone(), view: state.view.clone() }
        };
        self.kept_at = Some(std::time::Instant::now());
        let files = self.files.clone();
        let saved = tokio::task::spawn_blocking(move || files.save_copy(&copy)).await;
        let problem = match saved {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let mut state = self.shared.state();
        if let Some(problem) = &problem {
            tracing::error!(problem, "the local copy of the network can't be written");
            state.dirty = true;
        }
        state.copy_problem = problem;
    }
}

/// More frozen addresses than these are not listed; they are frozen all the same.
const FROZEN_MAX: usize = 4096;

fn claim(it: &Announcement) -> Claim {
    (it.vni, it.lanes, it.mac)
}
