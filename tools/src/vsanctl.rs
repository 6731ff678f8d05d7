//! `vsanctl`: a verb becomes one or a few requests to the local API, and the answer a table or JSON.
//!
//! The arguments are in [`args`], each noun has a module of its own, and nothing here decides what the daemon can decide: a
//! check is made on this side only to ask a person a better question.

pub mod args;
mod cluster;
mod docs;
mod image;
mod leaving;
mod resolve;
mod status;
mod storage;
mod top;
mod transfer;
mod volume;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::Terminal;
use args::{Args, ClusterVerb, Noun};

/// What every verb is given.
struct Context {
    client: Client,
    terminal: Terminal,
}

/// Parses the arguments, does what they say and returns the exit code.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let common = &args.common;
    let terminal = Terminal::new(common.output, common.color, common.quiet, common.yes);
    match start(args, terminal) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has read enough.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            terminal.failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn start(args: Args, terminal: Terminal) -> Result<()> {
    // One thread reads and writes images, two move the data.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| {
            let message = format!("the tool can't start: {error}");
            Failure::new(Exit::Failure, "internal", message, "check the limits of this session (`ulimit -a`)")
        })?;
    let timeout = (args.common.timeout > 0).then(|| Duration::from_secs(args.common.timeout));
    let client = Client::new(&args.common.socket, "vsand", timeout);
    let outcome = runtime.block_on(run(args.noun, Context { client, terminal }));
    // A question at the terminal or a slow file must not hold up the end.
    runtime.shutdown_background();
    outcome
}

async fn run(noun: Noun, context: Context) -> Result<()> {
    match noun {
        Noun::Status(options) => status::status(&context, options).await,
        Noun::Cluster { verb } => match verb {
            ClusterVerb::Bootstrap(options) => cluster::bootstrap(&context, options).await,
            ClusterVerb::Token { valid } => cluster::token(&context, valid).await,
            ClusterVerb::Join { token, options } => cluster::join(&context, token, options).await,
            ClusterVerb::Show => cluster::show(&context).await,
        },
        Noun::Host { verb } => cluster::host(&context, verb).await,
        Noun::Disk { verb } => storage::disk(&context, verb).await,
        Noun::Object { verb } => storage::object(&context, verb).await,
        Noun::Volume { verb } => volume::volume(&context, verb).await,
        Noun::Lock { verb } => storage::lock(&context, verb).await,
        Noun::Resync { .. } => status::resyncs(&context).await,
        Noun::Top(options) => top::top(&context, options).await,
        Noun::Completion { shell } => docs::completion(&context, shell),
        Noun::Man { dir } => docs::man(&context, dir.as_deref()),
    }
}
