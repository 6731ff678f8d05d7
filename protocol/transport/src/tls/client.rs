//! The dialling side.

use std::net::SocketAddr;
use std::sync::Arc;

use ferro_protocol::ids::HostId;
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::verify::{AnyHost, Trust};
use super::{Channel, ConnectError, HANDSHAKE_TIMEOUT, PeerStream, PreambleError, crypto, preamble};
use crate::identity::{CaFingerprint, IdentityHandle, host_id_of, host_name_of};
use crate::socket;

/// A connection that we made.
#[derive(Debug)]
pub struct Connected {
    /// The host at the other end.
    pub peer: HostId,
    /// The encrypted stream, just after the preambles.
    pub stream: PeerStream,
}

/// Connects to a member of the cluster. With `expected`, it must be that host; without, any host of the cluster is
/// accepted and its id returned. `channel` is [`Channel::Control`] or [`Channel::Data`]: joining is [`crate::join`]'s.
/// Takes at most [`HANDSHAKE_TIMEOUT`].
pub async fn connect(
    addr: SocketAddr,
    expected: Option<HostId>,
    channel: Channel,
    identity: &IdentityHandle,
) -> Result<Connected, ConnectError> {
    let verifier = match expected {
        Some(_) => named(identity).map_err(ConnectError::Identity)?,
        None => Arc::new(AnyHost::new(Trust::Roots(Arc::clone(identity.roots())))),
    };
    let config = member(identity, verifier).map_err(ConnectError::Identity)?;
    dial(addr, expected, channel, config).await
}

/// Accepts the host that the dialled name stands for, and no other.
pub(super) fn named(identity: &IdentityHandle) -> Result<Arc<dyn ServerCertVerifier>, rustls::Error> {
    let roots = Arc::clone(identity.roots());
    let built = WebPkiServerVerifier::builder_with_provider(roots, crypto::provider()).build();
    // It fails only without roots, and the identity has its CA.
    Ok(built.map_err(|error| rustls::Error::General(error.to_string()))?)
}

/// A client that shows this host's certificate, whichever it is by then.
pub(super) fn member(
    identity: &IdentityHandle,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_details(crypto::provider(), Arc::clone(identity.clock()))
        .with_protocol_versions(crypto::VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(identity.clone()));
    Ok(config)
}

/// Connects to whichever member listens at the address, recognised by the CA's fingerprint, showing no certificate.
/// Returns the CA's certificate as well.
pub(crate) async fn connect_to_join(
    addr: SocketAddr,
    ca: CaFingerprint,
    clock: Arc<dyn TimeProvider>,
) -> Result<(Connected, CertificateDer<'static>), ConnectError> {
    let config = ClientConfig::builder_with_details(crypto::provider(), clock)
        .with_protocol_versions(crypto::VERSIONS)
        .map_err(ConnectError::Identity)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyHost::new(Trust::Pinned(ca))))
        .with_no_client_auth();
    let connected = dial(addr, None, Channel::Join, config).await?;
    let sent = connected.stream.get_ref().1.peer_certificates().unwrap_or_default();
    let ca = sent.iter().find(|cert| CaFingerprint::of(cert) == ca).cloned();
    let ca = ca.ok_or(ConnectError::Protocol { addr, reason: rustls::Error::NoCertificatesPresented })?;
    Ok((connected, ca))
}

async fn dial(
    addr: SocketAddr,
    expected: Option<HostId>,
    channel: Channel,
    mut config: ClientConfig,
) -> Result<Connected, ConnectError> {
    config.alpn_protocols = vec![channel.alpn().to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    let name = match expected {
        Some(host) => ServerName::try_from(host_name_of(host))
            .map_err(|_| ConnectError::Identity(rustls::Error::General("host name".to_owned())))?,
        // Looked at by nobody: the verifier for unknown hosts reads the certificate instead.
        None => ServerName::from(addr.ip()),
    };
    let attempt = async {
        let tcp =
            TcpStream::connect(addr).await.map_err(|source| ConnectError::Unreachable { addr, source })?;
        socket::tune(&tcp).map_err(|source| ConnectError::Unreachable { addr, source })?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await;
        let mut stream = PeerStream::from(tls.map_err(|error| ConnectError::from_io(addr, expected, error))?);
        // In TLS 1.3 the server judges our certificate after we are done: its refusal arrives here.
        preamble::exchange(&mut stream, channel).await.map_err(|error| match error {
            PreambleError::Io(error) => ConnectError::from_io(addr, expected, error),
            reason => ConnectError::Preamble { addr, reason },
        })?;
        Ok(stream)
    };
    let stream = timeout(HANDSHAKE_TIMEOUT, attempt).await.map_err(|_| ConnectError::TimedOut { addr })??;
    let tls = stream.get_ref().1;
    let foreign = |reason| ConnectError::Protocol { addr, reason };
    if tls.alpn_protocol() != Some(channel.alpn()) {
        return Err(foreign(rustls::Error::NoApplicationProtocol));
    }
    let cert = tls.peer_certificates().and_then(|chain| chain.first());
    let cert = cert.ok_or_else(|| foreign(rustls::Error::NoCertificatesPresented))?;
    let peer = host_id_of(cert).map_err(|error| foreign(rustls::Error::General(error.to_string())))?;
    if let Some(expected) = expected
        && peer != expected
    {
        return Err(ConnectError::WrongHost { addr, expected });
    }
    Ok(Connected { peer, stream })
}
