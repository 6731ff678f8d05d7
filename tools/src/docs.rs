//! `completion` and `man` of every tool: made from the arguments, so that they are never out of date.

use std::path::Path;

use clap::Command;
use clap_complete::Shell;

use crate::failure::{Failure, Result};
use crate::terminal::Terminal;

/// A shell that completions can be made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum CompletionShell {
    Bash,
    Zsh,
    Fish,
}

/// Prints a tool's completion script.
pub fn completion(terminal: Terminal, mut tool: Command, shell: CompletionShell) -> Result<()> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let name = tool.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut tool, name, &mut script);
    terminal.print(&String::from_utf8_lossy(&script))
}

/// Prints a tool's manual page, or writes those of all its verbs to a directory.
pub fn man(terminal: Terminal, tool: Command, dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(tool).render(&mut page).map_err(|error| Failure::output(&error))?;
        return terminal.print(&String::from_utf8_lossy(&page));
    };
    let fail = |error: std::io::Error| Failure::file("writing the manual pages to", dir, &error);
    std::fs::create_dir_all(dir).map_err(fail)?;
    clap_mangen::generate_to(tool, dir).map_err(fail)
}
