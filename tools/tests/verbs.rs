//! The verbs, their output, their questions and their exit codes.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{Ran, Served, command};

#[test]
fn a_volume_from_its_making_to_its_end() {
    let served = Served::start();
    let out = served.done(&["volume", "create", "web", "--size", "10G", "--policy", "mirror:2"]);
    assert_eq!(out, "created volume web of 10 GiB (mirror:2)\n");
    assert_eq!(
        served.done(&["volume", "list"]),
        "NAME    SIZE  USED  POLICY    STATE    OPEN ON\nweb   10 GiB     -  mirror:2  healthy  -\n"
    );
    let shown = served.json(&["volume", "show", "web"]);
    assert_eq!(shown["size_bytes"], 10_u64 << 30);
    assert_eq!(shown["policy"], serde_json::json!({"method": "mirror", "copies": 2}));

    let opened = served.json(&["volume", "open", "web", "--memory", "512M"]);
    assert_eq!(opened["socket"], "/run/vsand/volumes/web.sock");
    let qemu = opened["qemu_arguments"].as_array().unwrap();
    assert!(
        qemu.contains(&"socket,id=vsan-web,path=/run/vsand/volumes/web.sock,reconnect=1".into()),
        "{qemu:?}"
    );
    assert!(qemu.contains(&"memory-backend-memfd,id=vsan-memory,size=512M,share=on".into()), "{qemu:?}");
    served.run(&["volume", "open", "web"]).refused(4, &["volume web is open on host alpha", "next:"]);
    served
        .run(&["volume", "delete", "web", "--yes"])
        .refused(4, &["web", "alpha", "vsanctl volume close web"]);
    assert!(served.done(&["volume", "show", "web"]).contains("socket   /run/vsand/volumes/web.sock"));
    served.done(&["volume", "close", "web"]);
    served.run(&["volume", "close", "web"]).refused(4, &["web is not open"]);

    assert_eq!(served.done(&["volume", "resize", "web", "--size", "20G"]), "volume web has 20 GiB now\n");
    limits_come_and_go(&served);
    places_come_and_go(&served);
    room_is_kept(&served);
    served.run(&["volume", "resize", "web", "--size", "5G"]).refused(5, &["web", "shrunk", "only grow"]);

    served.run(&["volume", "delete", "web"]).refused(9, &["no terminal", "--yes"]);
    assert_eq!(served.at_terminal(&[], &["volume", "delete", "web"], "wbe\n").code, 9);
    assert_eq!(served.control.state().volumes.len(), 1);
    let ran = served.at_terminal(&[], &["volume", "delete", "web"], "web\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(served.control.state().volumes.is_empty());
    served.done(&["volume", "create", "web", "-s", "4K", "-p", "mirror:1", "--quiet"]);
    assert_eq!(served.done(&["volume", "delete", "web", "--yes"]), "deleted volume web\n");
    served.run(&["volume", "show", "web"]).refused(3, &["there is no volume web", "volume list"]);
}

/// For volume `web` of 20 GiB, which has none.
fn room_is_kept(served: &Served) {
    assert_eq!(served.done(&["volume", "reserve", "web", "50"]), "50 % of volume web are kept for it now\n");
    assert!(served.done(&["volume", "show", "web"]).contains("kept     50 % of it"));
    served.run(&["volume", "reserve", "web", "101"]).refused(2, &["101", "0..=100"]);
    served
        .run(&["volume", "create", "x", "-s", "1G", "-p", "mirror:1", "--reserve", "-1"])
        .refused(2, &["-1"]);
    assert_eq!(
        served.done(&["volume", "reserve", "web", "0"]),
        "nothing is kept for volume web beyond what it has written\n"
    );
    served.done(&["policy", "create", "thick", "--method", "mirror", "--reserve", "100"]);
    assert!(served.done(&["policy", "show", "thick"]).contains("kept           all of it (thick)"));
    let made = served.done(&["volume", "create", "fat", "--size", "1G", "--policy", "thick"]);
    assert_eq!(made, "created volume fat of 1 GiB (mirror:2), 100 % of it kept\n");
    // What is said of the volume itself comes first.
    let create = ["volume", "create", "thin", "-s", "1G", "-p", "thick", "--reserve", "0"];
    assert_eq!(served.json(&create)["reserve_percent"], 0);
    served.done(&["policy", "apply", "thick", "thin"]);
    assert_eq!(served.json(&["volume", "show", "thin"])["reserve_percent"], 100);
    served
        .run(&["policy", "create", "y", "--method", "raid6", "--force-provisioning"])
        .refused(2, &["only a mirror"]);
    let soon = ["policy", "create", "soon", "--method", "mirror", "--failures", "2", "--force-provisioning"];
    served.done(&soon);
    served.done(&["policy", "apply", "soon", "thin"]);
    let info = served.json(&["volume", "show", "thin"]);
    assert_eq!((&info["policy"]["copies"], &info["force_provisioning"]), (&3.into(), &true.into()));
    assert_eq!(info["reserve_percent"], 100, "of which the policy says nothing");
    let made =
        served.done(&["volume", "create", "few", "-s", "1G", "-p", "mirror:2", "--force-provisioning"]);
    assert_eq!(made, "created volume few of 1 GiB (mirror:2), also with fewer copies\n");
    for name in ["few", "fat", "thin"] {
        served.done(&["volume", "delete", name, "--yes"]);
    }
}

/// Of volume `web`, which may be anywhere.
fn places_come_and_go(served: &Served) {
    fn place<'a>(options: &[&'a str]) -> Vec<&'a str> {
        [&["volume", "place", "web"][..], options].concat()
    }
    assert!(served.done(&["volume", "show", "web"]).contains("place    anywhere\n"));
    let said = served.done(&place(&["--prefer", "lyon", "--prefer", "brest/r3"]));
    assert!(
        said.starts_with("volume web: rather in lyon or brest/r3; 2 parts move there by and by"),
        "{said}"
    );
    let shown = served.done(&["volume", "show", "web"]);
    assert!(shown.contains("place    rather in lyon or brest/r3; 2 parts could be nearer\n"), "{shown}");
    // What is left out does not count any more.
    let across = serde_json::json!({"across_sites": true});
    assert_eq!(served.json(&place(&["--across-sites"]))["placement"], across);
    let nine = ["--prefer", "a"].repeat(9);
    let cases: [(&[&str], &[&str]); 4] = [
        (&["--prefer", "lyon/"], &["\"lyon/\" is no site and no fault domain", "host list"]),
        (&nine, &["it names 9 places, and 8 are the most"]),
        (&["--prefer", "lyon", "--anywhere"], &["--anywhere"]),
        (&[], &["it is not said", "--anywhere takes back"]),
    ];
    for (options, words) in cases {
        served.run(&place(options)).refused(2, words);
    }
    assert_eq!(served.json(&["volume", "show", "web"])["placement"], across, "a refusal changed something");
    assert_eq!(served.done(&place(&["--anywhere"])), "volume web: anywhere\n");

    served.done(&["policy", "create", "two-sites", "--method", "mirror", "--across-sites"]);
    assert!(served.done(&["policy", "show", "two-sites"]).contains("place          spread over sites\n"));
    let made = served.done(&["volume", "create", "wide", "--size", "1G", "--policy", "two-sites"]);
    assert_eq!(made, "created volume wide of 1 GiB (mirror:2), spread over sites\n");
    // A policy that is refused leaves everything as it was: here there are three fault domains.
    let four = ["--method", "mirror", "--failures", "3", "--prefer", "lyon", "--force-provisioning"];
    served.done(&[&["policy", "create", "four"][..], &four].concat());
    served.run(&["policy", "apply", "four", "wide"]).refused(5, &["4 fault domains"]);
    let wide = served.json(&["volume", "show", "wide"]);
    assert_eq!((&wide["placement"], &wide["force_provisioning"]), (&across, &serde_json::json!(false)));
    served.done(&["volume", "delete", "wide", "--yes"]);
}

