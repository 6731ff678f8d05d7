//! Forming a cluster, who is kept out of it, and what an operator may ask wrongly.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ferro_blackbox::disk::LoopDevice;
use ferro_blackbox::lab::{PEER_PORT, with_hosts};
use ferro_blackbox::process::run;
use ferro_blackbox::{Host, LabOptions, eventually, with_lab};
use ferro_protocol::api::{ChangedHost, HealthLevel, HostInfo, HostState};
use ferro_transport::UnixTime;
use ferro_transport::identity::{CaFingerprint, IdentityDir, IdentityHandle};
use ferro_transport::tls::{self, Channel};
use ferro_transport::token::{JoinToken, TokenSecret};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions};

fn peer_address(host: &Host) -> SocketAddr {
    (host.address(), PEER_PORT).into()
}

/// A host that could not join is as it was.
fn is_alone(host: &Host) -> Result<()> {
    let status = host.status()?;
    ensure!(
        status.cluster.is_none() && status.hosts.is_empty(),
        "{} is in a cluster: {status:?}",
        host.name()
    );
    let left: Vec<_> = fs::read_dir(host.state_dir())?.flatten().map(|e| e.file_name()).collect();
    ensure!(!left.iter().any(|name| name == "directory"), "{} has a directory: {left:?}", host.name());
    host.ctl_refused(&["volume", "list"], "not_in_cluster", 6).map(drop)
}

/// Private keys are the owner's alone, and nobody else may write anything.
fn files_are_private(dir: &Path) -> Result<()> {
    let mut keys = 0;
    for entry in fs::read_dir(dir)?.flatten() {
        let mode = entry.metadata()?.permissions().mode() & 0o777;
        let is_key = fs::read_to_string(entry.path()).is_ok_and(|text| text.contains("PRIVATE KEY"));
        keys += u32::from(is_key);
        ensure!(
            mode & 0o022 == 0 && (!is_key || matches!(mode, 0o400 | 0o600)),
            "{} has mode {mode:o}",
            entry.path().display()
        );
    }
    ensure!(keys > 0, "no key in {}", dir.display());
    Ok(())
}

#[test]
fn hosts_join_and_strangers_are_kept_out() {
    with_hosts(LabOptions { hosts: 4, ..LabOptions::default() }, |lab| {
        for host in lab.hosts() {
            host.start()?;
        }
        let (first, second, third, stranger) = (lab.host(1), lab.host(2), lab.host(3), lab.host(4));
        is_alone(first)?;
        first.ctl_ok(&["cluster", "bootstrap"])?;
        first.ctl_refused(&["cluster", "bootstrap"], "already_in_cluster", 4)?;

        let token = first.token()?;
        second.ctl_ok(&["cluster", "join", &token])?;
        second.ctl_refused(&["cluster", "join", &token], "already_in_cluster", 4)?;
        let refused = |what: &str, token: &str| {
            third.ctl_refused(&["cluster", "join", token], "token_refused", 5).context(what.to_owned())?;
            is_alone(third).context(what.to_owned())
        };
        refused("a token that was used", &token)?;
        let brief =
            first.ctl::<ferro_protocol::api::TokenInfo>(&["cluster", "token", "--valid", "1s"])?.token.0;
        std::thread::sleep(Duration::from_millis(2_100));
        refused("a token that has expired", &brief)?;
        let good = first.token()?;
        let parsed = JoinToken::parse(&good)?;
        let forged = |secret, ca| {
            let addresses = parsed.addresses().to_vec();
            JoinToken::new(parsed.cluster(), parsed.id(), secret, ca, parsed.expires(), addresses)
                .map(|t| t.to_string())
        };
        refused("a forged secret", &forged(TokenSecret::from_bytes([7; 32]), parsed.ca())?)?;
        let wrong_ca = forged(parsed.secret().clone(), CaFingerprint([7; 32]))?;
        let refusal = third.ctl_refused(&["cluster", "join", &wrong_ca], "token_refused", 5)?;
        ensure!(refusal.message.contains("not the one that the token is of"), "{refusal:?}");
        is_alone(third)?;
        refused("a token that was cut", &good[..good.len() - 9])?;
        refused("no token at all", "hello")?;
        third
            .ctl_ok(&["cluster", "join", &good])
            .context("what was refused must not have spent the good token")?;

        eventually("all three are online and vote", Duration::from_secs(60), || {
            let status = second.status()?;
            let cluster = status.cluster.context("no cluster")?;
            ensure!(cluster.quorum && cluster.voters == 3 && cluster.hosts == 3, "{cluster:?}");
            ensure!(status.hosts.iter().all(|h| h.state == HostState::Online), "{:?}", status.hosts);
            ensure!(
                status.hosts.iter().all(|h| h.certificate_expires_unix_s.is_some()),
                "{:?}",
                status.hosts
            );
            Ok(())
        })?;
        for host in [first, second, third] {
            files_are_private(&host.state_dir().join("identity"))?;
            ensure!(!host.log()?.contains(&good[8..40]), "{} logged a token", host.name());
        }

        plaintext_is_refused(first, stranger)?;
        another_cluster_is_refused(first, stranger)
    });
}

