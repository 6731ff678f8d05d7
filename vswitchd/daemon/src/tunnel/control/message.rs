//! What hosts say to each other on control connections, and how it looks on the wire.
//!
//! ```text
//!   stream, one each way:   length u32 (little-endian) | message (postcard)       Hello first, then as it comes
//!   datagram (heartbeat):   01 | number u64 | the highest number heard u64        little-endian
//! ```
//!
//! What a host has to say of its addresses goes over one of the paths, in order: `Begin`, any number of `Part`s and `End` are
//! all of it, then come changes. On another path it begins anew with a higher generation, and what still arrives on the old
//! one is ignored. So nothing is said twice, and nothing late is believed.
//!
//! Versions: the number in [`PROTOCOL`] changes when the messages do; a host with another does not get past the handshake.
//!
//! - 1: the first.

use std::net::SocketAddr;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Vni, Withdrawal};
use serde::{Deserialize, Serialize};
use vswitch_core::table::CLAIMS_MAX;

use super::super::ADDRESSES_MAX;
use super::types::Revision;

/// The protocol that control connections agree on; the number is the version.
pub const PROTOCOL: &[u8] = b"ferro-mesh/1";
/// The longest message: the networks of a host that is in all of them, and some room.
pub const MESSAGE_BYTES_MAX: usize = 512 << 10;
/// The most virtual networks of a host.
pub const NETWORKS_MAX: usize = 65_536;
/// The most announcements of one `Part`.
pub const PART_MAX: usize = 256;
/// The most announcements of all parts.
pub const ANNOUNCEMENTS_MAX: usize = CLAIMS_MAX;
/// Bytes of a heartbeat.
pub const BEAT_BYTES: usize = 17;

const BEAT_VERSION: u8 = 1;

/// Who speaks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// The host; it must be that of the certificate.
    pub host: HostId,
    /// Drawn at random when its daemon started: another number is another start.
    pub incarnation: u64,
    /// Where its tunnels are.
    pub data: Vec<SocketAddr>,
    /// What it has applied.
    pub applied: Revision,
}

/// A message.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// The first one on each connection.
    Hello(Hello),
    /// Where its tunnels are now.
    Data(Vec<SocketAddr>),
    /// What it has applied now.
    Applied(Revision),
    /// All that it has to say follows.
    Begin {
        /// Higher than that of any before from the same start of the daemon.
        generation: u64,
        /// Its virtual networks.
        networks: Vec<Vni>,
    },
    /// Some of its addresses.
    Part(Vec<Announcement>),
    /// That was all.
    End,
    /// Its virtual networks have changed.
    Networks(Vec<Vni>),
    /// One of its addresses is new or has changed.
    Announce(Announcement),
    /// One of its addresses is gone.
    Withdraw(Withdrawal),
}

/// Why bytes are no message. The peer is another release, broken or hostile.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadMessage {
    /// Too long.
    #[error("a message of {0} bytes is longer than any")]
    Length(usize),
    /// Not to be read.
    #[error("a message can't be read")]
    Encoding,
    /// Too much of something.
    #[error("a message has more {0} than any host may have")]
    Count(&'static str),
}

impl Message {
    /// As it goes on the wire, with its length.
    pub fn encode(&self) -> Result<Vec<u8>, BadMessage> {
        let mut bytes = vec![0; 4];
        bytes = postcard::to_extend(self, bytes).map_err(|_| BadMessage::Encoding)?;
        let len = bytes.len() - 4;
        if len > MESSAGE_BYTES_MAX {
            return Err(BadMessage::Length(len));
        }
        bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
        Ok(bytes)
    }

