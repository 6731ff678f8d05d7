//! Real switches: three hosts with two uplinks each, the network in the cluster's directory, machines that talk while uplinks,
//! daemons and the directory go.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::network::{self, Echo, Probe, Tap, answers};
use ferro_blackbox::process::run;
use ferro_blackbox::vm::Vm;
use ferro_blackbox::{Lab, LabOptions, eventually};
use serde_json::Value;

/// DESIGN.md, Network, rule 6.
const FAILOVER_MAX: Duration = Duration::from_secs(1);
const BLUE: [&str; 3] = ["52:54:00:0a:00:01", "52:54:00:0a:00:02", "52:54:00:0a:00:03"];
const RED: &str = "52:54:00:14:00:03";

fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 10, 0, last)
}

/// A cluster without disks, with switches, two port groups, and ports `blue1` to `blue3` and `red3`.
fn with_switches(test: impl FnOnce(&Lab) -> Result<()>) {
    with_hosts(LabOptions { uplinks: 2, ..LabOptions::default() }, |lab| {
        lab.form_without_disks()?;
        network::start(lab)?;
        let [one, two, three] = BLUE;
        let commands = format!(
            "switch create main; portgroup create blue --switch main --vni 5010 --vlan 10; \
             portgroup create red --switch main --vni 5020 --vlan 20; \
             port create blue1 --group blue --mac {one}; port create blue2 --group blue --mac {two}; \
             port create blue3 --group blue --mac {three}; port create red3 --group red --mac {RED}"
        );
        lab.host(1).vswitchd().ctl_ok(&["transaction", &commands])?;
        test(lab)
    });
}

fn blue(lab: &Lab, host: u8) -> Result<Tap<'_>> {
    Tap::attach(lab.host(host), &format!("blue{host}"), BLUE[usize::from(host) - 1], ip(host))
}

#[test]
fn machines_of_a_group_talk_and_others_do_not() {
    with_switches(|lab| {
        let (one, two) = (blue(lab, 1)?, blue(lab, 2)?);
        // The same address as blue's second machine: only the network tells them apart.
        let red = Tap::attach(lab.host(3), "red3", RED, ip(2))?;
        let echo = Echo::start(&two)?;
        let probe = Probe::start(&one, two.ip)?;
        std::thread::sleep(Duration::from_secs(2));
        let seen = probe.stop()?;
        ensure!(seen.answered * 10 >= seen.sent * 9, "{seen:?}");
        // Red's machine answers too, and nobody asks it: its address is asked for only within blue.
        let red_echo = Echo::start(&red)?;
        ensure!(answers(&one, two.ip)?, "blue's machines have lost each other");
        drop(echo);
        ensure!(!answers(&one, two.ip)?, "red answered what was asked in blue");
        drop(red_echo);
        let status: Value = lab.host(3).vswitchd().ctl(&["port", "show", "red3"])?;
        let delivered = status["counters"]["to"]["frames"].as_u64();
        ensure!(delivered == Some(0), "red's machine got something: {status}");
        Ok(())
    });
}

#[test]
fn switches_that_run_get_their_tunnels_when_their_hosts_join() {
    with_hosts(LabOptions { uplinks: 1, ..LabOptions::default() }, |lab| {
        network::configure(lab)?;
        for host in lab.hosts() {
            host.vswitchd().start()?;
        }
        lab.form_without_disks()?;
        network::wait_connected(lab)?;
        for host in lab.hosts() {
            ensure!(host.vswitchd().is_running(), "{}'s switch has ended", host.name());
            let log = host.vswitchd().log()?;
            ensure!(log.contains("begins anew"), "{}: {log}", host.name());
            ensure!(!log.contains("ERROR"), "{}: {log}", host.name());
        }
        // They are of one cluster: what one is told holds for all.
        lab.host(1).vswitchd().ctl_ok(&["switch", "create", "main"])?;
        let switches: Vec<Value> = lab.host(3).vswitchd().ctl(&["switch", "list"])?;
        ensure!(switches.len() == 1, "{switches:?}");
        Ok(())
    });
}

/// The host's own way to the others as a port of the switch: blocked, it is cut off.
const MANAGEMENT: &str = "vmk";

fn management_ip(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, 0, host)
}

