//! Has a kernel the drivers for a virtual machine's devices? Told from the configuration that distributions keep beside
//! it (`/boot/config-RELEASE`). The file may be missing, and a module may be missing from the initrd: then the guest says
//! so itself, on its console.

use std::fmt;

/// The longest configuration; Debian's has 250 KiB.
pub const CONFIG_BYTES_MAX: u64 = 2 << 20;

/// Without these nothing starts. The second: whether a module in the initrd does as well.
const NEEDED: [(&str, bool); 5] = [
    ("CONFIG_X86_64", false),
    ("CONFIG_PCI", false),
    ("CONFIG_ACPI", false),
    ("CONFIG_VIRTIO_PCI", true),
    ("CONFIG_VIRTIO_BLK", true),
];

/// What a kernel has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It was built without.
    NotBuilt(&'static str),
    /// It has it as a module, and there is no initrd that could bring it.
    NoInitrd(&'static str),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt(option) => {
                write!(
                    f,
                    "it was built without {option} (take a kernel of a distribution, or build it with that)"
                )
            }
            Self::NoInitrd(option) => {
                write!(f, "{option} is a module of it, and the entry has no initrd to load that from")
            }
        }
    }
}

/// The first thing that a kernel of this configuration lacks.
pub fn lack(config: &str, has_initrd: bool) -> Option<Lack> {
    let value = |option: &str| {
        let lines = config.lines().filter_map(|line| line.trim().split_once('='));
        lines.filter(|(name, _)| *name == option).map(|(_, value)| value).next_back().unwrap_or("n")
    };
    // A text that is no configuration says nothing about the kernel.
    config.contains("CONFIG_").then_some(())?;
    NEEDED.iter().find_map(|(option, as_module)| match value(option) {
        "y" => None,
        "m" if *as_module && has_initrd => None,
        "m" if *as_module => Some(Lack::NoInitrd(option)),
        _ => Some(Lack::NotBuilt(option)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUD: &str = "# Linux/x86 6.1\nCONFIG_X86_64=y\nCONFIG_PCI=y\nCONFIG_ACPI=y\nCONFIG_VIRTIO_PCI=m\n\
        CONFIG_VIRTIO_BLK=m\n# CONFIG_VIRTIO_MMIO is not set\n";

    #[test]
    fn modules_need_an_initrd() {
        assert_eq!(lack(CLOUD, true), None);
        assert_eq!(lack(CLOUD, false), Some(Lack::NoInitrd("CONFIG_VIRTIO_PCI")));
        assert_eq!(lack(&CLOUD.replace("=m", "=y"), false), None);
    }

    #[test]
    fn what_is_not_built_is_named() {
        let without = CLOUD.replace("CONFIG_VIRTIO_BLK=m", "# CONFIG_VIRTIO_BLK is not set");
        assert_eq!(lack(&without, true), Some(Lack::NotBuilt("CONFIG_VIRTIO_BLK")));
        let pci = CLOUD.replace("CONFIG_PCI=y", "CONFIG_PCI=m");
        assert_eq!(lack(&pci, true), Some(Lack::NotBuilt("CONFIG_PCI")));
        assert_eq!(lack("", true), None, "no configuration says nothing");
    }
}
