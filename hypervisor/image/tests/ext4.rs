//! File systems of many kinds, made by `mke2fs`, compared with what was put into them and with what `debugfs` reads.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // the tests have files, the crate has none

mod common;

use std::fs;
use std::path::Path;

use boot_image::Window;
use boot_image::ext4::{Ext4, Ext4Error, FileType};
use common::{Lab, cat, contents, debugfs, everything, noise, opened};

/// Features as distributions have had them, and some that nobody combines.
const KINDS: &[(&str, &[&str])] = &[
    ("ext4", &["-t", "ext4"]),
    ("ext4 of Debian 8", &["-t", "ext4", "-O", "^metadata_csum,^64bit"]),
    ("ext4, 1 KiB", &["-t", "ext4", "-b", "1024"]),
    ("ext4, 64 KiB", &["-t", "ext4", "-b", "65536", "-O", "^has_journal"]),
    ("ext4 without journal", &["-t", "ext4", "-O", "^has_journal"]),
    ("ext4, inline data", &["-t", "ext4", "-O", "inline_data", "-I", "512"]),
    ("ext4, block maps with checksums", &["-t", "ext4", "-O", "^extent,^64bit"]),
    (
        "ext4, meta_bg",
        &["-t", "ext4", "-b", "1024", "-g", "256", "-O", "meta_bg,^resize_inode", "-N", "2048"],
    ),
    (
        "ext4, sparse_super2",
        &["-t", "ext4", "-b", "1024", "-g", "256", "-O", "sparse_super2,meta_bg,^resize_inode"],
    ),
    ("ext4, bigalloc", &["-t", "ext4", "-O", "bigalloc", "-C", "16384"]),
    (
        "ext4, checksum seed, large_dir, ea_inode",
        &["-t", "ext4", "-O", "metadata_csum_seed,large_dir,ea_inode,mmp"],
    ),
    ("ext4, no directory index", &["-t", "ext4", "-O", "^dir_index,^flex_bg"]),
    ("ext4, casefold, encrypt", &["-t", "ext4", "-O", "casefold,encrypt"]),
    ("ext4, inodes of 128", &["-t", "ext4", "-I", "128", "-O", "^metadata_csum"]),
    ("ext3", &["-t", "ext3"]),
    ("ext2", &["-t", "ext2", "-b", "1024"]),
    ("ext2, no file types", &["-t", "ext2", "-O", "none"]),
];

fn tree(lab: &Lab) -> (std::path::PathBuf, Vec<(String, Vec<u8>)>) {
    let long = "l".repeat(200);
    let mut files: Vec<(String, Vec<u8>)> = vec![
        ("boot/vmlinuz-6.1".to_owned(), noise(1 << 20, 1)),
        ("boot/grub/grub.cfg".to_owned(), b"menuentry x {\n}\n".to_vec()),
        ("boot/empty".to_owned(), Vec::new()),
        ("boot/one".to_owned(), vec![7]),
        ("boot/inline-59".to_owned(), noise(59, 2)),
        ("boot/inline-61".to_owned(), noise(61, 3)),
        ("boot/inline-150".to_owned(), noise(150, 4)),
        (format!("boot/{long}"), noise(5000, 5)),
        // Written as noise, a hole of 6 MiB, and one more byte.
        ("holes".to_owned(), [noise(300_000, 6), vec![0; 6 << 20], vec![1]].concat()),
    ];
    files.extend(
        (0..600).map(|n| (format!("many/file-with-a-rather-long-name-{n:05}"), noise(n % 90, n as u64))),
    );
    let mut made: Vec<(&str, &[u8])> =
        files.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    let slow = format!("slow -> {}/boot/one", "./".repeat(60));
    made.extend([
        ("fast -> boot/one", &[][..]),
        (slow.as_str(), &[]),
        ("absolute -> /boot/../boot/one", &[]),
        ("twice -> fast", &[]),
        ("folder -> boot", &[]),
        ("dangling -> nowhere", &[]),
        ("loop -> loop", &[]),
    ]);
    (lab.tree("tree", &made), files)
}

