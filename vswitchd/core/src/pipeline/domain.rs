//! Networks: what nothing crosses.

use std::collections::{BTreeMap, BTreeSet};

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{NetName, Vni};

use crate::config::{Config, Group, GroupIx, Learning, PrivateKind, SwitchIx, Vlan};
use crate::frame::Vid;
use crate::table::{DomainId, PeerIx};

use super::gateway::Gateway;
use super::lane::Private;

/// A virtual network, or the VLANs of a switch.
#[derive(Clone, Debug)]
pub struct Domain {
    pub(super) id: DomainId,
    pub(super) vni: Option<Vni>,
    pub(super) switch: SwitchIx,
    /// Attached ports.
    pub(super) ports: Vec<u32>,
    /// Those that see everything.
    pub(super) watchers: Vec<u32>,
    /// Hosts with ports in it.
    pub(super) peers: Vec<PeerIx>,
    pub(super) private: Vec<Private>,
    /// Somebody claims an address in all VLANs.
    pub(super) has_trunks: bool,
    /// The group whose uplinks it leaves by here.
    pub(super) bridge: Option<GroupIx>,
    pub(super) learning: Option<Learning>,
    /// Sorted by VLAN, one in each at most.
    pub(super) gateways: Vec<Gateway>,
}

impl Domain {
    /// The virtual network, if it is one.
    pub fn vni(&self) -> Option<Vni> {
        self.vni
    }

    /// In place of a port, for choosing an uplink for what comes from tunnels.
    pub(super) fn team_port(&self) -> u32 {
        !self.id.0
    }

    /// Whether frames leave it by uplinks at this host.
    pub(super) fn is_physical(&self) -> bool {
        self.vni.is_none() || self.bridge.is_some()
    }
}

/// All networks of a configuration, and how they are found.
#[derive(Debug, Default)]
pub(super) struct Domains {
    pub(super) all: Vec<Domain>,
    pub(super) by_vni: BTreeMap<Vni, usize>,
    pub(super) standard: BTreeMap<u16, usize>,
    pub(super) bridged: BTreeMap<(u16, u16), usize>,
    /// The place of each group's network.
    pub(super) of_group: Vec<usize>,
}

/// The id of a switch's own network: the place of its name, which it keeps when others come and go.
pub(super) fn standard_id(names: &mut BTreeMap<NetName, u32>, name: &NetName) -> DomainId {
    let next = names.len() as u32;
    DomainId(0x8000_0000 | *names.entry(name.clone()).or_insert(next))
}

pub(super) fn build(config: &Config, host: HostId, names: &mut BTreeMap<NetName, u32>) -> Domains {
    let mut it = Domains::default();
    for (at, group) in config.groups().iter().enumerate() {
        let place = place(&mut it, config, group, names);
        it.of_group.push(place);
        let domain = &mut it.all[place];
        private(domain, group);
        domain.has_trunks |= matches!(group.vlan, Vlan::Trunk { .. } | Vlan::Guest);
        if let Some(learning) = group.learning {
            // Of several the one that keeps more for longer.
            let old = domain.learning.get_or_insert(learning);
            old.age = old.age.max(learning.age);
        }
        if let Some(gateway) = Gateway::of(group, GroupIx(at as u32)) {
            let at = domain.gateways.partition_point(|other| other.vid < gateway.vid);
            domain.gateways.insert(at, gateway);
        }
        if let (Vlan::Access(vlan), true) = (&group.vlan, group.bridge == Some(host)) {
            domain.bridge = Some(GroupIx(at as u32));
            it.bridged.insert((group.switch.0, Vid::from(*vlan).get()), place);
        }
    }
    it
}

fn place(it: &mut Domains, config: &Config, group: &Group, names: &mut BTreeMap<NetName, u32>) -> usize {
    let known = match group.vni {
        Some(vni) => it.by_vni.get(&vni),
        None => it.standard.get(&group.switch.0),
    };
    if let Some(place) = known {
        return *place;
    }
    let place = it.all.len();
    let id = if let Some(vni) = group.vni {
        it.by_vni.insert(vni, place);
        DomainId(vni.get())
    } else {
        it.standard.insert(group.switch.0, place);
        standard_id(names, &config.switches()[usize::from(group.switch.0)].name)
    };
    it.all.push(Domain {
        id,
        vni: group.vni,
        switch: group.switch,
        ports: Vec::new(),
        watchers: Vec::new(),
        peers: Vec::new(),
        private: Vec::new(),
        has_trunks: false,
        bridge: None,
        learning: None,
        gateways: Vec::new(),
    });
    place
}

fn private(domain: &mut Domain, group: &Group) {
    let Vlan::Private { primary, sends, kind } = &group.vlan else { return };
    let (wire, primary) = (Vid::from(*sends), Vid::from(*primary));
    let community = *kind == PrivateKind::Community;
    let mut all: BTreeSet<Private> = domain.private.iter().copied().collect();
    all.insert(Private { wire, primary, community });
    all.insert(Private { wire: primary, primary, community: false });
    domain.private = all.into_iter().collect();
}
