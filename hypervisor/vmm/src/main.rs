//! `vmm`: runs one virtual machine and ends with it, or says what its disk would boot.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use tracing::{Span, info_span};
use tracing_subscriber::EnvFilter;
use vmm::args::Arguments;
use vmm::confine::{self, Confinement, Ended};
use vmm::messages::Messages;
use vmm::{run, threads, volume};

fn main() -> ExitCode {
    threads::share_heap();
    let arguments = Arguments::parse();
    let asked = EnvFilter::try_from_env("VMM_LOG").ok();
    let messages = if asked.is_some() { Messages::all() } else { Messages::bounded() };
    let filter = asked.unwrap_or_else(|| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(messages)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match execute(arguments) {
        Ok(status) => status,
        Err(error) => {
            // Each error says in its own words what it comes from.
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn execute(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if let Some(wanted) = arguments.show_boot()? {
        let shown = volume::show(&wanted)?;
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&shown)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (confinement, jailed) = (arguments.confinement()?, arguments.jailed());
    let config = arguments.config()?;
    let span = if config.name.is_empty() { Span::none() } else { info_span!("vm", name = config.name) };
    let _entered = span.enter();
    let end = match (confinement, jailed) {
        (Confinement::Full(_), None) => {
            title("vmm-broker", "");
            let ended = confine::broker(&config)?;
            if let Ended::Killed(_) = ended {
                tracing::error!("{ended}");
            }
            return Ok(ExitCode::from(ended.exit_status()));
        }
        (Confinement::Full(user), Some(broker)) => {
            title("vmm:", &config.name);
            confine::jailed(&config, user, broker)?
        }
        (Confinement::None, _) => {
            title("vmm:", &config.name);
            run::run_here(&config)?
        }
    };
    tracing::info!("{end}");
    Ok(ExitCode::from(end.exit_status()))
}

/// What the process is called in lists: the kernel keeps 15 bytes.
fn title(kind: &str, name: &str) {
    let title = format!("{kind}{name}");
    // A name has no zero in it, and one that could not be set is missed by nobody.
    let _ = CString::new(title.trim_end_matches(':')).map(|title| rustix::thread::set_name(&title));
}
