//! Captures: from the worker, which must not wait, to a client, which may be slow.
//!
//! ```text
//!   worker ── Sink::offer ──► bounded ring ──► Source::next ──► pcapng ──► client
//!                 │ full, or too many bytes in it
//!                 └──► counted as dropped, and told to the client in the statistics at the end
//! ```
//!
//! A [`Sink`] belongs to the worker's thread: one for each capture. It copies at most the first `snap_bytes` of a frame, and
//! only if there is room. When the client has gone, [`Sink::is_open`] says so and the worker lets it go. Frames are seen
//! as they pass the port, before a guest's segmentation: a super-frame is one frame, with a comment that says how it will
//! be cut.
//!
//! The files are pcapng (draft-ietf-opsawg-pcapng): [`pcapng`] writes them.

pub mod pcapng;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use ferro_protocol::net::NetName;
use tokio::sync::mpsc;
use vswitch_core::frame::{GsoKind, Offload};
use vswitch_core::time::Instant;

/// The most frames between the worker and a client.
pub const RING_FRAMES: usize = 8192;
/// The most bytes between the worker and a client.
pub const RING_BYTES: usize = 16 << 20;
/// The most interfaces of one capture.
const INTERFACES_MAX: usize = 65_536;

/// Which way a frame goes, as the guest or the physical network sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Into the switch.
    In,
    /// Out of the switch.
    Out,
}

/// A frame, or a part of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// The number of its interface.
    pub interface: u32,
    /// Nanoseconds since 1970.
    pub unix_ns: u64,
    /// Which way.
    pub direction: Direction,
    /// How long it was.
    pub len: u32,
    /// What was still to be done to it.
    pub offload: Offload,
    /// Its first bytes.
    pub bytes: Box<[u8]>,
}

/// What comes out of a capture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// The next interface, numbered from 0 in this order.
    Interface(NetName),
    /// A frame of an interface that was there before.
    Frame(Captured),
}

/// What both ends count.
#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicUsize,
    seen: AtomicU64,
    dropped: AtomicU64,
}

/// What a capture has seen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Frames, with those that were dropped.
    pub seen: u64,
    /// Frames that did not fit between the worker and the client.
    pub dropped: u64,
}

/// The worker's end.
#[derive(Debug)]
pub struct Sink {
    items: mpsc::Sender<Item>,
    shared: Arc<Shared>,
    interfaces: BTreeMap<NetName, u32>,
    snap_bytes: usize,
    /// The wall clock at `Instant(0)`.
    unix_ns_at_zero: u64,
}

/// The client's end. The capture ends when it is dropped.
#[derive(Debug)]
pub struct Source {
    items: mpsc::Receiver<Item>,
    shared: Arc<Shared>,
    snap_bytes: u32,
}

/// A capture that keeps so many bytes of each frame. `now` is the worker's clock now: times are put on the wall clock with
/// it once, so that a clock that jumps does not reorder frames.
pub fn channel(snap_bytes: u32, now: Instant) -> (Sink, Source) {
    let unix_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let (sender, items) = mpsc::channel(RING_FRAMES);
    let shared = Arc::<Shared>::default();
    let sink = Sink {
        items: sender,
        shared: Arc::clone(&shared),
        interfaces: BTreeMap::new(),
        snap_bytes: snap_bytes as usize,
        unix_ns_at_zero: unix_ns.saturating_sub(now.0),
    };
    (sink, Source { items, shared, snap_bytes })
}

impl Sink {
    /// Whether anybody still wants it. If not, it is to be dropped.
    pub fn is_open(&self) -> bool {
        !self.items.is_closed()
    }

    /// A frame passes `interface`: its bytes are `parts`, one after another. Never waits.
    pub fn offer<'a>(
        &mut self,
        now: Instant,
        interface: &NetName,
        direction: Direction,
        offload: Offload,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) {
        self.shared.seen.fetch_add(1, Ordering::Relaxed);
        let Some(interface) = self.interface(interface) else { return self.drop_one() };
        // Only this end takes room, so what is free now stays free until the frame is in.
        let room = RING_BYTES.saturating_sub(self.shared.bytes.load(Ordering::Acquire));
        let Ok(slot) = self.items.try_reserve() else { return self.drop_one() };
        let (mut len, mut bytes) = (0, Vec::new());
        for part in parts {
            len += part.len();
            let keep = self.snap_bytes.saturating_sub(bytes.len()).min(part.len());
            if bytes.len() + keep > room {
                drop(slot);
                return self.drop_one();
            }
            bytes.extend_from_slice(&part[..keep]);
        }
        self.shared.bytes.fetch_add(bytes.len(), Ordering::AcqRel);
        slot.send(Item::Frame(Captured {
            interface,
            unix_ns: self.unix_ns_at_zero.saturating_add(now.0),
            direction,
            len: u32::try_from(len).unwrap_or(u32::MAX),
            offload,
            bytes: bytes.into_boxed_slice(),
        }));
    }

    fn drop_one(&self) {
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// The number of an interface; a new one is told to the client first. `None` if that finds no room.
    fn interface(&mut self, name: &NetName) -> Option<u32> {
        if let Some(number) = self.interfaces.get(name) {
            return Some(*number);
        }
        if self.interfaces.len() >= INTERFACES_MAX {
            return None;
        }
        self.items.try_send(Item::Interface(name.clone())).ok()?;
        let number = self.interfaces.len() as u32;
        self.interfaces.insert(name.clone(), number);
        Some(number)
    }
}

impl Source {
    /// How many bytes of each frame are kept.
    pub fn snap_bytes(&self) -> u32 {
        self.snap_bytes
    }

    /// The next item; `None` when the worker has ended the capture.
    pub async fn next(&mut self) -> Option<Item> {
        let item = self.items.recv().await;
        self.taken(item.as_ref());
        item
    }

    /// The next item, if there is one already.
    pub fn try_next(&mut self) -> Option<Item> {
        let item = self.items.try_recv().ok();
        self.taken(item.as_ref());
        item
    }

    fn taken(&self, item: Option<&Item>) {
        if let Some(Item::Frame(frame)) = item {
            self.shared.bytes.fetch_sub(frame.bytes.len(), Ordering::AcqRel);
        }
    }

    /// What was seen and dropped so far.
    pub fn totals(&self) -> Totals {
        Totals {
            seen: self.shared.seen.load(Ordering::Relaxed),
            dropped: self.shared.dropped.load(Ordering::Relaxed),
        }
    }
}

/// What is still to be done to a frame, for people: it explains wrong checksums and frames larger than the MTU.
fn comment(offload: Offload) -> Option<String> {
    offload.gso.map(|gso| {
        let kind = match gso.kind {
            GsoKind::TcpV4 => "TCP over IPv4",
            GsoKind::TcpV6 => "TCP over IPv6",
            GsoKind::Udp => "UDP",
        };
        format!("a super-frame: {kind}, to be cut into segments of {} bytes", gso.size)
    })
}
