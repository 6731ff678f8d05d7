//! How Ferrosphere's hosts know and reach each other, and how a host's own tools reach its daemons.
//!
//! The way of a host into a cluster, and of a byte between two hosts:
//!
//! ```text
//!   bootstrap ──► identity directory ◄── join (token)          once
//!                       │ load
//!                       ▼
//!                 IdentityHandle ◄── renew (new key and certificate, no restart)
//!                  │          │
//!        Endpoint::accept   connect                            TLS 1.3, both sides authenticated
//!                  │          │
//!        control (RPC), data (raw stream), join                one port, told apart by ALPN
//! ```
//!
//! - [`identity`]: the cluster's CA, the host's certificate and key, their files.
//! - [`renew`]: a new certificate before the old one expires.
//! - [`token`]: the join token that an operator carries from one host to another.
//! - [`tls`]: the listener and the dialler; [`tls::RawTls`] hands a data stream to a synchronous loop.
//! - [`join`]: the exchange that turns a token into an identity.
//! - [`control`]: request and response over one connection, for the directory, Raft and management.
//! - [`local`]: the daemons' Unix sockets; [`http`]: what their APIs have in common; [`client`]: the other end.
//! - [`directory`]: the cluster directory as the local `vsand` shows it; [`documents`]: the form of what daemons keep there.
//! - [`startup`]: how a daemon begins; [`notify`]: what systemd is told; [`files`]: small files that survive a power cut; [`stored`]: such files of a daemon's
//!   state, with their version and a checksum.
//!
//! What it must not know: what a request means, who is a member of the cluster (the directory says so: a peer that
//! comes out of [`tls::Endpoint::accept`] holds a certificate of the cluster, not more), disks and objects.
//!
//! Time is an argument ([`UnixTime`]) wherever something is decided; only the endpoints read a clock, through
//! [`identity::IdentityHandle`], which a test can replace.
#![forbid(unsafe_code)]

pub mod client;
pub mod control;
pub mod directory;
pub mod documents;
pub mod files;
pub mod http;
pub mod identity;
pub mod join;
pub mod local;
pub mod notify;
pub mod renew;
pub mod startup;
pub mod stored;
pub mod tls;
pub mod token;

mod frame;
mod socket;

/// What the fuzzer feeds that is otherwise private. Not for use.
#[doc(hidden)]
pub mod fuzzing {
    /// Reads both messages of the join exchange.
    pub fn join_messages(bytes: &[u8]) {
        crate::join::read_messages(bytes);
    }
}

use std::future::Future;
use std::pin::Pin;

pub use rustls_pki_types::UnixTime;

/// A boxed future: what a method of an object-safe asynchronous trait returns.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
