//! Who this host is: the cluster's CA, the host's certificate and its key.
//!
//! - [`ClusterCa`]: makes certificates. Held by every host that joined, so that no single host is needed to admit or
//!   renew another (see `docs/decisions/0002-identity.md`).
//! - [`IdentityDir`]: the files, and the order in which they are written.
//! - [`Identity`]: what was read from them, verified.
//! - [`IdentityHandle`]: the identity in use, replaced while connections are made from it.
//!
//! A certificate names its host once, as the only DNS name in its subject alternative name:
//! `<host id>.host.ferrosphere`. It is never resolved. The CA's subject carries the cluster id as common name.

mod ca;
mod cert;
mod dir;
mod files;
mod handle;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use ca::{CSR_BYTES_MAX, CaError, ClusterCa, HostKey};
pub use cert::{BadCertificate, CaFingerprint, Validity, host_id_of, host_name_of};
pub use dir::{Identity, IdentityDir};
pub use handle::{IdentityHandle, SwapError};

/// How long a host's certificate lasts unless configured otherwise.
pub const HOST_CERT_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the cluster's CA lasts. Replacing it means joining every host anew, so it outlives the hardware.
pub const CA_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Why an identity could not be read or written. Each names the file and the way out.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no identity: the host belongs to no cluster yet.
    #[error(
        "{0} does not exist: this host belongs to no cluster yet; run `vsanctl cluster bootstrap` for the first host or `vsanctl cluster join TOKEN` for a further one"
    )]
    NotAMember(PathBuf),
    /// There is one already; it is never overwritten.
    #[error(
        "{0} exists: this host already belongs to a cluster; remove it from that cluster first (`vsanctl host remove`), then move its identity directory away"
    )]
    AlreadyAMember(PathBuf),
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}; check the disk and the permissions of the identity directory")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A secret is readable by others.
    #[error(
        "{path} has mode {mode:04o}: others can read the key; run `chmod 0600 {path}`, and renew it if they may have"
    )]
    KeyExposed {
        /// The key's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A file is longer than any such file can be.
    #[error(
        "{0} is too large to be a certificate or a key; restore it from a backup or join this host again"
    )]
    TooLarge(PathBuf),
    /// A file is no PEM of the kind that it should be.
    #[error("{0} holds no {1} in PEM; restore it from a backup or join this host again")]
    NotPem(PathBuf, &'static str),
    /// A certificate could not be understood or says something that it must not.
    #[error("{path}: {reason}; restore it from a backup or join this host again")]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: BadCertificate,
    },
    /// The certificate is not the CA's work.
    #[error(
        "{path} was not issued by the CA in {ca} ({reason}); both must come from the same cluster: restore them together or join this host again"
    )]
    WrongCa {
        /// The host's certificate.
        path: PathBuf,
        /// The CA's certificate.
        ca: PathBuf,
        /// What the verification said.
        reason: rustls::Error,
    },
    /// The certificate and the key are not a pair.
    #[error("{key} does not belong to {cert}; restore both from the same backup or join this host again")]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate has run out.
    #[error(
        "{path} expired at {not_after} (unix seconds, now {now}); if this host holds the CA key it renews itself at the next start, else join it again; check the clock too"
    )]
    Expired {
        /// The certificate's file.
        path: PathBuf,
        /// Its end.
        not_after: u64,
        /// The time it was compared with.
        now: u64,
    },
    /// The certificate is from the future, so one of two clocks is wrong.
    #[error("{path} is valid only from {not_before} (unix seconds, now {now}); set this host's clock right")]
    NotYetValid {
        /// The certificate's file.
        path: PathBuf,
        /// Its beginning.
        not_before: u64,
        /// The time it was compared with.
        now: u64,
    },
    /// A certificate could not be made.
    #[error(transparent)]
    Ca(#[from] CaError),
}
