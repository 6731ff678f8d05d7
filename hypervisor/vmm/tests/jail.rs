//! The jail of a VM that runs, looked at from outside: what its process is, has and may do; and that neither broker nor
//! VM outlives the other. These tests need root, as the jail does.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

mod common;

use common::{POWER_OFF, WAIT, code, need_kvm, out, print, pvh_image};

const PATIENCE: Duration = Duration::from_secs(20);

struct Vm {
    folder: TempDir,
    broker: Child,
}

impl Vm {
    fn start(guest: &[u8], memory: &str, arguments: &[&str]) -> Self {
        need_kvm();
        assert!(rustix::process::geteuid().is_root(), "only root can make a jail: run these tests as root");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kernel"), pvh_image(guest)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmm"));
        command.args(["--name", "test", "--memory", memory, "--kernel", "kernel", "--api", "api.sock"]);
        command.args([
            "--console-log",
            "log,size=4K",
            "--user",
            "31001:31002",
            "--console",
            "socket:console.sock",
        ]);
        command.args(arguments).current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let broker = command.spawn().unwrap();
        Self { folder, broker }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Sends a request; the status and the body of the answer.
    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let until = Instant::now() + PATIENCE;
        let mut stream = loop {
            match UnixStream::connect(self.path("api.sock")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: vmm\r\ncontent-length: {length}\r\n\r\n{body}")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a status");
        (status, body.to_owned())
    }

    /// The jailed process, when it runs the guest: the broker's only child.
    fn jailed(&self) -> u32 {
        assert_eq!(self.ask("GET", "/v1/state", "").0, 200);
        let pid = self.broker.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.trim().parse().expect("one child")
    }

    fn end(mut self) -> (Option<i32>, String) {
        let until = Instant::now() + PATIENCE;
        while self.broker.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the VM does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut errors = String::new();
        self.broker.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        (self.broker.wait().unwrap().code(), errors)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.broker.kill();
        let _ = self.broker.wait();
    }
}

fn gone(pid: u32) {
    let until = Instant::now() + PATIENCE;
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < until, "process {pid} is still there");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_vms_process_has_nothing_and_may_do_nothing() {
    let vm = Vm::start(&code(&[print("up")]), "16M", &["--rng", "--balloon"]);
    let pid = vm.jailed();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let file = task.unwrap().path().join("status");
        // The API answers a moment before the first thread has its own filter.
        let until = Instant::now() + PATIENCE;
        let status = loop {
            let status = std::fs::read_to_string(&file).unwrap();
            if status.contains("Seccomp_filters:\t2") || Instant::now() > until {
                break status;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let thread = field("Name:");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(set), "0".repeat(16), "{thread}: {set}");
        }
        assert_eq!(field("Uid:"), "31001 31001 31001 31001", "{thread}");
        assert_eq!(field("Gid:"), "31002 31002 31002 31002", "{thread}");
        assert_eq!(field("Groups:"), "", "{thread}");
        assert_eq!(field("NoNewPrivs:"), "1", "{thread}");
        // Two filters: that of the start, and its own.
        assert_eq!((field("Seccomp:").as_str(), field("Seccomp_filters:").as_str()), ("2", "2"), "{thread}");
        // The first process of its own namespace.
        assert_eq!(field("NStgid:").split(' ').next_back(), Some("1"), "{thread}");
    }
    for namespace in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.contains("Max core file size        0 "), "{limits}");
    // Nothing is in its root, and nothing can be put there.
    let root = format!("/proc/{pid}/root");
    assert_eq!(std::fs::read_dir(&root).unwrap().count(), 0);
    assert!(std::fs::write(format!("{root}/file"), "").is_err());
    // No socket, no file and no folder but what the VM is made of.
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let leads_to = std::fs::read_link(entry.path()).unwrap().to_string_lossy().into_owned();
        let kind =
            leads_to.split(':').next().unwrap().trim_start_matches(&*vm.folder.path().to_string_lossy());
        kinds.insert(kind.to_owned());
    }
    let known = ["/dev/kvm", "/dev/null", "/log", "/memfd", "anon_inode", "pipe", "socket"];
    let strangers: Vec<_> = kinds.iter().filter(|kind| !known.contains(&kind.as_str())).collect();
    assert!(strangers.is_empty(), "the VM's process has {strangers:?}");
    // A foreign uid may not even look at it.
    assert_eq!(
        std::fs::metadata(format!("/proc/{pid}/environ"))
            .map(|file| {
                use std::os::unix::fs::MetadataExt;
                file.uid()
            })
            .unwrap(),
        0,
        "the process can be traced by its own user"
    );
    let (status, body) = vm.ask("PUT", "/v1/stop", "");
    assert_eq!((status, body.as_str()), (204, ""));
    let console = vm.path("console.sock");
    let api = vm.path("api.sock");
    let (code, errors) = vm.end();
    assert_eq!(code, Some(0), "{errors}");
    assert!(!console.exists() && !api.exists(), "sockets stay behind");
}

