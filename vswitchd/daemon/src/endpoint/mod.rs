//! The switch's own addresses: the gateways of port groups, which answer ARP, ND and ping, tell IPv6 guests of their
//! network, and give IPv4 guests an address by DHCP.
//!
//! ```text
//!   Egress::Endpoint(group) ──► Endpoints::handle(now, group, port, frame) ──emit──► Ingress::Endpoint(group)
//!                                  │ poll_wanted             ▲ answer, set_book
//!                                  ▼                         │
//!                          LeaseWanted ──► plane: Book::apply, written ──► LeaseAnswer
//! ```
//!
//! **For the worker.** It owns one [`Endpoints`], gives it each frame whose delivery says `Egress::Endpoint`, whole and
//! edited, with the name of the port that it came from, and puts what is emitted into the pipeline as
//! `Ingress::Endpoint(group)`, with nothing left to be offloaded. After a batch, and after [`Endpoints::handle_time`] when
//! [`Endpoints::next_at`] has come, it passes on what [`Endpoints::poll_wanted`] says.
//!
//! **Every host is the gateway.** It has no state that a guest could notice, apart from leases, and these come from one
//! book. So a guest that moves to another host finds its gateway there.
//!
//! Nothing here ever asks a guest anything: answers go to the address that the question came from. So there is no table of
//! neighbours that a guest could fill, and none that could be wrong. What is kept for guests (offers, wishes under way,
//! rates) is bounded for each port, and ports are the operator's.
//!
//! What it must not know: sockets, threads, the clock, the directory.

mod book;
mod budget;
mod dhcp;
mod gateway;
mod lease;
mod message;
mod wire;

use std::collections::BTreeMap;

use ferro_protocol::net::NetName;
use vswitch_core::config::{Config, GroupIx};
use vswitch_core::frame::Offload;
use vswitch_core::time::Instant;

pub use book::{BadBook, Book, DECLINED_S, LEASES_MAX, MARGIN_S, PORT_LEASES_MAX};
pub use gateway::{Endpoint, Seen};
pub use lease::{Lease, LeaseAnswer, LeaseWanted, Refusal, Rules, Use, WallSeconds, Wish};

/// Takes a frame that an endpoint sends, of the group's gateway.
pub type Emit<'a> = &'a mut dyn FnMut(GroupIx, &[u8]);

/// The gateways of all port groups of a configuration.
#[derive(Debug, Default)]
pub struct Endpoints {
    all: BTreeMap<GroupIx, Endpoint>,
    by_name: BTreeMap<NetName, GroupIx>,
}

impl Endpoints {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes them those of a configuration. Who stays keeps what is under way, and its leases.
    pub fn configure(&mut self, now: Instant, config: &Config) {
        let mut old: BTreeMap<NetName, Endpoint> = std::mem::take(&mut self.all)
            .into_values()
            .map(|endpoint| (endpoint.group().clone(), endpoint))
            .collect();
        self.by_name.clear();
        for (at, group) in config.groups().iter().enumerate() {
            let ix = GroupIx(at as u32);
            let endpoint = match old.remove(&group.name) {
                Some(mut endpoint) => endpoint.configure(now, config, ix).then_some(endpoint),
                None => Endpoint::new(now, config, ix),
            };
            if let Some(endpoint) = endpoint {
                self.by_name.insert(group.name.clone(), ix);
                self.all.insert(ix, endpoint);
            }
        }
    }

    /// A frame for the gateway of a group, from a port.
    pub fn handle(
        &mut self,
        now: Instant,
        group: GroupIx,
        port: &NetName,
        frame: &[u8],
        offload: Offload,
        emit: Emit<'_>,
    ) {
        if let Some(endpoint) = self.all.get_mut(&group) {
            endpoint.handle(now, port, frame, offload, &mut |bytes| emit(group, bytes));
        }
    }

    /// Time has passed.
    pub fn handle_time(&mut self, now: Instant, emit: Emit<'_>) {
        for (group, endpoint) in &mut self.all {
            endpoint.handle_time(now, &mut |bytes| emit(*group, bytes));
        }
    }

    /// When [`Endpoints::handle_time`] is to be called next, if ever.
    pub fn next_at(&self) -> Option<Instant> {
        self.all.values().filter_map(Endpoint::next_at).min()
    }

    /// The book of a group, as it is now; what wall clock it is. Until it is there, only what the configuration gives to
    /// ports is given.
    pub fn set_book(&mut self, now: Instant, group: &NetName, wall: WallSeconds, book: Book) {
        if let Some(endpoint) = self.named(group) {
            endpoint.set_book(now, wall, book);
        }
    }

    /// What came of a wish.
    pub fn answer(&mut self, now: Instant, group: &NetName, answer: LeaseAnswer, emit: Emit<'_>) {
        let Some(ix) = self.by_name.get(group).copied() else { return };
        if let Some(endpoint) = self.all.get_mut(&ix) {
            endpoint.answer(now, answer, &mut |bytes| emit(ix, bytes));
        }
    }

    /// What is to be written down, one by one.
    pub fn poll_wanted(&mut self) -> Option<LeaseWanted> {
        self.all.values_mut().find_map(Endpoint::poll_wanted)
    }

    /// What they have seen, by group.
    pub fn seen(&self) -> impl Iterator<Item = (&NetName, &Seen)> {
        self.all.values().map(|endpoint| (endpoint.group(), endpoint.seen()))
    }

    fn named(&mut self, group: &NetName) -> Option<&mut Endpoint> {
        self.all.get_mut(self.by_name.get(group)?)
    }
}
