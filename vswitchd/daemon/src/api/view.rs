//! The core's figures as the API shows them.

use std::collections::BTreeMap;

use ferro_protocol::api::switch::{Counters, Flow};
use vswitch_core::pipeline::{Cause, Counters as Counted, Flow as Flown};

fn flow(flow: Flown) -> Flow {
    Flow { frames: flow.frames, bytes: flow.bytes }
}

/// What passed and what did not, by the causes' names. `device` is what a port's device did not let pass, by name too.
pub fn counters<'a>(counted: &Counted, device: impl IntoIterator<Item = (&'a str, u64)>) -> Counters {
    let causes = Cause::ALL.iter().map(|(cause, name)| (*name, counted.of(*cause)));
    let dropped: BTreeMap<String, u64> = causes
        .chain(device)
        .filter(|(_, count)| *count > 0)
        .map(|(name, count)| (name.to_owned(), count))
        .collect();
    Counters { from: flow(counted.from), to: flow(counted.to), dropped }
}