/// Of volume `web`, which has none.
fn limits_come_and_go(served: &Served) {
    fn limit<'a>(options: &[&'a str]) -> Vec<&'a str> {
        [&["volume", "limit", "web"][..], options].concat()
    }
    assert_eq!(
        served.done(&limit(&["--iops", "500", "--bandwidth", "100M", "--burst", "10s"])),
        "volume web is limited to 500 IOPS and 100 MiB/s, bursts of 10 s now\n"
    );
    assert!(
        served.done(&["volume", "show", "web"]).contains("limits   500 IOPS and 100 MiB/s, bursts of 10 s")
    );
    // What is left out does not count any more.
    assert_eq!(
        served.json(&limit(&["--iops", "20"]))["limits"],
        serde_json::json!({"iops": 20, "burst_seconds": 0})
    );
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--iops", "9"], &["9 requests a second are too few", "10 or more"]),
        (&["--bandwidth", "1K"], &["1 KiB a second are too few"]),
        (&["--burst", "5s"], &["a burst needs a limit"]),
        (&["--iops", "50", "--burst", "2h"], &["1s to 1h"]),
        (&["--iops", "50", "--none"], &["--none"]),
        (&[], &["it is not said", "--none takes all limits away"]),
    ];
    for (options, words) in cases {
        served.run(&limit(options)).refused(2, words);
    }
    assert_eq!(
        served.json(&["volume", "show", "web"])["limits"]["iops"],
        20,
        "what was refused changed something"
    );
    assert_eq!(served.done(&limit(&["--none"])), "volume web has no limits now\n");

    let policy = ["policy", "create", "slow", "--method", "mirror", "--bandwidth", "10M"];
    served.done(&policy);
    assert!(served.done(&["policy", "show", "slow"]).contains("limits         10 MiB/s"));
    let made = served.done(&["volume", "create", "cold", "--size", "1G", "--policy", "slow"]);
    assert_eq!(made, "created volume cold of 1 GiB (mirror:2), limited to 10 MiB/s\n");
    // What is said of the volume itself comes first.
    let made = served.json(&["volume", "create", "warm", "--size", "1G", "--policy", "slow", "--iops", "70"]);
    assert_eq!(made["limits"], serde_json::json!({"iops": 70, "burst_seconds": 0}));
    for name in ["cold", "warm"] {
        served.done(&["volume", "delete", name, "--yes"]);
    }
}

