//! The back end's own requests to the front end: telling that the configuration space changed.
//!
//! The `vhost` crate puts the channel's socket where a configuration change can't be sent from, so `SET_BACKEND_REQ_FD`
//! is recognised by peeking at the next message's header and received here; all other messages are the crate's.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, RecvFlags, SocketType, sockopt};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::error::SessionError;

const HEADER_BYTES: usize = 12;
const SET_BACKEND_REQ_FD: u32 = 21;
const BACKEND_CONFIG_CHANGE_MSG: u32 = 2;
const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

struct Header {
    request: u32,
    flags: u32,
    size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let field = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { request: field(0), flags: field(4), size: field(8) }
    }

    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
}

/// The channel, once a front end gave one.
#[derive(Debug)]
pub(crate) struct BackChannel(UnixStream);

impl BackChannel {
    /// Sends the notice. No reply is asked for, and the socket does not block: a VMM that reads none of its notices
    /// learns of one only.
    pub(crate) fn config_changed(&self) -> std::io::Result<()> {
        let header = Header { request: BACKEND_CONFIG_CHANGE_MSG, flags: VERSION, size: 0 };
        match (&self.0).write(&header.bytes()) {
            Ok(HEADER_BYTES) => Ok(()),
            Ok(_) => Err(std::io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether the next message is the one that is handled here. Does not consume anything.
pub(crate) fn is_next(peer: &UnixStream) -> std::io::Result<bool> {
    let mut bytes = [0u8; HEADER_BYTES];
    let (_, got) = rustix::net::recv(peer, &mut bytes[..], RecvFlags::PEEK)?;
    Ok(got == HEADER_BYTES && Header::parse(&bytes).request == SET_BACKEND_REQ_FD)
}

/// Receives `SET_BACKEND_REQ_FD`. `negotiated`: the protocol feature is; `may_ack`: replies to any message are.
pub(crate) fn receive(
    peer: &UnixStream,
    negotiated: bool,
    may_ack: bool,
) -> Result<BackChannel, SessionError> {
    let mut bytes = [0u8; HEADER_BYTES];
    let (got, file) =
        peer.recv_with_fd(&mut bytes).map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
    let header = Header::parse(&bytes);
    let well_formed = got == HEADER_BYTES
        && header.flags & VERSION_MASK == VERSION
        && header.flags & FLAG_REPLY == 0
        && header.size == 0;
    if !well_formed || !negotiated {
        return Err(SessionError::Unsupported("this SET_BACKEND_REQ_FD message"));
    }
    let file = file.ok_or(SessionError::Unsupported("SET_BACKEND_REQ_FD without a socket"))?;
    let domain = sockopt::socket_domain(file.as_fd()).map_err(std::io::Error::from)?;
    let kind = sockopt::socket_type(file.as_fd()).map_err(std::io::Error::from)?;
    if domain != AddressFamily::UNIX || kind != SocketType::STREAM {
        return Err(SessionError::Unsupported("a back-end channel that is no Unix stream socket"));
    }
    let channel = UnixStream::from(std::os::fd::OwnedFd::from(file));
    channel.set_nonblocking(true)?;
    if may_ack && header.flags & FLAG_NEED_REPLY != 0 {
        let reply = Header { request: SET_BACKEND_REQ_FD, flags: VERSION | FLAG_REPLY, size: 8 };
        let mut message = reply.bytes().to_vec();
        message.extend_from_slice(&0u64.to_ne_bytes());
        (&*peer).write_all(&message)?;
    }
    Ok(BackChannel(channel))
}
