//! The verbs of `vswctl`, their output, and what becomes of the configuration.

mod switch;

use ferro_protocol::api::switch::HostProgress;
use ferro_protocol::api::switch::spec::{PrivateKind, VlanSpec};
use switch::Served;
use switch::control::{BETA, GAMMA};

#[test]
fn a_network_from_its_making_to_its_end() {
    let served = Served::start();
    let made = served.done(&["switch", "create", "s0", "--uplinks", "eth0,eth1", "--mtu", "9000"]);
    assert_eq!(made, "created switch s0 (revision 1, applied on all 3 hosts)\n");
    served.done(&["portgroup", "create", "web", "--switch", "s0", "--vlan", "10", "--vni", "1010"]);
    served.done(&["port", "create", "vm1", "--group", "web", "--mac", "52:54:00:00:00:01"]);
    assert_eq!(
        served.done(&["switch", "list"]),
        "NAME   MTU  GROUPS  UPLINKS    TEAMING\ns0    9000       1  eth0,eth1  all active\n"
    );
    assert_eq!(
        served.done(&["portgroup", "list"]),
        "NAME  SWITCH   VNI  VLAN  PORTS  GATEWAY\nweb   s0      1010  10        1  -\n"
    );
    let attached = served.json(&["port", "attach", "vm1", "--queues", "4"]);
    assert_eq!(attached["attachment"]["socket"], "/run/vswitchd/ports/vm1.sock");
    let qemu = attached["qemu_arguments"].as_array().unwrap();
    assert!(
        qemu.contains(&"socket,id=vsw-vm1,path=/run/vswitchd/ports/vm1.sock,reconnect=1".into()),
        "{qemu:?}"
    );
    assert!(
        qemu.contains(&"virtio-net-pci,netdev=net-vsw-vm1,mac=52:54:00:00:00:01,mq=on,vectors=10".into()),
        "{qemu:?}"
    );
    served
        .run(&["port", "attach", "vm1", "--to", "tap", "--interface", "tap0"])
        .refused(4, &["port vm1 is attached", "vswctl port detach vm1"]);
    let list = served.done(&["port", "list"]);
    assert!(
        list.contains(
            "vm1   web    52:54:00:00:00:01  alpha  /run/vswitchd/ports/vm1.sock  up      12   7        5"
        ),
        "{list}"
    );
    let shown = served.done(&["port", "show", "vm1"]);
    assert!(shown.contains("dropped      5\n") && shown.contains("         3  forged_source\n"), "{shown}");
    assert_eq!(served.done(&["port", "detach", "vm1"]), "port vm1 is detached from this host\n");
    served.run(&["port", "detach", "vm1"]).refused(4, &["vm1 is not attached"]);

    // What something else stands on stays.
    served.run(&["switch", "delete", "s0"]).refused(2, &["there is no switch \"s0\"", "nothing was changed"]);
    served.run(&["portgroup", "delete", "web"]).refused(2, &["there is no port group \"web\""]);
    served.done(&["port", "delete", "vm1"]);
    served.done(&["portgroup", "delete", "web"]);
    assert_eq!(served.done(&["switch", "delete", "s0", "-q"]), "");
    assert_eq!(served.spec(), ferro_protocol::api::switch::Spec::default());
    served.run(&["port", "show", "vm1"]).refused(3, &["there is no port vm1", "port list"]);
}

