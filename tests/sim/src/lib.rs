//! The simulator: a cluster in virtual time, made of the real state machines, that is crashed, cut, delayed and corrupted
//! from a seed, and checked ([`storage`]); and campaigns of many seeds ([`campaign`]).
#![forbid(unsafe_code)]

pub mod campaign;
pub mod storage;
