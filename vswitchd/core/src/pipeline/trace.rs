//! What would happen to a frame, step by step, as data. The same code decides for real frames and for traced ones: it is
//! told by [`Watch`] whether it may leave traces of its own, and tells it what it decides.

use crate::frame::Ether;
use crate::table::Place;

use super::count::Cause;
use super::lane::Lane;
use super::{Egress, Output};

/// One step on a frame's way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// It was understood.
    Parsed(Ether),
    /// It may come from where it came, and is in this VLAN.
    Entered(Lane),
    /// Its source address would be learned.
    WouldLearn,
    /// A question for a neighbour that the switch answers itself.
    Answered,
    /// Where its receiver is; none if nobody knows.
    Found(Option<Place>),
    /// It goes to all of its VLAN.
    ToAll,
    /// It would wait for the rate of its port, so many nanoseconds.
    Shaped(u64),
    /// A copy goes here.
    Sent(Egress),
    /// A mirror's copy goes here.
    Mirrored(Egress),
    /// No copy goes here.
    Withheld(Egress, Cause),
    /// It goes nowhere.
    Dropped(Cause),
}

/// A traced frame.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Trace {
    /// What was decided, in order.
    pub steps: Vec<Step>,
    /// What would go out.
    pub output: Output,
}

/// Looks on while a frame is forwarded.
pub(super) trait Watch {
    /// Whether the frame is real: counters count, rates are used up, addresses are learned.
    const LIVE: bool;
    /// Something was decided.
    fn step(&mut self, step: impl FnOnce() -> Step);
}

/// A real frame.
pub(super) struct Live;

impl Watch for Live {
    const LIVE: bool = true;
    fn step(&mut self, _: impl FnOnce() -> Step) {}
}

impl Watch for Vec<Step> {
    const LIVE: bool = false;
    fn step(&mut self, step: impl FnOnce() -> Step) {
        self.push(step());
    }
}
