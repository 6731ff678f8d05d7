//! Why nothing of a volume can be booted: for the operator, with what to do next.

use std::fmt;

use crate::ext4::Ext4Error;
use crate::kernel::{KernelError, Lack};
use crate::partition::TableError;
use crate::source::ReadFailed;

/// Why a volume, or what was chosen of it, can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The volume can't be read. Nothing is decided on half of what is there.
    #[error(transparent)]
    Read(#[from] ReadFailed),
    /// Its partitions can't be told.
    #[error("{0}")]
    Table(TableError),
    /// No kernel was found.
    #[error("{0}; or give the kernel and the initrd as files")]
    NoKernel(NoKernel),
    /// The menu's default starts something else than Linux.
    #[error("the default entry {title:?} does not start Linux: choose another by name ({known})")]
    DefaultIsOther {
        /// Its title.
        title: String,
        /// Names that can be chosen.
        known: String,
    },
    /// There is no entry of that name.
    #[error("there is no boot entry {wanted:?}: there are {known}")]
    NoSuchEntry {
        /// What was asked for.
        wanted: String,
        /// Names that can be chosen.
        known: String,
    },
    /// A file of an entry can't be read.
    #[error("{path} on partition {partition}: {source}")]
    File {
        /// The partition's number; 0 is the whole volume.
        partition: u32,
        /// The file.
        path: String,
        /// Why.
        source: Ext4Error,
    },
    /// The entry's kernel can't be started.
    #[error("the kernel {path} on partition {partition} {source}")]
    Kernel {
        /// The partition's number.
        partition: u32,
        /// The file.
        path: String,
        /// Why.
        source: KernelError,
    },
    /// The entry's kernel would not find its disk.
    #[error("the kernel {path} on partition {partition} can't use this machine's devices: {lack}")]
    Drivers {
        /// The partition's number.
        partition: u32,
        /// The file.
        path: String,
        /// What is missing.
        lack: Lack,
    },
}

impl From<TableError> for BootError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Read(error) => Self::Read(error),
            other => Self::Table(other),
        }
    }
}

/// What was looked at without finding a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoKernel {
    /// One for each partition: what it is, and why there is no kernel in it.
    pub looked_at: Vec<String>,
    /// Remarks on menus that were found.
    pub notes: Vec<String>,
}

impl fmt::Display for NoKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no kernel was found on the volume: ")?;
        if self.looked_at.is_empty() {
            f.write_str("it has no partitions")?;
        }
        f.write_str(&self.looked_at.join("; "))?;
        for note in &self.notes {
            write!(f, "; {note}")?;
        }
        f.write_str(". Put /boot on ext4 with a grub.cfg, with entries in /boot/loader/entries, or with a vmlinuz-* and its initrd")
    }
}