    /// Reads one, without its length.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMessage> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(BadMessage::Length(bytes.len()));
        }
        let (message, rest) = postcard::take_from_bytes::<Self>(bytes).map_err(|_| BadMessage::Encoding)?;
        if !rest.is_empty() {
            return Err(BadMessage::Encoding);
        }
        message.check()?;
        Ok(message)
    }

    fn check(&self) -> Result<(), BadMessage> {
        let many =
            |count: usize, max: usize, what| if count > max { Err(BadMessage::Count(what)) } else { Ok(()) };
        let addresses = |data: &Vec<SocketAddr>| many(data.len(), ADDRESSES_MAX, "tunnel addresses");
        let networks = |networks: &Vec<Vni>| many(networks.len(), NETWORKS_MAX, "networks");
        let ips = |it: &Announcement| many(it.ips.len(), Announcement::IPS_MAX, "IP addresses of one port");
        match self {
            Self::Hello(hello) => addresses(&hello.data),
            Self::Data(data) => addresses(data),
            Self::Begin { networks: it, .. } | Self::Networks(it) => networks(it),
            Self::Part(part) => {
                many(part.len(), PART_MAX, "addresses in one message")?;
                part.iter().try_for_each(ips)
            }
            Self::Announce(announcement) => ips(announcement),
            Self::Applied(_) | Self::End | Self::Withdraw(_) => Ok(()),
        }
    }
}

/// A heartbeat. That the other side repeats our numbers shows that the path works both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beat {
    /// Counts up from 1.
    pub number: u64,
    /// The highest that was heard from the other side; 0 is none.
    pub heard: u64,
}

impl Beat {
    /// As it goes on the wire.
    pub fn encode(self) -> [u8; BEAT_BYTES] {
        let mut bytes = [BEAT_VERSION; BEAT_BYTES];
        bytes[1..9].copy_from_slice(&self.number.to_le_bytes());
        bytes[9..].copy_from_slice(&self.heard.to_le_bytes());
        bytes
    }

    /// Reads one; `None` is none of ours.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (number, heard) = rest.split_first_chunk::<8>()?;
        let heard: &[u8; 8] = heard.try_into().ok()?;
        let (number, heard) = (u64::from_le_bytes(*number), u64::from_le_bytes(*heard));
        (*version == BEAT_VERSION).then_some(Self { number, heard })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_bounds() {
        let data = vec!["[2001:db8::1]:7402".parse().unwrap(); ADDRESSES_MAX];
        let hello = |data| {
            Message::Hello(Hello {
                host: HostId::from_bytes([7; 16]),
                incarnation: 9,
                data,
                applied: Revision(3),
            })
        };
        let good = hello(data.clone());
        let bytes = good.encode().unwrap();
        assert_eq!(bytes[..4], ((bytes.len() - 4) as u32).to_le_bytes());
        assert_eq!(Message::decode(&bytes[4..]), Ok(good));
        for cut in 4..bytes.len() {
            assert_eq!(Message::decode(&bytes[4..cut]), Err(BadMessage::Encoding));
        }
        assert_eq!(Message::decode(&[&bytes[4..], &[0]].concat()), Err(BadMessage::Encoding));
        let many = hello([data, vec!["192.0.2.1:1".parse().unwrap()]].concat()).encode().unwrap();
        assert_eq!(Message::decode(&many[4..]), Err(BadMessage::Count("tunnel addresses")));
        let all = (1..=NETWORKS_MAX as u32).map(|n| Vni::new(Vni::MAX - n).unwrap()).collect();
        let networks = Message::Networks(all).encode().unwrap();
        assert!(Message::decode(&networks[4..]).is_ok(), "a host may be in as many");
        assert!(Message::decode(&[0xff; 64]).is_err());
        assert!(matches!(Message::decode(&vec![0; MESSAGE_BYTES_MAX + 1]), Err(BadMessage::Length(_))));
    }

    #[test]
    fn heartbeats_are_read_back() {
        let beat = Beat { number: 5, heard: u64::MAX };
        assert_eq!(Beat::decode(&beat.encode()), Some(beat));
        for bad in [&[][..], &[1; 16], &[1; 18], &[2; 17]] {
            assert_eq!(Beat::decode(bad), None);
        }
    }
}
