//! The local APIC's two pins: external interrupts on the first, NMI on the second, as firmware leaves them (Intel SDM
//! volume 3, 11.5.1).

use kvm_bindings::kvm_lapic_state;

const LINT0: usize = 0x350;
const LINT1: usize = 0x360;
const MODE_SHIFT: u32 = 8;
const MODE_MASK: u32 = 7 << MODE_SHIFT;
const MODE_NMI: u32 = 4;
const MODE_EXTERNAL: u32 = 7;

/// Sets both pins' delivery modes.
pub fn connect_pins(state: &mut kvm_lapic_state) {
    set_mode(state, LINT0, MODE_EXTERNAL);
    set_mode(state, LINT1, MODE_NMI);
}

fn set_mode(state: &mut kvm_lapic_state, register: usize, mode: u32) {
    let place = &mut state.regs[register..register + 4];
    let mut bytes = [0u8; 4];
    for (byte, from) in bytes.iter_mut().zip(place.iter()) {
        *byte = from.cast_unsigned();
    }
    let value = u32::from_le_bytes(bytes) & !MODE_MASK | mode << MODE_SHIFT;
    for (to, byte) in place.iter_mut().zip(value.to_le_bytes()) {
        *to = byte.cast_signed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_modes_change() {
        let mut state = kvm_lapic_state::default();
        // Masked, vector 0xff, a mode that has to go.
        for (register, byte) in [(LINT0, 0xff_u8), (LINT0 + 1, 0x03), (LINT0 + 2, 0x01)] {
            state.regs[register] = byte.cast_signed();
        }
        connect_pins(&mut state);
        let bytes: Vec<u8> = state.regs[LINT0..LINT0 + 4].iter().map(|byte| byte.cast_unsigned()).collect();
        assert_eq!(bytes, [0xff, 0x07, 0x01, 0]);
        assert_eq!(state.regs[LINT1 + 1], 4);
    }
}
