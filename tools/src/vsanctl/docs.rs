//! `completion` and `man`: made from the arguments, so that they are never out of date.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use super::Context;
use super::args::{Args, CompletionShell};
use crate::failure::{Failure, Result};

pub(super) fn completion(context: &Context, shell: CompletionShell) -> Result<()> {
    let shell = match shell {
        CompletionShell::Bash => Shell::Bash,
        CompletionShell::Zsh => Shell::Zsh,
        CompletionShell::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "vsanctl", &mut script);
    context.terminal.print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(context: &Context, dir: Option<&Path>) -> Result<()> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Args::command()).render(&mut page).map_err(|error| Failure::output(&error))?;
        return context.terminal.print(&String::from_utf8_lossy(&page));
    };
    let fail = |error: std::io::Error| Failure::file("writing the manual pages to", dir, &error);
    std::fs::create_dir_all(dir).map_err(fail)?;
    clap_mangen::generate_to(Args::command(), dir).map_err(fail)
}
