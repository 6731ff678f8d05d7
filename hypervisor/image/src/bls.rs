//! Entries of the Boot Loader Specification, type 1: one text file an entry, in `/loader/entries`.
//!
//! Read for GRUB's `blscfg` (Fedora and its kin, where values may have GRUB's variables in them) and by themselves
//! (systemd-boot's layout, if its partition is one that is read).

use std::cmp::Ordering;
use std::fmt;

use crate::version::compare;

/// The longest file.
pub(crate) const ENTRY_BYTES_MAX: u64 = 64 << 10;
/// Files in the folder that are looked at.
pub(crate) const ENTRY_FILES_MAX: usize = 256;
const INITRDS_MAX: usize = 16;

/// One entry, as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlsEntry {
    /// The file's name without `.conf` and without the count of attempts.
    pub id: String,
    /// For people.
    pub title: String,
    /// The kernel's version.
    pub version: String,
    /// What entries are sorted by first, if they have it.
    pub sort_key: String,
    /// The installation that it belongs to.
    pub machine_id: String,
    /// The kernel, from the root of the entry's file system.
    pub linux: String,
    /// The initrds, in order.
    pub initrds: Vec<String>,
    /// The command line.
    pub options: String,
    /// Boot counting: no attempt is left, and it was never found good.
    pub failed: bool,
}

/// Why an entry is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlsProblem {
    /// It starts an EFI program, such as a unified kernel image.
    Efi,
    /// It names no kernel.
    NoLinux,
    /// It is for another processor.
    Architecture,
    /// It has more initrds than anybody needs.
    TooManyInitrds,
}

impl fmt::Display for BlsProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Efi => "starts an EFI program (a unified kernel image needs UEFI firmware)",
            Self::NoLinux => "names no kernel",
            Self::Architecture => "is for another processor",
            Self::TooManyInitrds => "has too many initrds",
        })
    }
}

impl BlsEntry {
    /// From the file `name`, whose contents are `text`.
    ///
    /// # Errors
    ///
    /// If it is no entry that can be started.
    pub fn parse(name: &str, text: &str) -> Result<Self, BlsProblem> {
        let (id, failed) = identity(name);
        let mut entry = Self { id, failed, ..Self::default() };
        let mut efi = false;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim();
            match key {
                "title" => value.clone_into(&mut entry.title),
                "version" => value.clone_into(&mut entry.version),
                "sort-key" => value.clone_into(&mut entry.sort_key),
                "machine-id" => value.clone_into(&mut entry.machine_id),
                "linux" => value.clone_into(&mut entry.linux),
                "initrd" => {
                    if entry.initrds.len() >= INITRDS_MAX {
                        return Err(BlsProblem::TooManyInitrds);
                    }
                    entry.initrds.push(value.to_owned());
                }
                "options" => {
                    if !entry.options.is_empty() && !value.is_empty() {
                        entry.options.push(' ');
                    }
                    entry.options.push_str(value);
                }
                "efi" | "uki" | "uki-url" => efi = true,
                "architecture"
                    if !matches!(value.to_ascii_lowercase().as_str(), "x64" | "x86-64" | "x86_64") =>
                {
                    return Err(BlsProblem::Architecture);
                }
                _ => {}
            }
        }
        if entry.linux.is_empty() {
            return Err(if efi { BlsProblem::Efi } else { BlsProblem::NoLinux });
        }
        if entry.title.is_empty() {
            entry.title.clone_from(&entry.id);
        }
        Ok(entry)
    }

    /// The order of a menu: the newest first, and what has failed last.
    pub fn menu_order(&self, other: &Self) -> Ordering {
        let keyed = |it: &Self| !it.sort_key.is_empty();
        let by_key = || match (keyed(self), keyed(other)) {
            (true, true) => (self.sort_key.cmp(&other.sort_key))
                .then_with(|| self.machine_id.cmp(&other.machine_id))
                .then_with(|| compare(&other.version, &self.version)),
            (a, b) => b.cmp(&a),
        };
        self.failed.cmp(&other.failed).then_with(by_key).then_with(|| compare(&other.id, &self.id))
    }
}

/// Whether a file in the folder is one of them.
pub(crate) fn is_entry_file(name: &str) -> bool {
    name.strip_suffix(".conf").is_some_and(|id| !id.is_empty())
}

