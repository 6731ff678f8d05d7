//! The channel between the control plane, which waits and allocates as it likes, and the worker, which must not.
//!
//! ```text
//!   plane, api ──Command──► bounded queue + eventfd ──► worker
//!              ◄──Event──── bounded queue           ◄──
//!              ◄──answer─── oneshot                 ◄──
//! ```
//!
//! Both queues are bounded. A command that does not fit is refused ([`SendError::Busy`]): a worker that is a thousand
//! commands behind is better left alone. Events that do not fit are lost, and [`Event::Missed`] says so as soon as there is
//! room: who hears it asks for everything anew ([`Command::Announced`], [`Command::Snapshot`]).
//!
//! What it must not know: how either side does its work.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Mac, NetName, Vni, Withdrawal};
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc as tokio_mpsc, oneshot};
use vswitch_core::config::Config;
use vswitch_core::frame::{Offload, Tci};
use vswitch_core::pipeline::Trace;

use super::capture::{Capture, CaptureId, CaptureOf, CaptureOptions};
use super::snapshot::{MacView, Names, PortLink, Snapshot};
use crate::endpoint::{Book, LeaseAnswer, LeaseWanted, WallSeconds};
use crate::ports::{PortDevice, UplinkDevice};
use crate::tunnel::Path;

/// Commands that may wait for the worker.
pub const COMMANDS_MAX: usize = 16_384;
/// Events that may wait for the control plane.
pub const EVENTS_MAX: usize = 65_536;

/// What the control plane tells the worker.
#[derive(Debug)]
pub enum Command {
    /// This configuration is in force; answered when it is. Ports that it no longer has lose their devices
    /// ([`PortLink::Removed`]); uplinks that it no longer has keep theirs until [`Command::RemoveUplink`].
    Configure(Box<Config>, oneshot::Sender<()>),
    /// Plug a device into a port of the configuration. The switch claims the port's address as soon as its guest takes
    /// frames, and gives it up when it no longer does.
    Attach {
        /// The port.
        name: NetName,
        /// What is plugged in.
        device: PortDevice,
        /// Whether it was.
        answer: oneshot::Sender<Result<(), AttachRefused>>,
    },
    /// Unplug a port's device; answered with whether there was one, once its socket is closed.
    Detach {
        /// The port.
        name: NetName,
        /// Whether something was plugged in.
        answer: oneshot::Sender<bool>,
    },
    /// What was made here for a port is to stay when this program ends, or is not to; answered with whether there was one.
    Persist {
        /// The port.
        name: NetName,
        /// Whether it stays. That it was made here has been written down before.
        stays: bool,
        /// Whether something was plugged in.
        answer: oneshot::Sender<bool>,
    },
    /// This network card is the uplink of this name, in place of any before. It is used once the configuration has it.
    AddUplink {
        /// The uplink.
        name: NetName,
        /// The card.
        device: UplinkDevice,
        /// Answered when it is in use.
        answer: oneshot::Sender<()>,
    },
    /// The uplink has no network card any more; answered with whether it had one.
    RemoveUplink {
        /// The uplink.
        name: NetName,
        /// Whether there was one.
        answer: oneshot::Sender<bool>,
    },
    /// An uplink may be used, or is held down whatever its link says. At first it may.
    Link {
        /// The uplink.
        uplink: NetName,
        /// Whether it may be used.
        up: bool,
    },
    /// A host that there is a tunnel to, at these addresses; or its addresses have changed.
    Peer {
        /// Which.
        host: HostId,
        /// Where its data connections end.
        addresses: Vec<SocketAddr>,
    },
    /// What a peer's control connection says.
    PeerSaid {
        /// Who.
        host: HostId,
        /// What.
        word: PeerWord,
    },
    /// The host has left the cluster: its connections end, and all that it said is forgotten.
    PeerRemove(HostId),
    /// The book of a group's leases, whenever it has changed anywhere, and what wall clock it is.
    LeaseBook {
        /// The port group.
        group: NetName,
        /// The wall clock.
        wall: WallSeconds,
        /// The book.
        book: Box<Book>,
    },
    /// What came of an [`Event::LeaseWanted`].
    Lease {
        /// The port group.
        group: NetName,
        /// What came of it.
        answer: LeaseAnswer,
    },
    /// All that is to be said on a new control connection: this host's virtual networks and addresses.
    Announced(oneshot::Sender<(Vec<Vni>, Vec<Announcement>)>),
    /// How everything is.
    Snapshot(oneshot::Sender<Box<Snapshot>>),
    /// Where addresses are, at most so many.
    Macs {
        /// At most.
        limit: usize,
        /// Gets them, in no order, and whether there were more.
        answer: oneshot::Sender<(Vec<MacView>, bool)>,
    },
    /// What would happen to a frame.
    Trace {
        /// Where it would come from.
        from: TraceFrom,
        /// Its bytes.
        frame: Vec<u8>,
        /// What is still to be done to it.
        offload: Offload,
        /// Gets the steps, with the names of all places in them.
        answer: oneshot::Sender<Result<(Trace, Names), UnknownPlace>>,
    },
    /// Copy the frames that pass somewhere. It ends by [`Command::CaptureStop`], or when its receiver is dropped.
    CaptureStart {
        /// Where.
        of: CaptureOf,
        /// How much of them.
        options: CaptureOptions,
        /// Gets the end where the frames come out.
        answer: oneshot::Sender<Result<Capture, CaptureRefused>>,
    },
    /// End a capture.
    CaptureStop(CaptureId),
    /// An address that was frozen may move again.
    Release {
        /// The virtual network, if it is one.
        vni: Option<Vni>,
        /// The address.
        mac: Mac,
    },
    /// End: guests' rings are stopped, connections closed; answered when that is done.
    Stop(oneshot::Sender<()>),
}

