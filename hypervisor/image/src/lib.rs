//! What a volume boots: its kernel, its initrd and its command line, read out of the volume's own `/boot`, so that a disk
//! image needs nothing beside it.
//!
//! ```text
//!   ReadAt (the caller's volume)
//!      │
//!   partition   GPT (backup header too), MBR with logical partitions, or a file system on the whole disk
//!      │
//!   probe       which file system: ext2/3/4 is read, the others are refused by name
//!      │
//!   ext4        read only; a journal that a killed guest left is replayed in memory (ext4/journal.rs)
//!      │
//!   grub · bls · fallback     the menu: entries, and which of them is the default
//!      │
//!   BootVolume  the entries, one chosen by name, their files in bounded pieces
//!      │
//!   kernel      is it a kernel that we can start, and has it the drivers that it needs?
//! ```
//!
//! # Everything here is hostile
//!
//! A guest writes all of its volume, and the next start of its machine reads it. So nothing is believed: every number is
//! checked before it is used, every loop and every allocation has a bound (the constants that end in `_MAX`), and the
//! worst that a volume can do is to be refused, or to boot what its guest chose. Nothing is ever written to the volume.
//!
//! # What this crate must not know
//!
//! Where a volume is and how it is read (that is the caller's [`ReadAt`]); files, clocks, threads and sockets of the host;
//! what a virtual machine is. Whoever starts the kernel loads it; here it is only looked at.
#![forbid(unsafe_code)]

mod bls;
mod boot;
mod bytes;
mod error;
pub mod ext4;
mod fallback;
pub mod grub;
pub mod kernel;
pub mod partition;
mod probe;
mod source;
mod version;

pub use bls::{BlsEntry, BlsProblem};
pub use boot::{
    BOOT_FILE_BYTES_MAX, BootEntry, BootVolume, COMMAND_LINE_BYTES_MAX, ENTRIES_MAX, EntrySource, FileRef,
};
pub use error::{BootError, NoKernel};
pub use probe::{FileSystem, probe};
pub use source::{BoxedError, OutOfRange, ReadAt, ReadFailed, Window};
pub use version::compare as compare_versions;
