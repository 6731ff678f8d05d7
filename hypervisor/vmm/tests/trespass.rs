//! A process that locks itself in as a VM's does, and then tries what it must not: each attempt, from each kind of thread,
//! is refused or is its end. Nothing of this is in the product: this file's program runs itself anew as the trespasser.
//!
//! It needs root, as the jail does.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};

use rustix::thread::UnshareFlags;
use vmm::confine::{Filters, User, enter};
use vmm::threads::{ThreadKind, Threads};

/// What is tried.
const ATTEMPTS: &[&str] = &["none", "path", "socket", "exec", "syscall", "code", "thread", "signal", "kvm"];
/// By whom: threads, the first one in the end, and the first one before there are filters.
const PLACES: &[&str] = &["processor", "link", "device", "api", "main", "start", "unfiltered"];

/// The trespasser was not stopped.
const PASSED: u8 = 10;
/// The kernel said no.
const REFUSED: u8 = 11;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [flag, place, attempt] if flag == "--trespass" => ExitCode::from(trespass(place, attempt)),
        [flag, ..] if flag == "--list" => {
            println!("trespass: test");
            ExitCode::SUCCESS
        }
        _ => check_all(),
    }
}

fn check_all() -> ExitCode {
    assert!(rustix::process::geteuid().is_root(), "only root can make a jail: run these tests as root");
    // What each attempt has to come to: a status, or a signal.
    let mut wrong = 0;
    for place in PLACES {
        for attempt in ATTEMPTS {
            let wanted = match (*place, *attempt) {
                // Without filters the empty root, the network without anything in it and the user are left. The start may
                // call KVM, and standard input is none.
                ("unfiltered", "path" | "socket" | "exec" | "signal" | "kvm") | ("start", "kvm") => {
                    Err(REFUSED)
                }
                // The start makes threads.
                (_, "none") | ("unfiltered", _) | ("start", "thread") => Err(PASSED),
                _ => Ok(libc::SIGSYS),
            };
            let output = Command::new("/proc/self/exe")
                .args(["--trespass", place, attempt])
                .stdin(Stdio::null())
                .output();
            let output = output.expect("the test starts itself");
            let got =
                output.status.signal().ok_or_else(|| output.status.code().map_or(255, |code| code as u8));
            if got != wanted {
                wrong += 1;
                println!(
                    "{attempt} from {place}: {wanted:?} wanted, got {got:?}: {}",
                    String::from_utf8_lossy(&output.stderr)
                );
            }
        }
    }
    println!("{} attempts, {wrong} of them did not end as they should", PLACES.len() * ATTEMPTS.len());
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Locks itself in and tries; the status says what came of it.
fn trespass(place: &str, attempt: &str) -> u8 {
    if std::env::var_os("INSIDE").is_none() {
        // As the broker does it: the jailed process is the first of its namespace.
        // SAFETY: descriptors are shared as before; only the namespace of children changes.
        #[allow(unsafe_code)]
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.expect("a namespace for processes");
        let arguments = ["--trespass", place, attempt];
        let status = Command::new("/proc/self/exe").args(arguments).env("INSIDE", "1").status();
        let status = status.expect("the test starts itself");
        if let Some(signal) = status.signal() {
            // The same end, for the one who waits for this process.
            assert_eq!(signal, libc::SIGSYS);
            // SAFETY: the default action of the signal ends this process.
            #[allow(unsafe_code)]
            unsafe {
                libc::raise(signal)
            };
        }
        return status.code().map_or(255, |code| code as u8);
    }
    let attempt = attempt.to_owned();
    enter(User::default()).expect("the jail");
    if place == "unfiltered" {
        return attempt_it(&attempt);
    }
    let threads = Threads::confined(tracing::Span::none(), Filters::new().expect("the filters"));
    threads.confine_start().expect("the filter of the start");
    let kind = match place {
        "processor" => ThreadKind::Processor,
        "link" => ThreadKind::Link,
        "device" => ThreadKind::Device,
        "api" => ThreadKind::Api,
        "main" => {
            threads.confine_main().expect("the filter of the first thread");
            return attempt_it(&attempt);
        }
        _ => return attempt_it(&attempt),
    };
    let (tell, told) = std::sync::mpsc::channel();
    let thread = threads
        .spawn(kind, "trespasser".into(), None, move || {
            let _ = tell.send(attempt_it(&attempt));
        })
        .expect("a thread");
    let came_of_it = told.recv().expect("an answer");
    thread.join().expect("its end");
    came_of_it
}

#[allow(unsafe_code)]
fn attempt_it(attempt: &str) -> u8 {
    let no = |failed: bool| if failed { REFUSED } else { PASSED };
    // SAFETY: each call gets numbers, or pointers to constants; none of them touches this program's memory.
    unsafe {
        match attempt {
            "none" => PASSED,
            "path" => no(libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY) < 0),
            "socket" => no(std::net::TcpStream::connect(("127.0.0.1", 22)).is_err()),
            "exec" => {
                let nothing = [std::ptr::null()];
                no(libc::execve(c"/bin/true".as_ptr(), nothing.as_ptr(), nothing.as_ptr()) < 0)
            }
            "syscall" => no(libc::syscall(libc::SYS_getppid) < 0),
            "code" => {
                let (read, exec) = (libc::PROT_READ, libc::PROT_EXEC);
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                no(libc::mmap(std::ptr::null_mut(), 4096, read | exec, flags, -1, 0) == libc::MAP_FAILED)
            }
            "thread" => no(std::thread::Builder::new().spawn(|| {}).map(|thread| thread.join()).is_err()),
            // To nobody that is there: a process outside has no number here.
            "signal" => no(libc::kill(2, 0) < 0),
            // KVM_CREATE_VM, at what is no KVM.
            "kvm" => no(libc::ioctl(0, 0xae01, 0) < 0),
            other => panic!("there is no attempt {other}"),
        }
    }
}
