//! Control connections: the directory's transport, and what other hosts may ask this one.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_transport::control::{CallError, ControlHandler, ControlPeer, Fault, ServiceId};
use ferro_transport::identity::{HOST_CERT_LIFETIME, IdentityHandle};
use ferro_transport::{BoxFuture, renew};
use vsand_directory::{CallError as DirectoryCallError, Transport, service};

use super::Member;

/// Ask a host how its volumes, disks and resyncs are: answered with a [`crate::plane::remote::HostReport`] in JSON.
pub const REPORT: ServiceId = ServiceId(0x0200);
/// Ask a host for its events: a [`crate::events::Query`], answered with a [`crate::events::Page`], both in JSON.
pub const EVENTS: ServiceId = ServiceId(0x0201);
/// Ask a host for its part of a support bundle: answered with a [`ferro_protocol::api::HostSupport`] in JSON.
pub const SUPPORT: ServiceId = ServiceId(0x0202);
/// The longest that a directory message may take; its callers give up before.
const CALL_MAX: Duration = Duration::from_secs(20);

/// The control connections, one a host.
pub struct Peers {
    identity: IdentityHandle,
    peers: Mutex<HashMap<HostId, Arc<ControlPeer>>>,
}

impl Peers {
    pub(super) fn new(identity: IdentityHandle) -> Self {
        Self { identity, peers: Mutex::new(HashMap::new()) }
    }

    /// The connection to a host at this address; made when it is first used.
    pub fn peer(&self, host: HostId, address: SocketAddr) -> Arc<ControlPeer> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let peer = peers
            .entry(host)
            .or_insert_with(|| Arc::new(ControlPeer::new(host, vec![address], self.identity.clone())));
        peer.set_addrs(vec![address]);
        Arc::clone(peer)
    }

    /// Asks another host.
    pub async fn call(
        &self,
        host: HostId,
        address: SocketAddr,
        service: ServiceId,
        request: &[u8],
        within: Duration,
    ) -> Result<Vec<u8>, CallError> {
        self.peer(host, address).call(service, request, within).await
    }
}

impl Transport for Peers {
    fn call<'a>(
        &'a self,
        target: HostId,
        address: &'a str,
        service: u16,
        payload: Vec<u8>,
    ) -> futures_util::future::BoxFuture<'a, Result<Vec<u8>, DirectoryCallError>> {
        Box::pin(async move {
            let address: SocketAddr = address
                .parse()
                .map_err(|_| DirectoryCallError::NotSent(format!("{address} is not an address")))?;
            let peer = self.peer(target, address);
            peer.call(ServiceId(service), &payload, CALL_MAX).await.map_err(|error| match error {
                CallError::Unreachable { .. } | CallError::TooLong(_) => {
                    DirectoryCallError::NotSent(error.to_string())
                }
                _ => DirectoryCallError::NoAnswer(error.to_string()),
            })
        })
    }
}

/// Answers other hosts.
pub struct Answers {
    member: Weak<Member>,
}

impl Answers {
    pub(super) fn new(member: &Arc<Member>) -> Self {
        Self { member: Arc::downgrade(member) }
    }
}

impl ControlHandler for Answers {
    fn handle(
        &self,
        peer: HostId,
        asked: ServiceId,
        request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, Fault>> {
        Box::pin(async move {
            let member = self.member.upgrade().ok_or(Fault::Unavailable)?;
            let directory = service::APPEND..=service::STANDING;
            if directory.contains(&asked.0) {
                return Ok(member.directory.handle(peer, asked.0, &request).await);
            }
            // A certificate says only that the host was admitted once.
            if !member.state().hosts.contains_key(&peer) {
                return Err(Fault::Unavailable);
            }
            match asked {
                renew::SERVICE => {
                    let ca = member.identity_dir.load_ca().ok().flatten().ok_or(Fault::Unavailable)?;
                    let now = member.identity.now().ok_or(Fault::Unavailable)?;
                    renew::answer(&ca, peer, &request, now, HOST_CERT_LIFETIME)
                }
                REPORT => crate::plane::remote::report(&member).await.ok_or(Fault::Unavailable),
                EVENTS => crate::plane::events::answer(&member, &request).await.ok_or(Fault::Unavailable),
                SUPPORT => crate::plane::support::answer(&member).await.ok_or(Fault::Unavailable),
                _ => Err(Fault::UnknownService),
            }
        })
    }
}
