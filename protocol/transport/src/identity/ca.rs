//! The cluster's certificate authority, and the key that a host makes for itself.

use std::time::Duration;

use ferro_protocol::ids::{ClusterId, HostId};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
    SerialNumber,
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime,
};
use zeroize::Zeroizing;

use super::cert::{self, BadCertificate, CaFingerprint};

/// The longest certificate signing request that is looked at. Ours have about 400 bytes.
pub const CSR_BYTES_MAX: usize = 4096;
/// Certificates begin a little in the past, for hosts whose clock is behind; never more than a tenth of their life.
const CLOCK_SKEW_MAX: Duration = Duration::from_secs(3600);
/// The last second that X.509's four-digit years can name comfortably: the beginning of the year 9000.
const TIME_MAX: u64 = 221_845_392_000;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A key could not be made or a certificate not be encoded: a fault of the system's random numbers, or a bug.
    #[error("cannot make a {what}: {source}")]
    Make {
        /// What was being made.
        what: &'static str,
        /// What the library said.
        source: rcgen::Error,
    },
    /// The key is not the CA's.
    #[error("the CA key does not belong to the CA certificate; take both from the same host of the cluster")]
    KeyMismatch,
    /// The CA key can't be used.
    #[error("the CA key is no ECDSA P-256 key in PKCS #8; copy ca.key from another host of the cluster")]
    BadKey,
    /// The CA's certificate can't be used.
    #[error("the CA certificate is not usable: {0}")]
    BadCa(#[from] BadCertificate),
    /// The request is not well-formed or not signed by its own key.
    #[error(
        "the certificate request is malformed or not signed with its own key; the host that sent it should try again"
    )]
    BadRequest,
    /// The request asks for another host's name.
    #[error(
        "the certificate request names another host than {0}; a host can only ask for its own certificate"
    )]
    WrongHost(HostId),
    /// The time is not one that a certificate can hold, or the CA has run out.
    #[error(
        "a certificate can't be issued at this time (unix seconds {0}); check this host's clock and the CA's expiry"
    )]
    BadTime(u64),
}

/// The right to make hosts' certificates: the CA's certificate with its key.
pub struct ClusterCa {
    cluster: ClusterId,
    cert: CertificateDer<'static>,
    not_after: u64,
    issuer: Issuer<'static, KeyPair>,
}

impl ClusterCa {
    /// A new CA for a new cluster.
    pub fn create(cluster: ClusterId, now: UnixTime, lifetime: Duration) -> Result<Self, CaError> {
        let key = new_key()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&cluster.to_string());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(serial()?);
        let not_after = set_validity(&mut params, now, lifetime, TIME_MAX)?;
        let made =
            params.self_signed(&key).map_err(|source| CaError::Make { what: "CA certificate", source })?;
        let cert = CertificateDer::from(made);
        Ok(Self { cluster, cert, not_after, issuer: Issuer::new(params, key) })
    }

    /// The CA of this certificate and this key (PKCS #8 DER); they are checked to belong together.
    pub fn from_parts(cert: CertificateDer<'static>, key_pkcs8: &[u8]) -> Result<Self, CaError> {
        let cluster = cert::cluster_id_of(&cert)?;
        let not_after = cert::validity_of(&cert)?.not_after.as_secs();
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(key_pkcs8),
            &PKCS_ECDSA_P256_SHA256,
        )
        .map_err(|_| CaError::BadKey)?;
        if public_key_of(&cert)? != key.public_key_raw() {
            return Err(CaError::KeyMismatch);
        }
        let issuer = Issuer::from_ca_cert_der(&cert, key).map_err(|_| BadCertificate::Encoding)?;
        Ok(Self { cluster, cert, not_after, issuer })
    }

    /// The cluster that it speaks for.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Its certificate.
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// What a join token pins.
    pub fn fingerprint(&self) -> CaFingerprint {
        CaFingerprint::of(&self.cert)
    }

    /// Its key in PKCS #8 DER, to be stored (mode 0600) or sent to a joining host (inside TLS), and nothing else.
    pub fn key_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().serialize_der())
    }

    /// A certificate for `host` from its signing request. Only the public key is taken from the request: the name must
    /// be the host's, and whatever else it asks for is ignored. `lifetime` is cut to the CA's own end.
    pub fn issue(
        &self,
        request: &[u8],
        host: HostId,
        now: UnixTime,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, CaError> {
        if request.len() > CSR_BYTES_MAX {
            return Err(CaError::BadRequest);
        }
        let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))
            .map_err(|_| CaError::BadRequest)?;
        let named = match request.params.subject_alt_names.as_slice() {
            [SanType::DnsName(name)] => cert::parse_host_name(name.as_str()),
            _ => None,
        };
        if named != Some(host) {
            return Err(CaError::WrongHost(host));
        }
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::BadRequest);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&host.to_string());
        params.subject_alt_names = vec![host_san(host)?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        set_validity(&mut params, now, lifetime, self.not_after)?;
        let made = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|source| CaError::Make { what: "host certificate", source })?;
        Ok(made.into())
    }
}

impl std::fmt::Debug for ClusterCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterCa").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// A key that a host has just made, before there is a certificate for it. It never leaves the host.
pub struct HostKey {
    host: HostId,
    key: KeyPair,
}

impl HostKey {
    /// A new ECDSA P-256 key.
    pub fn generate(host: HostId) -> Result<Self, CaError> {
        Ok(Self { host, key: new_key()? })
    }

