//! Sizes as people write and read them. Units are binary: `K`, `KB` and `KiB` are all 1024 bytes, as in every other tool that
//! makes disks.

/// Why a text is no size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{text:?} is not a size: {reason}; write a number and a unit, as in 512M, 10G or 1.5T (units are powers of 1024)"
)]
pub struct BadSize {
    /// What was written.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

const UNITS: [(&str, u64); 5] =
    [("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30), ("T", 1 << 40), ("P", 1 << 50)];

/// Parses `10G`, `512MiB`, `1.5T`, `4096` (bytes). Fractions must come out at whole bytes.
pub fn parse_size(text: &str) -> Result<u64, BadSize> {
    let bad = |reason| BadSize { text: text.to_owned(), reason };
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor = unit_bytes(unit.trim()).ok_or_else(|| bad("the unit is not one of K, M, G, T, P"))?;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
        return Err(bad("it does not begin with a number"));
    }
    let whole: u64 = whole.parse().map_err(|_| bad("the number is too large"))?;
    let bytes = whole.checked_mul(factor).ok_or_else(|| bad("the number is too large"))?;
    if fraction.is_empty() {
        return Ok(bytes);
    }
    // At most 9 digits: the numerator times the factor then fits 128 bits with ease.
    if fraction.len() > 9 {
        return Err(bad("the fraction has more than nine digits"));
    }
    let numerator: u128 = fraction.parse().map_err(|_| bad("it does not begin with a number"))?;
    let scaled = numerator * u128::from(factor);
    let denominator = 10_u128.pow(fraction.len() as u32);
    if !scaled.is_multiple_of(denominator) {
        return Err(bad("it is not a whole number of bytes"));
    }
    let rest = u64::try_from(scaled / denominator).map_err(|_| bad("the number is too large"))?;
    bytes.checked_add(rest).ok_or_else(|| bad("the number is too large"))
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let upper = unit.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Some(1);
    }
    UNITS.iter().find_map(|(letter, bytes)| {
        let known = upper == *letter || upper == format!("{letter}B") || upper == format!("{letter}IB");
        known.then_some(*bytes)
    })
}

/// A size for people, such as `1.5 GiB`; exact where the unit divides it, else to one decimal, rounded down so that a full
/// disk never looks fuller or a free one freer than it is.
pub fn format_size(bytes: u64) -> String {
    let Some((letter, unit)) = UNITS.iter().rev().find(|(_, unit)| bytes >= *unit) else {
        return format!("{bytes} B");
    };
    let whole = bytes / unit;
    let tenths = (u128::from(bytes % unit) * 10 / u128::from(*unit)) as u64;
    if tenths == 0 { format!("{whole} {letter}iB") } else { format!("{whole}.{tenths} {letter}iB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_binary_and_case_does_not_matter() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1K", 1024),
            ("1kib", 1024),
            ("10 G", 10 << 30),
            ("10GB", 10 << 30),
            ("1.5T", 3 << 39),
            ("0.25M", 1 << 18),
            ("2P", 2 << 50),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "G",
            "-1",
            "1.G",
            ".5G",
            "1..5G",
            "1.2.3",
            "10X",
            "1.3",
            "99999999999999999999",
            "99999P",
            "10 G G",
            "ten",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10 << 30, "10 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }
}
