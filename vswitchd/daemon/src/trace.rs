//! A trace of the core, in words.
//!
//! What it must not know: where the names are from.

use ferro_protocol::api::switch::{TraceAnswer, TraceStep};
use ferro_protocol::net::VlanId;
use vswitch_core::config::{GroupIx, UplinkIx};
use vswitch_core::frame::{Ether, Vid};
use vswitch_core::pipeline::{Cause, Egress, Lane, Sender, Step, Trace};
use vswitch_core::table::{PeerIx, Place, PortIx};

/// What things are called.
pub trait Names {
    /// A port.
    fn port(&self, ix: PortIx) -> String;
    /// An uplink.
    fn uplink(&self, ix: UplinkIx) -> String;
    /// Another host.
    fn peer(&self, ix: PeerIx) -> String;
    /// A port group.
    fn group(&self, ix: GroupIx) -> String;
}

/// The trace for people and programs.
pub fn describe(trace: &Trace, names: &impl Names) -> TraceAnswer {
    let steps: Vec<TraceStep> = trace.steps.iter().map(|step| one(step, names)).collect();
    let sent = trace.steps.iter().filter(|step| matches!(step, Step::Sent(_)));
    TraceAnswer { copies: sent.count() as u32, steps }
}

fn one(step: &Step, names: &impl Names) -> TraceStep {
    let plain = |step: &str, text: String| TraceStep { step: step.to_owned(), text, to: None, cause: None };
    let copy = |step: &str, text: &str, to: Egress| {
        let (name, place) = egress(to, names);
        TraceStep { step: step.to_owned(), text: format!("{text} {place}"), to: Some(name), cause: None }
    };
    match step {
        Step::Parsed(ether) => plain("parsed", parsed(ether)),
        Step::Entered(lane) => plain("entered", entered(*lane)),
        Step::WouldLearn => plain("would_learn", "its source address would be learned here".to_owned()),
        Step::Answered => plain(
            "answered",
            "it asks for a neighbour that is known: the switch answers it itself".to_owned(),
        ),
        Step::Found(None) => plain("found", "nobody is known to have its destination address".to_owned()),
        Step::Found(Some(place)) => {
            let place = match place {
                Place::Port(ix) => format!("port {}", names.port(*ix)),
                Place::Peer(ix) => format!("host {}", names.peer(*ix)),
                Place::Uplink(ix) => format!("uplink {}", names.uplink(*ix)),
            };
            plain("found", format!("its destination address is at {place}"))
        }
        Step::ToAll => plain("to_all", "it goes to all of its network and VLAN".to_owned()),
        Step::Shaped(ns) => {
            plain("shaped", format!("it would wait {} us for the rate of its port", ns.div_ceil(1000)))
        }
        Step::Sent(to) => copy("sent", "it goes to", *to),
        Step::Mirrored(to) => copy("mirrored", "a mirror's copy goes to", *to),
        Step::Withheld(to, cause) => {
            let step = copy("withheld", "it does not go to", *to);
            let text = format!("{}: {}", step.text, reason(*cause));
            TraceStep { text, cause: Some(cause.name().to_owned()), ..step }
        }
        Step::Dropped(cause) => TraceStep {
            cause: Some(cause.name().to_owned()),
            ..plain("dropped", format!("it is dropped: {}", reason(*cause)))
        },
    }
}

fn egress(to: Egress, names: &impl Names) -> (String, String) {
    match to {
        Egress::Port(ix) => (names.port(ix), format!("port {}", names.port(ix))),
        Egress::Uplink(ix) => (names.uplink(ix), format!("uplink {}", names.uplink(ix))),
        Egress::Tunnel { to, vni, .. } => {
            (names.peer(to), format!("host {} through the tunnel, as VNI {vni}", names.peer(to)))
        }
        Egress::Endpoint(ix) => {
            (names.group(ix), format!("the gateway of port group {} at this host", names.group(ix)))
        }
    }
}

fn vlan(vid: Vid) -> String {
    vid.vlan().map_or_else(|| "no VLAN".to_owned(), |vlan: VlanId| format!("VLAN {vlan}"))
}

fn parsed(ether: &Ether) -> String {
    let tag = match ether.tag.map(|tci| (tci.vid(), tci.0 >> 13)) {
        None => "untagged".to_owned(),
        Some((Ok(vid), priority)) if vid == Vid::NONE => format!("priority {priority} without a VLAN"),
        Some((Ok(vid), priority)) => format!("tagged with {}, priority {priority}", vlan(vid)),
        Some((Err(_), _)) => "tagged with a reserved VLAN".to_owned(),
    };
    format!("a frame from {} to {}, {tag}, EtherType 0x{:04x}", ether.src, ether.dst, ether.ether_type)
}

fn entered(lane: Lane) -> String {
    let who = match lane.sender {
        Sender::Open => String::new(),
        Sender::Isolated => ", isolated: only promiscuous ports hear it".to_owned(),
        Sender::Community(vid) => {
            format!(", of the community of {}: it and promiscuous ports hear it", vlan(vid))
        }
    };
    let wire = if lane.wire == lane.vid { String::new() } else { format!(" ({} outside)", vlan(lane.wire)) };
    format!("it may come from there, in {}{wire}{who}", vlan(lane.vid))
}

/// Why a frame goes nowhere, for people.
pub fn reason(cause: Cause) -> &'static str {
    match cause {
        Cause::Malformed => "it is no frame",
        Cause::BadOffload => "its checksum or segmentation can't be as it says",
        Cause::Reserved => "its destination is for the next bridge only (spanning tree, LACP, LLDP, pause)",
        Cause::NotThere => "the port, uplink or network is not there",
        Cause::Blocked => "the port is blocked",
        Cause::MirrorOnly => "the port only gets the copies of a mirror",
        Cause::Forged => "its source address is not the port's, and forged transmits are not allowed there",
        Cause::Tagged => "it is tagged, and the port group is not a trunk",
        Cause::Untagged => "it is untagged, and the trunk has no native VLAN",
        Cause::VlanNotCarried => "the port does not carry its VLAN",
        Cause::ServiceTag => "it has a service tag (IEEE 802.1ad)",
        Cause::HiddenTag => "a second tag is behind the one that would be taken off",
        Cause::Private => "the private VLAN keeps the two apart",
        Cause::TooLarge => "it is larger than the MTU",
        Cause::LearningLimit => "the port has as many addresses as it may have",
        Cause::StormBroadcast => "more broadcast frames than the port's limit",
        Cause::StormMulticast => "more multicast frames than the port's limit",
        Cause::StormUnknown => "more frames to unknown addresses than the port's limit",
        Cause::ShapedIngress => "faster than the rate from the port",
        Cause::ShapedEgress => "faster than the rate to the port",
        Cause::Hairpin => "its receiver is where it came from",
        Cause::Reflected => "it is our own frame, come back by another uplink",
        Cause::OtherUplink => "its receivers do not use this uplink",
        Cause::NotOurs => "it is from outside, to an address that nobody here has",
        Cause::NoReceiver => "nobody is there to get it",
        Cause::NoUplink => "all uplinks of the team are down",
        Cause::TunnelDown => "the other host does not answer",
        Cause::Beacon => "it is a beacon between uplinks",
        Cause::GatewayClaimed => {
            "it speaks in the name of the port group's gateway, which is the switch's own"
        }
        Cause::DhcpGuard => "it is what only a DHCP server says, and the port's DHCP guard is on",
        Cause::RouterGuard => {
            "it is what only a router says (advertisement or redirect), or can't be told from it, and the port's router guard is on"
        }
    }
}
