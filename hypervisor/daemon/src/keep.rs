//! The process between the daemon and a vmm. How a process ended is told to its parent alone, and the daemon may be away just
//! then, or be another one than that which started it. So each vmm has a small parent that does nothing but write that down.
//!
//! ```text
//!   hypervisord ──starts──► hypervisord keep ──starts──► vmm
//!        ▲                        │ pid, then exit: "exit 0", "signal 9"
//!        └── pidfds of both       ▼
//!                             <run_dir>/vms/<name>/
//! ```
//!
//! It enters the VM's control group, if there is one to enter, before it starts the vmm; so all of the VM is in there.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};

use clap::Args;

/// What it is told.
#[derive(Args, Debug)]
pub struct Keep {
    /// Where the vmm's process id is written.
    #[arg(long)]
    pid_file: PathBuf,
    /// Where it is written how it ended.
    #[arg(long)]
    exit_file: PathBuf,
    /// A control group to enter first.
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// The vmm and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Starts the vmm and stays until it has ended.
pub fn run(keep: &Keep) -> ExitCode {
    match stay(keep) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the vmm's log.
            eprintln!("hypervisord keep: {error}");
            ExitCode::FAILURE
        }
    }
}

fn stay(keep: &Keep) -> io::Result<()> {
    let failed =
        |what: String| move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"));
    if let Some(group) = &keep.cgroup {
        // "0" is whoever writes it.
        fs::write(group.join("cgroup.procs"), "0")
            .map_err(failed(format!("entering {}", group.display())))?;
    }
    let (program, arguments) = keep.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .map_err(failed(format!("starting {program}")))?;
    write_whole(&keep.pid_file, &child.id().to_string())
        .map_err(failed(format!("writing {}", keep.pid_file.display())))?;
    let status = child.wait()?;
    write_whole(&keep.exit_file, &words(status))
}

/// So that whoever sees the file sees all of it. The folder is gone after a reboot: nothing has to survive one.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    fs::write(&beside, text)?;
    fs::rename(&beside, path)
}

fn words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// How a vmm ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// With this status.
    Status(i32),
    /// By this signal.
    Signal(i32),
    /// Nobody knows.
    Unknown,
}

/// What was written down of a vmm's end.
pub fn read_end(exit_file: &Path) -> Ended {
    let text = fs::read_to_string(exit_file).unwrap_or_default();
    let number = |text: &str| text.parse::<i32>().ok();
    match text.split_once(' ') {
        Some(("exit", code)) => number(code).map_or(Ended::Unknown, Ended::Status),
        Some(("signal", signal)) => number(signal).map_or(Ended::Unknown, Ended::Signal),
        _ => Ended::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(dir: &Path, command: &[&str]) -> Keep {
        Keep {
            pid_file: dir.join("pid"),
            exit_file: dir.join("exit"),
            cgroup: None,
            command: command.iter().map(|word| (*word).to_owned()).collect(),
        }
    }

    #[test]
    fn the_end_is_written_down() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read_end(&dir.path().join("exit")), Ended::Unknown);
        stay(&keep(dir.path(), &["/bin/sh", "-c", "exit 7"])).unwrap();
        assert_eq!(read_end(&dir.path().join("exit")), Ended::Status(7));
        assert!(fs::read_to_string(dir.path().join("pid")).unwrap().parse::<u32>().is_ok());
        stay(&keep(dir.path(), &["/bin/sh", "-c", "kill -9 $$"])).unwrap();
        assert_eq!(read_end(&dir.path().join("exit")), Ended::Signal(9));
        assert!(stay(&keep(dir.path(), &["/nowhere/at/all"])).is_err());
    }
}
