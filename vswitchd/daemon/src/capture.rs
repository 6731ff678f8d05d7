//! Captures: what the worker saw becomes a pcapng file that a client reads as it grows.
//!
//! ```text
//!   worker ──Captured──► bounded channel ──► [`stream`] ──► pcapng ──► client
//!              │ full
//!              └──► counted as dropped, and told to the client in statistics blocks
//! ```
//!
//! The worker never waits for a client: what a slow one does not take is dropped and counted. The capture ends when the client
//! goes away, when it has what it asked for, or with the daemon. Frames are seen as they pass the port, before a guest's
//! segmentation: a super-frame is one frame, with a comment that says how it will be cut.
//!
//! What it must not know: where the worker copies frames, and who the client is.

pub mod pcapng;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use tokio::time::Instant;
use vswitch_core::frame::{GsoKind, Offload};

use crate::data::capture::Capture;
use pcapng::Writer;

/// A piece of the file is sent as soon as it has so many bytes, or when there is nothing more at the moment.
const PIECE_BYTES: usize = 256 << 10;

/// When a capture ends by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Limits {
    /// After so many frames.
    pub frames: Option<u64>,
    /// After this time.
    pub time: Option<Duration>,
}

struct Running {
    source: Capture,
    writer: Writer,
    frames_left: u64,
    until: Option<Instant>,
    taken: u64,
    missed_told: u64,
    /// The last piece is out.
    ended: bool,
    /// What the next piece begins with.
    piece: Vec<u8>,
}

/// The file, in pieces. The first comes at once, so that a client knows that the capture runs.
pub fn stream(
    source: Capture,
    snap_bytes: u32,
    limits: Limits,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send {
    let mut piece = Vec::new();
    let running = Running {
        source,
        writer: Writer::new(snap_bytes, &mut piece),
        frames_left: limits.frames.unwrap_or(u64::MAX),
        until: limits.time.map(|time| Instant::now() + time),
        taken: 0,
        missed_told: 0,
        ended: false,
        piece,
    };
    stream::unfold(running, |mut running| async move {
        let piece = running.next_piece().await?;
        Some((Ok(Bytes::from(piece)), running))
    })
}

impl Running {
    async fn next_piece(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        if self.piece.is_empty() {
            self.wait_for_frames().await;
        }
        self.tell_missed();
        // A capture that ends without a frame has nothing more to say.
        (!self.piece.is_empty()).then(|| std::mem::take(&mut self.piece))
    }

    /// Waits for one frame and takes what else is there.
    async fn wait_for_frames(&mut self) {
        let first = match self.until {
            _ if self.frames_left == 0 => None,
            None => self.source.frames.recv().await,
            // At the end of its time there is no further frame.
            Some(until) => tokio::time::timeout_at(until, self.source.frames.recv()).await.unwrap_or(None),
        };
        let mut next = first;
        self.ended = next.is_none();
        while let Some(frame) = next {
            self.source.waiting_bytes.fetch_sub(frame.bytes.len(), Ordering::AcqRel);
            self.writer.frame(&frame, &mut self.piece);
            self.taken += 1;
            self.frames_left -= 1;
            let enough = self.frames_left == 0 || self.piece.len() >= PIECE_BYTES;
            next = if enough { None } else { self.source.frames.try_recv().ok() };
        }
    }

    /// Says how many were dropped, when that has changed, and at the end.
    fn tell_missed(&mut self) {
        let missed = self.source.missed.load(Ordering::Relaxed);
        if missed > self.missed_told || self.ended {
            self.missed_told = missed;
            self.writer.statistics(self.taken + missed, missed, &mut self.piece);
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
        format!("super-frame: {kind}, to be cut into segments of {} bytes", gso.size)
    })
}
