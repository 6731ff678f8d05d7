//! The QEMU back end with a real QEMU and a small guest of our own: what it starts, its console, its control socket, its ends, and a
//! daemon that comes after another.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ferro_protocol::api::vm::spec::{BootSpec, FilesBoot, VmmSpec};
use ferro_protocol::api::vm::{ExitCause, VmName, VmSpec, VmmKind};
use hypervisor_core::command::Machine;
use hypervisor_core::paths::Paths;
use hypervisor_core::spec::{Vm, check};
use hypervisord::backend::qemu::Qemu;
use hypervisord::backend::{Backend, Backends};
use hypervisord::config::Config;
use hypervisord::keep::Ended;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// The longest that anything is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel (Multiboot specification 0.6.96, 3.1: header with addresses) that enables its power button (ACPI 6.4, 4.8.4.1, at
/// the place where `SeaBIOS` puts it), greets at the serial port and gives back what it gets; `r` resets the machine (register
/// 0xcf9), the power button switches it off.
const GUEST: [u8; 128] = [
    0x02, 0xb0, 0xad, 0x1b, 0x00, 0x00, 0x01, 0x00, 0xfe, 0x4f, 0x51, 0xe4, 0x00, 0x00, 0x10,
    0x00, // header:
    0x00, 0x00, 0x10, 0x00, 0x00, 0x10, 0x10, 0x00, 0x00, 0x10, 0x10, 0x00, 0x20, 0x00, 0x10,
    0x00, // 1 MiB, entry
    0x66, 0xba, 0x02, 0x06, // mov $0x602, %dx     PM1_EN
    0x66, 0xb8, 0x00, 0x01, // mov $0x100, %ax     PWRBTN_EN
    0x66, 0xef, // out %ax, %dx
    0xbe, 0x6e, 0x00, 0x10, 0x00, // mov $greeting, %esi
    0xac, // 1: lodsb
    0x84, 0xc0, // test %al, %al
    0x74, 0x07, // jz echo
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xee, // out %al, %dx
    0xeb, 0xf4, // jmp 1b
    0x66, 0xba, 0xfd, 0x03, // echo: mov $0x3fd, %dx
    0xec, // in %dx, %al
    0xa8, 0x01, // test $1, %al
    0x74, 0x0a, // jz button
    0x66, 0xba, 0xf8, 0x03, // mov $0x3f8, %dx
    0xec, // in %dx, %al
    0x3c, 0x72, // cmp $'r', %al
    0x74, 0x18, // je reset
    0xee, // out %al, %dx
    0x66, 0xba, 0x00, 0x06, // button: mov $0x600, %dx     PM1_STS
    0x66, 0xed, // in %dx, %ax
    0xf6, 0xc4, 0x01, // test $1, %ah
    0x74, 0xe2, // jz echo
    0x66, 0xba, 0x04, 0x06, // mov $0x604, %dx     PM1_CNT
    0x66, 0xb8, 0x00, 0x20, // mov $0x2000, %ax    SLP_EN, type 0: S5
    0x66, 0xef, // out %ax, %dx
    0xeb, 0xfe, // jmp .
    0x66, 0xba, 0xf9, 0x0c, // reset: mov $0xcf9, %dx
    0xb0, 0x06, // mov $6, %al
    0xee, // out %al, %dx
    0xeb, 0xfe, // jmp .
    b's', b'm', b'a', b'l', b'l', b' ', b'g', b'u', b'e', b's', b't', b'\r', b'\n', 0, // greeting
    0, 0, 0, 0,
];

/// QEMU, if it is installed.
fn program() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/bin/qemu-system-x86_64");
    if !path.exists() {
        assert!(std::env::var_os("CI").is_none(), "QEMU is not installed: `apt-get install qemu-system-x86`");
        eprintln!("QEMU is not installed: not tried");
        return None;
    }
    Some(path)
}

