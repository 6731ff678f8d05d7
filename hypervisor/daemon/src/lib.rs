//! `hypervisord`: runs virtual machines on a host of a cluster. What it decides is in `hypervisor-core`; here it is done.
//!
//! - [`server`]: the daemon from top to bottom; [`config`]: its settings; [`metrics`]: what it counts.
//! - [`api`]: HTTP over the Unix socket. [`plane`]: what the API asks for, done; the directory; this host's report.
//! - [`machine`]: one VM of this host: its resources, its process, its life. [`keep`]: the process between us and a vmm.
//! - [`backend`]: what runs a VM. [`peers`]: the other two daemons. [`host`]: what this host has.
#![forbid(unsafe_code)]

pub mod api;
pub mod backend;
pub mod config;
pub mod host;
pub mod keep;
pub mod machine;
mod metrics;
pub mod peers;
pub mod plane;
pub mod server;
