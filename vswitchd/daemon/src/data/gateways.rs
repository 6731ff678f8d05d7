//! The gateways of port groups, between the pipeline and the book of leases.

use ferro_protocol::net::NetName;
use ferro_protocol::time::Instant;

use super::Loop;
use super::port::Event;
use crate::endpoint::LeaseAnswer;

impl Loop {
    /// What a turn brought for gateways, and what they have to do by themselves.
    pub(super) fn gateways(&mut self, now: Instant) {
        let (forwarder, devices) = (&mut self.forwarder, &mut self.devices);
        if !forwarder.for_gateways.is_empty() {
            let mut frames = std::mem::take(&mut forwarder.for_gateways);
            for frame in frames.drain(..) {
                let emit = &mut |group, bytes: &[u8]| forwarder.gateway_sends(now, group, bytes, devices);
                self.endpoints.handle(now, frame.group, &frame.port, &frame.bytes, frame.offload, emit);
            }
            // Its room is used again. Nothing was added meanwhile: gateways don't talk to each other.
            forwarder.for_gateways = frames;
        }
        if self.endpoints.next_at().is_some_and(|at| at <= now) {
            let emit = &mut |group, bytes: &[u8]| forwarder.gateway_sends(now, group, bytes, devices);
            self.endpoints.handle_time(now, emit);
        }
        while let Some(wanted) = self.endpoints.poll_wanted() {
            self.port.tell(Event::LeaseWanted(wanted));
        }
    }

    /// What came of a wish for a lease.
    pub(super) fn lease_answered(&mut self, now: Instant, group: &NetName, answer: LeaseAnswer) {
        let (forwarder, devices) = (&mut self.forwarder, &mut self.devices);
        let emit = &mut |group, bytes: &[u8]| forwarder.gateway_sends(now, group, bytes, devices);
        self.endpoints.answer(now, group, answer, emit);
    }
}
