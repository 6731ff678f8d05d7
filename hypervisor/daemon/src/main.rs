//! `hypervisord`: the hypervisor's daemon of a Ferrosphere host.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ferro_transport::startup;
use hypervisord::keep::{self, Keep};

/// Runs the virtual machines of a Ferrosphere host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// The configuration.
    #[arg(long, default_value = "/etc/hypervisord/hypervisord.toml")]
    config: PathBuf,
    /// Log in JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

#[derive(Subcommand)]
enum Mode {
    /// Stay beside a vmm and write down how it ends: the daemon starts this itself.
    #[command(hide = true)]
    Keep(Keep),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Mode::Keep(keep)) = arguments.mode {
        return keep::run(&keep);
    }
    startup::log_to_stderr("HYPERVISORD_LOG", "info", arguments.log_json);
    let runtime = startup::threads();
    let result = match &runtime {
        Ok(runtime) => runtime.block_on(hypervisord::server::run(&arguments.config)),
        Err(error) => Err(anyhow::anyhow!("starting threads: {error}")),
    };
    if let Ok(runtime) = runtime {
        // A thread that waits for a file must not hold up the end.
        runtime.shutdown_background();
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
