//! ferro-sim (skeleton).
