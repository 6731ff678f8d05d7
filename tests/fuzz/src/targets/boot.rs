//! What a guest wrote to its volume, read at its next start: partition tables, ext4, GRUB's script, boot entries, kernels.

use std::collections::BTreeMap;

use boot_image::ext4::{Ext4, FileType};
use boot_image::grub::{Device, Files, Found, interpret, parse};
use boot_image::kernel::{Kernel, inspect, lack};
use boot_image::{
    BlsEntry, BootVolume, BoxedError, COMMAND_LINE_BYTES_MAX, OutOfRange, ReadAt, Window, partition,
};

/// A disk that is zeros but for some pieces, so that a file system fits into a short input. Each piece is its place in units
/// of 16 bytes (24 bits), its length (16 bits) and its bytes; what comes later is on top.
struct Sparse<'d> {
    pieces: Vec<(u64, &'d [u8])>,
    size: u64,
}

const PIECE_UNIT: u64 = 16;
/// Pieces of an input.
const PIECES_MAX: usize = 4096;

impl<'d> Sparse<'d> {
    fn new(data: &'d [u8], size: u64) -> Self {
        let (mut pieces, mut rest) = (Vec::new(), data);
        while let Some((head, more)) = rest.split_at_checked(5).filter(|_| pieces.len() < PIECES_MAX) {
            let place = u64::from(u32::from_le_bytes([head[0], head[1], head[2], 0])) * PIECE_UNIT;
            let len = usize::from(u16::from_le_bytes([head[3], head[4]])).min(more.len());
            pieces.push((place, &more[..len]));
            rest = &more[len..];
        }
        Self { pieces, size }
    }
}

impl ReadAt for Sparse<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.size);
        let end = end.ok_or(OutOfRange(offset))?;
        assert!(buf.len() <= 16 << 20, "a read of {} bytes", buf.len());
        buf.fill(0);
        for (place, bytes) in &self.pieces {
            let (from, to) = ((*place).max(offset), (*place + bytes.len() as u64).min(end));
            if from < to {
                let source = &bytes[(from - place) as usize..(to - place) as usize];
                buf[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
        Ok(())
    }
}

/// The pieces of a disk that are not zero.
fn pack(disk: &[u8]) -> Vec<u8> {
    let unit = PIECE_UNIT as usize;
    let (mut packed, mut at) = (Vec::new(), 0);
    while at < disk.len() {
        let is_zero = |from: usize| disk[from..disk.len().min(from + unit)].iter().all(|byte| *byte == 0);
        if is_zero(at) {
            at += unit;
            continue;
        }
        let start = at;
        while at < disk.len() && at - start < 0xff00 && !is_zero(at) {
            at += unit;
        }
        let bytes = &disk[start..at.min(disk.len())];
        packed.extend(&((start / unit) as u32).to_le_bytes()[..3]);
        packed.extend((bytes.len() as u16).to_le_bytes());
        packed.extend(bytes);
    }
    packed
}

pub(super) fn partitions(data: &[u8]) {
    let disk = Sparse::new(data, 64 << 20);
    let Ok(table) = partition::read(&Window::whole(&disk)) else { return };
    assert!(table.partitions.len() <= partition::PARTITIONS_MAX);
    for it in &table.partitions {
        assert!(it.len > 0 && it.start + it.len <= disk.size, "{it:?}");
    }
    if let Ok(volume) = BootVolume::open(&disk) {
        look(&volume);
    }
}

pub(super) fn partition_seeds() -> Vec<Vec<u8>> {
    let mut mbr = vec![0; 512];
    mbr[510..].copy_from_slice(&[0x55, 0xaa]);
    let entry = |kind: u8, first: u32, sectors: u32| {
        let mut entry = vec![0, 0, 0, 0, kind, 0, 0, 0];
        entry.extend(first.to_le_bytes());
        entry.extend(sectors.to_le_bytes());
        entry
    };
    let with = |entries: &[Vec<u8>]| {
        let mut sector = mbr.clone();
        for (n, entry) in entries.iter().enumerate() {
            sector[446 + 16 * n..462 + 16 * n].copy_from_slice(entry);
        }
        sector
    };
    let mut primary = with(&[entry(0x83, 8, 64), entry(0x05, 128, 512)]);
    primary.resize(400 * 512, 0);
    primary[128 * 512..129 * 512].copy_from_slice(&with(&[entry(0x83, 2, 20), entry(0x05, 64, 32)]));
    primary[192 * 512..193 * 512].copy_from_slice(&with(&[entry(0x83, 2, 20)]));
    let mut gpt = with(&[entry(0xee, 1, u32::MAX)]);
    let mut array = vec![0; 16 * 128];
    for n in 0..3_u8 {
        let at = 128 * usize::from(n);
        array[at..at + 32].fill(0x11 + n);
        array[at + 32..at + 40].copy_from_slice(&(64 + 64 * u64::from(n)).to_le_bytes());
        array[at + 40..at + 48].copy_from_slice(&(127 + 64 * u64::from(n)).to_le_bytes());
    }
    let mut header = b"EFI PART\0\0\x01\0\x5c\0\0\0".to_vec();
    header.resize(92, 0);
    header[24] = 1;
    header[72] = 2;
    header[80] = 16;
    header[84] = 128;
    header[88..92].copy_from_slice(&crc32fast::hash(&array).to_le_bytes());
    let sum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&sum.to_le_bytes());
    header.resize(512, 0);
    gpt.extend(header);
    gpt.extend(array);
    vec![pack(&primary), pack(&gpt)]
}

