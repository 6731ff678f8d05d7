//! Journals that were not written back: made with `debugfs`, and by a kernel whose disk was copied under it; compared with
//! what `e2fsck` makes of the same image.
#![allow(clippy::disallowed_types, clippy::disallowed_methods)] // the tests have files, the crate has none

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use boot_image::Window;
use boot_image::ext4::{Ext4, Ext4Error};
use common::{Lab, blocks, contents, debugfs, everything, noise, opened, recovered};

const BLOCK: usize = 1024;

/// The journals of ext3 and of old and new ext4. The second: how debugfs opens it.
const KINDS: &[(&[&str], &str)] = &[
    (&["-t", "ext4", "-b", "1024"], "-c -v 3"),
    (&["-t", "ext4", "-b", "1024"], "-c -v 2"),
    (&["-t", "ext4", "-b", "1024"], ""),
    (&["-t", "ext4", "-b", "1024", "-O", "^64bit,^metadata_csum"], ""),
    (&["-t", "ext4", "-b", "1024", "-O", "^64bit"], "-c -v 3"),
    (&["-t", "ext3", "-b", "1024"], ""),
];

/// An image with files of 8 blocks each, `/a` to `/e`.
fn image(lab: &Lab, options: &[&str]) -> std::path::PathBuf {
    let names = ["a", "b", "c", "d", "e"];
    let files: Vec<(&str, Vec<u8>)> = (1..).zip(names).map(|(n, name)| (name, noise(8 * BLOCK, n))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, data)| (*name, data.as_slice())).collect();
    lab.ext4("image", 16 << 10, options, &lab.tree("tree", &files))
}

/// Transactions: each has the file to change, its new blocks, and what it revokes.
struct Script {
    lines: Vec<String>,
    files: u32,
}

impl Script {
    fn new(how: &str) -> Self {
        Self { lines: vec![format!("jo {how}")], files: 0 }
    }

    fn write(&mut self, lab: &Lab, targets: &[u64], data: &[u8], more: &str) {
        let path = lab.path(&format!("data-{}", self.files));
        self.files += 1;
        fs::write(&path, data).expect("a file");
        let list: Vec<String> = targets.iter().map(u64::to_string).collect();
        self.lines.push(format!("jw -b {} {more} {}", list.join(","), path.display()));
    }

    fn revoke(&mut self, targets: &[u64]) {
        let list: Vec<String> = targets.iter().map(u64::to_string).collect();
        self.lines.push(format!("jw -r {}", list.join(",")));
    }

    fn apply(mut self, image: &Path) {
        self.lines.push("jc".to_owned());
        debugfs(image, &self.lines);
    }
}

/// Ours of the dirty image is e2fsck's of the recovered one.
fn same_as_e2fsck(lab: &Lab, image: &Path) -> Vec<(String, Vec<u8>)> {
    let (dirty, clean) = (fs::read(image).expect("an image"), recovered(lab, image));
    let clean = fs::read(clean).expect("an image");
    let (ours, theirs) = (opened(&dirty), opened(&clean));
    assert_eq!(theirs.replayed_blocks(), 0);
    let (ours, theirs) = (everything(&ours), everything(&theirs));
    for (a, b) in ours.iter().zip(&theirs) {
        assert!(a == b, "{} and {} differ", a.0, b.0);
    }
    assert_eq!(ours.len(), theirs.len());
    ours
}

#[test]
fn committed_changes_are_seen_and_others_are_not() {
    for (options, how) in KINDS {
        println!("{options:?} {how}");
        let lab = Lab::new();
        let image = image(&lab, options);
        let of = |name: &str| blocks(&image, name);
        let (a, b, c) = (of("/a"), of("/b"), of("/c"));
        let before = fs::read(&image).expect("an image");
        let mut script = Script::new(how);
        let new = |seed: u64| noise(8 * BLOCK, 100 + seed);
        script.write(&lab, &a, &new(1), "");
        script.write(&lab, &b, &new(2), "");
        // Later ones replace earlier ones; part of them is revoked by still later ones.
        script.write(&lab, &a[..4], &new(3)[..4 * BLOCK], "");
        script.revoke(&b);
        script.write(&lab, &b[6..], &new(4)[..2 * BLOCK], "");
        // A block that begins like one of the journal's own.
        let escaped = [&[0xc0, 0x3b, 0x39, 0x98][..], &noise(BLOCK - 4, 9)].concat();
        script.write(&lab, &c[1..2], &escaped, "");
        // Never committed.
        script.write(&lab, &c[2..], &new(5)[..6 * BLOCK], "-c");
        script.apply(&image);
        let dirty = fs::read(&image).expect("an image");
        let fs = opened(&dirty);
        assert!(fs.replayed_blocks() > 0);
        let old = |name: &str| contents(&opened(&before), name);
        assert!(contents(&fs, "/a") == [&new(3)[..4 * BLOCK], &new(1)[4 * BLOCK..]].concat(), "a");
        assert!(contents(&fs, "/b") == [&old("/b")[..6 * BLOCK], &new(4)[..2 * BLOCK]].concat(), "b");
        assert!(
            contents(&fs, "/c") == [&old("/c")[..BLOCK], &escaped, &old("/c")[2 * BLOCK..]].concat(),
            "c"
        );
        // In pieces that begin within blocks.
        let file = fs.open_file("/c", 1 << 20).expect("a file");
        for offset in [1021, 1023, 1024, 1025, 1026, 1028, 2047] {
            let mut piece = [0; 3];
            file.read_at(offset as u64, &mut piece).expect("it can be read");
            assert_eq!(piece, contents(&fs, "/c")[offset..offset + 3], "{offset}");
        }
        same_as_e2fsck(&lab, &image);
    }
}

