//! The verbs of `vmctl`, their output, their questions and their exit codes.

mod machines;

use std::process::Command;

use machines::{Ran, Served};

#[test]
fn a_machine_from_its_making_to_its_end() {
    let served = Served::start();
    let made = served.done(&[
        "create",
        "web1",
        "--cpus",
        "2",
        "--memory",
        "512M",
        "--volume",
        "web1-root",
        "--portgroup",
        "blue",
    ]);
    assert_eq!(made, "created VM web1 with 2 processors, 512 MiB, 1 disk and 1 network card\n");
    let list = served.done(&["list"]);
    assert!(list.starts_with("NAME  STATE  HOST  CPUS   MEMORY"), "{list}");
    assert!(
        list.contains("web1  off    -        2  512 MiB  -    web1-root") && list.contains("web1-root  blue"),
        "{list}"
    );
    assert_eq!(
        served.done(&["start", "web1"]),
        "VM web1 runs on host alpha, under QEMU: KVM runs no stock kernel here\n"
    );
    served.run(&["start", "web1"]).refused(4, &["VM web1 is running on host alpha"]);
    let wide = served.done(&["list", "-o", "wide"]);
    assert!(wide.contains("QEMU") && wide.contains("4711"), "{wide}");
    assert_eq!(served.json(&["show", "web1"])["status"]["state"], "running");
    let shown = served.done(&["show", "web1"]);
    for word in [
        "running for",
        "meant to run",
        "alpha (this host)",
        "QEMU, process 4711: KVM runs no stock kernel here",
        "2, 1000 shares",
        "512 MiB, 1000 shares, with a balloon",
        "what its first volume brings",
        "on failure",
        "   0  web1-root  read, write",
        "  0  blue        web1.0  52:54:00:00:00:00",
    ] {
        assert!(shown.contains(word), "no {word:?} in\n{shown}");
    }
    assert!(served.done(&["pause", "web1"]).starts_with("VM web1 stands still"));
    assert_eq!(served.json(&["resume", "web1"])["status"]["state"], "running");
    served.run(&["reset", "web1"]).refused(9, &["resetting VM web1", "--yes"]);
    assert_eq!(served.done(&["reset", "web1", "--yes"]), "VM web1 was reset\n");

    served.run(&["attach", "web1", "--volume", "data"]).refused(4, &["web1 is running", "stop it first"]);
    served
        .run(&["delete", "web1", "--yes"])
        .refused(4, &["deleting VM web1: it is running", "vmctl stop web1"]);
    assert_eq!(served.done(&["stop", "web1"]), "VM web1 is off\n");
    assert!(
        served.done(&["show", "web1"]).contains("the guest switched it off (`vmctl logs web1 --previous`")
    );
    served.run(&["stop", "web1"]).refused(4, &["web1 is off", "start it first"]);

    assert_eq!(
        served.done(&["attach", "web1", "--volume", "data,ro"]),
        "VM web1 has volume data as its disk 1\n"
    );
    assert_eq!(
        served.done(&["attach", "web1", "--portgroup", "red,mac=52:54:00:00:00:aa"]),
        "VM web1 has network card 1 in port group red, 52:54:00:00:00:aa\n"
    );
    assert!(served.done(&["list"]).contains("web1-root,data (read-only)  blue,red"));
    served.run(&["detach", "web1", "--nic", "2"]).refused(3, &["no network card 2"]);
    served.run(&["detach", "web1", "--volume", "A/b"]).refused(2, &["not a volume name"]);
    assert_eq!(served.done(&["detach", "web1", "--nic", "0"]), "VM web1 no longer has network card 0\n");
    assert_eq!(
        served.done(&["detach", "web1", "--volume", "data"]),
        "VM web1 no longer has volume data; its data stay\n"
    );

    served.run(&["delete", "web1"]).refused(9, &["no terminal", "Its volume web1-root stays", "--yes"]);
    assert_eq!(served.done(&["delete", "web1", "--yes"]), "deleted VM web1\n");
    served.run(&["show", "web1"]).refused(3, &["there is no VM web1", "vmctl list"]);
}

