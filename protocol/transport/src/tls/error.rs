//! Why a connection did not come about, in the words of whoever reads the log.

use std::io;
use std::net::SocketAddr;

use ferro_protocol::ids::HostId;
use rustls::{AlertDescription, CertificateError};

use super::PreambleError;

/// Why the peer port could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The system refused.
    #[error(
        "cannot listen on {addr}: {source}; check that the address is this host's and that no other daemon uses the port"
    )]
    Io {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity could not be used.
    #[error("cannot use this host's certificate for listening: {0}; load the identity again")]
    Tls(#[from] rustls::Error),
}

/// Why a peer could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody there.
    #[error(
        "cannot connect to {addr}: {source}; check that the daemon runs there and that the network lets it through"
    )]
    Unreachable {
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Nobody answered.
    #[error(
        "{addr} did not answer within 5 s; check that the host is up and that the network lets it through"
    )]
    TimedOut {
        /// The address.
        addr: SocketAddr,
    },
    /// The other side is not of our cluster.
    #[error(
        "{addr} is not a host of this cluster or its certificate is not good now: {reason}; check the address, both clocks, and that it did not join another cluster"
    )]
    NotTrusted {
        /// The address.
        addr: SocketAddr,
        /// What the verification said.
        reason: rustls::Error,
    },
    /// The other side is of our cluster, but another host than was meant.
    #[error(
        "{addr} is another host of this cluster than {expected}; its address has changed hands: update the host's address"
    )]
    WrongHost {
        /// The address.
        addr: SocketAddr,
        /// The host that should have been there.
        expected: HostId,
    },
    /// We are not good enough for the other side.
    #[error(
        "{addr} refused this host ({alert:?}); if its certificate has expired, restart the daemon, else this host was not admitted to that cluster"
    )]
    Refused {
        /// The address.
        addr: SocketAddr,
        /// The TLS alert that it sent.
        alert: AlertDescription,
    },
    /// It speaks something else.
    #[error("{addr} does not speak our protocol: {reason}; check that it is a daemon's peer port")]
    Protocol {
        /// The address.
        addr: SocketAddr,
        /// What was wrong.
        reason: rustls::Error,
    },
    /// It speaks another version.
    #[error("{addr}: {reason}")]
    Preamble {
        /// The address.
        addr: SocketAddr,
        /// What was wrong.
        reason: PreambleError,
    },
    /// Our own certificate could not be used.
    #[error("cannot use this host's certificate: {0}; load the identity again")]
    Identity(rustls::Error),
}

impl ConnectError {
    /// The meaning of an I/O error that came out of a handshake or the first read after it.
    pub(super) fn from_io(addr: SocketAddr, expected: Option<HostId>, error: io::Error) -> Self {
        let Some(reason) = tls_reason(&error) else { return Self::Unreachable { addr, source: error } };
        match (reason, expected) {
            (
                rustls::Error::InvalidCertificate(
                    CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
                ),
                Some(expected),
            ) => Self::WrongHost { addr, expected },
            (rustls::Error::InvalidCertificate(_), _) => Self::NotTrusted { addr, reason: reason.clone() },
            (rustls::Error::AlertReceived(alert), _) => Self::Refused { addr, alert: *alert },
            _ => Self::Protocol { addr, reason: reason.clone() },
        }
    }
}

/// The TLS error inside an I/O error, if there is one.
pub(super) fn tls_reason(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A refused peer's offence, for the log.
pub(super) fn describe(error: &io::Error) -> String {
    match tls_reason(error) {
        Some(rustls::Error::InvalidMessage(_)) => {
            "it does not speak TLS (plaintext, or another service)".to_owned()
        }
        Some(rustls::Error::NoCertificatesPresented) => "it presented no certificate".to_owned(),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => "its certificate is another CA's".to_owned(),
        Some(rustls::Error::InvalidCertificate(reason)) => format!("its certificate is not good: {reason}"),
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("it refused this host's certificate ({alert:?})")
        }
        Some(other) => other.to_string(),
        None if error.kind() == io::ErrorKind::UnexpectedEof => "it hung up during the handshake".to_owned(),
        None => error.to_string(),
    }
}