#[test]
fn neither_outlives_the_other() {
    let mut vm = Vm::start(&code(&[print("up")]), "16M", &[]);
    let pid = vm.jailed();
    vm.broker.kill().unwrap();
    vm.broker.wait().unwrap();
    gone(pid);
    let vm = Vm::start(&code(&[print("up")]), "16M", &[]);
    let pid = vm.jailed();
    assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
    let (code, errors) = vm.end();
    assert_eq!(code, Some(5), "{errors}");
    assert!(errors.contains("SIGKILL"), "{errors}");
}

#[test]
fn the_api_pauses_resumes_and_resets() {
    // Prints for ever, slowly enough for a log that turns: mov ecx, 500; loop $.
    let mut guest = print("x");
    guest.extend([0xb9, 0xf4, 1, 0, 0, 0xe2, 0xfe]);
    let back = -(i32::try_from(guest.len()).unwrap() + 5);
    guest.push(0xe9);
    guest.extend(back.to_le_bytes());
    let vm = Vm::start(&guest, "16M", &["--cpus", "2"]);
    let state = |vm: &Vm| vm.ask("GET", "/v1/state", "").1;
    assert!(state(&vm).contains("\"status\":\"running\""), "{}", state(&vm));
    assert!(state(&vm).contains(&format!("\"pid\":{}", vm.broker.id())), "{}", state(&vm));
    let log_bytes = |vm: &Vm| {
        let bytes = |name| std::fs::metadata(vm.path(name)).map_or(0, |file| file.len());
        (bytes("log.1"), bytes("log"))
    };
    for _ in 0..2 {
        assert_eq!(vm.ask("PUT", "/v1/pause", "").0, 204);
        assert!(state(&vm).contains("\"status\":\"paused\""), "{}", state(&vm));
        // What was printed before is written by a thread that is not paused.
        std::thread::sleep(Duration::from_millis(200));
        let before = log_bytes(&vm);
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(log_bytes(&vm), before, "a paused guest prints");
        assert_eq!(vm.ask("PUT", "/v1/resume", "").0, 204);
        let until = Instant::now() + PATIENCE;
        while log_bytes(&vm) == before {
            assert!(Instant::now() < until, "a guest that was resumed does not print");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    // Its log is bounded: one file, and the one before it.
    let until = Instant::now() + PATIENCE;
    while log_bytes(&vm).0 == 0 {
        assert!(Instant::now() < until, "the log does not turn");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(log_bytes(&vm).0 <= 4096 && log_bytes(&vm).1 <= 4096, "{:?}", log_bytes(&vm));
    // Whoever connects to the console gets what was printed last.
    let mut recent = [0; 4096];
    let mut client = UnixStream::connect(vm.path("console.sock")).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.read_exact(&mut recent).unwrap();
    assert_eq!(recent, [b'x'; 4096]);
    // What it has not, and what makes no sense.
    for (method, path, body, status, code) in [
        ("PUT", "/v1/balloon", "{\"target_bytes\": 1048576}", 404, "device_not_found"),
        ("PUT", "/v1/balloon", "{\"target\": 1}", 400, "bad_request"),
        ("PUT", "/v1/pause", "{}", 400, "bad_request"),
        ("GET", "/v1/devices/state", "", 409, "not_paused"),
        ("GET", "/v1/pause", "", 405, "no_such_route"),
        ("GET", "/nothing", "", 404, "no_such_route"),
    ] {
        let answer = vm.ask(method, path, body);
        assert_eq!(answer.0, status, "{method} {path}: {answer:?}");
        assert!(answer.1.contains(code) && answer.1.contains("next_step"), "{method} {path}: {answer:?}");
    }
    assert_eq!(vm.ask("PUT", "/v1/balloon", &"x".repeat(70_000)).0, 400);
    // Also out of a pause.
    assert_eq!(vm.ask("PUT", "/v1/pause", "").0, 204);
    assert_eq!(vm.ask("PUT", "/v1/reset", "").0, 204);
    assert_eq!(vm.end().0, Some(3));
}

/// What processes hold together beside guest memory, in KiB: a page that several map from one place of a file counts once.
fn resident_kib(processes: &[u32]) -> u64 {
    let mut own = 0;
    let mut shared = std::collections::BTreeMap::new();
    for pid in processes {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
        let mut place = None;
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let kib = || words[1].parse::<u64>().unwrap();
            match words[0] {
                "Private_Clean:" | "Private_Dirty:" if place.is_some() => own += kib(),
                "Shared_Clean:" | "Shared_Dirty:" => {
                    if let Some(place) = &place {
                        let most: &mut u64 = shared.entry(String::clone(place)).or_default();
                        *most = (*most).max(kib());
                    }
                }
                first if !first.ends_with(':') => {
                    let guest = line.contains("/memfd:guest-ram");
                    place = (!guest).then(|| format!("{} {}", words[2], words[5..].join(" ")));
                }
                _ => {}
            }
        }
    }
    own + shared.values().sum::<u64>()
}

/// Broker and VM together have at most 8 MiB beyond the guest's memory.
#[test]
fn a_small_vm_takes_little_memory() {
    let vm = Vm::start(&code(&[print("up")]), "128M", &["--rng", "--balloon"]);
    let jailed = vm.jailed();
    let resident = resident_kib(&[vm.broker.id(), jailed]);
    println!("resident: {resident} KiB");
    // An unoptimised program is larger.
    let most = if cfg!(debug_assertions) { 32 << 10 } else { 8 << 10 };
    assert!(resident <= most, "{resident} KiB");
}

/// A back end that goes and comes back at its path is found again through the broker, which alone knows paths.
#[test]
fn a_back_end_is_dialled_again_from_inside() {
    // A back end that hangs up at once: the VM is refused at its start, with the socket's name.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let hang_up = std::thread::spawn(move || drop(listener.accept()));
    let vm = Vm::start(&WAIT, "16M", &["--disk", &path.to_string_lossy()]);
    let (code, errors) = vm.end();
    hang_up.join().unwrap();
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("disk.sock"), "{errors}");
    let vm = Vm::start(&WAIT, "16M", &["--disk", "/nonexistent/disk.sock"]);
    let (code, errors) = vm.end();
    assert_eq!(code, Some(1), "{errors}");
    assert!(errors.contains("Is the daemon up"), "{errors}");
}

#[test]
fn a_guest_ends_the_jail_with_its_status() {
    let vm = Vm::start(&code(&[print("bye"), out(POWER_OFF.0, POWER_OFF.1)]), "16M", &[]);
    let log = vm.path("log");
    let until = Instant::now() + PATIENCE;
    while std::fs::read(&log).unwrap_or_default() != b"bye" {
        assert!(Instant::now() < until, "the log has not what was printed");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(vm.end().0, Some(0));
    // A process that is not started by a broker.
    let output =
        Command::new(env!("CARGO_BIN_EXE_vmm")).args(["--kernel", "k", "--jailed", "77"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