#[test]
fn bad_input_has_an_exit_code_and_a_next_step() {
    let served = Served::with_machine();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["create", "web1"], 4, &["a VM web1 already", "another name"]),
        (&["create", "Web1"], 2, &["not a VM's name"]),
        (
            &["create", "web2", "--cpus", "65", "--volume", "ghost"],
            2,
            &[
                "for 2 reasons",
                "  - VM \"web2\": it has more than 64",
                "  - disk \"ghost\": there is no",
                "nothing was changed",
            ],
        ),
        (&["create", "web2", "--cpus", "x"], 2, &["--cpus"]),
        (&["create", "web2", "--memory", "1X"], 2, &["not a size"]),
        (&["create", "web2", "--volume", "a,rw"], 2, &["VOLUME,ro"]),
        (&["create", "web2", "--portgroup", "a,vlan=1"], 2, &["mac=MAC"]),
        (&["create", "web2", "--initrd", "/boot/initrd"], 2, &["web2", "--kernel"]),
        (&["create", "web2", "--huge-pages", "4M"], 2, &["2M, 1G or none"]),
        (&["create", "web2", "--cpu-limit", "half"], 2, &["150%"]),
        (&["start", "web2"], 3, &["no VM web2"]),
        (&["kill", "web1"], 9, &["killing VM web1", "--yes"]),
        (&["set", "web1"], 2, &["nothing was given"]),
        (&["set", "web1", "--boot-entry", "x", "--kernel", "/k"], 2, &["no boot menu"]),
        (&["attach", "web1"], 2, &["--volume"]),
        (&["attach", "web1", "--volume", "a", "--portgroup", "b"], 2, &["--portgroup"]),
        (&["detach", "web1", "--nic", "x"], 2, &["--nic"]),
        (&["console", "web1", "--escape", "f1"], 2, &["ctrl-]"]),
        (&["console", "web2"], 3, &["no VM web2"]),
        (&["logs", "web1", "--lines", "0"], 2, &["--lines"]),
        (&["logs", "web1", "-f", "--previous"], 2, &["--previous"]),
        (&["top", "web2", "-n", "1"], 3, &["no VM web2"]),
        (&["frobnicate"], 2, &["frobnicate"]),
    ];
    for (args, code, words) in cases {
        served.run(args).refused(*code, words);
    }
    assert_eq!(served.control.state().vms.len(), 1, "nothing half-made stays");
    let ran = served.run(&["show", "web2", "-o", "json"]);
    let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((error["code"].as_str(), error["exit_code"].as_u64()), (Some("vm_not_found"), Some(3)));

    let mut gone = served.command(&["status"]);
    gone.env("HYPERVISORD_SOCKET", "/nowhere").arg("--socket").arg(served.dir.path().join("none.sock"));
    Ran::of(&gone.output().unwrap()).refused(8, &["none.sock", "systemctl start hypervisord"]);
}

#[test]
fn a_start_is_waited_for_and_its_failure_told() {
    let served = Served::start();
    served.done(&["create", "web1", "--volume", "web1-root"]);
    served.control.state().looks = 3;
    assert!(served.done(&["start", "web1", "--host", "beta"]).starts_with("VM web1 runs on host beta"));
    served.run(&["console", "web1"]).refused(4, &["web1 is on host beta", "there"]);
    assert_eq!(served.done(&["kill", "web1", "--yes"]), "VM web1 is off\n");

    served.control.state().starts_fail = 2;
    served.run(&["start", "web1"]).refused(
        1,
        &["VM web1 did not start on host alpha: its kernel can't be read", "vmctl logs web1 --previous"],
    );
    // It failed before, which says nothing of this time.
    served.control.state().starts_fail = 0;
    served.done(&["start", "web1"]);
    served.done(&["stop", "web1"]);
    served.control.state().looks = 1000;
    served.run(&["start", "web1", "--timeout", "1"]).refused(7, &["web1", "is starting", "it may still"]);
    served.control.state().looks = 0;
    served.done(&["kill", "web1", "--yes"]);
    served.control.state().looks = 1000;
    assert_eq!(served.done(&["start", "web1", "--no-wait"]), "VM web1 is to run on host alpha\n");
    served.control.state().looks = 0;
    served.done(&["kill", "web1", "--yes"]);

    served.done(&["set", "web1", "--memory", "2T"]);
    served.run(&["start", "web1"]).refused(5, &["web1 needs 2 TiB", "6 GiB free"]);
    let ran = served.run(&["create", "big", "--memory", "2T", "--start"]);
    assert_eq!((ran.code, ran.out.starts_with("created VM big")), (5, true), "{ran:?}");
}

#[test]
fn a_guest_that_does_not_hear_is_stopped_by_force_only() {
    let served = Served::with_machine();
    served.control.state().deaf = true;
    served.run(&["stop", "web1", "--timeout", "1"]).refused(7, &["web1 is not off", "--force"]);
    let asked = served.control.state().stopped.clone().unwrap();
    assert_eq!((asked.timeout_s, asked.force), (Some(1), false));
    served.done(&["stop", "web1", "--timeout", "0", "--force"]);
    let asked = served.control.state().stopped.clone().unwrap();
    assert_eq!((asked.timeout_s, asked.force), (Some(3600), true), "as long as can be");
}

