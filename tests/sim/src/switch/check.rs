//! Whether what arrived is what the model says.

use std::collections::BTreeMap;

use vswitch_core::config::Rate;

use super::frames::{Sent, content};
use super::model::{Model, Party, Verdict};

/// A copy that arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) at: Party,
    pub(super) bytes: Vec<u8>,
    /// A mirror's copy.
    pub(super) mirror: bool,
    /// The switch made it: an answer.
    pub(super) made: bool,
}

/// What is asked of a frame's arrivals.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    /// Everything that must arrive must arrive.
    pub(super) settled: bool,
    /// A datagram was lost.
    pub(super) lost: bool,
}

/// Checks one frame; returns how many arrivals were required.
pub(super) fn frame(
    model: &Model<'_>,
    from: &Party,
    sent: &Sent,
    arrivals: &[Arrival],
    everybody: &[Party],
    terms: Terms,
) -> Result<u64, String> {
    let answered = answers(model, from, sent, arrivals, terms)?;
    let mut by_party: BTreeMap<&Party, Vec<&Arrival>> = BTreeMap::new();
    for arrival in arrivals.iter().filter(|it| !it.made && !it.mirror) {
        by_party.entry(&arrival.at).or_default().push(arrival);
    }
    for arrival in arrivals.iter().filter(|it| it.mirror) {
        mirrored(model, from, &arrival.at, &by_party)?;
    }
    let mut required = 0;
    for party in everybody {
        let got = by_party.remove(party).unwrap_or_default();
        let (verdict, tag) = model.verdict(from, sent, party);
        let mirror_port = matches!(party, Party::Port { name, .. } if model.mirror_to(name).is_some());
        if !got.is_empty() && (verdict == Verdict::Deny || mirror_port) {
            return Err(format!("{party:?} got what it must not: {}", text(from, sent)));
        }
        let wanted = sent.with(tag);
        let mut covered = Vec::new();
        for arrival in &got {
            covered.push(same(sent, &wanted, &arrival.bytes).map_err(|what| {
                format!(
                    "{party:?} got {what}: {}\nwanted {wanted:02x?}\ngot    {:02x?}",
                    text(from, sent),
                    arrival.bytes
                )
            })?);
        }
        covered.sort_unstable();
        if covered.windows(2).any(|pair| pair[0].1 > pair[1].0 || pair[0] == pair[1]) {
            return Err(format!("{party:?} got it more than once: {}", text(from, sent)));
        }
        if verdict == Verdict::Must && terms.settled && !answered && !mirror_port {
            required += 1;
            if got.is_empty() && !terms.lost {
                return Err(format!("{party:?} must get it and did not: {}", text(from, sent)));
            }
        }
    }
    match by_party.keys().next() {
        Some(party) => Err(format!("{party:?} is not there and got {}", text(from, sent))),
        None => Ok(required),
    }
}

/// Only the asker gets an answer, and it is the truth; while news are under way, what was true before them.
fn answers(
    model: &Model<'_>,
    from: &Party,
    sent: &Sent,
    arrivals: &[Arrival],
    terms: Terms,
) -> Result<bool, String> {
    let mut answered = false;
    for arrival in arrivals.iter().filter(|it| it.made) {
        let Some(ip) = sent.asks else {
            return Err(format!("an answer to no question: {}", text(from, sent)));
        };
        let (at, _) = content(&arrival.bytes).ok_or("an answer that is no frame")?;
        let says = &arrival.bytes[at + 8..at + 14];
        let truth = model.owner(from, sent, ip);
        if arrival.at != *from
            || (terms.settled && truth.is_none_or(|mac| mac.0 != says))
            || arrival.bytes[at + 14..at + 18] != ip
        {
            return Err(format!("a wrong answer, {says:02x?} instead of {truth:?}, to {}", text(from, sent)));
        }
        answered = true;
    }
    Ok(answered)
}

/// A mirror's copy is of a port that it copies.
fn mirrored(
    model: &Model<'_>,
    from: &Party,
    at: &Party,
    got: &BTreeMap<&Party, Vec<&Arrival>>,
) -> Result<(), String> {
    let Party::Port { name, .. } = at else {
        return Err(format!("{at:?} is no port and got a mirror's copy"));
    };
    let mirror =
        model.mirror_to(name).ok_or_else(|| format!("{name} got the copy of a mirror that there is not"))?;
    let copied = |party: &Party| matches!(party, Party::Port { name, .. } if mirror.ports.contains(name));
    if copied(from) || got.keys().any(|party| copied(party)) {
        return Ok(());
    }
    Err(format!("{name} got the copy of a frame of nobody whom its mirror copies"))
}

/// Whether it is the frame, or a part of a super-frame; which of its payload bytes.
fn same(sent: &Sent, wanted: &[u8], got: &[u8]) -> Result<(usize, usize), &'static str> {
    if got == wanted {
        return Ok((0, usize::MAX));
    }
    let (Some(_), Some((l3, 0x0800))) = (sent.offload.gso, content(wanted)) else {
        return Err("something else");
    };
    let head = l3 + 40;
    if got.len() <= head || got[..l3] != wanted[..l3] {
        return Err("other headers");
    }
    let from = u32::from_be_bytes([got[l3 + 24], got[l3 + 25], got[l3 + 26], got[l3 + 27]]) as usize;
    let length = usize::from(u16::from_be_bytes([got[l3 + 2], got[l3 + 3]]));
    let to = from + got.len() - head;
    if length != got.len() - l3 {
        return Err("a part with a wrong length");
    }
    if wanted.get(head + from..head + to) != Some(&got[head..]) {
        return Err("other payload");
    }
    Ok((from, to))
}

fn text(from: &Party, sent: &Sent) -> String {
    let Sent { id, dst, src, tags, offload, asks, claims, rogue, bytes } = sent;
    let tags: Vec<String> = tags.iter().map(|(kind, tci)| format!("{kind:04x}:{tci:04x}")).collect();
    let gso = offload.gso.map_or(0, |gso| gso.size);
    let len = bytes.len();
    format!(
        "frame {id} of {from:?} from {src} to {dst}, tags {tags:?}, {len} bytes, segments {gso}, asks {asks:?} as {claims:?}, rogue {rogue:?}"
    )
}

/// Every span of time keeps to the rate: see `vswitch_core::shaping`.
pub(super) fn rate(left: &[(u64, u64)], rate: Rate) -> Result<(), String> {
    let largest = left.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    for (n, (began, _)) in left.iter().enumerate() {
        let mut sum = 0;
        for (at, bytes) in &left[n..] {
            sum += bytes;
            let ns = u128::from(at.saturating_sub(*began));
            let average =
                u128::from(rate.average_bytes_s) * ns / 1_000_000_000 + u128::from(rate.burst_bytes);
            let peak = u128::from(rate.peak_bytes_s) * (ns + 1_000_000) / 1_000_000_000;
            let allowed = average.min(peak) + u128::from(largest) + 1;
            if u128::from(sum) > allowed {
                return Err(format!("{sum} bytes in {ns} ns, {allowed} allowed by {rate:?}"));
            }
        }
    }
    Ok(())
}
