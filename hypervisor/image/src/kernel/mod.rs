//! Kernels: whether a file is one that can be started, and what its header says. Nothing is loaded here.

mod bzimage;
mod config;
mod elf;

use std::fmt;

use crate::source::{BoxedError, ReadAt, ReadFailed, Window};

pub use bzimage::{BzImage, Payload};
pub use config::{CONFIG_BYTES_MAX, Lack, lack};
pub use elf::Pvh;

/// A kernel that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// As distributions ship it: `Documentation/arch/x86/boot.rst` of the kernel.
    BzImage(BzImage),
    /// A `vmlinux` with the entry of Xen's PVH ABI.
    Pvh(Pvh),
}

/// Why a file is no kernel that can be started.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// It can't be read.
    #[error("can't be read: {0}")]
    Read(#[from] ReadFailed),
    /// Neither a bzImage nor ELF.
    #[error("is no Linux kernel for x86-64: it has neither the header of a bzImage nor that of ELF")]
    Unknown,
    /// A unified kernel image, or another EFI program.
    #[error(
        "is an EFI program, not a bzImage (a unified kernel image needs UEFI firmware, which there is not)"
    )]
    Efi,
    /// A 32-bit kernel, or one from before 2013.
    #[error("has no 64-bit entry (boot protocol {major}.{minor}): a 64-bit kernel of 3.8 or newer is needed")]
    NoEntry64 {
        /// Of the protocol's version.
        major: u8,
        /// Of the protocol's version.
        minor: u8,
    },
    /// Shorter than its header says.
    #[error("is cut off: its header speaks of {wanted} bytes, and there are {found}")]
    CutOff {
        /// By the header.
        wanted: u64,
        /// There are.
        found: u64,
    },
    /// A field that can't be.
    #[error("is damaged: {0} is impossible")]
    Damaged(&'static str),
    /// ELF for something else.
    #[error("is an ELF file for another machine than x86-64")]
    OtherMachine,
    /// ELF without the note.
    #[error("is an ELF file without a PVH entry: build it with CONFIG_PVH, or give the bzImage")]
    NoPvh,
}

/// Looks at a kernel's headers.
///
/// # Errors
///
/// If it can't be started, and why.
pub fn inspect(file: &dyn ReadAt) -> Result<Kernel, KernelError> {
    let file = Window::whole(file);
    let mut head = vec![0; file.len().min(bzimage::HEADER_BYTES as u64) as usize];
    file.read(0, &mut head)?;
    if head.starts_with(b"\x7fELF") {
        return elf::inspect(&file, &head).map(Kernel::Pvh);
    }
    bzimage::inspect(&file, &head).map(Kernel::BzImage)
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BzImage(kernel) => {
                let (major, minor) = kernel.protocol;
                write!(f, "bzImage {} ({}, boot protocol {major}.{minor})", kernel.release, kernel.payload)
            }
            Self::Pvh(kernel) => write!(f, "PVH ELF, entry {:#x}", kernel.entry),
        }
    }
}

impl ReadAt for crate::ext4::File<'_> {
    fn size(&self) -> u64 {
        crate::ext4::File::size(self)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
        let read = crate::ext4::File::read_at(self, offset, buf)?;
        if read == buf.len() { Ok(()) } else { Err(crate::source::OutOfRange(self.size()).into()) }
    }
}
