//! Puts a kernel, its initrd and its command line into guest memory, and says where the first processor begins.
//!
//! Two ways in: the 64-bit entry of a Linux bzImage, which is what distributions ship (`vmlinuz`), and the PVH entry of
//! an ELF image. A kernel may come out of a guest's own disk, so the image is as hostile as the guest: every size is
//! checked against guest memory, and what can't be loaded is an error that names the reason.

mod bzimage;
mod params;
mod pvh;
mod tables;

use std::io::{Read, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

use crate::layout::{COMMAND_LINE, COMMAND_LINE_MAX, LOW_RAM_MAX, Layout, PAGE_BYTES};

pub use tables::{Segments, write_descriptors, write_page_tables};

/// What a kernel image is read from.
pub trait Image: Read + ReadVolatile + Seek {}
impl<T: Read + ReadVolatile + Seek> Image for T {}

/// How the first processor enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Long mode with the first 4 GiB mapped one to one; `rsi` has the address of `boot_params` (Linux, "The Linux/x86
    /// Boot Protocol", 64-bit boot protocol).
    Linux64,
    /// Protected mode without paging; `ebx` has the address of the start info (Xen, "x86/HVM direct boot ABI").
    Pvh,
}

/// Where the first processor begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// How.
    pub protocol: Protocol,
    /// The first instruction.
    pub instruction: GuestAddress,
    /// What the kernel is told.
    pub info: GuestAddress,
}

/// Why a kernel can't be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file can't be read.
    #[error("reading the {what}: {source}")]
    Read {
        /// Which.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Not a kernel that we know.
    #[error("the kernel is neither a bzImage (vmlinuz) nor a 64-bit ELF image")]
    UnknownImage,
    /// A bzImage without the 64-bit entry.
    #[error("the kernel has no 64-bit entry: a 64-bit Linux 3.8 or later is needed")]
    No64BitEntry,
    /// An ELF image without a PVH note.
    #[error("the ELF kernel has no PVH entry: build it with CONFIG_PVH, or use its bzImage")]
    NoPvhEntry,
    /// The image contradicts itself or does not fit.
    #[error("loading the kernel: {0}")]
    Load(#[from] linux_loader::loader::Error),
    /// Not enough memory below 3 GiB.
    #[error(
        "the {what} needs memory up to {needed_mib} MiB and the VM has {have_mib} MiB there: give it more memory"
    )]
    TooLittleMemory {
        /// Kernel or initrd.
        what: &'static str,
        /// How much there has to be.
        needed_mib: u64,
        /// How much there is.
        have_mib: u64,
    },
    /// The command line is too long.
    #[error("the command line has {have} bytes and this kernel takes {most} at most")]
    CommandLineTooLong {
        /// Its length.
        have: usize,
        /// The limit.
        most: usize,
    },
    /// The command line has a zero byte.
    #[error("the command line has a zero byte in it")]
    CommandLineZero,
    /// What was computed does not fit into guest memory.
    #[error("writing to guest memory: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What is booted.
pub struct Boot<'a, I> {
    /// The kernel.
    pub kernel: &'a mut I,
    /// The initrd, if there is one.
    pub initrd: Option<&'a mut I>,
    /// The kernel's command line.
    pub command_line: &'a str,
    /// Where the ACPI tables begin.
    pub rsdp: GuestAddress,
}

fn load_kernel<K: Image>(
    kernel: &mut K,
    memory: &GuestMemoryMmap,
    layout: &Layout,
) -> Result<Loaded, BootError> {
    let read = |source| BootError::Read { what: "kernel", source };
    let mut magic = [0u8; 4];
    kernel.rewind().map_err(read)?;
    match kernel.read_exact(&mut magic) {
        Ok(()) if &magic == b"\x7fELF" => pvh::load(kernel, memory, layout),
        Ok(()) => bzimage::load(kernel, memory, layout),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(BootError::UnknownImage),
        Err(error) => Err(read(error)),
    }
}

/// A kernel in guest memory, before it is told anything.
struct Loaded {
    kind: Kind,
    /// First address behind all that the kernel needs to begin.
    end: u64,
    /// The initrd has to end here at the latest.
    initrd_end_max: u64,
    /// Most bytes of a command line, without its final zero.
    command_line_max: usize,
}

