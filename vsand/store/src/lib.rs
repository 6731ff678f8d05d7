//! `vsand-store`: one disk. A directory that holds blocks with versions and checksums, thin, and crash-safe.
//!
//! ```text
//! disk directory
//! ├── superblock    who the disk is; two copies                             superblock.rs
//! ├── data          preallocated; physical extents of 1 MiB, each of         tables.rs, slots.rs, alloc.rs
//! │                 256 blocks of 4 KiB that belong to one extent of a chunk
//! ├── journal       the only write-ahead log: a ring of batches              journal.rs, store/batch.rs
//! └── meta/         RocksDB: extent → place, block → version and CRC-32,     meta.rs, blocks.rs, store/checkpoint.rs
//!                   as of the last checkpoint
//!
//!                       stable             in memory                       stable
//! write ─► batch ─► journal ─► tables, overlay (block → bytes) ─► destage ─► data ─► flush ─► meta ─► tail moves
//! large write ─► data, stable ─► batch ─► journal ─► tables
//! ```
//!
//! **Why the order is right.** A change is answered when its batch is stable. What the journal holds beyond the checkpoint is
//! replayed onto exactly the tables of that checkpoint, so it ends in the state of the crash. Data that a record names in place
//! was stable before the record was written. A block's place is overwritten only by destaging, with a newer version whose
//! record is still in the journal, so a torn write to it is repaired by replay. A place that was given up is used again only
//! after a checkpoint that no longer knows its old use. Nothing relies on the order in which a file system writes.
//!
//! - [`Store`] is the disk; it has no loop of its own ([`store`]).
//! - [`ring::Ring`] is the loop's `io_uring`, shared by all stores, and holds the crate's only `unsafe`.
//! - [`check::verify`] reads a disk offline and reports every contradiction.
//!
//! It must not know: peers, guests, who owns what, or why a version is higher than another.
#![deny(unsafe_code)]

mod alloc;
mod blocks;
pub mod check;
pub mod files;
pub mod format;
mod gate;
pub mod journal;
pub mod latency;
mod meta;
mod overlay;
mod recovery;
#[allow(unsafe_code)]
pub mod ring;
mod slab;
mod slots;
pub mod store;
pub mod superblock;
mod tables;
mod worker;

pub use files::{Fault, FileIo, FileKind, FileStats, IoHook, IoRequest, Verdict};
pub use format::{FormatOptions, OpenError};
pub use meta::{Family, MetaError, MetaOp, write_meta};
pub use ring::{AlignedBuf, BufPool, Completion, Ring, Token};
pub use store::{InventoryEntry, Recovery, Store, StoreConfig, StoreStats};
pub use superblock::Superblock;
