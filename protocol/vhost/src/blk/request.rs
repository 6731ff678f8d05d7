//! From a descriptor chain to a request. Pure: guest memory in, a decision out.
//!
//! Accepts any framing (virtio 1.2, section 2.7.4: the device must not assume where one descriptor ends). The header is
//! the first 16 readable bytes, the status the last writable byte, the data what is between.

use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use super::config::{BlkSettings, SECTOR_BYTES, Sector};
use crate::RequestTag;
use crate::chain::{Chain, Segment, split_front, split_last_byte, total_bytes};
use crate::error::RingFault;

const HEADER_BYTES: u32 = 16;
const RANGE_BYTES: u32 = 16;
pub(crate) const ID_BYTES: u64 = 20;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const RANGE_UNMAP: u32 = 1;

/// How a request ended (section 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// Failed.
    IoErr,
    /// Not something this device does.
    Unsupported,
}

impl Status {
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoErr => 1,
            Self::Unsupported => 2,
        }
    }
}

/// A run of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SectorRange {
    /// The first.
    pub first: Sector,
    /// How many, never zero.
    pub count: u32,
}

/// What a guest wants. Every range lies within the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestKind {
    /// Read `bytes` from `sector` on; answer with `complete_read`.
    Read {
        /// Where.
        sector: Sector,
        /// How much, a multiple of 512, never zero.
        bytes: u32,
    },
    /// Write `bytes` at `sector`; the data are fetched with `copy_out`.
    Write {
        /// Where.
        sector: Sector,
        /// How much, a multiple of 512, never zero.
        bytes: u32,
    },
    /// Make all completed writes stable.
    Flush,
    /// The content of these sectors is not needed any more.
    Discard(Vec<SectorRange>),
    /// These sectors shall read as zeroes.
    WriteZeroes {
        /// Which, and whether their space may be given up.
        ranges: Vec<(SectorRange, bool)>,
    },
}

/// A request that was handed out and has to be completed exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Its name.
    pub tag: RequestTag,
    /// What is to be done.
    pub kind: RequestKind,
}

/// Where a request's answer goes.
#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) data: Vec<Segment>,
    pub(crate) data_bytes: u32,
    /// The data are ours to write.
    pub(crate) data_writable: bool,
    pub(crate) status: GuestAddress,
}

/// What becomes of a chain.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Hand it out.
    Do(RequestKind),
    /// Complete it at once.
    Finish(Status),
    /// Complete it at once with the disk's name.
    GetId,
}

/// Reads the request in a chain. An error means that there is no way to answer: the ring is broken.
pub(crate) fn parse(
    mem: &GuestMemoryMmap,
    chain: &mut Chain,
    settings: &BlkSettings,
) -> Result<(Parsed, Placement), RingFault> {
    let status = split_last_byte(&mut chain.writable).ok_or(RingFault::NoStatus)?;
    if !mem.check_range(status, 1, Permissions::Write) {
        return Err(RingFault::NoStatus);
    }
    let header = split_front(&mut chain.readable, HEADER_BYTES).ok_or(RingFault::NoHeader)?;
    let mut bytes = [0u8; HEADER_BYTES as usize];
    read_segments(mem, &header, 0, &mut bytes).map_err(|_| RingFault::NoHeader)?;
    let field = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let kind = field(0);
    let sector = Sector(u64::from(field(8)) | u64::from(field(12)) << 32);

    let (to_device, from_device) = (total_bytes(&chain.readable), total_bytes(&chain.writable));
    let reads = matches!(kind, T_IN | T_GET_ID);
    let (data, data_bytes) = if reads {
        (std::mem::take(&mut chain.writable), from_device)
    } else {
        (std::mem::take(&mut chain.readable), to_device)
    };
    let mut placement = Placement { data, data_bytes: 0, data_writable: reads, status };
    let Ok(data_bytes) = u32::try_from(data_bytes) else {
        placement.data.clear();
        return Ok((Parsed::Finish(Status::IoErr), placement));
    };
    let access = if reads { Permissions::Write } else { Permissions::Read };
    if data_bytes > settings.limits.request_bytes_max
        || !placement.data.iter().all(|segment| mem.check_range(segment.addr, segment.len as usize, access))
    {
        placement.data.clear();
        return Ok((Parsed::Finish(Status::IoErr), placement));
    }
    placement.data_bytes = data_bytes;
    let parsed =
        match kind {
            T_IN => transfer(settings, sector, data_bytes)
                .map(|()| RequestKind::Read { sector, bytes: data_bytes }),
            T_OUT | T_DISCARD | T_WRITE_ZEROES if settings.read_only => Err(Status::IoErr),
            T_OUT => transfer(settings, sector, data_bytes)
                .map(|()| RequestKind::Write { sector, bytes: data_bytes }),
            T_FLUSH => Ok(RequestKind::Flush),
            T_GET_ID if u64::from(data_bytes) < ID_BYTES => Err(Status::IoErr),
            T_GET_ID => return Ok((Parsed::GetId, placement)),
            T_DISCARD | T_WRITE_ZEROES => ranges(mem, &placement, kind == T_DISCARD, settings),
            _ => Err(Status::Unsupported),
        };
    Ok((parsed.map_or_else(Parsed::Finish, Parsed::Do), placement))
}

