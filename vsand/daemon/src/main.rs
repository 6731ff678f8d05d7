//! `vsand`: the storage daemon of a Ferrosphere host.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ferro_transport::startup;
use vsand::server::End;

/// `RocksDB`'s too: what was needed for a while goes back to the kernel, and buffers at whole pages cost nothing beside themselves
/// (docs/decisions/0030-memory.md).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

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

/// The status of a daemon that stopped while something did not answer.
const EXIT_LEFT: i32 = 71;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    startup::log_to_stderr("VSAND_LOG", "info,openraft=warn", arguments.log_json);
    let runtime = startup::threads();
    let result = match &runtime {
        Ok(runtime) => runtime.block_on(vsand::server::run(&arguments.config)),
        Err(error) => Err(anyhow::anyhow!("starting threads: {error}")),
    };
    match result {
        Ok(End::Clean) => ExitCode::SUCCESS,
        // Nothing is waited for, because threads may wait for a disk for good, and nothing is taken down, because others still
        // use it: RocksDB aborts a process whose threads meet a lock of it that has gone.
        Ok(End::Left) => signal_hook::low_level::exit(EXIT_LEFT),
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
