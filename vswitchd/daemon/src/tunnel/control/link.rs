//! One control connection, and the tasks that carry its bytes. They decide nothing: what arrives goes to the owner.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::time::Instant;
use ferro_transport::identity::IdentityHandle;
use ferro_transport::tls::{Refusals, quic as tls};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, Connection, Endpoint, IdleTimeout, ServerConfig, TransportConfig, VarInt};
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use vswitch_core::tunnel::Heart;

use super::super::Path;
use super::super::data::quic::Monotonic;
use super::message::{Beat, MESSAGE_BYTES_MAX, Message, PROTOCOL};
use super::owner::Input;
use super::{MeshError, REFUSED};

/// A handshake may take so long.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);
/// A connection that is silent for so long is given up. Its path is dead long before.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// As for data connections.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(20);
/// Handshakes under way that others began, on one socket.
const HANDSHAKES_MAX: usize = 64;
/// So many heartbeats a new connection has to be heard.
const NEW_BEATS: u64 = 10;
/// Messages that wait to be sent: more than all that a host has to say. A peer that lets them wait is too slow.
pub(super) const OUTBOX_MAX: usize = 4096;

/// Which connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct LinkId(pub(super) u64);

/// A connection as its owner sees it.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) path: Path,
    pub(super) connection: Connection,
    pub(super) outbox: mpsc::Sender<Vec<u8>>,
    pub(super) heart: Heart,
    /// Whether the peer has said who it is.
    pub(super) greeted: bool,
    /// Heartbeats sent, the highest heard, and the highest of ours that the peer has heard.
    pub(super) sent: u64,
    pub(super) heard: u64,
    pub(super) repeated: u64,
    /// A newer connection has taken its place: when it is closed. Not at once, or the other side could think for a moment that
    /// the path does not work.
    pub(super) retired: Option<Instant>,
}

impl Link {
    /// Whether the path works.
    pub(super) fn alive(&self) -> bool {
        self.greeted && self.heart.alive() && self.retired.is_none()
    }

    /// Whether it may still come to life: nothing was heard yet, but not for long.
    pub(super) fn is_new(&self) -> bool {
        self.repeated == 0 && self.sent <= NEW_BEATS && self.retired.is_none()
    }

    /// A heartbeat has come. True if the path was dead and works now.
    pub(super) fn handle_beat(&mut self, now: Instant, beat: Beat) -> bool {
        self.heard = self.heard.max(beat.number);
        // Nobody has heard what was not said.
        if beat.heard <= self.repeated || beat.heard > self.sent {
            return false;
        }
        self.repeated = beat.heard;
        let was = self.alive();
        self.heart.handle_heard(now);
        !was && self.alive()
    }

    pub(super) fn send_beat(&mut self) {
        self.sent += 1;
        let beat = Beat { number: self.sent, heard: self.heard };
        // A connection that is lost says so elsewhere.
        let _lost = self.connection.send_datagram(beat.encode().to_vec().into());
    }
}

/// One socket.
pub(super) struct Socket {
    pub(super) local: SocketAddr,
    pub(super) endpoint: Endpoint,
}

/// How connections are made.
pub(super) struct Quic {
    server: ServerConfig,
    client: ClientConfig,
}

impl Quic {
    pub(super) fn new(identity: &IdentityHandle) -> Result<Self, MeshError> {
        let failed = |error: &dyn std::fmt::Display| MeshError::Tls(error.to_string());
        let mut transport = TransportConfig::default();
        let idle = IdleTimeout::try_from(IDLE_MAX).map_err(|error| failed(&error))?;
        transport
            .max_concurrent_bidi_streams(VarInt::from_u32(0))
            .max_concurrent_uni_streams(VarInt::from_u32(1))
            .stream_receive_window(VarInt::from_u32(1 << 20))
            .receive_window(VarInt::from_u32(1 << 20))
            .max_idle_timeout(Some(idle))
            .initial_rtt(ROUND_TRIP_GUESS)
            .datagram_receive_buffer_size(Some(16 << 10))
            .datagram_send_buffer_size(16 << 10);
        let transport = Arc::new(transport);
        let server = tls::server(identity, PROTOCOL).map_err(|error| failed(&error))?;
        let server = QuicServerConfig::try_from(server).map_err(|error| failed(&error))?;
        let mut server = ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(Arc::clone(&transport)).migration(false).max_incoming(HANDSHAKES_MAX);
        server.incoming_buffer_size(64 << 10).incoming_buffer_size_total(1 << 20);
        server.time_source(Arc::new(Monotonic::default()));
        let client = tls::client(identity, PROTOCOL).map_err(|error| failed(&error))?;
        let client = QuicClientConfig::try_from(client).map_err(|error| failed(&error))?;
        let mut client = ClientConfig::new(Arc::new(client));
        client.transport_config(transport);
        Ok(Self { server, client })
    }