/// A machine and its folders; its QEMU is ended with it.
struct Bench {
    _dir: tempfile::TempDir,
    config: Config,
    vm: Vm,
    paths: Paths,
    child: Option<Child>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Bench {
    fn new(program: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        // As large as the header says.
        let mut kernel = GUEST.to_vec();
        kernel.resize(4096, 0);
        std::fs::write(folder("kernel"), kernel).unwrap();
        let mut spec = VmSpec::named("small", 64 << 20);
        let files = FilesBoot { kernel: folder("kernel"), initrd: None, cmdline: String::new() };
        (spec.boot, spec.vmm, spec.cpus) = (BootSpec::Files(files), VmmSpec::Qemu, 2);
        let name: VmName = "small".parse().unwrap();
        let paths = Paths::new(&folder("run"), &folder("state"), &name).unwrap();
        for folder in [&paths.run, &paths.kept] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let config = Config { qemu: program.to_owned(), ..Config::default() };
        Self { config, vm: check(&spec).unwrap(), paths, child: None, _dir: dir }
    }

    /// Starts it and waits until it has begun.
    async fn start(&mut self, qemu: &Qemu) {
        let machine = Machine { vm: &self.vm, paths: &self.paths, disks: &[], nics: &[] };
        let program = qemu.prepare(machine).await.unwrap();
        assert!(qemu.ready(&self.paths).await.is_none());
        let mut command = Command::new(program.program);
        self.child = Some(command.args(program.arguments).stdin(Stdio::null()).spawn().unwrap());
        let ready = async {
            while qemu.ready(&self.paths).await.is_none() {
                let ended = self.child.as_mut().unwrap().try_wait().unwrap();
                assert!(ended.is_none(), "QEMU ended: {ended:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ready).await.expect("QEMU is ready");
    }

    /// Waits for its end, and says what that means.
    async fn ended(&mut self, qemu: &Qemu) -> ExitCause {
        let child = self.child.as_mut().unwrap();
        let gone = async {
            loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let status = tokio::time::timeout(PATIENCE, gone).await.expect("QEMU ends");
        qemu.cause(&self.paths, Ended::Status(status.code().expect("no signal"))).0
    }

    async fn console(&self) -> UnixStream {
        UnixStream::connect(self.paths.console()).await.unwrap()
    }
}

async fn sees(stream: &mut UnixStream, word: &str) {
    let mut seen = Vec::new();
    let reading = async {
        let mut buffer = [0; 256];
        while !String::from_utf8_lossy(&seen).contains(word) {
            let count = stream.read(&mut buffer).await.unwrap();
            assert!(count > 0, "it ended before {word:?}: {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..count]);
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect(word);
}

#[tokio::test]
async fn a_guest_from_its_start_to_its_power_button() {
    let Some(program) = program() else { return };
    let mut bench = Bench::new(&program);
    let qemu = Qemu::new(&bench.config);
    bench.start(&qemu).await;
    let mut console = bench.console().await;
    sees(&mut console, "small guest\r\n").await;
    console.write_all(b"hello").await.unwrap();
    sees(&mut console, "hello").await;

    qemu.pause(&bench.paths).await.unwrap();
    assert!(qemu.state(&bench.paths).await.unwrap().paused);
    console.write_all(b"X").await.unwrap();
    qemu.resume(&bench.paths).await.unwrap();
    let running = qemu.state(&bench.paths).await.unwrap();
    assert!(!running.paused);
    assert_eq!(running.balloon.unwrap().actual_bytes, 0);
    sees(&mut console, "X").await;
    qemu.set_balloon(&bench.paths, 16 << 20).await.unwrap();
    assert_eq!(qemu.state(&bench.paths).await.unwrap().balloon.unwrap().target_bytes, 16 << 20);

    qemu.power_button(&bench.paths).await.unwrap();
    assert_eq!(bench.ended(&qemu).await, ExitCause::PoweredOff);
    let log = std::fs::read_to_string(bench.paths.console_log()).unwrap();
    assert_eq!(log, "small guest\r\nhelloX");
    let error = qemu.pause(&bench.paths).await.unwrap_err();
    assert!(error.message.contains("control socket"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_comes_later_takes_over_and_a_reset_is_an_end() {
    let Some(program) = program() else { return };
    let mut bench = Bench::new(&program);
    let first = Qemu::new(&bench.config);
    bench.start(&first).await;
    let mut console = bench.console().await;
    sees(&mut console, "small guest").await;
    drop(first);
    // Nobody is here: what the guest does goes into its log, and a reset is a reset.
    let second = Qemu::new(&bench.config);
    let looked = async { while second.state(&bench.paths).await.is_err() {} };
    tokio::time::timeout(PATIENCE, looked).await.expect("the second is let in");
    let mut console = bench.console().await;
    sees(&mut console, "small guest").await;
    console.write_all(b"again r").await.unwrap();
    assert_eq!(bench.ended(&second).await, ExitCause::Reset);

    // What is known of that end is not told of the next. Its greeting is the log's second; before it nobody hears the button.
    bench.start(&second).await;
    let greeted = async {
        while std::fs::read_to_string(bench.paths.console_log()).unwrap().matches("small guest").count() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, greeted).await.expect("the guest runs again");
    second.power_button(&bench.paths).await.unwrap();
    assert_eq!(bench.ended(&second).await, ExitCause::PoweredOff);
}

#[tokio::test]
async fn what_can_not_be_started_says_why() {
    let Some(program) = program() else { return };
    let mut bench = Bench::new(&program);
    bench.config.qemu = "/nowhere/qemu".into();
    let missing = Qemu::new(&bench.config).available().unwrap_err();
    assert!(
        missing.message.contains("/nowhere/qemu") && missing.next_step.contains("apt install"),
        "{missing}"
    );
    let machine = Machine { vm: &bench.vm, paths: &bench.paths, disks: &[], nics: &[] };
    let error = Qemu::new(&bench.config).prepare(machine).await.unwrap_err();
    assert!(error.message.contains("/nowhere/qemu can't be started"), "{error}");

    // The kernel is in a volume, and the volume has gone.
    let mut spec = VmSpec::named("small", 64 << 20);
    spec.disks =
        vec![ferro_protocol::api::vm::spec::DiskSpec { volume: "root".to_owned(), read_only: false }];
    let vm = check(&spec).unwrap();
    let socket = hypervisor_core::command::DiskSocket {
        path: "/nowhere/root.sock".to_owned(),
        queues: 1,
        read_only: false,
    };
    let config = Config { qemu: program, vmm: "/bin/false".into(), ..Config::default() };
    let machine = Machine { vm: &vm, paths: &bench.paths, disks: &[socket], nics: &[] };
    let error = Qemu::new(&config).prepare(machine).await.unwrap_err();
    assert!(error.message.contains("VM small: the kernel can't be taken out of its first volume"), "{error}");

    let backends = Backends::find(&Config { qemu: bench.config.qemu.clone(), ..Config::default() });
    assert!(!backends.has_qemu());
    assert!(backends.choose(VmmSpec::Qemu).unwrap_err().message.contains("no QEMU"));
    assert_eq!(backends.of(VmmKind::Qemu).unwrap().kind(), VmmKind::Qemu);
}
