//! What broker and jailed process say to each other: packets of a few bytes, each with a descriptor or none.
//!
//! ```text
//!   broker ──► jailed   tag                 one packet for each thing that is given
//!   broker ──► jailed   DONE pid[4]         that was all
//!   jailed ──► broker   DIAL index | LOG 0  at most one at a time
//!   broker ──► jailed   errno[4]            0 with a descriptor, or why not
//! ```
//!
//! Both sides check what they read; what does not fit ends the conversation.

use std::fs::File;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

use crate::machine::lock;
use crate::outside::{BackEndIndex, Given, Outside};

const DONE: u8 = 0;
const KVM: u8 = 1;
const MEMORY: u8 = 2;
const KERNEL: u8 = 3;
const INITRD: u8 = 4;
const CONSOLE: u8 = 5;
const CONSOLE_LOG: u8 = 6;
const API: u8 = 7;

const DIAL: u8 = 1;
const LOG: u8 = 2;

/// The largest packet.
const BYTES_MAX: usize = 8;

fn wrong() -> Error {
    Error::new(ErrorKind::InvalidData, "a packet that does not fit")
}

fn send(to: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<()> {
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(wrong());
    }
    let sent = retry_on_intr(|| sendmsg(&to, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    if sent == bytes.len() { Ok(()) } else { Err(wrong()) }
}

/// A packet, and its descriptor. An end of the stream is an error.
fn receive(from: impl AsFd, buffer: &mut [u8; BYTES_MAX]) -> Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = retry_on_intr(|| recvmsg(&from, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // What is more than one is closed.
    let descriptor = descriptors.flatten().fold(None, |first: Option<OwnedFd>, next| first.or(Some(next)));
    if got.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok((got.bytes, descriptor))
}

/// Gives all of it away.
pub(super) fn give(to: impl AsFd, given: Given, pid: u32) -> Result<()> {
    let Given { kvm, memory, kernel, initrd, console, console_log, api } = given;
    let all = [
        (KVM, Some(kvm)),
        (MEMORY, Some(memory.into())),
        (KERNEL, kernel.map(Into::into)),
        (INITRD, initrd.map(Into::into)),
        (CONSOLE, console.map(Into::into)),
        (CONSOLE_LOG, console_log.map(Into::into)),
        (API, api.map(Into::into)),
    ];
    for (tag, descriptor) in all {
        if let Some(descriptor) = descriptor {
            send(&to, &[tag], Some(descriptor.as_fd()))?;
        }
    }
    let pid = pid.to_le_bytes();
    send(&to, &[DONE, pid[0], pid[1], pid[2], pid[3]], None)
}

/// Takes what [`give`] gives: the things, and the broker's process id.
pub(super) fn take(from: impl AsFd) -> Result<(Given, u32)> {
    let mut all: [Option<OwnedFd>; API as usize + 1] = Default::default();
    let pid = loop {
        let mut buffer = [0; BYTES_MAX];
        match (receive(&from, &mut buffer)?, &buffer) {
            ((1, Some(descriptor)), [tag, ..]) if *tag != DONE => {
                *all.get_mut(usize::from(*tag)).ok_or_else(wrong)? = Some(descriptor);
            }
            ((5, None), [DONE, a, b, c, d, ..]) => break u32::from_le_bytes([*a, *b, *c, *d]),
            _ => return Err(wrong()),
        }
    };
    let [_, kvm, memory, kernel, initrd, console, console_log, api] = all;
    let given = Given {
        kvm: kvm.ok_or_else(wrong)?,
        memory: File::from(memory.ok_or_else(wrong)?),
        kernel: kernel.map(File::from),
        initrd: initrd.map(File::from),
        console: console.map(UnixListener::from),
        console_log: console_log.map(File::from),
        api: api.map(UnixListener::from),
    };
    Ok((given, pid))
}

/// The world outside of the jail: what the broker gives.
#[derive(Debug)]
pub(super) struct Asked(Mutex<OwnedFd>);

impl Asked {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(Mutex::new(socket))
    }

    fn ask(&self, what: [u8; 2]) -> Result<OwnedFd> {
        let socket = lock(&self.0);
        send(&*socket, &what, None)?;
        let mut buffer = [0; BYTES_MAX];
        match receive(&*socket, &mut buffer)? {
            (4, Some(descriptor)) if buffer[..4] == [0; 4] => Ok(descriptor),
            (4, None) => Err(Error::from_raw_os_error(i32::from_le_bytes([
                buffer[0], buffer[1], buffer[2], buffer[3],
            ]))),
            _ => Err(wrong()),
        }
    }
}

impl Outside for Asked {
    fn dial(&self, back_end: BackEndIndex) -> Result<UnixStream> {
        self.ask([DIAL, back_end.0]).map(UnixStream::from)
    }

    fn next_log(&self) -> Result<File> {
        self.ask([LOG, 0]).map(File::from)
    }
}

/// Answers one request of the jailed process with what `outside` gives. An error ends the conversation.
pub(super) fn answer(socket: impl AsFd, outside: &dyn Outside) -> Result<()> {
    let mut buffer = [0; BYTES_MAX];
    let (bytes, descriptor) = receive(&socket, &mut buffer)?;
    if bytes != 2 || descriptor.is_some() {
        return Err(wrong());
    }
    let result: Result<OwnedFd> = match (buffer[0], buffer[1]) {
        (DIAL, index) => outside.dial(BackEndIndex(index)).map(Into::into),
        (LOG, 0) => outside.next_log().map(Into::into),
        _ => return Err(wrong()),
    };
    match result {
        Ok(descriptor) => send(&socket, &[0; 4], Some(descriptor.as_fd())),
        Err(error) => {
            let errno = error.raw_os_error().filter(|errno| *errno != 0).unwrap_or(libc::EIO);
            send(&socket, &errno.to_le_bytes(), None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[derive(Debug)]
    struct World;

    impl Outside for World {
        fn dial(&self, back_end: BackEndIndex) -> Result<UnixStream> {
            match back_end.0 {
                3 => Ok(UnixStream::pair()?.0),
                _ => Err(ErrorKind::InvalidInput.into()),
            }
        }
        fn next_log(&self) -> Result<File> {
            Err(Error::from_raw_os_error(libc::ENOSPC))
        }
    }

    #[test]
    fn what_is_asked_for_is_given_or_refused_with_its_reason() {
        let (broker, jailed) = pair();
        let answers = std::thread::spawn(move || {
            for _ in 0..3 {
                answer(&broker, &World).unwrap();
            }
            answer(&broker, &World).unwrap_err().kind()
        });
        let asked = Asked::new(jailed);
        assert!(asked.dial(BackEndIndex(3)).is_ok());
        assert_eq!(asked.dial(BackEndIndex(4)).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(asked.next_log().unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        drop(asked);
        assert_eq!(answers.join().unwrap(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_does_not_fit_ends_the_conversation() {
        for packet in [&[9, 0][..], &[LOG, 1], &[DIAL], &[0; 8]] {
            let (broker, jailed) = pair();
            send(&jailed, packet, None).unwrap();
            assert!(answer(&broker, &World).is_err(), "{packet:?}");
        }
        for packet in [&[DONE][..], &[KVM], &[99], &[DONE, 1, 2, 3, 4]] {
            let (broker, jailed) = pair();
            send(&broker, packet, None).unwrap();
            drop(broker);
            assert!(take(&jailed).is_err(), "{packet:?}");
        }
    }
}
