//! The back end's own requests to the front end: telling that the configuration space changed.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::extra::Header;
use crate::error::SessionError;

const BACKEND_CONFIG_CHANGE_MSG: u32 = 2;

/// The channel, once a front end gave one.
#[derive(Debug)]
pub(super) struct BackChannel(UnixStream);

impl BackChannel {
    /// Takes the descriptor that a front end sent.
    pub(super) fn new(file: File) -> Result<Self, SessionError> {
        let domain = sockopt::socket_domain(file.as_fd()).map_err(std::io::Error::from)?;
        let kind = sockopt::socket_type(file.as_fd()).map_err(std::io::Error::from)?;
        if domain != AddressFamily::UNIX || kind != SocketType::STREAM {
            return Err(SessionError::Unsupported("a back-end channel that is no Unix stream socket"));
        }
        let channel = UnixStream::from(std::os::fd::OwnedFd::from(file));
        channel.set_nonblocking(true)?;
        Ok(Self(channel))
    }

    /// Sends the notice. No reply is asked for, and the socket does not block: a VMM that reads none of its notices
    /// learns of one only.
    pub(super) fn config_changed(&self) -> std::io::Result<()> {
        let bytes = Header::notice(BACKEND_CONFIG_CHANGE_MSG).bytes();
        match (&self.0).write(&bytes) {
            Ok(written) if written == bytes.len() => Ok(()),
            Ok(_) => Err(std::io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}
