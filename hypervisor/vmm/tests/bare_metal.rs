//! Small guests of our own under this machine's KVM: the whole program, from its arguments to its exit status.
//!
//! They use few and plain instructions, so that they also run where KVM emulates guest kernels. What needs Linux is in the
//! nested lab (`tests/lab`).

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

mod common;

use common::{POWER_OFF, RESET, WAIT, bzimage, code, need_kvm, out, print, pvh_image};

struct Guest {
    folder: TempDir,
    kernel: PathBuf,
}

impl Guest {
    fn new(image: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("kernel");
        std::fs::write(&kernel, image).unwrap();
        Self { folder, kernel }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.arg("--memory").arg("16M").arg("--kernel").arg(&self.kernel).args(arguments);
        command.current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        let until = Instant::now() + Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }
}

fn ends(output: &Output, status: i32, printed: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{errors}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), printed, "{errors}");
}

#[test]
fn a_pvh_guest_prints_and_switches_off() {
    need_kvm();
    let guest = Guest::new(&pvh_image(&code(&[print("pvh\n"), out(POWER_OFF.0, POWER_OFF.1)])));
    ends(&guest.run(&[]), 0, "pvh\n");
}

#[test]
fn a_bzimage_begins_in_long_mode() {
    need_kvm();
    // In protected mode 0x48 is `dec eax` and the comparison goes wrong: mov rax, 1 << 40; shr rax, 40; add al, 'A'.
    let long =
        vec![0x48, 0xb8, 0, 0, 0, 0, 0, 1, 0, 0, 0x48, 0xc1, 0xe8, 40, 0x04, 0x41, 0xba, 0xf8, 3, 0, 0, 0xee];
    let guest = Guest::new(&bzimage(&code(&[long, out(POWER_OFF.0, POWER_OFF.1)])));
    ends(&guest.run(&["--cpus", "2"]), 0, "B");
}

#[test]
fn the_status_tells_a_reset_from_a_crash() {
    need_kvm();
    for (port, value) in [RESET, (0x64, 0xfe)] {
        let guest = Guest::new(&pvh_image(&code(&[out(port, value)])));
        ends(&guest.run(&[]), 3, "");
    }
    // There is no table of interrupts, so an exception is the end of the processor.
    let guest = Guest::new(&pvh_image(&[0x0f, 0x0b]));
    let output = guest.run(&[]);
    assert!(matches!(output.status.code(), Some(4 | 5)), "{output:?}");
}

/// A guest that does nothing is ended by a signal.
#[test]
fn a_signal_ends_a_machine() {
    need_kvm();
    let guest = Guest::new(&pvh_image(&code(&[print("up")])));
    let child = guest.command(&["--cpus", "3"]).spawn().unwrap();
    let pid = child.id().to_string();
    std::thread::sleep(Duration::from_millis(500));
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    ends(&child.wait_with_output().unwrap(), 6, "up");
}

/// A console on a socket: what was printed before anybody came greets the client, what it types is read, and the socket
/// goes with the machine.
#[test]
fn a_console_on_a_socket() {
    use std::io::{Read, Write};
    need_kvm();
    // Waits for a byte at COM1 (in al, dx), prints it, switches off. `mov edx, 0x3fd; in al, dx; test al, 1; jz`
    let read = vec![0xba, 0xfd, 3, 0, 0, 0xec, 0xa8, 1, 0x74, 0xfb, 0xba, 0xf8, 3, 0, 0, 0xec, 0xee];
    let guest = Guest::new(&pvh_image(&code(&[print(">"), read, out(POWER_OFF.0, POWER_OFF.1)])));
    let path: &Path = &guest.folder.path().join("console.sock");
    let child = guest.command(&["--console", "socket:console.sock"]).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    let mut client = loop {
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(client) => break client,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut prompt = [0];
    client.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b">");
    client.write_all(b"k").unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"k");
    ends(&child.wait_with_output().unwrap(), 0, "");
    assert!(!path.exists(), "the socket stays behind");
}

#[test]
fn what_is_no_kernel_is_refused_by_name() {
    need_kvm();
    let mut old = bzimage(&WAIT);
    old[0x206] = 0x0b;
    let mut only_32 = bzimage(&WAIT);
    only_32[0x236] = 0;
    let mut large = bzimage(&WAIT);
    large[0x263] = 1;
    let mut no_note = pvh_image(&WAIT);
    no_note[64 + 2 * 56 + 8] = 17;
    let mut cut = pvh_image(&WAIT);
    cut.truncate(100);
    for (image, word) in [
        (b"#!/bin/sh\n".to_vec(), "neither a bzImage"),
        (Vec::new(), "neither a bzImage"),
        (vec![0; 0x1000], "neither a bzImage"),
        (old, "no 64-bit entry"),
        (only_32, "no 64-bit entry"),
        (large, "needs memory up to 18 MiB"),
        (no_note, "no PVH entry"),
        (cut, "loading the kernel"),
    ] {
        let output = Guest::new(&image).run(&[]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{word}: {errors}");
        assert!(errors.contains(word), "{word}: {errors}");
    }
    let long = "x".repeat(300);
    let output = Guest::new(&bzimage(&WAIT)).run(&["--cmdline", &long]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("takes 255 at most"), "{output:?}");
    for device in [&["--disk", "nobody.sock"][..], &["--nic", "nobody.sock,mac=52:54:00:00:00:01"]] {
        let output = Guest::new(&bzimage(&WAIT)).run(device);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("nobody.sock") && errors.contains("Is the daemon up"), "{errors}");
    }
    let output = Guest::new(&bzimage(&WAIT)).run(&["--initrd", "missing"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    // Said, and said once.
    assert!(errors.contains("initrd missing") && errors.matches("os error 2").count() == 1, "{errors}");
}
