//! Signals that end the VM, as a descriptor.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use vmm_sys_util::signal::{Error, block_signal, create_sigset};

const ENDING: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// The descriptor.
#[derive(Debug)]
pub(crate) struct Signals(File);

impl Signals {
    /// Blocks the signals in this thread and in those that it starts from now on.
    #[allow(unsafe_code)]
    pub(crate) fn take_over() -> std::io::Result<Self> {
        for signal in ENDING {
            match block_signal(signal) {
                // A confined process has the mask of its broker.
                Ok(()) | Err(Error::SignalAlreadyBlocked(_)) => {}
                Err(error) => return Err(std::io::Error::other(format!("{error:?}"))),
            }
        }
        let set = create_sigset(&ENDING)?;
        // SAFETY: the set is valid for the call, and the result is checked before it is owned.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and nobody else has it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Whether one has come.
    pub(crate) fn take(&self) -> std::io::Result<bool> {
        let mut buffer = [0u8; size_of::<libc::signalfd_siginfo>()];
        match (&self.0).read(&mut buffer) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
