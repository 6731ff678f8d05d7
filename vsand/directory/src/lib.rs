//! vsand-directory (skeleton).