#[test]
fn a_change_is_made_to_what_is_there() {
    let served = Served::with_machine();
    served.run(&["set", "web1", "--cpus", "4"]).refused(4, &["web1 is running", "stop it first"]);
    served.done(&["stop", "web1"]);
    assert_eq!(served.done(&["set", "web1", "--cpus", "4", "--no-balloon"]), "changed VM web1\n");
    assert!(served.done(&["set", "web1", "--cpus", "4"]).starts_with("nothing to do"));
    served.control.state().races = 2;
    assert_eq!(served.done(&["set", "web1", "--memory", "1G"]), "changed VM web1\n");
    let spec = served.control.state().vms.values().next().unwrap().spec.clone();
    assert_eq!((spec.cpus, spec.memory_bytes, spec.memory.balloon), (4, 1 << 30, false));
    served.control.state().races = 9;
    served.run(&["set", "web1", "--memory", "2G"]).refused(4, &["has changed meanwhile"]);
}

#[test]
fn hosts_and_what_machines_use_are_shown() {
    let served = Served::with_machine();
    let host = served.done(&["host"]);
    for word in [
        "2, 3 virtual ones given",
        "50% of 200% of one, 150% free",
        "6 GiB",
        "neither VT-x nor SVM",
        "4 MiB in pages of 2 MiB",
    ] {
        assert!(host.contains(word), "no {word:?} in\n{host}");
    }
    assert_eq!(served.json(&["host"])["memory"]["free_bytes"], 6_u64 << 30);
    let status = served.done(&["status"]);
    for word in [
        "health    WARNING",
        "host beta does not answer",
        "1 defined, 1 running",
        "alpha*",
        "silent for 2m 5s",
        "QEMU's emulation",
    ] {
        assert!(status.contains(word), "no {word:?} in\n{status}");
    }
    let lines = served.done(&["status", "--watch", "--interval", "1", "--count", "2", "-o", "json"]);
    assert_eq!(lines.lines().count(), 2);
    let top = served.json(&["top", "-n", "1", "--interval", "1"]);
    let vm = &top["vms"][0];
    assert_eq!((vm["cpu_percent"].as_f64(), vm["read_iops"].as_f64()), (Some(150.0), Some(1000.0)));
    assert_eq!((vm["read_mb_s"].as_f64(), vm["sent_mb_s"].as_f64()), (Some(4.0), Some(2.0)));
    assert!(served.done(&["top", "web1", "-n", "1", "--interval", "1"]).contains("150%"));
    served.done(&["stop", "web1"]);
    assert_eq!(served.done(&["top", "-n", "1", "--interval", "1"]), "no VM runs on this host\n");
    assert_eq!(served.done(&["list", "--host", "beta"]).lines().count(), 1);
    assert_eq!(served.done(&["list", "--host", "alpha"]).lines().count(), 2);
}

