//! The loop of the process's first thread: console, signals, and the end of the machine.
//!
//! It alone waits for slow things, and it waits for all of them at once.

mod console;
mod log;
mod signals;
mod terminal;

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::EventFd;

pub(crate) use console::Console;
pub(crate) use log::Log;
pub(crate) use signals::Signals;
pub(crate) use terminal::RawTerminal;

use crate::machine::{Machine, StopReason};

/// The descriptor of an eventfd, whose crate has no other way to it.
#[allow(unsafe_code)]
pub(crate) fn borrow(eventfd: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the result borrows the eventfd, which so stays open.
    unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) }
}

/// Serves the machine until it has stopped, and says why it did.
pub(crate) fn serve(
    machine: &Machine,
    stop_event: &EventFd,
    signals: &Signals,
    console: &mut Console,
) -> std::io::Result<StopReason> {
    loop {
        if let Some(reason) = machine.stopped() {
            console.finish();
            return Ok(reason);
        }
        let ready = {
            let mut waited = vec![
                PollFd::from_borrowed_fd(borrow(stop_event), PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            console.wait_for(&mut waited);
            match poll(&mut waited, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            !waited[1].revents().is_empty()
        };
        if ready && signals.take()? {
            machine.stop(StopReason::Told);
        }
        console.turn(&mut machine.serial())?;
    }
}
