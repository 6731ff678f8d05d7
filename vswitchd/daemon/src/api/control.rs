//! What the API asks of the daemon: one method a verb.
//!
//! The handlers have checked everything that can be checked without knowing the network's state: frames are frames,
//! sockets are absolute paths, pages are within their bounds. Whatever depends on state (does it exist, is it attached, may
//! it be) is the implementation's to answer, with an [`ApiError`] that names the thing and the next step
//! ([`crate::api::fail`] words the common ones). A method that fails leaves nothing half-made behind.
//!
//! A client may go away in the middle of a call and the future is then dropped at its next `await`: what must not be left
//! half-done runs in a task of its own.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use ferro_protocol::api::ApiError;
use ferro_protocol::api::switch::{
    Applied, Attachment, MacPage, MacRelease, NetworkConfig, PortInfo, SwitchStatus, TraceAnswer, Transacted,
    Transaction, TunnelInfo, UplinkInfo,
};
use ferro_protocol::net::{Mac, NetName};

use crate::data::capture::Capture;

/// An answer or why there is none.
pub type Result<T> = std::result::Result<T, ApiError>;

/// A part of the table of addresses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MacQuery {
    /// Where the page begins, as the page before said; at the beginning without it. A text that never was one is a
    /// [`ferro_protocol::api::ErrorCode::BadRequest`].
    pub after: Option<String>,
    /// The most rows, 1 to [`ferro_protocol::api::switch::MAC_PAGE_MAX`].
    pub rows_max: usize,
    /// Only this virtual network.
    pub vni: Option<u32>,
    /// Only this address.
    pub mac: Option<Mac>,
    /// Only what is frozen.
    pub frozen: bool,
}

/// What to capture or trace at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Point {
    /// A port that is attached here.
    Port(NetName),
    /// All ports of a group that are attached here, now or later.
    Group(NetName),
    /// An uplink of this host.
    Uplink(NetName),
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(name) => write!(f, "port {name}"),
            Self::Group(name) => write!(f, "port group {name}"),
            Self::Uplink(name) => write!(f, "uplink {name}"),
        }
    }
}

/// What the API asks of the daemon.
#[async_trait]
pub trait ControlPlane: Send + Sync + 'static {
    /// The switch at a glance. Answers without a directory, without peers and without a configuration too.
    async fn status(&self) -> Result<SwitchStatus>;

    /// The configuration in force here.
    async fn config(&self) -> Result<NetworkConfig>;
    /// Make changes, all or none: on the basis that is asked for, checked by `vswitch_core::config::transact`
    /// ([`crate::api::fail::invalid_network`] takes its faults). Done when it is durable, in the directory or, alone, in the
    /// file; hosts take it over meanwhile. A dry run checks the same and changes nothing. At most
    /// [`ferro_protocol::api::switch::TRANSACTION_CHANGES_MAX`] changes; `confirm_within_s` is from 1 to
    /// [`ferro_protocol::api::switch::CONFIRM_SECONDS_MAX`].
    async fn transact(&self, transaction: Transaction) -> Result<Transacted>;
    /// How far all hosts are with this revision. Returns at once when that is settled
    /// ([`Applied::is_settled`]), else when it is or after `wait`, at most
    /// [`ferro_protocol::api::switch::WAIT_SECONDS_MAX`] seconds.
    async fn applied(&self, revision: u64, wait: Duration) -> Result<Applied>;
    /// Keep a revision that would undo itself.
    async fn confirm(&self, revision: u64) -> Result<()>;
    /// Undo a revision that would undo itself, now.
    async fn undo(&self, revision: u64) -> Result<()>;

    /// All ports of the configuration, by name.
    async fn ports(&self) -> Result<Vec<PortInfo>>;
    /// One port.
    async fn port(&self, name: &NetName) -> Result<PortInfo>;
    /// Attach a port of the configuration to something on this host. To the same again: the same answer. To something
    /// else: [`crate::api::fail::port_attached`]. Kept over restarts, also without a directory. The socket is an absolute
    /// path, the interface a possible name, the queues are within their bounds; without a socket its default is taken.
    async fn attach(&self, name: &NetName, to: Attachment) -> Result<PortInfo>;
    /// Take a port off. Also one that is no longer in the configuration.
    async fn detach(&self, name: &NetName) -> Result<()>;

    /// The uplinks of this host, by switch and name.
    async fn uplinks(&self) -> Result<Vec<UplinkInfo>>;
    /// The tunnels to the other hosts, by their names.
    async fn tunnels(&self) -> Result<Vec<TunnelInfo>>;

    /// A page of the table of addresses.
    async fn macs(&self, query: MacQuery) -> Result<MacPage>;
    /// Let a frozen address move again.
    async fn release_mac(&self, release: MacRelease) -> Result<()>;

    /// What would happen to a frame of 14 to [`ferro_protocol::api::switch::TRACE_FRAME_BYTES_MAX`] bytes that came from
    /// there; never from a group. [`crate::trace::describe`] puts the core's trace into words.
    async fn trace(&self, from: Point, frame: Bytes) -> Result<TraceAnswer>;
    /// Begin a capture that keeps so many bytes of each frame, 1 to [`ferro_protocol::api::switch::SNAP_BYTES_MAX`]. It ends
    /// when what is returned is dropped.
    async fn capture(&self, what: Point, snap_bytes: usize) -> Result<Capture>;

    /// This host's counters now, as Prometheus reads them (`OpenMetrics` text).
    async fn metrics(&self) -> Result<String>;
}
