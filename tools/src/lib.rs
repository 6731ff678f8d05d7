//! ferro-tools (skeleton).
