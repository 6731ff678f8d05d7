//! The local HTTP API: what `vswctl` and other programs on this host speak over the Unix socket.

pub mod control;
pub mod fail;
