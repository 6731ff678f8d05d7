//! Guests that say what only routers and DHCP servers may.

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Mac, NetName, Sequence};
use vswitch_core::bugs::Bugs;
use vswitch_core::config::spec::{OverrideSpec, SecuritySpec, Spec};
use vswitch_core::config::validate;
use vswitch_core::frame::Offload;
use vswitch_core::hash::HashKey;
use vswitch_core::pipeline::{Cause, Frame, Ingress, Output, Settings, Step, Switch};
use vswitch_core::table::PortIx;
use vswitch_core::time::Instant;

const NOW: Instant = Instant(1_000_000_000);

/// Two ports in `own`, which has a gateway, and two in `plain`, which has none.
const SPEC: &str = r#"
[[switch]]
name = "sw"

[[portgroup]]
name = "own"
switch = "sw"
vlan = { access = 10 }
gateway = { address = "10.0.0.1/24" }

[[portgroup]]
name = "plain"
switch = "sw"
vlan = { access = 20 }

[[port]]
name = "own1"
group = "own"
mac = "52:00:00:00:00:01"

[[port]]
name = "own2"
group = "own"
mac = "52:00:00:00:00:02"

[[port]]
name = "plain1"
group = "plain"
mac = "52:00:00:00:00:01"

[[port]]
name = "plain2"
group = "plain"
mac = "52:00:00:00:00:02"
"#;

fn spec() -> Spec {
    let mut spec: Spec = toml::from_str(SPEC).expect("it can be read");
    for (n, port) in spec.ports.iter_mut().enumerate() {
        port.mac = Mac([0x52, 0, 0, 0, 0, n as u8 + 1]).to_string();
    }
    spec
}

struct Host {
    switch: Switch,
    from: PortIx,
    src: Mac,
}

/// A host with this network; what is sent comes from the first port of a group.
fn host(spec: &Spec, group: &str) -> Host {
    let settings = Settings {
        host: HostId::from_bytes([1; 16]),
        hash: HashKey(3, 5),
        sequence: Sequence(7),
        bugs: Bugs::NONE,
    };
    let mut switch = Switch::new(settings);
    switch.configure(NOW, validate(spec).expect("it is right"));
    let mut attach = |n: u8| {
        let name: NetName = format!("{group}{n}").parse().expect("a name");
        switch.attach(NOW, &name).expect("it is there")
    };
    let (from, _to) = (attach(1), attach(2));
    let src = switch.port(from).expect("it is attached").mac();
    Host { switch, from, src }
}

impl Host {
    /// Why a frame went nowhere; `None` if the other port got it.
    fn refuses(&mut self, kind: u16, packet: &[u8]) -> Option<Cause> {
        let mut bytes = [[0xff; 6], self.src.0].concat();
        bytes.extend(kind.to_be_bytes());
        bytes.extend(packet);
        bytes.resize(bytes.len().max(60), 0);
        let head = &bytes[..bytes.len().min(192)];
        let frame = Frame { from: Ingress::Port(self.from), head, len: bytes.len(), offload: Offload::NONE };
        let causes = [Cause::DhcpGuard, Cause::RouterGuard];
        let counted = |switch: &Switch, from| {
            let counters = *switch.port(from).expect("it is attached").counters();
            causes.map(|cause| counters.of(cause))
        };
        let before = counted(&self.switch, self.from);
        let mut output = Output::default();
        self.switch.process(NOW, &[frame], &mut output);
        let after = counted(&self.switch, self.from);
        let refused = causes.iter().zip(before.iter().zip(after)).find(|(_, (old, new))| **old < *new);
        assert_eq!(refused.is_none(), output.deliveries.len() == 1, "either it is counted or it arrives");
        let trace = self.switch.trace(NOW, &frame);
        let told = trace.steps.iter().any(|step| matches!(step, Step::Dropped(it) if causes.contains(it)));
        assert_eq!(told, refused.is_some(), "a trace says the same");
        refused.map(|(cause, _)| *cause)
    }
}

fn ipv4(protocol: u8, fragment: u16, transport: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + transport.len() as u16).to_be_bytes());
    packet.extend([0, 1]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0, 10, 0, 0, 77, 255, 255, 255, 255]);
    packet.extend(transport);
    packet
}

/// Behind these extension headers: each a type and its bytes.
fn ipv6(headers: &[(u8, &[u8])], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    for (n, (_, bytes)) in headers.iter().enumerate() {
        body.push(headers.get(n + 1).map_or(protocol, |(kind, _)| *kind));
        body.extend(&bytes[1..]);
    }
    body.extend(transport);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((body.len() as u16).to_be_bytes());
    packet.extend([headers.first().map_or(protocol, |(kind, _)| *kind), 255]);
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    packet.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    packet.extend(body);
    packet
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    let mut bytes = [from.to_be_bytes(), to.to_be_bytes(), [0, 24], [0, 0]].concat();
    bytes.resize(24, 0);
    bytes
}

const V4: u16 = 0x0800;
const V6: u16 = 0x86dd;
const DHCP: Option<Cause> = Some(Cause::DhcpGuard);
const ROUTER: Option<Cause> = Some(Cause::RouterGuard);
/// Destination options of eight bytes.
const OPTIONS: (u8, &[u8]) = (60, &[0; 8]);