fn plaintext_is_refused(first: &Host, stranger: &Host) -> Result<()> {
    let address = peer_address(first);
    stranger.within(|| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => bail!("the daemon does not hang up: {error}"),
        }
        // A TLS alert is all that may come back.
        ensure!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "it answered {answer:?}");
        Ok(())
    })?;
    first.logs(&["refused a connection", &stranger.address().to_string()])
}

/// A host of another cluster has a certificate, only of the wrong CA.
fn another_cluster_is_refused(first: &Host, stranger: &Host) -> Result<()> {
    stranger.ctl_ok(&["cluster", "bootstrap"])?;
    let identity = IdentityDir::new(stranger.state_dir().join("identity")).load(UnixTime::now())?;
    let identity = IdentityHandle::new(identity)?;
    let before = first.log()?.matches("refused a connection").count();
    let address = peer_address(first);
    for channel in [Channel::Data, Channel::Control] {
        stranger.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let outcome = runtime.block_on(tls::connect(address, Some(identity.host()), channel, &identity));
            ensure!(outcome.is_err(), "a certificate of another CA was accepted");
            Ok(())
        })?;
    }
    let after = first.log()?.matches("refused a connection").count();
    ensure!(after > before, "nothing was logged of a certificate of another CA");
    Ok(())
}

#[test]
fn a_configuration_that_is_wrong_is_refused() {
    with_hosts(LabOptions { hosts: 1, ..LabOptions::default() }, |lab| {
        let host = lab.host(1);
        let good = fs::read_to_string(host.config())?;
        for (text, word) in [
            (format!("{good}repair_delay = 5\n"), "repair_delay"),
            (format!("{good}[storage]\nx = 1\n"), "storage"),
            (good.replace("listen = \"10.77.0.1:7400\"", "listen = \"0.0.0.0:7400\""), "advertise"),
            (good.replace("listen", "lissen"), "lissen"),
            ("listen = ".to_owned(), "vsand.toml"),
        ] {
            fs::write(host.config(), &text)?;
            host.spawn()?;
            let status = eventually("it ends", Duration::from_secs(20), || host.end().context("it runs"))?;
            ensure!(status.code() == Some(1), "{text}: it ended with {status}");
            let log = host.log()?;
            let last = log.lines().last().unwrap_or_default();
            ensure!(log.contains(word) && log.contains("vsand.toml"), "{text}: it only says {last}");
            host.kill9_if_running();
            fs::write(lab.log("host1"), "")?;
        }
        fs::write(host.config(), good)?;
        host.start()
    });
}

