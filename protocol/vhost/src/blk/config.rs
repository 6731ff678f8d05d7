//! The configuration space, `struct virtio_blk_config` of virtio 1.2, section 5.2.4, and the features that go with it.

/// Feature bits of section 5.2.3 that this device may offer.
pub mod feature {
    /// `size_max` is valid.
    pub const SIZE_MAX: u64 = 1 << 1;
    /// `seg_max` is valid.
    pub const SEG_MAX: u64 = 1 << 2;
    /// The device is read-only.
    pub const RO: u64 = 1 << 5;
    /// `blk_size` is valid.
    pub const BLK_SIZE: u64 = 1 << 6;
    /// The device takes FLUSH.
    pub const FLUSH: u64 = 1 << 9;
    /// `topology` is valid.
    pub const TOPOLOGY: u64 = 1 << 10;
    /// `num_queues` is valid.
    pub const MQ: u64 = 1 << 12;
    /// The device takes DISCARD.
    pub const DISCARD: u64 = 1 << 13;
    /// The device takes WRITE ZEROES.
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Bytes of the configuration space (through `zoned`, which we leave zero).
pub const CONFIG_BYTES: usize = 96;

/// Bytes of a virtio-blk sector, whatever the block size.
pub(crate) const SECTOR_BYTES: u32 = 512;

/// A position on, or the size of, the disk in units of 512 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u64);

impl Sector {
    /// The position in bytes; positions within a disk never overflow.
    pub fn bytes(self) -> u64 {
        self.0.saturating_mul(u64::from(SECTOR_BYTES))
    }
}

/// What a single request may ask for.
///
/// `segments_max * segment_bytes_max` is more than `request_bytes_max`: small segments would hurt drivers that have large
/// buffers. Drivers stay below by themselves (Linux builds requests of 1.25 to 4 MiB at most, unless its administrator
/// raises `max_sectors_kb` beyond that); what is larger fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkLimits {
    /// Most data segments of a request: with header and status it has to fit a ring of 128.
    pub segments_max: u32,
    /// Most bytes of a segment.
    pub segment_bytes_max: u32,
    /// Most data bytes of a request that are accepted; above, the request fails.
    pub request_bytes_max: u32,
    /// Most sectors of one DISCARD range.
    pub discard_sectors_max: u32,
    /// Most sectors of one WRITE ZEROES range.
    pub write_zeroes_sectors_max: u32,
    /// Most ranges of one DISCARD or WRITE ZEROES request.
    pub ranges_max: u32,
}

impl Default for BlkLimits {
    fn default() -> Self {
        Self {
            segments_max: 126,
            segment_bytes_max: 1 << 20,
            request_bytes_max: 4 << 20,
            // 1 GiB of ranges; the backing store works through them piece by piece.
            discard_sectors_max: 1 << 21,
            write_zeroes_sectors_max: 1 << 21,
            ranges_max: 16,
        }
    }
}

/// What a block device is.
#[derive(Debug, Clone)]
pub struct BlkSettings {
    /// Size.
    pub capacity: Sector,
    /// Refuse writes.
    pub read_only: bool,
    /// Number of request queues, 1 to 16.
    pub queues: u16,
    /// What `GET_ID` answers, at most 20 bytes; the rest is cut off.
    pub serial: String,
    /// log2 of physical blocks in sectors: 3 says that 4 KiB-aligned writes are cheapest.
    pub physical_block_exponent: u8,
    /// Best I/O size, in sectors.
    pub optimal_io_sectors: u32,
    /// Alignment of discards, in sectors: less than this frees nothing.
    pub discard_alignment_sectors: u32,
    /// Limits of a request.
    pub limits: BlkLimits,
}

impl BlkSettings {
    /// A writable disk with four queues and defaults that suit a 4 KiB store.
    pub fn new(capacity: Sector, serial: impl Into<String>) -> Self {
        Self {
            capacity,
            read_only: false,
            queues: 4,
            serial: serial.into(),
            physical_block_exponent: 3,
            optimal_io_sectors: 2048,
            discard_alignment_sectors: 8,
            limits: BlkLimits::default(),
        }
    }

    /// Feature bits of the device.
    ///
    /// `SIZE_MAX` is offered because without it Linux builds segments of any size. `CONFIG_WCE` is not: acknowledged
    /// writes are stable, there is no cache to switch.
    pub fn features(&self) -> u64 {
        let common = feature::SIZE_MAX
            | feature::SEG_MAX
            | feature::BLK_SIZE
            | feature::FLUSH
            | feature::TOPOLOGY
            | feature::MQ;
        if self.read_only { common | feature::RO } else { common | feature::DISCARD | feature::WRITE_ZEROES }
    }

    /// The configuration space, little-endian as virtio 1 wants it.
    pub fn config_space(&self) -> Vec<u8> {
        let mut space = vec![0u8; CONFIG_BYTES];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        let limits = &self.limits;
        put(0, &self.capacity.0.to_le_bytes());
        put(8, &limits.segment_bytes_max.to_le_bytes());
        put(12, &limits.segments_max.to_le_bytes());
        // 16..20: geometry, not offered.
        put(20, &SECTOR_BYTES.to_le_bytes());
        put(24, &[self.physical_block_exponent]);
        // 25: alignment offset, 0.
        put(26, &(1u16 << self.physical_block_exponent.min(15)).to_le_bytes());
        put(28, &self.optimal_io_sectors.to_le_bytes());
        // 32: writeback. Only valid with CONFIG_WCE, but with FLUSH offered this is its true value.
        put(32, &[1]);
        put(34, &self.queues.to_le_bytes());
        if !self.read_only {
            put(36, &limits.discard_sectors_max.to_le_bytes());
            put(40, &limits.ranges_max.to_le_bytes());
            put(44, &self.discard_alignment_sectors.to_le_bytes());
            put(48, &limits.write_zeroes_sectors_max.to_le_bytes());
            put(52, &limits.ranges_max.to_le_bytes());
            put(56, &[1]);
        }
        space
    }

    /// The answer to `GET_ID`: 20 bytes, padded with NUL.
    pub(crate) fn id(&self) -> [u8; 20] {
        let mut id = [0u8; 20];
        let bytes = self.serial.as_bytes();
        let len = bytes.len().min(id.len());
        id[..len].copy_from_slice(&bytes[..len]);
        id
    }
}
