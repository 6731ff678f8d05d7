//! The control plane: what the network is, who the other hosts are, what is attached here; and what the API asks.
//!
//! ```text
//!              ┌── vsand: documents (follow, compare-and-set) ── or, alone, the settings file
//!   API ──► Plane ──Input──► Steward ──Command──► worker
//!              │  ◄─ State ─┘   │  ◄──Event────
//!              │                ├──MeshCommand──► mesh ──MeshEvent──► Steward
//!              │                └── local copy, attachments
//!              └── Publisher: what this host says of itself, in the directory
//! ```
//!
//! **Autonomy.** What is in force comes from the local copy at the start and stays when the directory goes: `vsand`, its
//! quorum and the other hosts are needed to *change* the network, for nothing else. Ports attach and detach by this host's
//! own file.
//!
//! One task changes the state ([`steward`]); what a change of the network is worth is decided by [`keeper`], without a clock
//! or a socket. What the plane must not know: HTTP, how frames move, what `vsand` does besides keeping documents.

mod control;
mod devices;
mod documents;
mod files;
mod keeper;
#[cfg(test)]
mod keeper_tests;
mod leases;
mod publish;
mod state;
mod steward;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ferro_protocol::api::ApiError;
use ferro_protocol::api::switch::Attachment;
use ferro_protocol::ids::HostId;
use ferro_protocol::net::NetName;
use ferro_transport::local;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::api::fail;
use crate::config::Config;
use crate::data::clock;
use crate::data::port::{Command, DataHandle, Event as DataEvent};
use crate::endpoint::Book;
use crate::ports::OpenError;
use crate::tunnel::control::{MeshCommand, MeshEvent, PeerView};
use documents::NetworkDocument;
use ferro_transport::directory::{Directory, View};
pub use ferro_transport::stored::StoredError;
use files::{Copy, Files};
use keeper::Keeper;
use state::{Peer, State};
use steward::{Input, Steward, WORKER_MAX};

/// Inputs that wait for the steward.
const INPUTS_MAX: usize = 1024;

/// The control connections to other hosts.
#[async_trait]
pub trait Neighbours: Send + Sync + 'static {
    /// Tells them something.
    async fn tell(&self, command: MeshCommand);
    /// How they are.
    async fn peers(&self) -> Vec<PeerView>;
}

/// What the plane is made of.
pub struct Parts {
    /// The settings.
    pub config: Arc<Config>,
    /// What this host left behind when it last ran.
    pub memory: Memory,
    /// This host.
    pub host: HostId,
    /// The worker.
    pub data: DataHandle,
    /// What the worker says.
    pub data_events: mpsc::Receiver<DataEvent>,
    /// The mesh and what it says; none of a host that has no certificate.
    pub mesh: Option<(Arc<dyn Neighbours>, mpsc::Receiver<MeshEvent>)>,
}

/// What this host left behind when it last ran.
#[derive(Debug)]
pub struct Memory {
    files: Files,
    copy: Copy,
    attachments: BTreeMap<NetName, Attachment>,
    /// Ports whose interfaces were made here.
    taps: BTreeSet<NetName>,
    /// The lease books of a host that is alone.
    books: BTreeMap<NetName, (u64, Book)>,
    problems: Vec<String>,
}