#[test]
fn every_kind_of_file_system_is_read() {
    let lab = Lab::new();
    let (tree, files) = tree(&lab);
    for (kind, options) in KINDS {
        println!("{kind}");
        // Each file takes a block at least.
        let kib = if options.contains(&"65536") { 96 << 10 } else { 32 << 10 };
        let image = lab.ext4("image", kib, options, &tree);
        let bytes = fs::read(&image).expect("an image");
        let fs = opened(&bytes);
        assert_eq!(fs.replayed_blocks(), 0);
        for (name, data) in &files {
            assert!(contents(&fs, &format!("/{name}")) == *data, "{kind}: {name}");
        }
        for link in ["fast", "slow", "absolute", "twice", "folder/one", "many/../fast", "./boot/./one"] {
            assert_eq!(contents(&fs, link), [7], "{kind}: {link}");
        }
        assert_eq!(fs.read_dir("/many").expect("a folder").len(), 600, "{kind}");
        assert!(matches!(fs.stat("/dangling"), Err(Ext4Error::NotFound { .. })));
        assert!(matches!(fs.stat("/loop"), Err(Ext4Error::TooManyLinks { .. })));
        assert!(matches!(fs.open_file("/boot", 1), Err(Ext4Error::WrongType { .. })));
        assert!(matches!(fs.read_dir("/boot/one"), Err(Ext4Error::WrongType { .. })));
        assert!(matches!(fs.stat("/boot/one/x"), Err(Ext4Error::WrongType { .. })));
        assert!(matches!(fs.open_file("/boot/vmlinuz-6.1", (1 << 20) - 1), Err(Ext4Error::TooLarge { .. })));
        assert_eq!(fs.stat("/many").expect("there").0, FileType::Directory);
        for name in ["/boot/vmlinuz-6.1", "/boot/inline-150", "/holes"] {
            assert!(contents(&fs, name) == cat(&image, name), "{kind}: {name} by debugfs");
        }
    }
}

/// A file of many pieces has a tree of extents, or indirect blocks of the third level.
#[test]
fn a_file_in_a_thousand_pieces_is_read() {
    let lab = Lab::new();
    let tree = lab.tree("tree", &[("x", b"x")]);
    for options in [&["-t", "ext4", "-b", "1024"][..], &["-t", "ext3", "-b", "1024"]] {
        let image = lab.ext4("image", 6 << 10, options, &tree);
        // Every other block is freed again, so that what comes next is scattered.
        let source = lab.path("data");
        let filler = noise(2 << 20, 1);
        fs::write(&source, &filler).expect("a file");
        let mut script = vec![format!("write {} filler", source.display())];
        script.extend((0..1600).step_by(2).map(|n| format!("punch filler {n} {n}")));
        debugfs(&image, &script);
        let pieces = noise(3 << 20, 2);
        fs::write(&source, &pieces).expect("a file");
        debugfs(&image, &[format!("write {} pieces", source.display())]);
        let bytes = fs::read(&image).expect("an image");
        let fs = opened(&bytes);
        assert!(contents(&fs, "/pieces") == pieces, "{options:?}");
        assert!(contents(&fs, "/filler") == cat(&image, "/filler"), "{options:?}: with holes");
    }
}

#[test]
fn unwritten_extents_read_as_zeros() {
    let lab = Lab::new();
    let image = lab.ext4("image", 8192, &["-t", "ext4"], &lab.tree("tree", &[("x", &vec![0xff; 50_000])]));
    debugfs(&image, &["fallocate x 4 9".to_owned(), "rm x".to_owned(), "write /dev/null y".to_owned()]);
    debugfs(&image, &["fallocate y 0 3".to_owned(), "sif y size 16384".to_owned()]);
    let bytes = fs::read(&image).expect("an image");
    assert_eq!(contents(&opened(&bytes), "/y"), vec![0; 16_384]);
}

#[test]
fn what_is_not_supported_is_named() {
    let lab = Lab::new();
    let tree = lab.tree("tree", &[("x", b"x")]);
    let refused = |image: &Path| {
        let bytes = fs::read(image).expect("an image");
        let error = Ext4::open(Window::whole(&bytes)).expect_err("it is refused");
        error.to_string()
    };
    let image = lab.ext4("image", 8192, &["-t", "ext4", "-O", "^metadata_csum"], &tree);
    for (bit, name) in [(0x1_u32, "compression"), (0x4000_0000, "0x40000000"), (0x1000, "dirdata")] {
        let mut bytes = fs::read(&image).expect("an image");
        let at = 1024 + 0x60;
        let features = u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        bytes[at..at + 4].copy_from_slice(&(features | bit).to_le_bytes());
        let changed = lab.path("changed");
        fs::write(&changed, bytes).expect("an image");
        assert!(refused(&changed).contains(name), "{name}: {}", refused(&changed));
    }
    let journal = lab.path("journal");
    common::run("mke2fs", &["-q", "-F", "-O", "journal_dev", &journal.display().to_string(), "8192k"]);
    assert!(refused(&journal).contains("journal_dev"));
}

