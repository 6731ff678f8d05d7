//! The command-line tools. `vsanctl` is in [`vsanctl`], `vswctl` in [`vswctl`], `vmctl` in [`vmctl`]; the rest is what every tool
//! needs: a client of a daemon's local API, errors with exit codes, tables, and questions at the terminal.
//!
//! What it must not know: anything of a daemon but its API.
#![forbid(unsafe_code)]

pub mod archive;
pub mod client;
pub mod common;
pub mod docs;
pub mod failure;
pub mod terminal;
pub mod text;
pub mod values;
pub mod vmctl;
pub mod vsanctl;
pub mod vswctl;
