//! Everything in `vswitchd` that decides, as pure state machines: what a frame is, who may send it, where it goes, how
//! fast, over which uplink, and in which pieces it travels between hosts.
//!
//! What it must not know: clocks, threads, files, sockets, randomness, guest memory, QUIC. Time is an argument
//! ([`time::Instant`]), frames are byte slices, everything else comes in as inputs and leaves as effects, so that the
//! simulator runs this very code.
#![forbid(unsafe_code)]

pub mod bugs;
pub mod config;
pub mod frame;
pub mod hash;
pub mod pipeline;
pub mod shaping;
pub mod table;
pub mod team;
pub mod tunnel;

pub use ferro_protocol::time;