#[test]
fn bad_input_has_an_exit_code_and_a_next_step() {
    let served = Served::start();
    served.done(&["volume", "create", "taken", "--size", "1G", "--policy", "mirror:1"]);
    served.done(&["disk", "add", "/disk0"]);
    let create = |name, size, policy| ["volume", "create", name, "--size", size, "--policy", policy];
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&create("taken", "1G", "mirror:1"), 4, &["there is a volume taken already", "another name"]),
        (&create("a", "0", "mirror:1"), 2, &["above 0"]),
        (&create("a", "65T", "mirror:1"), 2, &["volume a can't have 65 TiB", "at most 64 TiB"]),
        (&create("a", "5000", "mirror:1"), 2, &["multiple of 4096", "8192"]),
        (&create("a", "10X", "mirror:1"), 2, &["not a size"]),
        (&create("a", "2T", "mirror:1"), 5, &["volume a needs 2 TiB", "disk add"]),
        (&create("a", "1G", "mirror:3"), 5, &["3 fault domains and there are 2", "add hosts"]),
        (&create("a", "1G", "mirror:5"), 2, &["1 to 4 copies"]),
        (&create("a", "1G", "raid5"), 5, &["3 fault domains and there are 2", "add hosts"]),
        (&create("a", "1G", "raid5:3+1"), 2, &["raid5:2+1 or raid5:4+1"]),
        (&create("a", "1G", "raid1"), 2, &["not a policy"]),
        (&create("A/b", "1G", "mirror:1"), 2, &["not a volume name"]),
        (&["volume", "show", "nobody"], 3, &["no volume nobody"]),
        (&["volume", "resize", "taken", "--size", "65T"], 2, &["at most 64 TiB"]),
        (&["volume", "import", "nobody", "/etc/hostname"], 3, &["no volume nobody"]),
        (&["volume", "import", "taken", "/nowhere/x.raw"], 3, &["/nowhere/x.raw", "check the path"]),
        (&["volume", "import", "taken", "/dev/null"], 2, &["neither a file nor a block device"]),
        (&["volume", "export", "nobody", "/tmp/x"], 3, &["no volume nobody"]),
        (&["disk", "add", "/nowhere/disk"], 3, &["/nowhere/disk"]),
        (&["disk", "add", "/small", "--size", "10M"], 5, &["/small", "at least 1 GiB"]),
        (&["disk", "add", "/a/../b"], 2, &["without `..`"]),
        (&["disk", "show", "ffff"], 3, &["no disk", "disk list"]),
        (&["host", "show", "gamma"], 3, &["no host", "host list"]),
        (&["host", "remove", "alpha", "--yes"], 5, &["only good copy of volume web", "resync"]),
        (&["host", "remove", "beta"], 9, &["--yes"]),
        (&["lock", "break", "taken", "--yes"], 3, &["no lock", "lock list"]),
        (&["cluster", "token", "--valid", "8d"], 2, &["1s to 7d"]),
        (&["cluster", "token"], 6, &["in no cluster", "bootstrap"]),
        (&["cluster", "join", "ferro1-0"], 5, &["the join token was used", "make a new one"]),
        (&["cluster", "join", "-"], 2, &["empty"]),
        (&["volume", "frobnicate"], 2, &["frobnicate"]),
    ];
    for (args, code, words) in cases {
        let ran = served.run(args);
        assert!(ran.out.is_empty(), "{args:?}: {ran:?}");
        ran.refused(*code, words);
    }
    assert_eq!(served.control.state().volumes.len(), 1, "nothing half-made stays");

    served.control.state().no_quorum = true;
    served.run(&create("a", "1G", "mirror:1")).refused(6, &["no quorum", "voters"]);
    assert!(served.done(&["status"]).contains("no quorum"));
}

