//! Frames between guest memory and the switch: each byte is copied once, straight from the guest's buffers to where the
//! switch wants it, and the other way.
//!
//! There is no way to lend the guest's buffers out: the guest may change them while they are looked at, and a frame that
//! was checked and then changed is how one tenant reaches another. So the copy is the frame.

use super::config::FRAME_BYTES_MAX;
use super::header::{BadHeader, ETHER_BYTES, HEADER_BYTES, VirtioNetHdr};
use super::ring::NetRing;
use super::{NetDevice, QueuePair};
use crate::QueueIndex;
use crate::chain::{Chain, Segment, total_bytes};
use crate::error::RingFault;
use crate::guest::{Access, GuestView};

/// The header without `num_buffers`, before virtio 1 and without mergeable buffers.
const LEGACY_HEADER_BYTES: usize = 10;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS_AT: u64 = 10;
const VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// Most descriptors that one frame may be spread over in receive buffers: more than ten times what 64 KiB take in the
/// smallest buffers that a driver has (1,526 bytes, section 5.1.6.3.1), each in several descriptors. What is worse than
/// that is there to cost us time.
const RX_SEGMENTS_MAX: usize = 512;

/// Takes a guest's frames.
pub trait TxSink {
    /// Room for a frame of this many bytes, at most [`FRAME_BYTES_MAX`]; `None`: no more now, it stays with the guest.
    fn room(&mut self, bytes: usize) -> Option<&mut [u8]>;

    /// The frame is in the room that was given last.
    fn take(&mut self, header: VirtioNetHdr, bytes: usize);
}

/// What a call of [`NetDevice::poll_tx`] did. All chains are counted in exactly one of the first four.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxOutcome {
    /// Frames that the sink took.
    pub frames: usize,
    /// Thrown away: shorter than an Ethernet header or longer than any frame.
    pub bad_length: usize,
    /// Thrown away: the header can't be that of its frame.
    pub bad_header: usize,
    /// Thrown away: the ring is disabled.
    pub disabled: usize,
    /// Budget or room ran out before the ring was empty.
    pub more: bool,
}

impl TxOutcome {
    /// Chains taken from the ring.
    pub fn chains(&self) -> usize {
        self.frames + self.bad_length + self.bad_header + self.disabled
    }
}

/// Why a guest did not get a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RxRefusal {
    /// The guest takes no frames on this pair: not started, not enabled, or broken.
    #[error("the guest takes no frames")]
    NotReady,
    /// The guest has not given enough buffers.
    #[error("the guest has no receive buffers left")]
    NoRoom,
    /// Longer than the guest's buffers, or than any frame.
    #[error("the frame is longer than the guest's receive buffers")]
    TooLong,
    /// The header is not one that this guest may get: make the checksum or cut the super-frame before.
    #[error("the guest can't take such a frame: {0}")]
    Offload(#[from] BadHeader),
}

/// What stopped a frame: the guest's fault, or no reason to blame it.
enum Stop {
    Refused(RxRefusal),
    Fault(RingFault),
}

impl From<RingFault> for Stop {
    fn from(fault: RingFault) -> Self {
        Self::Fault(fault)
    }
}

const fn header_bytes(features: u64) -> usize {
    if features & (VERSION_1 | super::feature::MRG_RXBUF) != 0 { HEADER_BYTES } else { LEGACY_HEADER_BYTES }
}

impl NetDevice {
    /// Takes up to `budget` chains of a guest's frames from a pair's ring. They are given back by the time this returns,
    /// and the guest is called by [`NetDevice::flush_notifications`].
    ///
    /// A chain that breaks the rules of rings breaks the device; a frame that can't be one is thrown away and counted.
    pub fn poll_tx(&mut self, pair: QueuePair, budget: usize, sink: &mut impl TxSink) -> TxOutcome {
        let mut outcome = TxOutcome::default();
        let queue = pair.tx();
        if self.broken.is_some() {
            return outcome;
        }
        let features = self.features;
        if let Some(Some(ring)) = self.rings.get_mut(usize::from(queue.0)) {
            let result = fetch(ring, features, budget, &mut self.chain, sink, &mut outcome);
            ring.publish();
            if let Err(fault) = result {
                self.break_device(queue, fault);
                outcome.more = false;
            }
        }
        outcome
    }

