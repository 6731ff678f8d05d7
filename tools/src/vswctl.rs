//! `vswctl`: a verb becomes one or a few requests to the local API of `vswitchd`, and the answer a table or JSON.
//!
//! ```text
//!   verb, or several ──draft──► changes on a copy of the configuration ──► one transaction ──► wait for the hosts
//!        apply -f FILE ─────────► what differs from it ───────────────────────┘
//! ```
//!
//! The arguments are in [`args`] and [`options`]; [`draft`] turns those of changes into changes. Nothing here decides what the
//! daemon can decide: whether a network can be like that is for it to say, with every fault at once.

mod apply;
pub mod args;
mod capture;
mod change;
mod draft;
mod frame;
pub mod options;
mod port;
mod script;
mod show;
mod status;
mod trace;
pub mod values;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use crate::client::Client;
use crate::common;
use crate::docs;
use crate::failure::{Failure, Result};
use crate::terminal::Terminal;
use args::{
    Args, ChangeOptions, GroupVerb, MacVerb, MirrorVerb, Noun, PortVerb, SwitchVerb, TunnelVerb, UplinkVerb,
};

/// What every verb is given.
struct Context {
    client: Client,
    terminal: Terminal,
    /// How changes are made.
    change: ChangeOptions,
}

/// Parses the arguments, does what they say and returns the exit code.
pub fn main() -> ExitCode {
    let Args { common, noun } = Args::parse();
    let terminal = common.options.terminal();
    let client = Client::new(&common.socket, "vswitchd", "vswctl", common.options.timeout());
    common::run(terminal, run(noun, Context { client, terminal, change: common.change }))
}

async fn run(noun: Noun, context: Context) -> Result<()> {
    let context = &context;
    if let Some(edit) = draft::Edit::of(&noun) {
        return change::one(context, edit).await;
    }
    match &noun {
        // They make changes too.
        Noun::Transaction(options) => return change::several(context, options).await,
        Noun::Apply(options) => return apply::apply(context, options).await,
        _ => {}
    }
    if context.change != ChangeOptions::default() {
        let message =
            "--dry-run, --confirm-within, --wait and --no-wait are for changes of the configuration";
        return Err(Failure::usage(message, "leave them out"));
    }
    match noun {
        Noun::Status(options) => status::status(context, options).await,
        Noun::Switch { verb: SwitchVerb::List } => show::switches(context).await,
        Noun::Switch { verb: SwitchVerb::Show { name } } => show::switch(context, &name).await,
        Noun::Portgroup { verb: GroupVerb::List } => show::groups(context).await,
        Noun::Portgroup { verb: GroupVerb::Show { name } } => show::group(context, &name).await,
        Noun::Mirror { verb: MirrorVerb::List } => show::mirrors(context).await,
        Noun::Config => show::config(context).await,
        Noun::Port { verb: PortVerb::List { group } } => port::list(context, group.as_deref()).await,
        Noun::Port { verb: PortVerb::Show { name } } => port::show(context, &name).await,
        Noun::Port { verb: PortVerb::Attach(options) } => port::attach(context, options).await,
        Noun::Port { verb: PortVerb::Detach { name } } => port::detach(context, &name).await,
        Noun::Uplink { verb: UplinkVerb::List } => watch::uplinks(context).await,
        Noun::Tunnel { verb: TunnelVerb::List } => watch::tunnels(context).await,
        Noun::Mac { verb: MacVerb::List(options) } => watch::macs(context, options).await,
        Noun::Mac { verb: MacVerb::Release { mac, vni } } => watch::release(context, &mac, vni).await,
        Noun::Trace(options) => trace::trace(context, options).await,
        Noun::Capture(options) => capture::capture(context, options).await,
        Noun::Confirm { revision } => change::confirm(context, revision).await,
        Noun::Undo { revision } => change::undo(context, revision).await,
        Noun::Completion { shell } => docs::completion(context.terminal, Args::command(), shell),
        Noun::Man { dir } => docs::man(context.terminal, Args::command(), dir.as_deref()),
        // Taken care of above.
        Noun::Switch { .. }
        | Noun::Portgroup { .. }
        | Noun::Port { .. }
        | Noun::Mirror { .. }
        | Noun::Transaction(_)
        | Noun::Apply(_) => Ok(()),
    }
}
