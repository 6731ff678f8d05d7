//! What our certificates say, read strictly.

use std::fmt;
use std::time::Duration;

use ferro_protocol::ids::{ClusterId, HostId};
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What stands behind the host id in a certificate's DNS name. No such domain exists; none is ever resolved.
const HOST_DOMAIN: &str = ".host.ferrosphere";

/// Why a certificate is not one of ours.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadCertificate {
    /// It is no X.509 certificate.
    #[error("it is not a DER-encoded X.509 certificate")]
    Encoding,
    /// It does not name one host.
    #[error("it does not name exactly one host as <host id>.host.ferrosphere")]
    NoHostId,
    /// It does not name a cluster.
    #[error("its subject does not carry exactly one cluster id")]
    NoClusterId,
    /// It should be a CA's and is not, or the other way round.
    #[error("it is a host's certificate where a CA's is needed, or the reverse")]
    WrongKind,
    /// Its validity is before 1970 or ends before it begins.
    #[error("its validity makes no sense")]
    Validity,
}

/// SHA-256 of a CA certificate's DER: what a join token pins.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CaFingerprint(pub [u8; 32]);

impl CaFingerprint {
    /// The fingerprint of this certificate.
    pub fn of(cert: &CertificateDer<'_>) -> Self {
        Self(Sha256::digest(cert.as_ref()).into())
    }
}

impl fmt::Display for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CaFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaFingerprint({self})")
    }
}

/// From when to when a certificate is good.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// Its first second.
    pub not_before: UnixTime,
    /// Its last second.
    pub not_after: UnixTime,
}

impl Validity {
    /// When a new certificate should be asked for: two thirds through, so that a third is left for trying again.
    pub fn renewal_due(&self) -> UnixTime {
        let (start, end) = (self.not_before.as_secs(), self.not_after.as_secs());
        let due = start + end.saturating_sub(start) / 3 * 2;
        UnixTime::since_unix_epoch(Duration::from_secs(due))
    }

    /// Whether a new certificate should be asked for now.
    pub fn is_renewal_due(&self, now: UnixTime) -> bool {
        now >= self.renewal_due()
    }

    /// Whether the certificate has run out.
    pub fn is_expired(&self, now: UnixTime) -> bool {
        now > self.not_after
    }
}

/// The DNS name that stands for a host in its certificate.
pub fn host_name_of(host: HostId) -> String {
    format!("{host}{HOST_DOMAIN}")
}

/// The host that a certificate speaks for. The signature is *not* checked here.
pub fn host_id_of(cert: &CertificateDer<'_>) -> Result<HostId, BadCertificate> {
    let parsed = parse(cert)?;
    let san = parsed.subject_alternative_name().map_err(|_| BadCertificate::Encoding)?;
    let san = san.ok_or(BadCertificate::NoHostId)?;
    match san.value.general_names.as_slice() {
        [GeneralName::DNSName(name)] => parse_host_name(name).ok_or(BadCertificate::NoHostId),
        _ => Err(BadCertificate::NoHostId),
    }
}

/// The inverse of [`host_name_of`]. Only the canonical spelling counts, so that a host has one name.
pub(super) fn parse_host_name(name: &str) -> Option<HostId> {
    let host: HostId = name.strip_suffix(HOST_DOMAIN)?.parse().ok()?;
    (host_name_of(host) == name).then_some(host)
}

/// The cluster that a CA certificate stands for. The signature is *not* checked here.
pub(crate) fn cluster_id_of(ca: &CertificateDer<'_>) -> Result<ClusterId, BadCertificate> {
    let parsed = parse(ca)?;
    if !parsed.is_ca() {
        return Err(BadCertificate::WrongKind);
    }
    let mut names = parsed.subject().iter_common_name();
    let (Some(name), None) = (names.next(), names.next()) else { return Err(BadCertificate::NoClusterId) };
    let text = name.as_str().map_err(|_| BadCertificate::NoClusterId)?;
    text.parse().map_err(|_| BadCertificate::NoClusterId)
}

pub(crate) fn validity_of(cert: &CertificateDer<'_>) -> Result<Validity, BadCertificate> {
    let parsed = parse(cert)?;
    let seconds = |t: i64| {
        u64::try_from(t)
            .map(|s| UnixTime::since_unix_epoch(Duration::from_secs(s)))
            .map_err(|_| BadCertificate::Validity)
    };
    let not_before = seconds(parsed.validity().not_before.timestamp())?;
    let not_after = seconds(parsed.validity().not_after.timestamp())?;
    if not_after < not_before {
        return Err(BadCertificate::Validity);
    }
    Ok(Validity { not_before, not_after })
}

fn parse<'a>(cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, BadCertificate> {
    match X509Certificate::from_der(cert.as_ref()) {
        Ok(([], parsed)) => Ok(parsed),
        Ok(_) | Err(_) => Err(BadCertificate::Encoding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_host_name_is_read() {
        let host = HostId::from_bytes([0xab; 16]);
        assert_eq!(parse_host_name(&host_name_of(host)), Some(host));
        for bad in [
            "abababab-abab-abab-abab-abababababab".to_owned(),
            host_name_of(host).to_uppercase(),
            format!("x.{}", host_name_of(host)),
            format!("{}.host.ferrosphere", "ab".repeat(16)),
            format!("{}.", host_name_of(host)),
            HOST_DOMAIN.to_owned(),
        ] {
            assert_eq!(parse_host_name(&bad), None, "{bad}");
        }
    }

    #[test]
    fn renewal_is_due_after_two_thirds() {
        let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
        let validity = Validity { not_before: at(1000), not_after: at(1300) };
        assert!(!validity.is_renewal_due(at(1199)));
        assert!(validity.is_renewal_due(at(1200)));
        assert!(!validity.is_expired(at(1300)));
        assert!(validity.is_expired(at(1301)));
    }
}
