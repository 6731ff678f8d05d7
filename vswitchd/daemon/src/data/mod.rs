//! The worker: one thread that owns the switch, its ports, its tunnels, and forwards.
//!
//! ```text
//!   ┌─ turn ─► commands ─► control threads ─► ports, uplinks, tunnels: a bounded batch each ─► what was delayed ─┐
//!   │                                            │ Switch::process                                               │
//!   │                                            └─► each copy straight to where it goes                         │
//!   └─◄ sleep, or look again at once ◄─ arm what has been idle ◄─ notify guests, flush tunnels, effects ◄────────┘
//! ```
//!
//! **Fairness.** A turn takes at most [`BATCH_FRAMES`](crate::ports::batch::BATCH_FRAMES) frames from each port, whatever waits there, and of ports that always
//! have more each gets an equal part of the worker's time (`share.rs`): one that floods, with whatever frames, fills its own
//! rings.
//!
//! **Looking and sleeping.** A port that had a frame, or that was given one and is known to answer soon, is *awake*: it is looked
//! at each turn, and its guest need not kick. In a loop that is busy it is *armed* [`AWAKE`] after its last frame: from then on
//! its guest's kick is found among the descriptors, and it costs nothing until then. So a thousand idle ports cost a busy one
//! nothing. A loop that has nothing to do looks again as long as a frame is likely to come soon (`spin.rs`); then it arms all ports
//! and sleeps.
//!
//! **Time.** Clock and epoll are asked once a turn at most; in a busy loop descriptors are looked at every [`LOOK_EVERY`].
//!
//! What it must not know: the directory, peers' control connections, the API. Whatever needs those is an
//! [`port::Event`] to the control plane.

pub mod capture;
pub mod clock;
mod commands;
mod delayed;
mod devices;
mod forward;
mod gateways;
mod mend;
pub mod port;
mod share;
pub mod snapshot;
mod spin;
mod turn;
mod views;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::thread::JoinHandle;
use std::time::Duration;

use ferro_protocol::ids::HostId;
use ferro_protocol::net::NetName;
use ferro_protocol::time::Instant;
use tokio::sync::{mpsc, oneshot};
use vswitch_core::pipeline::{Settings, Switch};
use vswitch_core::table::PeerIx;

use crate::endpoint::Endpoints;
use crate::ports::batch::Batch;
use crate::tunnel::data::Tunnels;
use devices::Devices;
use forward::Forwarder;
use port::{DataHandle, DataPort, Event};
use share::Shares;
pub use spin::Spin;
use spin::{Habit, Spinning};
use watch::{Token, Trigger, Watch};

/// In a busy loop a port is looked at for so long after its last frame before its guest has to kick.
pub const AWAKE: Duration = Duration::from_micros(50);
/// In a busy loop descriptors are looked at so often.
pub const LOOK_EVERY: Duration = Duration::from_micros(20);
/// The switch's own clock-work: beacons, ageing, links.
const TICK: Duration = Duration::from_millis(100);
/// Commands that are taken in one turn.
const TURN_COMMANDS: usize = 256;
/// Datagrams that are taken from tunnels in one turn.
const TURN_DATAGRAMS: usize = 256;

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    /// To tell it something.
    pub handle: DataHandle,
    /// What it tells.
    pub events: mpsc::Receiver<Event>,
    /// Its thread, which ends after [`port::Command::Stop`] or with an error of the system.
    pub thread: JoinHandle<std::io::Result<()>>,
}

/// Starts a worker. Without tunnels it reaches no other host.
pub fn start(settings: Settings, spin: Spin, tunnels: Option<Tunnels>) -> std::io::Result<Worker> {
    let (handle, port, events) = port::channel()?;
    let thread = std::thread::Builder::new()
        .name("switch".into())
        .spawn(move || Loop::new(settings, spin, tunnels, port)?.run())?;
    Ok(Worker { handle, events, thread })
}

/// The loop's state.
struct Loop {
    forwarder: Forwarder,
    devices: Devices,
    tunnels: Option<Tunnels>,
    endpoints: Endpoints,
    /// Hosts by their places.
    peers: BTreeMap<HostId, PeerIx>,
    port: DataPort,
    watch: Watch,
    batch: Batch,
    /// Slots of ports that are awake.
    awake: Vec<usize>,
    shares: Shares,
    /// Since when the port that is being served costs time.
    serving_since: Instant,
    /// Uplinks that are held down.
    held: BTreeSet<NetName>,
    /// What the switch was last told of its uplinks' links.
    links: BTreeMap<NetName, bool>,
    /// Commands may wait.
    commanded: bool,
    /// A tunnel's socket may have something.
    tunnels_ready: bool,
    tick_at: Instant,
    looked_at: Instant,
    /// The turn has done something that more may follow.
    worked: bool,
    /// When frames come from tunnels.
    habit: Habit,
    spinning: Spinning,
    turns: u64,
    sleeps: u64,
    stopping: Option<oneshot::Sender<()>>,
}

impl Loop {
    fn new(
        settings: Settings,
        spin: Spin,
        tunnels: Option<Tunnels>,
        port: DataPort,
    ) -> std::io::Result<Self> {
        let watch = Watch::new()?;
        watch.add(&port, Token::Wake, Trigger::Level)?;
        for socket in tunnels.iter().flat_map(Tunnels::descriptors) {
            watch.add(socket, Token::Tunnel, Trigger::Edge)?;
        }
        Ok(Self {
            forwarder: Forwarder::new(Switch::new(settings), settings.hash),
            devices: Devices::default(),
            tunnels,
            endpoints: Endpoints::new(),
            peers: BTreeMap::new(),
            port,
            watch,
            batch: Batch::new(),
            awake: Vec::new(),
            shares: Shares::default(),
            serving_since: Instant(0),
            held: BTreeSet::new(),
            links: BTreeMap::new(),
            commanded: true,
            tunnels_ready: true,
            tick_at: Instant(0),
            looked_at: Instant(0),
            worked: false,
            habit: Habit::default(),
            spinning: Spinning::new(spin),
            turns: 0,
            sleeps: 0,
            stopping: None,
        })
    }
}
