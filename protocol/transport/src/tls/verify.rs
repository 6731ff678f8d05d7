//! Checking a server whose host id is not known yet. Where it is known, rustls's own verifier does all.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::crypto;
use crate::identity::{CaFingerprint, host_id_of};

/// What a certificate chain must end in.
#[derive(Clone, Debug)]
pub(super) enum Trust {
    /// The CA that this host holds.
    Roots(Arc<RootCertStore>),
    /// The CA with this fingerprint, which the server sends along: all that a joining host has.
    Pinned(CaFingerprint),
}

/// Accepts any one host of the cluster: whichever listens at the address. The chain, the validity and the purpose are
/// checked as ever, and that the certificate names a host; which one, the caller reads from it.
#[derive(Debug)]
pub(super) struct AnyHost {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyHost {
    pub(super) fn new(trust: Trust) -> Self {
        Self { trust, algorithms: crypto::provider().signature_verification_algorithms }
    }

    fn roots(&self, sent: &[CertificateDer<'_>]) -> Result<Arc<RootCertStore>, Error> {
        match &self.trust {
            Trust::Roots(roots) => Ok(Arc::clone(roots)),
            Trust::Pinned(fingerprint) => {
                let ca = sent.iter().find(|cert| CaFingerprint::of(cert) == *fingerprint);
                let ca = ca.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
                let mut roots = RootCertStore::empty();
                roots.add(ca.clone().into_owned())?;
                Ok(Arc::new(roots))
            }
        }
    }
}

impl ServerCertVerifier for AnyHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let roots = self.roots(intermediates)?;
        let cert = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&cert, &roots, intermediates, now, self.algorithms.all)?;
        host_id_of(end_entity).map_err(|_| Error::InvalidCertificate(CertificateError::NotValidForName))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
