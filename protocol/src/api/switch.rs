//! Types of the local HTTP API that `vswitchd` serves on its Unix socket and `vswctl` speaks. The rules of
//! [`crate::api`] hold here too: sizes are bytes, times are seconds unless the name says otherwise, requests with unknown
//! fields are refused and answers may gain fields.
//!
//! The configuration is one document, a [`Spec`]. It is changed by transactions ([`Transaction`]): any number of
//! [`Change`]s, all or none, each a new revision.
//!
//! ```text
//!   transaction ──► checked as a whole ──► revision N in the directory ──► taken over by each host ──► applied
//!        │ any fault                                                           │ host cut off from its peers
//!        └──► nothing has changed                                              └──► revision N is undone, unless
//!                                                                                   confirmed within 30 s
//! ```
//!
//! What it must not know: what makes a specification right (the switch's core), how frames move.

mod change;
mod mac;
mod port;
pub mod spec;
mod status;
mod trace;
mod transaction;

pub use change::Change;
pub use mac::{MAC_PAGE_MAX, MacInfo, MacKind, MacPage, MacPlace, MacRelease};
pub use port::{
    Attachment, Counters, Flow, LinkState, PORT_SOCKETS_DEFAULT, PortInfo, PortList, TunnelInfo, TunnelList,
    TunnelPath, UplinkInfo, UplinkList,
};
pub use spec::Spec;
pub use status::{ConfigSource, FrozenMac, NetworkConfig, PortTotals, SwitchStatus, Unconfirmed};
pub use trace::{TRACE_FRAME_BYTES_MAX, TraceAnswer, TraceFrom, TraceRequest, TraceStep};
pub use transaction::{
    Applied, CONFIRM_SECONDS_DEFAULT, CONFIRM_SECONDS_MAX, HostApplied, HostProgress,
    TRANSACTION_CHANGES_MAX, Transacted, Transaction, WAIT_SECONDS_MAX,
};

/// Where the daemon's socket is unless configured otherwise.
pub const SOCKET_DEFAULT: &str = "/run/vswitchd/api.sock";
/// What `vswctl capture` gets: pcapng (draft-ietf-opsawg-pcapng).
pub const CAPTURE_TYPE: &str = "application/vnd.tcpdump.pcap";
/// The most bytes of each frame that a capture keeps: any frame is shorter.
pub const SNAP_BYTES_MAX: u32 = 262_144;
