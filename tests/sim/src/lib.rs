//! ferro-sim (skeleton).
#![forbid(unsafe_code)]