#[test]
fn errors_are_json_where_json_is_asked_for() {
    let served = Served::start();
    let ran = served.run(&["volume", "show", "web", "-o", "json"]);
    assert_eq!(ran.code, 3);
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(error["code"], "volume_not_found");
    assert_eq!(error["exit_code"], 3);
    assert!(error["message"].as_str().unwrap().contains("web"));
    assert!(!error["next_step"].as_str().unwrap().is_empty());
}

#[test]
fn a_daemon_that_is_not_there_or_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("none.sock");
    let ran = Ran::of(&command(&socket, &["status"]).output().unwrap());
    ran.refused(8, &["none.sock", "systemctl start vsand"]);
    // The environment names the socket too.
    let mut by_env = std::process::Command::new(env!("CARGO_BIN_EXE_vsanctl"));
    Ran::of(&by_env.arg("status").env("VSAND_SOCKET", &socket).output().unwrap()).refused(8, &["none.sock"]);

    let served = Served::start();
    served.control.state().hang = true;
    served.run(&["status", "--timeout", "1"]).refused(7, &["within 1 s", "may still"]);
}

#[test]
fn a_disk_that_is_not_empty_is_erased_only_by_its_name() {
    let served = Served::start();
    let add = ["disk", "add", "/dev/sdb"];
    served.run(&add).refused(4, &["/dev/sdb", "ext4", "--confirm sdb"]);
    served.run(&["disk", "add", "/dev/sdb", "--yes"]).refused(4, &["--confirm sdb"]);
    served.run(&["disk", "add", "/dev/sdb", "--confirm", "sda"]).refused(4, &["--confirm sdb"]);
    assert_eq!(served.at_terminal(&[], &add, "yes\n").code, 9);
    assert!(served.control.state().disks.is_empty());
    let ran = served.at_terminal(&[], &add, "sdb\n");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.out.contains("ext4") && ran.out.contains("Type sdb"), "{ran:?}");
    assert_eq!(served.control.state().disks.len(), 1);
    served.done(&["disk", "add", "/dev/sdb", "--confirm", "sdb"]);
    served.control.state().disks.truncate(1);

    assert_eq!(served.json(&["disk", "show", "d1d1"])["path"], "/dev/sdb");
    assert_eq!(served.json(&["disk", "show", "/dev/sdb"])["host_name"], "alpha");
    let out = served.done(&["disk", "remove", "d1d1", "--yes", "--no-wait"]);
    assert!(out.contains("3 GiB are copied elsewhere first") && out.contains("--cancel"), "{out}");
    assert!(served.done(&["disk", "show", "d1d1"]).contains("to move     3 GiB"));
    assert!(served.done(&["disk", "remove", "d1d1", "--cancel"]).contains("stays"));
    served.run(&["disk", "remove", "d1d1", "--cancel", "--force"]).refused(2, &["--force"]);
    assert!(served.done(&["disk", "revive", "d1d1"]).contains("used again"));
    assert!(served.done(&["disk", "list", "-o", "wide"]).contains("BAD BLOCKS"));
}