/// A whole-disk file system: everything in it is looked at, and what it boots.
pub(super) fn ext4(data: &[u8]) {
    let disk = Sparse::new(data, 4 << 20);
    if let Ok(fs) = Ext4::open(Window::whole(&disk)) {
        walk(&fs);
    }
    if let Ok(volume) = BootVolume::open(&disk) {
        look(&volume);
    }
}

fn walk(fs: &Ext4<'_>) {
    let mut open = vec![String::new()];
    let mut piece = vec![0; 5000];
    for _ in 0..40 {
        let Some(folder) = open.pop() else { break };
        for entry in fs.read_dir(&format!("{folder}/")).unwrap_or_default().into_iter().take(40) {
            let path = format!("{folder}/{}", entry.name);
            match fs.stat(&path) {
                Ok((FileType::Directory, _)) => open.push(path),
                Ok((FileType::Regular, size)) => {
                    let Ok(file) = fs.open_file(&path, 1 << 40) else { continue };
                    assert_eq!(file.size(), size);
                    for offset in [0, 1023, size / 2, size.saturating_sub(3), size, u64::MAX] {
                        let read = file.read_at(offset, &mut piece).unwrap_or(0);
                        assert!(read as u64 <= size.saturating_sub(offset));
                    }
                }
                _ => {}
            }
        }
    }
}

fn look(volume: &BootVolume<'_>) {
    for entry in volume.entries().iter().take(20) {
        assert!(entry.command_line.len() <= COMMAND_LINE_BYTES_MAX && !entry.command_line.contains('\0'));
        let _ = volume.inspect(entry).map(|kernel| kernel.to_string());
        let _ = volume.entry(entry.name());
    }
    let _ = volume.default_entry().map_err(|error| error.to_string());
}

/// The corpus has file systems of `mke2fs`; this is for who has none: what is nearly one.
pub(super) fn ext4_seeds() -> Vec<Vec<u8>> {
    let mut disk = vec![0; 64 << 10];
    let mut put = |at: usize, value: u32| disk[at..at + 4].copy_from_slice(&value.to_le_bytes());
    // Superblock: 16 inodes, 64 blocks of 1 KiB, one group, revision 1.
    for (at, value) in [
        (0, 16),
        (4, 64),
        (0x14, 1),
        (0x20, 8192),
        (0x28, 16),
        (0x38, 0xef53),
        (0x4c, 1),
        (0x58, 128),
        (0x60, 2),
    ] {
        put(1024 + at, value);
    }
    // The group's inodes are at block 4; inode 2 is a folder of block 8 with one file, inode 12, of block 9.
    put(2048 + 8, 4);
    for (inode, mode, size, block) in [(2, 0x41ed, 1024, 8), (12, 0x81a4, 40, 9)] {
        let at = 4096 + 128 * (inode - 1);
        put(at, mode);
        put(at + 4, size);
        put(at + 0x28, block);
    }
    put(8192, 2);
    put(8196, 0x0201_000c);
    put(8200, u32::from(b'.'));
    put(8204, 12);
    put(8208, 0x0108_03f4);
    disk[8212..8220].copy_from_slice(b"grub.cfg");
    disk[9216..9256].copy_from_slice(b"menuentry x { linux /grub.cfg root=x; }\n");
    vec![pack(&disk)]
}

/// Files that a script can find, all with the script itself in them.
struct Script<'s>(&'s str);

impl Files for Script<'_> {
    fn read(&self, device: &str, path: &str, size_max: u64) -> Option<Vec<u8>> {
        let there = device.starts_with("hd0") && path.len() < 40 && self.0.len() as u64 <= size_max;
        there.then(|| self.0.as_bytes().to_vec())
    }

    fn look(&self, device: &str, path: &str) -> Found {
        match (device, path.len() % 3) {
            ("hd0", 0) => Found::Folder,
            ("hd0", 1) => Found::File(path.len() as u64),
            _ => Found::Nothing,
        }
    }

    fn list(&self, _: &str, _: &str) -> Vec<String> {
        ["a.conf", "b+0-1.conf", "c"].map(str::to_owned).to_vec()
    }

    fn devices(&self) -> Vec<Device> {
        vec![Device { name: "hd0".to_owned(), uuid: "ab-12".to_owned(), label: "root".to_owned() }]
    }
}

