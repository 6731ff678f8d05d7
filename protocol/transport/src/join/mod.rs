//! How a host becomes a member.
//!
//! ```text
//!   new host                                member
//!     TLS, recognised by the CA fingerprint    no certificate asked for
//!     JoinRequest ───────────────────────►     1. token: known? secret right? not expired?
//!       token id, secret, host id, name,       2. certificate made from the signing request
//!       address, signing request,              3. the cluster's feature level: does the host speak it?
//!       feature levels                         4. token consumed (exactly once in the cluster)
//!                                              5. host admitted to the directory
//!     ◄────────────────────── JoinResponse     6. certificate, CA and its key, what the directory needs
//!     verify, store
//! ```
//!
//! The token is consumed only after everything that a forger or a mistake could break has been checked, so neither can
//! spend somebody else's token. If the answer is lost after step 4, the token is spent and a new one is needed.
//!
//! A member of before there were levels refuses the request as of another version. It is asked once more, as a host of its
//! own release would ask.
//!
//! What it must not know: what the directory is. It says whether a host may come in ([`Admission`]) and hands over bytes.
//! Nor what a feature level brings.

mod client;
mod server;
mod wire;

use std::net::SocketAddr;
use std::time::Duration;

use ferro_protocol::ids::{ClusterId, HostId};

pub use client::{Admitted, JoinError, NewHost, join, join_by_clock};
pub use server::{Admission, JoinFailure, Registrar};
pub use wire::{Levels, NAME_BYTES_MAX, Refusal};

/// For the fuzzer: both messages, as far as they can be read.
pub(crate) fn read_messages(bytes: &[u8]) {
    // Only that it returns is of interest.
    let _request = wire::JoinRequest::read(bytes);
    let _response = wire::JoinResponse::read(bytes);
}

/// How long each side waits for the other's message. Admission goes through the directory's quorum.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(20);

/// A host that asks to be let in; its token has been checked and consumed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoiningHost {
    /// Its id, which it chose itself.
    pub host: HostId,
    /// The name that its operator knows it by: 1 to 63 letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Where it listens.
    pub advertise: SocketAddr,
    /// The cluster that it thinks it joins: checked to be this one.
    pub cluster: ClusterId,
}
