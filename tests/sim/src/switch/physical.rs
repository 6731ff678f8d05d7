//! The physical switch that all uplinks and other people's stations hang on.

use std::collections::BTreeMap;

use ferro_protocol::net::Mac;

/// Where something is plugged in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Jack {
    /// A host's uplink.
    Uplink {
        host: usize,
        number: usize,
    },
    Station(usize),
}

#[derive(Debug)]
pub(super) struct Physical {
    learns: bool,
    bundle: bool,
    table: BTreeMap<(u16, Mac), Jack>,
}

impl Physical {
    pub(super) fn new(learns: bool, bundle: bool) -> Self {
        Self { learns, bundle, table: BTreeMap::new() }
    }

    /// All that was learned is old. Who changes VLANs under machines that talk waits for this, as with any switch: addresses
    /// that were seen in one VLAN lead nowhere once their port sends in another.
    pub(super) fn age(&mut self) {
        self.table.clear();
    }

    /// The VLAN of a frame on the wire.
    pub(super) fn vid(bytes: &[u8]) -> u16 {
        if bytes[12..14] == [0x81, 0] { u16::from_be_bytes([bytes[14], bytes[15]]) & 0x0fff } else { 0 }
    }

    /// Where a frame goes that came in at `from`; `jacks` are those with a link. `flow` chooses in a bundle.
    pub(super) fn forward(&mut self, from: Jack, bytes: &[u8], jacks: &[Jack], flow: u32) -> Vec<Jack> {
        let mac = |at: usize| Mac([0, 1, 2, 3, 4, 5].map(|n| bytes[at + n]));
        let (dst, src, vid) = (mac(0), mac(6), Self::vid(bytes));
        // For the next bridge only.
        if dst.0[..5] == [1, 0x80, 0xc2, 0, 0] && dst.0[5] < 16 {
            return Vec::new();
        }
        if self.learns {
            self.table.insert((vid, src), from);
        }
        let known = self.table.get(&(vid, dst)).copied().filter(|_| !dst.is_group());
        let others = jacks.iter().copied().filter(|jack| *jack != from);
        match known {
            Some(known) => others.filter(|jack| *jack == known).collect(),
            None if !self.bundle => others.collect(),
            None => {
                let mut links: BTreeMap<usize, Vec<Jack>> = BTreeMap::new();
                let mut out = Vec::new();
                for jack in others {
                    match (jack, from) {
                        (Jack::Uplink { host, .. }, Jack::Uplink { host: source, .. }) if host == source => {}
                        (Jack::Uplink { host, .. }, _) => links.entry(host).or_default().push(jack),
                        (Jack::Station(_), _) => out.push(jack),
                    }
                }
                out.extend(links.values().map(|of_host| of_host[flow as usize % of_host.len()]));
                out
            }
        }
    }
}
