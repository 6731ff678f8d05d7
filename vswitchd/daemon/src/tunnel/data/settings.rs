//! How tunnels are made, and what can be wrong with that.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use vswitch_core::hash::HashKey;

/// Who decides how much may be in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Congestion {
    /// CUBIC (RFC 9438): fair to others on links that are shared. By itself it fills any queue that loses nothing.
    Cubic {
        /// The most bytes in flight on a path, whatever CUBIC makes of it; its connections share them.
        window: u32,
    },
    /// For links that belong to the cluster: a fixed window, paced, that losses don't shrink. The guests' own TCP is what
    /// adapts.
    Managed {
        /// The most bytes in flight on a path; its connections share them.
        window: u32,
    },
}

impl Congestion {
    /// The window unless it is set: 10 Gb/s at a round trip of 3 ms, and the queue of a link of 1 Gb/s for 34 ms.
    pub const WINDOW_DEFAULT: u32 = 4 << 20;
    /// The least window.
    pub const WINDOW_MIN: u32 = 64 << 10;
    /// The largest window.
    pub const WINDOW_MAX: u32 = 256 << 20;

    /// The most bytes in flight on a path.
    #[must_use]
    pub const fn window(self) -> u32 {
        match self {
            Self::Cubic { window } | Self::Managed { window } => window,
        }
    }

    /// The same with another bound.
    #[must_use]
    pub const fn with_window(self, window: u32) -> Self {
        match self {
            Self::Cubic { .. } => Self::Cubic { window },
            Self::Managed { .. } => Self::Managed { window },
        }
    }
}

/// How tunnels are made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This host's data addresses, each with its port; each becomes a socket.
    pub listen: Vec<SocketAddr>,
    /// Who decides how much may be in flight.
    pub congestion: Congestion,
    /// Connections on each path. Both sides should have the same: the dialling side's counts.
    pub connections: u8,
    /// The largest UDP payload that path-MTU discovery tries. What the path carries is found out.
    pub payload_max: u16,
    /// The most bytes that wait to be sent on a path, where its connections share them but for [`Settings::QUEUE_MIN`] each;
    /// what does not fit is dropped and counted.
    pub queue_bytes: usize,
    /// The kernel's buffer of each socket, in each direction, if it allows as much.
    pub socket_bytes: usize,
    /// The key of the hash that spreads flows over connections.
    pub hash: HashKey,
}

impl Settings {
    /// The most connections on a path.
    pub const CONNECTIONS_MAX: u8 = 8;
    /// The range of `payload_max`: what QUIC needs at least, and what leaves room for the headers of IPv6 below 64 KiB.
    pub const PAYLOAD_RANGE: std::ops::RangeInclusive<u16> = 1200..=65_000;

    /// The usual ones.
    pub fn new(listen: Vec<SocketAddr>, hash: HashKey) -> Self {
        Self {
            listen,
            congestion: Congestion::Cubic { window: Congestion::WINDOW_DEFAULT },
            connections: 1,
            // 9,000 without the headers of IPv6 and UDP.
            payload_max: 8952,
            queue_bytes: 2 << 20,
            socket_bytes: 8 << 20,
            hash,
        }
    }

    /// A connection's part of what may wait on its path.
    pub(super) fn connection_queue_bytes(&self) -> usize {
        (self.queue_bytes / usize::from(self.connections.max(1))).max(Self::QUEUE_MIN)
    }

    pub(super) fn check(&self) -> Result<(), OpenError> {
        let Self { listen, congestion, connections, payload_max, queue_bytes, .. } = self;
        if listen.is_empty() || listen.len() > super::super::ADDRESSES_MAX {
            return Err(OpenError::Addresses(listen.len()));
        }
        if let Some(address) = listen.iter().find(|address| address.ip().is_unspecified()) {
            return Err(OpenError::Unspecified(*address));
        }
        if *connections == 0 || *connections > Self::CONNECTIONS_MAX {
            return Err(OpenError::Connections(*connections));
        }
        if !Self::PAYLOAD_RANGE.contains(payload_max) {
            return Err(OpenError::Payload(*payload_max));
        }
        if !(Self::QUEUE_MIN..=Self::QUEUE_MAX).contains(queue_bytes) {
            return Err(OpenError::Queue(*queue_bytes));
        }
        if !(Congestion::WINDOW_MIN..=Congestion::WINDOW_MAX).contains(&congestion.window()) {
            return Err(OpenError::Window(congestion.window()));
        }
        Ok(())
    }

    /// The least room for what waits: a few super-frames.
    pub const QUEUE_MIN: usize = 256 << 10;
    /// The most.
    pub const QUEUE_MAX: usize = 64 << 20;
}

/// Why tunnels could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A socket could not be opened.
    #[error(
        "cannot open the tunnel socket {address}: {source}; check that the address is this host's and that no other program has the port"
    )]
    Socket {
        /// Its address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity could not be used.
    #[error("cannot use this host's certificate for tunnels: {0}; load the identity again")]
    Tls(String),
    /// None, or too many.
    #[error("{0} tunnel addresses: give from 1 to {max} of this host's", max = super::super::ADDRESSES_MAX)]
    Addresses(usize),
    /// Not an address of one network.
    #[error(
        "the tunnel address {0} stands for all of this host's: name one for each network that leads to other hosts"
    )]
    Unspecified(SocketAddr),
    /// Out of range.
    #[error("{0} connections on a path: set from 1 to {max}", max = Settings::CONNECTIONS_MAX)]
    Connections(u8),
    /// Out of range.
    #[error("a tunnel payload of {0} bytes: set from 1200 to 65000")]
    Payload(u16),
    /// Out of range.
    #[error("a tunnel queue of {0} bytes: set from 256 KiB to 64 MiB")]
    Queue(usize),
    /// Out of range.
    #[error("a congestion window of {0} bytes: set from 64 KiB to 256 MiB")]
    Window(u32),
}

/// A connection on which nothing was heard for so long is given up. Its flows have moved long before.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(3);
