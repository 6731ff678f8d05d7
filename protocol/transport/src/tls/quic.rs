//! TLS for QUIC between members: the same trust as on TCP, handed to whoever drives the QUIC state machines.
//!
//! Both sides show the certificate that the identity holds at that moment, so a renewal is followed without a restart;
//! connections that stand are not touched. The protocol (ALPN) carries its version: two releases that don't understand each
//! other part in the handshake. No resumption, no early data.
//!
//! What it must not know: QUIC itself, and who is a member now: see [`super`].

use std::sync::Arc;

use ferro_protocol::ids::HostId;
use rustls::client::Resumption;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;

use super::{client, endpoint};
use crate::identity::{BadCertificate, IdentityHandle, host_id_of, host_name_of};

/// The accepting side: demands a certificate of the cluster. Whose it is, [`peer`] says.
pub fn server(identity: &IdentityHandle, protocol: &[u8]) -> Result<Arc<ServerConfig>, rustls::Error> {
    endpoint::members(identity, &[protocol])
}

/// The dialling side. The host that is meant is dialled by [`server_name`]; another is refused.
pub fn client(identity: &IdentityHandle, protocol: &[u8]) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = client::member(identity, client::named(identity)?)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// The name to dial a host by.
pub fn server_name(host: HostId) -> String {
    host_name_of(host)
}

/// Whose connection it is, from the chain that the handshake has verified.
pub fn peer(chain: &[CertificateDer<'_>]) -> Result<HostId, BadCertificate> {
    host_id_of(chain.first().ok_or(BadCertificate::NoHostId)?)
}
