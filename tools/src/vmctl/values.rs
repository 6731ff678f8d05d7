//! What options can say, read from text: disks, network cards, parts of a processor.
//!
//! Numbers and names are only read here. Whether a VM can have that many of something is for the daemon to say, with every
//! other fault.

use clap::ValueEnum;
use ferro_protocol::api::parse_size;
use ferro_protocol::api::vm::spec::{DiskSpec, HugePages, NicSpec, RestartSpec, VmmSpec};

use crate::values::OrNone;

/// A disk, as in `web1-root` or `iso,ro`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskWord(pub DiskSpec);

impl std::str::FromStr for DiskWord {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (volume, read_only) = match text.split_once(',') {
            None => (text, false),
            Some((volume, "ro" | "read-only")) => (volume, true),
            Some((_, other)) => {
                return Err(format!(
                    "{other:?} is nothing that a disk can be: write VOLUME, or VOLUME,ro to have it only read"
                ));
            }
        };
        Ok(Self(DiskSpec { volume: volume.to_owned(), read_only }))
    }
}

/// A network card, as in `blue` or `blue,mac=52:54:00:00:00:01`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicWord(pub NicSpec);

impl std::str::FromStr for NicWord {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let portgroup = parts.next().unwrap_or_default().to_owned();
        let mut nic = NicSpec { portgroup, mac: None, port: None };
        for part in parts {
            let place = match part.split_once('=') {
                Some(("mac", value)) => (&mut nic.mac, value),
                Some(("port", value)) => (&mut nic.port, value),
                _ => {
                    return Err(format!(
                        "{part:?} is nothing that a network card can be: write GROUP, with ,mac=MAC and ,port=NAME if you like"
                    ));
                }
            };
            if place.0.replace(place.1.to_owned()).is_some() {
                return Err(format!("{part:?} is the second of its kind"));
            }
        }
        Ok(Self(nic))
    }
}

/// What becomes of a VM that fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum RestartWord {
    /// It stays off
    Never,
    /// It is started again, three times an hour
    OnFailure,
}

impl From<RestartWord> for RestartSpec {
    fn from(word: RestartWord) -> Self {
        match word {
            RestartWord::Never => Self::Never,
            RestartWord::OnFailure => Self::OnFailure,
        }
    }
}

/// What runs a VM.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum VmmWord {
    /// vmm where KVM runs stock kernels, else QEMU
    Auto,
    /// vmm, under KVM
    Kvm,
    /// QEMU's emulation: any machine, slower
    Qemu,
}

impl From<VmmWord> for VmmSpec {
    fn from(word: VmmWord) -> Self {
        match word {
            VmmWord::Auto => Self::Auto,
            VmmWord::Kvm => Self::Kvm,
            VmmWord::Qemu => Self::Qemu,
        }
    }
}

/// A size of huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HugePagesWord(pub HugePages);

/// A size of huge pages, or `none`.
pub fn huge_pages_or_none(text: &str) -> Result<OrNone<HugePagesWord>, String> {
    if text == "none" {
        return Ok(OrNone::None);
    }
    match parse_size(text) {
        Ok(bytes) if bytes == HugePages::TwoMib.bytes() => Ok(OrNone::Some(HugePagesWord(HugePages::TwoMib))),
        Ok(bytes) if bytes == HugePages::OneGib.bytes() => Ok(OrNone::Some(HugePagesWord(HugePages::OneGib))),
        _ => Err(format!("{text:?} is no size of huge pages: write 2M, 1G or none")),
    }
}

/// A size.
pub fn bytes(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|bad| bad.to_string())
}

/// A size, or `none`.
pub fn bytes_or_none(text: &str) -> Result<OrNone<u64>, String> {
    if text == "none" { Ok(OrNone::None) } else { bytes(text).map(OrNone::Some) }
}

/// Percent of one processor, as in `150%` or `150`.
pub fn percent(text: &str) -> Result<u32, String> {
    let bad = || format!("{text:?} is no percentage of one processor: write a whole number, as in 150%");
    text.strip_suffix('%').unwrap_or(text).trim().parse().map_err(|_| bad())
}

/// Percent of one processor, or `none`.
pub fn percent_or_none(text: &str) -> Result<OrNone<u32>, String> {
    if text == "none" { Ok(OrNone::None) } else { percent(text).map(OrNone::Some) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_and_cards_are_read() {
        let disk = |text: &str| text.parse::<DiskWord>().map(|it| (it.0.volume, it.0.read_only));
        assert_eq!(disk("web1-root"), Ok(("web1-root".to_owned(), false)));
        assert_eq!(disk("iso,ro"), Ok(("iso".to_owned(), true)));
        assert!(disk("iso,rw").is_err() && disk("iso,").is_err());
        let nic = |text: &str| text.parse::<NicWord>().map(|it| (it.0.portgroup, it.0.mac, it.0.port));
        assert_eq!(nic("blue"), Ok(("blue".to_owned(), None, None)));
        let full = ("blue".to_owned(), Some("52:54:00:00:00:01".to_owned()), Some("web".to_owned()));
        assert_eq!(nic("blue,port=web,mac=52:54:00:00:00:01"), Ok(full));
        for bad in ["blue,", "blue,mac", "blue,mtu=1500", "blue,mac=1,mac=2"] {
            assert!(nic(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_of_processors_and_sizes_are_read() {
        assert_eq!((percent("150%"), percent("7")), (Ok(150), Ok(7)));
        assert_eq!(percent_or_none("none"), Ok(OrNone::None));
        for bad in ["", "%", "-1", "1.5", "none", "10%%"] {
            assert!(percent(bad).is_err(), "{bad}");
        }
        let pages = |text: &str| huge_pages_or_none(text).map(|it| it.get().map(|it| it.0));
        assert_eq!(pages("2M"), Ok(Some(HugePages::TwoMib)));
        assert_eq!(pages("1GiB"), Ok(Some(HugePages::OneGib)));
        assert_eq!(pages("none"), Ok(None));
        assert!(pages("4M").is_err() && bytes("x").is_err() && bytes_or_none("").is_err());
    }
}
