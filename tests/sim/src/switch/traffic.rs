//! How frames get through the world: hosts, wires, tunnels that lose datagrams.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use vswitch_core::config::GroupIx;
use vswitch_core::frame::{HEAD_BYTES, Offload, Tci};
use vswitch_core::pipeline::{Egress, Frame, Ingress};
use vswitch_core::tunnel::{Edited, Meta};

use super::check::Arrival;
use super::frames::{self, Sent};
use super::host::Host;
use super::model::Party;
use super::physical::{Jack, Physical};
use super::world::World;

/// A frame that makes more hops goes round.
const HOPS_MAX: u32 = 400;

/// A frame on its way.
pub(super) enum Hop {
    Host { host: usize, from: Ingress, bytes: Vec<u8>, offload: Offload },
    Wire { from: Jack, bytes: Vec<u8>, offload: Offload },
}

impl World {
    /// Sends a batch and follows it to its ends: the copies by the numbers of their frames.
    pub(super) fn send(&mut self, batch: &[(Party, Sent)]) -> Result<BTreeMap<u32, Vec<Arrival>>, String> {
        let mut hops = Vec::new();
        for (from, sent) in batch {
            self.log(|| {
                format!(
                    "{from:?} sends {} to {} ({} bytes, tags {:?})",
                    sent.id,
                    sent.dst,
                    sent.bytes.len(),
                    sent.tags
                )
            });
            let (bytes, offload) = (sent.bytes.clone(), sent.offload);
            match from {
                Party::Station(n) => hops.push(Hop::Wire { from: Jack::Station(*n), bytes, offload }),
                Party::Port { name, host } => {
                    let Some(ix) = self.hosts[*host].ports.get(name) else { continue };
                    hops.push(Hop::Host { host: *host, from: Ingress::Port(*ix), bytes, offload });
                }
                Party::Gateway { group, host } => {
                    let groups = self.hosts[*host].switch.config().groups();
                    let Some(at) = groups.iter().position(|it| it.name.as_str() == group) else { continue };
                    let from = Ingress::Endpoint(GroupIx(at as u32));
                    hops.push(Hop::Host { host: *host, from, bytes, offload });
                }
            }
        }
        let arrivals = self.spread(hops)?;
        // Alarms.
        self.effects()?;
        Ok(arrivals)
    }

    pub(super) fn spread(&mut self, first: Vec<Hop>) -> Result<BTreeMap<u32, Vec<Arrival>>, String> {
        let mut arrivals: BTreeMap<u32, Vec<Arrival>> = BTreeMap::new();
        let mut steps = 0;
        let mut queue: VecDeque<Hop> = VecDeque::new();
        // The senders' frames come as one batch.
        let bound = HOPS_MAX * first.len() as u32;
        let mut batch = Vec::new();
        for hop in first {
            match hop {
                Hop::Host { host, from, bytes, offload } => batch.push((host, from, bytes, offload)),
                wire @ Hop::Wire { .. } => queue.push_back(wire),
            }
        }
        if let Some((host, ..)) = batch.first() {
            let host = *host;
            let frames: Vec<_> =
                batch.into_iter().map(|(_, from, bytes, offload)| (from, bytes, offload)).collect();
            self.process(host, &frames, &mut queue, &mut arrivals)?;
        }
        while let Some(hop) = queue.pop_front() {
            steps += 1;
            if steps > bound {
                return Err("a frame goes round and round".to_owned());
            }
            match hop {
                Hop::Host { host, from, bytes, offload } => {
                    self.process(host, &[(from, bytes, offload)], &mut queue, &mut arrivals)?;
                }
                Hop::Wire { from, bytes, offload } => {
                    self.wire(from, &bytes, offload, &mut queue, &mut arrivals)
                }
            }
        }
        Ok(arrivals)
    }

