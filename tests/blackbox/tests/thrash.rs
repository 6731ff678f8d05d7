//! Random faults, one after the other and some at once, from a seed. By hand, longer:
//! `FERRO_THRASH_SECONDS=600 FERRO_THRASH_SEED=7 cargo test -p ferro-blackbox --release --test thrash -- --nocapture`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::disk::LoopDisk;
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, LabOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SECONDS_DEFAULT: u64 = 35;
/// With at most one host in trouble I/O goes on; when it is the owner's, after its restart.
const PROGRESS_MAX: Duration = Duration::from_secs(45);

fn number(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("{name}={text}")))
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Term,
    Stop,
    Cable,
    In,
    Out,
    Pair,
    Freeze,
}

impl Fault {
    const ALL: [Self; 8] =
        [Self::Kill, Self::Term, Self::Stop, Self::Cable, Self::In, Self::Out, Self::Pair, Self::Freeze];

    fn begin(self, host: &Host, other: &Host, disk: &LoopDisk) -> Result<()> {
        match self {
            Self::Kill => host.kill9(),
            Self::Term => host.term(),
            Self::Stop => host.stop(),
            Self::Cable => host.cut_cable(),
            Self::In => host.cut_in(),
            Self::Out => host.cut_out(),
            Self::Pair => host.cut_to(other),
            Self::Freeze => disk.freeze(),
        }
    }

    fn end(self, host: &Host, disk: &LoopDisk) -> Result<()> {
        match self {
            Self::Kill | Self::Term => host.start(),
            Self::Stop => host.cont(),
            Self::Cable | Self::In | Self::Out | Self::Pair => host.mend(),
            Self::Freeze => disk.thaw(),
        }
    }
}

#[test]
fn random_faults_lose_nothing() {
    with_hosts(LabOptions::default(), |lab| {
        lab.form_without_disks()?;
        let mut disks = Vec::new();
        for host in lab.hosts() {
            let disk = lab.loop_disk(host, "xfs", 3 << 30)?;
            host.add_disk(disk.mount(), "2G")?;
            disks.push(disk);
        }
        lab.wait_healthy(Duration::from_secs(60))?;
        let seconds = number("FERRO_THRASH_SECONDS", SECONDS_DEFAULT)?;
        let seed = number("FERRO_THRASH_SEED", StdRng::from_os_rng().random_range(0..1_000_000))?;
        println!("FERRO_THRASH_SEED={seed}");
        let mut dice = StdRng::seed_from_u64(seed);
        let owner = lab.host(2);
        owner.create("data", "2G", "mirror:3")?;
        let mut load = Workload::start(&owner.open("data")?, Checker::new(), WorkloadOptions::new(seed))?;
        let (began, mut faults) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(seconds) {
            let at = dice.random_range(0..lab.hosts().len());
            let (host, disk) = (&lab.hosts()[at], &disks[at]);
            let other = &lab.hosts()[(at + dice.random_range(1..lab.hosts().len())) % lab.hosts().len()];
            let fault = Fault::ALL[dice.random_range(0..Fault::ALL.len())];
            let lasts = Duration::from_millis(dice.random_range(50..4_000));
            let now = began.elapsed().as_secs_f64();
            println!("{now:6.1} s: {fault:?} of {} for {lasts:?}", host.name());
            fault.begin(host, other, disk)?;
            std::thread::sleep(lasts);
            // Sometimes everything loses power in the middle of it.
            let blackout = dice.random_range(0..10) == 0;
            if blackout {
                println!("          and all of them lose power");
                // A process that waits for a frozen disk does not die.
                if matches!(fault, Fault::Freeze) {
                    fault.end(host, disk)?;
                }
                lab.hosts().iter().for_each(Host::kill9_if_running);
                for host in lab.hosts() {
                    host.start()?;
                }
            }
            if !blackout || matches!(fault, Fault::Cable | Fault::In | Fault::Out | Fault::Pair) {
                fault.end(host, disk)?;
            }
            // The next one comes when the last is hardly over.
            load.progress(dice.random_range(1..200), PROGRESS_MAX)
                .with_context(|| format!("after {fault:?}"))?;
            faults += 1;
        }
        lab.wait_healthy(Duration::from_secs(90))?;
        let mut checker = load.finish()?;
        owner.ctl_ok(&["volume", "close", "data"])?;
        for host in lab.hosts() {
            checker = Workload::start(&host.open("data")?, checker, WorkloadOptions::new(1))?.finish()?;
            host.ctl_ok(&["volume", "close", "data"])?;
        }
        println!("{faults} faults, {} writes, every copy is right", checker.writes());
        Ok(())
    });
}
