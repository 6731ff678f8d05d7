//! The identity directory.
//!
//! ```text
//!   identity/            0700
//!     ca.pem       0644  the cluster's CA certificate
//!     ca.key       0600  its key (PKCS #8)
//!     host.pem     0644  this host's certificate
//!     host.key     0600  its key (PKCS #8)
//!     host.pem.new, host.key.new   a renewal that is under way or was cut off
//! ```
//!
//! Only `vsand` writes here; the other daemons read. Each file is replaced in one step. Certificate and key must change
//! together, and two renames are not one step, so: both are made durable under their `.new` names, then the key is
//! renamed, then the certificate. Cut before the first rename, the old pair is whole. Cut between them, `host.key`
//! fits `host.pem.new`, which is what a reader tries next; the next writer finishes the rename. A host becomes a member
//! with its pair, which is written last: whatever a bootstrap or a join leaves behind before is simply overwritten.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::{ClusterId, HostId};
use rustls::RootCertStore;
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

use super::cert::{self, CaFingerprint, Validity};
use super::files;
use super::{ClusterCa, HostKey, IdentityError};
use crate::tls::crypto;

/// What a host shows to others and what it measures them by. It has been verified: the certificate is the CA's work,
/// names this host, and belongs to the key.
#[derive(Clone)]
pub struct Identity {
    cluster: ClusterId,
    host: HostId,
    ca: CertificateDer<'static>,
    validity: Validity,
    certified: Arc<CertifiedKey>,
}

impl Identity {
    /// The cluster that the host belongs to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// The host.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// The cluster's CA certificate.
    pub fn ca(&self) -> &CertificateDer<'static> {
        &self.ca
    }

    /// What a join token pins.
    pub fn ca_fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.ca)
    }

    /// From when to when the host's certificate is good.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    pub(crate) fn roots(&self) -> Result<RootCertStore, rustls::Error> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        Ok(roots)
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("cluster", &self.cluster)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// The directory that holds a host's identity. See the module's head for its files.
#[derive(Clone, Debug)]
pub struct IdentityDir {
    path: PathBuf,
}

impl IdentityDir {
    /// The identity directory at this path. Nothing is read or made yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this host belongs to a cluster, as far as its files say.
    pub fn is_member(&self) -> bool {
        self.cert_path().exists() || self.read_pair().is_ok()
    }

    /// Refuses if there is an identity already: for those who are about to make or fetch one.
    pub fn ensure_vacant(&self) -> Result<(), IdentityError> {
        if self.is_member() {
            return Err(IdentityError::AlreadyAMember(self.cert_path()));
        }
        Ok(())
    }

    /// Makes a cluster and its first member.
    pub fn bootstrap(
        &self,
        cluster: ClusterId,
        host: HostId,
        now: UnixTime,
        lifetime: Duration,
    ) -> Result<Identity, IdentityError> {
        self.ensure_vacant()?;
        let ca = ClusterCa::create(cluster, now, super::CA_LIFETIME)?;
        let key = HostKey::generate(host)?;
        let cert = ca.issue(&key.signing_request()?, host, now, lifetime)?;
        self.store_member(&ca, &cert, &key, now)
    }

    /// Writes a new member's identity, after verifying it.
    pub fn store_member(
        &self,
        ca: &ClusterCa,
        cert: &CertificateDer<'static>,
        key: &HostKey,
        now: UnixTime,
    ) -> Result<Identity, IdentityError> {
        self.ensure_vacant()?;
        let identity = self.verify(ca.cert().clone(), cert.clone(), key.pkcs8(), now)?;
        self.check_time(&identity, now)?;
        files::create_private_dir(&self.path)?;
        files::replace(&self.ca_path(), files::to_pem("CERTIFICATE", ca.cert()).as_bytes(), 0o644)?;
        files::replace(&self.ca_key_path(), files::to_pem("PRIVATE KEY", &ca.key_pkcs8()).as_bytes(), 0o600)?;
        self.store_pair(cert, key)?;
        Ok(identity)
    }

    /// Reads and verifies everything. An expired certificate is an error here; see [`Self::load_or_renew`].
    pub fn load(&self, now: UnixTime) -> Result<Identity, IdentityError> {
        let identity = self.load_at_any_time(now)?;
        self.check_time(&identity, now)?;
        Ok(identity)
    }

