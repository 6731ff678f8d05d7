//! `hypervisord`: the hypervisor's daemon of a Ferrosphere host.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hypervisord::keep::{self, Keep};
use tracing_subscriber::EnvFilter;

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
    let filter = EnvFilter::try_from_env("HYPERVISORD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    if arguments.log_json {
        log.json().init();
    } else {
        log.with_target(false).init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
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
