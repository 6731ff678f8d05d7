//! A cluster in virtual time: the real state machines of `vsand-core` on disks, links, clocks and a directory that fail in
//! all the ways that DESIGN.md allows, and guests that remember what they were told.
//!
//! One queue of events, ordered by time and then by the order in which they were made; one stream of random numbers. So a
//! seed is a run. What is checked, and when:
//! - at each completed write: every component that the directory calls in sync has it on stable storage;
//! - at each change of the directory: no in-sync set is empty, no epoch goes back, no disk holds two components of a chunk;
//! - at each read: the bytes are ones that a guest wrote there;
//! - at the end, after all faults have healed: everything that guests asked has been answered, every component is in sync
//!   and all of a chunk are byte for byte and version for version the same, nothing is left over on any disk, and each
//!   sector's history is linearizable (`history`);
//! - after that, when blocks have rotted and all has been scrubbed: no block is rotten any more (`scrub`);
//! - in runs with one failure at a time: no guest waits longer than two seconds.

mod absence;
mod balance;
mod check;
mod control;
mod converting;
mod dice;
mod directory;
mod disk;
mod event;
mod faults;
mod guest;
mod history;
mod host;
mod leaving;
mod maintenance;
mod net;
mod operator;
mod places;
mod provision;
mod rot;
mod scrub;
mod streams;
mod world;

pub use world::{Options, Outcome, run};
