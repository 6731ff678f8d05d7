//! What a back end says of its own accord, on a channel that we give it: that its configuration has changed. And one
//! message to it that the `vhost` crate has no call for: the MTU.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

/// Request, flags, bytes of the body: each in the host's byte order (vhost-user, "Header").
const HEADER_BYTES: usize = 12;
const CONFIG_CHANGED: u32 = 2;
const NET_SET_MTU: u32 = 20;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// Notices of one round; who sends more is asked again.
const ROUND_MAX: usize = 16;

/// Our end of the channel.
#[derive(Debug)]
pub(super) struct Notices(UnixStream);

fn words(bytes: &[u8; HEADER_BYTES]) -> [u32; 3] {
    [0, 4, 8].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

fn header(request: u32, flags: u32, bytes: u32) -> Vec<u8> {
    [request, flags, bytes].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl Notices {
    /// A channel, and the end that the back end gets.
    pub(super) fn pair() -> std::io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Self(ours), theirs))
    }

    /// Takes what is there; whether the configuration has changed. An error is the end of the channel.
    pub(super) fn take(&mut self) -> std::io::Result<bool> {
        let mut changed = false;
        for _ in 0..ROUND_MAX {
            let mut bytes = [0; HEADER_BYTES];
            match self.0.read(&mut bytes) {
                Ok(HEADER_BYTES) => {}
                // Messages are sent whole, and a socket of this kind gives them so.
                Ok(_) => return Err(ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            let [request, flags, body] = words(&bytes);
            if (request, flags & (VERSION_MASK | REPLY), body) != (CONFIG_CHANGED, VERSION, 0) {
                return Err(std::io::Error::new(
                    ErrorKind::InvalidData,
                    format!("notice {request} is not known"),
                ));
            }
            changed = true;
            if flags & NEED_REPLY != 0 {
                let answer = [header(request, VERSION | REPLY, 8), 0u64.to_ne_bytes().to_vec()].concat();
                self.0.write_all(&answer)?;
            }
        }
        Ok(changed)
    }

    /// The socket.
    pub(super) fn socket(&self) -> &UnixStream {
        &self.0
    }
}

/// Tells a back end a card's MTU, on the socket of the device while nothing else is said there. Whether it agrees; without
/// answers it does.
pub(super) fn set_mtu(mut stream: &UnixStream, mtu: u16, answers: bool) -> std::io::Result<bool> {
    let flags = VERSION | if answers { NEED_REPLY } else { 0 };
    stream.write_all(&[header(NET_SET_MTU, flags, 8), u64::from(mtu).to_ne_bytes().to_vec()].concat())?;
    if !answers {
        return Ok(true);
    }
    let mut bytes = [0; HEADER_BYTES];
    let mut status = [0; 8];
    stream.read_exact(&mut bytes)?;
    if words(&bytes)[0] != NET_SET_MTU || words(&bytes)[2] != 8 {
        return Err(ErrorKind::InvalidData.into());
    }
    stream.read_exact(&mut status)?;
    Ok(u64::from_ne_bytes(status) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_and_answered_and_nonsense_ends_the_channel() {
        let (mut notices, mut back_end) = Notices::pair().unwrap();
        assert!(!notices.take().unwrap());
        back_end.write_all(&header(CONFIG_CHANGED, VERSION, 0)).unwrap();
        assert!(notices.take().unwrap() && !notices.take().unwrap());
        back_end.write_all(&header(CONFIG_CHANGED, VERSION | NEED_REPLY, 0)).unwrap();
        assert!(notices.take().unwrap());
        let mut answer = [0; 20];
        back_end.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..12], header(CONFIG_CHANGED, VERSION | REPLY, 8)[..]);
        assert_eq!(answer[12..], [0; 8]);
        for nonsense in [header(3, VERSION, 0), header(CONFIG_CHANGED, VERSION, 8), vec![1, 2, 3]] {
            let (mut notices, mut back_end) = Notices::pair().unwrap();
            back_end.write_all(&nonsense).unwrap();
            assert!(notices.take().is_err(), "{nonsense:?}");
        }
        drop(back_end);
        assert!(notices.take().is_err());
    }

    #[test]
    fn a_back_end_may_refuse_an_mtu() {
        for (status, agreed) in [(0u64, true), (1, false)] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let answer = [header(NET_SET_MTU, VERSION | REPLY, 8), status.to_ne_bytes().to_vec()].concat();
            theirs.write_all(&answer).unwrap();
            assert_eq!(set_mtu(&ours, 1500, true).unwrap(), agreed);
            let mut said = [0; 20];
            theirs.read_exact(&mut said).unwrap();
            assert_eq!(said[..12], header(NET_SET_MTU, VERSION | NEED_REPLY, 8)[..]);
            assert_eq!(u64::from_ne_bytes(*said[12..].first_chunk().unwrap()), 1500);
        }
    }
}