/// The ring may begin anywhere.
#[test]
fn a_log_that_goes_around_the_end_is_followed() {
    let lab = Lab::new();
    let image = image(&lab, &["-t", "ext3", "-b", "1024"]);
    let mut script = Script::new("");
    for (n, name) in (1..).zip(["/a", "/b", "/c", "/d", "/e"]) {
        script.write(&lab, &blocks(&image, name), &noise(8 * BLOCK, 200 + n), "");
    }
    script.apply(&image);
    let dirty = fs::read(&image).expect("an image");
    let expected = same_as_e2fsck(&lab, &image);
    // The indirect blocks are listed as well: they are in the gaps that the data leaves.
    let log: Vec<u64> = journal_blocks(&dirty, &image);
    let at = |block: u32| log[block as usize] as usize * BLOCK;
    let be = |offset: usize| u32::from_be_bytes(dirty[offset..offset + 4].try_into().expect("four"));
    let (len, first, start) = (be(at(0) + 0x10), be(at(0) + 0x14), be(at(0) + 0x1c));
    assert!(start >= first && len as usize == log.len());
    let ring = len - first;
    for shift in [1, ring - 1, ring - 2, ring - 9, ring - 10, ring - 11, ring - 40] {
        let mut turned = dirty.clone();
        let place = |block: u32| first + (block - first + shift) % ring;
        for block in first..len {
            let to = at(place(block));
            turned[to..to + BLOCK].copy_from_slice(&dirty[at(block)..at(block) + BLOCK]);
        }
        turned[at(0) + 0x1c..at(0) + 0x20].copy_from_slice(&place(start).to_be_bytes());
        assert!(everything(&opened(&turned)) == expected, "turned by {shift}");
        fs::write(lab.path("turned"), &turned).expect("an image");
        assert!(same_as_e2fsck(&lab, &lab.path("turned")) == expected, "e2fsck, turned by {shift}");
    }
}

/// The journal's blocks in the order of the log: those of inode 8 without the ones of its block map.
fn journal_blocks(bytes: &[u8], image: &Path) -> Vec<u64> {
    let all = blocks(image, "<8>");
    let size: usize = {
        let text = common::run("debugfs", &["-R", "stat <8>", &image.display().to_string()]);
        let text = String::from_utf8_lossy(&text).into_owned();
        let size = text.split("Size: ").nth(1).and_then(|rest| rest.split_whitespace().next());
        size.and_then(|size| size.parse().ok()).expect("a size")
    };
    let data = size / BLOCK;
    // debugfs lists an indirect block before what it leads to: the 13th, and in the double one the first two.
    let per = BLOCK / 4;
    let mut log = Vec::new();
    let mut all = all.into_iter();
    log.extend(all.by_ref().take(12));
    all.next();
    log.extend(all.by_ref().take(per));
    all.next();
    while log.len() < data {
        all.next();
        log.extend(all.by_ref().take(per.min(data - log.len())));
    }
    assert_eq!(&bytes[log[0] as usize * BLOCK..][..4], [0xc0, 0x3b, 0x39, 0x98]);
    log
}

