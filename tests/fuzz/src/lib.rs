//! ferro-fuzz (skeleton).