    /// The host that it is for.
    pub fn host(&self) -> HostId {
        self.host
    }

    /// The request (PKCS #10 DER) to have it certified.
    pub fn signing_request(&self) -> Result<Vec<u8>, CaError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&self.host.to_string());
        params.subject_alt_names = vec![host_san(self.host)?];
        let request = params
            .serialize_request(&self.key)
            .map_err(|source| CaError::Make { what: "certificate request", source })?;
        Ok(request.der().to_vec())
    }

    pub(crate) fn pkcs8(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

impl std::fmt::Debug for HostKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostKey").field("host", &self.host).finish_non_exhaustive()
    }
}

fn new_key() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| CaError::Make { what: "key", source })
}

fn subject(name: &str) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Ferrosphere");
    subject.push(DnType::CommonName, name);
    subject
}

fn host_san(host: HostId) -> Result<SanType, CaError> {
    let name =
        cert::host_name_of(host).try_into().map_err(|source| CaError::Make { what: "host name", source })?;
    Ok(SanType::DnsName(name))
}

/// 128 random bits with the top one clear: positive, and never the same twice although many hosts hold the CA.
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0u8; 16];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .map_err(|_| CaError::Make { what: "serial number", source: rcgen::Error::RingUnspecified })?;
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Sets both ends of the validity and returns the later one in Unix seconds.
fn set_validity(
    params: &mut CertificateParams,
    now: UnixTime,
    lifetime: Duration,
    end: u64,
) -> Result<u64, CaError> {
    let now = now.as_secs();
    let skew = CLOCK_SKEW_MAX.min(lifetime / 10).as_secs();
    let not_before = now.saturating_sub(skew);
    let not_after = now.saturating_add(lifetime.as_secs()).min(end);
    if not_after <= now || not_after > TIME_MAX {
        return Err(CaError::BadTime(now));
    }
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(not_before);
    params.not_after = epoch + Duration::from_secs(not_after);
    Ok(not_after)
}

fn public_key_of(cert: &CertificateDer<'_>) -> Result<Vec<u8>, BadCertificate> {
    use x509_parser::prelude::FromDer;
    let (_, parsed) =
        x509_parser::certificate::X509Certificate::from_der(cert).map_err(|_| BadCertificate::Encoding)?;
    Ok(parsed.public_key().subject_public_key.data.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn ca() -> ClusterCa {
        ClusterCa::create(ClusterId::from_bytes([1; 16]), at(1_000_000), super::super::CA_LIFETIME).unwrap()
    }

    #[test]
    fn a_certificate_names_its_host_and_ends_in_time() {
        let host = HostId::from_bytes([7; 16]);
        let request = HostKey::generate(host).unwrap().signing_request().unwrap();
        let cert = ca().issue(&request, host, at(1_000_000), Duration::from_secs(3000)).unwrap();
        assert_eq!(cert::host_id_of(&cert), Ok(host));
        let validity = cert::validity_of(&cert).unwrap();
        assert_eq!((validity.not_before, validity.not_after), (at(999_700), at(1_003_000)));
        assert_eq!(cert::cluster_id_of(&cert), Err(BadCertificate::WrongKind));
    }

    #[test]
    fn a_host_cannot_ask_for_another_name_or_with_a_broken_request() {
        let (host, other) = (HostId::from_bytes([7; 16]), HostId::from_bytes([8; 16]));
        let mut request = HostKey::generate(host).unwrap().signing_request().unwrap();
        let life = Duration::from_secs(60);
        assert!(matches!(ca().issue(&request, other, at(1_000_000), life), Err(CaError::WrongHost(_))));
        let last = request.len() - 1;
        request[last] ^= 1;
        assert!(matches!(ca().issue(&request, host, at(1_000_000), life), Err(CaError::BadRequest)));
        for cut in 0..last {
            assert!(ca().issue(&request[..cut], host, at(1_000_000), life).is_err());
            if cut > 8 {
                break;
            }
        }
        assert!(ca().issue(&vec![0x30; CSR_BYTES_MAX + 1], host, at(1_000_000), life).is_err());
    }

    #[test]
    fn a_certificate_never_outlives_its_ca() {
        let host = HostId::from_bytes([7; 16]);
        let ca =
            ClusterCa::create(ClusterId::from_bytes([1; 16]), at(1000), Duration::from_secs(500)).unwrap();
        let request = HostKey::generate(host).unwrap().signing_request().unwrap();
        let cert = ca.issue(&request, host, at(1100), Duration::from_secs(9999)).unwrap();
        assert_eq!(cert::validity_of(&cert).unwrap().not_after, at(1500));
        assert!(matches!(
            ca.issue(&request, host, at(1500), Duration::from_secs(9)),
            Err(CaError::BadTime(_))
        ));
        assert!(matches!(
            ca.issue(&request, host, at(u64::MAX), Duration::from_secs(9)),
            Err(CaError::BadTime(_))
        ));
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (a, b) = (ca(), ca());
        assert_eq!(ClusterCa::from_parts(a.cert().clone(), &a.key_pkcs8()).unwrap().cluster(), a.cluster());
        assert!(matches!(ClusterCa::from_parts(a.cert().clone(), &b.key_pkcs8()), Err(CaError::KeyMismatch)));
        assert!(matches!(ClusterCa::from_parts(a.cert().clone(), b"nonsense"), Err(CaError::BadKey)));
    }
}
