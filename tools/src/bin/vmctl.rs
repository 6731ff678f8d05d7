//! `vmctl`: the administrator's tool for virtual machines.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ferro_tools::vmctl::main()
}
