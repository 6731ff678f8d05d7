//! `vswitchd`: the virtual switch of a Ferrosphere host.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ferro_transport::startup;
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
    startup::log_to_stderr("VSWITCHD_LOG", "info", arguments.log_json);
    let runtime = startup::threads();
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
