//! The channel between the control plane, which waits and allocates as it likes, and the data loop, which must not.
//!
//! Commands go one way and wake the loop by an eventfd; events come back over a tokio channel. Answers travel in
//! `oneshot` channels. What it must not know: how either side does its work.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;

use ferro_protocol::ids::{ChunkId, ChunkIndex, DiskId, Epoch, HostId, ObjectId};
use ferro_transport::tls::RawTls;
use ferro_vhost::blk::BlkDevice;
use ferro_vhost::server::Server;
use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::{mpsc as tokio_mpsc, oneshot};
use vsand_core::directory::{Command as DirectoryCommand, Heat, ObjectRecord, Outcome, Refused, State};
use vsand_core::lease::Renewal;
use vsand_core::limits::Limits;
use vsand_core::owner::guest::{GuestRequest, GuestResult};
use vsand_core::owner::{Config as OwnerConfig, ProposalId, ResyncView, ScrubEnd, Trouble};
use vsand_core::time::Instant;
use vsand_core::volume::ConversionView;
use vsand_store::{InventoryEntry, Store};

use super::stats::Snapshot;

/// Which of two connections to the same host, one after the other.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConnectionId(pub u64);

/// The socket that an owner's guest uses.
pub struct GuestSocket {
    /// The control thread; dropping it closes the socket.
    pub server: Server,
    /// The rings.
    pub device: BlkDevice,
    /// Where the socket is.
    pub path: PathBuf,
}

/// What the control plane tells the data loop.
pub enum Command {
    /// A data connection stands. Of an outbound one this host asks, of an inbound one it is asked.
    Connected {
        /// Its name.
        id: ConnectionId,
        /// The other end.
        host: HostId,
        /// Who asks.
        outbound: bool,
        /// Socket and TLS state.
        raw: Box<RawTls>,
    },
    /// The directory has changed.
    State(Arc<State>),
    /// What guests may ask of each volume at most, of all that are limited, by the lineage of its object.
    Limits(HashMap<[u8; 8], Limits>),
    /// This host's lease was renewed: owners serve on, or end if their locks are gone.
    Lease(Renewal),
    /// Serve a disk that was opened.
    AddDisk(Box<Store>),
    /// Stop serving a disk; it is checkpointed and closed before the answer.
    RemoveDisk(DiskId, oneshot::Sender<()>),
    /// This host owns the object now.
    Own {
        /// What the directory said.
        record: Arc<ObjectRecord>,
        /// When it said so: renewals of the lease that were sent before prove nothing about this lock.
        acquired: Instant,
        /// How to own it.
        config: OwnerConfig,
        /// Where its guest is, if it has one.
        socket: Option<Box<GuestSocket>>,
    },
    /// Give the object up once no request is under way; answered with what it is by then and its epoch, or nothing if it is not owned
    /// here.
    Disown(ObjectId, oneshot::Sender<Option<(ObjectId, Epoch)>>),
    /// Give the object up with requests under way, unless a guest waits for them; answered with whether it is given up.
    Abandon(ObjectId, oneshot::Sender<bool>),
    /// An import or export reads or writes.
    Transfer {
        /// The object.
        object: ObjectId,
        /// What to do.
        request: GuestRequest,
        /// Gets the result; dropped if the object is lost meanwhile.
        answer: oneshot::Sender<GuestResult>,
    },
    /// An owner is to scrub a chunk; what it did before it drops.
    Scrub {
        /// The object.
        object: ObjectId,
        /// The chunk.
        chunk: ChunkIndex,
        /// At most so fast.
        bytes_per_s: u64,
        /// How it ended; dropped if the object is not owned here any more, or another chunk is scrubbed.
        answer: oneshot::Sender<ScrubEnd>,
    },
    /// What the owner scrubs is dropped.
    StopScrub(ObjectId),
    /// An owner is to move a component from a disk, unless it moves one already; the directory shows what comes of it.
    Move {
        /// The object.
        object: ObjectId,
        /// The chunk.
        chunk: ChunkIndex,
        /// Where the component is.
        from: DiskId,
        /// To where, if it is not for the directory to say.
        to: Option<DiskId>,
    },
    /// What became of an owner's proposal.
    Proposed {
        /// The object.
        object: ObjectId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Which proposal.
        id: ProposalId,
        /// The directory's answer, if there was one.
        result: Option<Result<Outcome, Refused>>,
    },
    /// Refuse everything about these components until one of the next two comes; answered when that is so.
    Condemn(DiskId, Vec<ChunkId>, oneshot::Sender<()>),
    /// The directory does not know them: remove.
    RemoveCondemned(DiskId, Vec<ChunkId>),
    /// The directory knows them.
    Pardon(DiskId, Vec<ChunkId>),
    /// Objects of which the directory knows nothing: the disk's promises to them go.
    ForgetObjects(DiskId, Vec<ObjectId>),
    /// The objects whose epochs each disk has promised and of which it has no component.
    BarePromises(oneshot::Sender<Vec<(DiskId, Vec<ObjectId>)>>),
    /// What each disk holds.
    Inventory(oneshot::Sender<Vec<(DiskId, Vec<InventoryEntry>)>>),
    /// What each disk keeps for objects, in extents, and the revision of the directory's [`Provisioning`] that says so.
    ///
    /// [`Provisioning`]: vsand_core::directory::Provisioning
    Keep(u64, BTreeMap<DiskId, HashMap<ObjectId, u32>>),
    /// What owners ask of components, of those that have something to serve for long enough.
    Heats(oneshot::Sender<Vec<Heat>>),
    /// How everything is.
    Snapshot(oneshot::Sender<Box<Snapshot>>),
    /// Checkpoint all disks and end; answered with the disks that did not answer in time.
    Stop(oneshot::Sender<Vec<DiskId>>),
}

