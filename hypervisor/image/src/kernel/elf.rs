//! ELF kernels with a PVH entry: Xen's `docs/misc/pvh.pandoc`, and the note `XEN_ELFNOTE_PHYS32_ENTRY`.

use super::KernelError;
use crate::bytes::{le16, le32, le64};
use crate::source::Window;

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
/// Real kernels have half a dozen.
const PROGRAM_HEADERS_MAX: u16 = 64;
/// Real kernels have some hundred bytes.
const NOTES_BYTES_MAX: u64 = 64 << 10;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PHYS32_ENTRY: u32 = 18;

/// What a loader needs of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pvh {
    /// Where it is entered, in 32-bit mode, in guest-physical memory.
    pub entry: u64,
    /// The first byte of guest-physical memory that it takes.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

pub(super) fn inspect(file: &Window<'_>, head: &[u8]) -> Result<Pvh, KernelError> {
    if head.len() < HEADER_BYTES || head[4] != 2 || head[5] != 1 || le16(head, 18) != MACHINE_X86_64 {
        return Err(KernelError::OtherMachine);
    }
    let count = le16(head, 56);
    if usize::from(le16(head, 54)) != PROGRAM_HEADER_BYTES || count > PROGRAM_HEADERS_MAX {
        return Err(KernelError::Damaged("its program header"));
    }
    let headers = file.read_vec(le64(head, 32), usize::from(count) * PROGRAM_HEADER_BYTES)?;
    let (mut start, mut end, mut entry) = (u64::MAX, 0, None);
    for header in headers.chunks_exact(PROGRAM_HEADER_BYTES) {
        let (offset, in_file, in_memory) = (le64(header, 8), le64(header, 32), le64(header, 40));
        match le32(header, 0) {
            PT_LOAD => {
                let address = le64(header, 24);
                let (Some(file_end), Some(memory_end)) =
                    (offset.checked_add(in_file), address.checked_add(in_memory))
                else {
                    return Err(KernelError::Damaged("a segment"));
                };
                if file_end > file.len() {
                    return Err(KernelError::CutOff { wanted: file_end, found: file.len() });
                }
                if in_file > in_memory {
                    return Err(KernelError::Damaged("a segment"));
                }
                (start, end) = (start.min(address), end.max(memory_end));
            }
            PT_NOTE if entry.is_none() && in_file <= NOTES_BYTES_MAX => {
                entry = phys32_entry(&file.read_vec(offset, in_file as usize)?);
            }
            _ => {}
        }
    }
    let entry = entry.ok_or(KernelError::NoPvh)?;
    if !(start..end).contains(&entry) {
        return Err(KernelError::Damaged("its entry"));
    }
    Ok(Pvh { entry, start, end })
}

/// Notes: lengths of name and contents, a type, the name, the contents, each filled up to four bytes.
fn phys32_entry(notes: &[u8]) -> Option<u64> {
    let mut rest = notes;
    while rest.len() >= 12 {
        let (name_len, len) = (le32(rest, 0) as usize, le32(rest, 4) as usize);
        let name_end = name_len.checked_next_multiple_of(4)?.checked_add(12)?;
        let contents = rest.get(name_end..name_end.checked_add(len)?)?;
        if rest.get(12..16) == Some(b"Xen\0".as_slice()) && name_len == 4 && le32(rest, 8) == PHYS32_ENTRY {
            return match len {
                4 => Some(u64::from(le32(contents, 0))),
                8 => Some(le64(contents, 0)),
                _ => None,
            };
        }
        rest = rest.get(name_end + len.checked_next_multiple_of(4)?..)?;
    }
    None
}
