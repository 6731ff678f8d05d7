//! A Linux guest under QEMU, with `fio --verify` throughout, while a replica's host dies and the owner's daemon restarts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferro_blackbox::vm::Vm;
use ferro_blackbox::{LabOptions, with_lab};
use serde_json::Value;

const RUN_S: u32 = 30;

fn fio() -> String {
    let common = "--filename=/dev/vda --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --size=16M \
        --verify=crc32c --verify_fatal=1 --verify_backlog=256 --time_based";
    format!(
        "fio {common} --runtime={RUN_S} --output-format=json --output=/run/fio.json \
         --name=blocks --bs=4k --name=sectors --offset=64M --bs=512 --name=large --offset=128M --bs=64k >/run/fio.err 2>&1; \
         status=$?; cat /run/fio.err; exit $status"
    )
}

#[test]
fn fio_verifies_while_hosts_die_and_restart() {
    with_lab(LabOptions::default(), |lab| {
        let (owner, replica) = (lab.host(1), lab.host(3));
        owner.create("root", "1G", "mirror:3")?;
        let socket = owner.open("root")?;
        let mut vm = Vm::boot(lab, "vm", &socket)?;
        let size = "blockdev --getsize64 /dev/vda";
        ensure!(vm.run(size, Duration::from_secs(20))? == (1_u64 << 30).to_string(), "the guest's disk");

        let fio = vm.begin(&fio())?;
        std::thread::sleep(Duration::from_secs(6));
        replica.kill9()?;
        std::thread::sleep(Duration::from_secs(6));
        replica.start()?;
        std::thread::sleep(Duration::from_secs(4));
        ensure!(
            !vm.has_ended(&fio),
            "fio ended before the owner's restart: {:?}",
            vm.result(&fio, Duration::ZERO)
        );
        owner.kill9()?;
        std::thread::sleep(Duration::from_secs(1));
        owner.start()?;
        let (status, said) = vm.result(&fio, Duration::from_secs(u64::from(RUN_S) + 90))?;
        ensure!(status == 0, "fio ended with status {status}: {said}");
        check(&vm.run("cat /run/fio.json", Duration::from_secs(30))?)?;
        let errors = vm.run(
            "dmesg | grep -iE 'i/o error|blocked for more|vda.*error' || true",
            Duration::from_secs(30),
        )?;
        ensure!(errors.is_empty(), "the guest's kernel saw errors: {errors}");

        owner.ctl_ok(&["volume", "resize", "root", "--size", "1536M"])?;
        ferro_blackbox::eventually("the guest sees the new size", Duration::from_secs(15), || {
            let seen = vm.run(size, Duration::from_secs(20))?;
            ensure!(seen == (1536_u64 << 20).to_string(), "it sees {seen}");
            Ok(())
        })?;
        let end = "dd if=/dev/urandom of=/run/x bs=1M count=4 2>/dev/null && dd if=/run/x of=/dev/vda bs=1M seek=1532 oflag=direct \
            2>/dev/null && dd if=/dev/vda bs=1M skip=1532 iflag=direct 2>/dev/null | cmp - /run/x";
        vm.run(end, Duration::from_secs(60)).context("the new part of the disk")?;
        lab.wait_healthy(Duration::from_secs(60))
    });
}

/// fio's own account of the run.
fn check(report: &str) -> Result<()> {
    let begin = report.find('{').context("fio printed no JSON")?;
    let report: Value = serde_json::from_str(&report[begin..])?;
    let jobs = report["jobs"].as_array().context("no jobs")?;
    ensure!(jobs.len() == 3, "{} jobs", jobs.len());
    for job in jobs {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        let (writes, reads) = (number(&job["write"]["total_ios"]), number(&job["read"]["total_ios"]));
        let errors = number(&job["error"]) + number(&job["total_err"]);
        let longest_ms = number(&job["write"]["clat_ns"]["max"]) / 1_000_000;
        println!(
            "fio {}: {writes} writes, {reads} reads verified, {errors} errors, longest write {longest_ms} ms",
            job["jobname"]
        );
        ensure!(errors == 0 && writes > 0 && reads > 0, "{job}");
    }
    Ok(())
}
