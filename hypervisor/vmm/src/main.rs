//! `vmm`: runs one virtual machine and ends with it.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vmm::args::Arguments;
use vmm::run;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("VMM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    let result = arguments.config().map_err(anyhow::Error::from).and_then(|config| Ok(run::run(&config)?));
    match result {
        Ok(end) => {
            tracing::info!("{end}");
            ExitCode::from(end.exit_status())
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