#[test]
fn every_option_of_a_group_and_a_port_arrives() {
    let served = Served::with_network();
    let set = |options: &[&str]| {
        let all: Vec<&str> = ["portgroup", "set", "db"].iter().chain(options).copied().collect();
        served.done(&all);
        served.spec().groups.into_iter().find(|it| it.name == "db").unwrap()
    };
    let trunk = |ranges: &[(u32, u32)], native| VlanSpec::Trunk { ranges: ranges.to_vec(), native };
    assert_eq!(set(&["--trunk", "20,30-39", "--native", "20"]).vlan, trunk(&[(20, 20), (30, 39)], Some(20)));
    assert_eq!(set(&["--trunk", "20-25"]).vlan, trunk(&[(20, 25)], Some(20)), "the native VLAN stays");
    assert_eq!(set(&["--native", "none"]).vlan, trunk(&[(20, 25)], None));
    assert_eq!(set(&["--guest-tagging"]).vlan, VlanSpec::Guest);
    assert_eq!(set(&["--untagged"]).vlan, VlanSpec::None);
    let private = set(&["--private-vlan", "20", "--private-kind", "isolated", "--secondary", "21"]);
    let wanted = VlanSpec::Private { primary: 20, secondary: Some(21), kind: PrivateKind::Isolated };
    assert_eq!(private.vlan, wanted);
    let it =
        set(&["--vlan", "20", "--forged-transmits", "allow", "--learn", "16", "--learn-at-limit", "flood"]);
    assert!(it.security.forged_transmits && !it.security.promiscuous);
    assert_eq!(it.learning.map(|it| (it.limit, it.age_s)), Some((16, 300)));
    let it =
        set(&["--ingress", "100M/1G/512K", "--egress", "1G", "--storm-broadcast", "100", "--mtu", "1400"]);
    assert_eq!(it.shaping.ingress.map(|it| (it.average_kbit_s, it.burst_kib)), Some((100_000, 512)));
    assert_eq!((it.storm.broadcast_pps, it.mtu), (Some(100), Some(1400)));
    let it = set(&["--active", "eth1", "--standby", "eth0", "--teaming", "explicit", "--failback", "no"]);
    let team = it.team.unwrap();
    assert_eq!(
        (team.active, team.standby, team.no_failback),
        (vec!["eth1".into()], vec!["eth0".into()], true)
    );
    let it = set(&["--standby", "eth1"]);
    assert_eq!(it.team.map(|team| team.active), Some(vec![]), "in reserve, and in use no longer");
    let it = set(&["--gateway", "10.0.0.1/24", "--dhcp", "10.0.0.10-10.0.0.99", "--lease", "600"]);
    assert_eq!(it.gateway.first().map(|it| (it.lease_s, it.pool.is_some())), Some((600, true)));
    let it = set(&["--gateway", "10.0.0.2/24", "--blocked", "yes", "--flood-neighbours", "yes"]);
    assert_eq!(it.gateway.len(), 1, "one of a kind");
    assert_eq!((it.gateway[0].address.as_str(), it.gateway[0].lease_s), ("10.0.0.2/24", 600));
    let it =
        set(&["--gateway", "fd00::1/64", "--lease", "900", "--router-guard", "off", "--dhcp-guard", "auto"]);
    let both: Vec<_> = it.gateway.iter().map(|it| (it.address.as_str(), it.lease_s)).collect();
    assert_eq!(both, [("10.0.0.2/24", 900), ("fd00::1/64", 86_400)], "beside the other one; DHCP is IPv4's");
    assert_eq!((it.security.router_guard, it.security.dhcp_guard), (Some(false), None));
    let shown = served.done(&["portgroup", "show", "db"]);
    assert!(shown.contains("10.0.0.2/24, fd00::1/64") && shown.contains("router guard off"), "{shown}");
    let it = set(&["--gateway", "none", "--gateway", "10.0.0.3/24", "--gateway", "fd00::2/64"]);
    assert_eq!(it.gateway.iter().map(|it| it.lease_s).collect::<Vec<_>>(), [86_400, 86_400]);
    let it = set(&[
        "--no-teaming",
        "--gateway",
        "none",
        "--learn",
        "none",
        "--ingress",
        "none",
        "--mtu",
        "none",
        "--storm-broadcast",
        "none",
        "--vni",
        "77",
        "--bridge",
        "beta",
    ]);
    assert_eq!(
        (it.team, it.gateway.first().cloned(), it.learning, it.shaping.ingress, it.mtu),
        (None, None, None, None, None)
    );
    assert_eq!((it.vni, it.bridge, it.blocked, it.flood_neighbours), (Some(77), Some(BETA), true, true));
    let shown = served.done(&["portgroup", "show", "db"]);
    assert!(shown.contains("distributed, VNI 77") && shown.contains("forged transmits allowed"), "{shown}");

    let port = |options: &[&str]| {
        let all: Vec<&str> = ["port", "set", "vm1"].iter().chain(options).copied().collect();
        served.done(&all);
        served.spec().ports.into_iter().find(|it| it.name == "vm1").unwrap()
    };
    let it = port(&["--promiscuous", "allow", "--egress", "10M", "--storm-unknown", "5", "--blocked", "no"]);
    let own = it.overrides.unwrap();
    assert!(own.security.is_some_and(|it| it.promiscuous && !it.forged_transmits));
    assert_eq!((own.blocked, own.storm.unwrap().unknown_pps), (Some(false), Some(5)));
    let it = port(&["--inherit", "security,blocked", "--address", "10.0.0.7,fd00::7"]);
    let own = it.overrides.unwrap();
    assert_eq!((own.security, own.blocked, own.shaping.is_some()), (None, None, true));
    assert_eq!(it.addresses, ["10.0.0.7", "fd00::7"]);
    // A port that moves takes the rest of its group's policy from the new one: it begins as that.
    let it = port(&["--group", "db", "--address", "--mac-change", "allow", "--inherit", "all"]);
    assert!(it.overrides.unwrap().security.is_some_and(|it| it.mac_change && it.forged_transmits));

    served.done(&["port", "create", "probe", "--group", "web", "--mac", "52:54:00:00:00:99"]);
    served.done(&["mirror", "create", "m", "--to", "probe", "--port", "vm2", "--direction", "egress"]);
    served.done(&["mirror", "set", "m", "--group", "db"]);
    assert_eq!(
        served.done(&["mirror", "list"]),
        "NAME  PORTS  GROUPS  DIRECTION     TO\nm     vm2    db      to the guest  probe\n"
    );
    served.done(&["mirror", "delete", "m"]);
}

