//! Control connections: who is there, and where each address is.
//!
//! ```text
//!   plane ──MeshCommand──► owner (one task, in a thread of its own) ──MeshEvent──► plane ──Command::Peer*──► worker
//!                            │  ▲
//!                 messages, heartbeats, handshakes
//!                            ▼  │
//!                     links: one QUIC connection a path
//! ```
//!
//! Each path has a connection with heartbeats of its own, every 100 ms ([`vswitch_core::tunnel::Heart`]); three missed and the
//! path is dead; a host is there while any path works. Heartbeats repeat the highest number that was heard, and only a number
//! that was repeated counts: a path that works one way only is dead for both. This host's own stand-still is nobody's fault.
//!
//! The mesh knows all that this host has to say (from [`MeshCommand`]), so that a new connection can be told without asking
//! the worker; what peers say it passes on and keeps nothing of.
//!
//! Bounds: a message, the messages that wait for a slow peer (it is cut off then, and told all when it is back), a peer's
//! announcements, connections, handshakes. If the control plane takes no events, no messages are read; heartbeats go on.
//!
//! What it must not know: the switch, the worker, the directory. Whom to talk to it is told.

mod link;
pub mod message;
mod owner;
mod peer;
mod story;
#[cfg(test)]
mod tests;
mod types;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ferro_transport::identity::IdentityHandle;
use quinn::VarInt;
use tokio::sync::{mpsc, oneshot};

use super::ADDRESSES_MAX;
use owner::{Input, Owner};

pub use types::{MeshCommand, MeshEvent, MeshPeer, PathView, PeerView, Revision};

/// Why a connection is closed, for the other side's log.
const CLOSED: VarInt = VarInt::from_u32(0);
const REFUSED: VarInt = VarInt::from_u32(1);

/// Commands and inputs that wait for the owner.
const INPUTS_MAX: usize = 1024;
/// Events that wait for the control plane.
const EVENTS_MAX: usize = 1024;

/// How a mesh is made.
#[derive(Clone, Debug)]
pub struct MeshSettings {
    /// This host's control addresses, each with its port.
    pub listen: Vec<SocketAddr>,
    /// Where this host's tunnels are, for the other hosts.
    pub data: Vec<SocketAddr>,
    /// What this host has applied.
    pub applied: Revision,
    /// Drawn at random: tells this start of the daemon from others.
    pub incarnation: u64,
}

/// Why a mesh could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// A socket could not be opened.
    #[error(
        "cannot open the control socket {address}: {source}; check that the address is this host's and that no other program has the port"
    )]
    Socket {
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity could not be used.
    #[error("cannot use this host's certificate for control connections: {0}; load the identity again")]
    Tls(String),
    /// None, or too many.
    #[error("{0} control addresses: give from 1 to {ADDRESSES_MAX} of this host's")]
    Addresses(usize),
    /// Not an address of one network.
    #[error(
        "the control address {0} stands for all of this host's: name one for each network that leads to other hosts"
    )]
    Unspecified(SocketAddr),
    /// No thread.
    #[error("cannot start the control connections' thread: {0}")]
    Thread(io::Error),
}

/// The mesh has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the control connections have ended")]
pub struct MeshGone;

/// The control plane's end. Clones share one mesh; it ends, and tells the peers so, when the last is dropped.
#[derive(Clone, Debug)]
pub struct Mesh {
    commands: mpsc::Sender<Input>,
    addresses: Arc<[SocketAddr]>,
}

impl Mesh {
    /// Opens the sockets and begins to listen. It has a thread of its own: whatever the control plane does, heartbeats go on.
    pub fn start(
        settings: MeshSettings,
        identity: IdentityHandle,
    ) -> Result<(Self, mpsc::Receiver<MeshEvent>), MeshError> {
        if settings.listen.is_empty() || settings.listen.len() > ADDRESSES_MAX {
            return Err(MeshError::Addresses(settings.listen.len()));
        }
        if let Some(address) = settings.listen.iter().find(|address| address.ip().is_unspecified()) {
            return Err(MeshError::Unspecified(*address));
        }
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(MeshError::Thread)?;
        let (commands, commands_rx) = mpsc::channel(INPUTS_MAX);
        let (events, events_rx) = mpsc::channel(EVENTS_MAX);
        let owner = {
            let _inside = runtime.enter();
            Owner::new(settings, identity, events)?
        };
        let addresses = owner.addresses().into();
        let run = move || runtime.block_on(owner.run(commands_rx));
        std::thread::Builder::new().name("mesh".to_owned()).spawn(run).map_err(MeshError::Thread)?;
        Ok((Self { commands, addresses }, events_rx))
    }

    /// Where it listens: with the ports that the system chose, if it was to choose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Tells it something.
    pub async fn send(&self, command: MeshCommand) -> Result<(), MeshGone> {
        self.commands.send(Input::Command(command)).await.map_err(|_| MeshGone)
    }

    /// How its peers are.
    pub async fn peers(&self) -> Result<Vec<PeerView>, MeshGone> {
        let (answer, answered) = oneshot::channel();
        self.commands.send(Input::View(answer)).await.map_err(|_| MeshGone)?;
        answered.await.map_err(|_| MeshGone)
    }

    /// Lets the mesh's thread do nothing for a while, as if the process had been stopped.
    #[cfg(test)]
    async fn stall(&self, time: std::time::Duration) {
        self.commands.send(Input::Stall(time)).await.unwrap();
    }

    /// Loses all heartbeats of this socket from now on, or no longer.
    #[cfg(test)]
    async fn mute(&self, local: Option<SocketAddr>) {
        self.commands.send(Input::Mute(local)).await.unwrap();
    }
}
