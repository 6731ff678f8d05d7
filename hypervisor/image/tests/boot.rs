//! Whole disks: tables by `sfdisk`, file systems by `mke2fs`, menus as distributions write them.

#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // the tests have files, the crate has none

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use boot_image::kernel::{Kernel, KernelError, Lack, Payload, inspect};
use boot_image::partition::{Scheme, read};
use boot_image::{
    BootEntry, BootError, BootVolume, BoxedError, EntrySource, FileRef, FileSystem, OutOfRange, ReadAt,
    Window, probe,
};
use common::{Lab, kernel, noise, run};

/// A file as a volume.
struct Image(fs::File, u64);

impl Image {
    fn open(path: &Path) -> Self {
        let file = fs::File::open(path).expect("an image");
        let size = file.metadata().expect("it has a size").len();
        Self(file, size)
    }
}

impl ReadAt for Image {
    fn size(&self) -> u64 {
        self.1
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
        Ok(self.0.read_exact_at(buf, offset)?)
    }
}

const LINUX: &str = "type=0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// A root file system with one kernel, and what else is named.
fn root(lab: &Lab, more: &[(&str, &[u8])]) -> PathBuf {
    let kernel = kernel("6.1.0-37-amd64");
    let initrd = noise(200_000, 1);
    let mut files: Vec<(&str, &[u8])> = vec![
        ("boot/vmlinuz-6.1.0-37-amd64", &kernel),
        ("boot/initrd.img-6.1.0-37-amd64", &initrd),
        ("etc/fstab", b"UUID=0-1 / ext4 defaults 0 1\n"),
    ];
    files.extend(more);
    lab.ext4(
        "root",
        8192,
        &["-t", "ext4", "-U", "11111111-2222-3333-4444-555555555555"],
        &lab.tree("root.d", &files),
    )
}

fn menu(root: &str) -> String {
    format!(
        "search --fs-uuid --set=root {root}\nmenuentry 'Debian' --id deb {{\n linux /boot/vmlinuz-6.1.0-37-amd64 root=UUID={root} ro\n initrd /boot/initrd.img-6.1.0-37-amd64\n}}\nmenuentry 'Other' {{\n linux /boot/gone\n}}\n"
    )
}

fn read_all(volume: &BootVolume<'_>, file: &FileRef) -> Vec<u8> {
    let file = volume.open_file(file).unwrap_or_else(|error| panic!("{error}"));
    let mut bytes = vec![0; file.size() as usize];
    assert_eq!(file.read_at(0, &mut bytes).expect("it can be read"), bytes.len());
    bytes
}

fn check(volume: &BootVolume<'_>, entry: &BootEntry) {
    assert_eq!(read_all(volume, &entry.kernel), kernel("6.1.0-37-amd64"));
    assert_eq!(read_all(volume, &entry.initrds[0]), noise(200_000, 1));
    let Kernel::BzImage(kernel) = volume.inspect(entry).expect("a kernel") else { panic!("a bzImage") };
    assert_eq!(
        (kernel.release.as_str(), kernel.payload, kernel.protocol),
        ("6.1.0-37-amd64", Payload::Lz4, (2, 15))
    );
}

#[test]
fn every_kind_of_table_leads_to_the_menu() {
    let lab = Lab::new();
    let text = menu("11111111-2222-3333-4444-555555555555");
    let fs = root(&lab, &[("boot/grub/grub.cfg", text.as_bytes())]);
    let gpt = format!(
        "label: gpt\nstart=1MiB, size=1MiB, type=21686148-6449-6E6F-744E-656564454649\nstart=2MiB, size=8MiB, {LINUX}\n"
    );
    let logical = "label: dos\nstart=1MiB, size=1MiB, type=82\nstart=2MiB, size=20MiB, type=5\nstart=3MiB, size=2MiB, type=83\nstart=6MiB, size=8MiB, type=83\n";
    let mbr = "label: dos\nstart=1MiB, size=8MiB, type=83, bootable\n";
    for (script, start, number, scheme) in [
        (gpt.as_str(), 2, 2, Scheme::Gpt { from_backup: false }),
        (logical, 6, 6, Scheme::Mbr),
        (mbr, 1, 1, Scheme::Mbr),
    ] {
        let disk = lab.disk("disk", 24, script, &[(start, &fs)]);
        let image = Image::open(&disk);
        let volume = BootVolume::open(&image).unwrap_or_else(|error| panic!("{script}: {error}"));
        assert_eq!(volume.scheme(), scheme);
        let entry = volume.default_entry().expect("a default");
        assert_eq!((entry.name(), entry.position.as_str(), entry.source), ("deb", "0", EntrySource::Grub));
        assert_eq!(entry.kernel.partition, number, "{script}");
        assert!(entry.command_line.ends_with("root=UUID=11111111-2222-3333-4444-555555555555 ro"));
        check(&volume, entry);
        assert_eq!(volume.entries().len(), 2);
        let other = volume.entry("Other").expect("by its title");
        assert_eq!(volume.entry("1").expect("by its position"), other);
        assert!(matches!(volume.inspect(other), Err(BootError::File { .. })));
        let error = volume.entry("none").expect_err("there is none").to_string();
        assert!(error.contains("\"deb\"") && error.contains("\"Other\""), "{error}");
    }
    let image = Image::open(&fs);
    let volume = BootVolume::open(&image).expect("a file system without a table");
    assert_eq!(volume.scheme(), Scheme::Whole);
    check(&volume, volume.default_entry().expect("a default"));
}

