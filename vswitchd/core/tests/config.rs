//! What is refused, with which words, and that a refused change changes nothing.

use vswitch_core::config::spec::{Spec, VlanSpec};
use vswitch_core::config::{Change, Vlan, transact, validate};

const GOOD: &str = r#"
[[switch]]
name = "sw0"
mtu = 9000
uplinks = ["eth0", "eth1", "eth2"]
team = { active = ["eth0", "eth1"], standby = ["eth2"], policy = "source_mac", detection = "beacon" }

[[portgroup]]
name = "web"
switch = "sw0"
vni = 5000
vlan = { access = 10 }
bridge = "6f7c1b1e-8a6b-4b1a-9d2e-0d6f5a3c2b10"
mtu = 1500
security = { promiscuous = true }
shaping = { ingress = { average_kbit_s = 1000, peak_kbit_s = 2000, burst_kib = 64 } }
storm = { broadcast_pps = 100 }
gateway = { address = "10.0.0.1/24", pool = ["10.0.0.10", "10.0.0.99"] }

[[portgroup]]
name = "trunk"
switch = "sw0"
vlan = { trunk = { ranges = [[20, 29], [40, 40]], native = 5 } }
security = { forged_transmits = true }
learning = { limit = 16, at_limit = "flood" }

[[portgroup]]
name = "iso"
switch = "sw0"
vni = 6000
vlan = { private = { primary = 100, secondary = 101, kind = "isolated" } }

[[portgroup]]
name = "prom"
switch = "sw0"
vni = 6000
vlan = { private = { primary = 100, kind = "promiscuous" } }

[[port]]
name = "vm1.eth0"
group = "web"
mac = "52:54:00:00:00:01"
addresses = ["10.0.0.5", "fe80::5"]
override = { blocked = true }

[[port]]
name = "probe"
group = "trunk"
mac = "52:54:00:00:00:02"

[[mirror]]
name = "m"
groups = ["web"]
direction = "ingress"
to = "probe"
"#;

fn good() -> Spec {
    toml::from_str(GOOD).expect("it can be read")
}

