//! Deliberate bugs, to prove that the simulator would find them. Off unless the feature `bugs` is on, which only the
//! simulator turns on: in the daemon [`Bugs::has`] is a constant `false`.

/// A deliberate bug. Its name is what `ferro-sim switch --bug` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A frame that came from a tunnel leaves by tunnels.
    SplitHorizonOff,
    /// An address that moved to another host is still looked for where it was.
    StaleMac,
    /// An address stays in the table when its port is unplugged.
    UnplugKeepsMac,
    /// Untagged frames get into a trunk that has no native VLAN.
    NativeVlanLeak,
    /// A second tag behind the one that is taken off goes out.
    HiddenTag,
    /// Isolated ports of a private VLAN reach each other.
    IsolatedTalk,
    /// A source address that is not the port's passes.
    ForgedMac,
    /// A shaper lets one burst more through.
    ShapingBurst,
    /// A host's own frames are taken when the physical switch sends them back by the other uplink.
    Reflection,
    /// What is cut out of a super-frame keeps the sequence number of its beginning.
    RunSequence,
    /// A change of the configuration leaves ports in the VLANs where they were.
    StaleVlan,
    /// What a gateway sends leaves the host.
    GatewayLeak,
    /// Others speak in a gateway's name.
    GatewayClaimed,
    /// Guests speak as routers and DHCP servers where they may not.
    GuardOff,
}

impl Bug {
    /// All of them, with their names and what they do.
    pub const ALL: [(&'static str, Self, &'static str); 14] = [
        ("split-horizon-off", Self::SplitHorizonOff, "a frame from a tunnel leaves by tunnels"),
        ("stale-mac", Self::StaleMac, "an address that moved is looked for where it was"),
        ("unplug-keeps-mac", Self::UnplugKeepsMac, "an address outlives its port in the table"),
        ("native-vlan-leak", Self::NativeVlanLeak, "untagged frames get into a trunk without a native VLAN"),
        ("hidden-tag", Self::HiddenTag, "a second tag behind the one that is taken off goes out"),
        ("isolated-talk", Self::IsolatedTalk, "isolated ports of a private VLAN reach each other"),
        ("forged-mac", Self::ForgedMac, "a source address that is not the port's passes"),
        ("shaping-burst", Self::ShapingBurst, "a shaper lets one burst more through"),
        ("reflection", Self::Reflection, "a host takes its own frames that come back by another uplink"),
        ("run-sequence", Self::RunSequence, "a part of a super-frame keeps the sequence number of the whole"),
        ("stale-vlan", Self::StaleVlan, "a changed configuration leaves ports in their old VLANs"),
        ("gateway-leak", Self::GatewayLeak, "what a gateway sends leaves the host"),
        ("gateway-claimed", Self::GatewayClaimed, "others speak in a gateway's name"),
        ("guard-off", Self::GuardOff, "guests speak as routers and DHCP servers where they may not"),
    ];
}

/// Which bug is on, if any.
pub type Bugs = ferro_protocol::bugs::Bugs<Bug>;