#[test]
fn policies_have_names() {
    let served = Served::start();
    let out = served.done(&["policy", "create", "safe", "--method", "mirror", "--about", "what matters"]);
    assert_eq!(out, "created policy safe (mirror:2)\n");
    served.done(&["policy", "create", "wide", "-m", "raid6", "--stripe", "2"]);
    assert_eq!(
        served.done(&["policy", "list"]),
        "\
NAME  POLICY     SURVIVES    FAULT DOMAINS  1 GIB TAKES  ABOUT
safe  mirror:2   1 failure               2        2 GiB  what matters
wide  raid6:2+2  2 failures              4        2 GiB  -
"
    );
    assert_eq!(served.json(&["policy", "show", "wide"])["policy"]["parity"], 2);
    let out = served.done(&["volume", "create", "web", "--size", "1G", "--policy", "safe"]);
    assert_eq!(out, "created volume web of 1 GiB (mirror:2)\n");
    served
        .run(&["policy", "create", "safe", "--method", "raid5"])
        .refused(4, &["policy safe already", "policy delete"]);
    served.run(&["policy", "create", "a", "-m", "raid5", "-f", "2"]).refused(2, &["survives 1 failure"]);
    served
        .run(&["volume", "create", "b", "-s", "1G", "-p", "gold"])
        .refused(3, &["no policy gold", "policy list"]);
    // One disk is too few for two copies.
    served.done(&["disk", "add", "/srv/d", "--size", "100G"]);
    let check = served.run(&["policy", "check", "safe"]);
    check.refused(5, &["usable disks in 2 fault domains", "add hosts"]);
    assert!(served.done(&["policy", "check", "mirror:1"]).contains("can be made"));
    let out = served.done(&["policy", "apply", "mirror:3", "web"]);
    assert_eq!(out, "volume web is mirror:3 now: all of it is there\n");
    served.run(&["policy", "apply", "mirror:4", "web"]).refused(5, &["volume web", "4 fault domains"]);
    served.run(&["policy", "apply", "mirror:1", "web", "nix"]).refused(3, &["no volume nix"]);
    served.run(&["policy", "apply", "mirror:1"]).refused(2, &["VOLUMES"]);
    let out = served.done(&["policy", "apply", "--no-wait", "safe", "web"]);
    assert_eq!(out, "volume web is mirror:2 now: all of it is there\n");
    let out = served.done(&["policy", "apply", "--no-wait", "raid5", "web"]);
    assert_eq!(
        out,
        "volume web is mirror:2 and becomes raid5:2+1: 25 % copied (256 MiB of 1 GiB) \
         (`vsanctl volume show web` says how far that is; `vsanctl policy apply mirror:2 web` stops it)\n"
    );
    assert!(served.done(&["volume", "show", "web"]).contains("raid5:2+1: 25 % copied"));
    assert!(served.done(&["volume", "list"]).contains("mirror:2 -> raid5:2+1"));
    let out = served.done(&["policy", "apply", "mirror:2", "web"]);
    assert_eq!(out, "volume web is mirror:2 now: all of it is there\n");
    let out = served.done(&["policy", "delete", "safe"]);
    assert!(out.contains("deleted policy safe"), "{out}");
    served.run(&["policy", "delete", "safe"]).refused(3, &["no policy safe"]);
    assert_eq!(served.json(&["volume", "show", "web"])["policy"]["copies"], 2);
}

#[test]
fn status_says_what_is_wrong_and_what_to_do() {
    let served = Served::start();
    served.done(&["volume", "create", "web", "--size", "10G", "--policy", "mirror:2"]);
    let out = served.done(&["status"]);
    let expected = "\
health    WARNING
          - host beta does not answer for 2m 5s\u{fffd}[2J
            next: start it, or take it out with `vsanctl host remove beta`
cluster   09090909-0909-0909-0909-090909090909, 1 voter, quorum
capacity  24 GiB of 200 GiB used (12%), 1 of 2 disks online, 40 GiB provisioned
resync    1 running, 0 waiting: 1 GiB of 4 GiB (25%), 128 MiB/s, 24s left

2 hosts
  NAME    STATE              ROLE     DISKS    USED  CAPACITY
  alpha*  online             leader       1  12 GiB   100 GiB
  beta    offline for 2m 5s  learner      1  12 GiB   100 GiB

1 volume
  NAME    SIZE  USED  POLICY    STATE    OPEN ON
  web   10 GiB     -  mirror:2  healthy  -
";
    assert_eq!(out, expected);
    let status = served.json(&["status"]);
    assert_eq!(status["health"]["reasons"][0]["code"], "host_offline");
    assert_eq!(status["resync"]["eta_seconds"], 24);
    assert_eq!(status["hosts"][1]["state"], "offline");
    let lines = served.done(&["status", "--watch", "--interval", "1", "--count", "2", "-o", "json"]);
    let rounds: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rounds.len(), 2);
}

