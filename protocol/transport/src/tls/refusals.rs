//! Logging refused peers without letting them fill the log, and counting who is at the door.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// From one address and for one reason, one line in this time.
const INTERVAL: Duration = Duration::from_secs(10);
/// Beyond so many of those, one line in that time for all together.
const LINES_MAX: usize = 1024;

/// What was logged of those who were refused, so that they can't fill the log.
#[derive(Debug, Default)]
pub struct Refusals {
    lines: Mutex<HashMap<Option<Offence>, Line>>,
}

type Offence = (IpAddr, String);

#[derive(Debug)]
struct Line {
    printed: Instant,
    suppressed: u64,
}

impl Refusals {
    /// Logs that a peer was refused, or counts it if one from there was logged just now.
    pub fn log(&self, peer: SocketAddr, reason: &str) {
        if let Some(suppressed) = self.note(peer.ip(), reason, Instant::now()) {
            warn!(%peer, reason, suppressed, "refused a connection");
        }
    }

    /// How many lines were suppressed since the last, if it is time for one.
    fn note(&self, ip: IpAddr, reason: &str, now: Instant) -> Option<u64> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() >= LINES_MAX {
            lines.retain(|_, line| now.duration_since(line.printed) < INTERVAL);
        }
        let key = Some((ip, reason.to_owned()));
        let key = if lines.len() < LINES_MAX || lines.contains_key(&key) { key } else { None };
        match lines.get_mut(&key) {
            Some(line) if now.duration_since(line.printed) < INTERVAL => {
                line.suppressed += 1;
                None
            }
            Some(line) => {
                line.printed = now;
                Some(std::mem::take(&mut line.suppressed))
            }
            None => {
                lines.insert(key, Line { printed: now, suppressed: 0 });
                Some(0)
            }
        }
    }
}

/// How many handshakes are under way from each address, so that one host can't occupy the door.
#[derive(Debug, Default)]
pub(super) struct PerAddress {
    counts: Mutex<HashMap<IpAddr, usize>>,
}

/// One handshake; it counts until it is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    of: Arc<PerAddress>,
    ip: IpAddr,
}

impl PerAddress {
    pub(super) fn enter(self: &Arc<Self>, ip: IpAddr, max: usize) -> Option<Counted> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(ip).or_insert(0);
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Counted { of: Arc::clone(self), ip })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.of.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.ip) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.ip);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_an_address_a_reason_and_an_interval() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let (a, b) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        assert_eq!(refusals.note(a, "x", start), Some(0));
        assert_eq!(refusals.note(a, "x", start + Duration::from_secs(1)), None);
        assert_eq!(refusals.note(a, "x", start + Duration::from_secs(2)), None);
        assert_eq!(refusals.note(b, "x", start + Duration::from_secs(2)), Some(0));
        assert_eq!(refusals.note(a, "y", start + Duration::from_secs(2)), Some(0));
        assert_eq!(refusals.note(a, "x", start + INTERVAL), Some(2));
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let printed = (0..5000u32)
            .filter(|i| refusals.note(IpAddr::from(i.to_be_bytes()), "x", start).is_some())
            .count();
        assert_eq!(printed, LINES_MAX + 1);
        assert_eq!(refusals.lines.lock().unwrap().len(), LINES_MAX + 1);
        assert_eq!(refusals.note(IpAddr::from([9, 9, 9, 9]), "x", start + INTERVAL), Some(0));
        assert_eq!(refusals.lines.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_handshake_counts_until_it_is_dropped() {
        let (door, ip) = (Arc::new(PerAddress::default()), IpAddr::from([192, 0, 2, 1]));
        let first = door.enter(ip, 2).unwrap();
        let second = door.enter(ip, 2);
        assert!(second.is_some() && door.enter(ip, 2).is_none());
        drop(first);
        assert!(door.enter(ip, 2).is_some());
        drop(second);
        assert!(door.counts.lock().unwrap().is_empty());
    }
}
