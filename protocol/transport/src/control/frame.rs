//! Frames: reading them one by one, and a task that writes them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::ServiceId;

/// The longest payload: 16 MiB.
pub const PAYLOAD_BYTES_MAX: usize = 16 << 20;
/// Frames that may wait to be written.
pub(super) const QUEUE_FRAMES_MAX: usize = 64;

const HEAD_BYTES: usize = 15;
/// What the length counts beside the payload.
const COUNTED_BYTES: usize = HEAD_BYTES - 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Request,
    Reply,
    Fault,
}

#[derive(PartialEq, Eq, Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) service: ServiceId,
    pub(super) request: u64,
    pub(super) payload: Vec<u8>,
}

#[derive(Debug)]
pub(super) enum ReadError {
    Io(io::Error),
    Malformed(&'static str),
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The bytes of a frame. The caller has checked the payload's length.
pub(super) fn encode(kind: Kind, service: ServiceId, request: u64, payload: &[u8]) -> Vec<u8> {
    debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
    bytes.extend(((COUNTED_BYTES + payload.len()) as u32).to_le_bytes());
    bytes.push(match kind {
        Kind::Request => 1,
        Kind::Reply => 2,
        Kind::Fault => 3,
    });
    bytes.extend(service.0.to_le_bytes());
    bytes.extend(request.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The next frame; `None` if the peer ended the connection between two.
pub(super) async fn read<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<Frame>, ReadError> {
    let mut head = [0; HEAD_BYTES];
    let first = stream.read(&mut head).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut head[first..]).await?;
    let [l0, l1, l2, l3, kind, s0, s1, request @ ..] = head;
    let counted = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let len = counted.checked_sub(COUNTED_BYTES).ok_or(ReadError::Malformed("too short"))?;
    if len > PAYLOAD_BYTES_MAX {
        return Err(ReadError::Malformed("too long"));
    }
    let kind = match kind {
        1 => Kind::Request,
        2 => Kind::Reply,
        3 => Kind::Fault,
        _ => return Err(ReadError::Malformed("unknown kind")),
    };
    let mut payload = vec![0; len];
    stream.read_exact(&mut payload).await?;
    let service = ServiceId(u16::from_le_bytes([s0, s1]));
    Ok(Some(Frame { kind, service, request: u64::from_le_bytes(request), payload }))
}

/// Writes queued frames until the queue closes or the connection breaks; then the queue's senders see it closed.
/// A task of its own, so that a caller that gives up never leaves half a frame behind.
pub(super) async fn write_all<W: AsyncWrite + Unpin>(
    mut stream: W,
    mut queue: mpsc::Receiver<Vec<u8>>,
) -> io::Result<()> {
    while let Some(frame) = queue.recv().await {
        stream.write_all(&frame).await?;
        stream.flush().await?;
    }
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_survive_and_nonsense_is_named() {
        let bytes = encode(Kind::Request, ServiceId(0x0102), 7, b"hello");
        let frame = read(&mut bytes.as_slice()).await.unwrap().unwrap();
        let expected =
            Frame { kind: Kind::Request, service: ServiceId(0x0102), request: 7, payload: b"hello".to_vec() };
        assert_eq!(frame, expected);
        assert!(read(&mut [].as_slice()).await.unwrap().is_none());
        for cut in 1..bytes.len() {
            assert!(matches!(read(&mut &bytes[..cut]).await, Err(ReadError::Io(_))), "{cut}");
        }
        let mut short = bytes.clone();
        short[..4].copy_from_slice(&10u32.to_le_bytes());
        assert!(matches!(read(&mut short.as_slice()).await, Err(ReadError::Malformed("too short"))));
        let mut long = bytes.clone();
        long[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read(&mut long.as_slice()).await, Err(ReadError::Malformed("too long"))));
        let mut odd = bytes;
        odd[4] = 9;
        assert!(matches!(read(&mut odd.as_slice()).await, Err(ReadError::Malformed("unknown kind"))));
    }
}
