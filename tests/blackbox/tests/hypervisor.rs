//! Real hypervisors: hosts with their three daemons each, and VMs of a few instructions under this machine's KVM. They are
//! started, stopped, killed; their daemons and hosts die; what can't be is refused; and nothing is ever left half-made.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::bare::Code;
use ferro_blackbox::hypervisor::{self, Hypervisor, SEEN_MAX};
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::process::run;
use ferro_blackbox::{Lab, LabOptions, eventually, network};
use ferro_protocol::api::vm::{ExitCause, VmInfo, VmList, VmState};
use serde_json::{Value, json};

/// So many hosts with a network `blue`, and a volume of each of these names.
fn with_hypervisors(hosts: u8, volumes: &[&str], test: impl FnOnce(&Lab, &[Hypervisor<'_>]) -> Result<()>) {
    let kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm");
    assert!(kvm.is_ok(), "these tests run virtual machines and /dev/kvm can't be opened: {kvm:?}");
    with_hosts(LabOptions { hosts, uplinks: 1, disk: "1G", ..LabOptions::default() }, |lab| {
        if volumes.is_empty() {
            lab.form_without_disks()?;
        } else {
            lab.form()?;
        }
        network::start(lab)?;
        let network = "switch create main; portgroup create blue --switch main --vni 5010";
        lab.host(1).vswitchd().ctl_ok(&["transaction", network])?;
        for volume in volumes {
            lab.host(1).create(volume, "64M", &format!("mirror:{}", hosts.min(2)))?;
        }
        test(lab, &hypervisor::start(lab)?)
    });
}

/// A lock that can be broken, a host that is missed, on a slow machine.
const BREAK_MAX: Duration = Duration::from_secs(60);

/// Says something and waits.
fn waits() -> Code {
    Code::default().print("up\n")
}

fn spec(name: &str, kernel: &str) -> Value {
    json!({ "name": name, "memory_bytes": 32 << 20, "vmm": "kvm", "boot": { "files": { "kernel": kernel } } })
}

fn with(mut spec: Value, more: Value) -> Value {
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    spec
}

fn power(name: &str, verb: &str) -> String {
    format!("/v1/vms/{name}/{verb}")
}

/// Nothing of a VM is left on any host.
fn nothing_left(lab: &Lab, all: &[Hypervisor<'_>], name: &str, volumes: &[&str]) -> Result<()> {
    eventually(&format!("nothing is left of {name}"), SEEN_MAX, || {
        for volume in volumes {
            let info = lab.host(1).volume(volume)?;
            ensure!(info.owner.is_none(), "volume {volume} is locked: {:?}", info.owner);
        }
        all.iter().try_for_each(|one| one.has_nothing_of(name))
    })
}

fn pid(info: &VmInfo) -> Result<u32> {
    Ok(info.status.process.as_ref().context("no process")?.pid)
}

#[test]
fn a_vm_is_on_one_host_and_every_host_knows_it() {
    with_hypervisors(3, &["root", "data"], |lab, all| {
        let [one, two, three] = all else { unreachable!("three hosts") };
        let kernel =
            one.guest("echoes", Code::default().print("hello\n").read().echo().read().power_off())?;
        let create = ["create", "web", "--memory", "32M", "--vmm", "kvm", "--kernel", &kernel];
        two.vmctl(&[&create[..], &["--volume", "root", "--portgroup", "blue"]].concat())?;
        two.daemon().ctl_refused(&create, "name_taken", 4)?;
        three.sees_state("web", VmState::Off)?;
        nothing_left(lab, all, "web", &["root"])?;

        // Lock and port are taken before it runs, on its host.
        two.vmctl(&["start", "web", "--host", "host1"])?;
        let info = three.sees_state("web", VmState::Running)?;
        ensure!(info.host_name.as_deref() == Some("host1") && !info.here, "{info:?}");
        let volume = lab.host(2).volume("root")?;
        let owner = volume.owner.context("the volume is not locked")?;
        ensure!(owner.host_name == "host1" && info.status.epoch == Some(volume.epoch), "{owner:?} {info:?}");
        let port: Value = one.host.vswitchd().ctl(&["port", "show", "web.0"])?;
        ensure!(port["attachment"]["socket"].is_string() && port["host_name"] == "host1", "{port}");
        one.prints("web", "hello")?;
        for host in all {
            let list: VmList = host.daemon().ctl(&["list"])?;
            let seen: Vec<_> =
                list.vms.iter().map(|vm| (vm.name.as_str(), vm.host_name.as_deref(), vm.here)).collect();
            let here = host.host.name() == "host1";
            ensure!(seen == [("web", Some("host1"), here)], "{}: {seen:?}", host.host.name());
        }

        // Another host is told where it is, does what is asked of it, and does not get it.
        let refused = two.refused("GET", "/v1/vms/web/console", None, "vm_elsewhere")?;
        ensure!(refused.message.contains("host1"), "{refused:?}");
        let refused = two.daemon().ctl_refused(&["start", "web", "--host", "host2"], "vm_not_off", 4)?;
        ensure!(refused.message.contains("running on host host1"), "{refused:?}");
        three.vmctl(&["pause", "web"])?;
        one.sees_state("web", VmState::Paused)?;
        two.vmctl(&["resume", "web"])?;
        one.sees_state("web", VmState::Running)?;
        let stats = one.get("/v1/vms/web/stats")?;
        ensure!(stats["cpu_time_us"].as_u64() > Some(0), "{stats}");
        ensure!(stats["resident_bytes"].as_u64() > Some(1 << 20), "{stats}");
        ensure!(stats["nics"][0]["port"] == "web.0" && stats["disks"][0]["counters"].is_object(), "{stats}");

        // What it is made of can only be changed while it is off.
        for change in [
            &["set", "web", "--cpus", "2"][..],
            &["attach", "web", "--volume", "data"],
            &["detach", "web", "--volume", "root"],
            &["detach", "web", "--nic", "0"],
            &["delete", "web", "--yes"],
        ] {
            let refused = three.daemon().ctl_refused(change, "vm_not_off", 4)?;
            ensure!(refused.next_step.contains("vmctl stop web"), "{refused:?}");
        }

        // This guest does not hear its power button. Told so, it runs on; forced, it ends.
        two.refused("POST", &power("web", "stop"), Some(&json!({ "timeout_s": 1 })), "timed_out")?;
        one.sees_state("web", VmState::Running)?;
        two.post(&power("web", "stop"), &json!({ "timeout_s": 1, "force": true }))?;
        three.sees_state("web", VmState::Off)?;
        nothing_left(lab, all, "web", &["root"])?;

        // Off, it is changed on any host; `set` leaves what is not given.
        three.vmctl(&["set", "web", "--cpus", "2", "--cpu-shares", "500"])?;
        two.vmctl(&["attach", "web", "--volume", "data,ro"])?;
        one.vmctl(&["attach", "web", "--portgroup", "blue"])?;
        let info = three.sees("web", "with two cards", |info| info.spec.nics.len() == 2)?;
        let disks: Vec<_> =
            info.spec.disks.iter().map(|disk| (disk.volume.as_str(), disk.read_only)).collect();
        ensure!(disks == [("root", false), ("data", true)], "{info:?}");
        ensure!(info.spec.cpus == 2 && info.spec.memory_bytes == 32 << 20, "{info:?}");
        ensure!(info.spec.nics[1].port.as_deref() == Some("web.1"), "{info:?}");

        // On another host it is the same VM, with all of that. There it is switched off from inside, at its console.
        three.vmctl(&["start", "web", "--host", "host2"])?;
        let info = two.sees_state("web", VmState::Running)?;
        ensure!(info.here && info.status.epoch > Some(volume.epoch), "{info:?}");
        two.prints("web", "hello")?;
        let said = two.console("web", b"xy", 30)?;
        ensure!(said.contains("hello\nx"), "{said:?}");
        let info = three.sees_state("web", VmState::Off)?;
        ensure!(info.host.is_none(), "{info:?}");
        nothing_left(lab, all, "web", &["root", "data"])?;
        // A guest that switched itself off stays off.
        std::thread::sleep(Duration::from_secs(2));
        three.sees_state("web", VmState::Off)?;

        one.vmctl(&["detach", "web", "--volume", "data"])?;
        two.vmctl(&["detach", "web", "--nic", "1"])?;
        two.daemon().ctl_refused(&["detach", "web", "--nic", "1"], "device_not_found", 3)?;
        two.vmctl(&["delete", "web", "--yes"])?;
        eventually("nothing in the directory is about it", SEEN_MAX, || {
            let left: Vec<String> =
                hypervisor::documents(lab.host(3))?.into_iter().filter(|it| it.ends_with("/web")).collect();
            ensure!(left.is_empty(), "{left:?}");
            one.daemon().ctl_refused(&["show", "web"], "vm_not_found", 3)?;
            ensure!(!one.host.dir().join("hv/state/vms/web").exists(), "its logs are left");
            Ok(())
        })
    });
}

#[test]
fn vms_outlive_their_daemon_and_come_back_when_they_die() {
    with_hypervisors(1, &["disk"], |lab, all| {
        let [one] = all else { unreachable!("one host") };
        let kernel = one.guest("waits", waits())?;
        let with_disk = json!({ "disks": [{ "volume": "disk" }], "nics": [{ "portgroup": "blue" }] });
        one.post("/v1/vms", &with(spec("live", &kernel), with_disk))?;
        one.post(&power("live", "start"), &json!({}))?;
        let first = pid(&one.vm("live")?)?;
        one.prints("live", "up")?;

        // The daemon dies: the VM does not notice.
        one.daemon().kill9()?;
        ensure!(Path::new("/proc").join(first.to_string()).exists(), "it died with its daemon");
        one.start()?;
        let info = one.sees_state("live", VmState::Running)?;
        ensure!(pid(&info)? == first && info.status.incarnation == 1, "it is another one: {info:?}");
        let said = one.console("live", b"", 1)?;
        ensure!(said.contains("up"), "{said:?}");
        one.post(&power("live", "pause"), &Value::Null)?;
        one.kill9_and_start()?;
        one.sees_state("live", VmState::Paused)?;
        one.post(&power("live", "resume"), &Value::Null)?;
        one.sees_state("live", VmState::Running)?;

        // The vmm dies: it is started again, and what it said is kept.
        run("kill", &["-KILL", &first.to_string()])?;
        let again = |count: u64| {
            one.sees("live", "started again", move |info| {
                info.status.state == VmState::Running && info.status.incarnation == count
            })
        };
        let info = again(2)?;
        ensure!(info.status.restarts == 1, "{info:?}");
        let exit = info.status.last_exit.context("nobody knows how it ended")?;
        ensure!(exit.cause == ExitCause::Died && exit.log_kept, "{exit:?}");
        ensure!(one.log("live", true)?.contains("up"), "the log was not kept");

        // So does the process that the guest runs in, below the vmm that was started.
        let second = pid(&one.vm("live")?)?;
        let inside = *hypervisor::children(second)?.first().context("it runs in no process of its own")?;
        run("kill", &["-KILL", &inside.to_string()])?;
        ensure!(again(3)?.status.restarts == 2, "it was not counted");

        // Both die at the same time.
        let third = pid(&one.vm("live")?)?;
        one.daemon().kill9()?;
        run("kill", &["-KILL", &third.to_string()])?;
        one.start()?;
        let info = again(4)?;
        ensure!(info.status.restarts == 3, "{info:?}");

        // A reset is a new process over the same disk; it is not counted.
        one.post(&power("live", "reset"), &Value::Null)?;
        let reset = one.vm("live")?;
        ensure!(reset.status.incarnation == 5 && reset.status.restarts == 3, "{reset:?}");
        ensure!(reset.status.epoch == info.status.epoch, "the lock was given away: {reset:?}");

        // Three times an hour, and no more.
        run("kill", &["-KILL", &pid(&reset)?.to_string()])?;
        let info = one.sees_state("live", VmState::Failed)?;
        ensure!(info.status.detail.as_ref().is_some_and(|why| why.contains("signal 9")), "{info:?}");
        nothing_left(lab, all, "live", &["disk"])?;
        let list: VmList = one.daemon().ctl(&["list"])?;
        ensure!(list.vms[0].status.state == VmState::Failed, "{list:?}");

        // A guest that panics every time fails after three restarts, too. A daemon that starts anew does not forget that.
        let kernel = one.guest("panics", Code::default().print("oops\n").panic())?;
        one.post("/v1/vms", &with(spec("sick", &kernel), json!({ "disks": [{ "volume": "disk" }] })))?;
        // It may have panicked by the time that the start is answered.
        let _answer = one.post(&power("sick", "start"), &json!({}));
        let info = one.sees_state("sick", VmState::Failed)?;
        let exit = info.status.last_exit.clone().context("nobody knows how it ended")?;
        ensure!(exit.cause == ExitCause::Panicked && info.status.restarts == 3, "{info:?}");
        ensure!(info.status.detail.as_ref().is_some_and(|why| why.contains("panicked")), "{info:?}");
        ensure!(one.log("sick", true)?.contains("oops"), "the log was not kept");
        nothing_left(lab, all, "sick", &["disk"])?;
        one.daemon().term()?;
        one.start()?;
        let info = one.sees_state("sick", VmState::Failed)?;
        ensure!(info.status.detail.as_ref().is_some_and(|why| why.contains("panicked")), "{info:?}");
        one.post(&power("sick", "kill"), &Value::Null)?;
        one.sees_state("sick", VmState::Off)?;

        // Where nobody wants it back, it stays as it ended.
        one.vmctl(&["set", "sick", "--restart", "never"])?;
        let _answer = one.post(&power("sick", "start"), &json!({}));
        let info = one.sees_state("sick", VmState::Failed)?;
        ensure!(info.status.restarts == 0, "{info:?}");
        nothing_left(lab, all, "sick", &["disk"])
    });
}

/// A volume or a port group that is not there: refused when the VM is written down, or changed; and when it starts, if it went since.
fn what_is_not_there_is_refused(lab: &Lab, all: &[Hypervisor<'_>], kernel: &str) -> Result<()> {
    let [one, two] = all else { unreachable!("two hosts") };
    let cases = [
        (
            "group",
            json!({ "nics": [{ "portgroup": "blue" }, { "portgroup": "nowhere" }] }),
            "group_not_found",
            "nowhere",
        ),
        (
            "volume",
            json!({ "disks": [{ "volume": "root" }, { "volume": "missing" }] }),
            "volume_not_found",
            "missing",
        ),
    ];
    for (what, more, code, word) in cases {
        let name = format!("none-{what}");
        let refused = one.refused("POST", "/v1/vms", Some(&with(spec(&name, kernel), more)), code)?;
        ensure!(refused.message.contains(word), "{what}: {refused:?}");
        one.refused("GET", &format!("/v1/vms/{name}"), None, "vm_not_found")?;
    }

    lab.host(1).create("brief", "64M", "mirror:2")?;
    lab.host(1).vswitchd().ctl_ok(&["portgroup", "create", "brief", "--switch", "main", "--vni", "5020"])?;
    let named = json!({ "disks": [{ "volume": "brief" }], "nics": [{ "portgroup": "brief" }] });
    one.post("/v1/vms", &with(spec("named", kernel), named))?;
    one.daemon().ctl_refused(&["attach", "named", "--volume", "missing"], "volume_not_found", 3)?;
    one.daemon().ctl_refused(&["attach", "named", "--portgroup", "nowhere"], "group_not_found", 3)?;
    lab.host(1).vswitchd().ctl_ok(&["--yes", "portgroup", "delete", "brief"])?;
    // What it named before does not keep it from being changed.
    one.vmctl(&["set", "named", "--restart", "never"])?;
    for (code, word) in [("group_not_found", "brief"), ("volume_not_found", "brief")] {
        let refused = one.refused("POST", &power("named", "start"), Some(&json!({})), code)?;
        ensure!(refused.message.contains(word), "{refused:?}");
        two.sees_state("named", VmState::Failed)?;
        nothing_left(lab, all, "named", &["root"])?;
        // The group is looked for first; then the volume goes, and the card with the group.
        if code == "group_not_found" {
            one.post(&power("named", "kill"), &Value::Null)?;
            one.sees_state("named", VmState::Off)?;
            one.vmctl(&["detach", "named", "--nic", "0"])?;
            lab.host(1).ctl_ok(&["--yes", "volume", "delete", "brief"])?;
        }
    }
    one.delete("/v1/vms/named")
}

#[test]
fn what_can_not_be_is_refused_and_leaves_nothing() {
    with_hypervisors(2, &["root", "other"], |lab, all| {
        let [one, two] = all else { unreachable!("two hosts") };
        let kernel = one.guest("waits", waits())?;
        let wrong = json!({ "cpus": 0, "memory_bytes": 1 });
        let refused =
            one.refused("POST", "/v1/vms", Some(&with(spec("bad", &kernel), wrong)), "invalid_vm")?;
        ensure!(refused.faults.len() == 2, "{refused:?}");

        // Each has a disk that can be opened, and a card that can be attached, so that there is something to be undone.
        let (disks, nics) = (json!([{ "volume": "root" }]), json!([{ "portgroup": "blue" }]));
        let no_kernel = format!("{kernel}-missing");
        let huge = 512_u64 << 30;
        let cases: [(&str, Value, &str, &str); 6] = [
            ("memory", json!({ "memory_bytes": huge }), "no_capacity", "free"),
            (
                "cpu",
                json!({ "cpus": 64, "cpu": { "reservation_percent": 6400 } }),
                "no_capacity",
                "% can still",
            ),
            (
                "elsewhere",
                json!({ "disks": [{ "volume": "root" }, { "volume": "other" }] }),
                "object_in_use",
                "host2",
            ),
            (
                "kernel",
                json!({ "boot": { "files": { "kernel": no_kernel } } }),
                "vmm_failed",
                "waits-missing",
            ),
            (
                "no-kernel",
                json!({ "boot": { "files": { "kernel": "/etc/passwd" } } }),
                "vmm_failed",
                "bzImage",
            ),
            ("no-image", json!({ "boot": { "volume": {} } }), "vmm_failed", "root"),
        ];
        lab.host(2).open("other")?;
        for (what, more, code, word) in cases {
            let name = format!("bad-{what}");
            let more = with(json!({ "disks": disks, "nics": nics }), more);
            one.post("/v1/vms", &with(spec(&name, &kernel), more))?;
            let refused = one.refused("POST", &power(&name, "start"), Some(&json!({})), code)?;
            ensure!(refused.message.contains(word), "{what}: {refused:?}");
            let info = two.sees_state(&name, VmState::Failed)?;
            ensure!(info.status.detail.is_some_and(|detail| detail.contains(word)), "{what}");
            nothing_left(lab, all, &name, &["root"])?;
            one.delete(&format!("/v1/vms/{name}"))?;
        }

        what_is_not_there_is_refused(lab, all, &kernel)?;

        // A volume that another program has open here is not taken from it, nor is one of another VM.
        lab.host(1).open("root")?;
        one.post("/v1/vms", &with(spec("taken", &kernel), json!({ "disks": disks })))?;
        let refused = one.refused("POST", &power("taken", "start"), Some(&json!({})), "object_in_use")?;
        ensure!(refused.message.contains("host1"), "{refused:?}");
        ensure!(lab.host(1).volume("root")?.owner.is_some(), "the other program has lost its volume");
        lab.host(1).ctl_ok(&["volume", "close", "root"])?;
        one.post("/v1/vms", &with(spec("first", &kernel), json!({ "disks": disks })))?;
        one.post(&power("first", "start"), &json!({}))?;
        let refused = one.refused("POST", &power("taken", "start"), Some(&json!({})), "object_in_use")?;
        ensure!(refused.message.contains("VM first"), "{refused:?}");
        one.vmctl(&["kill", "first", "--yes"])?;
        nothing_left(lab, all, "first", &["root"])?;

        let long = "x".repeat(63);
        let deep = one.refused("POST", "/v1/vms", Some(&spec(&long, &kernel)), "bad_path")?;
        ensure!(deep.message.contains("107"), "{deep:?}");
        one.refused("POST", &power("taken", "start"), Some(&json!({ "host": "nowhere" })), "host_not_found")?;

        // Without a vmm, and without KVM.
        one.daemon().term()?;
        one.configure("vmm = \"/nowhere/vmm\"\n")?;
        one.start()?;
        let refused = one.refused("POST", &power("taken", "start"), Some(&json!({})), "not_supported")?;
        ensure!(refused.message.contains("/nowhere/vmm"), "{refused:?}");
        one.daemon().term()?;
        one.configure("")?;
        one.hide_kvm()?;
        one.start()?;
        let refused = one.refused("POST", &power("taken", "start"), Some(&json!({})), "not_supported")?;
        ensure!(refused.message.contains("/dev/kvm") && refused.next_step.contains("qemu"), "{refused:?}");
        let host: Value = one.daemon().ctl(&["host"])?;
        ensure!(host["kvm"]["usable"] == false, "{host}");
        nothing_left(lab, all, "taken", &["root"])
    });
}

#[test]
fn a_host_that_lost_its_vm_ends_it_and_a_start_that_died_half_way_is_undone() {
    with_hypervisors(1, &["disk"], |lab, all| {
        let [one] = all else { unreachable!("one host") };
        let kernel = one.guest("waits", waits())?;
        one.post("/v1/vms", &with(spec("own", &kernel), json!({ "disks": [{ "volume": "disk" }] })))?;
        one.post(&power("own", "start"), &json!({}))?;
        let before = one.vm("own")?;

        // vsand is started again: the same lock, another epoch, and the VM goes on.
        lab.host(1).kill9()?;
        lab.host(1).start()?;
        let info = one.sees("own", "under the next epoch", |info| info.status.epoch > before.status.epoch)?;
        ensure!(pid(&info)? == pid(&before)?, "{info:?}");

        // The volume is closed under it: whoever opens it next is the one who writes.
        lab.host(1).ctl_ok(&["volume", "close", "disk"])?;
        let info = one.sees_state("own", VmState::Failed)?;
        ensure!(info.status.detail.is_some_and(|detail| detail.contains("lock")), "it does not say why");
        nothing_left(lab, all, "own", &["disk"])?;

        // A daemon that is killed in the middle of a start: what it had taken is given back by the next.
        one.daemon().term()?;
        let hang = one.host.dir().join("hv/hangs");
        fs::write(&hang, "#!/bin/sh\nexec sleep 1000\n")?;
        run("chmod", &["+x", &hang.display().to_string()])?;
        one.configure(&format!("vmm = \"{}\"\n", hang.display()))?;
        one.start()?;
        let pid_file = one.run_dir("own").join("pid");
        std::thread::scope(|scope| {
            // Never answered: the daemon dies.
            scope.spawn(|| one.post(&power("own", "start"), &json!({})).is_err());
            eventually("it has taken the lock", SEEN_MAX, || {
                let owner = lab.host(1).volume("disk")?.owner;
                ensure!(owner.is_some() && pid_file.exists(), "{owner:?}");
                Ok(())
            })?;
            one.daemon().kill9()
        })?;
        // The order stands, and is carried out; of the attempt before it nothing goes on.
        let half = fs::read_to_string(&pid_file)?;
        one.configure("")?;
        one.start()?;
        let info = one.sees_state("own", VmState::Running)?;
        let lives = Path::new("/proc").join(half.trim()).exists();
        ensure!(!lives && pid(&info)?.to_string() != half.trim(), "process {half} lives");
        one.post(&power("own", "kill"), &Value::Null)?;
        nothing_left(lab, all, "own", &["disk"])
    });
}

#[test]
fn what_a_dead_host_had_is_taken_over_and_not_before() {
    with_hypervisors(3, &["disk"], |lab, all| {
        let [one, two, three] = all else { unreachable!("three hosts") };
        let kernel = one.guest("waits", waits())?;
        let made = json!({ "disks": [{ "volume": "disk" }], "nics": [{ "portgroup": "blue" }] });
        one.post("/v1/vms", &with(spec("web", &kernel), made))?;
        one.post(&power("web", "start"), &json!({ "host": "host3" }))?;
        let first = three.sees_state("web", VmState::Running)?;

        // Somebody told another host to start it, who did not know better. The lock decides, and the VM does not suffer.
        let hosts = one.get("/v1/status")?["hosts"].clone();
        let hosts = hosts.as_array().context("no hosts")?;
        let mut hosts = hosts.iter().map(|host| &host["capacity"]);
        let other = hosts.find(|host| host["host_name"] == "host2").context("no host2")?;
        let forge = || {
            let (revision, text) = hypervisor::document(lab.host(1), "vm/run/web")?;
            let mut forged: Value = serde_json::from_str(&text)?;
            forged["host"] = other["host"].clone();
            forged["order"] = json!(forged["order"].as_u64().context("no order")? + 1);
            forged["verb"] = json!("start");
            hypervisor::put_document(lab.host(1), "vm/run/web", revision, &forged.to_string())?;
            Ok(revision)
        };
        // Its host may be writing, too.
        let revision = eventually("the document is forged", SEEN_MAX, forge)?;
        eventually("the document names the host with the lock", SEEN_MAX, || {
            let (now, text) = hypervisor::document(lab.host(2), "vm/run/web")?;
            let seen: Value = serde_json::from_str(&text)?;
            ensure!(now > revision && seen["host"] == json!(first.host), "{text}");
            Ok(())
        })?;
        let info = two.sees("web", "on host3", |info| info.host_name.as_deref() == Some("host3"))?;
        ensure!(info.status.state == VmState::Running && pid(&info)? == pid(&first)?, "{info:?}");

        // The host dies, with all that runs on it.
        three.daemon().kill9()?;
        lab.host(3).vswitchd().kill9()?;
        lab.host(3).kill9()?;
        run("kill", &["-KILL", &pid(&first)?.to_string()])?;
        let info = one.sees_state("web", VmState::Unknown)?;
        ensure!(info.status.detail.is_some_and(|why| why.contains("host3")), "it does not say which host");
        let refused = two.daemon().ctl_refused(&["start", "web"], "object_in_use", 4)?;
        ensure!(
            refused.message.contains("host3") && refused.next_step.contains("lock break disk"),
            "{refused:?}"
        );
        eventually("the dead host's lock can be broken", BREAK_MAX, || {
            lab.host(2).ctl_ok(&["lock", "break", "disk", "--yes"])
        })?;
        two.vmctl(&["start", "web"])?;
        let second = one.sees_state("web", VmState::Running)?;
        ensure!(second.host_name.as_deref() == Some("host2"), "{second:?}");
        ensure!(second.status.epoch > first.status.epoch, "{second:?}");

        // It comes back, and does not touch what is another's.
        lab.host(3).start()?;
        lab.host(3).vswitchd().start()?;
        three.start()?;
        let info = three.sees("web", "on host2", |info| info.host_name.as_deref() == Some("host2"))?;
        ensure!(info.status.state == VmState::Running && pid(&info)? == pid(&second)?, "{info:?}");
        eventually("host3 has nothing of it", SEEN_MAX, || {
            ensure!(!three.run_dir("web").exists(), "its folder is left");
            let status = three.get("/v1/status")?;
            ensure!(!status["health"].to_string().contains("leftovers"), "{status}");
            Ok(())
        })?;
        let port: Value = two.host.vswitchd().ctl(&["port", "show", "web.0"])?;
        ensure!(port["attachment"].is_object(), "{port}");
        three.vmctl(&["kill", "web", "--yes"])?;
        nothing_left(lab, all, "web", &["disk"])
    });
}

#[test]
fn a_vm_has_its_part_and_no_more_is_promised_than_there_is() {
    with_hypervisors(1, &[], |lab, all| {
        let [one] = all else { unreachable!("one host") };
        let kernel = one.guest("waits", waits())?;
        let host: Value = one.daemon().ctl(&["host"])?;
        let (count, free) = (host["cpu"]["count"].as_u64(), host["memory"]["free_bytes"].as_u64());
        let (count, free) = (count.context("no processors")?, free.context("no memory")?);
        let most = count * 100;
        let part = json!({
            "cpus": count,
            "cpu": { "reservation_percent": most - 50, "limit_percent": most - 50, "affinity": "0" },
            "memory": { "reservation_bytes": 16 << 20, "limit_bytes": 24 << 20 },
        });
        one.post("/v1/vms", &with(spec("part", &kernel), part))?;
        one.post(&power("part", "start"), &json!({}))?;
        let vmm = pid(&one.vm("part")?)?;
        let inside = *hypervisor::children(vmm)?.first().context("it runs in no process of its own")?;
        ensure!(hypervisor::pinned(inside, "0")?, "no thread of it is pinned");

        // All of it is in a group of its own, which is set as far as this machine's kernel has controllers for that.
        let words = host["control_groups"].as_str().context("nothing about groups")?;
        let group = if hypervisor::group_mount().is_some() {
            let group = hypervisor::group_of(vmm)?;
            ensure!(group.to_string_lossy().contains("part"), "{}", group.display());
            ensure!(hypervisor::group_of(inside)? == group, "the guest is not in {}", group.display());
            Some(group)
        } else {
            ensure!(words.contains("not mounted"), "{words}");
            None
        };
        if host["limits_enforced"] == true {
            let group = group.as_ref().context("limits are kept, and there is no group")?;
            let read = |file: &str| fs::read_to_string(group.join(file)).map(|text| text.trim().to_owned());
            let max = format!("{} 100000", (most - 50) * 1000);
            ensure!(read("cpu.max")? == max, "{}", read("cpu.max")?);
            // Alone, it has the largest weight.
            ensure!(read("cpu.weight")? == "10000", "{}", read("cpu.weight")?);
            let own = 32_u64 << 20;
            ensure!(read("memory.max")? == ((24 << 20) + own).to_string(), "{}", read("memory.max")?);
            ensure!(read("memory.min")? == ((16 << 20) + own).to_string(), "{}", read("memory.min")?);
        } else {
            ensure!(words.contains("not kept"), "{words}");
            let status: Value = one.daemon().ctl(&["status"])?;
            ensure!(status["health"].to_string().contains("limits_not_kept"), "{status}");
        }

        // What one was promised the next can't have, and is told what there is.
        let now: Value = one.daemon().ctl(&["host"])?;
        ensure!(now["cpu"]["free_percent"] == 50, "{now}");
        let left = now["memory"]["free_bytes"].as_u64().context("no memory")?;
        ensure!(left + (24 << 20) <= free, "{left} of {free} are free");
        let mut more = json!({ "cpu": { "reservation_percent": 51 }, "memory_bytes": left >> 20 << 20 });
        one.post("/v1/vms", &with(spec("more", &kernel), more.clone()))?;
        let refused = one.refused("POST", &power("more", "start"), Some(&json!({})), "no_capacity")?;
        ensure!(refused.message.contains(&format!("50 % of {most} % can still be reserved")), "{refused:?}");
        ensure!(refused.message.contains("are free") && refused.faults.len() == 2, "{refused:?}");
        nothing_left(lab, all, "more", &[])?;
        more["cpu"]["reservation_percent"] = json!(50);
        more["memory_bytes"] = json!(32 << 20);
        one.done("PUT", "/v1/vms/more", Some(&with(spec("more", &kernel), more)))?;
        one.post(&power("more", "start"), &json!({}))?;
        for name in ["more", "part"] {
            one.vmctl(&["kill", name, "--yes"])?;
            nothing_left(lab, all, name, &[])?;
        }
        ensure!(group.is_none_or(|group| !group.exists()), "its group is left");
        let now: Value = one.daemon().ctl(&["host"])?;
        ensure!(now["cpu"]["free_percent"] == most && now["memory"]["granted_bytes"] == 0, "{now}");
        Ok(())
    });
}
