//! ferro-deps (skeleton).
