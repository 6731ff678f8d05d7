//! The command line of `ferro-bench`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ferro_bench::idle::{IdleArgs, idle};
use ferro_bench::process::Stop;
use ferro_bench::storage::{SocketArgs, StorageArgs, socket, storage};
use ferro_bench::tunnel::{QuinnArgs, quinn};

/// Measures Ferrosphere beside a peer, in one run, on one machine.
#[derive(Debug, Parser)]
#[command(name = "ferro-bench", version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Three daemons on loopback under the workloads, then a peer, and the ratios.
    Storage(StorageArgs),
    /// What daemons use while their volumes do nothing.
    Idle(IdleArgs),
    /// The workloads on a vhost-user-blk socket that is there already. Overwrites what is on it.
    Socket(SocketArgs),
    /// The switch's tunnels beside bare quinn, over loopback.
    Quinn(QuinnArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = Stop::on_signals().and_then(|stop| match &args.what {
        What::Storage(args) => storage(args, &stop),
        What::Idle(args) => idle(args, &stop),
        What::Socket(args) => socket(args, &stop).map(|()| true),
        What::Quinn(args) => quinn(args, &stop),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("ferro-bench: a target was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ferro-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