enum Kind {
    Bzimage { header: Box<linux_loader::loader::bootparam::setup_header>, entry: GuestAddress },
    Pvh { entry: GuestAddress },
}

/// An initrd in guest memory; `bytes` 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Initrd {
    start: u64,
    bytes: u64,
}

/// Loads everything.
pub fn load<I: Image>(
    boot: Boot<'_, I>,
    memory: &GuestMemoryMmap,
    layout: &Layout,
) -> Result<Entry, BootError> {
    let loaded = load_kernel(boot.kernel, memory, layout)?;
    let initrd = match boot.initrd {
        Some(file) => load_initrd(file, &loaded, memory, layout)?,
        None => Initrd::default(),
    };
    write_command_line(boot.command_line, loaded.command_line_max, memory)?;
    let told = params::Told { initrd, rsdp: boot.rsdp, map: layout.memory_map() };
    match loaded.kind {
        Kind::Bzimage { header, entry } => {
            params::write_boot_params(memory, *header, &told)?;
            Ok(Entry { protocol: Protocol::Linux64, instruction: entry, info: crate::layout::BOOT_INFO })
        }
        Kind::Pvh { entry } => {
            pvh::write_start_info(memory, &told)?;
            Ok(Entry { protocol: Protocol::Pvh, instruction: entry, info: crate::layout::BOOT_INFO })
        }
    }
}

fn write_command_line(line: &str, most: usize, memory: &GuestMemoryMmap) -> Result<(), BootError> {
    let most = most.min(COMMAND_LINE_MAX - 1);
    if line.len() > most {
        return Err(BootError::CommandLineTooLong { have: line.len(), most });
    }
    if line.contains('\0') {
        return Err(BootError::CommandLineZero);
    }
    memory.write_slice(line.as_bytes(), COMMAND_LINE)?;
    memory.write_obj(0u8, GuestAddress(COMMAND_LINE.0 + line.len() as u64))?;
    Ok(())
}

/// As high as it may be, so that it is not in the way of a kernel that decompresses itself.
fn load_initrd<I: Image>(
    file: &mut I,
    loaded: &Loaded,
    memory: &GuestMemoryMmap,
    layout: &Layout,
) -> Result<Initrd, BootError> {
    let read = |source| BootError::Read { what: "initrd", source };
    let bytes = file.seek(SeekFrom::End(0)).map_err(read)?;
    file.rewind().map_err(read)?;
    let start = initrd_start(bytes, loaded.end, layout.low_end(), loaded.initrd_end_max)?;
    memory.read_exact_volatile_from(GuestAddress(start), file, bytes as usize)?;
    Ok(Initrd { start, bytes })
}

fn initrd_start(bytes: u64, kernel_end: u64, ram_end: u64, end_max: u64) -> Result<u64, BootError> {
    let end = ram_end.min(end_max).min(LOW_RAM_MAX);
    let start = end.checked_sub(bytes).map(|start| start / PAGE_BYTES * PAGE_BYTES);
    start.filter(|start| *start >= kernel_end).ok_or_else(|| BootError::TooLittleMemory {
        what: "initrd",
        needed_mib: (kernel_end.saturating_add(bytes) >> 20) + 1,
        have_mib: end >> 20,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_initrd_lies_as_high_as_it_may_and_never_in_the_kernel() {
        assert_eq!(initrd_start(0x1001, 0x20_0000, 0x100_0000, u64::MAX).unwrap(), 0xff_e000);
        assert_eq!(initrd_start(0x1000, 0x20_0000, 0x100_0000, 0x80_0000).unwrap(), 0x7f_f000);
        assert_eq!(initrd_start(0xe0_0000, 0x20_0000, 0x100_0000, u64::MAX).unwrap(), 0x20_0000);
        for bytes in [0xe0_0001, 0x100_0000, 0x100_0001, u64::MAX] {
            let refused = initrd_start(bytes, 0x20_0000, 0x100_0000, u64::MAX);
            assert!(matches!(refused, Err(BootError::TooLittleMemory { what: "initrd", .. })), "{bytes:#x}");
        }
    }
}