    pub(super) fn wire(
        &mut self,
        from: Jack,
        bytes: &[u8],
        offload: Offload,
        queue: &mut VecDeque<Hop>,
        arrivals: &mut BTreeMap<u32, Vec<Arrival>>,
    ) {
        let links = self.alive_links();
        let up = |jack: &Jack| match jack {
            Jack::Uplink { host, number } => links[*host][*number],
            Jack::Station(_) => true,
        };
        if !up(&from) {
            return;
        }
        let mut jacks = Vec::new();
        for (host, of_host) in links.iter().enumerate() {
            jacks.extend((0..of_host.len()).map(|number| Jack::Uplink { host, number }));
        }
        let vid = Physical::vid(bytes);
        let stations = self.topology.stations.iter().enumerate();
        jacks.extend(stations.filter(|(_, it)| it.vid == u32::from(vid)).map(|(n, _)| Jack::Station(n)));
        jacks.retain(up);
        let flow = frames::id(bytes).unwrap_or(0);
        self.log(|| {
            format!("  wire: frame {flow} of VLAN {vid} from {from:?}, source {:02x?}", &bytes[6..12])
        });
        for jack in self.physical.forward(from, bytes, &jacks, flow) {
            match jack {
                Jack::Station(n) => {
                    let at = Party::Station(n);
                    let arrival = Arrival { at, bytes: bytes.to_vec(), mirror: false, made: false };
                    arrivals.entry(flow).or_default().push(arrival);
                }
                Jack::Uplink { host, number } => {
                    let Some(ix) = self.hosts[host].uplink_ix(number) else { continue };
                    queue.push_back(Hop::Host {
                        host,
                        from: Ingress::Uplink(ix),
                        bytes: bytes.to_vec(),
                        offload,
                    });
                }
            }
        }
    }

    /// One host forwards a batch.
    pub(super) fn process(
        &mut self,
        host: usize,
        batch: &[(Ingress, Vec<u8>, Offload)],
        queue: &mut VecDeque<Hop>,
        arrivals: &mut BTreeMap<u32, Vec<Arrival>>,
    ) -> Result<(), String> {
        let frames: Vec<Frame<'_>> = batch
            .iter()
            .map(|(from, bytes, offload)| Frame {
                from: *from,
                head: &bytes[..bytes.len().min(HEAD_BYTES)],
                len: bytes.len(),
                offload: *offload,
            })
            .collect();
        let mut output = std::mem::take(&mut self.output);
        self.hosts[host].switch.process(self.now, &frames, &mut output);
        self.note_rates(host, batch, &output);
        for made in &output.made {
            let bytes = output.bytes[made.bytes.clone()].to_vec();
            let Egress::Port(ix) = made.to else { return Err("an answer to no port".to_owned()) };
            let name = self.hosts[host].port_name(ix).ok_or("an answer to a port that is gone")?;
            let at = Party::Port { name: name.to_owned(), host };
            // Of several equal questions each has its own answer.
            let asker = batch
                .iter()
                .filter(|(from, question, _)| *from == Ingress::Port(ix) && asks_for(question, &bytes));
            let open = |id: &u32| !arrivals.get(id).is_some_and(|all| all.iter().any(|it| it.made));
            let asked = asker.filter_map(|(_, question, _)| frames::id(question)).find(open);
            let arrival = Arrival { at, bytes, mirror: false, made: true };
            arrivals.entry(asked.unwrap_or(0)).or_default().push(arrival);
        }
        for delivery in &output.deliveries {
            let (from, bytes, offload) = &batch[delivery.frame as usize];
            if matches!(from, Ingress::Endpoint(_)) && !matches!(delivery.to, Egress::Port(_)) {
                return Err(format!("what a gateway of host {host} sends leaves it: {:?}", delivery.to));
            }
            let id = frames::id(bytes).unwrap_or(0);
            let offload = delivery.edit.offload(*offload);
            let edited = || {
                let mut out = Vec::with_capacity(bytes.len() + 4);
                delivery.edit.apply(bytes, &mut out);
                out
            };
            self.log(|| format!("  host {host}: frame {id} to {:?}", delivery.to));
            match delivery.to {
                Egress::Port(ix) => {
                    let name = self.hosts[host].port_name(ix).ok_or("a frame to a port that is gone")?;
                    let at = Party::Port { name: name.to_owned(), host };
                    let arrival = Arrival { at, bytes: edited(), mirror: delivery.mirror, made: false };
                    arrivals.entry(id).or_default().push(arrival);
                }
                Egress::Uplink(uplink) => {
                    let number = Host::uplink_number(self.hosts[host].switch.config(), uplink);
                    let from = Jack::Uplink { host, number: number.ok_or("an uplink that is not there")? };
                    queue.push_back(Hop::Wire { from, bytes: edited(), offload });
                }
                Egress::Tunnel { to, vni, tci, .. } => {
                    let to = self.hosts[host].host_of(to).ok_or("a peer that is not there")?;
                    let meta = Meta { vni, tci, offload };
                    self.tunnel(host, to, meta, &Edited::new(bytes, delivery.edit), queue)?;
                }
                Egress::Endpoint(group) => {
                    let group = &self.hosts[host].switch.config().groups()[group.0 as usize];
                    let at = Party::Gateway { group: group.name.to_string(), host };
                    let arrival = Arrival { at, bytes: edited(), mirror: delivery.mirror, made: false };
                    arrivals.entry(id).or_default().push(arrival);
                }
            }
        }
        self.output = output;
        Ok(())
    }

