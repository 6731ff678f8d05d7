//! Copies of frames as they pass a port, for who wants to see them.
//!
//! A frame is copied once into a bounded channel. If nobody takes them out fast enough, they are not captured, and counted:
//! a capture never slows the worker down by more than the copy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ferro_protocol::net::NetName;
use tokio::sync::mpsc;
use vswitch_core::config::GroupIx;
use vswitch_core::frame::{FRAME_BYTES_MAX, Offload};

/// The most captures at a time.
pub const CAPTURES_MAX: usize = 16;
/// The most frames that wait in one.
pub const CAPTURE_FRAMES_MAX: usize = 65_536;

/// The most bytes that wait in one: frames may be super-frames.
pub const CAPTURE_BYTES_MAX: usize = 16 << 20;

/// Which capture.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct CaptureId(pub u64);

/// Where to capture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CaptureOf {
    /// A port.
    Port(NetName),
    /// All ports of a port group that are or will be attached here.
    Group(NetName),
    /// An uplink.
    Uplink(NetName),
}

/// How to capture.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CaptureOptions {
    /// Bytes of each frame.
    pub bytes_max: usize,
    /// Frames that may wait to be taken, at most [`CAPTURE_FRAMES_MAX`].
    pub frames_max: usize,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { bytes_max: FRAME_BYTES_MAX, frames_max: 4096 }
    }
}

/// Which way a captured frame went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Into the switch: the guest or the network sent it.
    In,
    /// Out of the switch: the guest or the network got it.
    Out,
}

/// One frame, as it was at the port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Captured {
    /// Since 1970-01-01 UTC.
    pub time: Duration,
    /// Where.
    pub at: NetName,
    /// Which way.
    pub direction: Direction,
    /// What was still to be done to it.
    pub offload: Offload,
    /// How long it was.
    pub len: usize,
    /// Its first bytes.
    pub bytes: Vec<u8>,
}

/// The end where the frames come out. Dropping it ends the capture.
#[derive(Debug)]
pub struct Capture {
    /// Its name.
    pub id: CaptureId,
    /// The frames; it ends when the capture does.
    pub frames: mpsc::Receiver<Captured>,
    /// Frames that passed while the channel was full.
    pub missed: Arc<AtomicU64>,
    /// Bytes of the frames in the channel. Whoever takes one out takes its bytes off, or nothing more gets in.
    pub waiting_bytes: Arc<AtomicUsize>,
}

/// Where a frame passes, as captures see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<'a> {
    pub(super) name: &'a NetName,
    /// The port's group; none for an uplink.
    pub(super) group: Option<GroupIx>,
    pub(super) direction: Direction,
}

#[derive(Debug)]
struct Running {
    id: CaptureId,
    of: CaptureOf,
    /// The group's place now, for a capture of a group.
    group: Option<GroupIx>,
    bytes_max: usize,
    frames: mpsc::Sender<Captured>,
    missed: Arc<AtomicU64>,
    waiting_bytes: Arc<AtomicUsize>,
}

/// All captures of the worker.
#[derive(Debug, Default)]
pub(super) struct Captures {
    running: Vec<Running>,
    next_id: u64,
    pub(super) missed: u64,
}

impl Captures {
    /// Whether anything is captured: asked for every frame.
    #[inline]
    pub(super) fn any(&self) -> bool {
        !self.running.is_empty()
    }

    /// Begins one, unless there are too many.
    pub(super) fn start(
        &mut self,
        of: CaptureOf,
        group: Option<GroupIx>,
        options: CaptureOptions,
    ) -> Option<Capture> {
        self.sweep();
        if self.running.len() >= CAPTURES_MAX {
            return None;
        }
        let (frames, taken) = mpsc::channel(options.frames_max.clamp(1, CAPTURE_FRAMES_MAX));
        let (id, missed) = (CaptureId(self.next_id), Arc::new(AtomicU64::new(0)));
        self.next_id += 1;
        let bytes_max = options.bytes_max.min(FRAME_BYTES_MAX);
        let waiting_bytes = Arc::new(AtomicUsize::new(0));
        self.running.push(Running {
            id,
            of,
            group,
            bytes_max,
            frames,
            missed: Arc::clone(&missed),
            waiting_bytes: Arc::clone(&waiting_bytes),
        });
        Some(Capture { id, frames: taken, missed, waiting_bytes })
    }

    pub(super) fn stop(&mut self, id: CaptureId) {
        self.running.retain(|it| it.id != id);
    }

    /// Ends those that nobody looks at.
    pub(super) fn sweep(&mut self) {
        self.running.retain(|it| !it.frames.is_closed());
    }

    /// The configuration has changed: groups have other places, or are gone.
    pub(super) fn regroup(&mut self, place_of: impl Fn(&NetName) -> Option<GroupIx>) {
        for it in &mut self.running {
            if let CaptureOf::Group(name) = &it.of {
                it.group = place_of(name);
            }
        }
    }

    /// A frame passes, in pieces that follow one another.
    pub(super) fn see(&mut self, spot: Spot<'_>, offload: Offload, pieces: &[&[u8]]) {
        for it in &self.running {
            let here = match &it.of {
                CaptureOf::Port(name) => spot.group.is_some() && name == spot.name,
                CaptureOf::Uplink(name) => spot.group.is_none() && name == spot.name,
                CaptureOf::Group(_) => spot.group.is_some() && it.group == spot.group,
            };
            if !here {
                continue;
            }
            let len: usize = pieces.iter().map(|piece| piece.len()).sum();
            let keep = it.bytes_max.min(len);
            // Room first: what finds none is not copied. Only this thread takes room, so what is free stays free.
            let full = it.waiting_bytes.load(Ordering::Acquire) + keep > CAPTURE_BYTES_MAX;
            let permit = if full { None } else { it.frames.try_reserve().ok() };
            let Some(permit) = permit else {
                it.missed.fetch_add(1, Ordering::Relaxed);
                self.missed += 1;
                continue;
            };
            it.waiting_bytes.fetch_add(keep, Ordering::AcqRel);
            let mut bytes = Vec::with_capacity(keep);
            for piece in pieces {
                let room = it.bytes_max - bytes.len();
                bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            }
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            permit.send(Captured {
                time,
                at: spot.name.clone(),
                direction: spot.direction,
                offload,
                len,
                bytes,
            });
        }
    }
}