impl Memory {
    /// Reads the files of the state directory. One that is damaged is reported, set aside and not used: this host then knows
    /// nothing until the directory says it, which is better than something wrong. One that can't be read, or is of another
    /// version, is an error.
    pub fn load(state_dir: &Path) -> Result<Self, StoredError> {
        let files = Files::new(state_dir);
        let mut problems = Vec::new();
        let mut damaged = |error: StoredError| {
            if !matches!(error, StoredError::Damaged { .. }) {
                return Err(error);
            }
            tracing::error!("{error}");
            problems.push(error.to_string());
            Ok(())
        };
        let copy = match files.load_copy() {
            Ok(copy) => copy.unwrap_or_default(),
            Err(error) => damaged(error).map(|()| Copy::default())?,
        };
        let attachments = match files.load_attachments() {
            Ok(attachments) => attachments,
            Err(error) => damaged(error).map(|()| BTreeMap::new())?,
        };
        let taps = match files.load_taps() {
            Ok(taps) => taps,
            Err(error) => damaged(error).map(|()| BTreeSet::new())?,
        };
        let mut books = BTreeMap::new();
        for (group, book) in files.load_books()? {
            match book {
                Ok(book) => drop(books.insert(group, (1, book))),
                Err(error) => damaged(error)?,
            }
        }
        Ok(Self { files, copy, attachments, taps, books, problems })
    }

    /// The revision that was in force.
    pub fn revision(&self) -> u64 {
        self.copy.kept.current.revision
    }
}

/// What all tasks of the plane share.
pub(crate) struct Shared {
    config: Arc<Config>,
    state: Mutex<State>,
    data: DataHandle,
    mesh: Option<Arc<dyn Neighbours>>,
    directory: Option<Directory>,
    /// Counts the steward's passes.
    changed: watch::Sender<u64>,
    /// What this host has to say of itself.
    published: watch::Sender<Option<documents::HostDocument>>,
    /// One attaches or detaches at a time.
    attaching: tokio::sync::Mutex<()>,
    /// One changes the network of a host that is alone at a time.
    changing: tokio::sync::Mutex<()>,
    /// To the steward. (Weak would do: the tasks that hold it are aborted at the end.)
    inputs: mpsc::Sender<Input>,
    files: Files,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-changed by a panic that another reader could not read.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the worker; none if it does not answer.
    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        match tokio::time::timeout(WORKER_MAX, self.data.ask(command)).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::error!(%error, "the worker can't be asked");
                None
            }
            Err(_) => {
                tracing::error!("the worker does not answer");
                None
            }
        }
    }

    async fn tell_mesh(&self, command: MeshCommand) {
        if let Some(mesh) = &self.mesh {
            mesh.tell(command).await;
        }
    }

    /// Gives a port of the network its device; whether that was made for it. Whoever calls holds [`Self::attaching`].
    async fn plug(&self, name: &NetName, to: &Attachment) -> Result<bool, ApiError> {
        let (mac, mtu, made) = {
            let state = self.state();
            let port = state.network.ports().get(name).ok_or_else(|| fail::port_not_found(name))?;
            (port.mac, port.policy.mtu, state.ports.get(name).is_some_and(|port| port.made))
        };
        let (opened_name, opened_to) = (name.clone(), to.clone());
        let opened =
            tokio::task::spawn_blocking(move || devices::port(&opened_name, &opened_to, mac, mtu, made))
                .await;
        let device = match opened {
            Ok(Ok(device)) => device,
            Ok(Err(OpenError::Tap { interface, why })) => return Err(fail::tap_refused(&interface, why)),
            Ok(Err(error)) => return Err(fail::device_failed(devices::words(to), error)),
            Err(error) => return Err(fail::internal(format!("attaching port {name}"), error)),
        };
        if let Attachment::VhostUser { socket: Some(path), connect: false, .. } = to
            && let Err(error) = local::give_to_group(Path::new(path), &self.config.host.group)
        {
            tracing::warn!(socket = path, %error, "the socket stays root's alone");
        }
        let (what, made) = (format!("attaching port {name}"), device.made());
        let attach = |answer| Command::Attach { name: name.clone(), device, answer };
        let attached = self.ask(attach).await.ok_or_else(|| fail::worker_gone(&what))?;
        attached.map_err(|refused| fail::device_failed(devices::words(to), refused))?;
        if let Some(port) = self.state().ports.get_mut(name) {
            (port.plugged, port.made, port.trouble) = (true, made, None);
        }
        Ok(made)
    }

    /// Has what was made here for a port outlive this program, or not. `None`: the worker is gone.
    async fn persist(&self, name: &NetName, stays: bool) -> Option<()> {
        let name = name.clone();
        // Of a port without a device there is nothing to be said.
        self.ask(move |answer| Command::Persist { name, stays, answer }).await.map(|_plugged| ())
    }

    /// Puts a network in place of the one with this revision: in the directory or, alone, in the file.
    async fn put_network(&self, basis: u64, document: NetworkDocument) -> Result<u64, ApiError> {
        match &self.directory {
            Some(directory) => control::put_in_directory(self, directory, basis, &document).await,
            None => control::put_in_file(self, basis, document).await,
        }
    }

    /// A port group's newest book of leases that is known here, and its revision.
    fn book(&self, group: &NetName) -> Result<(u64, Book), String> {
        let state = self.state();
        let written = state.view.as_ref().and_then(|view| view.documents.get(&documents::leases_name(group)));
        let kept = state.books.get(group);
        match (kept, written) {
            (Some((revision, book)), written) if written.is_none_or(|text| text.revision <= *revision) => {
                Ok((*revision, book.clone()))
            }
            (_, Some(text)) => {
                let book = Book::decode(text.content.as_bytes()).map_err(|error| error.to_string())?;
                Ok((text.revision, book))
            }
            (_, None) => Ok((0, Book::default())),
        }
    }

    /// Remembers a book that was written, until the directory shows it or a newer one.
    fn keep_book(&self, group: &NetName, revision: u64, book: &Book) {
        self.state().books.insert(group.clone(), (revision, book.clone()));
    }

    /// Says anew what this host has to say, if that is something else.
    fn publish(&self) {
        let document = {
            let state = self.state();
            state.configured.then(|| state.own_document(&self.config))
        };
        self.published.send_if_modified(|old| {
            let new = document.is_some() && *old != document;
            if new {
                *old = document;
            }
            new
        });
    }
}

