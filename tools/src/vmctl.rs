//! `vmctl`: a verb becomes one or a few requests to the local API of `hypervisord`, and the answer a table or JSON.
//!
//! ```text
//!   start, stop, … ──► what the VM is meant to do, in the directory ──► its host does it ──► waited for here
//!   console, logs -f ──► where they are, from the API ──► the socket or the file itself, on the VM's own host
//! ```
//!
//! The arguments are in [`args`] and [`options`]; [`draft`] turns them into a specification. Nothing here decides what the
//! daemon can decide: whether a machine can be like that is for it to say, with every fault at once.

pub mod args;
mod change;
mod console;
mod draft;
mod escape;
mod host;
mod logs;
mod machine;
pub mod options;
mod power;
mod raw;
mod top;
pub mod values;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use ferro_protocol::api::vm::{VmInfo, VmName};

use crate::client::Client;
use crate::common;
use crate::docs;
use crate::failure::Result;
use crate::terminal::Terminal;
use args::{Args, Verb};

/// What every verb is given.
struct Context {
    client: Client,
    terminal: Terminal,
    /// The daemon's socket, for clients with another time limit.
    socket: PathBuf,
    /// How long an answer, or what was asked for, may take.
    timeout: Option<Duration>,
}

impl Context {
    fn new(socket: PathBuf, terminal: Terminal, timeout: Option<Duration>) -> Self {
        Self { client: client(&socket, timeout), terminal, socket, timeout }
    }

    /// A client that waits for so long.
    fn client_for(&self, timeout: Option<Duration>) -> Client {
        client(&self.socket, timeout)
    }

    async fn vm(&self, name: &VmName) -> Result<VmInfo> {
        self.client.get(&format!("/v1/vms/{name}")).await
    }
}

fn client(socket: &std::path::Path, timeout: Option<Duration>) -> Client {
    Client::new(socket, "hypervisord", "vmctl", timeout)
}

/// Parses the arguments, does what they say and returns the exit code.
pub fn main() -> ExitCode {
    let Args { common, verb } = Args::parse();
    let terminal = common.options.terminal();
    let context = Context::new(common.socket, terminal, common.options.timeout());
    common::run(terminal, run(verb, context))
}

async fn run(verb: Verb, context: Context) -> Result<()> {
    let context = &context;
    match verb {
        Verb::Create(options) => change::create(context, *options).await,
        Verb::Set { name, options } => change::set(context, &name, *options).await,
        Verb::Attach(options) => change::attach(context, options).await,
        Verb::Detach(options) => change::detach(context, options).await,
        Verb::Delete { name } => change::delete(context, &name).await,
        Verb::List { host } => machine::list(context, host.as_deref()).await,
        Verb::Show { name } => machine::show(context, &name).await,
        Verb::Start(options) => power::start(context, options).await,
        Verb::Stop(options) => power::stop(context, options).await,
        Verb::Kill { name } => power::kill(context, &name).await,
        Verb::Reset { name } => power::reset(context, &name).await,
        Verb::Pause { name } => power::pause(context, &name).await,
        Verb::Resume { name } => power::resume(context, &name).await,
        Verb::Console(options) => console::console(context, options).await,
        Verb::Logs(options) => logs::logs(context, options).await,
        Verb::Top(options) => top::top(context, options).await,
        Verb::Host => host::host(context).await,
        Verb::Status(options) => host::status(context, options).await,
        Verb::Completion { shell } => docs::completion(context.terminal, Args::command(), shell),
        Verb::Man { dir } => docs::man(context.terminal, Args::command(), dir.as_deref()),
    }
}
