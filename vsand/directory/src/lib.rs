//! The cluster directory: a replicated state machine on a few of the hosts, read and watched by all of them.
//!
//! ```text
//!   daemon ──► Directory<S> ──► core: finds the leader ──► openraft ──► storage: log, vote, snapshot (RocksDB)
//!                   │                                        │  │
//!                   └── state(), watch() ◄── machine: Arc<S> ┘  └──► network ──► Transport (the daemon's)
//! ```
//!
//! What the directory says (hosts, disks, objects, locks) is a [`StateMachine`] that comes from elsewhere. This crate makes
//! one order of its commands, keeps it on stable storage on a majority of the voters, and recovers it.
//!
//! # Invariants
//!
//! - A command that was acknowledged is on the disk of a majority of the voters, and applied in the same place of the same
//!   order on every member.
//! - A vote and a log entry are synced before they are answered.
//! - A command is applied at most once, however often it is sent; if the outcome is not known, the caller is told so.
//! - A host whose storage is gone is not the member that it was: it is told apart by its [`Incarnation`], gets no vote and
//!   no entries, and must be removed before it can join again.
//!
//! What it must not know: what the commands mean, TLS, disks of guests, the clock of other hosts.
#![forbid(unsafe_code)]

mod config;
mod content;
mod core;
mod directory;
mod error;
mod lonely;
mod machine;
mod members;
mod network;
mod serve;
mod status;
mod storage;
mod types;
mod voters;
mod wire;

pub use config::{COMMAND_BYTES_MAX, Config, MESSAGE_BYTES_MAX, SNAPSHOT_BYTES_MAX, Timing};
pub use directory::Directory;
pub use error::{DirectoryError, MembershipError};
pub use machine::{DecodeError, StateMachine};
pub use members::Step;
pub use network::{CallError, Transport};
pub use status::{MemberStatus, Role, Status};
pub use storage::StoreError;
pub use types::{Incarnation, Member};
pub use voters::{Candidate, choose_voters};
pub use wire::service;
