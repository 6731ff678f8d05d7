//! Messages that the `vhost` crate does not serve, or not as we need it: `SET_BACKEND_REQ_FD`, those of network devices, and
//! `SET_VRING_ENABLE` before the features: QEMU sends it when a guest resets its network card, DPDK's virtio-user when a back
//! end has come back. They are recognised by peeking at the next message's header and received here; all others are the
//! crate's.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::net::RecvFlags;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::error::SessionError;

const HEADER_BYTES: usize = 12;
const VERSION: u32 = 0x1;
const VERSION_MASK: u32 = 0x3;
const FLAG_REPLY: u32 = 0x4;
const FLAG_NEED_REPLY: u32 = 0x8;

const SET_VRING_ENABLE: u32 = 18;
const SEND_RARP: u32 = 19;
const NET_SET_MTU: u32 = 20;
const SET_BACKEND_REQ_FD: u32 = 21;
const SET_STATUS: u32 = 39;
const GET_STATUS: u32 = 40;

/// A message's header, in the host's byte order.
pub(super) struct Header {
    pub(super) request: u32,
    pub(super) flags: u32,
    pub(super) size: u32,
}

impl Header {
    fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let field = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self { request: field(0), flags: field(4), size: field(8) }
    }

    pub(super) fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }

    /// A message of ours that asks for no reply.
    pub(super) fn notice(request: u32) -> Self {
        Self { request, flags: VERSION, size: 0 }
    }
}

/// A message for this module.
#[derive(Debug)]
pub(super) enum Extra {
    /// The channel for our own requests.
    BackChannel(File),
    /// Announce an address: the first six bytes of the number as it was sent.
    SendRarp(u64),
    SetMtu(u64),
    SetStatus(u64),
    GetStatus,
    /// What a ring is to be once it is started, before features were negotiated.
    EarlyEnable(u32, bool),
}

/// A message, and how it is answered.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) extra: Extra,
    request: u32,
    wants_ack: bool,
}

/// Whether the next message is one of ours; `negotiated`: the features are settled. Does not consume anything.
pub(super) fn is_next(peer: &UnixStream, negotiated: bool) -> std::io::Result<bool> {
    let mut bytes = [0u8; HEADER_BYTES];
    let (_, got) = rustix::net::recv(peer, &mut bytes[..], RecvFlags::PEEK)?;
    let ours = [SEND_RARP, NET_SET_MTU, SET_BACKEND_REQ_FD, SET_STATUS, GET_STATUS];
    let request = Header::parse(&bytes).request;
    Ok(got == HEADER_BYTES && (ours.contains(&request) || request == SET_VRING_ENABLE && !negotiated))
}

/// Receives the message that [`is_next`]. `may_ack`: replies to any message were negotiated.
pub(super) fn receive(peer: &UnixStream, may_ack: bool) -> Result<Message, SessionError> {
    let mut bytes = [0u8; HEADER_BYTES];
    let (got, file) =
        peer.recv_with_fd(&mut bytes).map_err(|error| std::io::Error::from_raw_os_error(error.errno()))?;
    let header = Header::parse(&bytes);
    let request = header.request;
    let has_number = matches!(request, SET_VRING_ENABLE | SEND_RARP | NET_SET_MTU | SET_STATUS);
    let malformed = got != HEADER_BYTES
        || header.flags & VERSION_MASK != VERSION
        || header.flags & FLAG_REPLY != 0
        || header.size != if has_number { 8 } else { 0 }
        || file.is_some() != (request == SET_BACKEND_REQ_FD);
    if malformed {
        return Err(SessionError::Malformed(request));
    }
    let mut number = [0; 8];
    if has_number {
        (&*peer).read_exact(&mut number)?;
    }
    let number = u64::from_ne_bytes(number);
    let extra = match (request, file) {
        (SET_BACKEND_REQ_FD, Some(file)) => Extra::BackChannel(file),
        (SEND_RARP, _) => Extra::SendRarp(number),
        (NET_SET_MTU, _) => Extra::SetMtu(number),
        (SET_STATUS, _) => Extra::SetStatus(number),
        (GET_STATUS, _) => Extra::GetStatus,
        // The ring's number, and what it shall be.
        (SET_VRING_ENABLE, _) => {
            let [i0, i1, i2, i3, e0, e1, e2, e3] = number.to_ne_bytes();
            let enabled = match u32::from_ne_bytes([e0, e1, e2, e3]) {
                0 => false,
                1 => true,
                _ => return Err(SessionError::Malformed(request)),
            };
            Extra::EarlyEnable(u32::from_ne_bytes([i0, i1, i2, i3]), enabled)
        }
        _ => return Err(SessionError::Malformed(request)),
    };
    Ok(Message { extra, request, wants_ack: may_ack && header.flags & FLAG_NEED_REPLY != 0 })
}

impl Message {
    /// Says whether it was done, if the front end wants to know.
    pub(super) fn acknowledge(&self, peer: &UnixStream, done: bool) -> std::io::Result<()> {
        if self.wants_ack { self.reply(peer, u64::from(!done)) } else { Ok(()) }
    }

    /// Answers with a number.
    pub(super) fn reply(&self, peer: &UnixStream, number: u64) -> std::io::Result<()> {
        let header = Header { request: self.request, flags: VERSION | FLAG_REPLY, size: 8 };
        let mut message = header.bytes().to_vec();
        message.extend_from_slice(&number.to_ne_bytes());
        (&*peer).write_all(&message)
    }
}
