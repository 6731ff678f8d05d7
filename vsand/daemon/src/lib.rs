//! `vsand`: pools the local disks of many hosts into one replicated datastore and serves virtual disks to VMMs.
//!
//! ```text
//!   vsanctl ──HTTP/JSON──▶ api ──▶ plane ──▶ member ──▶ directory (Raft)      control plane: tokio
//!                                              │  ▲
//!                                     commands ▼  │ events
//!   VMM ──vhost-user──▶ data: owners ⇄ replicas ⇄ stores ⇄ other hosts        data loop: one thread
//! ```
#![forbid(unsafe_code)]

pub mod api;
pub mod config;
pub mod data;
pub mod events;
pub mod member;
pub mod metrics;
pub mod plane;
pub mod server;
