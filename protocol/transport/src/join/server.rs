//! The member's side.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use rustls_pki_types::UnixTime;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{info, warn};

use super::wire::{
    self, DIRECTORY_BYTES_MAX, JoinRequest, JoinResponse, Levels, REQUEST_VERSION_1, RESPONSE_VERSION,
    Refusal, Unreadable, Welcome,
};
use super::{EXCHANGE_TIMEOUT, JoiningHost};
use crate::BoxFuture;
use crate::frame;
use crate::identity::{CaError, ClusterCa};
use crate::tls::{Incoming, PeerStream, Refusals};
use crate::token::TokenLedger;

/// Joins that are served at once by one member.
const JOINS_MAX: usize = 16;
/// How long a joiner may take to send its request, holding one of those places.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The directory's part: it makes the host a member.
pub trait Admission: Send + Sync {
    /// The cluster's feature level, as everybody agrees it is now; [`Refusal::NotReady`] without a quorum. It may rise
    /// before [`Self::admit`] is called: what then becomes of the host is for `admit` to see to.
    fn level(&self) -> BoxFuture<'_, Result<u16, Refusal>>;

    /// Makes the host a member, and returns what it needs to take part (who the others are, and where): at most
    /// 512 KiB, opaque here. The token has been consumed, so a refusal costs the operator a new one.
    fn admit(&self, host: JoiningHost) -> BoxFuture<'_, Result<Vec<u8>, Refusal>>;
}

/// Why a join came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum JoinFailure {
    /// We said no, and the joiner has been told: as [`Refusal::Version`] if its release is too old to know the reason.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The CA could not make the certificate; the joiner was told that the cluster is not ready.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The directory gave more than fits; the joiner was told that the cluster is not ready.
    #[error("the directory gave {0} bytes for the new host, more than fits in an answer")]
    DirectoryTooLarge(usize),
}

/// Lets hosts in. One for each daemon that holds the CA key.
pub struct Registrar {
    ca: Arc<ClusterCa>,
    ledger: Arc<dyn TokenLedger>,
    admission: Arc<dyn Admission>,
    lifetime: Duration,
    places: Semaphore,
    refusals: Refusals,
}

impl Registrar {
    /// Lets hosts in by this ledger and this admission, with certificates of this lifetime.
    pub fn new(
        ca: Arc<ClusterCa>,
        ledger: Arc<dyn TokenLedger>,
        admission: Arc<dyn Admission>,
        lifetime: Duration,
    ) -> Self {
        let places = Semaphore::new(JOINS_MAX);
        Self { ca, ledger, admission, lifetime, places, refusals: Refusals::default() }
    }

    /// Serves one connection of the join channel to its end, and says which host came in.
    pub async fn serve(&self, incoming: Incoming, now: UnixTime) -> Result<HostId, JoinFailure> {
        let Incoming { mut stream, addr, .. } = incoming;
        let result = self.exchange(&mut stream, addr, now).await;
        match &result {
            Ok(host) => info!(peer = %addr, %host, "a host joined the cluster"),
            Err(failure) => self.refusals.log(addr, &failure.to_string()),
        }
        result
    }

    async fn exchange(
        &self,
        stream: &mut PeerStream,
        addr: SocketAddr,
        now: UnixTime,
    ) -> Result<HostId, JoinFailure> {
        let Ok(_place) = self.places.try_acquire() else {
            answer(stream, Err(Refusal::Busy)).await?;
            return Err(JoinFailure::Refused(Refusal::Busy));
        };
        let request = timeout(REQUEST_TIMEOUT, frame::receive(stream)).await.map_err(|_| timed_out())??;
        let refused = |refusal| (REQUEST_VERSION_1, Err(JoinFailure::Refused(refusal)));
        let (version, outcome) = match JoinRequest::read(&request) {
            Ok(request) => (request.asked.version, self.decide(request, addr, now).await),
            Err(Unreadable::Version(_)) => refused(Refusal::Version),
            Err(Unreadable::Malformed) => refused(Refusal::BadRequest),
        };
        match outcome {
            Ok((host, welcome)) => {
                answer(stream, Ok(welcome)).await?;
                Ok(host)
            }
            Err(failure) => {
                let refusal =
                    if let JoinFailure::Refused(refusal) = &failure { *refusal } else { Refusal::NotReady };
                answer(stream, Err(refusal.told_to(version))).await?;
                Err(failure)
            }
        }
    }

    async fn decide(
        &self,
        request: JoinRequest,
        addr: SocketAddr,
        now: UnixTime,
    ) -> Result<(HostId, Welcome), JoinFailure> {
        let refused = JoinFailure::Refused;
        let JoinRequest { asked: request, levels } = request;
        let record = self.ledger.find(request.token).await.map_err(refused)?;
        let record = record.ok_or(refused(Refusal::UnknownToken))?;
        record.check(&request.secret, now).map_err(refused)?;
        if request.cluster != self.ca.cluster() {
            return Err(refused(Refusal::WrongCluster));
        }
        if !wire::is_host_name(&request.name) {
            return Err(refused(Refusal::BadName));
        }
        let issued = self.ca.issue(&request.signing_request, request.host, now, self.lifetime);
        let host_cert = match issued {
            Ok(cert) => cert,
            Err(CaError::BadRequest | CaError::WrongHost(_)) => return Err(refused(Refusal::BadRequest)),
            Err(error) => return Err(error.into()),
        };
        // The last that can go wrong without costing the token. Nobody without a good one learns the level.
        let level = self.admission.level().await.map_err(refused)?;
        if !levels.contains(level) {
            let Levels { oldest, newest } = levels;
            return Err(refused(Refusal::FeatureLevel { cluster: level, oldest, newest }));
        }
        self.ledger.consume(request.token, request.host).await.map_err(refused)?;
        let joining = JoiningHost {
            host: request.host,
            name: request.name,
            advertise: request.advertise,
            cluster: request.cluster,
        };
        let directory = self.admission.admit(joining).await.map_err(|refusal| {
            warn!(peer = %addr, host = %request.host, token = %request.token, %refusal, "a token was spent in vain");
            refused(refusal)
        })?;
        if directory.len() > DIRECTORY_BYTES_MAX {
            return Err(JoinFailure::DirectoryTooLarge(directory.len()));
        }
        let welcome = Welcome {
            cluster: self.ca.cluster(),
            ca_cert: self.ca.cert().to_vec(),
            ca_key: self.ca.key_pkcs8(),
            host_cert: host_cert.to_vec(),
            directory,
        };
        Ok((request.host, welcome))
    }
}

impl std::fmt::Debug for Registrar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registrar").field("ca", &self.ca).finish_non_exhaustive()
    }
}

async fn answer(stream: &mut PeerStream, outcome: Result<Welcome, Refusal>) -> io::Result<()> {
    let response = JoinResponse { version: RESPONSE_VERSION, outcome };
    let send = async {
        frame::send(stream, &response).await?;
        tokio::io::AsyncWriteExt::shutdown(stream).await
    };
    timeout(EXCHANGE_TIMEOUT, send).await.map_err(|_| timed_out())?
}

fn timed_out() -> io::Error {
    io::Error::from(io::ErrorKind::TimedOut)
}
