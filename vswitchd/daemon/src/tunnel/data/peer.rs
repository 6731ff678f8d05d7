//! One peer: where it is, and which connections lead there.
//!
//! ```text
//!   lane = (socket here, address there, slot)             on the dialling side, one for each configured connection
//!
//!     attempt: none ──dial──► under way ──open──► becomes live, the old live one is closed
//!                 ▲               │ failed
//!                 └──── pause ◄───┘   50 ms, doubling to 1 s
//!     live: none ◄──lost── there; up while it is heard, its flows move elsewhere when it is not
//! ```
//!
//! A live connection that is not heard any more is kept, in case that the path comes back, while another is dialled: after a
//! restart of the peer only the new one will work. The accepting side takes the newest.

use std::net::SocketAddr;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::time::Instant;
use vswitch_core::table::PeerIx;

use super::settings::Settings;
use super::stats::{PeerStats, Volume};

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A place for a connection.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) socket: usize,
    pub(super) remote: SocketAddr,
    pub(super) slot: u8,
    pub(super) live: Option<usize>,
    /// Whether the live one is up.
    pub(super) up: bool,
    pub(super) attempt: Option<usize>,
    pub(super) retry_at: Instant,
    pub(super) pause: Duration,
    /// Why the last attempt failed, as it was logged.
    pub(super) trouble: Option<String>,
}

impl Lane {
    fn new(now: Instant, socket: usize, remote: SocketAddr, slot: u8) -> Self {
        let (retry_at, pause) = (now, PAUSE_MIN);
        Self { socket, remote, slot, live: None, up: false, attempt: None, retry_at, pause, trouble: None }
    }

    pub(super) fn is(&self, socket: usize, remote: SocketAddr, slot: u8) -> bool {
        self.socket == socket && self.remote == remote && self.slot == slot
    }

    /// The next attempt is not before the pause is over, and the pause after it is longer.
    pub(super) fn failed(&mut self, now: Instant) {
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }

    pub(super) fn succeeded(&mut self) {
        self.pause = PAUSE_MIN;
        self.trouble = None;
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) host: HostId,
    /// Whether this host dials it, and not the other way round.
    pub(super) dials: bool,
    pub(super) lanes: Vec<Lane>,
    /// Whether each lane is up.
    pub(super) works: Vec<bool>,
    pub(super) stats: PeerStats,
}

impl Peer {
    pub(super) fn new(peer: PeerIx, here: HostId, host: HostId) -> Self {
        let stats = PeerStats {
            peer,
            frames_out: Volume::default(),
            frames_in: Volume::default(),
            no_path: 0,
            full: 0,
            unsendable: 0,
            malformed: 0,
            connections: Vec::new(),
        };
        Self { host, dials: here < host, lanes: Vec::new(), works: Vec::new(), stats }
    }

    /// Puts the lanes into order for these addresses, and returns those that are no longer wanted.
    pub(super) fn place(
        &mut self,
        now: Instant,
        locals: &[SocketAddr],
        remotes: &[SocketAddr],
        connections: u8,
    ) -> Vec<Lane> {
        // The dialling side says how many there are.
        let slots = if self.dials { connections } else { Settings::CONNECTIONS_MAX };
        let mut remotes: Vec<SocketAddr> = remotes.to_vec();
        remotes.sort_unstable();
        remotes.dedup();
        remotes.truncate(super::super::ADDRESSES_MAX);
        let mut old = std::mem::take(&mut self.lanes);
        for (socket, local) in locals.iter().enumerate() {
            for remote in remotes.iter().filter(|remote| remote.is_ipv4() == local.is_ipv4()) {
                for slot in 0..slots {
                    let kept = old.iter().position(|lane| lane.is(socket, *remote, slot));
                    let lane = kept.map(|at| old.swap_remove(at));
                    self.lanes.push(lane.unwrap_or_else(|| Lane::new(now, socket, *remote, slot)));
                }
            }
        }
        old
    }

    pub(super) fn lane(&self, socket: usize, remote: SocketAddr, slot: u8) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.is(socket, remote, slot))
    }
}
