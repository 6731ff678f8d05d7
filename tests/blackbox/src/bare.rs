//! Guests of a few instructions: an ELF image with a PVH entry (Xen, `docs/misc/pvh.pandoc`), which any KVM runs, also one that
//! emulates guests' kernels. They print at COM1, switch off, reset, panic or wait.

/// Where the code lies.
const ENTRY: u64 = 0x20_0000;
const CODE_AT: u64 = 0x1000;

/// A program for a processor in 32-bit mode.
#[derive(Clone, Debug, Default)]
pub struct Code(Vec<u8>);

impl Code {
    /// `mov edx, port; mov al, value; out dx, al`
    #[must_use]
    pub fn out(mut self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.0.extend([0xba, low, high, 0, 0, 0xb0, value, 0xee]);
        self
    }

    /// Prints at the serial port.
    #[must_use]
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |code, byte| code.out(0x3f8, byte))
    }

    /// Waits for a byte at the serial port: `mov edx, 0x3fd; in al, dx; test al, 1; jz` back, then takes it.
    #[must_use]
    pub fn read(mut self) -> Self {
        self.0.extend([0xba, 0xfd, 3, 0, 0, 0xec, 0xa8, 1, 0x74, 0xfb, 0xba, 0xf8, 3, 0, 0, 0xec]);
        self
    }

    /// Prints the byte that was read: `out dx, al`.
    #[must_use]
    pub fn echo(mut self) -> Self {
        self.0.push(0xee);
        self
    }

    /// Switches the machine off (ACPI sleep control register, S5).
    #[must_use]
    pub fn power_off(self) -> Self {
        self.out(0x600, 5 << 2 | 1 << 5)
    }

    /// Says that the kernel has panicked (pvpanic, its ISA port).
    #[must_use]
    pub fn panic(self) -> Self {
        self.out(0x505, 1)
    }

    /// The image: the code, and then `hlt; jmp` back to it.
    pub fn image(self) -> Vec<u8> {
        const NOTE_AT: u64 = 64 + 2 * 56;
        let mut code = self.0;
        code.extend([0xf4, 0xeb, 0xfd]);
        let mut image = b"\x7fELF\x02\x01\x01".to_vec();
        image.resize(16, 0);
        image.extend([2_u16, 62].iter().flat_map(|half| half.to_le_bytes()));
        image.extend(1_u32.to_le_bytes());
        image.extend([ENTRY, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
        image.extend(0_u32.to_le_bytes());
        image.extend([64_u16, 56, 2, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
        let mut header = |kind: u32, offset: u64, address: u64, bytes: u64| {
            image.extend([kind, 5].iter().flat_map(|half| half.to_le_bytes()));
            let words = [offset, address, address, bytes, bytes, 4];
            image.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        };
        header(1, CODE_AT, ENTRY, code.len() as u64);
        header(4, NOTE_AT, 0, 20);
        // The note: owner "Xen", of type 18, with the 32-bit entry.
        image.extend([4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()));
        image.extend(b"Xen\0");
        image.extend((ENTRY as u32).to_le_bytes());
        image.resize(CODE_AT as usize, 0);
        image.extend(code);
        image
    }
}