/// What a peer says on its control connection, or what that connection says by being there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerWord {
    /// Its heartbeats arrive, or three were missed.
    Alive(bool),
    /// It is in these virtual networks, and no others.
    Networks(Vec<Vni>),
    /// It has an address.
    Announce(Announcement),
    /// It no longer has one.
    Withdraw(Withdrawal),
    /// All that it has to say: what it does not repeat is withdrawn.
    Snapshot(Vec<Vni>, Vec<Announcement>),
}

/// Where a traced frame would come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TraceFrom {
    /// A port that is attached.
    Port(NetName),
    /// An uplink.
    Uplink(NetName),
    /// Another host's tunnel.
    Peer {
        /// Whose.
        host: HostId,
        /// The virtual network.
        vni: Vni,
        /// Priority and VLAN.
        tci: Tci,
    },
}

/// A place that is not there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnknownPlace {
    /// No such port, or nothing is attached to it.
    #[error("port {0:?} is not attached on this host")]
    Port(NetName),
    /// No such port group.
    #[error("there is no port group {0:?}")]
    Group(NetName),
    /// No such uplink.
    #[error("there is no uplink {0:?} on this host")]
    Uplink(NetName),
    /// No such peer.
    #[error("host {0} is no peer of this one")]
    Peer(HostId),
}

/// Why a capture can't begin.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CaptureRefused {
    /// Nothing to capture there.
    #[error(transparent)]
    Unknown(#[from] UnknownPlace),
    /// Too many captures.
    #[error("{0} captures are running already: end one of them first")]
    TooMany(usize),
}

/// Why a device can't be plugged in.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttachRefused {
    /// The configuration has no such port.
    #[error("port {0:?} is not in the configuration: create it first")]
    Unknown(NetName),
    /// Something is plugged in.
    #[error("port {0:?} has a device already: detach it first")]
    Attached(NetName),
    /// The system does not let the worker watch it.
    #[error("port {0:?} can't be watched: {1}")]
    Watch(NetName, rustix::io::Errno),
}

