//! The logs of several hosts become one: what they saw of the same thing, at about the same time, is one event. Pure.

use std::collections::HashMap;

use ferro_protocol::api::{EventInfo, EventKind, EventWitness};
use ferro_protocol::ids::HostId;

use super::Record;

/// Hosts see the same thing within this time: they look every ten seconds at most, and their clocks differ a little.
const TOGETHER_MS: u64 = 15_000;

/// One host's events.
pub struct Source {
    /// The host.
    pub host: HostId,
    /// What it is called.
    pub name: String,
    /// Its events.
    pub records: Vec<Record>,
}

/// All of them by time, the newest `limit`, and whether that leaves some out.
pub fn merge(sources: Vec<Source>, limit: usize) -> (Vec<EventInfo>, bool) {
    let mut all: Vec<(EventWitness, Record)> = Vec::new();
    for Source { host, name, records } in sources {
        let witness = |seq| EventWitness { host, host_name: name.clone(), seq };
        all.extend(records.into_iter().map(|record| (witness(record.seq), record)));
    }
    all.sort_by_key(|(witness, record)| (record.at_ms, witness.host, witness.seq));
    let mut events: Vec<EventInfo> = Vec::new();
    // The events of the last seconds, by what they are about.
    let mut open: HashMap<(EventKind, String, Option<String>), Vec<usize>> = HashMap::new();
    for (witness, record) in all {
        let Record { at_ms, kind, level, subject, check, message, .. } = record;
        let same = open.entry((kind, subject.clone(), check.clone())).or_default();
        same.retain(|index| events[*index].at_unix_ms.saturating_add(TOGETHER_MS) >= at_ms);
        // A host that saw it twice saw two of them.
        let found = same.iter().find(|i| events[**i].seen_by.iter().all(|seen| seen.host != witness.host));
        if let Some(index) = found.copied() {
            events[index].seen_by.push(witness);
        } else {
            same.push(events.len());
            let seen_by = vec![witness];
            events.push(EventInfo { at_unix_ms: at_ms, kind, level, subject, check, message, seen_by });
        }
    }
    let left_out = events.len().saturating_sub(limit);
    events.drain(..left_out);
    (events, left_out > 0)
}

#[cfg(test)]
mod tests {
    use ferro_protocol::api::EventLevel;

    use super::*;

    fn source(n: u8, records: &[(u64, EventKind, &str)]) -> Source {
        let record = |(seq, (at_ms, kind, subject)): (usize, &(u64, EventKind, &str))| Record {
            v: 1,
            seq: seq as u64 + 1,
            at_ms: *at_ms,
            kind: *kind,
            level: EventLevel::Info,
            subject: (*subject).to_owned(),
            check: None,
            message: format!("as host {n} says"),
        };
        let records = records.iter().enumerate().map(record).collect();
        Source { host: HostId::from_bytes([n; 16]), name: format!("h{n}"), records }
    }

    #[test]
    fn what_all_saw_is_one_event() {
        use EventKind::{HostDown, HostUp};
        let a = source(
            1,
            &[(1_000, HostDown, "host 3"), (9_000, HostUp, "host 3"), (12_000, HostDown, "host 3")],
        );
        let b = source(
            2,
            &[(3_000, HostDown, "host 3"), (8_000, HostUp, "host 3"), (14_000, HostDown, "host 3")],
        );
        let c = source(4, &[(2_000, HostDown, "host 5"), (60_000, HostDown, "host 3")]);
        let (events, more) = merge(vec![a, b, c], 100);
        let seen: Vec<_> = events.iter().map(|e| (e.at_unix_ms, e.kind, e.seen_by.len())).collect();
        assert_eq!(
            seen,
            [
                (1_000, HostDown, 2),
                (2_000, HostDown, 1),
                (8_000, HostUp, 2),
                (12_000, HostDown, 2),
                (60_000, HostDown, 1)
            ]
        );
        assert!(!more && events[2].message == "as host 2 says", "the first that saw it says what it was");
        assert_eq!(events[2].seen_by[0].host_name, "h2");
    }

    #[test]
    fn the_newest_are_kept() {
        let many: Vec<_> = (0..50).map(|n| (n * 100_000, EventKind::HostUp, "host 1")).collect();
        let (events, more) = merge(vec![source(1, &many)], 10);
        assert!(more && events.len() == 10 && events[0].at_unix_ms == 4_000_000);
    }
}
