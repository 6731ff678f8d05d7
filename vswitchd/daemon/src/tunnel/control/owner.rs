//! The mesh's one owner: a loop that chooses what happens next, and a synchronous part that changes what is known.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Lanes, Mac, Vni};
use ferro_protocol::time::Instant;
use ferro_transport::identity::IdentityHandle;
use ferro_transport::tls::Refusals;
use quinn::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};
use vswitch_core::tunnel::Heart;

use super::super::Path;
use super::link::{Link, LinkId, OUTBOX_MAX, Quic, Socket, carry, listen};
use super::message::{Beat, Hello, Message, PART_MAX};
use super::peer::{Dial, Peer};
use super::types::{MeshCommand, MeshEvent, MeshPeer, PeerView};
use super::{CLOSED, INPUTS_MAX, MeshError, MeshSettings, REFUSED};

/// How often hearts are looked at.
const TICK: Duration = Duration::from_millis(20);
/// Events that wait here besides those in the channel; no messages are read meanwhile.
const WAITING_MAX: usize = 1024;
/// Beyond so many, paths that come and go are no longer told: the control plane asks when it wants to know.
const WAITING_HARD_MAX: usize = 65_536;
/// How long a connection stays whose place was taken.
const RETIRED_FOR: Duration = Duration::from_secs(1);
/// The most connections of one peer.
const LINKS_MAX: usize = 64;

/// What can happen to a mesh.
pub(super) enum Input {
    Command(MeshCommand),
    View(oneshot::Sender<Vec<PeerView>>),
    Accepted {
        host: HostId,
        path: Path,
        connection: Connection,
    },
    Dialled {
        host: HostId,
        path: Path,
        result: Result<Connection, String>,
    },
    Beat(LinkId, Beat),
    Closed(LinkId, String),
    #[cfg(test)]
    Stall(Duration),
    #[cfg(test)]
    Mute(Option<SocketAddr>),
}

/// All that this host has to say.
struct Ours {
    hello: Hello,
    networks: Vec<Vni>,
    announcements: BTreeMap<(Vni, Lanes, Mac), Announcement>,
    generation: u64,
}

/// Both ends of a channel: the tasks get copies of the first.
type Both<T> = (mpsc::Sender<T>, mpsc::Receiver<T>);

pub(super) struct Owner {
    origin: std::time::Instant,
    quic: Quic,
    sockets: Vec<Socket>,
    ours: Ours,
    peers: BTreeMap<HostId, Peer>,
    links: u64,
    waiting: VecDeque<MeshEvent>,
    events: mpsc::Sender<MeshEvent>,
    inputs: Both<Input>,
    messages: Both<(LinkId, Message)>,
    refusals: Arc<Refusals>,
    #[cfg(test)]
    muted: Option<SocketAddr>,
}

