//! The new host's side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use ferro_protocol::ids::{ClusterId, HostId};
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde::Serialize;
use tokio::time::timeout;
use tracing::{info, warn};

use super::EXCHANGE_TIMEOUT;
use super::wire::{
    JoinRequest, JoinRequestV1, JoinResponse, Levels, REQUEST_VERSION, Refusal, Unreadable, Welcome,
};
use crate::frame;
use crate::identity::{CaError, CaFingerprint, ClusterCa, HostKey, Identity, IdentityDir, IdentityError};
use crate::tls::{ConnectError, PeerStream, connect_to_join};
use crate::token::JoinToken;

/// Who asks to be let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewHost {
    /// A fresh random id.
    pub host: HostId,
    /// The name that operators know it by.
    pub name: String,
    /// Where it will listen for the others.
    pub advertise: SocketAddr,
    /// The feature levels that its release speaks.
    pub levels: Levels,
}

/// Why a host could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It has an identity already, or its directory is unusable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its key could not be made, or what the cluster sent is no working CA.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The token is too old by this host's clock.
    #[error(
        "the token has expired; make a new one with `vsanctl cluster token` (if it is new, this host's clock is wrong)"
    )]
    Expired,
    /// The cluster said no.
    #[error("{addr} refused: {refusal}")]
    Refused {
        /// The member that answered.
        addr: SocketAddr,
        /// Its reason.
        refusal: Refusal,
    },
    /// None of the addresses could be reached as a member of the token's cluster.
    #[error("no member of the cluster could be reached ({0} addresses tried); the last answer: {1}")]
    Unreachable(usize, ConnectError),
    /// The connection broke between request and answer.
    #[error(
        "the connection to {addr} broke before the answer came: {source}; the token may be spent: make a new one with `vsanctl cluster token` if it is refused as used"
    )]
    Lost {
        /// The member.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The answer makes no sense.
    #[error(
        "{addr} sent an answer that is not understood ({what}); install the release that the cluster runs, then join with a new token"
    )]
    BadAnswer {
        /// The member.
        addr: SocketAddr,
        /// What was wrong.
        what: &'static str,
    },
}

/// A host that was let in, before its identity is written. First keep what the directory gave, then [`Self::store`]: a
/// host that has an identity also knows its fellow members, whenever it crashes.
#[derive(Debug)]
pub struct Admitted {
    dir: IdentityDir,
    ca: ClusterCa,
    cert: CertificateDer<'static>,
    key: HostKey,
    directory: Vec<u8>,
}

impl Admitted {
    /// The cluster that it is now a member of.
    pub fn cluster(&self) -> ClusterId {
        self.ca.cluster()
    }

    /// What the directory gave for the beginning: opaque here.
    pub fn directory(&self) -> &[u8] {
        &self.directory
    }

    /// Writes the identity. From then on the host is a member.
    pub fn store(&self, now: UnixTime) -> Result<Identity, IdentityError> {
        self.dir.store_member(&self.ca, &self.cert, &self.key, now)
    }
}

/// Joins the cluster of the token. The token's addresses are tried in order until a member answers.
pub async fn join(
    token: &JoinToken,
    me: &NewHost,
    dir: &IdentityDir,
    now: UnixTime,
) -> Result<Admitted, JoinError> {
    join_by_clock(token, me, dir, now, Arc::new(DefaultTimeProvider)).await
}

