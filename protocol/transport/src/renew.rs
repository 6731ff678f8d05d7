//! A new certificate before the old one runs out.
//!
//! Two ways to the same end. A host that holds the CA key issues to itself ([`keep_renewed`] does all that a daemon
//! needs). One that does not makes a key and sends a signing request over its control connection ([`renew_over`]); the
//! issuer gives a certificate only for the host that the connection is authenticated as ([`answer`]).
//!
//! On the wire (service 1, [`SERVICE`]): the request is a version byte (1) and the PKCS #10 DER; the reply a version
//! byte (1), an outcome byte (0 issued, 1 refused) and the certificate's DER.

use std::time::Duration;

use ferro_protocol::ids::HostId;
use rustls_pki_types::{CertificateDer, UnixTime};
use tracing::{info, warn};

use crate::control::{CallError, ControlPeer, Fault, ServiceId};
use crate::identity::{CaError, ClusterCa, HostKey, IdentityDir, IdentityError, IdentityHandle, SwapError};

/// The number under which renewal is served on control connections.
pub const SERVICE: ServiceId = ServiceId(1);

const VERSION: u8 = 1;
const ISSUED: u8 = 0;
const REFUSED: u8 = 1;
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the certificate is looked at. Not a sleep until the due date: clocks are set and hosts are suspended.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Why a certificate was not renewed. The old one stays in use.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The files could not be read or written.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The certificate could not be made.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// It is not for us.
    #[error(transparent)]
    Swap(#[from] SwapError),
    /// This host has no CA key, and no issuer was asked.
    #[error(
        "this host holds no CA key, so it can't renew its own certificate; copy ca.key (mode 0600) from another host of the cluster"
    )]
    NoCaKey,
    /// The issuer could not be asked.
    #[error("the certificate could not be renewed: {0}")]
    Call(#[from] CallError),
    /// The issuer said no.
    #[error("host {0} refused to renew this host's certificate; see its log for the reason")]
    Refused(HostId),
    /// The issuer's answer makes no sense.
    #[error("host {0} answered the renewal with something else; check that both hosts run the same release")]
    BadAnswer(HostId),
}

/// Renews now, with the CA key of this host.
pub fn renew_own(
    dir: &IdentityDir,
    handle: &IdentityHandle,
    now: UnixTime,
    lifetime: Duration,
) -> Result<(), RenewError> {
    let ca = dir.load_ca()?.ok_or(RenewError::NoCaKey)?;
    handle.replace(dir.renew_with(&ca, &handle.current(), now, lifetime)?)?;
    Ok(())
}

/// Renews now, at an issuer.
pub async fn renew_over(
    issuer: &ControlPeer,
    dir: &IdentityDir,
    handle: &IdentityHandle,
    now: UnixTime,
) -> Result<(), RenewError> {
    let key = HostKey::generate(handle.host())?;
    let mut request = vec![VERSION];
    request.extend(key.signing_request()?);
    let reply = issuer.call(SERVICE, &request, CALL_TIMEOUT).await?;
    let cert = match reply.as_slice() {
        [VERSION, ISSUED, cert @ ..] => CertificateDer::from(cert.to_vec()),
        [VERSION, REFUSED] => return Err(RenewError::Refused(issuer.host())),
        _ => return Err(RenewError::BadAnswer(issuer.host())),
    };
    handle.replace(dir.store_renewed(&handle.current(), &cert, &key, now)?)?;
    Ok(())
}

/// Answers a renewal request of the authenticated `peer`. Whether the peer is still a member, the caller has checked.
pub fn answer(
    ca: &ClusterCa,
    peer: HostId,
    request: &[u8],
    now: UnixTime,
    lifetime: Duration,
) -> Result<Vec<u8>, Fault> {
    let [VERSION, request @ ..] = request else { return Err(Fault::BadRequest) };
    match ca.issue(request, peer, now, lifetime) {
        Ok(cert) => {
            info!(%peer, "renewed a host's certificate");
            Ok([&[VERSION, ISSUED], cert.as_ref()].concat())
        }
        Err(error) => {
            warn!(%peer, %error, "refused to renew a host's certificate");
            Ok(vec![VERSION, REFUSED])
        }
    }
}

/// Keeps this host's certificate fresh with its own CA key, for as long as it is polled. Failures are logged and tried
/// again: a third of the certificate's life is left for that.
pub async fn keep_renewed(dir: IdentityDir, handle: IdentityHandle, lifetime: Duration) {
    let pause = LOOK_INTERVAL.min(lifetime / 20).max(Duration::from_secs(1));
    loop {
        tokio::time::sleep(pause).await;
        let Some(now) = handle.now() else { continue };
        if !handle.current().validity().is_renewal_due(now) {
            continue;
        }
        let (dir, target) = (dir.clone(), handle.clone());
        // It waits for the disk.
        let renewed = tokio::task::spawn_blocking(move || renew_own(&dir, &target, now, lifetime)).await;
        match renewed {
            Ok(Ok(())) => {
                let until = handle.current().validity().not_after.as_secs();
                info!(until, "renewed this host's certificate");
            }
            Ok(Err(error)) => warn!(%error, "cannot renew this host's certificate; trying again"),
            Err(error) => warn!(%error, "the renewal was broken off; trying again"),
        }
    }
}
