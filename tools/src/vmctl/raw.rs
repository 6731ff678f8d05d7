//! A terminal that passes every key on, until it is given back as it was.

use std::io::{self, IsTerminal, Write};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Ends colours and the like, and shows the cursor (ECMA-48: SGR; DECTCEM): the guest may have left them as it liked.
const PLAIN: &str = "\x1b[0m\x1b[?25h";

/// Gives the terminal back when it goes out of scope, also while a panic unwinds.
#[derive(Debug)]
pub(super) struct RawTerminal {
    before: Termios,
    paints: bool,
}

impl RawTerminal {
    /// Makes the standard input pass every key on; `None` if it is no terminal.
    pub(super) fn enter() -> io::Result<Option<Self>> {
        let stdin = rustix::stdio::stdin();
        if !io::stdin().is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self { before, paints: io::stdout().is_terminal() }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if self.paints {
            let mut out = io::stdout().lock();
            let _ = out.write_all(PLAIN.as_bytes()).and_then(|()| out.flush());
        }
        // Nobody is left to be told if this fails: the terminal is gone then.
        let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}
