//! Words that every part of Ferrosphere shares: identifiers, units, the messages between hosts, their framing, and
//! the types of the local HTTP API.
//!
//! What it must not know: sockets, disks, clocks, threads. It only says how things are named and how they are laid out
//! on the wire. Everything here is plain data and total functions over it.
#![forbid(unsafe_code)]

pub mod api;
pub mod frame;
pub mod ids;
pub mod net;
pub mod peer;
pub mod units;