/// A byte that flips in metadata with checksums is noticed; one that flips in a file's contents is the guest's.
#[test]
fn damaged_metadata_is_noticed() {
    let lab = Lab::new();
    let many: Vec<(String, Vec<u8>)> =
        (0..80).map(|n| (format!("many/file-with-a-long-name-{n:03}"), vec![n])).collect();
    let mut files: Vec<(&str, &[u8])> =
        many.iter().map(|(name, data)| (name.as_str(), data.as_slice())).collect();
    let (kernel, link) =
        (noise(60_000, 1), format!("slow -> {}many/file-with-a-long-name-007", "./".repeat(40)));
    files.extend([("boot/vmlinuz-6.1", kernel.as_slice()), (link.as_str(), &[])]);
    let options = ["-t", "ext4", "-b", "1024", "-O", "^has_journal,^resize_inode", "-N", "128"];
    let image = lab.ext4("image", 384, &options, &lab.tree("tree", &files));
    let mut bytes = fs::read(&image).expect("an image");
    let whole = everything(&opened(&bytes));
    let (mut noticed, mut harmless) = (0, 0);
    let mut last = 1024;
    for at in (1024..bytes.len()).step_by(211) {
        bytes[last] ^= if last == 1024 { 0 } else { 0x10 };
        bytes[at] ^= if at == 1024 { 0 } else { 0x10 };
        last = at;
        let Ok(fs) = Ext4::open(Window::whole(&bytes)) else {
            noticed += 1;
            continue;
        };
        // Looking at it must end, whatever it says.
        for name in ["/boot/vmlinuz-6.1", "/many/file-with-a-long-name-070", "/slow"] {
            match fs.read_file(name, 1 << 30) {
                Ok(data) => {
                    let expected = whole.iter().find(|(path, _)| path == name).map(|(_, data)| data);
                    let wrong = expected.map_or(0, |expected| {
                        assert_eq!(expected.len(), data.len(), "{name} at {at}");
                        data.iter().zip(expected).filter(|(a, b)| a != b).count()
                    });
                    assert!(wrong <= 1, "{name} at {at}: {wrong} bytes");
                    harmless += 1;
                }
                Err(_) => noticed += 1,
            }
        }
    }
    assert!(noticed > 5 && harmless > 1000, "{noticed} {harmless}");
}

/// The hostile ones that a well-known reader of ext4 died of.
#[test]
fn impossible_sizes_take_no_memory() {
    let lab = Lab::new();
    let image = lab.ext4(
        "image",
        8192,
        &["-t", "ext4", "-O", "^metadata_csum"],
        &lab.tree(
            "tree",
            &[
                (
                    "long -> aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                    b"",
                ),
                ("x", b"x"),
            ],
        ),
    );
    debugfs(&image, &["sif long size 0x100000000000".to_owned(), "sif x size 0xffffffffffff".to_owned()]);
    let bytes = fs::read(&image).expect("an image");
    let fs = opened(&bytes);
    assert!(matches!(fs.stat("/long"), Err(Ext4Error::PathTooLong)));
    assert!(matches!(fs.open_file("/x", u64::MAX >> 1), Ok(_) | Err(Ext4Error::TooLarge { .. })));
    assert!(matches!(fs.open_file("/x", 1 << 30), Err(Ext4Error::TooLarge { .. })));
    let groups = {
        let mut bytes = bytes.clone();
        // Blocks without end, one to a group.
        bytes[1024 + 4..1024 + 8].fill(0xff);
        bytes[1024 + 0x20..1024 + 0x24].copy_from_slice(&1_u32.to_le_bytes());
        bytes
    };
    let error = Ext4::open(Window::whole(&groups)).expect_err("it is refused");
    assert!(error.to_string().contains("larger than its partition"), "{error}");
}
