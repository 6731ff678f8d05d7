//! Everything in `vsand` that decides, as pure state machines: who owns an object, what a write must wait for, where
//! components go, what is copied after an outage, when a lock may be broken.
//!
//! What it must not know: clocks, threads, files, sockets, randomness, serialisation of disks. Time is an argument
//! ([`time::Instant`]), everything else comes in as inputs and leaves as effects, so that the simulator runs this very code.
#![forbid(unsafe_code)]

pub mod bugs;
pub mod directory;
pub mod disk;
pub mod lease;
pub mod limits;
pub mod owner;
pub mod replica;
pub mod time;
pub mod volume;