#[test]
fn what_is_asked_wrongly_is_refused_with_the_next_step() {
    with_lab(LabOptions::default(), |lab| {
        let (host, other) = (lab.host(1), lab.host(2));
        let before = host.status()?;
        host.ctl_refused(&["disk", "add", "/nowhere/at/all"], "disk_not_found", 3)?;
        let small = host.disks_dir().join("small");
        fs::create_dir_all(&small)?;
        let small = small.display().to_string();
        host.ctl_refused(&["disk", "add", &small, "--size", "16M"], "disk_too_small", 5)?;
        ensure!(fs::read_dir(&small)?.next().is_none(), "a refused disk left files behind");
        host.ctl_refused(
            &["disk", "add", &host.disks_dir().join("a").display().to_string()],
            "disk_in_use",
            4,
        )?;
        fs::write(Path::new(&small).join("letter"), "mine")?;
        let refused = host.ctl_refused(&["disk", "add", &small, "--size", "1G"], "bad_path", 2)?;
        ensure!(refused.message.contains(&small), "{refused:?}");
        ensure!(
            fs::read_to_string(Path::new(&small).join("letter"))? == "mine",
            "a refused folder was touched"
        );

        // A device that holds a file system: its name must be typed back.
        let disk = lab.loop_disk(host, "full", 2 << 30)?;
        fs::write(disk.mount().join("letter"), "mine")?;
        let refusal = host.ctl(&["disk", "add", disk.device()]).map(|_: serde_json::Value| ());
        ensure!(refusal.is_err(), "a device with a file system was taken");
        let device = LoopDevice::make(&host.disks_dir().join("device.img"), 2 << 30)?;
        run("mkfs.ext4", &["-q", device.path()])?;
        let refusal = host.ctl_refused(&["disk", "add", device.path()], "disk_not_empty", 4)?;
        ensure!(refusal.next_step.contains("--confirm") && refusal.message.contains("ext4"), "{refusal:?}");
        host.ctl_refused(&["disk", "add", device.path(), "--confirm", "sda"], "disk_not_empty", 4)?;
        let kept = run("blkid", &["-o", "value", "-s", "TYPE", device.path()])?;
        ensure!(kept.trim() == "ext4", "a refused device was touched");

        host.create("one", "64M", "mirror:2")?;
        host.ctl_refused(
            &["volume", "create", "one", "--size", "64M", "--policy", "mirror:2"],
            "name_taken",
            4,
        )?;
        other.ctl_refused(
            &["volume", "create", "one", "--size", "1G", "--policy", "mirror:1"],
            "name_taken",
            4,
        )?;
        host.ctl_usage(&["volume", "create", "zero", "--size", "0", "--policy", "mirror:2"])?;
        host.ctl_usage(&["volume", "create", "Bad Name", "--size", "1G", "--policy", "mirror:2"])?;
        host.ctl_usage(&["volume", "create", "five", "--size", "1G", "--policy", "mirror:5"])?;
        host.ctl_refused(
            &["volume", "create", "huge", "--size", "65T", "--policy", "mirror:1"],
            "bad_size",
            2,
        )?;
        host.ctl_refused(
            &["volume", "create", "odd", "--size", "4097", "--policy", "mirror:1"],
            "bad_size",
            2,
        )?;
        host.ctl_refused(&["volume", "resize", "one", "--size", "32M"], "shrink_refused", 5)?;
        host.ctl_refused(&["volume", "open", "none"], "volume_not_found", 3)?;
        host.ctl_refused(&["volume", "close", "one"], "volume_not_open", 4)?;
        host.ctl_refused(&["host", "remove", "nobody", "--yes"], "host_not_found", 3)?;
        for verb in ["show", "remove", "revive"] {
            host.ctl_refused(&["--yes", "disk", verb, "00000000-no-such"], "disk_not_found", 3)?;
        }
        host.ctl_refused(&["volume", "resize", "one", "--size", "65T"], "bad_size", 2)?;
        host.ctl_refused(&["volume", "export", "one", "/nowhere/at/all/x.raw"], "file", 3)?;
        host.open("one")?;
        other.ctl_refused(&["volume", "open", "one"], "object_in_use", 4)?;
        other.ctl_refused(&["--yes", "volume", "delete", "one"], "object_in_use", 4)?;
        other.ctl_refused(
            &["volume", "export", "one", &lab.dir().join("x.raw").display().to_string()],
            "object_in_use",
            4,
        )?;
        ensure!(!lab.dir().join("x.raw").exists(), "a refused export left a file behind");

        let after = host.status()?;
        ensure!(after.capacity.disks == before.capacity.disks, "{:?}", after.capacity);
        let names: Vec<_> = after.volumes.iter().map(|v| v.name.to_string()).collect();
        ensure!(names == ["one"], "{names:?}");
        quorum_is_lost(host, lab.hosts())
    });
}