    /// Opens a socket. To be called where tokio runs.
    pub(super) fn open(&self, address: SocketAddr) -> Result<Socket, MeshError> {
        let failed = |source| MeshError::Socket { address, source };
        let endpoint = Endpoint::server(self.server.clone(), address).map_err(failed)?;
        let local = endpoint.local_addr().map_err(failed)?;
        Ok(Socket { local, endpoint })
    }

    /// Begins to connect; the result goes to the owner.
    pub(super) fn dial(
        &self,
        socket: &Socket,
        host: HostId,
        remote: SocketAddr,
        inputs: mpsc::Sender<Input>,
    ) {
        let path = Path { local: socket.local, remote };
        let connecting = socket.endpoint.connect_with(self.client.clone(), remote, &tls::server_name(host));
        tokio::spawn(async move {
            let attempt = async {
                let connection = connecting.map_err(|error| error.to_string())?.await;
                connection.map_err(|error| error.to_string())
            };
            let result = timeout(HANDSHAKE_MAX, attempt).await;
            let result = result.unwrap_or_else(|_| Err("it does not answer".to_owned()));
            // The owner is gone only when the mesh ends.
            let _ended = inputs.send(Input::Dialled { host, path, result }).await;
        });
    }
}

/// Takes the connections that others make.
pub(super) async fn listen(
    socket: Endpoint,
    local: SocketAddr,
    inputs: mpsc::Sender<Input>,
    refusals: Arc<Refusals>,
) {
    let slots = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(incoming) = socket.accept().await {
        let remote = incoming.remote_address();
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            refusals.log(remote, "too many handshakes at once");
            incoming.refuse();
            continue;
        };
        let (inputs, refusals) = (inputs.clone(), Arc::clone(&refusals));
        tokio::spawn(async move {
            let _slot = slot;
            let connection = match timeout(HANDSHAKE_MAX, incoming).await {
                Ok(Ok(connection)) => connection,
                Ok(Err(error)) => return refusals.log(remote, &error.to_string()),
                Err(_) => return refusals.log(remote, "the handshake took too long"),
            };
            let shown = connection.peer_identity();
            let chain = shown.and_then(|it| it.downcast::<Vec<CertificateDer<'static>>>().ok());
            match tls::peer(chain.as_deref().map_or(&[][..], Vec::as_slice)) {
                Ok(host) => {
                    let path = Path { local, remote };
                    let _ended = inputs.send(Input::Accepted { host, path, connection }).await;
                }
                Err(reason) => {
                    refusals.log(remote, &format!("its certificate is not a host's: {reason}"));
                    connection.close(REFUSED, b"your certificate is not a host's");
                }
            }
        });
    }
}

/// Carries a connection's messages both ways until it ends.
pub(super) fn carry(
    id: LinkId,
    connection: &Connection,
    outbox: mpsc::Receiver<Vec<u8>>,
    messages: mpsc::Sender<(LinkId, Message)>,
    inputs: mpsc::Sender<Input>,
) {
    let (reading, writing, beating) = (connection.clone(), connection.clone(), connection.clone());
    let ended = inputs.clone();
    tokio::spawn(async move {
        if let Err(reason) = read(id, &reading, &messages).await {
            reading.close(REFUSED, reason.as_bytes());
            let _ended = ended.send(Input::Closed(id, reason)).await;
        }
    });
    tokio::spawn(write(writing, outbox));
    tokio::spawn(async move {
        loop {
            match beating.read_datagram().await {
                Ok(datagram) => {
                    let Some(beat) = Beat::decode(&datagram) else { continue };
                    if inputs.send(Input::Beat(id, beat)).await.is_err() {
                        return;
                    }
                }
                Err(reason) => {
                    let _ended = inputs.send(Input::Closed(id, reason.to_string())).await;
                    return;
                }
            }
        }
    });
}

/// Reads messages until the connection ends, which the heartbeats' task reports, or the peer sends what it must not.
async fn read(
    id: LinkId,
    connection: &Connection,
    messages: &mpsc::Sender<(LinkId, Message)>,
) -> Result<(), String> {
    let Ok(mut stream) = connection.accept_uni().await else { return Ok(()) };
    loop {
        let mut len = [0; 4];
        if stream.read_exact(&mut len).await.is_err() {
            return Err("it ended its messages".to_owned());
        }
        let len = u32::from_le_bytes(len) as usize;
        if len > MESSAGE_BYTES_MAX {
            return Err(format!("it announced a message of {len} bytes"));
        }
        let mut bytes = vec![0; len];
        if stream.read_exact(&mut bytes).await.is_err() {
            return Err("it ended its messages".to_owned());
        }
        let message = Message::decode(&bytes).map_err(|error| error.to_string())?;
        if messages.send((id, message)).await.is_err() {
            return Ok(());
        }
    }
}

async fn write(connection: Connection, mut outbox: mpsc::Receiver<Vec<u8>>) {
    let Ok(mut stream) = connection.open_uni().await else { return };
    while let Some(bytes) = outbox.recv().await {
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