/// The control plane of this host.
pub struct Plane {
    shared: Arc<Shared>,
    inputs: mpsc::Sender<Input>,
    tasks: Mutex<JoinSet<()>>,
}

impl Plane {
    /// Begins with what was in force when this host last ran. The worker has it soon after, whether `vsand` is there or not.
    pub fn start(parts: Parts) -> Self {
        let Parts { config, memory, host, data, data_events, mesh } = parts;
        let Memory { files, copy, attachments, taps, books, problems } = memory;
        let books = if config.host.alone { books } else { BTreeMap::new() };
        let alone = config.host.alone;
        let now = clock::now();
        let (mut keeper, effects) = Keeper::new(now, copy.kept);
        let mut network = Arc::default();
        for effect in effects.into_iter().chain(own_network(&config, &mut keeper)) {
            if let keeper::Effect::Apply(new) = effect {
                network = Arc::from(new);
            }
        }
        // What another cluster said is no concern of this one's.
        let view = copy.view.filter(|view| !alone && view.host == host);
        let name = config.host.name.clone().or_else(|| view.as_ref()?.hosts.get(&host).cloned());
        let mut state = State {
            host,
            name: name.unwrap_or_else(system_name),
            alone,
            keeper,
            network,
            configured: false,
            view: None,
            lost: (!alone).then(|| "vsand was not asked yet".to_owned()),
            peers: configured_peers(&config),
            peers_told: false,
            uplinks: BTreeMap::new(),
            ports: files::restored(attachments, &taps),
            claims: BTreeMap::new(),
            announced: BTreeMap::new(),
            frozen: BTreeSet::new(),
            books,
            problems,
            copy_problem: None,
            view_dirty: false,
            dirty: true,
        };
        if let Some(view) = &view {
            state.take_peers(view);
            state.view = Some(Arc::clone(view));
        }
        let (neighbours, mesh_events) = mesh.unzip();
        let (inputs, inputs_rx) = mpsc::channel(INPUTS_MAX);
        let shared = Arc::new(Shared {
            directory: (!alone).then(|| Directory::new(&config.host.vsand_socket, documents::PREFIX)),
            config,
            state: Mutex::new(state),
            data,
            mesh: neighbours,
            changed: watch::Sender::new(0),
            published: watch::Sender::new(None),
            attaching: tokio::sync::Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            inputs: inputs.clone(),
            files: files.clone(),
        });
        let mut tasks = JoinSet::new();
        let (wishes, wishes_rx) = mpsc::channel(leases::WISHES_MAX);
        tasks.spawn(Steward::new(Arc::clone(&shared), files, wishes).run(inputs_rx));
        tasks.spawn(leases::run(Arc::clone(&shared), wishes_rx));
        tasks.spawn(forward(data_events, inputs.clone(), Input::Data));
        if let Some(events) = mesh_events {
            tasks.spawn(forward(events, inputs.clone(), Input::Mesh));
        }
        if shared.directory.is_some() {
            tasks.spawn(follow(Arc::clone(&shared), view, inputs.clone()));
            tasks.spawn(publish::run(Arc::clone(&shared)));
        }
        Self { shared, inputs, tasks: Mutex::new(tasks) }
    }

