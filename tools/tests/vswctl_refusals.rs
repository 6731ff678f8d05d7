//! Every input that can't be: one clear line for each fault, an exit code that is not zero, and nothing changed.

mod switch;

use serde_json::Value;
use switch::Served;

#[test]
#[allow(clippy::too_many_lines, reason = "it is a table")]
fn what_can_not_be_is_refused_with_a_line_and_changes_nothing() {
    let served = Served::with_network();
    served.done(&[
        "portgroup",
        "create",
        "own",
        "--switch",
        "s0",
        "--gateway",
        "10.9.0.1/24",
        "--dhcp",
        "10.9.0.10-10.9.0.20",
    ]);
    let before = (served.spec(), served.control.state().revision);
    let group = |options: &'static [&'static str]| -> Vec<&'static str> {
        ["portgroup", "create", "new", "--switch", "s0"].iter().chain(options).copied().collect()
    };
    let port = |options: &'static [&'static str]| -> Vec<&'static str> {
        ["port", "create", "new"].iter().chain(options).copied().collect()
    };
    let mac = "52:54:00:00:00:77";
    let cases: &[(Vec<&str>, i32, &str)] = &[
        // VLANs.
        (group(&["--vlan", "4095"]), 2, "port group \"new\": VLAN 4095 is not from 1 to 4094"),
        (group(&["--vlan", "0"]), 2, "VLAN 0 is not from 1 to 4094"),
        (group(&["--trunk", "30-20"]), 2, "the VLAN range 30-20 is backwards"),
        (group(&["--trunk", "1-4095"]), 2, "VLAN 4095 is not"),
        (group(&["--trunk", "10", "--native", "5000"]), 2, "VLAN 5000 is not"),
        (group(&["--trunk", "ten"]), 2, "\"ten\" is not a list of VLANs"),
        (group(&["--vlan", "10", "--trunk", "10"]), 2, "cannot be used with"),
        (group(&["--native", "10"]), 2, "a native VLAN is a trunk's"),
        (group(&["--private-vlan", "10", "--private-kind", "isolated"]), 2, "needs a secondary VLAN"),
        // A port in two groups, unknown groups and switches.
        (
            vec!["port", "create", "vm1", "--group", "db", "--mac", mac],
            2,
            "port \"vm1\": it is in two port groups, \"web\" and \"db\"",
        ),
        (
            vec!["port", "create", "vm1", "--group", "web", "--mac", mac],
            4,
            "port \"vm1\": there is more than one of this name",
        ),
        (
            port(&["--group", "nowhere", "--mac", "52:54:00:00:00:77"]),
            2,
            "there is no port group \"nowhere\"",
        ),
        (vec!["portgroup", "create", "new", "--switch", "nowhere"], 2, "there is no switch \"nowhere\""),
        // MTU.
        (group(&["--mtu", "67"]), 2, "MTU 67 is not from 68 to 9216"),
        (group(&["--mtu", "9217"]), 2, "MTU 9217 is not"),
        (group(&["--mtu", "9000"]), 2, "MTU 9000 is more than the 1500 of switch \"s0\""),
        (vec!["switch", "create", "s1", "--mtu", "10000"], 2, "switch \"s1\": MTU 10000 is not"),
        // Uplinks.
        (group(&["--active", "eth9"]), 2, "uplink \"eth9\" is not one of switch \"s0\""),
        (group(&["--active", "eth0", "--standby", "eth0"]), 2, "uplink \"eth0\" is named twice"),
        (
            vec!["switch", "create", "s1", "--uplinks", "eth0"],
            2,
            "uplink \"eth0\" is also one of switch \"s0\"",
        ),
        (group(&["--detection", "beacon", "--active", "eth0"]), 2, "beacons need three uplinks"),
        // Addresses.
        (
            port(&["--group", "web", "--mac", "52:54:00:00:00:01"]),
            2,
            "MAC address 52:54:00:00:00:01 is also that of port \"vm1\"",
        ),
        (
            port(&["--group", "web", "--mac", "53:54:00:00:00:01"]),
            2,
            "MAC address 53:54:00:00:00:01 can't be a network card's",
        ),
        (port(&["--group", "web", "--mac", "52:54"]), 2, "\"52:54\" is not a MAC address"),
        (
            port(&["--group", "web", "--mac", "52:54:00:00:00:77", "--address", "10.0.0.1"]),
            2,
            "IP address 10.0.0.1 is also that of port \"vm1\"",
        ),
        (
            port(&["--group", "web", "--mac", "52:54:00:00:00:77", "--address", "10.0.0"]),
            2,
            "\"10.0.0\" is not an IP address",
        ),
        // Pools.
        (
            group(&["--gateway", "10.9.0.2/24", "--dhcp", "10.9.0.15-10.9.0.30"]),
            2,
            "overlaps that of port group \"own\"",
        ),
        (
            group(&["--gateway", "10.8.0.1/24", "--dhcp", "10.8.0.9-10.8.0.5"]),
            2,
            "the pool 10.8.0.9-10.8.0.5 is backwards",
        ),
        (group(&["--gateway", "10.8.0.1/24", "--dhcp", "10.7.0.2-10.7.0.5"]), 2, "is not within 10.8.0.1/24"),
        (group(&["--gateway", "10.8.0.1"]), 2, "is not an address with its prefix"),
        (group(&["--dhcp", "10.8.0.2-10.8.0.5"]), 2, "has no gateway"),
        (
            group(&["--gateway", "10.8.0.1/24", "--trunk", "10-20"]),
            2,
            "a gateway needs a port group with one VLAN",
        ),
        // Virtual networks.
        (group(&["--vni", "1010"]), 2, "VNI 1010 is taken by port group \"web\""),
        (group(&["--vni", "16777216"]), 2, "VNI 16777216 is not from 1 to 16777215"),
        (group(&["--bridge", "alpha"]), 2, "only a distributed port group"),
        (group(&["--bridge", "nowhere", "--vni", "5"]), 3, "there is no host \"nowhere\""),
        // Rates, limits, learning.
        (
            group(&["--ingress", "2G/1G"]),
            2,
            "the peak of 1000000 kbit/s is below the average of 2000000 kbit/s",
        ),
        (group(&["--ingress", "fast"]), 2, "\"fast\" is not a rate"),
        (group(&["--storm-broadcast", "0"]), 2, "a limit of 0 frames a second on broadcast"),
        (group(&["--learn", "5000", "--forged-transmits", "allow"]), 2, "a learning limit of 5000"),
        (group(&["--learn", "5"]), 2, "learning needs forged_transmits"),
        (group(&["--learn-age", "60"]), 2, "does not learn addresses"),
        // Names.
        (vec!["portgroup", "create", "-x", "--switch", "s0"], 2, "unexpected argument '-x'"),
        (vec!["portgroup", "create", "a/b", "--switch", "s0"], 2, "for a name"),
        (vec!["switch", "create", "s0"], 4, "switch \"s0\": there is more than one of this name"),
        // What is not there.
        (
            vec!["portgroup", "set", "ghost", "--mtu", "1400"],
            3,
            "port group \"ghost\": there is none of this name",
        ),
        (vec!["port", "delete", "ghost"], 3, "port \"ghost\": there is none of this name"),
        (vec!["port", "set", "ghost", "--blocked", "yes"], 3, "port \"ghost\": there is none"),
        (vec!["switch", "delete", "ghost"], 3, "switch \"ghost\": there is none"),
        (vec!["mirror", "set", "ghost", "--port", "vm1"], 3, "mirror \"ghost\": there is none"),
        (vec!["port", "attach", "ghost"], 3, "there is no port ghost"),
        (
            vec!["port", "attach", "vm3", "--vhost-socket", "vm3.sock"],
            2,
            "\"vm3.sock\" is not a path that a socket can be at",
        ),
        (vec!["port", "attach", "vm3", "--queues", "17"], 2, "port vm3 can't have 17 pairs of queues"),
        (vec!["port", "attach", "vm3", "--to", "tap"], 2, "--interface"),
        (
            vec!["port", "attach", "vm3", "--to", "tap", "--interface", "a/b"],
            2,
            "\"a/b\" is not a name that an interface can have",
        ),
        (vec!["port", "attach", "vm3", "--interface", "tap0"], 2, "an interface is for --to tap"),
        (vec!["port", "attach", "vm3", "--connect"], 2, "--vhost-socket"),
        // Mirrors.
        (
            vec!["mirror", "create", "m", "--to", "vm1", "--port", "vm1"],
            2,
            "port \"vm1\" can't be mirrored to itself",
        ),
        (vec!["mirror", "create", "m", "--to", "vm1"], 2, "a mirror needs ports or groups"),
        (vec!["mirror", "create", "m", "--to", "ghost", "--port", "vm1"], 2, "there is no port \"ghost\""),
        // Captures.
        (
            vec!["capture", "nowhere", "-w", "/tmp/never.pcapng"],
            3,
            "no port, port group or uplink \"nowhere\"",
        ),
        (vec!["capture", "vm3", "-w", "/tmp/never.pcapng"], 3, "there is no port vm3 on this host"),
        (vec!["capture", "vm1", "-w", "-", "--snap", "0"], 2, "0 is not in 1..=262144"),
    ];
    for (args, code, line) in cases {
        let ran = served.run(args);
        assert!(ran.out.is_empty(), "{args:?}: {ran:?}");
        ran.refused(*code, &[line]);
        assert_eq!((served.spec(), served.control.state().revision), before, "{args:?}");
    }
    assert!(!std::path::Path::new("/tmp/never.pcapng").exists(), "a refused capture leaves no file");
    served.control.state().no_quorum = true;
    served.run(&["port", "delete", "vm3"]).refused(6, &["no quorum", "forwarding goes on"]);
    assert_eq!(served.spec(), before.0);
}

#[test]
fn programs_get_every_fault() {
    let served = Served::with_network();
    let ran = served.run(&["--json", "portgroup", "create", "new", "--switch", "nowhere", "--vlan", "4095"]);
    assert_eq!(ran.code, 2);
    let failure: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((failure["code"].as_str(), failure["exit_code"].as_u64()), (Some("invalid_network"), Some(2)));
    let faults = failure["faults"].as_array().unwrap();
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert!(faults.iter().all(|fault| fault["kind"] == "port group" && fault["name"] == "new"), "{faults:?}");
    let ran = served.run(&["--json", "switch", "delete", "ghost"]);
    assert_eq!(serde_json::from_str::<Value>(&ran.err).unwrap()["code"], "switch_not_found");
}
