//! ferro-blackbox (skeleton).
#![forbid(unsafe_code)]