/// As [`join`], with the clock that the members' certificates are measured by.
pub async fn join_by_clock(
    token: &JoinToken,
    me: &NewHost,
    dir: &IdentityDir,
    now: UnixTime,
    clock: Arc<dyn TimeProvider>,
) -> Result<Admitted, JoinError> {
    dir.ensure_vacant()?;
    if now > token.expires() {
        return Err(JoinError::Expired);
    }
    let key = HostKey::generate(me.host)?;
    let asked = JoinRequestV1 {
        version: REQUEST_VERSION,
        cluster: token.cluster(),
        token: token.id(),
        secret: token.secret().clone(),
        host: me.host,
        name: me.name.clone(),
        advertise: me.advertise,
        signing_request: key.signing_request()?,
    };
    let request = JoinRequest { asked, levels: me.levels };
    let mut last = None;
    for &addr in token.addresses() {
        let error = match ask(addr, token, &request, &clock).await {
            Ok((welcome, ca_cert)) => return accept(addr, token, dir, key, welcome, &ca_cert),
            Err(error) => error,
        };
        match &error {
            JoinError::Unreachable(..) => {}
            JoinError::Refused { refusal, .. } if refusal.is_worth_another_member() => {}
            _ => return Err(error),
        }
        warn!(%addr, %error, "this member did not let us in; trying the next");
        last = Some(error);
    }
    // A token has at least one address, so there is a last error.
    Err(match last {
        Some(JoinError::Unreachable(_, error)) => JoinError::Unreachable(token.addresses().len(), error),
        Some(other) => other,
        None => JoinError::Expired,
    })
}

/// Asks one member: a second time, in version 1, if it is of a release that knows no other. Such a release speaks level 1
/// only, and has refused the first time without a look at the token.
async fn ask(
    addr: SocketAddr,
    token: &JoinToken,
    request: &JoinRequest,
    clock: &Arc<dyn TimeProvider>,
) -> Result<(Welcome, CertificateDer<'static>), JoinError> {
    match ask_once(addr, token, request, clock).await {
        Err(JoinError::Refused { refusal: Refusal::Version, .. }) if request.levels.contains(1) => {
            info!(%addr, "this member is of another release; asking it once more in version 1");
            ask_once(addr, token, &request.in_version_1(), clock).await
        }
        answer => answer,
    }
}

async fn ask_once<T: Serialize>(
    addr: SocketAddr,
    token: &JoinToken,
    request: &T,
    clock: &Arc<dyn TimeProvider>,
) -> Result<(Welcome, CertificateDer<'static>), JoinError> {
    let clock = Arc::clone(clock);
    let (mut connected, ca) =
        connect_to_join(addr, token.ca(), clock).await.map_err(|error| JoinError::Unreachable(1, error))?;
    let exchange = exchange(&mut connected.stream, request);
    let lost = |source| JoinError::Lost { addr, source };
    let answer = timeout(EXCHANGE_TIMEOUT, exchange)
        .await
        .map_err(|_| lost(io::ErrorKind::TimedOut.into()))?
        .map_err(lost)?;
    let response = JoinResponse::read(&answer).map_err(|error| JoinError::BadAnswer {
        addr,
        what: match error {
            Unreadable::Version(_) => "another version",
            Unreadable::Malformed => "malformed",
        },
    })?;
    let welcome = response.outcome.map_err(|refusal| JoinError::Refused { addr, refusal })?;
    Ok((welcome, ca))
}

async fn exchange<T: Serialize>(
    stream: &mut PeerStream,
    request: &T,
) -> io::Result<zeroize::Zeroizing<Vec<u8>>> {
    frame::send(stream, request).await?;
    frame::receive(stream).await
}

/// Believes nothing of the answer that can be checked.
fn accept(
    addr: SocketAddr,
    token: &JoinToken,
    dir: &IdentityDir,
    key: HostKey,
    welcome: Welcome,
    pinned: &CertificateDer<'_>,
) -> Result<Admitted, JoinError> {
    let bad = |what| JoinError::BadAnswer { addr, what };
    let ca_cert = CertificateDer::from(welcome.ca_cert);
    if CaFingerprint::of(&ca_cert) != token.ca() || ca_cert != *pinned {
        return Err(bad("the CA is not the token's"));
    }
    let ca = ClusterCa::from_parts(ca_cert, &welcome.ca_key)?;
    if ca.cluster() != token.cluster() || welcome.cluster != token.cluster() {
        return Err(bad("the cluster is not the token's"));
    }
    let cert = CertificateDer::from(welcome.host_cert);
    Ok(Admitted { dir: dir.clone(), ca, cert, key, directory: welcome.directory })
}