#[test]
fn a_dry_run_changes_nothing_and_says_the_same() {
    let served = Served::with_network();
    let before = (served.spec(), served.control.state().revision);
    let out = served.done(&["port", "delete", "vm3", "--dry-run"]);
    assert_eq!(out, "this can be done (deleted port vm3); nothing was changed\n");
    served
        .run(&["port", "set", "vm3", "--mac", "zz", "--dry-run"])
        .refused(2, &["\"zz\" is not a MAC address"]);
    let answer = served.json(&["transaction", "--dry-run", "port delete vm3; portgroup delete db"]);
    assert_eq!((answer["changed"].as_bool(), answer["dry_run"].as_bool()), (Some(true), Some(true)));
    assert_eq!(served.done(&["port", "set", "vm3", "--group", "db", "--dry-run"]), "nothing would change\n");
    served
        .run(&["port", "attach", "vm3", "--dry-run"])
        .refused(2, &["--dry-run", "changes of the configuration"]);
    served.run(&["status", "--no-wait"]).refused(2, &["--no-wait"]);
    assert_eq!((served.spec(), served.control.state().revision), before);
    assert!(!served.control.state().attached.contains_key(&"vm3".parse().unwrap()));
    let same = served.done(&["port", "set", "vm3", "--group", "db"]);
    assert_eq!(same, format!("nothing to do: it is like that already (revision {})\n", before.1));
}

