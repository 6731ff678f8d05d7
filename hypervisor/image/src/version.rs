//! Which of two versions is the newer: the UAPI group's Version Format Specification, which systemd-boot follows, and
//! which orders the kernels of Debian and Fedora as their own tools do.

use std::cmp::Ordering;

/// Compares two versions, or names of files that have a version in them.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        a = skip_separators(a);
        b = skip_separators(b);
        // A tilde is before everything, also before the end: 1.0~rc1 is older than 1.0.
        match (a.first(), b.first()) {
            (Some(b'~'), Some(b'~')) => {
                (a, b) = (&a[1..], &b[1..]);
                continue;
            }
            (Some(b'~'), _) => return Ordering::Less,
            (_, Some(b'~')) => return Ordering::Greater,
            (None, None) => return Ordering::Equal,
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(x), Some(y)) => {
                if let Some(ordering) = separators(*x, *y) {
                    match ordering {
                        Ordering::Equal => {
                            (a, b) = (&a[1..], &b[1..]);
                            continue;
                        }
                        different => return different,
                    }
                }
            }
        }
        let numeric = a[0].is_ascii_digit() || b[0].is_ascii_digit();
        let same = |byte: &u8| if numeric { byte.is_ascii_digit() } else { byte.is_ascii_alphabetic() };
        let (x, rest_a) = a.split_at(a.iter().take_while(|byte| same(byte)).count());
        let (y, rest_b) = b.split_at(b.iter().take_while(|byte| same(byte)).count());
        let ordering = if numeric { numbers(x, y) } else { x.cmp(y) };
        if ordering.is_ne() {
            return ordering;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// What stands for nothing.
fn skip_separators(text: &[u8]) -> &[u8] {
    let other = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"~-^.".contains(byte);
    &text[text.iter().take_while(|byte| other(byte)).count()..]
}

/// `-` is before `^`, and that before `.`, and each before letters and digits.
fn separators(a: u8, b: u8) -> Option<Ordering> {
    for separator in *b"-^." {
        match (a == separator, b == separator) {
            (true, true) => return Some(Ordering::Equal),
            (true, false) => return Some(Ordering::Less),
            (false, true) => return Some(Ordering::Greater),
            (false, false) => {}
        }
    }
    None
}

/// Of any length. No digits at all are before zero.
fn numbers(a: &[u8], b: &[u8]) -> Ordering {
    let value =
        |digits: &[u8]| digits.iter().skip_while(|digit| **digit == b'0').copied().collect::<Vec<_>>();
    let (x, y) = (value(a), value(b));
    a.is_empty().cmp(&b.is_empty()).reverse().then(x.len().cmp(&y.len())).then(x.cmp(&y))
}

#[cfg(test)]
mod tests {
    use super::compare;
    use std::cmp::Ordering::{Equal, Greater, Less};

    #[test]
    fn newer_kernels_are_newer() {
        let rising = [
            "5.10.0-30-amd64",
            "6.1.0-9-amd64",
            "6.1.0-10-amd64",
            "6.1.0-37-amd64",
            "6.12.0~rc1-amd64",
            "6.12.0-amd64",
            "6.12.1-1.fc41.x86_64",
            "6.12.1-2.fc41.x86_64",
            "6.12.10-1.fc41.x86_64",
        ];
        for pair in rising.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Greater, "{pair:?}");
        }
    }

    /// The examples of the specification.
    #[test]
    fn the_specification_is_followed() {
        for (a, b) in [
            ("122.1", "123~rc1-1"),
            ("123~rc1-1", "123"),
            ("123", "123-a"),
            ("123-a", "123-a.1"),
            ("123-a.1", "123-1"),
            ("123-1", "123-1.1"),
            ("123-1.1", "123^post1"),
            ("123^post1", "123.a-1"),
            ("123.a-1", "123.1-1"),
            ("123.1-1", "123a-1"),
            ("123a-1", "124-1"),
        ] {
            assert_eq!(compare(a, b), Less, "{a} {b}");
        }
        assert_eq!(compare("", ""), Equal);
        assert_eq!(compare("1.010", "1.10"), Equal);
        assert_eq!(compare("a_1", "a1"), Equal);
    }
}
