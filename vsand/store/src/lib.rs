//! vsand-store (skeleton).