    /// Gives a guest a frame, in pieces that follow one another, on one of the pairs in [`NetDevice::receiving`]. The guest
    /// sees it after [`NetDevice::flush_notifications`].
    #[inline]
    pub fn push_rx(
        &mut self,
        pair: QueuePair,
        header: VirtioNetHdr,
        pieces: &[&[u8]],
    ) -> Result<(), RxRefusal> {
        let queue = pair.rx();
        if self.broken.is_some() {
            return Err(RxRefusal::NotReady);
        }
        let Some(Some(ring)) = self.rings.get_mut(usize::from(queue.0)) else {
            return Err(RxRefusal::NotReady);
        };
        if !ring.is_enabled() {
            return Err(RxRefusal::NotReady);
        }
        let bytes = pieces.iter().map(|piece| piece.len()).sum();
        if bytes > FRAME_BYTES_MAX {
            return Err(RxRefusal::TooLong);
        }
        let header = header.for_driver(bytes, self.features)?;
        let plain = !header.needs_csum() && !header.is_gso() && header.flags == 0;
        let frame = Outgoing { header: (!plain).then_some(header), pieces, bytes };
        match give(ring, self.features, &frame, &mut self.chain, &mut self.picked) {
            Ok(()) => Ok(()),
            Err(Stop::Refused(refusal)) => Err(refusal),
            Err(Stop::Fault(fault)) => {
                self.break_device(queue, fault);
                Err(RxRefusal::NotReady)
            }
        }
    }
}

/// The guest's frames to the sink.
#[inline]
fn fetch(
    ring: &mut NetRing,
    features: u64,
    budget: usize,
    chain: &mut Chain,
    sink: &mut impl TxSink,
    outcome: &mut TxOutcome,
) -> Result<(), RingFault> {
    let header_bytes = header_bytes(features);
    if ring.is_fresh() {
        return Ok(());
    }
    for _ in 0..budget {
        if ring.available(1)? == 0 {
            return Ok(());
        }
        ring.prefetch(Access::Read);
        let head = ring.look(0, chain)?;
        if !chain.writable.is_empty() {
            return Err(RingFault::Direction);
        }
        let total = total_bytes(&chain.readable);
        if total < header_bytes as u64 {
            return Err(RingFault::NoHeader);
        }
        let bytes = total - header_bytes as u64;
        if !ring.is_enabled() {
            outcome.disabled += 1;
        } else if !(ETHER_BYTES as u64..=FRAME_BYTES_MAX as u64).contains(&bytes) {
            outcome.bad_length += 1;
        } else {
            let bytes = bytes as usize;
            let header = read_header(ring.view(), &chain.readable, header_bytes)?;
            if let Ok(header) = header.for_device(bytes, features) {
                let room = sink.room(bytes).and_then(|room| room.get_mut(..bytes));
                let Some(room) = room else {
                    outcome.more = true;
                    return Ok(());
                };
                gather(ring.view(), &chain.readable, header_bytes, room)?;
                sink.take(header, bytes);
                outcome.frames += 1;
            } else {
                outcome.bad_header += 1;
            }
        }
        ring.finish(head, 0);
    }
    outcome.more = ring.available(1)? > 0;
    Ok(())
}

#[inline]
fn read_header(view: &GuestView, segments: &[Segment], bytes: usize) -> Result<VirtioNetHdr, RingFault> {
    let outside = |_| RingFault::BufferOutside;
    if let [first, ..] = segments
        && first.len as usize >= HEADER_BYTES
        && bytes == HEADER_BYTES
    {
        return Ok(VirtioNetHdr::parse(view.read_array(first.addr.0).map_err(outside)?));
    }
    let mut header = [0; HEADER_BYTES];
    gather(view, segments, 0, &mut header[..bytes])?;
    Ok(VirtioNetHdr::parse(header))
}

