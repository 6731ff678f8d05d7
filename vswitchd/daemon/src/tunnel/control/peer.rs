//! One peer: its connections, and how far its story is told.

use std::net::SocketAddr;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::time::Instant;

use super::super::Path;
use super::link::{Link, LinkId};
use super::message::Message;
use super::story::Listener;
use super::types::{MeshEvent, PathView, PeerView, Revision};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A path that this host dials.
#[derive(Debug)]
pub(super) struct Dial {
    pub(super) socket: usize,
    pub(super) path: Path,
    pub(super) under_way: bool,
    pub(super) retry_at: Instant,
    pause: Duration,
}

impl Dial {
    pub(super) fn new(now: Instant, socket: usize, path: Path) -> Self {
        Self { socket, path, under_way: false, retry_at: now, pause: PAUSE_MIN }
    }

    /// An attempt is over. The next is not before the pause is.
    pub(super) fn over(&mut self, now: Instant) {
        self.under_way = false;
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    /// A path works: the next time it is tried at once.
    pub(super) fn works(&mut self) {
        self.pause = PAUSE_MIN;
    }
}

/// See the module's documentation.
pub(super) struct Peer {
    pub(super) host: HostId,
    pub(super) control: Vec<SocketAddr>,
    pub(super) dials: Vec<Dial>,
    pub(super) links: Vec<Link>,
    pub(super) alive: bool,
    /// The connection on which this host tells its story.
    pub(super) told_on: Option<LinkId>,
    pub(super) trouble: Option<String>,
    incarnation: Option<u64>,
    listener: Listener,
    data: Vec<SocketAddr>,
    applied: Option<Revision>,
}

impl Peer {
    pub(super) fn new(host: HostId) -> Self {
        Self {
            host,
            control: Vec::new(),
            dials: Vec::new(),
            links: Vec::new(),
            alive: false,
            told_on: None,
            trouble: None,
            incarnation: None,
            listener: Listener::default(),
            data: Vec::new(),
            applied: None,
        }
    }

    pub(super) fn link(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// A message has come. An error is what the peer must not do: the connection is to be closed. `stale` are connections of
    /// an earlier start of the peer's daemon.
    pub(super) fn handle(
        &mut self,
        from: LinkId,
        message: Message,
        events: &mut impl Extend<MeshEvent>,
        stale: &mut Vec<LinkId>,
    ) -> Result<(), &'static str> {
        let host = self.host;
        let Some(link) = self.links.iter_mut().find(|link| link.id == from) else { return Ok(()) };
        if !link.greeted && !matches!(message, Message::Hello(_)) {
            return Err("its first message is no greeting");
        }
        let current = self.listener.believes(from);
        match message {
            Message::Hello(hello) => {
                if link.greeted || hello.host != host {
                    return Err("it greets twice, or as another host than its certificate's");
                }
                link.greeted = true;
                if self.incarnation.replace(hello.incarnation) != Some(hello.incarnation) {
                    stale.extend(self.links.iter().map(|link| link.id).filter(|id| *id != from));
                    self.listener = Listener::default();
                }
                self.set_data(hello.data, events);
                self.set_applied(hello.applied, events);
            }
            Message::Data(data) => self.set_data(data, events),
            Message::Applied(applied) => self.set_applied(applied, events),
            Message::Begin { generation, networks } => self.listener.begin(from, generation, networks),
            Message::Part(part) => self.listener.part(from, part)?,
            Message::End => {
                if let Some((networks, announcements)) = self.listener.end(from) {
                    events.extend([MeshEvent::Snapshot { host, networks, announcements }]);
                }
            }
            Message::Networks(networks) if current => events.extend([MeshEvent::Networks(host, networks)]),
            Message::Announce(it) if current => events.extend([MeshEvent::Announce(host, it)]),
            Message::Withdraw(it) if current => events.extend([MeshEvent::Withdraw(host, it)]),
            Message::Networks(_) | Message::Announce(_) | Message::Withdraw(_) => {}
        }
        Ok(())
    }

    fn set_data(&mut self, data: Vec<SocketAddr>, events: &mut impl Extend<MeshEvent>) {
        if self.data != data {
            self.data.clone_from(&data);
            events.extend([MeshEvent::DataAddresses(self.host, data)]);
        }
    }

    fn set_applied(&mut self, applied: Revision, events: &mut impl Extend<MeshEvent>) {
        if self.applied.replace(applied) != Some(applied) {
            events.extend([MeshEvent::Applied(self.host, applied)]);
        }
    }

    pub(super) fn view(&self) -> PeerView {
        let path = |link: &Link| PathView {
            path: link.path,
            alive: link.alive(),
            round_trip_us: u64::try_from(link.connection.rtt().as_micros()).unwrap_or(u64::MAX),
        };
        PeerView {
            host: self.host,
            alive: self.alive,
            applied: self.applied,
            data: self.data.clone(),
            paths: self.links.iter().map(path).collect(),
            trouble: self.trouble.clone(),
        }
    }
}
