//! `vswitchd`: the switch of one Ferrosphere host.
//!
//! ```text
//!   vswctl ─► api ─► plane ──commands──► data: one worker thread, one Switch (vswitch-core)
//!                      │ ◄───events────    │ owns
//!                      │                   ├─ ports: vhost-user-net, TAP, AF_PACKET uplinks
//!             vsand ◄──┤                   ├─ tunnel: QUIC data connections (quinn-proto)
//!   (directory, hosts) │                   └─ endpoint: gateways, DHCP (smoltcp)
//!                      └─ tunnel::control: QUIC control connections, heartbeats (tokio)
//! ```
//!
//! The worker never waits for the control plane, and forwards without it. The control plane waits and allocates as it likes.
#![deny(unsafe_code)]

pub mod api;
pub mod capture;
pub mod config;
pub mod data;
pub mod endpoint;
pub mod metrics;
pub mod plane;
pub mod ports;
pub mod server;
pub mod trace;
pub mod tunnel;