#[inline]
fn write_header(view: &GuestView, segments: &[Segment], header: &[u8]) -> Result<(), RingFault> {
    if let ([first, ..], Ok(header)) = (segments, <&[u8; HEADER_BYTES]>::try_from(header))
        && first.len as usize >= HEADER_BYTES
    {
        return view.write_array(first.addr.0, *header).map_err(|_| RingFault::BufferOutside);
    }
    scatter(view, segments, 0, &mut Cursor::new(&[header]), header.len())
}

/// Copies from the guest's segments, from `skip` bytes into them on. They hold as much, says the caller.
#[inline]
fn gather(
    view: &GuestView,
    segments: &[Segment],
    mut skip: usize,
    mut out: &mut [u8],
) -> Result<(), RingFault> {
    for segment in segments {
        let len = segment.len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        if out.is_empty() {
            break;
        }
        let (now, rest) = out.split_at_mut(out.len().min(len - skip));
        let addr = segment.addr.0.checked_add(skip as u64).ok_or(RingFault::BufferOutside)?;
        view.read(addr, now).map_err(|_| RingFault::BufferOutside)?;
        out = rest;
        skip = 0;
    }
    Ok(())
}

/// The header of a frame with nothing left to do, in one buffer.
const PLAIN: [u8; HEADER_BYTES] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];

/// A frame on its way to a guest.
struct Outgoing<'a> {
    /// None is [`PLAIN`]: most frames are, and a constant is not put together from fields and read back through memory.
    header: Option<VirtioNetHdr>,
    pieces: &'a [&'a [u8]],
    bytes: usize,
}

/// A position in the pieces of a frame.
struct Cursor<'a> {
    pieces: &'a [&'a [u8]],
    /// What is left of the piece before them.
    now: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self { pieces, now: &[] }
    }

    /// The next bytes that lie together, at most `max`; empty at the end.
    #[inline]
    fn next(&mut self, max: usize) -> &'a [u8] {
        while self.now.is_empty() {
            let Some((first, rest)) = self.pieces.split_first() else { return &[] };
            (self.now, self.pieces) = (first, rest);
        }
        let (out, rest) = self.now.split_at(max.min(self.now.len()));
        self.now = rest;
        out
    }
}

/// The frame to the guest's buffers; nothing is taken from the ring unless all of it fits.
#[inline]
fn give(
    ring: &mut NetRing,
    features: u64,
    frame: &Outgoing<'_>,
    chain: &mut Chain,
    picked: &mut Vec<(u16, u32)>,
) -> Result<(), Stop> {
    let header_bytes = header_bytes(features);
    let mergeable = features & super::feature::MRG_RXBUF != 0;
    let header =
        frame.header.as_ref().map_or(PLAIN, |header| VirtioNetHdr { num_buffers: 1, ..*header }.encode());
    let mut cursor = Cursor::new(frame.pieces);
    let mut left = frame.bytes;
    let mut segments = 0;
    let mut num_buffers_addr = [0; 2];
    picked.clear();
    ring.prefetch(Access::Write);
    loop {
        let ahead = picked.len() as u16;
        if ring.available(ahead + 1)? <= ahead {
            return Err(Stop::Refused(RxRefusal::NoRoom));
        }
        let head = ring.look(ahead, chain)?;
        if !chain.readable.is_empty() {
            return Err(RingFault::Direction.into());
        }
        segments += chain.writable.len();
        if segments > RX_SEGMENTS_MAX {
            return Err(RingFault::Fragmented(RX_SEGMENTS_MAX).into());
        }
        let first = picked.is_empty();
        let room = usize::try_from(total_bytes(&chain.writable)).unwrap_or(usize::MAX);
        if first && room < header_bytes {
            return Err(RingFault::NoHeader.into());
        }
        if !mergeable && room < header_bytes + frame.bytes {
            return Err(Stop::Refused(RxRefusal::TooLong));
        }
        let mut skip = 0;
        if first {
            write_header(ring.view(), &chain.writable, &header[..header_bytes])?;
            if mergeable {
                num_buffers_addr = [0, 1].map(|byte| address(&chain.writable, NUM_BUFFERS_AT + byte));
            }
            skip = header_bytes;
        }
        let now = left.min(room - skip);
        scatter(ring.view(), &chain.writable, skip, &mut cursor, now)?;
        left -= now;
        picked.push((head, (skip + now) as u32));
        if left == 0 {
            break;
        }
    }
    if picked.len() > 1 {
        for (addr, byte) in num_buffers_addr.into_iter().zip((picked.len() as u16).to_le_bytes()) {
            ring.view().write(addr, &[byte]).map_err(|_| RingFault::BufferOutside)?;
        }
    }
    for (head, written) in picked.iter() {
        ring.finish(*head, *written);
    }
    Ok(())
}