#[test]
fn a_torn_or_damaged_log_is_told_apart() {
    let lab = Lab::new();
    let image = image(&lab, &["-t", "ext4", "-b", "1024"]);
    let (a, b) = (blocks(&image, "/a"), blocks(&image, "/b"));
    let before = everything(&opened(&fs::read(&image).expect("an image")));
    let mut script = Script::new("-c -v 3");
    script.write(&lab, &a, &noise(8 * BLOCK, 300), "");
    script.write(&lab, &b, &noise(8 * BLOCK, 301), "");
    script.apply(&image);
    let dirty = fs::read(&image).expect("an image");
    let log = blocks(&image, "<8>");
    let kind = |block: u64| {
        let at = block as usize * BLOCK;
        (dirty[at..at + 4] == [0xc0, 0x3b, 0x39, 0x98]).then(|| dirty[at + 7])
    };
    let kinds: Vec<Option<u8>> = log.iter().take(40).map(|block| kind(*block)).collect();
    let nth = |wanted: u8, n: usize| {
        let mut found = log.iter().filter(|block| kind(**block) == Some(wanted));
        *found.nth(n).unwrap_or_else(|| panic!("{kinds:?}")) as usize * BLOCK
    };
    let with = |at: usize| {
        let mut bytes = dirty.clone();
        bytes[at] ^= 1;
        bytes
    };
    let old = |name: &str| before.iter().find(|(path, _)| path == name).expect("there").1.clone();
    // The second commit, or its descriptor, never came: the first one counts.
    for at in [nth(2, 1) + 20, nth(2, 1) + 11, nth(1, 1) + 30, nth(1, 1) + 3] {
        let torn = with(at);
        let fs = opened(&torn);
        assert!(contents(&fs, "/a") == noise(8 * BLOCK, 300), "at {at}");
        assert!(contents(&fs, "/b") == old("/b"), "at {at}");
    }
    // A block of a committed transaction is not what was committed.
    let damaged = with(nth(1, 1) + BLOCK + 5);
    let error = Ext4::open(Window::whole(&damaged)).expect_err("it is refused");
    assert!(matches!(error, Ext4Error::Journal { .. }), "{error}");
    assert!(error.to_string().contains("fsck"), "{error}");
    // The journal's superblock.
    let at = log[0] as usize * BLOCK;
    let error = Ext4::open(Window::whole(&with(at + 0x30))).expect_err("it is refused");
    assert!(error.to_string().contains("wrong checksum"), "{error}");
    // Features that change what the log means.
    let mut strange = dirty.clone();
    strange[at + 0x28] = 0x80;
    let error = Ext4::open(Window::whole(&strange)).expect_err("it is refused");
    assert!(error.to_string().contains("0x80000000"), "{error}");
}

/// The real thing: the kernel's own journal of a mounted file system, copied in the middle of its life. Needs to mount.
#[test]
fn a_killed_guests_file_system_is_read() {
    let lab = Lab::new();
    let tree = lab.tree("tree", &[("boot/vmlinuz", &noise(60_000, 1))]);
    for (kind, options) in [
        ("ext4", &["-t", "ext4", "-J", "size=4"][..]),
        ("ext4 of Debian 8", &["-t", "ext4", "-J", "size=4", "-O", "^metadata_csum,^64bit"]),
        ("ext3", &["-t", "ext3", "-J", "size=4"]),
    ] {
        let image = lab.ext4("image", 32 << 10, options, &tree);
        let at = lab.path("mounted");
        fs::create_dir_all(&at).expect("a folder");
        // In a mount namespace of its own, so that nothing stays behind, whatever happens. The journal of 4 MiB goes
        // around several times; files come and go, so blocks of folders become blocks of files and are revoked.
        let script = r#"
            set -e
            mount -o loop,data=ordered "$1" "$2" 2>/dev/null || exit 77
            trap 'umount "$2"' EXIT
            cd "$2"
            for n in $(seq 1 60); do
                mkdir -p d$n/e d$n/f; for m in $(seq 1 12); do echo "$n $m" >d$n/e/file-$m; done
                cp boot/vmlinuz d$n/kernel
                [ $n -gt 6 ] && rm -rf d$((n - 6))
                sync -f .
                case $n in 7|20|40|60) cp --sparse=always "$1" "$1.$n";; esac
            done
            cd /
        "#;
        let mut shell = Command::new("unshare");
        shell.args(["--mount", "sh", "-c", script, "sh"]).arg(&image).arg(&at);
        let output = shell.output().expect("unshare is there");
        if output.status.code() == Some(77) || String::from_utf8_lossy(&output.stderr).contains("unshare") {
            println!("file systems can't be mounted here: {}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        assert!(output.status.success(), "{output:?}");
        let mut replayed = 0;
        for n in [7, 20, 40, 60] {
            let copy = lab.path(&format!("image.{n}"));
            let bytes = fs::read(&copy).expect("a copy");
            replayed += opened(&bytes).replayed_blocks();
            let found = same_as_e2fsck(&lab, &copy);
            let last = format!("/d{n}/e/file-12");
            assert!(
                found.iter().any(|(path, _)| *path == last),
                "{kind}: {last} was synced and is not there"
            );
        }
        assert!(replayed > 0, "{kind}: nothing was in the journal");
    }
}
