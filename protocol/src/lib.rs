//! Words that every part of Ferrosphere shares: identifiers, units, the messages between hosts, their framing,
//! the types of the local HTTP API, and what all pure cores have in common: points in time, and deliberate bugs.
//!
//! What it must not know: sockets, disks, clocks, threads. It only says how things are named and how they are laid out
//! on the wire. Everything here is plain data and total functions over it.
#![forbid(unsafe_code)]

pub mod api;
pub mod bugs;
pub mod document;
pub mod fault_domain;
pub mod frame;
pub mod ids;
mod name;
pub mod net;
pub mod peer;
pub mod time;
pub mod units;
