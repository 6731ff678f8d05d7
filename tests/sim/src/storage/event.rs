//! What can happen at a moment of virtual time.

use std::sync::Arc;

use bytes::Bytes;
use ferro_protocol::ids::Epoch;
use ferro_protocol::peer::{Refusal, Reply, Request};
use vsand_core::directory::{Outcome, Refused, State};
use vsand_core::disk::{DiskError, DiskReply, Ticket};

/// A message on a connection. `id` is the connection's name for the request.
#[derive(Debug)]
pub(super) enum Message {
    Request { disk: usize, id: u64, request: Request, payload: Bytes },
    Answer { id: u64, reply: Result<Reply, Refusal>, payload: Bytes },
}

/// What the directory says to a request.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Applied(Result<Outcome, Refused>),
    State(Arc<State>),
}

/// A process: which host, and which of its lives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Process {
    pub host: usize,
    pub life: u32,
}

/// An owner in a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct OwnerKey {
    pub object: usize,
    pub epoch: Epoch,
}

#[derive(Debug)]
pub(super) enum Event {
    /// A host's report of a disk that reaches the directory when the disk was removed.
    SaidLate {
        from: Process,
        disk: usize,
    },
    HostTick(Process),
    OwnerTick(Process, OwnerKey),
    GuestStep(Process, OwnerKey),
    DiskApply {
        disk: usize,
        incarnation: u64,
        ticket: Ticket,
    },
    DiskFinish {
        disk: usize,
        incarnation: u64,
        ticket: Ticket,
    },
    DiskAnswer {
        to: Process,
        disk: usize,
        ticket: Ticket,
        result: Result<DiskReply, DiskError>,
    },
    Deliver {
        conn: u64,
        to_server: bool,
        late: bool,
        message: Message,
    },
    Connected {
        client: Process,
        server: Process,
    },
    Reset {
        conn: u64,
    },
    Forget {
        server: Process,
        conn: u64,
    },
    LinkBack {
        from: usize,
        to: usize,
    },
    DirectoryApply {
        request: u64,
    },
    DirectoryTimeout {
        to: Process,
        request: u64,
    },
    DirectoryAnswer {
        to: Process,
        request: u64,
        answer: Answer,
    },
    /// The host's copy of the directory is as new as this.
    News {
        to: Process,
        state: Arc<State>,
    },
    /// The host's owners hear of this state, perhaps not in order.
    Record {
        to: Process,
        state: Arc<State>,
    },
    Fault,
    /// A step of a composed fault.
    Script(Step),
    Restart {
        host: usize,
    },
    Resume {
        host: usize,
    },
    /// The operator asks for the deletion of an object.
    Delete {
        object: usize,
    },
    /// A disk that was pulled is put into a host.
    Plug {
        disk: usize,
        to: usize,
    },
    Heal,
    StopGuests,
    Check,
    /// The operator takes disks and hosts out.
    Leave,
    /// The operator changes a policy.
    Convert,
    /// The operator looks at the hosts that he works on.
    Maintain,
    /// A host goes for good.
    GoAway,
}

/// A step of a composed fault.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Kill { host: usize, down_ns: u64, power: bool },
    Pause { host: usize, ns: u64 },
    Isolate { host: usize, ns: u64, directory: bool },
    Want { object: usize, host: usize },
    Unwant { object: usize, host: usize },
    Freeze { disk: usize, ns: u64 },
    LoseAnswers { ns: u64 },
    Die { disk: usize },
    Stick { disk: usize, ns: u64, late: bool },
    Grow { object: usize },
    Doom { object: usize },
    Carry { disk: usize, to: usize },
}

impl Event {
    /// The process that must be running for this to be noticed.
    pub(super) fn process(&self) -> Option<Process> {
        match self {
            Self::HostTick(p)
            | Self::OwnerTick(p, _)
            | Self::GuestStep(p, _)
            | Self::DiskAnswer { to: p, .. }
            | Self::Forget { server: p, .. }
            | Self::DirectoryTimeout { to: p, .. }
            | Self::DirectoryAnswer { to: p, .. }
            | Self::News { to: p, .. }
            | Self::Record { to: p, .. } => Some(*p),
            _ => None,
        }
    }

    /// A few numbers that tell this event from others, for the run's hash.
    pub(super) fn digest(&self) -> (u8, u64, u64) {
        match self {
            Self::HostTick(p) => (0, p.host as u64, u64::from(p.life)),
            Self::OwnerTick(p, k) => (1, p.host as u64, u64::from(k.epoch.0)),
            Self::GuestStep(p, k) => (2, p.host as u64, u64::from(k.epoch.0)),
            Self::DiskApply { disk, ticket, .. } => (3, *disk as u64, ticket.0),
            Self::DiskFinish { disk, ticket, .. } => (4, *disk as u64, ticket.0),
            Self::DiskAnswer { disk, ticket, .. } => (5, *disk as u64, ticket.0),
            Self::Deliver { conn, message, .. } => match message {
                Message::Request { id, .. } => (6, *conn, *id),
                Message::Answer { id, .. } => (7, *conn, *id),
            },
            Self::Connected { client, server } => (8, client.host as u64, server.host as u64),
            Self::Reset { conn } => (9, *conn, 0),
            Self::Forget { conn, .. } => (10, *conn, 0),
            Self::LinkBack { from, to } => (11, *from as u64, *to as u64),
            Self::DirectoryApply { request } => (12, *request, 0),
            Self::DirectoryTimeout { request, .. } => (13, *request, 0),
            Self::DirectoryAnswer { request, .. } => (14, *request, 0),
            Self::News { to, state } => (15, to.host as u64, state.revision),
            Self::Record { to, state } => (16, to.host as u64, state.revision),
            Self::Fault => (17, 0, 0),
            Self::Script(_) => (18, 0, 0),
            Self::Restart { host } => (19, *host as u64, 0),
            Self::Resume { host } => (20, *host as u64, 0),
            Self::Delete { object } => (30, *object as u64, 0),
            Self::Plug { disk, to } => (31, *disk as u64, *to as u64),
            Self::Heal => (21, 0, 0),
            Self::StopGuests => (22, 0, 0),
            Self::Check => (23, 0, 0),
            Self::Leave => (24, 0, 0),
            Self::Convert => (32, 0, 0),
            Self::Maintain => (25, 0, 0),
            Self::GoAway => (34, 0, 0),
            Self::SaidLate { disk, .. } => (33, *disk as u64, 0),
        }
    }
}