fn quorum_is_lost(host: &Host, all: &[Host]) -> Result<()> {
    for other in &all[1..] {
        other.kill9()?;
    }
    eventually("the loss of the quorum is seen", Duration::from_secs(30), || {
        let status = host.status()?;
        let quorum = status.cluster.as_ref().is_some_and(|c| c.quorum);
        ensure!(!quorum && status.health.level == HealthLevel::Critical, "{:?}", status.health);
        ensure!(status.health.reasons.iter().any(|r| r.code == "no_quorum"), "{:?}", status.health);
        Ok(())
    })?;
    let create = ["volume", "create", "two", "--size", "64M", "--policy", "mirror:1"];
    let refusal = host.ctl_refused(&create, "no_quorum", 6)?;
    ensure!(refusal.next_step.contains("voters"), "{refusal:?}");
    for other in &all[1..] {
        other.start()?;
    }
    eventually("the quorum is back", Duration::from_secs(60), || {
        let status = host.status()?;
        ensure!(status.cluster.as_ref().is_some_and(|c| c.quorum), "{:?}", status.health);
        ensure!(!status.volumes.iter().any(|v| v.name.as_str() == "two"), "what was refused has happened");
        Ok(())
    })?;
    host.create("two", "64M", "mirror:3").context("the same again, with a quorum")
}

#[test]
fn one_host_alone_works_and_says_when_it_is_full() {
    with_hosts(LabOptions { hosts: 1, disk: "1G", ..LabOptions::default() }, |lab| {
        lab.form()?;
        let host = lab.host(1);
        host.ctl_refused(
            &["volume", "create", "two", "--size", "1G", "--policy", "mirror:2"],
            "policy_unsatisfiable",
            5,
        )?;
        let image = lab.dir().join("image.raw");
        let (count, size) = ("count=780", "780M");
        run("dd", &["if=/dev/urandom", &format!("of={}", image.display()), "bs=1M", count, "status=none"])?;
        let path = image.display().to_string();
        host.create("filler", size, "mirror:1")?;
        host.ctl_refused(&["volume", "resize", "filler", "--size", "512M"], "shrink_refused", 5)?;
        host.ctl_ok(&["volume", "import", "filler", &path])?;
        let status = host.status()?;
        let percent = status.capacity.used_bytes * 100 / status.capacity.total_bytes;
        ensure!(percent > 80, "the disk is only {percent} % full");
        eventually("the disk is said to be nearly full", Duration::from_secs(30), || {
            let health = host.status()?.health;
            ensure!(health.level == HealthLevel::Warning, "{health:?}");
            Ok(())
        })?;
        host.create("more", size, "mirror:1")?;
        let refusal = host.ctl_refused(&["volume", "import", "more", &path], "cluster_full", 5)?;
        ensure!(refusal.next_step.contains("disk add"), "{refusal:?}");
        host.ctl_refused(&["volume", "open", "more"], "volume_incomplete", 4)?;
        host.ctl_ok(&["--yes", "volume", "delete", "more"])?;
        let out = lab.dir().join("out.raw");
        host.ctl_ok(&["volume", "export", "filler", &out.display().to_string()])?;
        run("cmp", &[&path, &out.display().to_string()])?;
        for _ in 0..8 {
            host.term().context("told to stop, it ends well")?;
            host.start()?;
        }
        host.ctl_ok(&["--yes", "volume", "delete", "filler"])?;
        lab.wait_healthy(Duration::from_secs(40)).context("the space of deleted volumes comes back")
    });
}

