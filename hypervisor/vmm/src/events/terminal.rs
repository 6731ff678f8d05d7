//! The terminal that a console on standard input and output may be at.

use std::io::{IsTerminal, Stdin};

use vmm_sys_util::terminal::Terminal;

use crate::config::ConsoleTarget;

/// A terminal whose keys go to the guest one by one; it is given back as it was.
#[derive(Debug)]
pub(crate) struct RawTerminal(Stdin);

impl RawTerminal {
    /// Takes the terminal over, if the console is there and it is one.
    pub(crate) fn take(console: &ConsoleTarget) -> std::io::Result<Option<Self>> {
        let stdin = std::io::stdin();
        if *console != ConsoleTarget::Standard || !stdin.is_terminal() {
            return Ok(None);
        }
        stdin.lock().set_raw_mode().map_err(|error| std::io::Error::other(format!("{error:?}")))?;
        Ok(Some(Self(stdin)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = self.0.lock().set_canon_mode();
    }
}
