//! Small guests of our own: machine code, and the images that it is booted from. They use few and plain instructions, so
//! that they also run where KVM emulates guest kernels.
#![allow(dead_code, unreachable_pub)] // each test file uses some of it

/// 16, 32 and 64 bits alike: print a byte at COM1, write a byte to a port, wait.
pub fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

/// `mov edx, port; mov al, value; out dx, al`
pub fn out(port: u16, value: u8) -> Vec<u8> {
    let port = port.to_le_bytes();
    vec![0xba, port[0], port[1], 0, 0, 0xb0, value, 0xee]
}

pub const POWER_OFF: (u16, u8) = (0x600, 5 << 2 | 1 << 5);
pub const RESET: (u16, u8) = (0x602, 1);

/// `hlt; jmp` back to it.
pub const WAIT: [u8; 3] = [0xf4, 0xeb, 0xfd];

pub fn need_kvm() {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    if let Err(error) = opened {
        panic!("these tests run virtual machines and /dev/kvm can't be opened: {error}");
    }
}

/// An ELF image with a PVH note, its code at 2 MiB.
pub fn pvh_image(code: &[u8]) -> Vec<u8> {
    const ENTRY: u64 = 0x20_0000;
    const NOTE_AT: u64 = 64 + 2 * 56;
    const CODE_AT: u64 = 0x1000;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    for half in [2u16, 62] {
        image.extend(half.to_le_bytes());
    }
    image.extend(1u32.to_le_bytes());
    for word in [ENTRY, 64, 0] {
        image.extend(word.to_le_bytes());
    }
    image.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        image.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, offset: u64, address: u64, bytes: u64| {
        image.extend(kind.to_le_bytes());
        image.extend(5u32.to_le_bytes());
        for word in [offset, address, address, bytes, bytes, 4] {
            image.extend(word.to_le_bytes());
        }
    };
    header(1, CODE_AT, ENTRY, code.len() as u64);
    header(4, NOTE_AT, 0, 20);
    for word in [4u32, 4, 18] {
        image.extend(word.to_le_bytes());
    }
    image.extend(b"Xen\0");
    image.extend((ENTRY as u32).to_le_bytes());
    image.resize(CODE_AT as usize, 0);
    image.extend(code);
    image
}

/// A bzImage whose 64-bit entry has this code.
pub fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0u8; 0x400 + 0x200];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&255u32.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x1_0000u32.to_le_bytes());
    image.extend(code);
    image
}

pub fn code(parts: &[Vec<u8>]) -> Vec<u8> {
    [parts.concat(), WAIT.to_vec()].concat()
}
