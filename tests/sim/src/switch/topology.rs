//! A network from the dice: switches, groups, ports, as an operator would write them; and what the physical network is
//! like.

use ferro_protocol::ids::HostId;
use ferro_protocol::net::Mac;
use vswitch_core::config::spec::{
    AtLimit, Detection, Direction, GatewaySpec, GroupSpec, LearningSpec, MirrorSpec, OverrideSpec, PortSpec,
    PrivateKind, RateSpec, SecuritySpec, ShapingSpec, Spec, SwitchSpec, TeamPolicy, TeamSpec, VlanSpec,
};
use vswitch_core::config::validate;

use super::dice::Dice;

/// A station of others' in the physical network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Station {
    pub(super) mac: Mac,
    /// Its VLAN; 0 is untagged.
    pub(super) vid: u32,
}

/// What a run happens in.
#[derive(Debug)]
pub(super) struct Topology {
    pub(super) hosts: Vec<HostId>,
    pub(super) spec: Spec,
    pub(super) stations: Vec<Station>,
    /// The host's links are one bundle.
    pub(super) bundle: bool,
    /// The physical switch learns addresses; else it floods.
    pub(super) physical_learns: bool,
    /// How often a datagram is lost, in thousandths.
    pub(super) loss_permille: u32,
    /// The most bytes of a datagram.
    pub(super) datagram_max: usize,
}

pub(super) fn uplink(n: usize) -> String {
    format!("eth{n}")
}

fn mac(kind: u8, n: usize) -> Mac {
    Mac([0x52, kind, 0, 0, (n >> 8) as u8, n as u8])
}

impl Topology {
    pub(super) fn new(dice: &mut Dice) -> Self {
        loop {
            if let Some(it) = Self::attempt(dice) {
                return it;
            }
        }
    }

    /// Groups that clash are thrown again.
    fn attempt(dice: &mut Dice) -> Option<Self> {
        let hosts: Vec<HostId> =
            (0..dice.between(1, 8)).map(|n| HostId::from_bytes([n as u8 + 1; 16])).collect();
        let uplinks = dice.below(4);
        let bundle = uplinks > 0 && dice.permille(200);
        let mut spec = Spec::default();
        let names: Vec<String> = (0..uplinks).map(uplink).collect();
        let team = team(dice, &names, bundle);
        let own_teams = !bundle && team.detection == Detection::Link;
        spec.switches.push(SwitchSpec {
            name: "sw".into(),
            mtu: 9000,
            uplinks: names.clone(),
            team: Some(team),
        });
        for n in 0..dice.between(2, 7) {
            for _ in 0..8 {
                let mut more = spec.clone();
                more.groups.extend(groups(dice, n as usize, &hosts, &names, own_teams));
                if validate(&more).is_ok() {
                    spec = more;
                    break;
                }
            }
        }
        for n in 0..dice.between(3, 20) as usize {
            let group = dice.pick(&spec.groups)?.name.clone();
            let addresses = if dice.permille(600) { vec![format!("10.9.0.{}", n + 1)] } else { Vec::new() };
            let overrides = dice.permille(100).then(|| OverrideSpec {
                security: dice.permille(500).then(|| security(dice)),
                blocked: dice.permille(300).then_some(true),
                ..OverrideSpec::default()
            });
            let mac = mac(0, n + 1).to_string();
            spec.ports.push(PortSpec { name: format!("p{n}"), group, mac, addresses, overrides });
        }
        // An override may take from a learning group what it needs; that is its owner's affair.
        if spec.ports.len() > 3 && dice.permille(250) {
            let direction = *dice.pick(&[Direction::Both, Direction::Ingress, Direction::Egress])?;
            let ports = vec![spec.ports[0].name.clone(), spec.ports[1].name.clone()];
            let to = spec.ports[2].name.clone();
            spec.mirrors.push(MirrorSpec { name: "m".into(), ports, groups: Vec::new(), direction, to });
        }
        validate(&spec).ok()?;
        let stations = stations(dice, &spec, uplinks);
        let has_guest = spec.groups.iter().any(|group| group.vlan == VlanSpec::Guest);
        let tells = |group: &GroupSpec| group.team.as_ref().is_none_or(|team| !team.no_notify);
        let all_tell = spec.groups.iter().all(tells) && !spec.switches[0].team.as_ref()?.no_notify;
        let physical_learns = !has_guest && all_tell && !bundle && dice.permille(500);
        let loss_permille = if dice.permille(250) { 30 } else { 0 };
        let datagram_max = *dice.pick(&[1180, 1400, 8900])?;
        Some(Self { hosts, spec, stations, bundle, physical_learns, loss_permille, datagram_max })
    }
}

fn team(dice: &mut Dice, names: &[String], bundle: bool) -> TeamSpec {
    let mut order = names.to_vec();
    if !order.is_empty() {
        let turn = dice.below(order.len());
        order.rotate_left(turn);
    }
    if bundle {
        return TeamSpec { active: order, policy: TeamPolicy::IpHash, ..TeamSpec::default() };
    }
    let active = if order.is_empty() { 0 } else { 1 + dice.below(order.len()) };
    let standby = order.split_off(active);
    let policies = [TeamPolicy::PortId, TeamPolicy::SourceMac, TeamPolicy::Explicit, TeamPolicy::Load];
    let beacon = names.len() == 3 && dice.permille(500);
    TeamSpec {
        active: order,
        standby,
        policy: policies[dice.below(4)],
        detection: if beacon { Detection::Beacon } else { Detection::Link },
        no_failback: dice.permille(300),
        no_notify: dice.permille(200),
    }
}

