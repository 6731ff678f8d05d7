//! The simulator: a cluster in virtual time, made of the real state machines, that is crashed, cut, delayed and corrupted
//! from a seed, and checked ([`storage`]); campaigns of many seeds ([`campaign`]); and networks of such hosts' virtual switches
//! ([`switch`]).
#![forbid(unsafe_code)]

pub mod campaign;
pub mod storage;
pub mod switch;