#[test]
fn hosts_that_have_not_applied_a_change_are_named() {
    let served = Served::with_network();
    let progress = |host, progress| served.control.state().progress.insert(host, progress);
    progress(BETA, HostProgress::Unreachable);
    let ran = served.run(&["port", "delete", "vm3"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "deleted port vm3 (revision 2, applied on 2 of 3 hosts)\n"));
    assert!(
        ran.err.contains("warning: host beta can't be reached: it takes the change over when"),
        "{ran:?}"
    );

    progress(GAMMA, HostProgress::Failed);
    let ran = served.run(&["portgroup", "set", "db", "--mtu", "1400"]);
    ran.refused(
        1,
        &[
            "revision 3 is durable, but not in force on 1 host",
            "host gamma can't take it over",
            "no interface eth9",
        ],
    );
    progress(GAMMA, HostProgress::RolledBack);
    served.run(&["portgroup", "set", "db", "--mtu", "1401"]).refused(1, &["host gamma went back"]);
    progress(GAMMA, HostProgress::Pending);
    let ran = served.run(&["portgroup", "set", "db", "--mtu", "1402", "--wait", "0"]);
    ran.refused(7, &["host gamma has not taken it over yet (it has revision 4)"]);
    let json = served.run(&["portgroup", "set", "db", "--mtu", "1403", "--wait", "0", "-o", "json"]);
    let failure: serde_json::Value = serde_json::from_str(&json.err).unwrap();
    assert_eq!(
        (failure["code"].as_str(), failure["details"]["hosts"].as_str()),
        (Some("not_applied"), Some("gamma"))
    );
    let waits = served.control.state().waits;
    assert_eq!(
        served.done(&["portgroup", "set", "db", "--mtu", "1404", "--no-wait"]),
        "changed port group db (revision 7)\n"
    );
    assert_eq!(served.control.state().waits, waits);
    let status = served.done(&["status"]);
    assert!(
        status.contains("gamma   pending             6") && status.contains("health    WARNING"),
        "{status}"
    );
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let served = Served::with_network();
    let before = served.spec();
    // Each of the first two could be done.
    let ran = served.run(&[
        "transaction",
        "portgroup create ok --switch s0 --vlan 30; port delete vm3; \
         portgroup create bad --switch s0 --vlan 4095 --mtu 10; port create p --group nowhere --mac 52:54:00:00:00:01; \
         portgroup set ghost --mtu 9000",
    ]);
    ran.refused(
        2,
        &[
            "the network can't be configured like this, for 5 reasons",
            "  - port group \"ghost\": there is none of this name",
            "  - port group \"bad\": VLAN 4095 is not from 1 to 4094",
            "  - port group \"bad\": MTU 10 is not from 68 to 9216",
            "  - port \"p\": there is no port group \"nowhere\"",
            "  - port \"p\": MAC address 52:54:00:00:00:01 is also that of port \"vm1\"",
            "nothing was changed",
        ],
    );
    assert_eq!(served.spec(), before);

    // What is wrong between two commands does not matter, and a later one sees the earlier.
    let out = served.done(&[
        "transaction",
        "vswctl portgroup delete db; portgroup create db --switch s0 --vlan 21; portgroup set db --vni 2021",
    ]);
    assert_eq!(out, "made 3 changes (revision 2, applied on all 3 hosts)\n");
    assert_eq!(served.spec().groups.last().map(|it| it.vni), Some(Some(2021)));

    let file = served.path("commands");
    std::fs::write(&file, "# nothing but\nport delete vm3 # this\n").unwrap();
    assert!(served.done(&["transaction", "-f", file.to_str().unwrap()]).contains("deleted port vm3"));
    for (text, words) in [
        ("", &["no commands"][..]),
        ("port delete 'vm1", &["a quote is not closed"]),
        ("port frobnicate vm1", &["command 1 (port frobnicate vm1)", "frobnicate"]),
        ("port delete vm1; status", &["command 2 (status) does not change"]),
        ("port delete vm1 --dry-run", &["an option of the whole transaction"]),
    ] {
        served.run(&["transaction", text]).refused(2, words);
    }
    assert!(served.spec().ports.iter().any(|it| it.name == "vm1"));
}

#[test]
fn somebody_else_may_be_quicker() {
    let served = Served::with_network();
    served.control.state().races = 2;
    assert_eq!(
        served.done(&["port", "delete", "vm3"]),
        "deleted port vm3 (revision 4, applied on all 3 hosts)\n"
    );
    served.control.state().races = 9;
    served.run(&["port", "delete", "vm2"]).refused(4, &["has changed meanwhile", "try again"]);
    assert!(served.spec().ports.iter().any(|it| it.name == "vm2"));
}

