//! vsand (skeleton).

pub mod api;