    /// Waits until the worker has the network that this host begins with, ports and uplinks that could be opened among it.
    pub async fn ready(&self) {
        let mut changed = self.shared.changed.subscribe();
        // Its sender lives as long as we do.
        let _passed = changed.wait_for(|passes| *passes > 0).await;
    }

    /// Waits until the worker has ended.
    pub async fn failed(&self) {
        loop {
            match self.shared.data.ask(Command::Snapshot).await {
                Err(crate::data::port::SendError::Gone) => return,
                _ => tokio::time::sleep(WORKER_LOOK).await,
            }
        }
    }

    /// Whether the worker answers.
    pub async fn turns(&self) -> bool {
        matches!(tokio::time::timeout(WORKER_MAX, self.shared.data.ask(Command::Snapshot)).await, Ok(Ok(_)))
    }

    /// Stops changing anything. The worker goes on until it is told to stop.
    pub async fn stop(&self) {
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

/// The network of the settings file, if this host is alone and the file says something new.
fn own_network(config: &Config, keeper: &mut Keeper) -> Vec<keeper::Effect> {
    let known = keeper.kept().current.clone();
    if !config.host.alone || (known.revision > 0 && known.spec == config.spec) {
        return Vec::new();
    }
    let document = NetworkDocument::new(config.spec.clone(), true, None);
    keeper.handle_document(clock::now(), keeper.newest() + 1, &document)
}

/// The peers that the settings file names.
fn configured_peers(config: &Config) -> BTreeMap<HostId, Peer> {
    let peer = |it: &crate::config::PeerSettings| Peer {
        name: it.name.clone().unwrap_or_default(),
        control: it.addresses.iter().map(|ip| (*ip, it.control_port).into()).collect(),
        data: it.addresses.iter().map(|ip| (*ip, it.data_port).into()).collect(),
        ..Peer::default()
    };
    config.peers.iter().map(|it| (it.host, peer(it))).collect()
}

/// What the system calls this host.
fn system_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

async fn forward<T>(mut from: mpsc::Receiver<T>, to: mpsc::Sender<Input>, input: fn(T) -> Input) {
    while let Some(it) = from.recv().await {
        if to.send(input(it)).await.is_err() {
            return;
        }
    }
}

async fn follow(shared: Arc<Shared>, known: Option<Arc<View>>, inputs: mpsc::Sender<Input>) {
    let Some(directory) = &shared.directory else { return };
    let (events, events_rx) = mpsc::channel(1);
    tokio::join!(directory.follow(known, events), forward(events_rx, inputs, Input::Directory));
}

/// How often it is looked whether the worker has ended.
const WORKER_LOOK: Duration = Duration::from_secs(1);
/// How long a change waits for this host's own view to catch up with one that was faster.
const CATCH_UP: Duration = Duration::from_millis(100);