fn transfer(settings: &BlkSettings, sector: Sector, bytes: u32) -> Result<(), Status> {
    if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
        return Err(Status::IoErr);
    }
    within(settings, sector, bytes / SECTOR_BYTES)
}

fn within(settings: &BlkSettings, first: Sector, count: u32) -> Result<(), Status> {
    match first.0.checked_add(u64::from(count)) {
        Some(end) if end <= settings.capacity.0 => Ok(()),
        _ => Err(Status::IoErr),
    }
}

/// The ranges of a DISCARD or WRITE ZEROES (`struct virtio_blk_discard_write_zeroes`).
fn ranges(
    mem: &GuestMemoryMmap,
    placement: &Placement,
    discard: bool,
    settings: &BlkSettings,
) -> Result<RequestKind, Status> {
    let bytes = placement.data_bytes;
    let count = bytes / RANGE_BYTES;
    if !bytes.is_multiple_of(RANGE_BYTES) || count == 0 || count > settings.limits.ranges_max {
        return Err(Status::IoErr);
    }
    let mut raw = vec![0u8; bytes as usize];
    read_segments(mem, &placement.data, 0, &mut raw).map_err(|_| Status::IoErr)?;
    let sectors_max =
        if discard { settings.limits.discard_sectors_max } else { settings.limits.write_zeroes_sectors_max };
    let mut out = Vec::with_capacity(count as usize);
    for range in raw.chunks_exact(RANGE_BYTES as usize) {
        let field = |at: usize| u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]]);
        let first = Sector(u64::from(field(0)) | u64::from(field(4)) << 32);
        let (count, flags) = (field(8), field(12));
        // Section 5.2.6.2: reserved flags, and `unmap` on a discard, are unsupported.
        let unmap = flags & RANGE_UNMAP != 0;
        if flags & !RANGE_UNMAP != 0 || (discard && unmap) {
            return Err(Status::Unsupported);
        }
        if count > sectors_max {
            return Err(Status::IoErr);
        }
        within(settings, first, count)?;
        if count > 0 {
            out.push((SectorRange { first, count }, unmap));
        }
    }
    if out.is_empty() {
        return Err(Status::Ok);
    }
    Ok(if discard {
        RequestKind::Discard(out.into_iter().map(|(range, _)| range).collect())
    } else {
        RequestKind::WriteZeroes { ranges: out }
    })
}

/// Copies from guest memory, from `skip` bytes into the segments on. `out` is not longer than what follows.
pub(crate) fn read_segments(
    mem: &GuestMemoryMmap,
    segments: &[Segment],
    skip: usize,
    mut out: &mut [u8],
) -> Result<(), vm_memory::GuestMemoryError> {
    let mut skip = skip;
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
        // Checked when the chain was parsed: the segment does not wrap.
        mem.read_slice(now, GuestAddress(segment.addr.0.saturating_add(skip as u64)))?;
        out = rest;
        skip = 0;
    }
    Ok(())
}

/// Copies into guest memory, from `skip` bytes into the segments on. What doesn't fit is cut off.
pub(crate) fn write_segments(
    mem: &GuestMemoryMmap,
    segments: &[Segment],
    skip: usize,
    mut data: &[u8],
) -> Result<(), vm_memory::GuestMemoryError> {
    let mut skip = skip;
    for segment in segments {
        let len = segment.len as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        if data.is_empty() {
            break;
        }
        let (now, rest) = data.split_at(data.len().min(len - skip));
        // Checked when the chain was parsed: the segment does not wrap.
        mem.write_slice(now, GuestAddress(segment.addr.0.saturating_add(skip as u64)))?;
        data = rest;
        skip = 0;
    }
    Ok(())
}
