//! What a kernel that was entered at its 64-bit entry is told: the zero page.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::{BootError, Initrd};
use crate::layout::{BOOT_INFO, COMMAND_LINE, MapRange};

/// "Undefined" loader: none of those with a number.
const LOADER_UNDEFINED: u8 = 0xff;

/// What any kernel is told.
pub(super) struct Told {
    pub(super) initrd: Initrd,
    pub(super) rsdp: GuestAddress,
    pub(super) map: Vec<MapRange>,
}

pub(super) fn write_boot_params(
    memory: &GuestMemoryMmap,
    header: setup_header,
    told: &Told,
) -> Result<(), BootError> {
    let params = boot_params_of(header, told);
    memory.write_slice(params.as_slice(), BOOT_INFO)?;
    Ok(())
}

fn boot_params_of(header: setup_header, told: &Told) -> boot_params {
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: told.rsdp.0, ..Default::default() };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = COMMAND_LINE.0 as u32;
    params.hdr.ramdisk_image = told.initrd.start as u32;
    params.hdr.ramdisk_size = told.initrd.bytes as u32;
    // A list of further data that the loader provides; the image's own value is not ours to pass on.
    params.hdr.setup_data = 0;
    let mut table = params.e820_table;
    let entries = told.map.iter().zip(&mut table).map(|(range, entry)| {
        *entry = boot_e820_entry { addr: range.start, size: range.bytes, r#type: range.kind as u32 };
    });
    params.e820_entries = entries.count() as u8;
    params.e820_table = table;
    params
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Layout, MemorySize};

    /// Offsets are those of the zero page in the kernel's documentation, not those of the crate's structure.
    #[test]
    fn the_zero_page_is_where_the_kernel_looks() {
        let layout = Layout::new(MemorySize::new(5 << 30).unwrap(), 40).unwrap();
        let told = Told {
            initrd: Initrd { start: 0x700_0000, bytes: 0x1234 },
            rsdp: GuestAddress(0xe_0000),
            map: layout.memory_map(),
        };
        let params = boot_params_of(setup_header { setup_data: 77, ..Default::default() }, &told);
        let bytes = params.as_slice();
        let u32_at = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        assert_eq!(bytes.len(), 4096);
        assert_eq!(u64_at(0x070), 0xe_0000, "RSDP");
        assert_eq!(bytes[0x210], 0xff, "type of loader");
        assert_eq!((u32_at(0x218), u32_at(0x21c)), (0x700_0000, 0x1234), "initrd");
        assert_eq!(u32_at(0x228), 0x2_0000, "command line");
        assert_eq!(u64_at(0x250), 0, "setup data");
        assert_eq!(usize::from(bytes[0x1e8]), told.map.len());
        for (range, at) in told.map.iter().zip((0x2d0..).step_by(20)) {
            assert_eq!((u64_at(at), u64_at(at + 8)), (range.start, range.bytes));
            assert_eq!(u32_at(at + 16), range.kind as u32);
        }
    }
}
