//! The worker: one thread that owns the switch, its ports, its tunnels, and forwards.
