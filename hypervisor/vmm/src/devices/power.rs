//! How a guest ends: ACPI's sleep and reset registers, and the keyboard controller's reset line that kernels try when
//! nothing else helped.
//!
//! ```text
//!   0x600  sleep control   type in bits 2 to 4, enable in bit 5 (ACPI 6.5, 4.8.3.7)
//!   0x601  sleep status    reads 0: nothing has woken the machine
//!   0x602  reset           the value 1
//!   0x64   keyboard controller: command 0xfe pulses the reset line
//! ```
//!
//! Linux looks for a last resort before it tries these: on a machine with hardware-reduced ACPI it believes that there is
//! EFI, calls it in vain, and then jumps to the firmware's reset vector in real mode. So there is code at that place,
//! which writes to the reset register.
//!
//! There is no state: a write either ends the machine or does nothing.

/// First of the power registers.
pub const PORTS: u16 = 0x600;
/// How many.
pub const PORTS_COUNT: u8 = 4;
/// Sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// Sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// Reset register.
pub const RESET_PORT: u16 = 0x602;
/// What a guest writes to it.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of S5, soft off.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Status and command register of the keyboard controller.
pub const KEYBOARD_COMMAND_PORT: u16 = 0x64;

const SLEEP_ENABLE: u8 = 1 << 5;
const KEYBOARD_PULSE_RESET: u8 = 0xfe;

/// What a guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// It has shut down.
    Off,
    /// It wants to begin anew.
    Reset,
}

/// What stands at the reset vector, in 16-bit code.
pub const RESET_CODE: [u8; 9] = {
    let port = RESET_PORT.to_le_bytes();
    [
        0xba,
        port[0],
        port[1], // mov dx, port
        0xb0,
        RESET_VALUE, // mov al, value
        0xee,        // out dx, al
        0xf4,        // hlt
        0xeb,
        0xfd, // back to the hlt
    ]
};

/// Whether the port is one of these registers.
pub fn has(port: u16) -> bool {
    (PORTS..PORTS + u16::from(PORTS_COUNT)).contains(&port) || port == KEYBOARD_COMMAND_PORT
}

/// What a register reads as: no wake event, no key, room for a command.
pub fn read(_port: u16) -> u8 {
    0
}

/// What a write asks for.
pub fn write(port: u16, value: u8) -> Option<PowerRequest> {
    match port {
        SLEEP_CONTROL_PORT if value & SLEEP_ENABLE != 0 && value >> 2 & 7 == SLEEP_TYPE_OFF => {
            Some(PowerRequest::Off)
        }
        RESET_PORT if value == RESET_VALUE => Some(PowerRequest::Reset),
        KEYBOARD_COMMAND_PORT if value == KEYBOARD_PULSE_RESET => Some(PowerRequest::Reset),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_words_end_a_machine() {
        for port in 0..=u16::MAX {
            for value in 0..=u8::MAX {
                let wanted = match (port, value) {
                    // Type 5, enable; the other bits are reserved and ignored.
                    (0x600, _) if value & 0x3c == 0x34 => Some(PowerRequest::Off),
                    (0x602, 1) | (0x64, 0xfe) => Some(PowerRequest::Reset),
                    _ => None,
                };
                assert_eq!(write(port, value), wanted, "{port:#x} {value:#x}");
                assert!(wanted.is_none() || has(port));
            }
        }
    }
}