fn guard(dice: &mut Dice) -> Option<bool> {
    let on = dice.permille(500);
    dice.permille(300).then_some(on)
}

fn security(dice: &mut Dice) -> SecuritySpec {
    SecuritySpec {
        promiscuous: dice.permille(300),
        mac_change: dice.permille(300),
        forged_transmits: dice.permille(300),
        dhcp_guard: guard(dice),
        router_guard: guard(dice),
    }
}

/// VLANs are few, so that groups meet.
fn vid(dice: &mut Dice) -> u32 {
    [10, 20, 30, 40][dice.below(4)]
}

pub(super) fn vlan(dice: &mut Dice) -> VlanSpec {
    match dice.below(8) {
        0 => VlanSpec::None,
        1..=3 => VlanSpec::Access(vid(dice)),
        4 => VlanSpec::Trunk { ranges: vec![(10, 10), (20, 22)], native: None },
        5 => VlanSpec::Trunk { ranges: vec![(20, 20), (30, 31)], native: Some(vid(dice)) },
        6 => VlanSpec::Trunk { ranges: vec![(vid(dice), 45)], native: dice.permille(500).then_some(10) },
        _ => VlanSpec::Guest,
    }
}

/// The address of all gateways.
pub(super) const GATEWAY: [u8; 4] = [10, 9, 0, 254];

fn gateway() -> GatewaySpec {
    let [a, b, c, d] = GATEWAY;
    GatewaySpec { address: format!("{a}.{b}.{c}.{d}/24"), pool: None, lease_s: 3600 }
}

/// One group, or the three of a private VLAN.
fn groups(dice: &mut Dice, n: usize, hosts: &[HostId], names: &[String], own_teams: bool) -> Vec<GroupSpec> {
    let vni = dice.permille(600).then_some(5000 + n as u32);
    let rate = |dice: &mut Dice| {
        let average_kbit_s = u64::from(dice.between(400, 1600));
        let peak_kbit_s = average_kbit_s * u64::from(dice.between(1, 40));
        dice.permille(700).then(|| RateSpec {
            average_kbit_s,
            peak_kbit_s,
            burst_kib: u64::from(dice.between(8, 32)),
        })
    };
    let mut base = GroupSpec {
        name: format!("g{n}"),
        switch: "sw".into(),
        vni,
        vlan: vlan(dice),
        security: security(dice),
        mtu: Some(if dice.permille(300) { 9000 } else { 1500 }),
        flood_neighbours: dice.permille(200),
        team: (own_teams && dice.permille(300)).then(|| team(dice, names, false)),
        ..GroupSpec::default()
    };
    if dice.permille(120) {
        base.shaping = ShapingSpec { ingress: rate(dice), egress: rate(dice) };
    }
    if dice.permille(150) {
        base.security.forged_transmits = true;
        let at_limit = if dice.permille(500) { AtLimit::Drop } else { AtLimit::Flood };
        base.learning = Some(LearningSpec { limit: 4, at_limit, age_s: 60 });
    }
    let with_gateway = dice.permille(350);
    if with_gateway && matches!(base.vlan, VlanSpec::None | VlanSpec::Access(_)) {
        base.gateway = vec![gateway()];
    }
    if vni.is_some() && dice.permille(300) {
        base.bridge = dice.pick(hosts).copied();
        base.vlan = VlanSpec::Access(50 + n as u32);
        return vec![base];
    }
    if !dice.permille(250) {
        return vec![base];
    }
    let primary = 100 + 10 * n as u32;
    // In any of its groups it is there for all of them.
    let of = dice.below(4);
    let kinds = [
        ("prom", PrivateKind::Promiscuous, None),
        ("iso", PrivateKind::Isolated, Some(primary + 1)),
        ("coma", PrivateKind::Community, Some(primary + 2)),
        ("comb", PrivateKind::Community, Some(primary + 3)),
    ];
    let group = |(name, kind, secondary): (&str, PrivateKind, Option<u32>)| GroupSpec {
        name: format!("g{n}{name}"),
        vlan: VlanSpec::Private { primary, secondary, kind },
        gateway: Vec::new(),
        ..base.clone()
    };
    let mut groups: Vec<GroupSpec> = kinds.into_iter().map(group).collect();
    groups[of].gateway = with_gateway.then(gateway).into_iter().collect();
    groups
}

/// Stations in VLANs that somebody uses, or nobody.
fn stations(dice: &mut Dice, spec: &Spec, uplinks: usize) -> Vec<Station> {
    if uplinks == 0 {
        return Vec::new();
    }
    let mut vids = vec![0, 10, 20, 30, 99];
    vids.extend(spec.groups.iter().filter(|group| group.bridge.is_some()).filter_map(
        |group| match group.vlan {
            VlanSpec::Access(vid) => Some(vid),
            _ => None,
        },
    ));
    let count = dice.below(4);
    (0..count).map(|n| Station { mac: mac(7, n), vid: vids[dice.below(vids.len())] }).collect()
}
