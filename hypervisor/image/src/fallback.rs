//! A `/boot` without a menu: the newest kernel with its initrd, and the root file system that `/etc/fstab` names.

use crate::version::compare;

/// How kernels are called.
const KERNELS: [&str; 2] = ["vmlinuz-", "vmlinux-"];

/// A kernel and the initrd of the same version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) version: String,
    pub(crate) kernel: String,
    pub(crate) initrd: Option<String>,
}

/// The kernels among these names, the newest first; rescue kernels and those without an initrd behind all others.
pub(crate) fn pairs(names: &[&str]) -> Vec<Pair> {
    let there = |name: &String| names.contains(&name.as_str());
    let mut found: Vec<Pair> = names
        .iter()
        .filter_map(|name| {
            let version = KERNELS.iter().find_map(|prefix| name.strip_prefix(prefix))?;
            // What a package manager leaves beside, and what a kernel's own package signs it with.
            let other = [".old", ".bak", ".sig", ".hmac", ".dpkg-new", ".dpkg-tmp"];
            if version.is_empty() || other.iter().any(|suffix| version.ends_with(suffix)) {
                return None;
            }
            let initrds = [
                format!("initrd.img-{version}"),
                format!("initramfs-{version}.img"),
                format!("initrd-{version}"),
                format!("initrd-{version}.img"),
            ];
            let initrd = initrds.into_iter().find(there);
            Some(Pair { version: version.to_owned(), kernel: (*name).to_owned(), initrd })
        })
        .collect();
    let rank = |pair: &Pair| (pair.version.contains("rescue"), pair.initrd.is_none());
    found.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| compare(&b.version, &a.version)));
    found
}

/// What an `/etc/fstab` has for `/`, as a kernel's or an initrd's `root=` takes it.
pub(crate) fn root_of(fstab: &str) -> Option<String> {
    fstab.lines().map(str::trim).filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = line.split_whitespace();
        let (what, at) = (fields.next()?, fields.next()?);
        let known = ["/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="];
        let usable = at == "/" && known.iter().any(|prefix| what.starts_with(prefix));
        usable.then(|| what.replace('"', ""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_pair_is_first() {
        let names = [
            "System.map-6.1.0-9-amd64",
            "config-6.1.0-9-amd64",
            "initrd.img-6.1.0-10-amd64",
            "initrd.img-6.1.0-9-amd64",
            "initramfs-6.12.1-200.fc41.x86_64.img",
            "vmlinuz-0-rescue-0123",
            "initramfs-0-rescue-0123.img",
            "vmlinuz-6.1.0-10-amd64",
            "vmlinuz-6.1.0-9-amd64",
            "vmlinuz-6.12.1-200.fc41.x86_64",
            "vmlinuz-6.13.0",
            "vmlinuz-6.14.0.old",
            "vmlinuz",
            "vmlinuz-",
        ];
        let versions: Vec<String> = pairs(&names).into_iter().map(|pair| pair.version).collect();
        let expected =
            ["6.12.1-200.fc41.x86_64", "6.1.0-10-amd64", "6.1.0-9-amd64", "6.13.0", "0-rescue-0123"];
        assert_eq!(versions, expected);
        assert_eq!(pairs(&names)[0].initrd.as_deref(), Some("initramfs-6.12.1-200.fc41.x86_64.img"));
    }

    #[test]
    fn the_root_is_what_fstab_says() {
        let fstab = "# <file system>\nproc /proc proc\nUUID=\"ab-cd\" / ext4 errors=remount-ro 0 1\n/dev/vdb / ext4\n";
        assert_eq!(root_of(fstab).as_deref(), Some("UUID=ab-cd"));
        assert_eq!(root_of("overlay / overlay"), None);
        assert_eq!(root_of(""), None);
    }
}
