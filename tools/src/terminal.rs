//! Where output goes and questions come from.

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;

use crate::failure::{Failure, Result};
use crate::text::{Paint, Style, printable};

/// When to use colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// How to show answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    /// JSON, as the API gives it.
    Json,
}

/// Clears the screen and goes to its corner (ECMA-48: CUP, ED).
const CLEAR: &str = "\x1b[H\x1b[2J";

/// What parts one picture from the next: on a terminal the screen is cleared, elsewhere a line is left free.
pub fn between_rounds(repeating: bool, round: u64) -> &'static str {
    match (repeating, io::stdout().is_terminal(), round) {
        (true, true, _) => CLEAR,
        (true, false, 1..) => "\n",
        _ => "",
    }
}

/// How often something is shown.
#[derive(clap::Args, Debug, Clone, Copy)]
pub struct WatchOptions {
    /// Show it again and again, until interrupted
    #[arg(short, long)]
    pub watch: bool,
    /// How many seconds apart
    #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub interval: u64,
    /// Stop after so many times
    #[arg(long, value_name = "N", requires = "watch")]
    pub count: Option<u64>,
}

/// The terminal, or what stands in its place.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    /// How to show answers.
    pub format: Format,
    /// Say nothing that was not asked for.
    pub quiet: bool,
    /// Whether every question is answered with yes.
    pub yes: bool,
    color: ColorChoice,
}

impl Terminal {
    /// The terminal with these settings.
    pub fn new(format: Format, color: ColorChoice, quiet: bool, yes: bool) -> Self {
        Self { format, quiet, yes, color }
    }

    /// Paints what goes to the standard output.
    pub fn paint(self) -> Paint {
        Paint { on: self.colored(io::stdout().is_terminal()) }
    }

    fn colored(self, terminal: bool) -> bool {
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        }
    }

    /// Whether answers are JSON.
    pub fn is_json(self) -> bool {
        self.format == Format::Json
    }

    /// Whether tables have all their columns.
    pub fn is_wide(self) -> bool {
        self.format == Format::Wide
    }

    /// Whether progress may be shown: on the standard error, to a person.
    pub fn shows_progress(self) -> bool {
        !self.quiet && !self.is_json() && io::stderr().is_terminal()
    }

    /// Prints text that was asked for.
    pub fn print(self, text: &str) -> Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| Failure::output(&error))
    }

    /// Prints an answer as JSON.
    pub fn json(self, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(|error| Failure::output(&error.into()))?;
        text.push('\n');
        self.print(&text)
    }

    /// Prints one JSON document on one line: for verbs that go on.
    pub fn json_line(self, value: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(value).map_err(|error| Failure::output(&error.into()))?;
        text.push('\n');
        self.print(&text)
    }

    /// Prints an answer: as JSON, or what `text` makes of it.
    pub fn answer<T: Serialize>(self, value: &T, text: impl FnOnce(&T, Paint) -> String) -> Result<()> {
        if self.is_json() { self.json(value) } else { self.print(&text(value, self.paint())) }
    }

    /// Says that something was done, as JSON or in a sentence.
    pub fn done<T: Serialize>(self, value: &T, sentence: impl FnOnce(&T) -> String) -> Result<()> {
        if self.is_json() {
            return self.json(value);
        }
        if self.quiet {
            return Ok(());
        }
        self.print(&format!("{}\n", printable(&sentence(value))))
    }

    /// A word beside the answer, for a person at a terminal only. Nobody is there to hear that it can't be printed.
    pub fn hint(self, text: &str) {
        if self.shows_progress() {
            let _ = writeln!(io::stderr(), "{}", printable(text));
        }
    }

    /// Says something that a person should know although it was done. Nobody is there to hear that it can't be printed.
    pub fn warn(self, text: &str) {
        if !self.is_json() {
            let paint = Paint { on: self.colored(io::stderr().is_terminal()) };
            let _ = writeln!(io::stderr(), "{} {}", paint.text(Style::Warn, "warning:"), printable(text));
        }
    }

    /// Says how something ended whose answer is on the standard output. Nobody is there to hear that it can't be printed.
    pub fn aside<T: Serialize>(self, value: &T, sentence: impl FnOnce(&T) -> String) {
        if self.is_json() {
            if let Ok(text) = serde_json::to_string(value) {
                let _ = writeln!(io::stderr(), "{text}");
            }
        } else if !self.quiet {
            let _ = writeln!(io::stderr(), "{}", printable(&sentence(value)));
        }
    }

    /// Shows a failure on the standard error.
    pub fn failure(self, failure: &Failure) {
        let mut err = io::stderr().lock();
        // Nothing is left to be done if even this can't be printed: the exit code still tells.
        let _ = if self.is_json() {
            writeln!(err, "{}", failure.to_json())
        } else {
            let paint = Paint { on: self.colored(io::stderr().is_terminal()) };
            let (message, next) = (printable(&failure.message), printable(&failure.next_step));
            let head = paint.text(Style::Bad, "error:");
            // A single fault is the message.
            let faults = if failure.faults.len() > 1 { &failure.faults[..] } else { &[] };
            let faults = faults.iter().fold(String::new(), |mut text, fault| {
                text.push_str("\n  - ");
                text.push_str(&printable(&fault.to_string()));
                text
            });
            let next = if next.is_empty() { next } else { format!("\n  next: {next}") };
            writeln!(err, "{head} {message}{faults}{next}")
        };
    }

    /// Asks whether to go on; `--yes` answers. Without a terminal it is a no.
    pub fn confirm(self, warning: &str, what: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        let answer = Self::ask(warning, "Go on? [y/N] ", what, "--yes")?;
        if matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes") {
            return Ok(());
        }
        Err(Failure::aborted(
            format!("{what}: not confirmed, nothing was changed"),
            "answer y, or pass --yes",
        ))
    }

    /// Asks to type a name back; `--yes` answers. Without a terminal it is a no.
    pub fn confirm_name(self, warning: &str, name: &str, what: &str) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        self.typed_name(warning, name, what, "--yes").map(drop)
    }

    /// Asks to type a name back, which nothing but a person or `option` answers.
    pub fn typed_name(self, warning: &str, name: &str, what: &str, option: &str) -> Result<String> {
        let question = format!("Type {} to confirm: ", printable(name));
        let typed = Self::ask(warning, &question, what, option)?;
        if typed == name {
            return Ok(typed);
        }
        let message = format!("{what}: the name was not typed back, nothing was changed");
        Err(Failure::aborted(message, format!("type {name} exactly, or pass {option}")))
    }

    fn ask(warning: &str, question: &str, what: &str, option: &str) -> Result<String> {
        if !io::stdin().is_terminal() {
            let message = format!(
                "{what}: this must be confirmed and there is no terminal to ask at, nothing was changed"
            );
            return Err(Failure::aborted(
                message,
                format!("pass {option} if you are sure: {}", printable(warning)),
            ));
        }
        let mut err = io::stderr();
        write!(err, "{}\n{question}", printable(warning))
            .and_then(|()| err.flush())
            .map_err(|error| Failure::output(&error))?;
        let mut line = String::new();
        io::stdin().lock().read_line(&mut line).map_err(|error| {
            Failure::aborted(format!("{what}: no answer could be read: {error}"), format!("pass {option}"))
        })?;
        Ok(line.trim().to_owned())
    }
}