/// Switches whose tunnels pass through the switches themselves: each host's tunnel address is that of a TAP on a port of a group
/// that leads out by the uplink.
fn with_management_ports(test: impl FnOnce(&Lab) -> Result<()>) {
    with_hosts(LabOptions { uplinks: 1, ..LabOptions::default() }, |lab| {
        lab.form_without_disks()?;
        network::configure(lab)?;
        for (n, host) in (1..).zip(lab.hosts()) {
            let config = std::fs::read_to_string(host.vswitchd().config())?;
            let config = config.replace(&host.uplink_address(1).to_string(), &management_ip(n).to_string());
            std::fs::write(host.vswitchd().config(), config)?;
            let ip = |args: &[&str]| run("ip", &[&["-n", host.namespace()], args].concat());
            // The card is the switch's, and an address is known at its own interface only.
            ip(&["addr", "flush", "dev", "uplink1"])?;
            let quiet = ["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"];
            run("ip", &[&["netns", "exec", host.namespace()][..], &quiet].concat())?;
            ip(&["tuntap", "add", "dev", MANAGEMENT, "mode", "tap", "vnet_hdr"])?;
            ip(&["link", "set", MANAGEMENT, "address", BLUE[usize::from(n) - 1], "up"])?;
            ip(&["addr", "add", &format!("{}/24", management_ip(n)), "dev", MANAGEMENT])?;
            host.vswitchd().start()?;
        }
        let ports = (1..)
            .zip(BLUE)
            .map(|(n, mac)| format!("; port create {MANAGEMENT}{n} --group management --mac {mac}"));
        let group = "switch create main --uplinks uplink1; portgroup create management --switch main";
        let commands: String = std::iter::once(group.to_owned()).chain(ports).collect();
        // Nobody reaches anybody yet, so each takes it from the directory.
        eventually("the directory takes the network", network::SWITCH_MAX, || {
            lab.host(1).vswitchd().ctl_ok(&["transaction", &commands, "--no-wait"])
        })?;
        for (n, host) in (1..).zip(lab.hosts()) {
            let port = format!("{MANAGEMENT}{n}");
            eventually("its port can be attached", network::SWITCH_MAX, || {
                host.vswitchd().ctl_ok(&["port", "attach", &port, "--to", "tap", "--interface", MANAGEMENT])
            })?;
        }
        network::wait_connected(lab)?;
        test(lab)
    });
}

/// Whether a host is blocked at its own port, as another one has it in force.
fn blocked(lab: &Lab, seen_by: u8, port: &str) -> Result<bool> {
    let port: Value = lab.host(seen_by).vswitchd().ctl(&["port", "show", port])?;
    port["blocked"].as_bool().context("it does not say")
}

fn reached(lab: &Lab, by: u8) -> Result<usize> {
    let all: Value = lab.host(by).vswitchd().ctl(&["tunnel", "list"])?;
    let tunnels = all["tunnels"].as_array().with_context(|| format!("no tunnels: {all}"))?;
    Ok(tunnels.iter().filter(|tunnel| tunnel["alive"] == true).count())
}

#[test]
fn a_change_that_cuts_a_host_off_undoes_itself_unless_it_is_confirmed() {
    with_management_ports(|lab| {
        let port = format!("{MANAGEMENT}1");
        let cut = |lab: &Lab| -> Result<u64> {
            lab.host(2).vswitchd().ctl_ok(&["port", "set", &port, "--blocked", "yes", "--no-wait"])?;
            eventually("the host is cut off, and says so", network::SWITCH_MAX, || {
                ensure!(reached(lab, 1)? == 0, "it reaches others");
                let status: Value = lab.host(1).vswitchd().ctl(&["status"])?;
                status["unconfirmed"]["revision"].as_u64().with_context(|| format!("{status}"))
            })
        };
        cut(lab)?;
        // On all hosts, those that lost nothing too: the directory was asked to undo it.
        eventually("it is undone", Duration::from_secs(60), || {
            for host in 1..=3 {
                ensure!(!blocked(lab, host, &port)?, "host {host} still has it");
            }
            Ok(())
        })?;
        lab.host(1).vswitchd().logs(&["cut off from the other hosts by a change"])?;
        network::wait_connected(lab)?;
        // Somebody at the host itself says that it is to stay.
        let revision = cut(lab)?;
        lab.host(1).vswitchd().ctl_ok(&["confirm", &revision.to_string()])?;
        std::thread::sleep(Duration::from_secs(35));
        ensure!(
            blocked(lab, 1, &port)? && blocked(lab, 3, &port)?,
            "it was undone although it was confirmed"
        );
        ensure!(reached(lab, 1)? == 0 && reached(lab, 2)? == 1, "the host is not cut off");
        Ok(())
    });
}

