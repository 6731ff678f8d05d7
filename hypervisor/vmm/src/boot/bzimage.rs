//! Linux's own format (Linux, "The Linux/x86 Boot Protocol"), entered in 64-bit mode.

use std::io::SeekFrom;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, GuestAddress, GuestMemoryMmap};

use super::{BootError, Image, Kind, Loaded};
use crate::layout::{HIGH_MEMORY, Layout};

/// Where the setup header is in the image.
const HEADER_OFFSET: u64 = 0x1f1;
const MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
/// The first version of the protocol with `xloadflags`.
const VERSION_XLOADFLAGS: u16 = 0x020c;
/// `xloadflags`: there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry's distance from the loaded image's first byte.
const ENTRY_64: u64 = 0x200;

pub(super) fn load<T: Image>(
    image: &mut T,
    memory: &GuestMemoryMmap,
    layout: &Layout,
) -> Result<Loaded, BootError> {
    let header = read_header(image)?;
    let (magic, version, flags) = (header.header, header.version, header.xloadflags);
    if magic != MAGIC {
        return Err(BootError::UnknownImage);
    }
    if version < VERSION_XLOADFLAGS || flags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry);
    }
    let end = needed_end(&header);
    if end > layout.low_end() {
        return Err(BootError::TooLittleMemory {
            what: "kernel",
            needed_mib: end.div_ceil(1 << 20),
            have_mib: layout.low_end() >> 20,
        });
    }
    let start = GuestAddress(HIGH_MEMORY);
    let loaded = BzImage::load(memory, Some(start), image, Some(start))?;
    let header = loaded.setup_header.ok_or(BootError::UnknownImage)?;
    Ok(Loaded {
        kind: Kind::Bzimage { header: Box::new(header), entry: GuestAddress(start.0 + ENTRY_64) },
        end: end.max(loaded.kernel_end),
        initrd_end_max: u64::from(header.initrd_addr_max) + 1,
        command_line_max: header.cmdline_size as usize,
    })
}

fn read_header<T: Image>(image: &mut T) -> Result<setup_header, BootError> {
    let read = |source| BootError::Read { what: "kernel", source };
    let mut header = setup_header::default();
    image.seek(SeekFrom::Start(HEADER_OFFSET)).map_err(read)?;
    match image.read_exact(header.as_mut_slice()) {
        Ok(()) => Ok(header),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(BootError::UnknownImage),
        Err(error) => Err(read(error)),
    }
}

/// The kernel decompresses itself to its preferred address if it was loaded below, and needs `init_size` bytes there.
fn needed_end(header: &setup_header) -> u64 {
    header.pref_address.max(HIGH_MEMORY).saturating_add(u64::from(header.init_size))
}
