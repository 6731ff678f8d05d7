//! How QUIC is set up for frames.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ferro_transport::identity::IdentityHandle;
use ferro_transport::tls::quic;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, ConnectionId, ConnectionIdGenerator as _, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    RandomConnectionIdGenerator, ServerConfig, TimeSource, TransportConfig, VarInt,
};

use super::congestion::Watch;
use super::conn::QUIC_BYTES;
use super::settings::{Congestion, IDLE_MAX, OpenError, Settings};

/// The protocol that data connections agree on; the number is the version.
pub const PROTOCOL: &[u8] = b"ferro-tunnel/1";

/// Until it is measured: hosts of a cluster are near each other, and a lost first packet should not cost a second.
const ROUND_TRIP_GUESS: Duration = Duration::from_millis(20);
/// Path-MTU discovery begins anew so often.
const PROBE_EVERY: Duration = Duration::from_secs(120);
/// The same, after the path stopped carrying what it carried.
const PROBE_AFTER_LOSS: Duration = Duration::from_secs(10);
/// Datagrams that were received and not yet taken: one batch from the socket is far less.
const RECEIVE_BYTES: usize = 8 << 20;
/// Handshakes under way on one socket.
const HANDSHAKES_MAX: usize = 64;

/// What sockets and connections are made from.
#[derive(Debug)]
pub(super) struct Quic {
    pub(super) endpoint: Arc<EndpointConfig>,
    pub(super) server: Arc<ServerConfig>,
    /// One for each of a path's connections.
    pub(super) client: Vec<ClientConfig>,
}

impl Quic {
    pub(super) fn new(settings: &Settings, identity: &IdentityHandle) -> Result<Self, OpenError> {
        let tls = |error: &dyn std::fmt::Display| OpenError::Tls(error.to_string());
        let mut endpoint = EndpointConfig::default();
        endpoint.max_udp_payload_size(settings.payload_max).map_err(|error| tls(&error))?;
        endpoint.grease_quic_bit(false);
        let transport = Arc::new(transport(settings)?);
        let server = quic::server(identity, PROTOCOL).map_err(|error| tls(&error))?;
        let server = QuicServerConfig::try_from(server).map_err(|error| tls(&error))?;
        let mut server = ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(Arc::clone(&transport)).migration(false).max_incoming(HANDSHAKES_MAX);
        server.incoming_buffer_size(64 << 10).incoming_buffer_size_total(1 << 20);
        server.time_source(Arc::new(Monotonic::default()));
        let client = quic::client(identity, PROTOCOL).map_err(|error| tls(&error))?;
        let client = Arc::new(QuicClientConfig::try_from(client).map_err(|error| tls(&error))?);
        let of_slot = |slot: u8| {
            let crypto: Arc<dyn quinn_proto::crypto::ClientConfig> = Arc::<QuicClientConfig>::clone(&client);
            let mut config = ClientConfig::new(crypto);
            config.transport_config(Arc::clone(&transport));
            config.initial_dst_cid_provider(Arc::new(move || first_id(slot)));
            config
        };
        let client = (0..settings.connections).map(of_slot).collect();
        Ok(Self { endpoint: Arc::new(endpoint), server: Arc::new(server), client })
    }
}

/// The time by which tokens are good, for those who had to show that they are where they say: nobody sets it.
#[derive(Debug)]
pub(in crate::tunnel) struct Monotonic(Instant);

impl Default for Monotonic {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl TimeSource for Monotonic {
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + self.0.elapsed()
    }
}

/// The id that a dialler gives the other side for its first packets. Which of the path's connections it is, is in there:
/// the id is authenticated in the handshake, and nobody else reads it.
fn first_id(slot: u8) -> ConnectionId {
    let mut id = [0; 16];
    id.copy_from_slice(&RandomConnectionIdGenerator::new(16).generate_cid());
    id[0] = slot;
    ConnectionId::new(&id)
}

/// The inverse of [`first_id`].
pub(super) fn slot_of(id: &ConnectionId) -> u8 {
    id.first().copied().unwrap_or(u8::MAX)
}

fn transport(settings: &Settings) -> Result<TransportConfig, OpenError> {
    let mut config = TransportConfig::default();
    let idle = IdleTimeout::try_from(IDLE_MAX).map_err(|error| OpenError::Tls(error.to_string()))?;
    // What is in flight is bounded for a path, whatever the number of its connections.
    let window = settings.congestion.window() / u32::from(settings.connections.max(1));
    let congestion = settings.congestion.with_window(window.max(Congestion::WINDOW_MIN));
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(settings.payload_max).interval(PROBE_EVERY).black_hole_cooldown(PROBE_AFTER_LOSS);
    discovery.minimum_change(8);
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .max_idle_timeout(Some(idle))
        .initial_rtt(ROUND_TRIP_GUESS)
        .mtu_discovery_config(Some(discovery))
        .datagram_receive_buffer_size(Some(RECEIVE_BYTES))
        .datagram_send_buffer_size(QUIC_BYTES)
        .congestion_controller_factory(Arc::new(Watch::new(congestion)));
    Ok(config)
}
