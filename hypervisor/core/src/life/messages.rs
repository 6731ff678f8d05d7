//! What is said to and by the life of a VM ([`super::Life`]).

use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::{ExitCause, VmState};

use crate::documents::Verb;

/// Which order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct OrderId(pub u64);

/// Which run of the VM: goes up with each launch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Incarnation(pub u64);

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// Somebody wants something.
    Ordered(OrderId, Verb),
    /// A launch has come to its end: the VM runs.
    Launched(Incarnation),
    /// A launch has failed, and nothing of it is left.
    LaunchFailed {
        /// Which.
        incarnation: Incarnation,
        /// Why.
        error: ApiError,
        /// Another daemon was not there, so it may go better in a moment.
        transient: bool,
    },
    /// The vmm has ended: how, and the words for it.
    Exited(Incarnation, ExitCause, ApiError),
    /// The processors stand still, or why not.
    Paused(Incarnation, Result<(), ApiError>),
    /// They go on, or why not.
    Resumed(Incarnation, Result<(), ApiError>),
    /// The power button was pressed, or why not.
    Pressed(Incarnation, Result<(), ApiError>),
    /// Everything is given back, as far as it can be now; the driver sees to the rest.
    Released,
    /// The VM is another host's, and the words for it.
    LockLost(ApiError),
    /// Time went by.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Action {
    /// Take the resources that are not held yet and start the vmm. Ends in `Launched` or `LaunchFailed`.
    Launch(Incarnation),
    /// Press the power button. Ends in `Pressed`.
    PressButton(Incarnation),
    /// Stop the processors. Ends in `Paused`.
    Pause(Incarnation),
    /// Let them go on. Ends in `Resumed`.
    Resume(Incarnation),
    /// End the vmm at once. `Exited` follows.
    Kill(Incarnation),
    /// Keep the logs of the run that has failed.
    KeepLogs,
    /// Give the resources back. Ends in `Released`.
    Release,
    /// An order has come to its end.
    Answer(OrderId, Result<(), Refusal>),
}

/// Why an order was not carried out.
#[derive(Clone, PartialEq, Debug)]
pub enum Refusal {
    /// The VM would have to be off, and is this.
    NotOff(VmState),
    /// The VM would have to run, and is this.
    NotRunning(VmState),
    /// The guest did not switch off in time; it runs.
    TimedOut,
    /// It went off while it was waited for.
    WentOff,
    /// It failed.
    Failed(ApiError),
}

/// What is found of a VM when its driver begins.
#[derive(Clone, PartialEq, Debug)]
pub enum Found {
    /// Nothing of it runs here.
    Off,
    /// It failed before, and nobody has looked since.
    Failed(ApiError),
    /// Its vmm runs.
    Running,
    /// Its vmm runs, and its processors stand still.
    Paused,
    /// It was to run, and its vmm has gone: the event that says how follows.
    Gone,
}