impl Owner {
    /// Opens the sockets; to be called where tokio runs.
    pub(super) fn new(
        settings: MeshSettings,
        identity: IdentityHandle,
        events: mpsc::Sender<MeshEvent>,
    ) -> Result<Self, MeshError> {
        let quic = Quic::new(&identity)?;
        let sockets = settings.listen.iter().map(|address| quic.open(*address)).collect::<Result<_, _>>()?;
        let MeshSettings { data, applied, incarnation, .. } = settings;
        let hello = Hello { host: identity.host(), incarnation, data, applied };
        Ok(Self {
            origin: std::time::Instant::now(),
            quic,
            sockets,
            ours: Ours { hello, networks: Vec::new(), announcements: BTreeMap::new(), generation: 0 },
            peers: BTreeMap::new(),
            links: 0,
            waiting: VecDeque::new(),
            events,
            inputs: mpsc::channel(INPUTS_MAX),
            messages: mpsc::channel(INPUTS_MAX),
            refusals: Arc::default(),
            #[cfg(test)]
            muted: None,
        })
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|socket| socket.local).collect()
    }

    /// Until nobody is left to command.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Input>) {
        for Socket { local, endpoint } in &self.sockets {
            tokio::spawn(listen(endpoint.clone(), *local, self.inputs.0.clone(), Arc::clone(&self.refusals)));
        }
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let events = self.events.clone();
        loop {
            let room = self.waiting.len() < WAITING_MAX;
            tokio::select! {
                _ = tick.tick() => self.handle_time(),
                Some(input) = self.inputs.1.recv() => self.handle(input),
                permit = events.reserve(), if !self.waiting.is_empty() => {
                    if let (Ok(permit), Some(event)) = (permit, self.waiting.pop_front()) {
                        permit.send(event);
                    } else {
                        // Nobody listens any more: the daemon ends.
                        self.waiting.clear();
                    }
                }
                command = commands.recv() => match command {
                    Some(command) => self.handle(command),
                    None => break,
                },
                Some((link, message)) = self.messages.1.recv(), if room => self.handle_message(link, message),
            }
        }
        for socket in &self.sockets {
            socket.endpoint.close(CLOSED, b"the switch stops");
            socket.endpoint.wait_idle().await;
        }
    }

    fn now(&self) -> Instant {
        Instant(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Command(command) => self.handle_command(command),
            // Who asked may have gone meanwhile.
            Input::View(answer) => drop(answer.send(self.peers.values().map(Peer::view).collect())),
            Input::Accepted { host, path, connection } => self.accepted(host, path, connection),
            Input::Dialled { host, path, result } => self.dialled(host, path, result),
            Input::Beat(link, beat) => self.handle_beat(link, beat),
            Input::Closed(link, reason) => self.closed(link, &reason),
            #[cfg(test)]
            Input::Stall(time) => std::thread::sleep(time),
            #[cfg(test)]
            Input::Mute(local) => self.muted = local,
        }
    }

    fn handle_command(&mut self, command: MeshCommand) {
        match command {
            MeshCommand::Peers(peers) => self.set_peers(peers),
            MeshCommand::Networks(networks) => {
                self.ours.networks.clone_from(&networks);
                self.tell(&Message::Networks(networks), false);
            }
            MeshCommand::Announce(it) => {
                self.ours.announcements.insert((it.vni, it.lanes, it.mac), it.clone());
                self.tell(&Message::Announce(it), false);
            }
            MeshCommand::Withdraw(it) => {
                let name = (it.vni, it.lanes, it.mac);
                if self.ours.announcements.get(&name).is_some_and(|known| known.sequence <= it.sequence) {
                    self.ours.announcements.remove(&name);
                }
                self.tell(&Message::Withdraw(it), false);
            }
            MeshCommand::DataAddresses(data) => {
                self.ours.hello.data.clone_from(&data);
                self.tell(&Message::Data(data), true);
            }
            MeshCommand::Applied(applied) => {
                self.ours.hello.applied = applied;
                self.tell(&Message::Applied(applied), true);
            }
        }
    }

    /// Says something to all peers: on all paths, or on the one where the story is told.
    fn tell(&mut self, message: &Message, everywhere: bool) {
        let bytes = match message.encode() {
            Ok(bytes) => bytes,
            Err(error) => return warn!(%error, "cannot tell the other hosts of a change"),
        };
        let mut slow = Vec::new();
        for peer in self.peers.values() {
            let told_on = peer.told_on;
            for link in peer.links.iter().filter(|link| everywhere || told_on == Some(link.id)) {
                if link.outbox.try_send(bytes.clone()).is_err() {
                    slow.push(link.id);
                }
            }
        }
        for link in slow {
            self.cut(link, "it is too slow");
        }
    }

    fn set_peers(&mut self, wanted: Vec<MeshPeer>) {
        let now = self.now();
        let here = self.ours.hello.host;
        let wanted: BTreeMap<HostId, Vec<SocketAddr>> =
            wanted.into_iter().filter(|peer| peer.host != here).map(|it| (it.host, it.control)).collect();
        let gone: Vec<HostId> =
            self.peers.keys().filter(|host| !wanted.contains_key(*host)).copied().collect();
        for host in gone {
            let Some(mut peer) = self.peers.remove(&host) else { continue };
            for link in std::mem::take(&mut peer.links) {
                link.connection.close(CLOSED, b"the host was removed");
                if link.alive() {
                    self.event(MeshEvent::PathDown(host, link.path));
                }
            }
            if peer.alive {
                self.event(MeshEvent::Dead(host));
            }
        }
        for (host, mut control) in wanted {
            control.sort_unstable();
            control.dedup();
            control.truncate(super::ADDRESSES_MAX);
            let peer = self.peers.entry(host).or_insert_with(|| Peer::new(host));
            // The lower of two hosts dials.
            if here < host && peer.control != control {
                let mut dials = Vec::new();
                for (at, socket) in self.sockets.iter().enumerate() {
                    for remote in control.iter().filter(|it| it.is_ipv4() == socket.local.is_ipv4()) {
                        let path = Path { local: socket.local, remote: *remote };
                        let kept = peer.dials.iter().position(|dial| dial.path == path);
                        let dial = kept.map(|kept| peer.dials.swap_remove(kept));
                        dials.push(dial.unwrap_or_else(|| Dial::new(now, at, path)));
                    }
                }
                peer.dials = dials;
                let wanted = |link: &&Link| !control.contains(&link.path.remote);
                let moved: Vec<LinkId> = peer.links.iter().filter(wanted).map(|link| link.id).collect();
                peer.control = control;
                for link in moved {
                    self.cut(link, "its address is gone");
                }
            } else {
                peer.control = control;
            }
        }
        self.dial();
    }

    fn accepted(&mut self, host: HostId, path: Path, connection: Connection) {
        let here = self.ours.hello.host;
        match self.peers.get(&host) {
            None => {
                self.refusals.log(path.remote, &format!("host {host} is not known here"));
                connection.close(REFUSED, b"this host is not known here");
            }
            Some(_) if here < host => {
                self.refusals.log(path.remote, &format!("host {host} is to be dialled, and not to dial"));
                connection.close(REFUSED, b"the lower host dials");
            }
            Some(_) => self.add(host, path, connection),
        }
    }

    fn dialled(&mut self, host: HostId, path: Path, result: Result<Connection, String>) {
        let now = self.now();
        let wanted = self.peers.get_mut(&host);
        let dial = wanted.and_then(|peer| {
            let dial = peer.dials.iter_mut().find(|dial| dial.path == path)?;
            dial.over(now);
            Some(&mut peer.trouble)
        });
        match (dial, result) {
            (Some(_), Ok(connection)) => self.add(host, path, connection),
            (Some(trouble), Err(reason)) => {
                if trouble.as_ref() != Some(&reason) {
                    warn!(%host, %path, reason, "cannot connect to a host; trying again");
                    *trouble = Some(reason);
                }
            }
            (None, Ok(connection)) => connection.close(CLOSED, b"no longer wanted"),
            (None, Err(_)) => {}
        }
    }

    /// A connection stands: it greets. When it works, it takes its path's place.
    fn add(&mut self, host: HostId, path: Path, connection: Connection) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&host) else { return };
        if peer.links.len() >= LINKS_MAX {
            self.refusals.log(path.remote, "it has too many connections");
            connection.close(REFUSED, b"too many connections");
            return;
        }
        self.links += 1;
        let id = LinkId(self.links);
        let (outbox, queued) = mpsc::channel(OUTBOX_MAX);
        carry(id, &connection, queued, self.messages.0.clone(), self.inputs.0.clone());
        let heart = Heart::new(now);
        let (greeted, sent, heard, repeated, retired) = (false, 0, 0, 0, None);
        let mut link = Link { id, path, connection, outbox, heart, greeted, sent, heard, repeated, retired };
        link.send_beat();
        match Message::Hello(self.ours.hello.clone()).encode() {
            // The queue is empty.
            Ok(bytes) => drop(link.outbox.try_send(bytes)),
            Err(error) => warn!(%error, "cannot greet another host"),
        }
        peer.links.push(link);
    }

    fn handle_beat(&mut self, id: LinkId, beat: Beat) {
        let now = self.now();
        let Some(host) = self.host_of(id) else { return };
        let Some(link) = self.peers.get_mut(&host).and_then(|peer| peer.link(id)) else { return };
        #[cfg(test)]
        if self.muted == Some(link.path.local) {
            return;
        }
        let first = link.heard == 0;
        let risen = link.handle_beat(now, beat);
        if first {
            // So that the path works after one round trip, and not after a heartbeat's time.
            link.send_beat();
        }
        if risen {
            self.risen(host, id);
        }
    }

    fn handle_message(&mut self, id: LinkId, message: Message) {
        let Some(host) = self.host_of(id) else { return };
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let was = peer.link(id).is_some_and(|link| link.alive());
        let mut stale = Vec::new();
        let result = peer.handle(id, message, &mut self.waiting, &mut stale);
        let is = peer.link(id).is_some_and(|link| link.alive());
        for link in stale {
            self.cut(link, "the host has started anew");
        }
        if let Err(reason) = result {
            warn!(%host, reason, "a host says what it must not; check that all hosts run the same release");
            self.cut(id, reason);
        } else if !was && is {
            self.risen(host, id);
        }
    }

    /// A connection works now, and with it its path.
    fn risen(&mut self, host: HostId, id: LinkId) {
        let now = self.now();
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let Some(path) = peer.link(id).map(|link| link.path) else { return };
        peer.trouble = None;
        if let Some(dial) = peer.dials.iter_mut().find(|dial| dial.path == path) {
            dial.works();
        }
        let mut worked = false;
        for older in peer.links.iter_mut().filter(|link| link.path == path && link.id != id) {
            worked |= older.alive();
            older.retired = older.retired.or(Some(now + RETIRED_FOR));
        }
        let first = !std::mem::replace(&mut peer.alive, true);
        if !worked {
            debug!(%host, %path, "a control path is up");
            self.event(MeshEvent::PathUp(host, path));
        }
        if first {
            self.event(MeshEvent::Alive(host));
        }
        self.tell_story(host);
    }

    /// A path that worked does not any more.
    fn fallen(&mut self, host: HostId, path: Path) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let dead = peer.alive && !peer.links.iter().any(Link::alive);
        peer.alive &= !dead;
        warn!(%host, %path, "a control path is down");
        self.event(MeshEvent::PathDown(host, path));
        if dead {
            self.event(MeshEvent::Dead(host));
        }
        self.tell_story(host);
    }

    /// Sees to it that the peer is told all on a path that works.
    fn tell_story(&mut self, host: HostId) {
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let working = |id: LinkId| peer.links.iter().any(|link| link.id == id && link.alive());
        if peer.told_on.is_some_and(working) {
            return;
        }
        peer.told_on = None;
        let Some(link) = peer.links.iter().find(|link| link.alive()) else { return };
        self.ours.generation += 1;
        let all: Vec<Announcement> = self.ours.announcements.values().cloned().collect();
        let begin = Message::Begin { generation: self.ours.generation, networks: self.ours.networks.clone() };
        let parts = all.chunks(PART_MAX).map(|part| Message::Part(part.to_vec()));
        let id = link.id;
        let mut failed = None;
        for message in std::iter::once(begin).chain(parts).chain([Message::End]) {
            match message.encode() {
                Ok(bytes) => {
                    if link.outbox.try_send(bytes).is_err() {
                        failed = Some("it is too slow".to_owned());
                    }
                }
                Err(error) => failed = Some(error.to_string()),
            }
        }
        peer.told_on = Some(id);
        if let Some(reason) = failed {
            self.cut(id, &reason);
        }
    }

    fn host_of(&self, id: LinkId) -> Option<HostId> {
        let mut peers = self.peers.values();
        peers.find(|peer| peer.links.iter().any(|link| link.id == id)).map(|peer| peer.host)
    }

    /// Closes a connection.
    fn cut(&mut self, id: LinkId, reason: &str) {
        let Some(host) = self.host_of(id) else { return };
        if let Some(link) = self.peers.get_mut(&host).and_then(|peer| peer.link(id)) {
            link.connection.close(REFUSED, reason.as_bytes());
        }
        self.closed(id, reason);
    }

    /// A connection is over.
    fn closed(&mut self, id: LinkId, reason: &str) {
        let now = self.now();
        let Some(host) = self.host_of(id) else { return };
        let Some(peer) = self.peers.get_mut(&host) else { return };
        let Some(at) = peer.links.iter().position(|link| link.id == id) else { return };
        let link = peer.links.remove(at);
        if let Some(dial) = peer.dials.iter_mut().find(|dial| dial.path == link.path && !dial.under_way) {
            dial.over(now);
        }
        debug!(%host, path = %link.path, reason, "a control connection is closed");
        if !peer.alive && peer.trouble.is_none() {
            peer.trouble = Some(reason.to_owned());
        }
        if link.alive() {
            self.fallen(host, link.path);
        }
    }

    fn handle_time(&mut self) {
        let now = self.now();
        let (mut fallen, mut over) = (Vec::new(), Vec::new());
        for peer in self.peers.values_mut() {
            for link in &mut peer.links {
                if link.retired.is_some_and(|at| now >= at) {
                    over.push(link.id);
                }
                let was = link.alive();
                let beat = link.heart.handle_time(now);
                #[cfg(test)]
                if self.muted == Some(link.path.local) {
                    if beat.died && was {
                        fallen.push((peer.host, link.path));
                    }
                    continue;
                }
                if beat.send {
                    link.send_beat();
                }
                if beat.died && was {
                    fallen.push((peer.host, link.path));
                }
            }
        }
        for (host, path) in fallen {
            self.fallen(host, path);
        }
        for link in over {
            self.cut(link, "replaced by a newer connection");
        }
        self.dial();
    }

    /// Dials where nothing works and nothing is under way.
    fn dial(&mut self) {
        let now = self.now();
        for peer in self.peers.values_mut() {
            for dial in &mut peer.dials {
                let works = |link: &Link| link.path == dial.path && (link.alive() || link.is_new());
                let works = peer.links.iter().any(works);
                if !works && !dial.under_way && now >= dial.retry_at {
                    dial.under_way = true;
                    let socket = &self.sockets[dial.socket];
                    self.quic.dial(socket, peer.host, dial.path.remote, self.inputs.0.clone());
                }
            }
        }
    }

    fn event(&mut self, event: MeshEvent) {
        let optional = matches!(event, MeshEvent::PathUp(..) | MeshEvent::PathDown(..));
        if !optional || self.waiting.len() < WAITING_HARD_MAX {
            self.waiting.push_back(event);
        }
    }
}