/// The identifier in a file's name, and whether it has failed: `fedora+0-3.conf` was tried three times.
fn identity(name: &str) -> (String, bool) {
    let stem = name.strip_suffix(".conf").unwrap_or(name);
    if let Some((id, counts)) = stem.rsplit_once('+') {
        let left = counts.split('-').next().unwrap_or_default();
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if counts.split('-').all(digits) && counts.split('-').count() <= 2 {
            return (id.to_owned(), left.bytes().all(|byte| byte == b'0'));
        }
    }
    (stem.to_owned(), false)
}

/// The default that `loader.conf` wants: a pattern for identifiers.
pub(crate) fn default_pattern(text: &str) -> Option<&str> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let values = lines.filter_map(|line| line.split_once([' ', '\t'])).filter(|(key, _)| *key == "default");
    values
        .map(|(_, value)| value.trim())
        .next_back()
        .map(|value| value.strip_suffix(".conf").unwrap_or(value))
}

/// Whether a name fits a pattern with `*` and `?`. Takes time by the product of their lengths at most.
pub(crate) fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                // The star takes one more.
                Some((at, from)) => {
                    (p, n) = (at + 1, from + 1);
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEDORA: &str = "title Fedora Linux (6.12.1) 41\nversion 6.12.1-200.fc41.x86_64\n\
        linux /vmlinuz-6.12.1-200.fc41.x86_64\ninitrd /initramfs-6.12.1-200.fc41.x86_64.img $tuned_initrd\n\
        options root=UUID=1 ro $kernelopts\noptions  quiet\n# a remark\ngrub_users $grub_users\n";

    #[test]
    fn an_entry_of_fedora_is_read() {
        let entry = BlsEntry::parse("0123-6.12.1.conf", FEDORA).expect("an entry");
        assert_eq!(entry.id, "0123-6.12.1");
        assert_eq!(entry.linux, "/vmlinuz-6.12.1-200.fc41.x86_64");
        assert_eq!(entry.initrds, ["/initramfs-6.12.1-200.fc41.x86_64.img $tuned_initrd"]);
        assert_eq!(entry.options, "root=UUID=1 ro $kernelopts quiet");
        assert!(!entry.failed);
    }

    #[test]
    fn what_can_not_be_started_says_why() {
        assert_eq!(BlsEntry::parse("a.conf", "title x\nefi /EFI/Linux/a.efi"), Err(BlsProblem::Efi));
        assert_eq!(BlsEntry::parse("a.conf", "title x"), Err(BlsProblem::NoLinux));
        assert_eq!(BlsEntry::parse("a.conf", "linux /a\narchitecture aa64"), Err(BlsProblem::Architecture));
        assert_eq!(
            BlsEntry::parse("a.conf", &format!("linux /a\n{}", "initrd /b\n".repeat(17))),
            Err(BlsProblem::TooManyInitrds)
        );
    }

    #[test]
    fn the_newest_is_first_and_the_failed_last() {
        let entry =
            |name: &str, more: &str| BlsEntry::parse(name, &format!("linux /x\n{more}")).expect("an entry");
        let mut all = [
            entry("m-6.1.9.conf", ""),
            entry("m-6.12.0+0-3.conf", ""),
            entry("m-6.1.10+2.conf", ""),
            entry("k1.conf", "sort-key debian\nversion 6.1"),
            entry("k2.conf", "sort-key debian\nversion 6.12"),
        ];
        all.sort_by(BlsEntry::menu_order);
        let ids: Vec<&str> = all.iter().map(|entry| entry.id.as_str()).collect();
        assert_eq!(ids, ["k2", "k1", "m-6.1.10", "m-6.1.9", "m-6.12.0"]);
    }

    #[test]
    fn patterns_fit() {
        for (pattern, name) in [("*", ""), ("a*", "abc"), ("*-6.*", "m-6.1"), ("a?c", "abc"), ("", "")] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("a", ""), ("a*d", "abc"), ("?", ""), ("", "a"), ("*x*y", "xyz")] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        assert_eq!(default_pattern("timeout 3\ndefault  a*.conf\n"), Some("a*"));
        assert_eq!(default_pattern("#default x\n"), None);
    }
}