/// The address of a byte of the segments, which hold as much.
fn address(segments: &[Segment], mut at: u64) -> u64 {
    for segment in segments {
        if at < u64::from(segment.len) {
            return segment.addr.0.wrapping_add(at);
        }
        at -= u64::from(segment.len);
    }
    u64::MAX
}

/// Copies `bytes` to the guest's segments, from `skip` bytes into them on. They hold as much, says the caller.
#[inline]
fn scatter(
    view: &GuestView,
    segments: &[Segment],
    mut skip: usize,
    from: &mut Cursor<'_>,
    mut bytes: usize,
) -> Result<(), RingFault> {
    for segment in segments {
        let len = segment.len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        let mut addr = segment.addr.0.checked_add(skip as u64).ok_or(RingFault::BufferOutside)?;
        let mut room = len - skip;
        skip = 0;
        while room > 0 && bytes > 0 {
            let data = from.next(room.min(bytes));
            if data.is_empty() {
                return Ok(());
            }
            view.write(addr, data).map_err(|_| RingFault::BufferOutside)?;
            addr = addr.wrapping_add(data.len() as u64);
            room -= data.len();
            bytes -= data.len();
        }
        if bytes == 0 {
            break;
        }
    }
    Ok(())
}

/// A [`TxSink`] that keeps a batch of frames in one buffer, one behind the other. For who has no buffers of its own.
#[derive(Debug)]
pub struct TxBatch {
    bytes: Box<[u8]>,
    used: usize,
    frames: Vec<(VirtioNetHdr, usize, usize)>,
    frames_max: usize,
}

impl TxBatch {
    /// A batch for so many frames and bytes; a frame that does not fit any more stays with the guest.
    pub fn new(frames_max: usize, bytes_max: usize) -> Self {
        let bytes = vec![0; bytes_max.max(FRAME_BYTES_MAX)].into_boxed_slice();
        Self { bytes, used: 0, frames: Vec::with_capacity(frames_max), frames_max }
    }

    /// Forgets the frames.
    pub fn clear(&mut self) {
        self.used = 0;
        self.frames.clear();
    }

    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frames, in the order in which the guest sent them.
    pub fn iter(&self) -> impl Iterator<Item = (VirtioNetHdr, &[u8])> {
        self.frames.iter().map(|(header, at, len)| (*header, &self.bytes[*at..at + len]))
    }
}

impl TxSink for TxBatch {
    fn room(&mut self, bytes: usize) -> Option<&mut [u8]> {
        if self.frames.len() == self.frames_max {
            return None;
        }
        self.bytes.get_mut(self.used..self.used + bytes)
    }

    fn take(&mut self, header: VirtioNetHdr, bytes: usize) {
        self.frames.push((header, self.used, bytes));
        self.used += bytes;
    }
}

impl QueuePair {
    /// The ring with buffers for frames to the guest (section 5.1.2).
    pub fn rx(self) -> QueueIndex {
        QueueIndex(self.0.saturating_mul(2))
    }

    /// The ring with frames from the guest.
    pub fn tx(self) -> QueueIndex {
        QueueIndex(self.0.saturating_mul(2).saturating_add(1))
    }
}