/// Where a machine asks for an address and says what it got.
const DHCP: &str = "ip link set eth0 up; udhcpc -i eth0 -n -q -t 10 -s /usr/local/sbin/udhcpc-script >/run/dhcp 2>&1 || { cat /run/dhcp; exit 1; }
    ip -4 -o addr show dev eth0 | sed 's/.* inet \\([0-9.]*\\).*/\\1/'; cat /sys/class/net/eth0/mtu";

#[test]
fn guests_get_addresses_and_talk_while_their_switches_restart() {
    with_switches(|lab| {
        let commands = "portgroup set blue --gateway 10.10.0.254/24 --dhcp 10.10.0.50-10.10.0.99 --mtu 1400";
        lab.host(1).vswitchd().ctl_ok(&["transaction", commands])?;
        let mut guests = Vec::new();
        for (host, mac) in [(1, BLUE[0]), (2, BLUE[1])] {
            let name = format!("blue{host}");
            let socket = network::attach_socket(lab.host(host), &name)?;
            guests.push(Vm::boot_on_switch(lab, &name, &socket, mac)?);
        }
        let mut addresses = Vec::new();
        for guest in &mut guests {
            let said = guest.run(DHCP, Duration::from_secs(60))?;
            let (address, mtu) = said.split_once('\n').context("no address")?;
            ensure!(address.starts_with("10.10.0.") && mtu == "1400", "{said:?}");
            addresses.push(address.to_owned());
        }
        ensure!(addresses[0] != addresses[1], "{addresses:?}");
        let [one, two] = &mut guests[..] else { unreachable!("there are two") };
        one.run(&format!("ping -c 3 {} && ping -c 1 10.10.0.254", addresses[1]), Duration::from_secs(30))?;
        two.begin("iperf3 --server --one-off --daemon")?;
        let iperf = format!("iperf3 --client {} --time 3 --json", addresses[1]);
        let report: Value = serde_json::from_str(&one.run(&iperf, Duration::from_secs(60))?)?;
        ensure!(report["end"]["sum_received"]["bytes"].as_u64() > Some(1 << 20), "{report}");
        for host in [1, 2] {
            lab.host(host).vswitchd().kill9()?;
            lab.host(host).vswitchd().start()?;
        }
        let again = format!("ping -c 1 -w 1 {}", addresses[1]);
        eventually("the guests talk again", network::SWITCH_MAX, || {
            one.run(&again, Duration::from_secs(20)).map(drop)
        })
    });
}

#[test]
fn traffic_goes_on_when_an_uplink_is_cut() {
    with_switches(|lab| {
        let (one, two) = (blue(lab, 1)?, blue(lab, 2)?);
        let _echo = Echo::start(&two)?;
        for uplink in [1, 2] {
            let probe = Probe::start(&one, two.ip)?;
            std::thread::sleep(Duration::from_millis(500));
            lab.host(2).cut_uplink(uplink)?;
            std::thread::sleep(Duration::from_secs(3));
            let seen = probe.stop()?;
            ensure!(seen.silence < FAILOVER_MAX, "uplink {uplink}: {seen:?}");
            lab.host(2).mend_uplink(uplink)?;
            network::wait_connected(lab)?;
        }
        Ok(())
    });
}