    /// As [`Self::load`], but a certificate that has run out or soon will is first replaced, if this host holds the CA
    /// key. So a host comes back after any absence.
    pub fn load_or_renew(&self, now: UnixTime, lifetime: Duration) -> Result<Identity, IdentityError> {
        let identity = self.load_at_any_time(now)?;
        if identity.validity.is_renewal_due(now)
            && let Some(ca) = self.load_ca()?
        {
            return self.renew_with(&ca, &identity, now, lifetime);
        }
        self.check_time(&identity, now)?;
        Ok(identity)
    }

    /// The CA with its key; `None` if this host was not given the key.
    pub fn load_ca(&self) -> Result<Option<ClusterCa>, IdentityError> {
        let path = self.ca_key_path();
        let Some(pem) = files::read_secret(&path)? else { return Ok(None) };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| IdentityError::NotPem(path, "private key"))?;
        Ok(Some(ClusterCa::from_parts(self.read_ca()?, key.secret_pkcs8_der())?))
    }

    /// Makes a new key and a certificate for it, and puts both in the place of the old.
    pub fn renew_with(
        &self,
        ca: &ClusterCa,
        current: &Identity,
        now: UnixTime,
        lifetime: Duration,
    ) -> Result<Identity, IdentityError> {
        let key = HostKey::generate(current.host)?;
        let cert = ca.issue(&key.signing_request()?, current.host, now, lifetime)?;
        self.store_renewed(current, &cert, &key, now)
    }

    /// Puts a renewed certificate and its key in the place of the old, after verifying them.
    pub fn store_renewed(
        &self,
        current: &Identity,
        cert: &CertificateDer<'static>,
        key: &HostKey,
        now: UnixTime,
    ) -> Result<Identity, IdentityError> {
        let identity = self.verify(current.ca.clone(), cert.clone(), key.pkcs8(), now)?;
        self.check_time(&identity, now)?;
        if identity.host != current.host {
            let reason = cert::BadCertificate::NoHostId;
            return Err(IdentityError::Certificate { path: self.cert_path(), reason });
        }
        self.store_pair(cert, key)?;
        Ok(identity)
    }

    fn load_at_any_time(&self, now: UnixTime) -> Result<Identity, IdentityError> {
        let (cert, key) = self.read_pair()?;
        self.verify(self.read_ca()?, cert, key, now)
    }

    fn store_pair(&self, cert: &CertificateDer<'_>, key: &HostKey) -> Result<(), IdentityError> {
        self.finish_rename()?;
        let (cert_path, key_path) = (self.cert_path(), self.key_path());
        let (cert_new, key_new) = (files::beside(&cert_path), files::beside(&key_path));
        let key_pem = files::to_pem("PRIVATE KEY", key.pkcs8().secret_der());
        files::write_durable(&key_new, key_pem.as_bytes(), 0o600)?;
        files::write_durable(&cert_new, files::to_pem("CERTIFICATE", cert).as_bytes(), 0o644)?;
        files::rename(&key_new, &key_path)?;
        files::rename(&cert_new, &cert_path)
    }

    /// Completes a renewal that was cut off between its two renames.
    fn finish_rename(&self) -> Result<(), IdentityError> {
        let cert_path = self.cert_path();
        let beside = files::beside(&cert_path);
        let Some(key) = self.read_key()? else { return Ok(()) };
        if !fits(&cert_path, &key)? && fits(&beside, &key)? {
            files::rename(&beside, &cert_path)?;
        }
        Ok(())
    }

    /// The certificate that belongs to the key. A writer may be renaming under our eyes, hence the second look.
    fn read_pair(&self) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), IdentityError> {
        const LOOKS: usize = 3;
        let cert_path = self.cert_path();
        let mut seen = false;
        for _ in 0..LOOKS {
            let in_place = read_cert(&cert_path)?;
            let Some(key) = self.read_key()? else {
                if in_place.is_none() {
                    return Err(IdentityError::NotAMember(cert_path));
                }
                let missing = io::Error::from(io::ErrorKind::NotFound);
                return Err(files::io_error("open", &self.key_path())(missing));
            };
            let beside = read_cert(&files::beside(&cert_path))?;
            for cert in [in_place, beside].into_iter().flatten() {
                seen = true;
                if certify(vec![cert.clone()], key.clone_key()).is_ok() {
                    return Ok((cert, key));
                }
            }
        }
        if seen {
            Err(IdentityError::KeyMismatch { cert: cert_path, key: self.key_path() })
        } else {
            Err(IdentityError::NotAMember(cert_path))
        }
    }

    fn read_key(&self) -> Result<Option<PrivateKeyDer<'static>>, IdentityError> {
        let path = self.key_path();
        let Some(pem) = files::read_secret(&path)? else { return Ok(None) };
        let key = PrivatePkcs8KeyDer::from_pem_slice(&pem)
            .map_err(|_| IdentityError::NotPem(path, "private key"))?;
        Ok(Some(PrivateKeyDer::Pkcs8(key)))
    }

    fn read_ca(&self) -> Result<CertificateDer<'static>, IdentityError> {
        let path = self.ca_path();
        let missing = || files::io_error("open", &path)(io::ErrorKind::NotFound.into());
        read_cert(&path)?.ok_or_else(missing)
    }

    /// Everything that does not depend on the time of day.
    fn verify(
        &self,
        ca: CertificateDer<'static>,
        cert: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        now: UnixTime,
    ) -> Result<Identity, IdentityError> {
        let of_ca = |reason| IdentityError::Certificate { path: self.ca_path(), reason };
        let of_host = |reason| IdentityError::Certificate { path: self.cert_path(), reason };
        let cluster = cert::cluster_id_of(&ca).map_err(of_ca)?;
        let host = cert::host_id_of(&cert).map_err(of_host)?;
        let validity = cert::validity_of(&cert).map_err(of_host)?;
        let wrong_ca = |reason| IdentityError::WrongCa { path: self.cert_path(), ca: self.ca_path(), reason };
        let at = now.clamp(validity.not_before, validity.not_after);
        verify_issued_by(&ca, &cert, at).map_err(wrong_ca)?;
        let certified = certify(vec![cert, ca.clone()], key)
            .map_err(|_| IdentityError::KeyMismatch { cert: self.cert_path(), key: self.key_path() })?;
        Ok(Identity { cluster, host, ca, validity, certified: Arc::new(certified) })
    }

    fn check_time(&self, identity: &Identity, now: UnixTime) -> Result<(), IdentityError> {
        let Validity { not_before, not_after } = identity.validity;
        let (path, now) = (self.cert_path(), now.as_secs());
        if now > not_after.as_secs() {
            return Err(IdentityError::Expired { path, not_after: not_after.as_secs(), now });
        }
        if now < not_before.as_secs() {
            return Err(IdentityError::NotYetValid { path, not_before: not_before.as_secs(), now });
        }
        Ok(())
    }

    fn ca_path(&self) -> PathBuf {
        self.path.join("ca.pem")
    }

    fn ca_key_path(&self) -> PathBuf {
        self.path.join("ca.key")
    }

    fn cert_path(&self) -> PathBuf {
        self.path.join("host.pem")
    }

    fn key_path(&self) -> PathBuf {
        self.path.join("host.key")
    }
}

fn certify(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(chain, key, &crypto::provider())
}

fn verify_issued_by(
    ca: &CertificateDer<'_>,
    cert: &CertificateDer<'_>,
    at: UnixTime,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    let algorithms = crypto::provider().signature_verification_algorithms.all;
    let parsed = ParsedCertificate::try_from(cert)?;
    rustls::client::verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, algorithms)
}

fn read_cert(path: &Path) -> Result<Option<CertificateDer<'static>>, IdentityError> {
    let Some(pem) = files::read(path)? else { return Ok(None) };
    let cert = CertificateDer::from_pem_slice(&pem)
        .map_err(|_| IdentityError::NotPem(path.to_owned(), "certificate"))?;
    Ok(Some(cert))
}

fn fits(path: &Path, key: &PrivateKeyDer<'static>) -> Result<bool, IdentityError> {
    Ok(read_cert(path)?.is_some_and(|cert| certify(vec![cert], key.clone_key()).is_ok()))
}
