//! Random faults, one after the other and some at once, from a seed. By hand, longer:
//! `FERRO_THRASH_SECONDS=600 FERRO_THRASH_SEED=7 cargo test -p ferro-blackbox --release --test thrash -- --nocapture`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ferro_blackbox::checker::Checker;
use ferro_blackbox::disk::LoopDisk;
use ferro_blackbox::endure::{HEAL_MAX, begin, read_everywhere};
use ferro_blackbox::lab::with_hosts;
use ferro_blackbox::workload::{Workload, WorkloadOptions};
use ferro_blackbox::{Host, Lab, LabOptions, eventually};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// With no more hosts in trouble than the policy stands I/O goes on; when it is the owner's, after its restart.
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

/// After the death of a volume's host and client: what the next owner says is checked on both hosts, against each other too.
fn move_to(from: &Host, to: &Host, mut checker: Checker, seed: u64) -> Result<Workload> {
    let socket = eventually("the volume is served again", PROGRESS_MAX, || from.open("data"))?;
    let given_up = checker.give_up();
    println!("          {given_up} writes were under way");
    let checker =
        Workload::start(&socket, checker, WorkloadOptions { per_second: 0, ..WorkloadOptions::new(seed) })?
            .finish()?;
    from.ctl_ok(&["volume", "close", "data"])?;
    let mut load = Workload::start(&to.open("data")?, checker, WorkloadOptions::new(seed))?;
    load.verify()?;
    Ok(load)
}

/// What is exposed to faults.
struct Thrash {
    policy: &'static str,
    hosts: u8,
    /// Faults at once, on as many hosts: what the policy stands.
    at_once: usize,
    seconds: u64,
}

#[test]
fn random_faults_lose_nothing() {
    Thrash { policy: "mirror:3", hosts: 3, at_once: 1, seconds: 30 }.run();
}

#[test]
fn random_faults_lose_nothing_of_raid5() {
    Thrash { policy: "raid5", hosts: 3, at_once: 1, seconds: 30 }.run();
}

#[test]
fn random_faults_two_at_a_time_lose_nothing_of_raid6() {
    Thrash { policy: "raid6", hosts: 6, at_once: 2, seconds: 120 }.run();
}

/// A fault of one host.
struct Blow<'a> {
    fault: Fault,
    host: &'a Host,
    disk: &'a LoopDisk,
}

impl Thrash {
    /// Some hosts, different ones, and what becomes of them.
    fn blows<'a>(&self, dice: &mut StdRng, hosts: &'a [Host], disks: &'a [Arc<LoopDisk>]) -> Vec<Blow<'a>> {
        let count = dice.random_range(1..=self.at_once);
        let hit = rand::seq::index::sample(dice, hosts.len(), count);
        let fault = |dice: &mut StdRng| Fault::ALL[dice.random_range(0..Fault::ALL.len())];
        hit.iter().map(|at| Blow { fault: fault(dice), host: &hosts[at], disk: &disks[at] }).collect()
    }

    fn run(self) {
        with_hosts(LabOptions { hosts: self.hosts, ..LabOptions::default() }, |lab| {
            lab.form_without_disks()?;
            let mut disks = Vec::new();
            for host in lab.hosts() {
                let disk = lab.loop_disk(host, "xfs", 3 << 30)?;
                host.add_disk(disk.mount(), "2G")?;
                disks.push(disk);
            }
            lab.wait_healthy(Duration::from_secs(60))?;
            self.thrash(lab, &disks)
        });
    }

    fn thrash(&self, lab: &Lab, disks: &[Arc<LoopDisk>]) -> Result<()> {
        let seconds = number("FERRO_THRASH_SECONDS", self.seconds)?;
        let seed = number("FERRO_THRASH_SEED", StdRng::from_os_rng().random_range(0..1_000_000))?;
        println!("FERRO_THRASH_SEED={seed}");
        let mut dice = StdRng::seed_from_u64(seed);
        let mut owner = lab.host(2);
        let mut load = Some(begin(owner, self.policy, seed)?);
        let (began, mut faults) = (Instant::now(), 0);
        while began.elapsed() < Duration::from_secs(seconds) {
            let blows = self.blows(&mut dice, lab.hosts(), disks);
            let lasts = Duration::from_millis(dice.random_range(50..4_000));
            for Blow { fault, host, disk } in &blows {
                let now = began.elapsed().as_secs_f64();
                println!("{now:6.1} s: {fault:?} of {} for {lasts:?}", host.name());
                let others: Vec<&Host> = lab.hosts().iter().filter(|h| h.name() != host.name()).collect();
                fault.begin(host, others[dice.random_range(0..others.len())], disk)?;
            }
            std::thread::sleep(lasts);
            // Sometimes everything loses power in the middle of it.
            let blackout = dice.random_range(0..10) == 0;
            if blackout {
                println!("          and all of them lose power");
                // A process that waits for a frozen disk does not die.
                for blow in blows.iter().filter(|blow| matches!(blow.fault, Fault::Freeze)) {
                    blow.fault.end(blow.host, blow.disk)?;
                }
                lab.hosts().iter().for_each(|host| host.kill9_if_running());
            }
            // The virtual machine may die with its host: then nobody asks again what was under way.
            let killed = |blow: &Blow| matches!(blow.fault, Fault::Kill) && blow.host.name() == owner.name();
            let mut orphan = None;
            if (blackout || blows.iter().any(killed)) && dice.random() {
                orphan = Some(load.take().context("it runs")?.abandon()?);
            }
            for host in lab.hosts().iter().filter(|_| blackout) {
                host.start()?;
            }
            for Blow { fault, host, disk } in &blows {
                if !blackout || matches!(fault, Fault::Cable | Fault::In | Fault::Out | Fault::Pair) {
                    fault.end(host, disk)?;
                }
            }
            if let Some(checker) = orphan {
                let next = &lab.hosts()[dice.random_range(0..lab.hosts().len())];
                println!("          and its virtual machine, which is started again on {}", next.name());
                load = Some(move_to(owner, next, checker, seed + faults)?);
                owner = next;
            }
            let load = load.as_mut().context("it runs")?;
            // The next one comes when the last is hardly over.
            load.progress(dice.random_range(1..200), PROGRESS_MAX).context("after these faults")?;
            faults += blows.len() as u64;
        }
        lab.wait_healthy(HEAL_MAX)?;
        println!("{faults} faults");
        read_everywhere(lab, owner, load.context("it runs")?)
    }
}
