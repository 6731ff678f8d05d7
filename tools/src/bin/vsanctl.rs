//! `vsanctl`: the administrator's tool for the storage cluster.

use std::process::ExitCode;

fn main() -> ExitCode {
    ferro_tools::vsanctl::main()
}
