//! Frames of the data channel: a fixed head, a postcard header and a raw payload.
//!
//! ```text
//!  0        4          8      9       10      12        20            36
//!  ├────────┼──────────┼──────┼───────┼───────┼─────────┼─────────────┼─ ─ ─ ─ ─ ─┼─ ─ ─ ─ ─ ┤
//!  │ header │ payload  │ ver. │ kind  │ zero  │ request │ disk id     │ header    │ payload  │
//!  │ length │ length   │      │       │       │ id      │             │ (postcard)│ (blocks) │
//! ```
//!
//! Numbers are little-endian. A reader never allocates more than [`HEADER_BYTES_MAX`] + [`PAYLOAD_BYTES_MAX`] for one
//! frame, and refuses the connection at the first thing that does not fit: frames come from authenticated hosts, so what
//! does not fit is a fault, not a dialect.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ids::DiskId;
use crate::peer::{CHANNEL_VERSION, Refusal, Reply, Request, RequestId};
use crate::units::{BLOCK_BYTES, IO_BLOCKS_MAX};

/// Bytes of the fixed head.
pub const HEAD_BYTES: usize = 36;
/// The longest header: a summary of a large object.
pub const HEADER_BYTES_MAX: usize = 16 << 20;
/// The longest payload: 1 MiB of blocks.
pub const PAYLOAD_BYTES_MAX: usize = IO_BLOCKS_MAX as usize * BLOCK_BYTES;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A [`Request`].
    Request,
    /// A `Result<Reply, Refusal>`.
    Reply,
    /// Nothing: says that the sender is alive. Answered by `Pong`.
    Ping,
    /// The answer to `Ping`.
    Pong,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
            Self::Ping => 3,
            Self::Pong => 4,
        }
    }
}

/// The fixed head of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// What follows.
    pub kind: Kind,
    /// Which request it is or belongs to.
    pub id: RequestId,
    /// The disk that is asked or that answers.
    pub disk: DiskId,
    /// Bytes of the header.
    pub header_len: usize,
    /// Bytes of the payload.
    pub payload_len: usize,
}

/// Why bytes are not a frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side speaks another version.
    #[error("the peer speaks version {0} of the data channel, this host speaks {CHANNEL_VERSION}")]
    Version(u8),
    /// An unknown kind.
    #[error("unknown kind of frame {0}")]
    Kind(u8),
    /// A length over its bound, or one that the kind does not allow.
    #[error("a frame with {header} bytes of header and {payload} of payload is not allowed")]
    Length {
        /// Bytes of the header.
        header: usize,
        /// Bytes of the payload.
        payload: usize,
    },
    /// The header does not decode to a message of its kind, or does not agree with the payload.
    #[error("the header of a frame does not decode: {0}")]
    Header(String),
}

impl Head {
    /// Reads a head; exactly [`HEAD_BYTES`] are needed.
    pub fn parse(bytes: &[u8; HEAD_BYTES]) -> Result<Self, FrameError> {
        let u32_at =
            |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as usize;
        let (header, payload) = (u32_at(0), u32_at(4));
        if bytes[8] != CHANNEL_VERSION {
            return Err(FrameError::Version(bytes[8]));
        }
        let kind = match bytes[9] {
            1 => Kind::Request,
            2 => Kind::Reply,
            3 => Kind::Ping,
            4 => Kind::Pong,
            other => return Err(FrameError::Kind(other)),
        };
        let empty = matches!(kind, Kind::Ping | Kind::Pong);
        if header > HEADER_BYTES_MAX
            || payload > PAYLOAD_BYTES_MAX
            || payload % BLOCK_BYTES != 0
            || (empty && header + payload > 0)
        {
            return Err(FrameError::Length { header, payload });
        }
        let mut id = [0; 8];
        id.copy_from_slice(&bytes[12..20]);
        let mut disk = [0; 16];
        disk.copy_from_slice(&bytes[20..36]);
        Ok(Self {
            kind,
            id: RequestId(u64::from_le_bytes(id)),
            disk: DiskId::from_bytes(disk),
            header_len: header,
            payload_len: payload,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.header_len as u32).to_le_bytes());
        out.extend_from_slice(&(self.payload_len as u32).to_le_bytes());
        out.extend_from_slice(&[CHANNEL_VERSION, self.kind.code(), 0, 0]);
        out.extend_from_slice(&self.id.0.to_le_bytes());
        out.extend_from_slice(self.disk.as_bytes());
    }
}

/// Appends the head and header of a request to `out`; its payload follows them on the wire.
pub fn put_request(out: &mut Vec<u8>, id: RequestId, disk: DiskId, request: &Request, payload_len: usize) {
    put(out, Kind::Request, id, disk, request, payload_len);
}

