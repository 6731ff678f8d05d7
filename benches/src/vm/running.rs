//! A machine while it runs: what it prints and when, what its processes hold. Ended with the whole of its processes when
//! this is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

use crate::process::Stop;

/// How much of a console is kept to be shown with an error.
const CONSOLE_MAX: usize = 16 << 10;
const POLL: Duration = Duration::from_millis(5);

/// A monitor and its guest.
#[derive(Debug)]
pub(super) struct RunningVm {
    child: Child,
    began: Instant,
    output: Receiver<(Instant, Vec<u8>)>,
    console: Vec<u8>,
}

impl RunningVm {
    /// Starts it. The clock runs from just before.
    pub(super) fn start(mut command: Command) -> anyhow::Result<Self> {
        let shown = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).process_group(0);
        let began = Instant::now();
        let mut child = command.spawn().with_context(|| format!("starting {shown}"))?;
        let mut out = child.stdout.take().context("it has no output")?;
        let (sender, output) = sync_channel(1024);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut bytes) {
                if sender.send((Instant::now(), bytes[..count].to_vec())).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, began, output, console: Vec::new() })
    }

    /// How long after its start it printed this.
    pub(super) fn printed(
        &mut self,
        text: &[u8],
        timeout: Duration,
        stop: &Stop,
    ) -> anyhow::Result<Duration> {
        // It may have come together with what was waited for before.
        if self.take(text) {
            return Ok(self.began.elapsed());
        }
        loop {
            stop.check()?;
            match self.output.recv_timeout(POLL) {
                Ok((when, bytes)) => {
                    self.console.extend_from_slice(&bytes);
                    if self.take(text) {
                        return Ok(when - self.began);
                    }
                    let surplus = self.console.len().saturating_sub(CONSOLE_MAX);
                    self.console.drain(..surplus);
                }
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if self.began.elapsed() < timeout => {}
                Err(_) => bail!(
                    "the machine did not print {:?} within {} s; its console:\n{}",
                    String::from_utf8_lossy(text),
                    timeout.as_secs(),
                    String::from_utf8_lossy(&self.console)
                ),
            }
        }
    }

    /// Forgets the console up to the end of this text, if it is there.
    fn take(&mut self, text: &[u8]) -> bool {
        let found = self.console.windows(text.len()).position(|window| window == text);
        if let Some(at) = found {
            self.console.drain(..at + text.len());
        }
        found.is_some()
    }

    /// What stands between what was last waited for and the end of its line.
    pub(super) fn rest_of_line(&mut self, timeout: Duration, stop: &Stop) -> anyhow::Result<String> {
        let began = Instant::now();
        loop {
            stop.check()?;
            if let Some(end) = self.console.iter().position(|&byte| byte == b'\n') {
                let line = self.console.drain(..=end).collect::<Vec<_>>();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            match self.output.recv_timeout(POLL) {
                Ok((_, bytes)) => self.console.extend_from_slice(&bytes),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if began.elapsed() < timeout => {}
                Err(_) => bail!("the machine ended in the middle of a line: {:?}", self.console),
            }
        }
    }

    /// Processor time of all its processes until now, that of its guest included.
    pub(super) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut ticks = 0;
        for pid in family(self.child.id())? {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
                .with_context(|| format!("process {pid} is gone"))?;
            ticks += ticks_of(&stat).with_context(|| format!("the times of process {pid}"))?;
        }
        Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
    }

    /// Resident bytes of all its processes without the guest's memory. What several of them map from one place of a file,
    /// as the program itself, counts once.
    pub(super) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let mut resident = Resident::default();
        for pid in family(self.child.id())? {
            let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))
                .with_context(|| format!("process {pid} is gone"))?;
            resident.add(&smaps);
        }
        Ok(resident.bytes())
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        if let Err(error) = rustix::process::kill_process_group(pid, Signal::KILL) {
            eprintln!("ferro-bench: ending a machine: {error}");
        }
        if let Err(error) = self.child.wait() {
            eprintln!("ferro-bench: waiting for a machine: {error}");
        }
    }
}

/// `utime` and `stime` of proc(5)'s `stat`.
fn ticks_of(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// A process and all that come from it.
fn family(root: u32) -> anyhow::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").context("listing /proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        parents.push((pid, parent.unwrap_or(0)));
    }
    let mut family = vec![root];
    let mut at = 0;
    while let Some(&of) = family.get(at) {
        family.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(family)
}

/// What proc(5)'s `smaps` say is resident, but for shared memory files: guest memory is one.
#[derive(Debug, Default)]
struct Resident {
    own: u64,
    /// By offset and file.
    shared: BTreeMap<String, u64>,
}

impl Resident {
    /// Adds one process.
    fn add(&mut self, smaps: &str) {
        let mut place = None;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let first = words.next().unwrap_or_default();
            if !first.ends_with(':') {
                let file: Vec<&str> = words.skip(1).collect();
                place = (!line.contains("/memfd:")).then(|| file.join(" "));
                continue;
            }
            let Some(place) = &place else { continue };
            let bytes = words.next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10;
            match first {
                "Private_Clean:" | "Private_Dirty:" => self.own += bytes,
                "Shared_Clean:" | "Shared_Dirty:" => {
                    let most = self.shared.entry(format!("{first}{place}")).or_default();
                    *most = bytes.max(*most);
                }
                _ => {}
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.own + self.shared.values().sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f00-7f10 rw-s 00000000 00:01 5 /memfd:guest (deleted)
Rss:            900 kB
Private_Dirty:  900 kB
55aa-55bb r-xp 00002000 08:01 9 /usr/bin/vmm
Rss:            300 kB
Shared_Clean:   250 kB
Private_Clean:   50 kB
";

    #[test]
    fn processor_time_is_that_of_user_and_system() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 30 12 5 5 20 0 1 0 1 1 1";
        assert_eq!(ticks_of(stat), Some(42));
    }

    #[test]
    fn guest_memory_is_not_the_monitors_and_what_two_share_counts_once() {
        let mut resident = Resident::default();
        resident.add(SMAPS);
        assert_eq!(resident.bytes(), 300 << 10);
        resident.add(SMAPS);
        assert_eq!(resident.bytes(), 350 << 10);
    }

    #[test]
    fn a_machine_is_seen_printing_and_ends_with_its_children() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; sleep 60 & echo two; wait"]);
        let mut vm = RunningVm::start(command).unwrap();
        let stop = Stop::default();
        vm.printed(b"two", Duration::from_secs(20), &stop).unwrap();
        let pids = family(vm.child.id()).unwrap();
        assert_eq!(pids.len(), 2);
        assert!(vm.resident_bytes().unwrap() > 0);
        drop(vm);
        let gone = |pid: &u32| {
            (0..200).any(|_| {
                std::thread::sleep(Duration::from_millis(10));
                !fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
            })
        };
        assert!(pids.iter().all(gone));
    }

    #[test]
    fn silence_is_an_error_with_the_console() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo something else; sleep 60"]);
        let mut vm = RunningVm::start(command).unwrap();
        let error = vm.printed(b"never", Duration::from_secs(1), &Stop::default()).unwrap_err().to_string();
        assert!(error.contains("something else"), "{error}");
    }
}
