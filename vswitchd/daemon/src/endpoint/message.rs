//! DHCP messages (RFC 2131, section 2; options of RFC 2132): what is read of a guest's, and what is written.
//!
//! Only the options that matter are looked at, where they stand: whatever else a guest writes is not even decoded.

use std::net::Ipv4Addr;

use dhcproto::v4::{self, DhcpOption, DhcpOptions, Flags, HType, MessageType, Opcode, OptionCode, borrowed};
use dhcproto::{Encodable, Encoder};
use ferro_protocol::net::Mac;

/// Relays may drop less (RFC 951, section 3).
const BYTES_MIN: usize = 300;

/// A guest's message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Request {
    pub(super) kind: MessageType,
    pub(super) xid: u32,
    pub(super) mac: Mac,
    /// It can't take frames to an address that it does not have yet.
    pub(super) broadcast: bool,
    /// The address that it uses.
    pub(super) ciaddr: Ipv4Addr,
    /// The address that it asks for.
    pub(super) asks: Option<Ipv4Addr>,
    /// The server that it speaks to.
    pub(super) server: Option<Ipv4Addr>,
    /// What it calls itself: given back as it is (RFC 6842).
    client: Option<Vec<u8>>,
}

/// What a gateway says of its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Network {
    pub(super) gateway: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
    pub(super) mtu: u16,
}

/// An answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reply {
    /// An address, for so many seconds.
    Offer(Ipv4Addr, u32),
    /// It has the address, for so many seconds.
    Ack(Ipv4Addr, u32),
    /// It may go on with the address that it was given otherwise.
    Informed,
    /// It may not have what it asked for.
    Nak,
}

impl Request {
    /// Reads the payload of a datagram that came from `source`. `None` if it is none of a guest's, or speaks for another.
    pub(super) fn parse(payload: &[u8], source: Mac) -> Option<Self> {
        let message = borrowed::Message::new(payload).ok()?;
        // Ethernet: the fixed part has room for longer addresses, which nobody here has.
        let plain = message.opcode() == Opcode::BootRequest && payload[1] == 1 && message.hlen() == 6;
        if !plain || message.chaddr() != source.0 || !message.giaddr().is_unspecified() {
            return None;
        }
        let mut request = Self {
            kind: MessageType::Unknown(0),
            xid: message.xid(),
            mac: source,
            broadcast: message.flags().broadcast(),
            ciaddr: message.ciaddr(),
            asks: None,
            server: None,
            client: None,
        };
        for option in message.opts() {
            let data = option.data();
            let ip = || <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
            match option.code() {
                OptionCode::MessageType if data.len() == 1 => request.kind = MessageType::from(data[0]),
                OptionCode::RequestedIpAddress => request.asks = ip(),
                OptionCode::ServerIdentifier => request.server = ip(),
                // One option's worth (RFC 2132, section 9.14: at least two bytes).
                OptionCode::ClientIdentifier if (2..=255).contains(&data.len()) => {
                    request.client = Some(data.to_vec());
                }
                _ => {}
            }
        }
        Some(request)
    }

    /// Where an answer is sent (RFC 2131, section 4.1).
    pub(super) fn answer_to(&self, reply: Reply) -> Ipv4Addr {
        match reply {
            Reply::Nak => Ipv4Addr::BROADCAST,
            _ if !self.ciaddr.is_unspecified() => self.ciaddr,
            Reply::Offer(ip, _) | Reply::Ack(ip, _) if !self.broadcast => ip,
            _ => Ipv4Addr::BROADCAST,
        }
    }

    /// Writes an answer; none if it does not fit into its options, which nothing here can make it.
    pub(super) fn answer(&self, reply: Reply, network: &Network) -> Option<Vec<u8>> {
        let (kind, ip, seconds) = match reply {
            Reply::Offer(ip, seconds) => (MessageType::Offer, ip, Some(seconds)),
            Reply::Ack(ip, seconds) => (MessageType::Ack, ip, Some(seconds)),
            Reply::Informed => (MessageType::Ack, Ipv4Addr::UNSPECIFIED, None),
            Reply::Nak => (MessageType::Nak, Ipv4Addr::UNSPECIFIED, None),
        };
        let mut options = DhcpOptions::new();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier(network.gateway));
        if let Some(client) = &self.client {
            options.insert(DhcpOption::ClientIdentifier(client.clone()));
        }
        if kind != MessageType::Nak {
            options.insert(DhcpOption::SubnetMask(network.mask));
            options.insert(DhcpOption::Router(vec![network.gateway]));
            options.insert(DhcpOption::InterfaceMtu(network.mtu));
        }
        if let Some(seconds) = seconds {
            options.insert(DhcpOption::AddressLeaseTime(seconds));
            // The usual halves and eighths (RFC 2131, section 4.4.5), said aloud.
            options.insert(DhcpOption::Renewal(seconds / 2));
            options.insert(DhcpOption::Rebinding((u64::from(seconds) * 7 / 8) as u32));
        }
        let ciaddr = if kind == MessageType::Ack { self.ciaddr } else { Ipv4Addr::UNSPECIFIED };
        let unset = Ipv4Addr::UNSPECIFIED;
        let mut message = v4::Message::new_with_id(self.xid, ciaddr, ip, unset, unset, &self.mac.0);
        let flags = if self.broadcast { Flags::default().set_broadcast() } else { Flags::default() };
        message.set_opcode(Opcode::BootReply).set_htype(HType::Eth).set_flags(flags).set_opts(options);
        let mut bytes = Vec::with_capacity(BYTES_MIN);
        message.encode(&mut Encoder::new(&mut bytes)).ok()?;
        bytes.resize(bytes.len().max(BYTES_MIN), 0);
        Some(bytes)
    }
}