#[test]
fn changes_can_ask_to_be_confirmed() {
    let served = Served::with_network();
    let out = served.done(&["port", "delete", "vm3", "--confirm-within", "30"]);
    assert!(out.contains("; undone in 30 s unless `vswctl confirm 2` is run"), "{out}");
    let status = served.done(&["status"]);
    assert!(status.contains("revision 2 is undone in 20 s unless `vswctl confirm 2`"), "{status}");
    assert_eq!(served.done(&["confirm"]), "revision 2 stays\n");
    served.run(&["confirm"]).refused(3, &["no change waits"]);
    served.run(&["confirm", "2"]).refused(3, &["revision 2 does not wait"]);
    served.run(&["port", "delete", "vm2", "--confirm-within", "0"]).refused(2, &["0 is not in 1..=3600"]);
    served.done(&["port", "delete", "vm2", "--confirm-within", "5"]);
    assert_eq!(served.done(&["undo"]), "revision 3 was undone\n");
}

#[test]
fn a_file_can_be_the_whole_configuration() {
    let served = Served::with_network();
    let text = served.done(&["config"]);
    assert!(text.contains("[[portgroup]]") && text.contains("name = \"web\""), "{text}");
    let file = served.path("net.toml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, &text).unwrap();
    assert!(served.done(&["apply", "-f", path]).contains("nothing to do"));
    std::fs::write(&file, served.done(&["config", "--json"])).unwrap();
    assert!(served.done(&["apply", "-f", path]).contains("nothing to do"), "its JSON too");

    let without = text.replace("group = \"db\"", "group = \"web\"").replace("vni = 1010", "vni = 1011");
    std::fs::write(&file, &without).unwrap();
    assert_eq!(
        served.done(&["apply", "-f", path]),
        "applied the file, 2 changes (revision 2, applied on all 3 hosts)\n"
    );
    let cut = &without[..without.find("[[port]]").unwrap()];
    std::fs::write(&file, cut).unwrap();
    served
        .run(&["apply", "-f", path])
        .refused(9, &["removes what the file does not have: port vm1, port vm2", "--yes"]);
    assert_eq!(served.spec().ports.len(), 3);
    assert!(served.done(&["apply", "-f", path, "--dry-run"]).contains("3 changes"));
    served.done(&["apply", "-f", path, "--yes"]);
    assert!(served.spec().ports.is_empty());
    for (text, word) in [("[[port]]\nname = 1", "line 2"), ("colour = 1", "colour"), ("{", "EOF")] {
        std::fs::write(&file, text).unwrap();
        served.run(&["apply", "-f", path]).refused(2, &["is no configuration", word]);
    }
    served.run(&["apply", "-f", "/nowhere/net.toml"]).refused(3, &["/nowhere/net.toml"]);
}

#[test]
fn what_is_there_is_shown() {
    let served = Served::with_network();
    served.control.state().frozen = vec!["02:00:00:00:00:07".parse().unwrap()];
    let status = served.done(&["status"]);
    for line in [
        "health    OK",
        "host      alpha, vswitchd 0.1.0",
        "config    revision 1, from the cluster directory",
        "network   1 switch, 2 port groups, 3 ports: 2 attached here, 2 up",
        "          address 02:00:00:00:00:07 of VNI 1010 is frozen: two machines have it",
        "            next: take one away, then `vswctl mac release 02:00:00:00:00:07 --vni 1010`",
        "  alpha*  applied         1  -",
        "  eth1    s0      down  10 Gb/s  -               0     0        0",
        "  beta  up for 2m 5s  10.2.0.1  10.2.0.2  down       -        90   100     1",
    ] {
        assert!(status.lines().any(|it| it == line), "no {line:?} in\n{status}");
    }
    assert_eq!(served.json(&["status"])["uplinks"].as_array().unwrap().len(), 3);
    assert_eq!(
        served.done(&["status", "--watch", "--count", "2", "--interval", "1"]).matches("health").count(),
        2
    );
    assert!(served.done(&["uplink", "list", "-o", "wide"]).contains("DETAIL"));
    assert!(served.done(&["tunnel", "list", "-o", "wide"]).contains("1412"));
    assert_eq!(served.done(&["mac", "list"]).lines().count(), 2501, "all pages");
    let frozen = served.done(&["mac", "list", "--frozen"]);
    assert!(frozen.contains("VNI 1010     -  02:00:00:00:00:07  host beta  frozen"), "{frozen}");
    served.run(&["mac", "release", "02:00:00:00:00:07"]).refused(3, &["is not frozen"]);
    served.done(&["mac", "release", "02:00:00:00:00:07", "--vni", "1010"]);
    served.run(&["mac", "release", "x"]).refused(2, &["not a MAC address"]);
}

#[test]
fn a_trace_tells_each_step() {
    let served = Served::with_network();
    let trace = served.done(&["trace", "vm1", "--dst", "vm2", "--to-ip", "10.0.0.2"]);
    for words in [
        "a frame from 52:54:00:00:00:01 to 52:54:00:00:00:02, untagged, EtherType 0x0800",
        "in VLAN 10",
        "its destination address is at port vm2",
        "it goes to port vm2",
        "1 copy would leave the switch",
    ] {
        assert!(trace.contains(words), "no {words:?} in\n{trace}");
    }
    let dropped = served.json(&["trace", "vm1", "--src", "02:00:00:00:00:09"]);
    let last = dropped["steps"].as_array().unwrap().last().unwrap();
    assert_eq!((last["step"].as_str(), last["cause"].as_str()), (Some("dropped"), Some("forged_source")));
    let tagged = served.done(&["trace", "vm1", "--vlan", "20"]);
    assert!(tagged.contains("it is tagged, and the port group is not a trunk [tagged]"), "{tagged}");
    assert!(served.done(&["trace", "vm1", "--arp", "10.0.0.99"]).contains("it goes to port vm2"));
    served.done(&["trace", "uplink:eth0", "--vlan", "20"]);
    let hex = "ff:ff:ff:ff:ff:ff 52:54:00:00:00:01 08 06 00";
    assert!(served.done(&["trace", "vm1", "--frame", hex]).contains("EtherType 0x0806"));
    served.run(&["trace", "vm1", "--frame", "ff"]).refused(2, &["the frame has 1 bytes"]);
    served
        .run(&["trace", "vm1", "--dst", "nobody"])
        .refused(2, &["neither a MAC address nor the name of a port"]);
    served.run(&["trace", "vm3"]).refused(3, &["no port vm3 on this host"]);
    served.run(&["trace", "uplink:eth9"]).refused(3, &["no uplink eth9", "uplink list"]);
    served.run(&["trace", "a/b"]).refused(2, &["not a name"]);
}

#[test]
fn help_completion_and_manual_are_there() {
    let served = Served::start();
    for shell in ["bash", "zsh", "fish"] {
        assert!(served.done(&["completion", shell]).contains("portgroup"));
    }
    assert!(served.done(&["man"]).contains("vswctl"));
    let pages = served.path("man");
    served.done(&["man", "--dir", pages.to_str().unwrap()]);
    assert!(pages.join("vswctl-portgroup-create.1").exists());
    let help = served.done(&["portgroup", "set", "--help"]);
    for word in
        ["--trunk", "--private-kind", "--learn", "--gateway", "--teaming", "--dry-run", "--confirm-within"]
    {
        assert!(help.contains(word), "no {word} in\n{help}");
    }
    let gone = served.path("gone.sock");
    served
        .run(&["status", "--socket", gone.to_str().unwrap()])
        .refused(8, &["vswitchd", "systemctl start vswitchd"]);
}
