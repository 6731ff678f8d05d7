//! Following a descriptor chain that a guest wrote.
//!
//! Each descriptor is read from guest memory exactly once, so that what was checked is what is used. The walk is bounded
//! by the size of the table it is in, which is also how loops are found. Whether the *buffers* are guest memory is not
//! decided here: that is a fault of the request, not of the chain.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use crate::error::ChainFault;

const DESCRIPTOR_BYTES: u32 = 16;
/// Most entries of an indirect table.
const INDIRECT_MAX: u16 = 1024;

/// A piece of guest memory, in bytes. Not checked to be mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical address.
    pub addr: GuestAddress,
    /// Bytes, never zero.
    pub len: u32,
}

/// A chain's buffers in order, the device-readable ones apart from the device-writable ones.
#[derive(Debug, Default)]
pub struct Chain {
    /// What the driver gives us.
    pub readable: Vec<Segment>,
    /// Where we may write.
    pub writable: Vec<Segment>,
}

impl Chain {
    #[inline]
    fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
    }
}

/// Total bytes of some segments. At most 2^16 segments of 2^32 bytes: no overflow.
#[inline]
pub fn total_bytes(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Takes `bytes` from the front of a list of segments; `None` if they hold fewer.
pub fn split_front(segments: &mut Vec<Segment>, bytes: u32) -> Option<Vec<Segment>> {
    if total_bytes(segments) < u64::from(bytes) {
        return None;
    }
    let mut front = Vec::with_capacity(1);
    let mut left = bytes;
    let mut whole = 0;
    for segment in segments.iter_mut() {
        if left == 0 {
            break;
        }
        let take = left.min(segment.len);
        front.push(Segment { addr: segment.addr, len: take });
        left -= take;
        if take == segment.len {
            whole += 1;
        } else {
            // Saturation only where the segment is unmapped anyway.
            segment.addr = GuestAddress(segment.addr.raw_value().saturating_add(u64::from(take)));
            segment.len -= take;
        }
    }
    segments.drain(..whole);
    Some(front)
}

/// Takes the last byte off a list of segments and returns its address.
pub fn split_last_byte(segments: &mut Vec<Segment>) -> Option<GuestAddress> {
    let last = segments.last_mut()?;
    let addr = last.addr.checked_add(u64::from(last.len) - 1)?;
    last.len -= 1;
    if last.len == 0 {
        segments.pop();
    }
    Some(addr)
}

/// Memory that descriptors are read from.
pub(crate) trait DescriptorSource {
    /// The 16 bytes at an address, read once; `None` if they are not all there.
    fn descriptor(&self, addr: u64) -> Option<[u8; DESCRIPTOR_BYTES as usize]>;
}

impl DescriptorSource for GuestMemoryMmap {
    fn descriptor(&self, addr: u64) -> Option<[u8; DESCRIPTOR_BYTES as usize]> {
        self.read_obj(GuestAddress(addr)).ok()
    }
}

/// A descriptor (virtio 1.2, section 2.7.5).
#[derive(Clone, Copy)]
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    #[inline]
    fn parse(bytes: [u8; DESCRIPTOR_BYTES as usize]) -> Self {
        let [addr @ .., l0, l1, l2, l3, f0, f1, n0, n1] = bytes;
        Self {
            addr: u64::from_le_bytes(addr),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    #[inline]
    fn is(self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

struct Table {
    addr: GuestAddress,
    entries: u16,
    indirect: bool,
}

impl Table {
    #[inline]
    fn read(&self, mem: &impl DescriptorSource, index: u16) -> Result<Descriptor, ChainFault> {
        let unreadable = || ChainFault::Unreadable(self.addr.raw_value());
        let offset = u64::from(index) * u64::from(DESCRIPTOR_BYTES);
        let addr = self.addr.checked_add(offset).ok_or_else(unreadable)?;
        mem.descriptor(addr.raw_value()).map(Descriptor::parse).ok_or_else(unreadable)
    }
}

/// Collects the chain that starts at `head` into `out` (cleared first).
#[inline]
pub(crate) fn walk(
    mem: &impl DescriptorSource,
    table: GuestAddress,
    table_entries: u16,
    indirect_negotiated: bool,
    head: u16,
    out: &mut Chain,
) -> Result<(), ChainFault> {
    out.clear();
    let mut table = Table { addr: table, entries: table_entries, indirect: false };
    let mut index = head;
    let mut seen: u16 = 0;
    loop {
        if index >= table.entries {
            return Err(ChainFault::NextOutOfRange(index));
        }
        if seen >= table.entries {
            return Err(ChainFault::TooLong(table.entries));
        }
        seen += 1;
        let descriptor = table.read(mem, index)?;
        let has_next = descriptor.is(VRING_DESC_F_NEXT);
        if descriptor.is(VRING_DESC_F_INDIRECT) {
            table = enter_indirect(&table, descriptor, indirect_negotiated, has_next)?;
            (index, seen) = (0, 0);
            continue;
        }
        if descriptor.len == 0 {
            return Err(ChainFault::Empty);
        }
        let segment = Segment { addr: GuestAddress(descriptor.addr), len: descriptor.len };
        if descriptor.is(VRING_DESC_F_WRITE) {
            out.writable.push(segment);
        } else if out.writable.is_empty() {
            out.readable.push(segment);
        } else {
            return Err(ChainFault::Order);
        }
        if !has_next {
            return Ok(());
        }
        index = descriptor.next;
    }
}

fn enter_indirect(
    outer: &Table,
    descriptor: Descriptor,
    negotiated: bool,
    has_next: bool,
) -> Result<Table, ChainFault> {
    if !negotiated {
        return Err(ChainFault::IndirectNotNegotiated);
    }
    if outer.indirect {
        return Err(ChainFault::NestedIndirect);
    }
    if has_next {
        return Err(ChainFault::IndirectWithNext);
    }
    let bytes = descriptor.len;
    let entries = bytes / DESCRIPTOR_BYTES;
    if !bytes.is_multiple_of(DESCRIPTOR_BYTES) || entries == 0 || entries > u32::from(INDIRECT_MAX) {
        return Err(ChainFault::IndirectLength(bytes));
    }
    Ok(Table { addr: GuestAddress(descriptor.addr), entries: entries as u16, indirect: true })
}
