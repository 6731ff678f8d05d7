//! vsand (skeleton).
