//! ferro-blackbox (skeleton).
