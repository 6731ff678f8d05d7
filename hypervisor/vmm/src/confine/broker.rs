//! The process that was started: it opens what the VM needs, starts it, and answers what it may ask for.
//!
//! It stays outside, because back ends replace their sockets when they restart, and a log that is full is renamed. It
//! believes nothing that comes from the jail: a request is a number of the configuration, and there are not many a second.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use tracing::{debug, warn};

use super::{ConfineError, Ended, channel, step};
use crate::config::{ConsoleTarget, VmConfig};
use crate::events::{RawTerminal, Signals};
use crate::outside::{Direct, Given};

/// A VM that was told to end is told again: it may not have listened yet.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Requests that are answered in one interval; what is more waits for the next.
const ANSWERS_MAX: u32 = 64;
const INTERVAL: Duration = Duration::from_millis(100);
/// What it goes on with: the files and sockets of the configuration may belong to others, and so does the VM's process.
const KEPT: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::KILL);
/// The only variable that the VM sees.
const LOG_VARIABLE: &str = "VMM_LOG";

/// Runs a VM in a jailed process, to its end. That process is this program with the same arguments and `--jailed`.
pub fn broker(config: &VmConfig) -> Result<Ended, ConfineError> {
    let system = |what| move |source| ConfineError::System { what, source };
    let signals = Signals::take_over().map_err(system("taking over signals"))?;
    let (given, _places) = Given::open(config)?;
    let _terminal = RawTerminal::take(&config.console).map_err(system("taking over the terminal"))?;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(|errno| system("making a pair of sockets")(errno.into()))?;
    // Children are in it from now on, and this process is not.
    unshare_processes()?;
    let mut child = start(config, theirs).map_err(system("starting the VM's process"))?;
    let served = Pid::from_raw(child.id().cast_signed())
        .ok_or(Errno::SRCH)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(std::io::Error::from)
        .and_then(|process| {
            channel::give(&ours, given, std::process::id())
                // Who ends before it has taken everything has said why.
                .or_else(
                    |error| if error.raw_os_error() == Some(libc::EPIPE) { Ok(()) } else { Err(error) },
                )?;
            less()?;
            Broker { process, channel: Some(ours), outside: Direct::new(config), told: false, answers: 0 }
                .serve(&signals)
        });
    if served.is_err() {
        // Without a broker there is no VM.
        let _ = child.kill();
    }
    let ended = child.wait().map_err(system("waiting for the VM's process"))?;
    served.map_err(system("serving the VM's process"))?;
    Ok(match (ended.code(), ended.signal()) {
        (Some(status), _) => Ended::Status(u8::try_from(status).unwrap_or(u8::MAX)),
        (None, signal) => Ended::Killed(signal.unwrap_or(0)),
    })
}

#[allow(unsafe_code)]
fn unshare_processes() -> Result<(), ConfineError> {
    // SAFETY: descriptors are shared as before; only the namespace of children changes.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWPID) }.map_err(step("a namespace for processes"))
}

fn start(config: &VmConfig, channel: OwnedFd) -> std::io::Result<Child> {
    // There is no other thread that could start a process at this moment.
    fcntl_setfd(&channel, FdFlags::empty())?;
    let mut command = Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).arg(format!("--jailed={}", channel.as_raw_fd()));
    command.env_clear().envs(std::env::var_os(LOG_VARIABLE).map(|value| (LOG_VARIABLE, value)));
    if config.console != ConsoleTarget::Standard {
        command.stdin(Stdio::null()).stdout(File::options().write(true).open("/dev/null")?);
    }
    command.spawn()
}

/// Gives up the rights that are not needed any more.
fn less() -> std::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let sets = CapabilitySets { effective: KEPT, permitted: KEPT, inheritable: CapabilitySet::empty() };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

struct Broker {
    process: OwnedFd,
    channel: Option<OwnedFd>,
    outside: Direct,
    /// Somebody told the VM to end.
    told: bool,
    answers: u32,
}

impl Broker {
    /// Until the process has ended.
    fn serve(mut self, signals: &Signals) -> std::io::Result<()> {
        let mut interval = Instant::now();
        loop {
            let mut waited =
                vec![PollFd::new(&self.process, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            if let Some(channel) = &self.channel {
                waited.push(PollFd::new(channel, PollFlags::IN));
            }
            let again = Timespec::try_from(TELL_EVERY).map_err(std::io::Error::other)?;
            match poll(&mut waited, self.told.then_some(&again)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
            drop(waited);
            if ready[0] {
                return Ok(());
            }
            self.told |= ready[1] && signals.take()?;
            if self.told {
                tell(&self.process);
            }
            if ready.get(2) == Some(&true) {
                self.answer(&mut interval);
            }
        }
    }

    fn answer(&mut self, interval: &mut Instant) {
        let Some(channel) = &self.channel else { return };
        if let Err(error) = channel::answer(channel.as_fd(), &self.outside) {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                debug!("the VM's process asks for nothing any more");
            } else {
                warn!("the VM's process said what makes no sense ({error}); it gets nothing any more");
            }
            self.channel = None;
        }
        self.answers += 1;
        if self.answers == ANSWERS_MAX {
            std::thread::sleep(INTERVAL.saturating_sub(interval.elapsed()));
            *interval = Instant::now();
            self.answers = 0;
        }
    }
}

fn tell(process: &OwnedFd) {
    match pidfd_send_signal(process, Signal::TERM) {
        // It has just ended.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => warn!("telling the VM's process to end: {error}"),
    }
}
