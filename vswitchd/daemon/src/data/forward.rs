//! Frames through the switch: from a port's batch to where each copy goes.

use ferro_protocol::net::NetName;
use ferro_protocol::time::Instant;
use vswitch_core::config::GroupIx;
use vswitch_core::frame::{Edit, Ether, HEAD_BYTES, Offload, ip};
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Delivery, Egress, Frame, Ingress, Output, Switch};
use vswitch_core::table::PeerIx;
use vswitch_core::tunnel::Meta;

use super::devices::{Devices, Pieces};
use crate::ports::batch::{BATCH_FRAMES, Batch};
use crate::tunnel::data::Tunnels;

/// The most frames for gateways that wait for the end of a batch.
const FOR_GATEWAYS_MAX: usize = 1024;

/// What forwards: the switch, and what comes out of it.
#[derive(Debug)]
pub(super) struct Forwarder {
    pub(super) switch: Switch,
    output: Output,
    hash: HashKey,
    /// Frames for the gateways of groups, until the end of their batch.
    pub(super) for_gateways: Vec<ForGateway>,
}

/// A frame for the gateway of a group.
#[derive(Debug)]
pub(super) struct ForGateway {
    pub(super) group: GroupIx,
    /// The port that it came from.
    pub(super) port: NetName,
    pub(super) offload: Offload,
    pub(super) bytes: Vec<u8>,
}

/// The first bytes of a frame, which the pipeline looks at.
fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(HEAD_BYTES)]
}

impl Forwarder {
    pub(super) fn new(switch: Switch, hash: HashKey) -> Self {
        Self { switch, output: Output::default(), hash, for_gateways: Vec::new() }
    }

    /// A batch that came from one place.
    pub(super) fn batch(
        &mut self,
        now: Instant,
        from: Ingress,
        batch: &Batch,
        devices: &mut Devices,
        mut tunnels: Option<&mut Tunnels>,
    ) {
        let empty = Frame { from, head: &[], len: 0, offload: Offload::NONE };
        let mut frames = [empty; BATCH_FRAMES];
        for (n, frame) in frames.iter_mut().take(batch.len()).enumerate() {
            let (bytes, offload) = batch.get(n);
            *frame = Frame { from, head: head(bytes), len: bytes.len(), offload };
        }
        self.switch.process(now, &frames[..batch.len()], &mut self.output);
        for delivery in &self.output.deliveries {
            let (bytes, offload) = batch.get(delivery.frame as usize);
            if let Egress::Endpoint(group) = delivery.to {
                let port = if let Ingress::Port(ix) = from { self.switch.port(ix) } else { None };
                if let (Some(port), true) = (port, self.for_gateways.len() < FOR_GATEWAYS_MAX) {
                    let mut whole = Vec::with_capacity(delivery.edit.len(bytes.len()));
                    delivery.edit.apply(bytes, &mut whole);
                    let offload = delivery.edit.offload(offload);
                    self.for_gateways.push(ForGateway {
                        group,
                        port: port.name().clone(),
                        offload,
                        bytes: whole,
                    });
                }
                continue;
            }
            deliver(now, self.hash, delivery, bytes, offload, devices, tunnels.as_deref_mut());
        }
        self.made(now, devices, tunnels);
    }

    /// A frame from a tunnel, where it lies.
    pub(super) fn arrived(
        &mut self,
        now: Instant,
        from: PeerIx,
        meta: Meta,
        bytes: &[u8],
        devices: &mut Devices,
    ) {
        let from = Ingress::Tunnel { from, vni: meta.vni, tci: meta.tci };
        let frame = Frame { from, head: head(bytes), len: bytes.len(), offload: meta.offload };
        self.switch.process(now, &[frame], &mut self.output);
        for delivery in &self.output.deliveries {
            // Never to a tunnel: the pipeline's split horizon.
            deliver(now, self.hash, delivery, bytes, meta.offload, devices, None);
        }
        self.made(now, devices, None);
    }

    /// A frame that a gateway sends.
    pub(super) fn gateway_sends(
        &mut self,
        now: Instant,
        group: GroupIx,
        bytes: &[u8],
        devices: &mut Devices,
    ) {
        let from = Ingress::Endpoint(group);
        let frame = Frame { from, head: head(bytes), len: bytes.len(), offload: Offload::NONE };
        self.switch.process(now, &[frame], &mut self.output);
        for delivery in &self.output.deliveries {
            // It reaches ports only.
            deliver(now, self.hash, delivery, bytes, Offload::NONE, devices, None);
        }
    }

    /// Frames that the switch made: answers to questions for neighbours.
    fn made(&mut self, now: Instant, devices: &mut Devices, mut tunnels: Option<&mut Tunnels>) {
        for made in &self.output.made {
            let bytes = &self.output.bytes[made.bytes.clone()];
            devices.send(now, made.to, 0, Offload::NONE, &Pieces::one(bytes), tunnels.as_deref_mut());
        }
    }
}

#[inline]
fn deliver(
    now: Instant,
    hash: HashKey,
    delivery: &Delivery,
    bytes: &[u8],
    offload: Offload,
    devices: &mut Devices,
    tunnels: Option<&mut Tunnels>,
) {
    let Delivery { to, edit, at, .. } = *delivery;
    let flow = if devices.wants_flow(to) { flow_of(hash, bytes) } else { 0 };
    let prefix;
    let (offload, pieces) = if edit == Edit::NONE {
        (offload, Pieces::one(bytes))
    } else {
        prefix = edit.prefix(bytes);
        (edit.offload(offload), Pieces::two(prefix.bytes(), &bytes[prefix.rest_from..]))
    };
    if at > now {
        devices.delay(at, to, flow, offload, &pieces);
    } else {
        devices.send(now, to, flow, offload, &pieces, tunnels);
    }
}

/// All frames of a flow take the same of a guest's queues.
fn flow_of(hash: HashKey, bytes: &[u8]) -> u32 {
    let head = head(bytes);
    Ether::parse(head, bytes.len()).map_or(0, |ether| ip::flow_hash(hash, head, &ether))
}
