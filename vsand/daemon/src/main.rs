//! `vsand`: the storage daemon of a Ferrosphere host.
#![forbid(unsafe_code)]

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use vsand::server::End;

/// The storage daemon of a Ferrosphere host.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/vsand/vsand.toml")]
    config: PathBuf,
    /// Log in JSON, one object a line.
    #[arg(long)]
    log_json: bool,
}

/// The status of a daemon that stopped while something did not answer. (70 is a data loop that has failed.)
const EXIT_LEFT: u8 = 71;
/// What libraries do at the end of a process may wait for a disk too.
const EXIT_MAX: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter =
        EnvFilter::try_from_env("VSAND_LOG").unwrap_or_else(|_| EnvFilter::new("info,openraft=warn"));
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
        Ok(runtime) => runtime.block_on(vsand::server::run(&arguments.config)),
        Err(error) => Err(anyhow::anyhow!("starting threads: {error}")),
    };
    match result {
        Ok(End::Clean) => ExitCode::SUCCESS,
        Ok(End::Left) => {
            // Nothing is waited for: threads may wait for a disk for good.
            if let Ok(runtime) = runtime {
                runtime.shutdown_background();
            }
            end_within(EXIT_MAX);
            ExitCode::from(EXIT_LEFT)
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Kills this process if it has not ended by itself then.
fn end_within(limit: Duration) {
    let killer = std::thread::Builder::new().spawn(move || {
        std::thread::sleep(limit);
        // It fails only for a process that is not there.
        let _gone = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    });
    if let Err(error) = killer {
        tracing::warn!(%error, "nothing bounds the end of this process");
    }
}