/// Appends the head and header of an answer to `out`; its payload follows them on the wire.
pub fn put_reply(
    out: &mut Vec<u8>,
    id: RequestId,
    disk: DiskId,
    reply: &Result<Reply, Refusal>,
    payload_len: usize,
) {
    put(out, Kind::Reply, id, disk, reply, payload_len);
}

/// Appends a ping or a pong to `out`.
pub fn put_empty(out: &mut Vec<u8>, kind: Kind, id: RequestId) {
    debug_assert!(matches!(kind, Kind::Ping | Kind::Pong));
    Head { kind, id, disk: DiskId::from_bytes([0; 16]), header_len: 0, payload_len: 0 }.write(out);
}

fn put<T: Serialize>(
    out: &mut Vec<u8>,
    kind: Kind,
    id: RequestId,
    disk: DiskId,
    message: &T,
    payload_len: usize,
) {
    assert!(payload_len <= PAYLOAD_BYTES_MAX && payload_len.is_multiple_of(BLOCK_BYTES));
    let start = out.len();
    let mut head = Head { kind, id, disk, header_len: 0, payload_len };
    head.write(out);
    // Encoding plain data into memory can't fail.
    let encoded = postcard::to_extend(message, std::mem::take(out)).expect("plain data encodes");
    *out = encoded;
    head.header_len = out.len() - start - HEAD_BYTES;
    assert!(head.header_len <= HEADER_BYTES_MAX, "a message outgrew its bound");
    out[start..start + 4].copy_from_slice(&(head.header_len as u32).to_le_bytes());
}

/// Decodes a request's header and checks it against the length of its payload.
pub fn parse_request(header: &[u8], payload_len: usize) -> Result<Request, FrameError> {
    let request: Request = decode(header)?;
    match request.payload_bytes() {
        Ok(expected) if expected == payload_len => Ok(request),
        Ok(expected) => {
            Err(FrameError::Header(format!("{payload_len} bytes of payload where {expected} belong")))
        }
        Err(refusal) => Err(FrameError::Header(refusal.to_string())),
    }
}

/// Decodes an answer's header.
pub fn parse_reply(header: &[u8]) -> Result<Result<Reply, Refusal>, FrameError> {
    decode(header)
}

fn decode<T: DeserializeOwned>(header: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(header) {
        Ok((message, [])) => Ok(message),
        Ok((_, rest)) => Err(FrameError::Header(format!("{} bytes too many", rest.len()))),
        Err(error) => Err(FrameError::Header(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ChunkId, ChunkIndex, Epoch, ObjectId, Seq, Version};
    use crate::peer::{Run, mapped_bytes};
    use crate::units::BlockRange;

    fn write() -> Request {
        Request::Write {
            chunk: ChunkId { object: ObjectId::from_bytes([7; 16]), index: ChunkIndex(3) },
            range: BlockRange::new(8, 2).unwrap(),
            version: Version { epoch: Epoch(4), seq: Seq(99) },
            watermark: Seq(90),
        }
    }

    #[test]
    fn a_request_survives_the_wire() {
        let mut out = vec![0xaa];
        put_request(&mut out, RequestId(5), DiskId::from_bytes([1; 16]), &write(), 8192);
        let head = Head::parse(out[1..=HEAD_BYTES].try_into().unwrap()).unwrap();
        assert_eq!((head.kind, head.id, head.payload_len), (Kind::Request, RequestId(5), 8192));
        let header = &out[1 + HEAD_BYTES..];
        assert_eq!(header.len(), head.header_len);
        assert_eq!(parse_request(header, 8192).unwrap(), write());
        assert!(parse_request(header, 4096).is_err(), "a payload of the wrong length is refused");
    }

    #[test]
    fn a_head_out_of_bounds_is_refused() {
        let mut out = Vec::new();
        put_empty(&mut out, Kind::Ping, RequestId(0));
        let good: [u8; HEAD_BYTES] = out.try_into().unwrap();
        assert!(Head::parse(&good).is_ok());
        for (at, value) in [(8, 2), (9, 0), (9, 5), (0, 1), (7, 1), (5, 0x10)] {
            let mut bad = good;
            bad[at] = value;
            assert!(Head::parse(&bad).is_err(), "byte {at} = {value}");
        }
    }

    #[test]
    fn runs_must_ascend() {
        let run = |first, count| Run {
            range: BlockRange::new(first, count).unwrap(),
            version: Version::NEVER,
            mapped: true,
        };
        assert_eq!(mapped_bytes(&[run(0, 1), run(1, 2)]).unwrap(), 3 * 4096);
        assert!(mapped_bytes(&[run(1, 1), run(1, 2)]).is_err());
        assert!(mapped_bytes(&[run(0, 200), run(300, 57)]).is_err());
    }
}
