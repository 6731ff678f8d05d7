//! What reads bytes that others wrote, fed with bytes that nobody would write.
//!
//! A [`Target`] takes any bytes and must return: no panic, no endless loop, no memory out of proportion
//! ([`PEAK_BYTES_MAX`]). Most also check what they learn, such as that what was understood can be written and understood
//! again. Targets are pure but for temporary files, so a case that fails once fails always.
//!
//! ```text
//!   seeds (valid inputs, made by code) ─┐
//!   corpus/NAME/*  (kept by hand)       ├─► tests/quick.rs: some ten thousand mutations, the same each time
//!   regressions/NAME/* (found once)     ┘     and all regressions, in every test run
//!                                        └─► ./run NAME SECONDS: libFuzzer, coverage-guided, by hand
//! ```
//!
//! A found case goes to `regressions/NAME/`, under a name that says what it did, and stays there.
//!
//! What it must not know: how the code under test is built inside; only its public entry points.
#![forbid(unsafe_code)]

pub mod mutate;
mod source;
mod targets;

pub use source::Source;
pub use targets::{ALL, Target, by_name};

/// The most memory that a target may take for one input. The largest honest answers are a few MiB: a summary, a batch.
pub const PEAK_BYTES_MAX: usize = 64 << 20;