#[test]
fn forwarding_needs_no_directory() {
    with_switches(|lab| {
        let (one, two) = (blue(lab, 1)?, blue(lab, 2)?);
        let _echo = Echo::start(&two)?;
        let probe = Probe::start(&one, two.ip)?;
        for host in lab.hosts() {
            host.kill9()?;
        }
        std::thread::sleep(Duration::from_secs(8));
        let seen = probe.stop()?;
        ensure!(seen.silence < FAILOVER_MAX, "{seen:?}");
        // Ports come and go, and a switch that starts has its last configuration.
        let three = blue(lab, 3)?;
        let probe = Probe::start(&three, two.ip)?;
        lab.host(3).vswitchd().kill9()?;
        std::thread::sleep(Duration::from_millis(500));
        lab.host(3).vswitchd().start()?;
        eventually("the third machine talks again", network::SWITCH_MAX, || {
            ensure!(answers(&three, two.ip)?, "no answer");
            Ok(())
        })?;
        probe.stop()?;
        three.remove()?;
        // What all hosts must agree on can't be changed now, and says so.
        lab.host(1).vswitchd().ctl_refused(&["portgroup", "set", "blue", "--mtu", "1400"], "no_quorum", 6)?;
        ensure!(answers(&one, two.ip)?, "a change that was refused has broken something");
        Ok(())
    });
}

#[test]
fn a_switch_that_is_killed_comes_back_under_traffic() {
    with_switches(|lab| {
        let (one, two) = (blue(lab, 1)?, blue(lab, 2)?);
        let _echo = Echo::start(&two)?;
        for host in [2, 1] {
            let probe = Probe::start(&one, two.ip)?;
            std::thread::sleep(Duration::from_millis(300));
            lab.host(host).vswitchd().kill9()?;
            lab.host(host).vswitchd().start()?;
            eventually("the machines talk again", Duration::from_secs(10), || {
                ensure!(answers(&one, two.ip)?, "no answer");
                Ok(())
            })?;
            let seen = probe.stop()?;
            ensure!(seen.answered > 0, "{seen:?}");
        }
        network::wait_connected(lab)
    });
}

#[test]
fn a_machine_that_moves_takes_its_traffic_with_it() {
    with_switches(|lab| {
        let (one, two) = (blue(lab, 1)?, blue(lab, 2)?);
        let echo = Echo::start(&one)?;
        let probe = Probe::start(&two, one.ip)?;
        std::thread::sleep(Duration::from_millis(500));
        drop(echo);
        one.remove()?;
        let moved = Tap::attach(lab.host(3), "blue1", BLUE[0], ip(1))?;
        let _echo = Echo::start(&moved)?;
        let attached = std::time::Instant::now();
        eventually("traffic follows", FAILOVER_MAX, || {
            ensure!(answers(&two, moved.ip)?, "no answer after {:?}", attached.elapsed());
            Ok(())
        })?;
        probe.stop().map(drop)
    });
}

#[test]
fn a_path_whose_mtu_shrinks_carries_on() {
    with_switches(|lab| {
        let (one, two) = (blue(lab, 1)?, blue(lab, 2)?);
        let listener = two.host.within(|| Ok(std::net::TcpListener::bind((two.ip, 0))?))?;
        let port = listener.local_addr()?.port();
        let reader = std::thread::spawn(move || -> Result<u64> {
            let (mut stream, _) = listener.accept()?;
            Ok(std::io::copy(&mut stream, &mut std::io::sink())?)
        });
        let mut stream = one.host.within(|| Ok(std::net::TcpStream::connect((two.ip, port))?))?;
        stream.set_write_timeout(Some(Duration::from_secs(20)))?;
        let (block, began) = (vec![7_u8; 1 << 16], std::time::Instant::now());
        let (mut sent, mut shrunk) = (0_u64, None);
        while shrunk.is_none_or(|at: std::time::Instant| at.elapsed() < Duration::from_secs(6)) {
            if let Err(error) = std::io::Write::write_all(&mut stream, &block) {
                let tunnels: Value = lab.host(1).vswitchd().ctl(&["tunnel", "list"])?;
                bail!("after {:?}: {error}: {tunnels}", began.elapsed());
            }
            sent += block.len() as u64;
            if shrunk.is_none() && began.elapsed() > Duration::from_secs(1) {
                for host in lab.hosts() {
                    for uplink in [1, 2] {
                        host.set_uplink_mtu(uplink, 1320)?;
                    }
                }
                shrunk = Some(std::time::Instant::now());
                sent = 0;
            }
        }
        ensure!(sent > 4 << 20, "only {sent} bytes went through after the MTU had shrunk");
        drop(stream);
        let received = reader.join().map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        ensure!(received >= sent, "{received} of at least {sent} bytes arrived");
        Ok(())
    });
}