    /// Through a tunnel, in datagrams of which some are lost.
    pub(super) fn tunnel(
        &mut self,
        from: usize,
        to: usize,
        meta: Meta,
        frame: &Edited<'_>,
        queue: &mut VecDeque<Hop>,
    ) -> Result<(), String> {
        if !self.tunnels[from][to] {
            return Err(format!("host {from} sends to host {to} by a tunnel that is down"));
        }
        let here = self.hosts[to].switch.snapshot().0.contains(&meta.vni);
        if !here && self.news.is_empty() {
            return Err(format!(
                "host {from} sends a frame of VNI {} to host {to}, which has no port in it",
                meta.vni
            ));
        }
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let packer = &mut self.hosts[from].packers[to];
        if !packer.push(&meta, frame, &mut bytes, &mut ends) {
            return Err("a frame that is too long for tunnels".to_owned());
        }
        packer.finish(&bytes, &mut ends);
        let Some(peer) = self.hosts[to].peer(from) else { return Ok(()) };
        let mut arrived = Vec::new();
        let mut take = |it: vswitch_core::tunnel::Arrived<'_>| arrived.push((it.meta, it.bytes.to_vec()));
        let mut start = 0;
        for end in ends {
            let datagram = &bytes[start..end];
            start = end;
            if self.dice.permille(self.topology.loss_permille) {
                self.lost = true;
                continue;
            }
            let unpacker = &mut self.hosts[to].unpackers[from];
            unpacker.handle(self.now, datagram, &mut take).map_err(|e| format!("tunnel {from}-{to}: {e}"))?;
        }
        self.hosts[to].unpackers[from].handle_time(self.now + Duration::from_secs(1), &mut take);
        for (Meta { vni, tci, offload }, bytes) in arrived {
            let from = Ingress::Tunnel { from: peer, vni, tci: Tci(tci.0) };
            queue.push_back(Hop::Host { host: to, from, bytes, offload });
        }
        Ok(())
    }
}

/// Whether a question is the one that this answers.
fn asks_for(question: &[u8], answer: &[u8]) -> bool {
    let field = |bytes: &[u8], from: usize| {
        frames::content(bytes).and_then(|(at, _)| bytes.get(at + from..at + from + 4).map(<[u8]>::to_vec))
    };
    let (Some((at, kind)), Some((start, _))) = (frames::content(question), frames::content(answer)) else {
        return false;
    };
    // The same tags, too.
    kind == 0x0806 && question[12..at] == answer[12..start] && field(question, 24) == field(answer, 14)
}
