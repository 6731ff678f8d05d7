//! The verbs, their output, their questions and their exit codes.

mod common;

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
        (&create("a", "1G", "mirror:4"), 2, &["1, 2 or 3 copies"]),
        (&create("a", "1G", "raid5"), 2, &["not available yet"]),
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
