//! What the workspace's own tests look at: its crates and the edges between them ([`Workspace`]), and its files
//! ([`SourceFile`]).
//!
//! The rules stand in `tests/`, one file a rule's kind; here is only what reads. DESIGN.md says why each rule is there.
//!
//! What it must not know: any crate of ours. It reads text, so that it fails when the text is wrong and not when a crate
//! does not build.
#![forbid(unsafe_code)]

mod code;
mod manifest;
mod sources;
mod workspace;

pub use code::code_only;
pub use manifest::{has_entry, section};
pub use sources::{SourceFile, committed_files, rust_files};
pub use workspace::{Crate, Dependency, Kind, Target, Workspace};
