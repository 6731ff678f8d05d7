//! Options that every tool has, beside its daemon's socket.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::Client;
use crate::failure::{Exit, Failure, Result};
use crate::terminal::{ColorChoice, Format, Terminal, WatchOptions, between_rounds};
use crate::text::Paint;

/// Options of every verb of every tool.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// How to show answers: wide has more columns, json is as the API gives it
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        default_value_t,
        hide_possible_values = false
    )]
    pub output: Format,
    /// Short for --output json
    #[arg(long, global = true)]
    pub json: bool,
    /// Answer yes to every question
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Say only what was asked for: no confirmations, hints and progress bars
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// When to use colour; auto is on a terminal, unless `NO_COLOR` is set
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t)]
    pub color: ColorChoice,
    /// Give up a request after so many seconds; 0 waits for ever
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 120)]
    pub timeout: u64,
}

impl Options {
    /// The terminal that they describe.
    pub fn terminal(&self) -> Terminal {
        let format = if self.json { Format::Json } else { self.output };
        Terminal::new(format, self.color, self.quiet, self.yes)
    }

    /// How long a request may take.
    pub fn timeout(&self) -> Option<Duration> {
        (self.timeout > 0).then(|| Duration::from_secs(self.timeout))
    }
}

/// `status`: asks for what is at `path` and shows it, once or again and again. `text` gets whether wide was asked for.
pub async fn status<T: Serialize + DeserializeOwned>(
    client: &Client,
    terminal: Terminal,
    options: WatchOptions,
    path: &str,
    text: impl Fn(&T, Paint, bool) -> String,
) -> Result<()> {
    let rounds = if options.watch { options.count } else { Some(1) };
    let mut round = 0_u64;
    while rounds.is_none_or(|rounds| round < rounds) {
        if round > 0 {
            tokio::time::sleep(Duration::from_secs(options.interval)).await;
        }
        let status: T = client.get(path).await?;
        if terminal.is_json() {
            if options.watch { terminal.json_line(&status)? } else { terminal.json(&status)? }
        } else {
            let text = text(&status, terminal.paint(), terminal.is_wide());
            terminal.print(&format!("{}{text}", between_rounds(options.watch, round)))?;
        }
        round += 1;
    }
    Ok(())
}

/// Runs a verb to its end, shows its failure, and gives the exit code.
pub fn run(terminal: Terminal, verb: impl Future<Output = Result<()>>) -> ExitCode {
    match block_on(verb) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has read enough.
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            terminal.failure(&failure);
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn block_on(verb: impl Future<Output = Result<()>>) -> Result<()> {
    // One thread reads and writes files, two move the data.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| {
            let message = format!("the tool can't start: {error}");
            Failure::new(Exit::Failure, "internal", message, "check the limits of this session (`ulimit -a`)")
        })?;
    let outcome = runtime.block_on(verb);
    // A question at the terminal or a slow file must not hold up the end.
    runtime.shutdown_background();
    outcome
}
