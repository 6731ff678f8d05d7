//! `vswitchd`: the virtual switch of a Ferrosphere host.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vswitchd::server::End;

/// The virtual switch of a Ferrosphere host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/vswitchd/vswitchd.toml")]
    config: PathBuf,
    /// Log in JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

/// The status of a daemon whose worker has ended or does not answer.
const EXIT_FAILED: u8 = 71;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_env("VSWITCHD_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
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
        Ok(runtime) => runtime.block_on(vswitchd::server::run(&arguments.config)),
        Err(error) => Err(anyhow::anyhow!("starting threads: {error}")),
    };
    if let Ok(runtime) = runtime {
        // A thread that waits for a device must not hold up the end.
        runtime.shutdown_background();
    }
    match result {
        Ok(End::Clean) => ExitCode::SUCCESS,
        // It does not end by that.
        Ok(End::Failed | End::Joined) => ExitCode::from(EXIT_FAILED),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
