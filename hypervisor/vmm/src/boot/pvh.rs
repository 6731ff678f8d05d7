//! ELF images with a PVH note (Xen, "x86/HVM direct boot ABI"; Linux with `CONFIG_PVH`).

use std::io::SeekFrom;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::params::Told;
use super::{BootError, Image, Kind, Loaded};
use crate::layout::{BOOT_INFO, COMMAND_LINE, COMMAND_LINE_MAX, HIGH_MEMORY, Layout, PVH_TABLES};

const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;
const MODULE_BYTES: u64 = 32;
/// `e_ident[EI_CLASS]` of 64-bit images.
const CLASS_64: u8 = 2;

pub(super) fn load<T: Image>(
    image: &mut T,
    memory: &GuestMemoryMmap,
    layout: &Layout,
) -> Result<Loaded, BootError> {
    let read = |source| BootError::Read { what: "kernel", source };
    let mut class = [0u8; 1];
    image.seek(SeekFrom::Start(4)).map_err(read)?;
    image.read_exact(&mut class).map_err(|_| BootError::UnknownImage)?;
    if class[0] != CLASS_64 {
        return Err(BootError::UnknownImage);
    }
    let loaded = Elf::load(memory, None, image, Some(GuestAddress(HIGH_MEMORY)))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::NoPvhEntry);
    };
    if loaded.kernel_end > layout.low_end() {
        return Err(BootError::TooLittleMemory {
            what: "kernel",
            needed_mib: loaded.kernel_end.div_ceil(1 << 20),
            have_mib: layout.low_end() >> 20,
        });
    }
    Ok(Loaded {
        kind: Kind::Pvh { entry },
        end: loaded.kernel_end,
        initrd_end_max: u64::MAX,
        command_line_max: COMMAND_LINE_MAX - 1,
    })
}

pub(super) fn write_start_info(memory: &GuestMemoryMmap, told: &Told) -> Result<(), BootError> {
    let (info, tables) = start_info(told);
    memory.write_slice(&info, BOOT_INFO)?;
    memory.write_slice(&tables, PVH_TABLES)?;
    Ok(())
}

/// The start info, and the tables behind it: one module (zeros if there is none), then the memory map.
fn start_info(told: &Told) -> (Vec<u8>, Vec<u8>) {
    let modules = u32::from(told.initrd.bytes > 0);
    let map = PVH_TABLES.0 + MODULE_BYTES;
    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, modules] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    for address in [PVH_TABLES.0, COMMAND_LINE.0, told.rsdp.0, map] {
        info.extend_from_slice(&address.to_le_bytes());
    }
    for word in [told.map.len() as u32, 0] {
        info.extend_from_slice(&word.to_le_bytes());
    }
    let mut tables = Vec::new();
    for field in [told.initrd.start, told.initrd.bytes, 0, 0] {
        tables.extend_from_slice(&field.to_le_bytes());
    }
    for range in &told.map {
        tables.extend_from_slice(&range.start.to_le_bytes());
        tables.extend_from_slice(&range.bytes.to_le_bytes());
        tables.extend_from_slice(&(range.kind as u32).to_le_bytes());
        tables.extend_from_slice(&0u32.to_le_bytes());
    }
    (info, tables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Initrd;
    use crate::layout::{Layout, MemorySize};

    #[test]
    fn the_start_info_is_as_xen_describes_it() {
        let layout = Layout::new(MemorySize::new(64 << 20).unwrap(), 40).unwrap();
        let initrd = Initrd { start: 0x300_0000, bytes: 5 };
        let told = Told { initrd, rsdp: GuestAddress(0xe_0000), map: layout.memory_map() };
        let (info, tables) = start_info(&told);
        assert_eq!(info.len(), 56);
        assert_eq!(info[0..4], 0x336e_c578_u32.to_le_bytes());
        assert_eq!(info[4], 1);
        assert_eq!(info[12], 1, "one module");
        assert_eq!(info[16..24], 0x8000_u64.to_le_bytes(), "modules");
        assert_eq!(info[24..32], 0x2_0000_u64.to_le_bytes(), "command line");
        assert_eq!(info[32..40], 0xe_0000_u64.to_le_bytes(), "RSDP");
        assert_eq!(info[40..48], 0x8020_u64.to_le_bytes(), "memory map");
        assert_eq!(info[48..52], 4u32.to_le_bytes(), "entries");
        assert_eq!(tables[0..16], [0x300_0000_u64.to_le_bytes(), 5u64.to_le_bytes()].concat());
        assert_eq!(tables.len(), 32 + 4 * 24);
        let none = Told { initrd: Initrd::default(), ..told };
        assert_eq!(start_info(&none).0[12], 0, "no module");
    }
}
