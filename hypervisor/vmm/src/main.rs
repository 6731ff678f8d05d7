//! `vmm`: runs one virtual machine and ends with it, or says what its disk would boot.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing::{Span, info_span};
use tracing_subscriber::EnvFilter;
use vmm::args::Arguments;
use vmm::{run, volume};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("VMM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match execute(arguments) {
        Ok(status) => status,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(wanted) = arguments.show_boot()? {
        let shown = volume::show(&wanted)?;
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&shown)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = arguments.config()?;
    let span = if config.name.is_empty() { Span::none() } else { info_span!("vm", name = config.name) };
    let end = span.in_scope(|| run::run_here(&config))?;
    tracing::info!("{end}");
    Ok(ExitCode::from(end.exit_status()))
}
