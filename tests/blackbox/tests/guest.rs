//! A Linux guest under QEMU while hosts die and the owner's daemon restarts: `fio --verify` on a mirror, and a file system with a
//! database on RAID-6.

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

/// Rows of a transaction.
const ROWS: u32 = 20;
/// What a command in an emulated guest may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// Commits transactions one after the other, each of them on the disk before the next begins; prints how many there were.
fn transactions() -> String {
    let rows = format!("WITH RECURSIVE k(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM k WHERE i < {ROWS})");
    format!(
        "sqlite3 /mnt/db 'CREATE TABLE t(n INTEGER PRIMARY KEY, body BLOB)' || exit 1
         end=$(($(date +%s) + {RUN_S})) n=0
         while [ $(date +%s) -lt $end ]; do
             sqlite3 -bail /mnt/db \"PRAGMA synchronous=FULL; BEGIN; {rows} INSERT INTO t SELECT $n * {ROWS} + i, randomblob(3000) FROM k;
                 UPDATE t SET body = randomblob(2000) WHERE n % 7 = $n % 7 AND n > $n * {ROWS} - 300; COMMIT\" || exit 1
             n=$((n + 1))
         done
         echo $n"
    )
}

/// The database's own judgement, and how many rows it has.
fn judge(vm: &mut Vm) -> Result<String> {
    vm.run("sqlite3 /mnt/db 'PRAGMA integrity_check; SELECT count(*) FROM t'", COMMAND_MAX)
}

#[test]
fn a_database_on_raid6_is_whole_after_hosts_have_died() {
    with_lab(LabOptions { hosts: 6, ..LabOptions::default() }, |lab| {
        let (owner, next, dead) = (lab.host(1), lab.host(2), [lab.host(4), lab.host(5)]);
        owner.create("root", "1G", "raid6")?;
        let mut vm = Vm::boot(lab, "vm", &owner.open("root")?)?;
        let format = "/usr/bin/mke2fs -q -t ext4 /dev/vda && mkdir -p /mnt && mount -t ext4 /dev/vda /mnt";
        vm.run(format, COMMAND_MAX).context("a file system")?;

        let writing = vm.begin(&transactions())?;
        std::thread::sleep(Duration::from_secs(6));
        dead.iter().try_for_each(|host| host.kill9())?;
        std::thread::sleep(Duration::from_secs(8));
        dead.iter().try_for_each(|host| host.start())?;
        std::thread::sleep(Duration::from_secs(4));
        ensure!(!vm.has_ended(&writing), "it ended before the owner's restart");
        owner.kill9()?;
        std::thread::sleep(Duration::from_secs(1));
        owner.start()?;
        let (status, said) = vm.result(&writing, Duration::from_secs(u64::from(RUN_S) + 90))?;
        ensure!(status == 0, "the writer ended with status {status}: {said}");
        let count: u32 = said.trim().parse().with_context(|| format!("how many transactions: {said:?}"))?;
        println!("{count} transactions");
        ensure!(count >= 10, "only {count} transactions");
        let whole = format!("ok\n{}", count * ROWS);
        ensure!(judge(&mut vm)? == whole, "the database is not whole");
        vm.run("umount /mnt && /usr/bin/e2fsck -fn /dev/vda", COMMAND_MAX)
            .context("the file system is whole")?;
        drop(vm);
        lab.wait_healthy(Duration::from_secs(60))?;

        // And on another host, read through its shards and its log.
        owner.ctl_ok(&["volume", "close", "root"])?;
        let mut vm = Vm::boot(lab, "again", &next.open("root")?)?;
        vm.run("mkdir -p /mnt && mount -t ext4 /dev/vda /mnt", COMMAND_MAX)?;
        ensure!(judge(&mut vm)? == whole, "the database is not whole on another host");
        Ok(())
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
