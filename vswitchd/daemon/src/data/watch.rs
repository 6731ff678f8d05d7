//! What the worker sleeps on: one epoll with every descriptor, each with a token that says whose it is.
//!
//! Descriptors that are counted up by somebody else (kicks) or polled anyway while there is work (network cards, TAPs) are
//! edge-triggered, so that nothing has to be read to silence them; an edge between the last look and the sleep ends the
//! sleep at once.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// Whose a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Token {
    /// Commands.
    Wake,
    /// A port's control thread.
    Control(u32),
    /// A port has frames.
    Port(u32),
    /// An uplink has frames.
    Uplink(u32),
    /// Links may have changed.
    Links(u32),
    /// A tunnel's socket.
    Tunnel,
    /// It is time.
    Timer,
}

impl Token {
    fn encode(self) -> u64 {
        let (kind, n) = match self {
            Self::Wake => (0, 0),
            Self::Control(n) => (1, n),
            Self::Port(n) => (2, n),
            Self::Uplink(n) => (3, n),
            Self::Links(n) => (4, n),
            Self::Tunnel => (5, 0),
            Self::Timer => (6, 0),
        };
        kind << 32 | u64::from(n)
    }

    fn decode(data: u64) -> Self {
        let n = data as u32;
        match data >> 32 {
            1 => Self::Control(n),
            2 => Self::Port(n),
            3 => Self::Uplink(n),
            4 => Self::Links(n),
            5 => Self::Tunnel,
            6 => Self::Timer,
            _ => Self::Wake,
        }
    }
}

/// How a descriptor is watched.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Trigger {
    /// As long as it is readable.
    Level,
    /// Whenever something arrives.
    Edge,
}

/// The epoll.
pub(super) struct Watch {
    epoll: OwnedFd,
    /// For times that epoll, which counts milliseconds, would round up.
    timer: OwnedFd,
    events: Vec<epoll::Event>,
}

/// Descriptors that are taken in one look; more are found by the next.
const EVENTS_MAX: usize = 256;
/// From here on a millisecond does not matter.
const COARSE: Duration = Duration::from_millis(50);

impl Watch {
    pub(super) fn new() -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let it = Self { epoll, timer, events: Vec::with_capacity(EVENTS_MAX) };
        it.add(&it.timer, Token::Timer, Trigger::Edge)?;
        Ok(it)
    }

    /// Watches a descriptor. One that is watched already (a front end may use one eventfd for two rings) is fine.
    pub(super) fn add(&self, fd: impl AsFd, token: Token, trigger: Trigger) -> rustix::io::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        if trigger == Trigger::Edge {
            flags |= epoll::EventFlags::ET;
        }
        match epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token.encode()), flags) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// No longer watches it.
    pub(super) fn remove(&self, fd: impl AsFd) {
        // One that was not watched needs nothing.
        let _absent = epoll::delete(&self.epoll, fd);
    }

    /// Waits for at most so long, and hands out what happened.
    pub(super) fn wait(&mut self, most: Duration, mut happened: impl FnMut(Token)) -> std::io::Result<()> {
        self.events.clear();
        if !most.is_zero() && most < COARSE {
            let it_value = Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        }
        let most = Timespec { tv_sec: most.as_secs().cast_signed(), tv_nsec: i64::from(most.subsec_nanos()) };
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&most)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            let data = event.data;
            happened(Token::decode(data.u64()));
        }
        Ok(())
    }
}
