//! `vsanctl`: the administrator's tool for the storage cluster.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ferro_tools::vsanctl::main()
}
