//! Random faults, one after the other and some at once, from a seed. By hand, longer:
//! `FERRO_THRASH_SECONDS=600 FERRO_THRASH_SEED=7 cargo test -p ferro-blackbox --release --test thrash -- --nocapture`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, LabOptions, with_lab};
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
}

impl Fault {
    const ALL: [Self; 7] = [Self::Kill, Self::Term, Self::Stop, Self::Cable, Self::In, Self::Out, Self::Pair];

    fn begin(self, host: &Host, other: &Host) -> Result<()> {
        match self {
            Self::Kill => host.kill9(),
            Self::Term => host.term(),
            Self::Stop => host.stop(),
            Self::Cable => host.cut_cable(),
            Self::In => host.cut_in(),
            Self::Out => host.cut_out(),
            Self::Pair => host.cut_to(other),
        }
    }

    fn end(self, host: &Host) -> Result<()> {
        match self {
            Self::Kill | Self::Term => host.start(),
            Self::Stop => host.cont(),
            Self::Cable | Self::In | Self::Out | Self::Pair => host.mend(),
        }
    }
}

#[test]
fn random_faults_lose_nothing() {
    with_lab(LabOptions::default(), |lab| {
        let seconds = number("FERRO_THRASH_SECONDS", SECONDS_DEFAULT)?;
        let seed = number("FERRO_THRASH_SEED", StdRng::from_os_rng().random_range(0..1_000_000))?;
        println!("FERRO_THRASH_SEED={seed}");
        let mut dice = StdRng::seed_from_u64(seed);
        let owner = lab.host(2);
        owner.create("data", "2G", "mirror:3")?;
        let mut load = Workload::start(&owner.open("data")?, Checker::new(), WorkloadOptions::new(seed))?;
        let (began, mut faults) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(seconds) {
            let host = lab.host(dice.random_range(1..=3));
            let other = lab.hosts().iter().filter(|h| h.name() != host.name()).nth(dice.random_range(0..2));
            let fault = Fault::ALL[dice.random_range(0..Fault::ALL.len())];
            let lasts = Duration::from_millis(dice.random_range(50..4_000));
            println!("{:6.1} s: {fault:?} of {} for {lasts:?}", began.elapsed().as_secs_f64(), host.name());
            fault.begin(host, other.context("three hosts")?)?;
            std::thread::sleep(lasts);
            // Sometimes everything loses power in the middle of it.
            let blackout = dice.random_range(0..10) == 0;
            if blackout {
                println!("         and all of them lose power");
                lab.hosts().iter().for_each(Host::kill9_if_running);
            }
            if !blackout || !matches!(fault, Fault::Kill | Fault::Term | Fault::Stop) {
                fault.end(host)?;
            }
            for host in lab.hosts().iter().filter(|_| blackout) {
                host.start()?;
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
