//! Booting from a volume: disks made by Debian's tools, served by a vhost-user-blk back end that nobody here wrote, shown,
//! extracted, and started.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmm::outside;
use vmm::virtio::vhost_user::reader::{BlockReader, READ_BYTES_MAX, ReadError};

mod common;
#[path = "../../image/tests/common/mod.rs"]
mod images;

use common::{POWER_OFF, code, need_kvm, out, pvh_image};
use images::{Lab, kernel, noise};

const LINUX: &str = "type=0FC63DAF-8483-4772-8E79-3D69D8477DE4";
const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// `qemu-storage-daemon` with a file; it dies with the test.
struct BackEnd {
    process: Child,
    socket: PathBuf,
}

impl BackEnd {
    fn serve(lab: &Lab, image: &Path) -> Self {
        Self::serve_node(lab, &format!("driver=file,filename={},node-name=disk", image.display()))
    }

    fn serve_node(lab: &Lab, node: &str) -> Self {
        let socket = lab.path("disk.sock");
        let _ = fs::remove_file(&socket);
        let export = format!(
            "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={}",
            socket.display()
        );
        let process = Command::new("qemu-storage-daemon")
            .args(["--blockdev", node, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon starts");
        let until = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            assert!(Instant::now() < until, "the back end does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, socket }
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn vmm(arguments: &[&str]) -> Output {
    let child = Command::new(env!("CARGO_BIN_EXE_vmm"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.wait_with_output().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What `--show-boot` prints.
fn shown(back_end: &BackEnd, more: &[&str]) -> serde_json::Value {
    let output = vmm(&[&["--show-boot", "--disk", text(&back_end.socket)], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line that says why not.
fn refused(back_end: &BackEnd, more: &[&str]) -> String {
    let output = vmm(&[&["--show-boot", "--disk", text(&back_end.socket)], more].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let errors = String::from_utf8(output.stderr).unwrap();
    let last = errors.lines().last().unwrap_or_default().to_owned();
    assert!(last.contains("ERROR"), "{errors}");
    last
}

/// A disk of one Linux partition with these files.
fn disk(lab: &Lab, files: &[(&str, &[u8])]) -> PathBuf {
    let root = lab.ext4("root", 8192, &["-t", "ext4", "-U", UUID], &lab.tree("root.d", files));
    lab.disk("disk", 12, &format!("label: gpt\nstart=2048, size=20480, {LINUX}\n"), &[(1, &root)])
}

fn menu(entries: &[(&str, &str, &str)]) -> Vec<u8> {
    let entry = |(name, linux, initrd): &(&str, &str, &str)| {
        let initrd = if initrd.is_empty() { String::new() } else { format!(" initrd {initrd}\n") };
        format!("menuentry '{name}' --id {name} {{\n linux {linux}\n{initrd}}}\n")
    };
    format!("search --fs-uuid --set=root {UUID}\n{}", entries.iter().map(entry).collect::<Vec<_>>().concat())
        .into_bytes()
}

#[test]
fn an_entry_is_shown_and_its_files_are_extracted() {
    let lab = Lab::new();
    let (new, old, first, second) = (kernel("6.12.1"), kernel("6.1.0"), noise(300_001, 1), noise(70_000, 2));
    let image = disk(
        &lab,
        &[
            ("boot/vmlinuz-new", &new),
            ("boot/vmlinuz-old", &old),
            ("boot/first", &first),
            ("boot/second", &second),
            (
                "boot/grub/grub.cfg",
                &menu(&[
                    ("new", "/boot/vmlinuz-new root=LABEL=x ro quiet", "/boot/first /boot/second"),
                    ("old", "/boot/vmlinuz-old root=LABEL=x console=hvc0", ""),
                ]),
            ),
        ],
    );
    let back_end = BackEnd::serve(&lab, &image);
    let entry = shown(&back_end, &["--cmdline", "debug"]);
    let cmdline = "BOOT_IMAGE=/boot/vmlinuz-new root=LABEL=x ro quiet debug console=ttyS0";
    assert_eq!(
        entry,
        serde_json::json!({ "entry": "new", "kernel": "/boot/vmlinuz-new", "initrd": "/boot/first /boot/second", "cmdline": cmdline })
    );

    let folder = lab.path("out");
    fs::create_dir(&folder).unwrap();
    let entry = shown(&back_end, &["--extract", text(&folder)]);
    let (kernel, initrd) = (folder.join("kernel"), folder.join("initrd"));
    assert_eq!((entry["kernel"].as_str(), entry["initrd"].as_str()), (kernel.to_str(), initrd.to_str()));
    assert_eq!(fs::read(&kernel).unwrap(), new);
    // Three bytes of zeros, so that the second begins where the kernel looks for it.
    assert!(fs::read(&initrd).unwrap() == [&first[..], &[0; 3], &second].concat());
    assert_eq!(fs::metadata(&initrd).unwrap().permissions().mode() & 0o777, 0o600);

    let entry = shown(&back_end, &["--boot-entry", "old", "--extract", text(&folder)]);
    assert_eq!(entry["cmdline"], "BOOT_IMAGE=/boot/vmlinuz-old root=LABEL=x console=hvc0");
    assert_eq!(entry["initrd"], serde_json::Value::Null);
    assert_eq!(fs::read(&kernel).unwrap(), old);

    let error = refused(&back_end, &["--boot-entry", "gone"]);
    assert!(error.contains("no boot entry \"gone\": there are \"new\", \"old\""), "{error}");
    let error = refused(&back_end, &["--extract", text(&lab.path("nowhere"))]);
    assert!(error.contains("nowhere/.kernel.new") && error.contains("nowhere a folder"), "{error}");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn what_can_not_be_booted_is_refused_in_one_line_that_says_why() {
    let lab = Lab::new();
    let image = disk(&lab, &[("etc/fstab", b"LABEL=x / ext4 defaults 0 1\n")]);
    let error = refused(&BackEnd::serve(&lab, &image), &[]);
    assert!(error.contains("disk.sock") && error.contains("no kernel was found"), "{error}");
    assert!(error.contains("Put /boot on ext4"), "{error}");

    let lab = Lab::new();
    let config = b"CONFIG_X86_64=y\nCONFIG_PCI=y\nCONFIG_ACPI=y\nCONFIG_VIRTIO_BLK=y\n";
    let lacking = [
        ("boot/vmlinuz-6.1.0", &kernel("6.1.0")[..]),
        ("boot/config-6.1.0", config),
        ("boot/grub/grub.cfg", &menu(&[("a", "/boot/vmlinuz-6.1.0", "")])),
    ];
    let error = refused(&BackEnd::serve(&lab, &disk(&lab, &lacking)), &[]);
    assert!(error.contains("/boot/vmlinuz-6.1.0 on partition 1"), "{error}");
    assert!(error.contains("without CONFIG_VIRTIO_PCI (take a kernel of a distribution"), "{error}");

    let lab = Lab::new();
    let mut xfs = vec![0; 4 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    fs::write(lab.path("xfs"), xfs).unwrap();
    let error = refused(&BackEnd::serve(&lab, &lab.path("xfs")), &[]);
    assert!(error.contains("XFS") && error.contains("give the kernel and the initrd as files"), "{error}");
}

/// What the back end says of its disk is told, and not what that led to.
#[test]
fn a_disk_that_can_not_be_read_is_named() {
    let lab = Lab::new();
    let image = disk(&lab, &[("etc/fstab", b"LABEL=x / ext4 defaults 0 1\n")]);
    let node = format!(
        "driver=blkdebug,node-name=disk,image.driver=file,image.filename={},inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.sector=2056,inject-error.0.errno=5",
        image.display()
    );
    let error = refused(&BackEnd::serve_node(&lab, &node), &[]);
    assert!(error.contains("failed with status 1: see the back end's log"), "{error}");
}

#[test]
fn a_reader_waits_for_its_back_end_and_finds_it_again() {
    let lab = Lab::new();
    let content = noise(2 << 20, 3);
    fs::write(lab.path("image"), &content).unwrap();
    let back_end = BackEnd::serve(&lab, &lab.path("image"));
    let socket = back_end.socket.clone();
    let mut reader = BlockReader::open(outside::BackEnd::at(socket.clone()), Duration::ZERO).unwrap();
    assert_eq!(reader.bytes(), 2 << 20);
    let mut buffer = vec![0; READ_BYTES_MAX];
    reader.read(512, &mut buffer).unwrap();
    assert!(buffer == content[512..512 + READ_BYTES_MAX]);
    drop(back_end);
    // Gone, with nobody coming; then it comes back.
    assert!(matches!(reader.read(0, &mut buffer), Err(ReadError::Connect { .. })));
    let back_end = BackEnd::serve(&lab, &lab.path("image"));
    let mut last = vec![0; 1024];
    reader.read((2 << 20) - 1024, &mut last).unwrap();
    assert!(last == content[(2 << 20) - 1024..]);
    drop(back_end);
    fs::write(lab.path("image"), &content[..1 << 20]).unwrap();
    let back_end = BackEnd::serve(&lab, &lab.path("image"));
    let error = reader.read(0, &mut buffer).unwrap_err();
    assert!(matches!(error, ReadError::Changed { before: 0x20_0000, now: 0x10_0000, .. }), "{error}");
    drop((back_end, reader));
    // It comes while somebody waits for it.
    fs::remove_file(&socket).unwrap();
    let waiting =
        std::thread::spawn(move || BlockReader::open(outside::BackEnd::at(socket), Duration::from_secs(60)));
    std::thread::sleep(Duration::from_millis(300));
    let _back_end = BackEnd::serve(&lab, &lab.path("image"));
    assert_eq!(waiting.join().unwrap().unwrap().bytes(), 1 << 20);
}

/// Prints its command line and its initrd, by the start info that `ebx` points to (Xen, "x86/HVM direct boot ABI").
fn prints_what_it_was_given() -> Vec<u8> {
    let text = [
        &[0x8b, 0x73, 0x18][..],      // mov esi, [ebx + 24]
        &[0x8a, 0x06, 0x46],          // mov al, [esi]; inc esi
        &[0x84, 0xc0, 0x74, 0x08],    // test al, al; jz behind the loop
        &[0xba, 0xf8, 3, 0, 0, 0xee], // mov edx, 0x3f8; out dx, al
        &[0xeb, 0xf1],                // jmp to the loop
    ];
    let module = [
        &[0x8b, 0x7b, 0x10, 0x8b, 0x37][..], // mov edi, [ebx + 16]; mov esi, [edi]
        &[0x8b, 0x4f, 0x08],                 // mov ecx, [edi + 8]
        &[0x8a, 0x06, 0x46],                 // mov al, [esi]; inc esi
        &[0xba, 0xf8, 3, 0, 0, 0xee],        // mov edx, 0x3f8; out dx, al
        &[0x49, 0x75, 0xf4],                 // dec ecx; jnz to the loop
    ];
    code(&[text.concat(), module.concat(), out(POWER_OFF.0, POWER_OFF.1)])
}

/// From the disk into the processor; and the socket is free again for the disk's device when the machine starts.
#[test]
fn a_machine_boots_from_its_volume() {
    need_kvm();
    let lab = Lab::new();
    let image = disk(
        &lab,
        &[
            ("boot/vmlinuz-1", &pvh_image(&prints_what_it_was_given())),
            ("boot/first", b"first"),
            ("boot/second", b"second"),
            (
                "boot/grub/grub.cfg",
                &menu(&[("own", "/boot/vmlinuz-1 root=LABEL=x", "/boot/first /boot/second")]),
            ),
        ],
    );
    let back_end = BackEnd::serve(&lab, &image);
    let output =
        vmm(&["--memory", "16M", "--disk", text(&back_end.socket), "--cmdline", "more console=ttyS0 "]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{errors}");
    let printed = String::from_utf8_lossy(&output.stdout);
    let expected = "BOOT_IMAGE=/boot/vmlinuz-1 root=LABEL=x more console=ttyS0first\0\0\0second";
    assert_eq!(printed, expected, "{errors}");
}

/// The demo's guest, if it has been built on this machine: a real Debian.
#[test]
fn debian_is_found_on_its_disk() {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("ferrosphere");
    let built = fs::read_dir(cache.join("guest")).into_iter().flatten().flatten();
    let Some(folder) = built.map(|entry| entry.path()).find(|path| path.join("complete").exists()) else {
        eprintln!("not tried: there is no guest in {} (deploy/guest/build makes it)", cache.display());
        return;
    };
    let lab = Lab::new();
    let back_end = BackEnd::serve(&lab, &folder.join("root.raw"));
    let entry = shown(&back_end, &["--extract", text(&lab.tree("out", &[]))]);
    let cmdline = entry["cmdline"].as_str().unwrap();
    assert!(cmdline.contains("root=") && cmdline.contains("console=ttyS0"), "{cmdline}");
    assert!(fs::read(lab.path("out/kernel")).unwrap() == fs::read(folder.join("vmlinuz")).unwrap());
    assert!(fs::metadata(lab.path("out/initrd")).unwrap().size() > 1 << 20);
}