#[test]
fn logs_are_shown_and_do_not_drive_the_terminal() {
    let served = Served::with_machine();
    assert_eq!(served.done(&["logs", "web1"]), "Linux version 6.1\n[2Jlogin: \n");
    assert_eq!(served.done(&["logs", "web1", "-n", "1"]), "[2Jlogin: \n");
    assert_eq!(served.done(&["logs", "web1", "--previous"]), "Kernel panic\n");
    assert_eq!(served.json(&["logs", "web1", "-n", "1"])["cut"], true);
    served.done(&["create", "new"]);
    served.run(&["logs", "new"]).refused(3, &["never started"]);
    served.run(&["logs", "new", "-f"]).refused(4, &["is off"]);

    let following = served
        .command(&["logs", "web1", "-f", "-n", "1"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let log = served.control.log("web1");
    // It ends with the VM, and not before all is printed.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let mut file = std::fs::File::options().append(true).open(log).unwrap();
    std::io::Write::write_all(&mut file, b"root\nbye\n").unwrap();
    served.done(&["stop", "web1"]);
    let ran = Ran::of(&following.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.out.as_str()), (0, "[2Jlogin: root\nbye\n"), "{ran:?}");
}

#[test]
fn a_console_is_left_with_the_terminal_as_it_was() {
    let served = Served::with_machine();
    let mut at = served.at_terminal("stty -g; vmctl console web1; stty -g");
    at.sees("This is the console of VM web1; Ctrl-] leaves it.");
    at.sees("guest of run 1 login: ");
    at.types("root\r\u{3}");
    at.sees("ROOT");
    at.types("more\u{1d}unseen");
    at.sees("Left the console of VM web1, which goes on.");
    let (code, text) = at.ends();
    assert_eq!(code, 0, "{text}");
    let modes: Vec<&str> = text.lines().map(str::trim).filter(|line| line.matches(':').count() > 8).collect();
    assert_eq!(modes.len(), 2, "{text}");
    assert_eq!(modes[0], modes[1], "{text}");
    assert!(text.contains("\x1b[0m\x1b[?25h"), "the guest's colours have ended: {text:?}");
    // Ctrl-C went to the guest; what came after the key did not.
    assert_eq!(served.control.state().typed, b"root\r\x03more");
    assert_eq!(served.json(&["show", "web1"])["status"]["state"], "running");

    // Again, with another key; the first is the guest's then.
    served.control.state().typed.clear();
    let mut at = served.at_terminal("vmctl console web1 --escape ^a");
    at.sees("Ctrl-A leaves it.");
    at.sees("login: ");
    at.types("x\u{1d}\u{1}");
    let (code, text) = at.ends();
    assert_eq!(code, 0, "{text}");
    assert_eq!(served.control.state().typed, b"x\x1d");
}

#[test]
fn a_console_goes_on_after_a_reset_and_ends_with_its_machine() {
    let served = Served::with_machine();
    let mut at = served.at_terminal("vmctl console web1");
    at.sees("guest of run 1 login: ");
    served.done(&["reset", "web1", "--yes"]);
    at.sees("VM web1 has begun anew.");
    at.sees("guest of run 2 login: ");
    at.types("hello");
    at.sees("HELLO");
    served.done(&["stop", "web1"]);
    served.control.begin_anew("web1");
    at.sees("VM web1 is off.");
    assert_eq!(at.ends().0, 0);
}

#[test]
fn a_console_outlives_a_restart_of_the_daemon() {
    let served = Served::with_machine();
    let mut at = served.at_terminal("vmctl console web1");
    at.sees("login: ");
    // The daemon's next run has made the console's socket anew.
    let place = served.json(&["console", "web1"]);
    let touched = Command::new("touch").arg(place["socket"].as_str().unwrap()).status().unwrap();
    assert!(touched.success());
    served.control.cut_off("web1");
    at.sees("this is the console of VM web1 again.");
    at.types("still");
    at.sees("STILL");
    at.types("\u{1d}");
    assert_eq!(at.ends().0, 0);
    assert_eq!(served.control.state().typed, b"still");
}

#[test]
fn the_newest_client_has_the_console_and_the_one_before_is_told() {
    let served = Served::with_machine();
    let mut first = served.at_terminal("stty -g; vmctl console web1; echo status $?; stty -g");
    first.sees("login: ");
    let mut second = served.at_terminal("vmctl console web1");
    second.sees("login: ");
    first.sees("somebody else has taken over the console of VM web1");
    first.sees("status 4");
    let (_, text) = first.ends();
    let modes: Vec<&str> = text.lines().map(str::trim).filter(|line| line.matches(':').count() > 8).collect();
    assert_eq!(modes.first(), modes.last(), "{text}");
    second.types("mine");
    second.sees("MINE");
    second.types("\u{1d}");
    assert_eq!(second.ends().0, 0);
}

#[test]
fn a_console_works_with_pipes() {
    let served = Served::with_machine();
    let mut command = served.command(&["console", "web1", "--seconds", "3"]);
    let mut child = command
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // There is no escape key, and the output goes on after the end of the input.
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"uname\n\x1d").unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert_eq!(ran.out, "\x1b[31mguest of run 1 login: UNAME\n\x1d");
    let place = served.json(&["console", "web1"]);
    assert!(place["socket"].as_str().unwrap().ends_with("web1.console"));

    // It ends with a signal, and with its machine.
    for end in ["signal", "machine"] {
        let mut child =
            served.command(&["console", "web1"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut first = [0; 10];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
        if end == "signal" {
            let pid = rustix::process::Pid::from_child(&child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        } else {
            served.done(&["stop", "web1"]);
            served.control.begin_anew("web1");
        }
        assert_eq!(child.wait().unwrap().code(), Some(0), "{end}");
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let served = Served::start();
    for (shell, word) in [("bash", "_vmctl"), ("zsh", "#compdef vmctl"), ("fish", "complete -c vmctl")] {
        assert!(served.done(&["completion", shell]).contains(word), "{shell}");
    }
    assert!(served.done(&["man"]).contains(".TH vmctl"));
    let dir = served.dir.path().join("man");
    served.done(&["man", "--dir", dir.to_str().unwrap()]);
    for page in ["vmctl.1", "vmctl-create.1", "vmctl-console.1"] {
        assert!(dir.join(page).is_file(), "{page}");
    }
    let help = served.done(&["--help"]);
    assert!(help.contains("Exit codes:") && help.contains("no KVM and no QEMU"), "{help}");
}