/// What the data loop tells the control plane.
#[derive(Debug)]
pub enum Event {
    /// An owner wants something of the directory.
    Propose {
        /// The object.
        object: ObjectId,
        /// The owner's epoch.
        epoch: Epoch,
        /// Which proposal.
        id: ProposalId,
        /// What.
        command: DirectoryCommand,
    },
    /// The object belongs to another host now; its socket is closed.
    Fenced {
        /// The object.
        object: ObjectId,
        /// The epoch that was fenced.
        epoch: Epoch,
    },
    /// The volume is another object now, under the same epoch: a conversion has ended.
    Became {
        /// What it was.
        from: ObjectId,
        /// What it is.
        to: ObjectId,
    },
    /// A disk has failed.
    DiskDied {
        /// The disk.
        disk: DiskId,
        /// Why.
        reason: String,
    },
    /// A connection is gone.
    Disconnected {
        /// Which.
        id: ConnectionId,
        /// To whom it was.
        host: HostId,
        /// Who asked.
        outbound: bool,
        /// Why.
        reason: String,
    },
}

/// One volume as its owner sees it.
#[derive(Clone, Debug)]
pub struct VolumeView {
    /// The object.
    pub object: ObjectId,
    /// The epoch.
    pub epoch: Epoch,
    /// Whether every placed chunk serves.
    pub serving: bool,
    /// What keeps I/O waiting.
    pub troubles: Vec<Trouble>,
    /// Resyncs under way.
    pub resyncs: Vec<ResyncView>,
    /// What it is being made into.
    pub conversion: Option<ConversionView>,
    /// The guest's socket.
    pub socket: Option<PathBuf>,
    /// Whether a VMM is connected to it.
    pub attached: bool,
    /// Requests under way.
    pub in_flight: usize,
}

/// The control plane's end.
#[derive(Clone, Debug)]
pub struct DataHandle {
    commands: mpsc::Sender<Command>,
    wake: Arc<OwnedFd>,
}

/// The loop is gone: the daemon is about to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the data loop has ended")]
pub struct LoopGone;

impl DataHandle {
    /// Sends a command.
    pub fn send(&self, command: Command) -> Result<(), LoopGone> {
        self.commands.send(command).map_err(|_| LoopGone)?;
        match rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()) {
            // A full counter means that the loop is awake already.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "the data loop can't be woken");
                Err(LoopGone)
            }
        }
    }

    /// Sends a command that is answered, and waits for the answer.
    pub async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, LoopGone> {
        let (answer, answered) = oneshot::channel();
        self.send(command(answer))?;
        answered.await.map_err(|_| LoopGone)
    }
}

/// The data loop's end.
pub struct DataPort {
    commands: mpsc::Receiver<Command>,
    wake: Arc<OwnedFd>,
    events: tokio_mpsc::UnboundedSender<Event>,
}

impl DataPort {
    /// Tells the control plane something; one that is gone is no concern of the loop's.
    pub fn tell(&self, event: Event) {
        let _gone = self.events.send(event);
    }

    /// The next command, if there is one.
    pub fn next(&self) -> Option<Command> {
        self.commands.try_recv().ok()
    }

    /// Takes the wake-up.
    pub fn drain(&self) {
        let mut count = [0_u8; 8];
        let _nothing = rustix::io::read(&*self.wake, &mut count);
    }
}

impl AsFd for DataPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Both ends, and where the events come out.
pub fn channel() -> std::io::Result<(DataHandle, DataPort, tokio_mpsc::UnboundedReceiver<Event>)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (commands, commands_rx) = mpsc::channel();
    let (events, events_rx) = tokio_mpsc::unbounded_channel();
    let handle = DataHandle { commands, wake: Arc::clone(&wake) };
    Ok((handle, DataPort { commands: commands_rx, wake, events }, events_rx))
}
