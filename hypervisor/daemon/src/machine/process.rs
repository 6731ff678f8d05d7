//! A process that may be somebody else's child: known by its id, when it was started and in which boot, so that another one with
//! the same id is never taken for it; watched by a pidfd (`pidfd_open(2)`), each by a small thread that waits for nothing else.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// The stack of a thread that waits for a process.
const STACK_BYTES: usize = 64 << 10;

/// What Linux counts in for user space on this architecture (proc(5), `sysconf(_SC_CLK_TCK)`).
const TICKS_A_SECOND: u64 = 100;
/// An ordinary page of this architecture.
const PAGE_BYTES: u64 = 4096;

/// Which process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it was started, in clock ticks since the boot (proc(5), `/proc/pid/stat`, field 22).
    pub started: u64,
    /// A number of the boot.
    pub boot: u64,
}

/// A hold on a process.
#[derive(Debug)]
pub struct Handle {
    fd: Arc<OwnedFd>,
    ended: watch::Receiver<bool>,
}

impl ProcessId {
    /// The process that has this number now.
    pub fn of(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = started(&stat).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat is none")))?;
        Ok(Self { pid, started, boot: boot() })
    }

    /// A hold on it; none if it has ended. A zombie has.
    pub fn open(&self) -> io::Result<Option<Handle>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Whoever has the number while we hold it is the one that we asked about, or never will be.
        match Self::of(self.pid) {
            Ok(now) if now == *self => Handle::new(fd).map(Some),
            _ => Ok(None),
        }
    }
}

impl Handle {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let fd = Arc::new(fd);
        let (said, ended) = watch::channel(false);
        let watched = Arc::clone(&fd);
        std::thread::Builder::new().name("vmm-end".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            if wait(&watched).is_ok() {
                said.send_replace(true);
            }
        })?;
        Ok(Self { fd, ended })
    }

    /// Returns when it has ended.
    pub async fn ended(&self) -> io::Result<()> {
        let mut ended = self.ended.clone();
        let waited = ended.wait_for(|ended| *ended).await;
        waited.map(drop).map_err(|_| io::Error::other("its end can't be waited for"))
    }

    /// Ends it. One that has ended is as good.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&*self.fd, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn wait(fd: &OwnedFd) -> io::Result<()> {
    loop {
        // A pidfd is readable when its process has ended.
        match poll(&mut [PollFd::new(fd, PollFlags::IN)], None) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn started(stat: &str) -> Option<u64> {
    // The second field is a name in parentheses, which may have spaces and parentheses of its own.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// A number of this boot, from its id.
fn boot() -> u64 {
    static BOOT: OnceLock<u64> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
        u64::from_str_radix(&digits, 16).unwrap_or(0)
    })
}

/// How deep processes of a VM are below that which was started: its own, and no more.
const DEPTH_MAX: u32 = 4;

/// The processor time of a VM's process and of those below it in microseconds, and their memory in bytes. Our vmm is two
/// processes, and the guest is in the lower one.
pub fn usage(pid: u32) -> Option<(u64, u64)> {
    usage_down_to(pid, DEPTH_MAX)
}

fn usage_down_to(pid: u32, depth: u32) -> Option<(u64, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let mut pages = pages.split(' ').skip(1).map_while(|word| word.parse::<u64>().ok());
    let (resident, shared) = (pages.next()?, pages.next()?);
    // Where the kernel does not tell children (CONFIG_PROC_CHILDREN) there are none.
    let below = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let below: Vec<(u64, u64)> = below
        .split_whitespace()
        .filter(|_| depth > 0)
        .filter_map(|child| usage_down_to(child.parse().ok()?, depth - 1))
        .collect();
    // What a process shares with those below it is counted there.
    let own = if below.is_empty() { resident } else { resident.saturating_sub(shared) };
    let first = (ticks * 1_000_000 / TICKS_A_SECOND, own * PAGE_BYTES);
    Some(below.into_iter().fold(first, |sum, one| (sum.0 + one.0, sum.1 + one.1)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;

    use super::*;

    #[tokio::test]
    async fn another_with_the_same_number_is_not_it() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id()).unwrap();
        let handle = id.open().unwrap().unwrap();
        assert!(ProcessId { started: id.started + 1, ..id }.open().unwrap().is_none());
        assert!(ProcessId { boot: id.boot ^ 1, ..id }.open().unwrap().is_none());
        handle.kill().unwrap();
        handle.ended().await.unwrap();
        child.wait().unwrap();
        handle.kill().unwrap();
        assert!(id.open().unwrap().is_none());
    }

    #[test]
    fn what_runs_below_a_process_is_its_too() {
        let mut child = std::process::Command::new("/bin/sh")
            .args(["-c", "head -c 50000000 /dev/zero | tail -c 40000000 | sleep 1000; true"])
            .process_group(0)
            .spawn()
            .unwrap();
        let began = std::time::Instant::now();
        // `tail` keeps what it is to print; the shell has nothing of it.
        while usage(child.id()).unwrap().1 < 30_000_000 {
            assert!(began.elapsed().as_secs() < 30, "{:?}", usage(child.id()));
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let group = Pid::from_child(&child);
        rustix::process::kill_process_group(group, Signal::KILL).unwrap();
        child.wait().unwrap();
        assert!(usage(child.id()).is_none());
    }

    #[test]
    fn a_name_can_be_anything() {
        let mut stat = "7 (a) b (c) S".to_owned();
        for n in 4..=25 {
            stat.push_str(&[" ", &n.to_string()].concat());
        }
        assert_eq!(started(&stat), Some(22));
        assert_eq!(started("nonsense"), None);
    }
}
