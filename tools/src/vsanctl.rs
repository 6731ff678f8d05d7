//! `vsanctl`: a verb becomes one or a few requests to the local API, and the answer a table or JSON.
//!
//! The arguments are in [`args`], each noun has a module of its own, and nothing here decides what the daemon can decide: a
//! check is made on this side only to ask a person a better question.

pub mod args;
mod capacity;
mod cluster;
mod events;
mod health;
mod image;
mod leaving;
pub mod limits;
mod maintenance;
pub mod place;
pub mod policy;
mod resolve;
mod scrub;
mod status;
mod storage;
mod support;
mod top;
mod transfer;
mod volume;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::client::Client;
use crate::common;
use crate::docs;
use crate::failure::Result;
use crate::terminal::Terminal;
use args::{Args, ClusterVerb, Noun};

/// What every verb is given.
struct Context {
    client: Client,
    terminal: Terminal,
}

/// Parses the arguments, does what they say and returns the exit code.
pub fn main() -> ExitCode {
    let Args { common, noun } = Args::parse();
    let terminal = common.options.terminal();
    let client = Client::new(&common.socket, "vsand", "vsanctl", common.options.timeout());
    common::run(terminal, run(noun, Context { client, terminal }))
}

async fn run(noun: Noun, context: Context) -> Result<()> {
    match noun {
        Noun::Status(options) => status::status(&context, options).await,
        Noun::Health { verb } => health::health(&context, verb).await,
        Noun::Capacity { disks } => capacity::capacity(&context, disks).await,
        Noun::Events(options) => events::events(&context, &options).await,
        Noun::Cluster { verb } => match verb {
            ClusterVerb::Bootstrap(options) => cluster::bootstrap(&context, options).await,
            ClusterVerb::Token { valid } => cluster::token(&context, valid).await,
            ClusterVerb::Join { token, options } => cluster::join(&context, token, options).await,
            ClusterVerb::Show => cluster::show(&context).await,
            ClusterVerb::Upgrade { check } => cluster::upgrade(&context, check).await,
        },
        Noun::Host { verb } => cluster::host(&context, verb).await,
        Noun::Disk { verb } => storage::disk(&context, verb).await,
        Noun::Object { verb } => storage::object(&context, verb).await,
        Noun::Volume { verb } => volume::volume(&context, verb).await,
        Noun::Policy { verb } => policy::policy(&context, verb).await,
        Noun::Lock { verb } => storage::lock(&context, verb).await,
        Noun::Resync { .. } => status::resyncs(&context).await,
        Noun::Scrub { verb } => scrub::scrub(&context, verb).await,
        Noun::SafeToRemove { what } => maintenance::safety(&context, what).await,
        Noun::Top(options) => top::top(&context, options).await,
        Noun::SupportBundle { file } => support::bundle(&context, &file).await,
        Noun::Completion { shell } => docs::completion(context.terminal, Args::command(), shell),
        Noun::Man { dir } => docs::man(context.terminal, Args::command(), dir.as_deref()),
    }
}
