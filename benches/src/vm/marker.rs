//! A kernel that says when its first instruction runs.
//!
//! It is the kernel that is measured, byte for byte, but for a few instructions at each of its entries: they write one
//! letter to the first serial port and stop. So a monitor loads as much as it does for the real one, whichever entry it
//! uses.
//!
//! ```text
//!   0        0x200  0x202            (setup_sects + 1) * 512      + 0x200
//!   ┌────────┬──────┬─────────┬──────┬───────────────────────────┬─────────────────
//!   │        │ jump │ header  │ code │ 32-bit entry              │ 64-bit entry
//!   └────────┴──┬───┴─────────┴──────┴───────────────────────────┴─────────────────
//!               └──────────────▲ 16-bit entry
//! ```
//!
//! Layout: Documentation/arch/x86/boot.rst of Linux, "The real-mode kernel header" and "64-bit boot protocol".

use anyhow::{Context as _, bail};

/// What the marked kernel prints.
pub(super) const LETTER: u8 = b'K';

const SETUP_SECTS: usize = 0x1f1;
const JUMP: usize = 0x200;
const MAGIC: usize = 0x202;
const ENTRY_64: usize = 0x200;
/// mov dx, 0x3f8; mov al, LETTER; out dx, al; hlt; jmp to the hlt.
const CODE_16: [u8; 9] = [0xba, 0xf8, 0x03, 0xb0, LETTER, 0xee, 0xf4, 0xeb, 0xfd];
/// The same for 32 and 64 bits.
const CODE_32_64: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, LETTER, 0xee, 0xf4, 0xeb, 0xfd];

/// Marks a bzImage.
pub(super) fn mark(mut image: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS".as_slice()) {
        bail!("the kernel is no bzImage: give Debian's vmlinuz");
    }
    let (&opcode, &distance) =
        image.get(JUMP).zip(image.get(JUMP + 1)).context("the kernel ends in its header")?;
    if opcode != 0xeb || distance > 0x7f {
        bail!("the kernel's 16-bit entry is no short jump forwards");
    }
    let setup_sects = match image[SETUP_SECTS] {
        0 => 4,
        some => usize::from(some),
    };
    let protected = (setup_sects + 1) * 512;
    write(&mut image, JUMP + 2 + usize::from(distance), &CODE_16)?;
    write(&mut image, protected, &CODE_32_64)?;
    write(&mut image, protected + ENTRY_64, &CODE_32_64)?;
    Ok(image)
}

fn write(image: &mut [u8], at: usize, code: &[u8]) -> anyhow::Result<()> {
    image
        .get_mut(at..at + code.len())
        .context("the kernel is shorter than its header says")?
        .copy_from_slice(code);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[SETUP_SECTS] = 1;
        image[JUMP..JUMP + 2].copy_from_slice(&[0xeb, 0x6a]);
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image
    }

    #[test]
    fn each_entry_is_marked_and_nothing_else() {
        let marked = mark(kernel()).unwrap();
        let changed: Vec<usize> =
            kernel().iter().zip(&marked).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect();
        assert!(changed.iter().all(|at| (0x26c..0x275).contains(at)
            || (0x400..0x40a).contains(at)
            || (0x600..0x60a).contains(at)));
        assert_eq!(marked[0x26c], 0xba);
        assert_eq!((marked[0x400], marked[0x600]), (0x66, 0x66));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(mark(vec![0; 4096]).unwrap_err().to_string().contains("bzImage"));
        let mut short = kernel();
        short.truncate(0x500);
        assert!(mark(short).unwrap_err().to_string().contains("shorter"));
    }
}