pub(super) fn grub(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(script) = parse(&text) else { return };
    let menu = interpret(&script, &Script(&text), "hd0", "/boot/grub");
    assert!(menu.entries().len() <= 256);
    assert!(menu.default.is_empty() || menu.at(&menu.default).is_some());
    assert!(menu.default.is_empty() == menu.items.is_empty());
}

pub(super) fn grub_seeds() -> Vec<Vec<u8>> {
    [
        "if [ -s $prefix/grubenv ]; then\n load_env\nfi\nset default=\"${saved_entry}\"\nmenuentry 'D' --class x $menuentry_id_option 'id' {\n search --no-floppy --fs-uuid --set=root ab-12\n linux /vmlinuz root=UUID=x ro $a \"b c\"\n initrd /a ($root)/b\n}\nsubmenu 'S' { menuentry 'E' { linux /k; }; }\n",
        "function f { linux /k $1; return 1; }\nfor x in a b $y; do while [ x$x != xaaa -a ! -f /x ]; do x=a$x; done; done\nf z\nboot\n",
        "search --label root --set=boot\nblscfg\nlinux /k\ninitrd /i\noptions $kernelopts\nset default=\"0>1\"\n",
        "# GRUB Environment Block\nsaved_entry=1>2\nkernelopts=a\\\nb\n",
        "source /x; . /y; if false; then true; elif ! true; then exit; else unset a; fi; until true; do break; done\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// Boot entries: a name, a line's end, and the file. And the configuration of a kernel.
pub(super) fn entries(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (name, text) = text.split_once('\n').unwrap_or(("", &text));
    let _ = lack(text, name.is_empty());
    let Ok(entry) = BlsEntry::parse(name, text) else { return };
    assert!(!entry.linux.is_empty() && entry.initrds.len() <= 16);
    let mut by_id = BTreeMap::new();
    for line in text.lines().take(50) {
        if let Ok(other) = BlsEntry::parse(line, text) {
            let (there, back) = (entry.menu_order(&other), other.menu_order(&entry));
            assert_eq!(there, back.reverse(), "the order of {:?} and {:?}", entry.id, other.id);
            by_id.insert(other.id.clone(), other);
        }
    }
    // A menu can be sorted: the order is a total one, or the sort would say so.
    let mut all: Vec<BlsEntry> = by_id.into_values().collect();
    all.sort_by(BlsEntry::menu_order);
}

pub(super) fn entry_seeds() -> Vec<Vec<u8>> {
    [
        "m-6.1+1-2.conf\ntitle Fedora\nversion 6.1~rc1^a-b.1\nmachine-id m\nsort-key fedora\nlinux /vmlinuz\ninitrd /a\ninitrd /b $x\noptions root=x ro\noptions quiet\narchitecture x64\n",
        "k.conf\nlinux /k\n1.0~rc1\n1.0\n1.0-1\n1.0^p\n1.0.1\n001.a\n",
        "\nCONFIG_X86_64=y\nCONFIG_PCI=y\nCONFIG_ACPI=y\nCONFIG_VIRTIO_PCI=m\n# CONFIG_VIRTIO_BLK is not set\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(super) fn kernels(data: &[u8]) {
    let file = Sparse::new(data, 64 << 10);
    match inspect(&file) {
        Ok(Kernel::BzImage(it)) => {
            assert!(it.setup_bytes + it.system_bytes < file.size + 16 && it.alignment.is_power_of_two());
        }
        Ok(Kernel::Pvh(it)) => assert!(it.start <= it.entry && it.entry < it.end),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

pub(super) fn kernel_seeds() -> Vec<Vec<u8>> {
    let mut bz = vec![0; 0x800];
    for (at, bytes) in [
        (0x1f1, &[1][..]),
        (0x1f4, &[0x10, 0, 0, 0]),
        (0x1fe, &[0x55, 0xaa]),
        (0x202, b"HdrS\x0f\x02"),
        (0x20e, &[0xd0]),
        (0x211, &[1]),
        (0x232, &[0x20, 0, 1, 0, 3, 0, 0xff, 7]),
        (0x2d0, b"6.1.0-37-amd64 (x)"),
        (0x400, &[0x28, 0xb5, 0x2f, 0xfd]),
    ] {
        bz[at..at + bytes.len()].copy_from_slice(bytes);
    }
    let mut elf = vec![0; 0x400];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    (elf[18], elf[32], elf[54], elf[56]) = (62, 64, 56, 2);
    elf[64] = 1;
    (elf[64 + 34], elf[64 + 42]) = (1, 1);
    elf[120] = 4;
    (elf[120 + 9], elf[120 + 32]) = (1, 20);
    elf[0x100..0x114].copy_from_slice(b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\x10\0\0\0");
    vec![pack(&bz), pack(&elf)]
}
