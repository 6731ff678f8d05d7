//! GF(2^8): the bytes as a field, with addition as XOR and multiplication modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d), of which
//! 2 is a generator. The same field as that of Linux's RAID-6, of ISA-L and of `reed-solomon-erasure`.
//!
//! Here are single elements, for coefficients; whole blocks are multiplied in [`crate::blocks`].

/// What is left of x^8 when the polynomial is taken off: 0x11d without its top bit.
pub(crate) const REDUCTION: u8 = 0x1d;

/// How many powers of 2 there are.
const ORDER: usize = 255;

/// `POWERS[i]` is 2^i.
const POWERS: [u8; ORDER] = {
    let mut powers = [1; ORDER];
    let mut i = 1;
    while i < ORDER {
        powers[i] = double(powers[i - 1]);
        i += 1;
    }
    powers
};

/// `LOGS[x]` is the i for which 2^i = x. There is none for 0.
const LOGS: [u8; 256] = {
    let mut logs = [0; 256];
    let mut i = 0;
    while i < ORDER {
        logs[POWERS[i] as usize] = i as u8;
        i += 1;
    }
    logs
};

/// Twice `x`.
pub(crate) const fn double(x: u8) -> u8 {
    (x << 1) ^ (REDUCTION & (x >> 7).wrapping_neg())
}

/// 2^`exponent`.
pub(crate) const fn power(exponent: usize) -> u8 {
    POWERS[exponent % ORDER]
}

pub(crate) const fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    power(LOGS[a as usize] as usize + LOGS[b as usize] as usize)
}

/// What `x` is multiplied by to give 1. `x` is not 0.
pub(crate) const fn inverse(x: u8) -> u8 {
    assert!(x != 0, "0 has no inverse");
    power(ORDER - LOGS[x as usize] as usize)
}

#[cfg(test)]
mod tests {
    use reed_solomon_erasure::galois_8 as reference;

    use super::*;

    #[test]
    fn all_products_are_those_of_another_implementation() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(mul(a, b), reference::mul(a, b), "{a} x {b}");
            }
        }
    }

    #[test]
    fn powers_doubles_and_inverses_agree_with_products() {
        assert_eq!(power(0), 1);
        for x in 0..=255_u8 {
            assert_eq!(double(x), mul(x, 2));
            assert_eq!(mul(power(usize::from(x)), 2), power(usize::from(x) + 1));
            if x != 0 {
                assert_eq!(mul(x, inverse(x)), 1, "{x}");
            }
        }
    }
}