#[test]
fn a_check_is_muted_for_a_while() {
    let served = Served::start();
    let expected = "\
health    WARNING: 1 check with findings, 0 muted, 1 passed

WARNING  host_offline: hosts are online
  - host beta does not answer for 2m 5s\u{fffd}[2J
    next: start it, or take it out with `vsanctl host remove beta`
";
    assert_eq!(served.done(&["health"]), expected);
    assert!(served.done(&["health", "-o", "wide"]).contains("disk_failed  disks work"));
    assert!(served.done(&["health", "explain", "host_offline"]).contains("What it means."));
    let mute = |code, time| ["health", "mute", code, "--for", time, "--reason", "new\u{a0}fan"];
    served.run(&mute("host_offline", "30s")).refused(2, &["1m to 30d"]);
    served.run(&mute("nothing", "2h")).refused(3, &["no health check", "health -o wide"]);
    served.run(&mute("../status", "2h")).refused(3, &["no health check"]);
    served.run(&["health", "mute", "host_offline"]).refused(2, &["--for"]);
    served.run(&["health", "unmute", "host_offline"]).refused(3, &["not muted"]);
    assert_eq!(served.done(&mute("host_offline", "2h")), "host_offline is muted for 2h: 1 finding\n");
    let out = served.done(&["health"]);
    assert!(
        out.contains("OK: 0 checks with findings, 1 muted") && out.contains("muted on alpha for another 2h"),
        "{out}"
    );
    let out = served.done(&["status"]);
    assert!(out.starts_with("health    OK\n          muted: host_offline (`vsanctl health`)\n"), "{out}");
    assert_eq!(served.json(&["health"])["checks"][0]["mute"]["in_force"], true);
    assert_eq!(served.done(&["health", "unmute", "host_offline"]), "host_offline is shown again\n");
    assert!(!served.done(&["status"]).contains("muted"));
}

#[test]
fn events_are_told_with_times() {
    let served = Served::start();
    let expected = "\
2026-11-21 20:00:01Z  info      host_joined          host beta was let into the cluster
2026-11-21 20:00:02Z  warning   host_down            host beta is offline\u{fffd}[2J
2026-11-21 20:00:03Z  warning   health_raised host_offline  host beta is offline
1 host did not answer, what only they saw is missing: beta
";
    assert_eq!(served.done(&["events"]), expected);
    let newest = served.done(&["events", "-n", "1", "--local"]);
    assert!(newest.starts_with("older events are left out") && newest.lines().count() == 2, "{newest}");
    assert_eq!(served.json(&["events"])["events"][1]["kind"], "host_down");
    assert!(!served.done(&["events", "--level", "warning"]).contains("host_joined"));
    assert_eq!(served.done(&["events", "--level", "critical", "--local"]), "nothing happened\n");
    let followed = served.done(&["events", "--follow", "--stop-after", "2", "-o", "json"]);
    assert_eq!(followed.lines().count(), 3, "none is told twice: {followed}");
    served.run(&["events", "-n", "0"]).refused(2, &["1..=10000"]);
    served.run(&["events", "--since", "yesterday"]).refused(2, &["30m, 2h or 7d"]);
}

#[test]
fn a_support_bundle_has_what_there_is_and_says_what_is_missing() {
    let served = Served::start();
    let path = served.path("bundle.tar.gz");
    let name = path.to_str().unwrap();
    served.run(&["support-bundle", "/tmp/bundle.zip"]).refused(2, &["ends in .tar.gz"]);
    served.run(&["support-bundle", "/nowhere/b.tar.gz"]).refused(3, &["/nowhere/b.tar.gz", "check the path"]);
    let out = served.done(&["support-bundle", name]);
    assert!(out.contains("from 1 host; 2 parts missing"), "{out}");
    served.run(&["support-bundle", name]).refused(4, &["is there already"]);
    // As everybody's tar reads it.
    let tar = |args: &[&str]| {
        let output = std::process::Command::new("tar").args(args).arg("-zf").arg(name).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let files = tar(&["-t"]);
    for file in ["status.json", "health.json", "events.json", "hosts/alpha/version.txt", "MISSING.txt"] {
        assert!(files.lines().any(|line| line.ends_with(file)), "no {file} in {files}");
    }
    assert!(files.lines().all(|line| line.split('/').all(|part| part != "..")), "{files}");
    let all = tar(&["-x", "-O"]);
    assert!(all.contains("vsand 0.1.0") && all.contains("\"host_offline\""), "{all}");
    assert!(all.contains("journal.txt of host alpha: no journald"), "{all}");
    assert!(all.contains("host beta: host beta does not give its part"), "{all}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn capacity_says_what_a_loss_would_mean() {
    let served = Served::start();
    let out = served.done(&["capacity"]);
    let expected = "
IF LOST  VOLUMES  TO REBUILD  USED AFTER  THEN
alpha          4      12 GiB         24%  4 volumes can't be read: a, b, c, 1 more
";
    assert!(out.ends_with(expected), "{out}");
    for words in ["24 GiB (12%), all copies", "savings", "mirror:2        4       40 GiB  24 GiB    80 GiB"] {
        assert!(out.contains(words), "no {words:?} in {out}");
    }
    assert!(served.done(&["capacity", "--disks"]).contains("/disk0 of host alpha"));
    assert_eq!(served.json(&["capacity"])["losses"][1]["kind"], "disk");
}

#[test]
fn a_host_stands_aside_and_comes_back() {
    let served = Served::start();
    let enter = ["host", "maintenance", "enter"];
    served
        .run(&[&enter[..], &["beta", "--mode", "most"]].concat())
        .refused(2, &["ensure-access, full or none"]);
    served.run(&[&enter[..], &["alpha"]].concat()).refused(5, &["web", "wait for the resync"]);
    let out = served.done(&[&enter[..], &["beta", "--mode", "full", "--no-wait"]].concat());
    assert_eq!(out, "host beta is in maintenance: full, not ready: 3 GiB to move\n");
    assert!(served.done(&["host", "list"]).contains("offline for 2m 5s, entering maintenance"));
    let out = served.done(&[&enter[..], &["beta"]].concat());
    assert_eq!(out, "host beta is in maintenance: ensure-access, it may be switched off\n");
    assert!(
        served
            .done(&["host", "show", "beta"])
            .contains("maintenance   ensure-access, it may be switched off")
    );
    assert_eq!(served.json(&["host", "show", "beta"])["maintenance"]["mode"], "ensure-access");
    assert_eq!(
        served.done(&["host", "maintenance", "exit", "beta"]),
        "host beta is no longer in maintenance\n"
    );
    served.run(&["host", "maintenance", "exit", "beta"]).refused(4, &["not in maintenance"]);

    let safe = served.done(&["safe-to-remove", "host", "beta"]);
    assert!(safe.contains("could go now  yes") && safe.contains("12 GiB of 4 volumes"), "{safe}");
    let ran = served.run(&["safe-to-remove", "host", "alpha"]);
    ran.refused(5, &["host alpha can't go now", "vsanctl host maintenance enter alpha --mode full"]);
    for words in [
        "not readable  web",
        "no: nothing could be changed",
        "is not possible: it holds the last copy",
        "next: add disks",
    ] {
        assert!(ran.out.contains(words), "no {words:?} in {ran:?}");
    }
    served.run(&["safe-to-remove", "disk", "ffff"]).refused(3, &["no disk"]);
    served.done(&["disk", "add", "/disk0"]);
    served.done(&["safe-to-remove", "disk", "d1d1"]);
}

#[test]
fn colour_is_for_terminals() {
    let served = Served::start();
    let red = "\x1b[31m";
    assert!(!served.done(&["host", "list"]).contains(red));
    assert!(served.done(&["host", "list", "--color", "always"]).contains(red));
    assert!(served.at_terminal(&[], &["host", "list"], "").out.contains(red));
    assert!(!served.at_terminal(&[], &["host", "list", "--color", "never"], "").out.contains(red));
    assert!(!served.at_terminal(&[("NO_COLOR", "1")], &["host", "list"], "").out.contains(red));
}

#[test]
fn the_other_nouns_have_tables_and_json() {
    let served = Served::start();
    served.done(&["cluster", "bootstrap"]);
    served.run(&["cluster", "bootstrap"]).refused(4, &["in a cluster already", "cluster show"]);
    assert_eq!(served.done(&["cluster", "token"]), "ferro1-3600\n");
    assert_eq!(served.json(&["cluster", "token", "--valid", "30m"])["expires_unix_s"], 1800);
    served.done(&["cluster", "join", "ferro1-3600", "--host-name", "gamma"]);
    served.run(&["cluster", "join", "ferro1-3600", "--host-name", "g h"]).refused(2, &["host name"]);
    assert!(served.done(&["cluster", "show"]).contains("alpha (01010101-"));
    assert!(served.done(&["cluster", "show"]).contains("feature level   1, this host knows 2\n"));
    let could = served.done(&["cluster", "upgrade", "--check"]);
    assert!(could.starts_with("the cluster can go from feature level 1 to 2\n"), "{could}");
    assert!(could.contains("alpha  0.2.0              2"), "{could}");
    served.run(&["cluster", "upgrade"]).refused(9, &["must be confirmed", "--yes", "No host can go back"]);
    assert_eq!(served.done(&["cluster", "upgrade", "--yes"]), "the cluster is at feature level 2 now\n");
    assert!(served.done(&["host", "show", "0202"]).contains("last seen 2m 5s ago"));
    let renamed = served.done(&["host", "set", "beta", "--name", "gamma", "--fault-domain", "rack-2"]);
    assert_eq!(renamed, "host gamma (was beta) is in fault domain rack-2\n");
    let shared = served.done(&["host", "set", "0202", "--fault-domain", "alpha"]);
    assert!(shared.contains("volume db and 1 more") && shared.contains("vsanctl status"), "{shared}");
    assert_eq!(served.json(&["host", "set", "beta", "--name", "b2"])["host"]["name"], "b2");
    served.run(&["host", "set", "beta", "--name", "b 2"]).refused(2, &["host name"]);
    served.run(&["host", "set", "beta"]).refused(2, &["--name", "--fault-domain"]);
    served.run(&["host", "set", "gamma", "--name", "b"]).refused(3, &["no host"]);
    assert_eq!(served.json(&["host", "remove", "beta", "--yes"])["removed"], true);

    for name in ["live", "dead"] {
        served.done(&["volume", "create", name, "--size", "3G", "--policy", "mirror:2"]);
        served.done(&["volume", "open", name]);
    }
    let shown = served.json(&["object", "show", "live"]);
    assert_eq!(shown["chunks"].as_array().unwrap().len(), 3, "all pages");
    assert!(served.done(&["object", "show", "live"]).contains("stale"));
    assert!(served.done(&["object", "list"]).contains("3/6"));
    assert!(served.done(&["lock", "list"]).contains("ended"));
    served.run(&["lock", "break", "live", "--yes"]).refused(4, &["lease", "wait 12 s"]);
    assert!(served.done(&["lock", "break", "dead", "--yes"]).contains("taken from host alpha"));
    assert_eq!(served.json(&["resync", "list"])["resyncs"][0]["kind"], "delta");
    assert!(served.done(&["resync", "status"]).contains("24s left"));
    assert_eq!(served.json(&["scrub", "status"])["scrubs"][0]["bad_blocks"], 4);
    let shown = served.done(&["scrub", "list"]);
    assert!(shown.contains("running") && shown.contains("4/10") && shown.contains("never"), "{shown}");
    assert!(served.done(&["scrub", "start", "data"]).contains("volume data"));
    assert!(served.done(&["scrub", "stop"]).contains("2 volumes"));
    let top = served.done(&["top", "--count", "1", "--interval", "1", "-o", "json"]);
    let top: serde_json::Value = serde_json::from_str(&top).unwrap();
    assert_eq!(top["volumes"][0]["read_iops"], 1000.0);
    assert_eq!(top["volumes"][0]["read_latency_us"], 180.0);
    assert!(served.done(&["top", "-n", "1", "--interval", "1"]).contains("180 us"));
}

#[test]
fn completions_and_manual_pages_are_made() {
    let served = Served::start();
    for (shell, word) in [("bash", "_vsanctl"), ("zsh", "#compdef vsanctl"), ("fish", "complete -c vsanctl")]
    {
        assert!(served.done(&["completion", shell]).contains(word), "{shell}");
    }
    assert!(served.done(&["man"]).contains(".TH vsanctl"));
    let dir = served.path("man");
    served.done(&["man", "--dir", dir.to_str().unwrap()]);
    for page in ["vsanctl.1", "vsanctl-volume-create.1", "vsanctl-disk-add.1"] {
        assert!(dir.join(page).is_file(), "{page}");
    }
    let help = served.done(&["--help"]);
    assert!(help.contains("Exit codes:") && help.contains("not confirmed"), "{help}");
}