/// What the worker tells the control plane.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// Tell all peers.
    Announce(Announcement),
    /// Tell all peers.
    Withdraw(Withdrawal),
    /// Tell all peers that this host is in these virtual networks, and no others.
    Networks(Vec<Vni>),
    /// An address moved too often: most likely two machines have it. It stays where it is until it is released.
    Frozen {
        /// The virtual network, if it is one.
        vni: Option<Vni>,
        /// The address.
        mac: Mac,
    },
    /// What is plugged into a port, and how it is.
    Port {
        /// The port.
        name: NetName,
        /// How it is now.
        link: PortLink,
    },
    /// An uplink's link.
    Uplink {
        /// The uplink.
        name: NetName,
        /// Whether it can be used.
        up: bool,
    },
    /// The interface of an uplink is gone. [`Command::AddUplink`] with a new one when it is back.
    UplinkGone(NetName),
    /// A data connection to a peer works now, or works no longer.
    Path {
        /// The peer.
        host: HostId,
        /// Between which addresses.
        path: Path,
        /// Whether it works.
        up: bool,
    },
    /// A gateway wants something to be written into its book of leases; answered by [`Command::Lease`], or never.
    LeaseWanted(LeaseWanted),
    /// Events were lost because nobody took them: ask for everything anew.
    Missed,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct DataHandle {
    commands: mpsc::SyncSender<Command>,
    wake: Arc<OwnedFd>,
}

/// Why the worker does not get a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SendError {
    /// It has ended: the daemon is about to.
    #[error("the worker has ended")]
    Gone,
    /// It is too far behind.
    #[error("the worker is {COMMANDS_MAX} commands behind: try again")]
    Busy,
}

impl DataHandle {
    /// Sends a command. It never waits.
    pub fn send(&self, command: Command) -> Result<(), SendError> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::TrySendError::Full(_) => SendError::Busy,
            mpsc::TrySendError::Disconnected(_) => SendError::Gone,
        })?;
        match rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()) {
            // A full counter means that the worker is awake already.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the worker can't be woken");
                Err(SendError::Gone)
            }
        }
    }

    /// Sends a command that is answered, and waits for the answer.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, SendError> {
        let (answer, answered) = oneshot::channel();
        self.send(command(answer))?;
        answered.await.map_err(|_| SendError::Gone)
    }

    /// The same for who may block.
    pub fn ask_blocking<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, SendError> {
        let (answer, answered) = oneshot::channel();
        self.send(command(answer))?;
        answered.blocking_recv().map_err(|_| SendError::Gone)
    }
}

/// The worker's end.
#[derive(Debug)]
pub struct DataPort {
    commands: mpsc::Receiver<Command>,
    wake: Arc<OwnedFd>,
    events: tokio_mpsc::Sender<Event>,
    missed: AtomicBool,
}

impl DataPort {
    /// Tells the control plane something; one that is gone is no concern of the worker's.
    pub fn tell(&self, event: Event) {
        if self.missed.load(Ordering::Relaxed) && self.events.try_send(Event::Missed).is_ok() {
            self.missed.store(false, Ordering::Relaxed);
        }
        if let Err(tokio_mpsc::error::TrySendError::Full(_)) = self.events.try_send(event) {
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Says that events were lost, as soon as there is room to say so.
    pub fn retry(&self) {
        if self.missed.load(Ordering::Relaxed) && self.events.try_send(Event::Missed).is_ok() {
            self.missed.store(false, Ordering::Relaxed);
        }
    }

    /// The next command, if there is one.
    pub fn next(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Takes the wake-up.
    pub fn drain(&self) {
        let mut count = [0_u8; 8];
        // Nothing to take is as good.
        let _nothing = rustix::io::read(&*self.wake, &mut count);
    }
}

impl AsFd for DataPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Both ends, and where the events come out.
pub fn channel() -> std::io::Result<(DataHandle, DataPort, tokio_mpsc::Receiver<Event>)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (commands, commands_rx) = mpsc::sync_channel(COMMANDS_MAX);
    let (events, events_rx) = tokio_mpsc::channel(EVENTS_MAX);
    let handle = DataHandle { commands, wake: Arc::clone(&wake) };
    let port = DataPort { commands: commands_rx, wake, events, missed: AtomicBool::new(false) };
    Ok((handle, port, events_rx))
}
