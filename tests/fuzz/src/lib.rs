//! ferro-fuzz (skeleton).
#![forbid(unsafe_code)]
