//! What can go wrong between a front end, its guest and us, sorted by who has to act on it.

use crate::QueueIndex;

/// The front end (the VMM) asked for something that we can't do: its connection is closed, nothing else suffers.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// A queue number above what the device has.
    #[error("queue {0} does not exist")]
    NoSuchQueue(u32),
    /// Ring size zero, not a power of two, or above the maximum.
    #[error("queue {queue}: ring size {size} is not a power of two from 1 to {max}")]
    RingSize {
        /// Which queue.
        queue: QueueIndex,
        /// What was asked for.
        size: u32,
        /// The most that we take.
        max: u16,
    },
    /// A message came before the one it builds on.
    #[error("queue {queue}: started before its {missing} was set")]
    Incomplete {
        /// Which queue.
        queue: QueueIndex,
        /// What was missing.
        missing: &'static str,
    },
    /// A message that needs a stopped ring came while the ring runs.
    #[error("queue {0} is running: its addresses can't change")]
    Running(QueueIndex),
    /// A feature that was never offered was acknowledged.
    #[error("the front end acknowledged features {0:#x} that were not offered")]
    Features(u64),
    /// The memory table can't be used.
    #[error("guest memory: {0}")]
    Memory(#[from] MemoryError),
    /// The in-flight region can't be used.
    #[error("in-flight region: {0}")]
    Inflight(#[from] InflightError),
    /// A ring's addresses or state can't be used.
    #[error("queue {queue}: {fault}")]
    Ring {
        /// Which queue.
        queue: QueueIndex,
        /// Why.
        fault: RingFault,
    },
    /// A descriptor that should be an eventfd is something else: reading or writing it might block the data loop.
    #[error("the {0} descriptor is not an eventfd")]
    NotEventFd(&'static str),
    /// The data loop did not answer in time.
    #[error("the data loop did not answer within {0:?}")]
    LoopTimeout(std::time::Duration),
    /// The data loop is gone: the volume was closed.
    #[error("the data loop is gone")]
    LoopGone,
    /// An MTU that the network does not carry, or that is none.
    #[error("MTU {0} is not possible on this port")]
    Mtu(u16),
    /// A message of the wrong form.
    #[error("message {0} is malformed")]
    Malformed(u32),
    /// The message is valid vhost-user but not something this device does.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The socket failed.
    #[error("control socket: {0}")]
    Io(#[from] std::io::Error),
}

impl From<SessionError> for vhost::vhost_user::Error {
    fn from(error: SessionError) -> Self {
        Self::ReqHandlerError(std::io::Error::other(error))
    }
}

/// A memory table that can't be mapped safely.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// More regions than slots.
    #[error("more than {0} regions")]
    TooManyRegions(usize),
    /// The file behind the region is shorter than the region: touching its end would kill us with SIGBUS.
    #[error("region of {need} bytes (with its offset) lies in a file of {have} bytes")]
    ShortFile {
        /// Bytes that the region reaches to.
        need: u64,
        /// Bytes that the file has.
        have: u64,
    },
    /// The descriptor is not a regular file (memfd, tmpfs, hugetlbfs).
    #[error("region's descriptor is not a regular file")]
    NotAFile,
    /// The file could be shrunk under us and the configuration demands that it can't.
    #[error("region's memfd is not sealed against shrinking")]
    NotSealed,
    /// Regions overlap or can't be ordered.
    #[error("regions overlap or wrap around")]
    Overlap,
    /// The region to remove is not in the table.
    #[error("no such region")]
    NoSuchRegion,
    /// The kernel refused.
    #[error("mapping failed: {0}")]
    Map(String),
    /// `fstat` or `fcntl` failed.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// An in-flight region that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InflightError {
    /// Zero or too many queues, or a ring size that no queue can have.
    #[error("{queues} queues of {size} descriptors is outside this device's limits")]
    Shape {
        /// Queues asked for.
        queues: u16,
        /// Descriptors per queue asked for.
        size: u16,
    },
    /// The area announced is smaller than the layout needs, or the file is smaller than the area.
    #[error("needs {need} bytes but only {have} are there")]
    Short {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// The file may shrink under us.
    #[error("its file can't be sealed against shrinking")]
    NotSealed,
    /// A queue region of a version that we don't know, or for fewer descriptors than the ring has.
    #[error("queue region has version {version} and {descriptors} descriptors, the ring {ring}")]
    Version {
        /// Version found.
        version: u16,
        /// Descriptors found.
        descriptors: u16,
        /// The ring's size.
        ring: u16,
    },
    /// The kernel refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Mapping failed, or an access fell outside the mapping.
    #[error("mapping: {0}")]
    Map(String),
}

/// Why a ring can't be trusted any more. Everything here is the guest driver's (or its VMM's) doing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// Ring addresses that are not in guest memory, or not aligned.
    #[error("ring addresses are not usable guest memory")]
    BadAddresses,
    /// The available index jumped by more than the ring holds.
    #[error("available index {avail} is more than a ring ahead of {next}")]
    AvailIndex {
        /// Index in the ring.
        avail: u16,
        /// Index we had reached.
        next: u16,
    },
    /// A head outside the descriptor table.
    #[error("descriptor head {0} is outside the table")]
    HeadOutOfRange(u16),
    /// A head that is still being processed was made available again.
    #[error("descriptor head {0} is already in flight")]
    HeadInFlight(u16),
    /// The chain breaks a rule that lets us find its parts.
    #[error("descriptor chain: {0}")]
    Chain(#[from] ChainFault),
    /// There is nowhere to put the request's outcome.
    #[error("request has no writable status byte in guest memory")]
    NoStatus,
    /// The request's header is not there.
    #[error("request has no readable header in guest memory")]
    NoHeader,
    /// A buffer that is not in guest memory, where there is no way to fail the one request.
    #[error("a buffer is not in guest memory")]
    BufferOutside,
    /// A buffer to be written by the wrong side.
    #[error("a buffer has the wrong direction for its ring")]
    Direction,
    /// Receive buffers in crumbs.
    #[error("receive buffers are in more than {0} pieces for one frame")]
    Fragmented(usize),
    /// The rings' memory vanished.
    #[error("ring memory is not accessible any more")]
    MemoryGone,
    /// The in-flight region contradicts the ring.
    #[error("in-flight region does not fit the ring: {0}")]
    Inflight(String),
}

/// A descriptor chain that can't be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainFault {
    /// More descriptors than the table holds: a loop.
    #[error("loop, or more than {0} descriptors")]
    TooLong(u16),
    /// A `next` outside its table.
    #[error("next index {0} is outside the table")]
    NextOutOfRange(u16),
    /// An indirect table within an indirect table.
    #[error("indirect table inside an indirect table")]
    NestedIndirect,
    /// An indirect descriptor that also has a successor.
    #[error("indirect descriptor with a successor")]
    IndirectWithNext,
    /// Indirect descriptors were not negotiated.
    #[error("indirect descriptor without the feature")]
    IndirectNotNegotiated,
    /// The indirect table's length is zero, no multiple of 16, or too large.
    #[error("indirect table of {0} bytes")]
    IndirectLength(u32),
    /// A table that is not in guest memory.
    #[error("descriptor table at {0:#x} is not in guest memory")]
    Unreadable(u64),
    /// A readable descriptor after a writable one.
    #[error("readable descriptor after a writable one")]
    Order,
    /// A descriptor of zero bytes.
    #[error("descriptor of zero bytes")]
    Empty,
}

/// The device stopped serving because of what a guest wrote. It serves again after the guest or VMM resets it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("device broken by its guest: queue {queue}: {fault}")]
pub struct DeviceBroken {
    /// The queue on which it was seen.
    pub queue: QueueIndex,
    /// What was seen.
    pub fault: RingFault,
}