#[test]
fn a_broken_gpt_is_read_from_its_backup() {
    let lab = Lab::new();
    let text = menu("11111111-2222-3333-4444-555555555555");
    let fs = root(&lab, &[("boot/grub/grub.cfg", text.as_bytes())]);
    let script = format!("label: gpt\nstart=1MiB, size=8MiB, {LINUX}, name=\"Wurzel\"\n");
    let disk = fs::read(lab.disk("disk", 12, &script, &[(1, &fs)])).expect("a disk");
    let table = read(&Window::whole(&disk)).expect("a table");
    assert_eq!(table.partitions[0].name, "Wurzel");
    assert_eq!((table.partitions[0].start, table.partitions[0].len), (1 << 20, 8 << 20));
    for at in [512, 512 + 16, 512 + 40, 512 + 72, 512 + 88, 1024 + 3, 1024 + 33] {
        let mut broken = disk.clone();
        broken[at] ^= 1;
        let found = read(&Window::whole(&broken)).expect("the backup");
        assert_eq!(found.scheme, Scheme::Gpt { from_backup: true }, "byte {at}");
        assert_eq!(found.partitions, table.partitions);
        assert!(BootVolume::open(&broken).is_ok());
        let backup = broken.len() - 512;
        broken[backup + 20 + (at % 50)] ^= 1;
        let error = BootVolume::open(&broken).err().expect("nothing is whole").to_string();
        assert!(error.contains("GPT is damaged"), "{error}");
    }
    // Endless tables take no memory.
    let mut endless = disk.clone();
    endless[512 + 80..512 + 84].fill(0xff);
    endless[512 + 16..512 + 20].fill(0);
    let sum = crc32fast::hash(&endless[512..512 + 92]);
    endless[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
    let backup = endless.len() - 512;
    endless[backup] ^= 1;
    assert!(
        BootVolume::open(&endless).err().expect("refused").to_string().contains("more than any real one")
    );
}

#[test]
fn a_boot_partition_of_its_own_is_preferred() {
    let lab = Lab::new();
    let (fedora, initrd) = (kernel("6.12.1"), noise(1000, 2));
    let entry = b"title Fedora\nversion 6.12.1\nlinux /vmlinuz-6.12.1\ninitrd /initramfs-6.12.1.img\noptions root=LABEL=x ro\n";
    let tree = lab.tree(
        "boot.d",
        &[
            ("vmlinuz-6.12.1", &fedora),
            ("initramfs-6.12.1.img", &initrd),
            ("loader/entries/aaa-6.12.1.conf", entry),
            ("loader/entries/aaa-6.2.0.conf", b"linux /vmlinuz-6.2.0\n"),
            ("loader/entries/uki.conf", b"title u\nefi /EFI/Linux/a.efi\n"),
            ("loader/loader.conf", b"timeout 3\n"),
        ],
    );
    let boot = lab.ext4("boot", 4096, &["-t", "ext4"], &tree);
    let text = menu("11111111-2222-3333-4444-555555555555");
    let root = root(&lab, &[("boot/grub/grub.cfg", text.as_bytes())]);
    let script = format!(
        "label: gpt\nstart=1MiB, size=8MiB, {LINUX}\nstart=9MiB, size=4MiB, type=BC13C2FF-59E6-4262-A352-B275FD6F7172\n"
    );
    let disk = lab.disk("disk", 16, &script, &[(1, &root), (9, &boot)]);
    let image = Image::open(&disk);
    let volume = BootVolume::open(&image).expect("it boots");
    let entry = volume.default_entry().expect("a default");
    assert_eq!((entry.title.as_str(), entry.source, entry.kernel.partition), ("Fedora", EntrySource::Bls, 2));
    assert_eq!(entry.command_line, "root=LABEL=x ro");
    assert_eq!(volume.entries().len(), 2);
    assert!(
        volume.notes().iter().any(|note| note.contains("uki.conf") && note.contains("EFI")),
        "{:?}",
        volume.notes()
    );
    // loader.conf chooses.
    fs::write(tree.join("loader/loader.conf"), "default aaa-6.2*\n").expect("a file");
    let boot = lab.ext4("boot2", 4096, &["-t", "ext4"], &tree);
    let disk = lab.disk("disk", 16, &script, &[(1, &root), (9, &boot)]);
    let image = Image::open(&disk);
    let volume = BootVolume::open(&image).expect("it boots");
    assert_eq!(volume.default_entry().expect("a default").id, "aaa-6.2.0");
}

#[test]
fn without_a_menu_the_newest_kernel_is_taken() {
    let lab = Lab::new();
    let newer = kernel("6.12.0-amd64");
    let fs = root(&lab, &[("boot/vmlinuz-6.12.0-amd64", &newer), ("boot/initrd.img-6.12.0-amd64", b"x")]);
    let image = Image::open(&fs);
    let volume = BootVolume::open(&image).expect("it boots");
    let entry = volume.default_entry().expect("a default");
    assert_eq!((entry.title.as_str(), entry.source), ("Linux 6.12.0-amd64", EntrySource::FileName));
    assert_eq!(entry.command_line, "root=UUID=0-1 ro");
    check(&volume, volume.entry("6.1.0-37-amd64").expect("the older one"));
}

#[test]
fn what_has_no_kernel_says_what_it_has() {
    let lab = Lab::new();
    let empty = lab.ext4("empty", 4096, &["-t", "ext4"], &lab.tree("empty.d", &[("x", b"x")]));
    let mut xfs = vec![0; 4096];
    xfs[..4].copy_from_slice(b"XFSB");
    let mut btrfs = vec![0; 0x1_1000];
    btrfs[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
    let mut luks = vec![0; 4096];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    let script = format!("label: gpt\n{}", format!("size=8MiB, {LINUX}\n").repeat(4));
    let paths: Vec<PathBuf> = [("xfs", xfs), ("btrfs", btrfs), ("luks", luks)]
        .into_iter()
        .map(|(name, bytes)| {
            let path = lab.path(name);
            fs::write(&path, bytes).expect("a file");
            path
        })
        .collect();
    let disk =
        lab.disk("disk", 40, &script, &[(1, &empty), (9, &paths[0]), (17, &paths[1]), (25, &paths[2])]);
    let image = Image::open(&disk);
    let error = BootVolume::open(&image).err().expect("there is no kernel").to_string();
    for part in [
        "partition 1 is ext4 without a menu or a kernel",
        "partition 2 is XFS, which is not read",
        "partition 3 is Btrfs",
        "partition 4 is an encrypted volume (LUKS)",
        "give the kernel and the initrd as files",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let nothing = vec![0; 1 << 20];
    let error = BootVolume::open(&nothing).err().expect("there is nothing").to_string();
    assert!(error.contains("the whole volume is nothing that is known"), "{error}");
    assert!(BootVolume::open(&Vec::new()).is_err());
}

#[test]
fn what_others_make_is_told_apart() {
    let lab = Lab::new();
    let image = lab.path("image");
    let path = image.display().to_string();
    let with = |program: &str, args: &[&str], size: u64| {
        fs::File::create(&image).and_then(|file| file.set_len(size)).expect("an image");
        run(program, &[args, &[&path]].concat());
        probe(&Window::whole(&Image::open(&image))).expect("it can be read")
    };
    assert_eq!(with("mke2fs", &["-q", "-F"], 4 << 20), FileSystem::Ext);
    assert_eq!(with("mkswap", &["-q"], 4 << 20), FileSystem::Swap);
}

#[test]
fn kernels_that_can_not_be_started_say_why() {
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = kernel("6.1");
        change(&mut file);
        inspect(&file)
    };
    assert!(matches!(with(&|_| ()), Ok(Kernel::BzImage(_))));
    assert!(matches!(with(&|file| file.clear()), Err(KernelError::Unknown)));
    assert!(matches!(with(&|file| file.truncate(0x230)), Err(KernelError::Unknown)));
    assert!(matches!(with(&|file| file[0x202] = 0), Err(KernelError::Unknown)));
    assert!(matches!(
        with(&|file| {
            file[0x202] = 0;
            file[..2].copy_from_slice(b"MZ");
        }),
        Err(KernelError::Efi)
    ));
    assert!(matches!(with(&|file| file[0x236] = 2), Err(KernelError::NoEntry64 { .. })));
    assert!(matches!(with(&|file| file[0x206] = 0x0b), Err(KernelError::NoEntry64 { major: 2, minor: 11 })));
    assert!(matches!(with(&|file| file.truncate(0x1000)), Err(KernelError::CutOff { .. })));
    assert!(matches!(with(&|file| file[0x231] = 3), Err(KernelError::Damaged(_))));
    assert!(matches!(with(&|file| file[0x24f] = 0xff), Err(KernelError::Damaged(_))));
    // ELF with and without a PVH entry.
    let mut elf = vec![0; 0x400];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    elf[18] = 62;
    elf[32] = 64;
    elf[54] = 56;
    assert!(matches!(inspect(&elf), Err(KernelError::NoPvh)));
    elf[56] = 2;
    let header = |kind: u32, offset: u64, address: u64, len: u64| {
        let mut header = [kind.to_le_bytes(), [0; 4]].concat();
        [offset, address, address, len, len, 8].iter().for_each(|it| header.extend(it.to_le_bytes()));
        header
    };
    elf[64..120].copy_from_slice(&header(1, 0x200, 0x100_0000, 0x200));
    elf[120..176].copy_from_slice(&header(4, 0x100, 0, 20));
    let note = [
        &4_u32.to_le_bytes()[..],
        &4_u32.to_le_bytes(),
        &18_u32.to_le_bytes(),
        b"Xen\0",
        &0x100_0010_u32.to_le_bytes(),
    ];
    elf[0x100..0x114].copy_from_slice(&note.concat());
    let Ok(Kernel::Pvh(pvh)) = inspect(&elf) else { panic!("{:?}", inspect(&elf)) };
    assert_eq!((pvh.entry, pvh.start, pvh.end), (0x100_0010, 0x100_0000, 0x100_0200));
    elf[0x113] = 0x80;
    assert!(matches!(inspect(&elf), Err(KernelError::Damaged(_))));
    elf[18] = 3;
    assert!(matches!(inspect(&elf), Err(KernelError::OtherMachine)));
}

#[test]
fn a_kernel_without_virtio_is_refused_by_its_configuration() {
    let lab = Lab::new();
    let text = menu("11111111-2222-3333-4444-555555555555");
    let config = b"CONFIG_X86_64=y\nCONFIG_PCI=y\nCONFIG_ACPI=y\n# CONFIG_VIRTIO_PCI is not set\nCONFIG_VIRTIO_BLK=y\n";
    let fs = root(&lab, &[("boot/grub/grub.cfg", text.as_bytes()), ("boot/config-6.1.0-37-amd64", config)]);
    let image = Image::open(&fs);
    let volume = BootVolume::open(&image).expect("it has a menu");
    let error =
        volume.inspect(volume.default_entry().expect("a default")).expect_err("no disk would be found");
    assert!(matches!(error, BootError::Drivers { lack: Lack::NotBuilt("CONFIG_VIRTIO_PCI"), .. }), "{error}");
}

/// A volume that fails in the middle is an error, not a volume with another menu.
#[test]
fn an_error_of_the_volume_is_none_of_the_menus() {
    struct Failing<'i>(&'i Image, std::cell::Cell<u32>);
    impl ReadAt for Failing<'_> {
        fn size(&self) -> u64 {
            self.0.size()
        }
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
            let left = self.1.get().checked_sub(1).ok_or(OutOfRange(offset))?;
            self.1.set(left);
            self.0.read_at(offset, buf)
        }
    }
    let lab = Lab::new();
    let text = menu("11111111-2222-3333-4444-555555555555");
    let fs = root(&lab, &[("boot/grub/grub.cfg", text.as_bytes())]);
    let image = Image::open(&fs);
    let mut failed = 0;
    for reads in 0.. {
        match BootVolume::open(&Failing(&image, std::cell::Cell::new(reads))) {
            Err(BootError::Read(_)) => failed += 1,
            Err(error) => panic!("after {reads} reads: {error}"),
            Ok(volume) => {
                assert_eq!(volume.default_entry().expect("a default").id, "deb", "after {reads} reads");
                break;
            }
        }
    }
    assert!(failed > 20, "{failed}");
}

/// The project's own guest, if it was built on this machine (deploy/guest/build).
#[test]
fn the_demos_guest_is_read() {
    let cache = std::env::var_os("FERRO_CACHE")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/ferrosphere")));
    let guests =
        cache.and_then(|cache| fs::read_dir(cache.join("guest")).ok()).into_iter().flatten().flatten();
    for guest in guests.filter(|guest| guest.path().join("complete").exists()) {
        let image = Image::open(&guest.path().join("root.raw"));
        let volume = BootVolume::open(&image).unwrap_or_else(|error| panic!("{error}"));
        let entry = volume.default_entry().expect("a default");
        println!("{entry:?}");
        let kernel = volume.inspect(entry).expect("Debian's kernel");
        println!("{kernel}");
        let beside = fs::read(guest.path().join("vmlinuz")).expect("its kernel");
        assert!(read_all(&volume, &entry.kernel) == beside, "the kernel is another one");
        assert!(!read_all(&volume, &entry.initrds[0]).is_empty());
    }
}
