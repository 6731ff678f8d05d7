//! Variables, and the file in which GRUB keeps some between starts.

use std::collections::BTreeMap;

use super::VARIABLES_BYTES_MAX;

/// What a file with variables begins with.
const SIGNATURE: &str = "# GRUB Environment Block";

/// Variables and their values, together of bounded size.
#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    values: BTreeMap<String, String>,
    bytes: usize,
}

impl Environment {
    /// The value; nothing if it was never set.
    pub(super) fn get(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }

    /// Sets it, and says whether there was room.
    pub(super) fn set(&mut self, name: &str, value: String) -> bool {
        self.unset(name);
        // What a map takes for an entry, by and large.
        let bytes = name.len() + value.len() + 64;
        let fits = self.bytes + bytes <= VARIABLES_BYTES_MAX;
        if fits {
            self.bytes += bytes;
            self.values.insert(name.to_owned(), value);
        }
        fits
    }

    pub(super) fn unset(&mut self, name: &str) {
        if let Some(value) = self.values.remove(name) {
            self.bytes -= name.len() + value.len() + 64;
        }
    }
}

/// The variables of a `grubenv`: lines `name=value`, with a backslash before a newline or a backslash in a value.
pub(super) fn block(text: &str) -> Vec<(String, String)> {
    let Some(rest) = text.strip_prefix(SIGNATURE) else { return Vec::new() };
    let mut found = Vec::new();
    let mut line = String::new();
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => line.extend(chars.next()),
            '\n' => found.extend(variable(&std::mem::take(&mut line))),
            c => line.push(c),
        }
    }
    found.extend(variable(&line));
    found
}

fn variable(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once('=').filter(|_| !line.starts_with('#'))?;
    Some((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read() {
        let text =
            "# GRUB Environment Block\n# a remark=x\nsaved_entry=a>b\nkernelopts=root=/dev/sda1 \\\\x\n####";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(block(text), [pair("saved_entry", "a>b"), pair("kernelopts", "root=/dev/sda1 \\x")]);
        assert_eq!(block("saved_entry=1\n"), []);
    }

    #[test]
    fn it_stays_within_its_bound() {
        let mut environment = Environment::default();
        assert!(environment.set("a", "x".repeat(VARIABLES_BYTES_MAX / 2)));
        assert!(!environment.set("b", "x".repeat(VARIABLES_BYTES_MAX / 2)));
        assert_eq!(environment.get("b"), "");
        environment.unset("a");
        assert!(environment.set("b", "x".repeat(VARIABLES_BYTES_MAX / 2)));
        assert!(environment.set("b", "y".repeat(VARIABLES_BYTES_MAX / 2)));
        assert_eq!(environment.bytes, VARIABLES_BYTES_MAX / 2 + 65);
    }
}
