//! The header of a bzImage: `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header".

use std::fmt;

use super::KernelError;
use crate::bytes::{le16, le32, le64, printable};
use crate::source::{ReadFailed, Window};

/// What is read of the file: the header, and what the compressed kernel begins with is read apart.
pub(super) const HEADER_BYTES: usize = 0x270;
const SECTOR: u64 = 512;
/// The first protocol with flags for a 64-bit entry.
const PROTOCOL_MIN: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const XLF_CAN_BE_LOADED_ABOVE_4G: u16 = 2;
/// The longest release name that is shown.
const RELEASE_BYTES: usize = 128;

/// How the kernel proper is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA.
    Lzma,
    /// XZ.
    Xz,
    /// LZO.
    Lzo,
    /// LZ4, in its legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
    /// Not at all.
    Elf,
    /// Newer than this code. It does not matter: the kernel unpacks itself.
    Unknown,
}

impl Payload {
    fn of(head: &[u8]) -> Self {
        let known: [(&[u8], Self); 8] = [
            (&[0x1f, 0x8b], Self::Gzip),
            (b"BZh", Self::Bzip2),
            (&[0x5d, 0, 0], Self::Lzma),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
            (&[0x89, b'L', b'Z', b'O'], Self::Lzo),
            (&[0x02, 0x21, 0x4c, 0x18], Self::Lz4),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
            (b"\x7fELF", Self::Elf),
        ];
        known.iter().find(|(magic, _)| head.starts_with(magic)).map_or(Self::Unknown, |(_, it)| *it)
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Elf => "not compressed",
            Self::Unknown => "unknown compression",
        })
    }
}

/// What a loader needs of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BzImage {
    /// Of the boot protocol: major and minor.
    pub protocol: (u8, u8),
    /// As `uname -r` will say.
    pub release: String,
    /// Bytes before the part that is loaded at 1 MiB or above: the real-mode code.
    pub setup_bytes: u64,
    /// Bytes of that part.
    pub system_bytes: u64,
    /// How the kernel proper is compressed.
    pub payload: Payload,
    /// The longest command line, without the zero at its end.
    pub command_line_bytes_max: u32,
    /// Where it may be loaded: a multiple of this, in bytes.
    pub alignment: u32,
    /// Whether it may be loaded elsewhere than at `preferred_address`.
    pub relocatable: bool,
    /// Whether it and its initrd may be above 4 GiB.
    pub above_4g: bool,
    /// Where it would like to be, in guest-physical memory.
    pub preferred_address: u64,
    /// Bytes of memory that it takes from its address on while it unpacks itself.
    pub init_bytes: u32,
    /// The highest address that an initrd may have.
    pub initrd_address_max: u32,
}

pub(super) fn inspect(file: &Window<'_>, head: &[u8]) -> Result<BzImage, KernelError> {
    let signed = head.get(0x202..0x206) == Some(b"HdrS".as_slice()) && le16(head, 0x1fe) == 0xaa55;
    if !signed || head.len() < HEADER_BYTES {
        return Err(if head.starts_with(b"MZ") { KernelError::Efi } else { KernelError::Unknown });
    }
    let version = le16(head, 0x206);
    let protocol = ((version >> 8) as u8, version as u8);
    let (load_flags, flags) = (head[0x211], le16(head, 0x236));
    if version < PROTOCOL_MIN || load_flags & LOADED_HIGH == 0 || flags & XLF_KERNEL_64 == 0 {
        return Err(KernelError::NoEntry64 { major: protocol.0, minor: protocol.1 });
    }
    // Zero stands for four, from the days of floppy disks.
    let setup_sectors = match head[0x1f1] {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let setup_bytes = (setup_sectors + 1) * SECTOR;
    let system_bytes = u64::from(le32(head, 0x1f4)) * 16;
    if system_bytes == 0 {
        return Err(KernelError::Damaged("the size of its code"));
    }
    // The size is in paragraphs of 16 bytes, and the last need not be whole.
    if setup_bytes + system_bytes >= file.len() + 16 {
        return Err(KernelError::CutOff { wanted: setup_bytes + system_bytes, found: file.len() });
    }
    let alignment = le32(head, 0x230);
    if !alignment.is_power_of_two() {
        return Err(KernelError::Damaged("its alignment"));
    }
    let (payload_at, payload_len) = (u64::from(le32(head, 0x248)), u64::from(le32(head, 0x24c)));
    if payload_at + payload_len > system_bytes {
        return Err(KernelError::Damaged("the place of its payload"));
    }
    let mut magic = [0; 8];
    let payload = match file.read(setup_bytes + payload_at, &mut magic) {
        Ok(()) => Payload::of(&magic),
        Err(ReadFailed::BeyondEnd { .. }) => Payload::Unknown,
        Err(error) => return Err(error.into()),
    };
    Ok(BzImage {
        protocol,
        release: release(file, le16(head, 0x20e), setup_bytes)?,
        setup_bytes,
        system_bytes,
        payload,
        command_line_bytes_max: le32(head, 0x238),
        alignment,
        relocatable: head[0x234] != 0,
        above_4g: flags & XLF_CAN_BE_LOADED_ABOVE_4G != 0,
        preferred_address: le64(head, 0x258),
        init_bytes: le32(head, 0x260),
        initrd_address_max: le32(head, 0x22c),
    })
}

/// The first word of the version text, whose place is counted from the second sector on.
fn release(file: &Window<'_>, at: u16, setup_bytes: u64) -> Result<String, KernelError> {
    let at = u64::from(at) + SECTOR;
    if at == SECTOR || at >= setup_bytes {
        return Ok(String::new());
    }
    let len = (setup_bytes - at).min(RELEASE_BYTES as u64) as usize;
    let text = file.read_vec(at, len)?;
    let text = text.split(|byte| matches!(byte, 0 | b' ')).next().unwrap_or_default();
    Ok(printable(&String::from_utf8_lossy(text), RELEASE_BYTES))
}