fn fragment(offset: u16, more: bool) -> [u8; 8] {
    let [a, b] = (offset << 3 | u16::from(more)).to_be_bytes();
    [0, 0, a, b, 0, 0, 0, 9]
}

#[test]
fn what_servers_and_routers_say_is_dropped_where_there_is_a_gateway() {
    let mut host = host(&spec(), "own");
    let (first, later) = (fragment(0, true), fragment(3, false));
    for (what, refused, kind, packet) in [
        ("an offer", DHCP, V4, ipv4(17, 0, &udp(67, 68))),
        ("one from elsewhere", DHCP, V4, ipv4(17, 0, &udp(4000, 68))),
        ("a server to a relay", DHCP, V4, ipv4(17, 0, &udp(67, 67))),
        ("the beginning of an offer", DHCP, V4, ipv4(17, 0x2000, &udp(67, 68))),
        ("the rest of something", None, V4, ipv4(17, 3, &udp(67, 68))),
        ("a name server's answer", None, V4, ipv4(17, 0, &udp(53, 4000))),
        ("no whole header", DHCP, V4, ipv4(17, 0, &[0, 53])),
        ("an advertisement for IPv6", DHCP, V6, ipv6(&[], 17, &udp(547, 546))),
        ("behind options", DHCP, V6, ipv6(&[OPTIONS, OPTIONS], 17, &udp(547, 1))),
        ("a question for an address", None, V6, ipv6(&[], 17, &udp(546, 547))),
        ("a router", ROUTER, V6, ipv6(&[], 58, &[134; 16])),
        ("a router behind options", ROUTER, V6, ipv6(&[OPTIONS], 58, &[134; 16])),
        ("the beginning of a router", ROUTER, V6, ipv6(&[(44, &first)], 58, &[134; 16])),
        ("options only, then a fragment", ROUTER, V6, ipv6(&[(44, &first), OPTIONS], 58, &[])),
        ("the rest of something", None, V6, ipv6(&[(44, &later)], 58, &[134; 16])),
        ("the rest of options", None, V6, ipv6(&[(44, &later)], 60, &[134; 16])),
        ("too many headers", ROUTER, V6, ipv6(&[OPTIONS; 10], 58, &[134; 16])),
        ("headers beyond what is read", ROUTER, V6, ipv6(&[(60, &[31; 8])], 58, &[134; 16])),
        ("a redirect", ROUTER, V6, ipv6(&[], 58, &[137; 40])),
        ("a question for routers", None, V6, ipv6(&[], 58, &[133; 16])),
        ("a ping", None, V6, ipv6(&[], 58, &[128; 16])),
        ("a router of old", ROUTER, V4, ipv4(1, 0, &[9; 16])),
        ("a redirect of old", ROUTER, V4, ipv4(1, 0, &[5; 16])),
        ("a ping of old", None, V4, ipv4(1, 0, &[8; 16])),
        ("TCP", None, V4, ipv4(6, 0, &udp(67, 68))),
        ("no IP", None, 0x88b6, ipv4(17, 0, &udp(67, 68))),
    ] {
        assert_eq!(host.refuses(kind, &packet), refused, "{what}");
    }
    // Who asks the gateway for an address is heard by the gateway.
    let mut question = [[0xff; 6], host.src.0].concat();
    question.extend([8, 0]);
    question.extend(ipv4(17, 0, &udp(68, 67)));
    let frame = Frame {
        from: Ingress::Port(host.from),
        head: &question,
        len: question.len(),
        offload: Offload::NONE,
    };
    let mut output = Output::default();
    host.switch.process(NOW, &[frame], &mut output);
    assert_eq!(output.deliveries.len(), 1);
}

#[test]
fn policies_decide() {
    let (offer, router) = (ipv4(17, 0, &udp(67, 68)), ipv6(&[], 58, &[134; 16]));
    let refuses = |spec: &Spec, group: &str| {
        let mut host = host(spec, group);
        [host.refuses(V4, &offer), host.refuses(V6, &router)]
    };
    let mut spec = spec();
    assert_eq!(refuses(&spec, "own"), [DHCP, ROUTER]);
    assert_eq!(refuses(&spec, "plain"), [None, None]);
    let security =
        |dhcp_guard, router_guard| SecuritySpec { dhcp_guard, router_guard, ..SecuritySpec::default() };
    spec.groups[0].security = security(None, Some(false));
    spec.groups[1].security = security(Some(true), None);
    assert_eq!(refuses(&spec, "own"), [DHCP, None]);
    assert_eq!(refuses(&spec, "plain"), [DHCP, None]);
    // A port's own word, and its group's where it has none.
    for port in &mut spec.ports {
        let security = Some(security(Some(false), None));
        port.overrides = Some(OverrideSpec { security, ..OverrideSpec::default() });
    }
    assert_eq!(refuses(&spec, "own"), [None, None]);
    spec.groups[1].security = security(Some(true), Some(true));
    assert_eq!(refuses(&spec, "plain"), [None, ROUTER]);
    // What was written before there were guards can still be read, and what says nothing of them stays the same.
    let old: SecuritySpec = toml::from_str("promiscuous = true").expect("it can be read");
    assert_eq!((old.dhcp_guard, old.router_guard), (None, None));
    assert!(!toml::to_string(&old).expect("it can be written").contains("guard"));
}
