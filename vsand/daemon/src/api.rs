//! The local HTTP API.
pub mod control;
