//! The worker: one thread that owns the switch, its ports, its tunnels, and forwards.

pub mod capture;
pub mod port;
pub mod snapshot;