/// The lines that `change` to the good configuration brings.
fn faults(change: impl FnOnce(&mut Spec)) -> Vec<String> {
    let mut spec = good();
    change(&mut spec);
    let faults = validate(&spec).err().unwrap_or_default();
    faults.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn one(change: impl FnOnce(&mut Spec), wanted: &str) {
    let found = faults(change);
    assert_eq!(found, [wanted], "one mistake is one line");
}

#[test]
fn what_is_right_becomes_what_holds() {
    let config = validate(&good()).unwrap();
    let web = &config.groups()[0];
    assert_eq!((web.policy.mtu, web.team.active.len(), web.team.standby.len()), (1500, 2, 1));
    assert_eq!(web.policy.ingress.unwrap().average_bytes_s, 125_000);
    let Vlan::Trunk { carries, native } = &config.groups()[1].vlan else { panic!("a trunk") };
    assert!(carries.contains(5) && carries.contains(29) && !carries.contains(30));
    assert_eq!(native.map(|v| v.get()), Some(5));
    let port = &config.ports()[&"vm1.eth0".parse().unwrap()];
    assert!(port.policy.blocked && port.policy.security.promiscuous && !web.policy.blocked);
    let mirror = &config.mirrors()[0];
    assert_eq!((mirror.ports.len(), mirror.ingress, mirror.egress), (1, true, false));
}

#[test]
fn what_is_written_is_read_again() {
    let text = toml::to_string(&good()).unwrap();
    assert_eq!(toml::from_str::<Spec>(&text).unwrap(), good());
    assert!(
        toml::from_str::<Spec>("[[port]]\nname = \"a\"\ngroup = \"b\"\nmac = \"c\"\ncolour = 1").is_err()
    );
}

#[test]
fn vlans_have_bounds() {
    one(|s| s.groups[0].vlan = VlanSpec::Access(4095), "port group \"web\": VLAN 4095 is not from 1 to 4094");
    let ranges = |ranges: &[(u32, u32)]| VlanSpec::Trunk { ranges: ranges.to_vec(), native: None };
    one(
        |s| s.groups[1].vlan = ranges(&[(30, 20)]),
        "port group \"trunk\": the VLAN range 30-20 is backwards",
    );
    one(|s| s.groups[1].vlan = ranges(&[(0, 20)]), "port group \"trunk\": VLAN 0 is not from 1 to 4094");
    one(|s| s.groups[1].vlan = ranges(&[]), "port group \"trunk\": a trunk needs a VLAN range");
    let native = VlanSpec::Trunk { ranges: vec![(1, 2)], native: Some(4095) };
    one(|s| s.groups[1].vlan = native, "port group \"trunk\": VLAN 4095 is not from 1 to 4094");
}

#[test]
fn names_refer_to_something() {
    one(|s| s.groups[0].switch = "x".into(), "port group \"web\": there is no switch \"x\"");
    one(|s| s.ports[0].group = "x".into(), "port \"vm1.eth0\": there is no port group \"x\"");
    one(
        |s| s.switches[0].team.as_mut().unwrap().standby.push("eth9".into()),
        "switch \"sw0\": uplink \"eth9\" is not one of switch \"sw0\"",
    );
    one(|s| s.mirrors[0].to = "x".into(), "mirror \"m\": there is no port \"x\"");
}

#[test]
fn nothing_is_given_twice() {
    let twice = |s: &mut Spec| {
        let mut port = s.ports[0].clone();
        port.group = "trunk".into();
        s.ports.push(port);
    };
    one(twice, "port \"vm1.eth0\": it is in two port groups, \"web\" and \"trunk\": a port has one");
    one(
        |s| s.ports[1].mac = "52-54-00-00-00-01".into(),
        "port \"probe\": MAC address 52:54:00:00:00:01 is also that of port \"vm1.eth0\"",
    );
    one(|s| s.groups[2].vni = Some(5000), "port group \"iso\": VNI 5000 is taken by port group \"web\"");
    let pool = |s: &mut Spec| {
        let mut gateway = s.groups[0].gateway[0].clone();
        gateway.pool = Some(("10.0.0.50".into(), "10.0.0.60".into()));
        s.groups[3].gateway = vec![gateway];
    };
    one(
        pool,
        "port group \"prom\": the address pool 10.0.0.50-10.0.0.60 overlaps that of port group \"web\"",
    );
}

#[test]
fn numbers_have_bounds() {
    one(|s| s.groups[0].mtu = Some(67), "port group \"web\": MTU 67 is not from 68 to 9216");
    one(
        |s| s.groups[0].mtu = Some(9001),
        "port group \"web\": MTU 9001 is more than the 9000 of switch \"sw0\"",
    );
    one(|s| s.groups[0].vni = Some(1 << 24), "port group \"web\": VNI 16777216 is not from 1 to 16777215");
    one(
        |s| s.groups[0].shaping.ingress.as_mut().unwrap().peak_kbit_s = 999,
        "port group \"web\": ingress: the peak of 999 kbit/s is below the average of 1000 kbit/s",
    );
    one(
        |s| s.ports[0].mac = "01:00:5e:00:00:01".into(),
        "port \"vm1.eth0\": MAC address 01:00:5e:00:00:01 can't be a network card's",
    );
    one(
        |s| s.groups[0].gateway[0].pool = Some(("10.0.1.1".into(), "10.0.1.9".into())),
        "port group \"web\": the pool 10.0.1.1-10.0.1.9 is not within 10.0.0.1/24",
    );
}

#[test]
fn private_and_bridged_vlans_are_their_own() {
    one(
        |s| s.groups[3].vlan = VlanSpec::Access(150),
        "port group \"prom\": VNI 6000 is taken by port group \"iso\"",
    );
    let clash = |s: &mut Spec| {
        s.groups[2].vni = None;
        s.groups[3].vni = None;
        s.groups[1].vlan = VlanSpec::Trunk { ranges: vec![(90, 110)], native: None };
    };
    let found = faults(clash);
    assert!(found[0].contains("VLAN 100 is used in another way by port group \"trunk\""), "{found:?}");
    one(
        |s| s.groups[1].vlan = VlanSpec::Trunk { ranges: vec![(1, 20)], native: None },
        "port group \"web\": VLAN 10 of switch \"sw0\" is bridged to it and used by port group \"trunk\": two networks would \
         become one",
    );
}

#[test]
fn all_faults_are_named_and_nothing_is_changed() {
    let spec = good();
    let mut port = spec.ports[1].clone();
    port.name = "new".into();
    port.mac = "52:54:00:00:00:03".into();
    let half = [Change::AddPort(port.clone()), Change::RemoveGroup("nope".into())];
    let faults = transact(&spec, &half).unwrap_err();
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].to_string(), "port group \"nope\": there is none of this name");
    let mut worse = port.clone();
    worse.name = "x y".into();
    worse.group = "no".into();
    let faults = transact(&spec, &[Change::AddPort(worse), Change::RemoveSwitch("nope".into())]).unwrap_err();
    assert_eq!(faults.len(), 3, "{faults:?}");
    let (after, config) = transact(&spec, &[Change::AddPort(port)]).unwrap();
    assert_eq!((spec, after.ports.len(), config.ports().len()), (good(), 3, 3));
}
