//! `vswctl`: the administrator's tool for the virtual switch.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ferro_tools::vswctl::main()
}
