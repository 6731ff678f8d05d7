//! The key that leaves a console.

use std::fmt;
use std::str::FromStr;

/// A control character, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EscapeKey(Option<u8>);

/// What a terminal sends for CTRL and this character (ECMA-48, 5.2: columns 04 and 05 without their third bit).
fn control(c: char) -> Option<u8> {
    match c.to_ascii_uppercase() {
        upper @ ('A'..='Z' | '[' | '\\' | ']' | '^' | '_') => Some(upper as u8 & 0x1f),
        _ => None,
    }
}

impl EscapeKey {
    /// Where the key is in what was typed.
    pub fn position(self, typed: &[u8]) -> Option<usize> {
        let key = self.0?;
        typed.iter().position(|byte| *byte == key)
    }

    /// Whether there is one.
    pub fn is_some(self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Display for EscapeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("none"),
            Some(byte) => write!(f, "Ctrl-{}", char::from(byte | 0x40)),
        }
    }
}

impl FromStr for EscapeKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let lower = text.to_ascii_lowercase();
        let rest = lower
            .strip_prefix("ctrl-")
            .or_else(|| lower.strip_prefix("ctrl+"))
            .or_else(|| lower.strip_prefix('^'));
        let mut letters = rest.unwrap_or_default().chars();
        match (letters.next().and_then(control), letters.next()) {
            (Some(byte), None) => Ok(Self(Some(byte))),
            _ => Err(format!(
                "{text:?} is no such key: write ctrl-] or ^], with any letter or one of [ \\ ] ^ _, or none"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_in_several_ways() {
        for (text, byte) in
            [("ctrl-]", 0x1d), ("^]", 0x1d), ("Ctrl-A", 1), ("^z", 26), ("ctrl+\\", 0x1c), ("^^", 0x1e)]
        {
            assert_eq!(text.parse(), Ok(EscapeKey(Some(byte))), "{text}");
        }
        assert_eq!("none".parse(), Ok(EscapeKey(None)));
        for text in ["", "a", "ctrl-", "^", "ctrl-ab", "^1", "^é", "f1"] {
            assert!(text.parse::<EscapeKey>().is_err(), "{text}");
        }
        assert_eq!(EscapeKey(Some(0x1d)).to_string(), "Ctrl-]");
        assert_eq!(EscapeKey(Some(1)).to_string(), "Ctrl-A");
    }

    #[test]
    fn it_is_found_among_what_is_typed() {
        let key: EscapeKey = "ctrl-]".parse().unwrap();
        assert_eq!(key.position(b"ls\r\x1dmore"), Some(3));
        assert_eq!(key.position(b"]"), None);
        assert_eq!(EscapeKey(None).position(b"\x1d"), None);
    }
}
