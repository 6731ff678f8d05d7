//! The listening side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{Acceptor, NoServerSessionStorage, WebPkiClientVerifier};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tracing::{error, warn};

use super::error::describe;
use super::refusals::{PerAddress, Refusals};
use super::{
    BindError, Channel, HANDSHAKE_TIMEOUT, Incoming, Peer, PeerStream, PreambleError, crypto, preamble,
};
use crate::identity::{IdentityHandle, host_id_of};
use crate::socket;

/// After the system refuses an accept (out of descriptors), wait this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How much an endpoint takes on at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Handshakes under way; further connections wait in the kernel's backlog.
    pub handshakes: usize,
    /// Of those, from one address; further ones are refused.
    pub handshakes_per_address: usize,
    /// Established connections that nobody has accepted yet. They count as handshakes until there is room.
    pub waiting: usize,
    /// How long a handshake may take.
    pub handshake_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes: 256,
            handshakes_per_address: 64,
            waiting: 64,
            handshake_timeout: HANDSHAKE_TIMEOUT,
        }
    }
}

/// A listening peer port. Handshakes run beside each other in the background; dropping it closes the port and breaks
/// off those under way, and leaves accepted connections alone.
#[derive(Debug)]
pub struct Endpoint {
    local: SocketAddr,
    incoming: mpsc::Receiver<Incoming>,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Listens at this address as this host.
    pub async fn bind(addr: SocketAddr, identity: IdentityHandle) -> Result<Self, BindError> {
        Self::bind_with(addr, identity, Limits::default()).await
    }

    /// As [`Self::bind`], with other limits.
    pub async fn bind_with(
        addr: SocketAddr,
        identity: IdentityHandle,
        limits: Limits,
    ) -> Result<Self, BindError> {
        let door = Door {
            members: members_config(&identity)?,
            joiners: joiners_config(&identity)?,
            limits,
            per_address: Arc::default(),
            refusals: Refusals::default(),
        };
        let failed = |source| BindError::Io { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let (sender, incoming) = mpsc::channel(limits.waiting.max(1));
        let task = tokio::spawn(listen(listener, Arc::new(door), sender));
        Ok(Self { local, incoming, task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The next connection whose handshake succeeded. `None` only if the runtime is being shut down. Can be cancelled
    /// without losing a connection.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What every handshake needs.
struct Door {
    members: Arc<ServerConfig>,
    joiners: Arc<ServerConfig>,
    limits: Limits,
    per_address: Arc<PerAddress>,
    refusals: Refusals,
}

fn members_config(identity: &IdentityHandle) -> Result<Arc<ServerConfig>, rustls::Error> {
    members(identity, &[Channel::Control.alpn(), Channel::Data.alpn()])
}

/// A server that takes hosts of this cluster only, for these protocols.
pub(super) fn members(
    identity: &IdentityHandle,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let roots = Arc::clone(identity.roots());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto::provider())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let builder = ServerConfig::builder_with_details(crypto::provider(), Arc::clone(identity.clock()))
        .with_protocol_versions(crypto::VERSIONS)?
        .with_client_cert_verifier(verifier);
    Ok(finish(builder.with_cert_resolver(Arc::new(identity.clone())), protocols))
}

fn joiners_config(identity: &IdentityHandle) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_details(crypto::provider(), Arc::clone(identity.clock()))
        .with_protocol_versions(crypto::VERSIONS)?
        .with_no_client_auth();
    Ok(finish(builder.with_cert_resolver(Arc::new(identity.clone())), &[Channel::Join.alpn()]))
}

fn finish(mut config: ServerConfig, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    // Nothing of ours may be in flight when a stream is taken apart, and resumption would outlive a renewal.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Arc::new(config)
}

async fn listen(listener: TcpListener, door: Arc<Door>, sender: mpsc::Sender<Incoming>) {
    let slots = Arc::new(Semaphore::new(door.limits.handshakes.max(1)));
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            Some(ended) = handshakes.join_next(), if !handshakes.is_empty() => {
                if let Err(failure) = ended && failure.is_panic() {
                    error!(%failure, "a handshake task panicked");
                }
            }
            (slot, accepted) = next(&listener, &slots) => match accepted {
                Ok((tcp, addr)) => {
                    let _task = handshakes.spawn(admit(Arc::clone(&door), tcp, addr, slot, sender.clone()));
                }
                Err(failure) => {
                    warn!(%failure, "cannot accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// Waits for room first and a connection then, so that what there is no room for stays in the backlog.
async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (Option<OwnedSemaphorePermit>, io::Result<(TcpStream, SocketAddr)>) {
    // The semaphore is never closed, so there always is a permit.
    let slot = Arc::clone(slots).acquire_owned().await.ok();
    (slot, listener.accept().await)
}

async fn admit(
    door: Arc<Door>,
    tcp: TcpStream,
    addr: SocketAddr,
    _slot: Option<OwnedSemaphorePermit>,
    sender: mpsc::Sender<Incoming>,
) {
    let Some(_counted) = door.per_address.enter(addr.ip(), door.limits.handshakes_per_address) else {
        door.refusals.log(addr, "too many handshakes from its address at once");
        return;
    };
    match timeout(door.limits.handshake_timeout, handshake(&door, tcp, addr)).await {
        Ok(Ok(incoming)) => {
            // The receiver is gone only while the endpoint is being dropped.
            let _closed = sender.send(incoming).await;
        }
        Ok(Err(reason)) => door.refusals.log(addr, &reason),
        Err(_) => door.refusals.log(addr, "the handshake took too long"),
    }
}

/// The error is text for the log: nobody acts on it, and the peer has been told by TLS alert where that is possible.
async fn handshake(door: &Door, tcp: TcpStream, addr: SocketAddr) -> Result<Incoming, String> {
    socket::tune(&tcp).map_err(|error| error.to_string())?;
    let start = LazyConfigAcceptor::new(Acceptor::default(), tcp).await.map_err(|error| describe(&error))?;
    let channel = {
        let hello = start.client_hello();
        let mut offered = hello.alpn().into_iter().flatten();
        match (offered.next(), offered.next()) {
            (Some(name), None) => Channel::of_alpn(name),
            _ => return Err("it does not name one channel (ALPN)".to_owned()),
        }
    };
    // An unknown channel goes on to the members' configuration, which answers with the alert that TLS has for it.
    let config = if channel == Some(Channel::Join) { &door.joiners } else { &door.members };
    let stream = start.into_stream(Arc::clone(config)).await.map_err(|error| describe(&error))?;
    let channel = channel.ok_or_else(|| "it names an unknown channel (ALPN)".to_owned())?;
    let peer = match channel {
        Channel::Join => Peer::Joiner,
        Channel::Control | Channel::Data => {
            let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let cert = chain.first().ok_or_else(|| "it presented no certificate".to_owned())?;
            Peer::Host(host_id_of(cert).map_err(|error| format!("its certificate is not a host's: {error}"))?)
        }
    };
    let mut stream = PeerStream::from(stream);
    preamble::exchange(&mut stream, channel).await.map_err(|error| match error {
        PreambleError::Io(error) => describe(&error),
        other => other.to_string(),
    })?;
    Ok(Incoming { peer, channel, stream, addr })
}
