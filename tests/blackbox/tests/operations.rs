//! What operators do: images in and out, disks that move, hosts that leave, a disk that grows under its client.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::disk::{LoopDevice, unmount_all};
use ferro_blackbox::process::run;
use ferro_blackbox::{Lab, LabOptions, eventually, with_lab};
use ferro_protocol::api::{AddedDisk, Redundancy};
use ferro_vhost::blk::Sector;
use ferro_vhost::frontend::{BlkClient, ClientOptions};

const SETTLE_MAX: Duration = Duration::from_secs(60);

/// An image with data, holes and an odd end.
fn image(lab: &Lab, name: &str) -> Result<String> {
    let path = lab.dir().join(name);
    let text = path.display().to_string();
    run("dd", &["if=/dev/urandom", &format!("of={text}"), "bs=1M", "count=24", "status=none"])?;
    run("dd", &["if=/dev/urandom", &format!("of={text}"), "bs=1M", "count=8", "seek=100", "status=none"])?;
    fs::OpenOptions::new().write(true).open(&path)?.set_len((160 << 20) + (12 << 10))?;
    Ok(text)
}

#[test]
fn images_come_out_as_they_went_in() {
    with_lab(LabOptions::default(), |lab| {
        let host = lab.host(1);
        let raw = image(lab, "in.raw")?;
        let qcow2 = lab.dir().join("in.qcow2").display().to_string();
        run("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-c", &raw, &qcow2])?;
        for (name, from, to) in [("a", &raw, "a.qcow2"), ("b", &qcow2, "b.raw")] {
            host.ctl_ok(&["volume", "import", name, from, "--create", "--policy", "mirror:3"])?;
            let out = lab.dir().join(to).display().to_string();
            // From another host, which reads another copy.
            lab.host(2).ctl_ok(&["volume", "export", name, &out])?;
            run("qemu-img", &["compare", &raw, &out])?;
            let info = host.volume(name)?;
            ensure!(!info.incomplete && info.owner.is_none(), "{info:?}");
            let used = info.used_bytes.context("unknown")?;
            ensure!(used < 64 << 20, "32 MiB of data take {used} bytes of each copy: it is not thin");
        }
        let socket = host.open("a")?;
        host.ctl_refused(&["--yes", "volume", "import", "a", &raw], "object_in_use", 4)?;
        let mut client = BlkClient::connect(&socket, ClientOptions::default())?;
        let mut first = vec![0; 1 << 20];
        client.read(Sector(0), &mut first)?;
        ensure!(first == fs::read(&raw)?[..1 << 20], "a client reads something else");
        host.ctl_ok(&["volume", "resize", "a", "--size", "1G"])?;
        eventually("the client sees the new size", Duration::from_secs(10), || {
            let capacity = client.capacity()?;
            ensure!(capacity == Sector((1 << 30) / 512), "{capacity:?}");
            Ok(())
        })?;
        client.write(Sector((1 << 30) / 512 - 8), &[5; 4096])?;
        host.ctl_ok(&["volume", "close", "a"])?;
        ensure!(!socket.exists(), "the socket of a closed volume is there");
        host.ctl_ok(&["--yes", "volume", "delete", "a"])?;
        host.ctl_refused(&["volume", "show", "a"], "volume_not_found", 3)?;
        Ok(())
    });
}

#[test]
fn a_disk_moves_and_a_host_leaves() {
    with_lab(LabOptions::default(), |lab| {
        let (stays, gets, leaves) = (lab.host(1), lab.host(2), lab.host(3));
        let raw = image(lab, "in.raw")?;
        leaves.ctl_ok(&["volume", "import", "only", &raw, "--create", "--policy", "mirror:1"])?;
        stays.ctl_ok(&["volume", "import", "three", &raw, "--create", "--policy", "mirror:3"])?;
        let only = stays.hosts_of("only")?;
        ensure!(only == ["host3"], "one copy, where it was made: {only:?}");

        stays.ctl_refused(&["--yes", "host", "remove", "host3"], "policy_unsatisfiable", 5)?;
        let force = ["--yes", "host", "remove", "host3", "--force"];
        let refusal = stays.ctl_refused(&force, "would_lose_data", 5)?;
        ensure!(refusal.message.contains("only"), "it does not say what would be lost: {refusal:?}");
        ensure!(stays.status()?.hosts.len() == 3, "a refused removal has happened");

        // Its disk, moved to another host, is known there and brings its data.
        leaves.term()?;
        let moved = gets.disks_dir().join("moved");
        fs::rename(leaves.disks_dir().join("a"), &moved)?;
        let added: AddedDisk = gets.ctl(&["disk", "add", &moved.display().to_string()])?;
        ensure!(added.adopted && added.disk.host_name == "host2", "{added:?}");
        eventually("the moved disk serves its volume", SETTLE_MAX, || {
            ensure!(stays.hosts_of("only")? == ["host2"], "{:?}", stays.hosts_of("only")?);
            let info = stays.volume("only")?;
            ensure!(info.redundancy == Redundancy::Healthy, "{info:?}");
            Ok(())
        })?;
        let out = lab.dir().join("out.raw").display().to_string();
        stays.ctl_ok(&["volume", "export", "only", &out])?;
        run("cmp", &[&raw, &out])?;

        // The host that has nothing left goes; when it comes back it is told, and does no harm.
        stays.ctl_ok(&["--yes", "host", "remove", "host3"])?;
        ensure!(stays.status()?.hosts.len() == 2, "it is still there");
        leaves.start()?;
        eventually("the removed host knows", Duration::from_secs(30), || {
            leaves
                .ctl_refused(
                    &["volume", "create", "x", "--size", "64M", "--policy", "mirror:1"],
                    "not_in_cluster",
                    6,
                )
                .map(drop)
        })?;
        ensure!(stays.status()?.hosts.len() == 2, "it is back");
        let again = lab.dir().join("again.raw").display().to_string();
        stays.ctl_ok(&["volume", "export", "three", &again])?;
        run("cmp", &[&raw, &again])?;
        Ok(())
    });
}

#[test]
fn a_device_becomes_a_disk_and_is_there_after_a_restart() {
    with_lab(LabOptions { hosts: 1, ..LabOptions::default() }, |lab| {
        let host = lab.host(1);
        let device = LoopDevice::make(&host.disks_dir().join("device.img"), 3 << 30)?;
        run("mkfs.ext4", &["-q", device.path()])?;
        let added: AddedDisk = host.ctl(&["disk", "add", device.path(), "--confirm", device.name()])?;
        ensure!(!added.adopted && added.disk.capacity_bytes > 1 << 30, "{added:?}");
        // The trial disk goes; what is written lies on the device.
        let trial = host.disks_dir().join("a").display().to_string();
        host.ctl_ok(&["--yes", "disk", "remove", &trial])?;
        let raw = image(lab, "in.raw")?;
        host.ctl_ok(&["volume", "import", "data", &raw, "--create", "--policy", "mirror:1"])?;
        host.kill9()?;
        unmount_all(&host.state_dir());
        host.start()?;
        lab.wait_healthy(SETTLE_MAX)?;
        let out = lab.dir().join("out.raw").display().to_string();
        host.ctl_ok(&["volume", "export", "data", &out])?;
        run("cmp", &[&raw, &out])?;
        let id = added.disk.id.to_string();
        host.ctl_refused(&["--yes", "disk", "remove", &id], "policy_unsatisfiable", 5)?;
        let refusal = host.ctl_refused(&["--yes", "disk", "remove", &id, "--force"], "would_lose_data", 5)?;
        ensure!(refusal.message.contains("data"), "{refusal:?}");
        Ok(())
    });
}
