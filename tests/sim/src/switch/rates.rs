//! Ports with a rate: they are made to send and get as fast as they can, and what leaves is measured.

use std::collections::BTreeSet;
use std::time::Duration;

use ferro_protocol::net::Mac;
use vswitch_core::frame::Offload;
use vswitch_core::pipeline::{Egress, Ingress, Output};

use super::check;
use super::frames::{Content, Sent};
use super::model::Party;
use super::world::World;

impl World {
    /// Writes down what passed shaped ports.
    pub(super) fn note_rates(&mut self, host: usize, batch: &[(Ingress, Vec<u8>, Offload)], output: &Output) {
        let mut seen = BTreeSet::new();
        for delivery in output.deliveries.iter().filter(|delivery| !delivery.mirror) {
            let (from, bytes, _) = &batch[delivery.frame as usize];
            let switch = &self.hosts[host].switch;
            let mut shaped_out = false;
            if let Egress::Port(ix) = delivery.to
                && let Some(port) = switch.port(ix).filter(|port| port.policy().egress.is_some())
            {
                shaped_out = true;
                let left = (delivery.at.0, delivery.edit.len(bytes.len()) as u64);
                self.rates.entry((port.name().to_string(), host, true)).or_default().push(left);
            }
            if let Ingress::Port(ix) = from
                && !shaped_out
                && let Some(port) = switch.port(*ix).filter(|port| port.policy().ingress.is_some())
                && seen.insert(delivery.frame)
            {
                let left = (delivery.at.0, bytes.len() as u64);
                self.rates.entry((port.name().to_string(), host, false)).or_default().push(left);
            }
        }
    }

    /// A port with a rate sends, or gets, as fast as it can.
    pub(super) fn flood(&mut self) -> Result<(), String> {
        let shaped: Vec<(String, usize, bool)> = self
            .places
            .iter()
            .filter_map(|(name, host)| {
                let policy = self.hosts[*host].switch.port(*self.hosts[*host].ports.get(name)?)?.policy();
                let egress = policy.egress.is_some();
                (egress || policy.ingress.is_some()).then(|| (name.clone(), *host, egress))
            })
            .collect();
        let Some((name, host, egress)) = self.dice.pick(&shaped).cloned() else { return self.burst(true) };
        let links = self.alive_links();
        let mac = self.model(&links).mac(&name);
        drop(links);
        // What has moved away is silent.
        let here = |it: &&String| **it != name && self.places.get(*it) == Some(&host);
        let others: Vec<String> = self.hosts[host].ports.keys().filter(here).cloned().collect();
        let sender = if egress { self.dice.pick(&others).cloned() } else { Some(name) };
        let Some(sender) = sender else { return Ok(()) };
        let links = self.alive_links();
        let src = self.model(&links).mac(&sender);
        let dst = if egress { mac } else { Mac::BROADCAST };
        // A port that speaks untagged only now and then is in the way of nobody.
        for _ in 0..120 {
            self.pass(Duration::from_millis(1))?;
            let from = Party::Port { name: sender.clone(), host };
            for _ in 0..3 {
                let id = self.next;
                self.next += 1;
                let sent = Sent::new(id, dst, src, &[], Content::Plain(1400));
                self.send(&[(from.clone(), sent)])?;
            }
        }
        self.check_rates()
    }

    pub(super) fn check_rates(&self) -> Result<(), String> {
        for ((name, host, egress), left) in &self.rates {
            let Some(ix) = self.hosts[*host].ports.get(name) else { continue };
            let Some(port) = self.hosts[*host].switch.port(*ix) else { continue };
            let rate = if *egress { port.policy().egress } else { port.policy().ingress };
            let Some(rate) = rate else { continue };
            let recent = &left[left.len().saturating_sub(500)..];
            check::rate(recent, rate).map_err(|what| format!("{name} (to the guest: {egress}): {what}"))?;
        }
        Ok(())
    }
}
