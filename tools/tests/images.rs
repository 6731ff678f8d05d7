//! Import and export against `qemu-img`, and imports that stop half-way.

mod common;

use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, Served};

const MIB: u64 = 1 << 20;

/// An image of 24 MiB and a bit, not of whole blocks: data at both ends and in the middle, across a request's border, with holes
/// between, and zeros that are written out.
fn raw_image(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    let noise = |seed: u8| (0..MIB as usize).map(|i| (i % 251) as u8 ^ seed).collect::<Vec<u8>>();
    for (offset, bytes) in [
        (0, noise(1)),
        (4 * MIB - 300_000, noise(2)),
        (9 * MIB, vec![0; 5 * MIB as usize]),
        (23 * MIB + 1536, noise(3)),
    ] {
        file.seek(SeekFrom::Start(offset)).unwrap();
        file.write_all(&bytes).unwrap();
    }
}

fn qemu_img(args: &[&str]) {
    let out = Command::new("qemu-img").args(args).output().expect("qemu-img is needed: package qemu-utils");
    assert!(out.status.success(), "{args:?}: {:?}", Ran::of(&out));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn images_come_back_as_they_went_in() {
    let served = Served::start();
    let (raw, plain, packed) = (served.path("in.raw"), served.path("in.qcow2"), served.path("packed"));
    raw_image(&raw);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&raw), text(&plain)]);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", text(&raw), text(&packed)]);
    for (name, image) in [("raw", &raw), ("plain", &plain), ("packed", &packed)] {
        let done = served.json(&["volume", "import", name, text(image), "--create", "--policy", "mirror:1"]);
        let data = done["data_bytes"].as_u64().unwrap();
        assert!((3 * MIB..=4 * MIB).contains(&data), "zeros don't travel: {data}");
        assert!(!served.control.state().volumes[&name.parse().unwrap()].info.incomplete);
        for (file, format) in [("out.raw", "raw"), ("out.qcow2", "qcow2")] {
            let out = served.path(file);
            served.done(&["volume", "export", name, text(&out), "--yes"]);
            // The volume is the image rounded up to whole blocks; the rest is zeros, which `compare` allows.
            qemu_img(&["compare", "-F", format, "-f", "raw", text(&raw), text(&out)]);
            assert!(out.metadata().unwrap().blocks() * 512 < 8 * MIB, "holes stay holes");
        }
        qemu_img(&["check", "-f", "qcow2", text(&served.path("out.qcow2"))]);
    }
    assert_eq!(served.control.state().discards, 0, "a new volume has nothing to discard");
    let left: Vec<_> = std::fs::read_dir(served.dir.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains(".part-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_import_replaces_all_that_was_there() {
    let served = Served::start();
    let (image, out) = (served.path("in.raw"), served.path("out.raw"));
    raw_image(&image);
    served.done(&["volume", "create", "old", "--size", "32M", "--policy", "mirror:1"]);
    served.done(&["volume", "import", "old", text(&image)]);
    served.control.state().volumes.get_mut(&"old".parse().unwrap()).unwrap().data.fill(0xee);
    served.run(&["volume", "import", "old", text(&image)]).refused(9, &["old", "not new", "--yes"]);
    served.done(&["volume", "import", "old", text(&image), "--yes"]);
    assert!(served.control.state().discards > 0);
    served.done(&["volume", "export", "old", text(&out)]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", text(&image), text(&out)]);
}

#[test]
fn an_image_that_does_not_fit_changes_nothing() {
    let served = Served::start();
    let image = served.path("in.raw");
    raw_image(&image);
    served.done(&["volume", "create", "small", "--size", "8M", "--policy", "mirror:1"]);
    served
        .run(&["volume", "import", "small", text(&image)])
        .refused(5, &["in.raw", "small", "nothing was changed"]);
    let args = ["volume", "import", "new", text(&image), "--create", "--policy", "mirror:1", "--size", "8M"];
    served.run(&args).refused(5, &["--size"]);
    let state = served.control.state();
    assert_eq!((state.volumes.len(), state.writes), (1, 0));
    assert!(state.volumes.values().all(|volume| !volume.info.incomplete));
}

#[test]
fn an_import_that_fails_leaves_nothing_or_says_so() {
    let served = Served::start();
    let image = served.path("in.raw");
    raw_image(&image);
    served.control.state().writes_left = Some(1);
    let made = served.run(&["volume", "import", "new", text(&image), "--create", "--policy", "mirror:1"]);
    made.refused(1, &["the last good disk failed", "was removed again", "disk list"]);
    assert!(served.control.state().volumes.is_empty());

    served.control.state().writes_left = Some(1);
    served.done(&["volume", "create", "kept", "--size", "32M", "--policy", "mirror:1"]);
    let kept = served.run(&["volume", "import", "kept", text(&image)]);
    kept.refused(1, &["the last good disk failed", "volume kept is marked incomplete"]);
    assert!(served.done(&["volume", "list"]).contains("incomplete import"));
    assert!(
        served.control.state().volumes.values().all(|volume| volume.info.owner.is_none()),
        "the lock is back"
    );
    served.control.state().writes_left = None;
    served.done(&["volume", "import", "kept", text(&image)]);
    assert!(!served.done(&["volume", "list"]).contains("incomplete"));
}

#[test]
fn an_import_that_is_interrupted_cleans_up() {
    let served = Served::start();
    let image = served.path("in.raw");
    raw_image(&image);
    served.control.state().write_delay = Duration::from_secs(60);
    let mut command =
        served.command(&["volume", "import", "new", text(&image), "--create", "--policy", "mirror:1"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while served.control.state().writes_begun == 0 {
        assert!(Instant::now() < deadline, "the import never began");
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap());
    ran.refused(9, &["interrupted", "removed again"]);
    let state = served.control.state();
    assert!(state.volumes.is_empty() && state.transfer.is_none());
}

#[test]
fn images_that_reach_for_other_files_are_refused() {
    let served = Served::start();
    let (base, image) = (served.path("base.raw"), served.path("in.qcow2"));
    raw_image(&base);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", text(&base), "-F", "raw", text(&image)]);
    let args = ["volume", "import", "new", text(&image), "--create", "--policy", "mirror:1"];
    served.run(&args).refused(2, &["in.qcow2", "backing file", "qemu-img convert"]);
    // As raw it is only bytes.
    served.done(&[&args[..], &["--format", "raw"]].concat());
    std::fs::write(&image, b"QFI\xfb\0\0\0\x03 and nothing else").unwrap();
    served
        .run(&["volume", "import", "b", text(&image), "--create", "--policy", "mirror:1"])
        .refused(1, &["in.qcow2", "qemu-img check"]);
    std::fs::write(&image, b"").unwrap();
    served
        .run(&["volume", "import", "b", text(&image), "--create", "--policy", "mirror:1"])
        .refused(2, &["empty"]);
    assert_eq!(served.control.state().volumes.len(), 1);
}

#[test]
fn an_export_does_not_overwrite_unasked() {
    let served = Served::start();
    served.done(&["volume", "create", "web", "--size", "8M", "--policy", "mirror:1"]);
    let out = served.path("there.raw");
    std::fs::write(&out, b"dear").unwrap();
    served.run(&["volume", "export", "web", text(&out)]).refused(9, &["there.raw", "--yes"]);
    served.run(&["volume", "export", "web", "/dev/null"]).refused(4, &["/dev/null"]);
    served.run(&["volume", "export", "web", "/nowhere/x.raw"]).refused(3, &["/nowhere/"]);
    assert_eq!(std::fs::read(&out).unwrap(), b"dear");
    assert!(served.control.state().transfer.is_none(), "a failed export ends its transfer");
    served.done(&["volume", "export", "web", text(&out), "--yes"]);
    assert_eq!(out.metadata().unwrap().len(), 8 * MIB);
}

#[test]
fn progress_is_for_terminals() {
    let served = Served::start();
    let image = served.path("in.raw");
    raw_image(&image);
    // Long enough for the bar to be drawn more than once.
    served.control.state().write_delay = Duration::from_millis(1200);
    let import = |name| ["volume", "import", name, text(&image), "--create", "--policy", "mirror:1"];
    let seen = served.at_terminal(&[], &import("a"), "");
    assert_eq!(seen.code, 0, "{seen:?}");
    for word in ["importing [", " MiB of 24.00 MiB", "left", "imported "] {
        assert!(seen.out.contains(word), "{word:?}: {seen:?}");
    }
    let quiet = served.at_terminal(&[], &[&import("b")[..], &["--quiet"]].concat(), "");
    assert_eq!((quiet.code, quiet.out.trim()), (0, ""), "{quiet:?}");
    let piped = served.run(&import("c"));
    assert_eq!((piped.code, piped.err.as_str()), (0, ""), "{piped:?}");
}