fn shown(watcher: &Host, name: &str) -> Result<HostInfo> {
    watcher.ctl(&["host", "show", name])
}

#[test]
fn a_host_is_renamed_and_moved_to_another_fault_domain() {
    with_lab(LabOptions::default(), |lab| {
        let (first, second, third) = (lab.host(1), lab.host(2), lab.host(3));
        first.create("data", "64M", "mirror:3")?;
        let mut client = BlkClient::connect(&first.open("data")?, ClientOptions::default())?;
        client.write(Sector(0), &[7; 4096])?;

        first.ctl_refused(&["host", "set", "host2", "--name", "host3"], "name_taken", 4)?;
        first.ctl_refused(&["host", "set", "host2", "--fault-domain", "rack 1"], "bad_name", 2)?;
        first.ctl_usage(&["host", "set", "host2"])?;
        // A host that is away is changed too, and does not undo it when it is back.
        second.kill9()?;
        let set = ["host", "set", "host2", "--name", "beta", "--fault-domain", "rack-1"];
        let changed: ChangedHost = first.ctl(&set)?;
        ensure!(changed.host.name == "beta" && changed.sharing_volumes.is_empty(), "{changed:?}");
        second.start()?;
        eventually("it follows the directory", Duration::from_secs(30), || {
            let stored = fs::read_to_string(second.state_dir().join("member.json"))?;
            ensure!(stored.contains("\"beta\"") && stored.contains("\"rack-1\""), "{stored}");
            let info = shown(first, "beta")?;
            ensure!(info.state == HostState::Online && info.fault_domain == "rack-1", "{info:?}");
            Ok(())
        })?;
        lab.wait_healthy(Duration::from_secs(60))?;

        // Two copies in one rack: said at once, and as long as it is so.
        let changed: ChangedHost = third.ctl(&["host", "set", "host3", "--fault-domain", "rack-1"])?;
        ensure!(changed.sharing_volumes == ["data".parse()?], "{changed:?}");
        let health = first.status()?.health;
        let said =
            health.reasons.iter().find(|r| r.code == "copies_share_fault_domain").context("not said")?;
        ensure!(said.message.contains("rack-1") && said.message.contains("data"), "{said:?}");
        let three = ["volume", "create", "more", "--size", "64M", "--policy", "mirror:3"];
        first.ctl_refused(&three, "policy_unsatisfiable", 5)?;
        for host in [second, third] {
            host.kill9()?;
            host.start()?;
        }
        eventually("it is the same after a restart", Duration::from_secs(30), || {
            for name in ["beta", "host3"] {
                let info = shown(first, name)?;
                ensure!(info.state == HostState::Online && info.fault_domain == "rack-1", "{info:?}");
            }
            Ok(())
        })?;
        let changed: ChangedHost = first.ctl(&["host", "set", "host3", "--fault-domain", "rack-3"])?;
        ensure!(changed.sharing_volumes.is_empty(), "{changed:?}");
        lab.wait_healthy(Duration::from_secs(60))?;
        first.ctl_ok(&three)?;
        let mut read = [0; 4096];
        client.read(Sector(0), &mut read)?;
        ensure!(read == [7; 4096], "the data has changed");
        drop(client);
        first.ctl_ok(&["volume", "close", "data"])
    });
}
