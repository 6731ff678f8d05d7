//! Every target under some ten thousand mutated inputs, the same in every run, and under every case that was ever found.
//!
//! A failure prints the input; save it as it says, mend the code, and the case is tested from then on.

use std::fmt::Write;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ferro_fuzz::{PEAK_BYTES_MAX, Target, by_name, mutate::mutate};
use peak_alloc::PeakAlloc;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// The peak is the process's, so one target at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Asked for when the test runs: cargo takes a test that was built in a checkout elsewhere as fresh.
fn folder(kind: &str, target: &Target) -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
    let kinds = Path::new(&package).join(kind);
    assert!(kinds.is_dir(), "{} is not there", kinds.display());
    kinds.join(target.name)
}

/// The inputs that are kept as files, in the order of their names.
fn kept(kind: &str, target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder(kind, target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("the folder can be read").path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(&path).expect("a case can be read"))).collect()
}

/// What is wrong with this input, if anything.
fn fault(target: &Target, input: &[u8]) -> Option<String> {
    let before = MEMORY.current_usage();
    MEMORY.reset_peak_usage();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let taken = MEMORY.peak_usage().saturating_sub(before);
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        return Some(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned());
    }
    (taken > PEAK_BYTES_MAX).then(|| format!("{} MiB of memory for {} bytes", taken >> 20, input.len()))
}

/// A smaller input with the same kind of trouble: blocks are cut out as long as it stays.
fn shrink(target: &Target, input: &[u8]) -> Vec<u8> {
    let mut best = input.to_vec();
    let mut width = best.len().div_ceil(2).max(1);
    let mut tries = 0;
    while width >= 1 && tries < 400 {
        let mut at = 0;
        while at < best.len() && tries < 400 {
            let mut smaller = best.clone();
            smaller.drain(at..(at + width).min(best.len()));
            tries += 1;
            if fault(target, &smaller).is_some() {
                best = smaller;
            } else {
                at += width;
            }
        }
        if width == 1 {
            break;
        }
        width /= 2;
    }
    best
}

#[track_caller]
fn report(target: &Target, input: &[u8], what: &str) -> ! {
    let small = shrink(target, input);
    let mut hex = String::with_capacity(2 * small.len());
    for byte in &small {
        write!(hex, "{byte:02x}").expect("a string takes everything");
    }
    let path = format!("tests/fuzz/regressions/{}/NAME.bin", target.name);
    panic!(
        "{}: {what}\nthe input, {} bytes; keep it with `xxd -r -p >{path}`:\n{hex}",
        target.name,
        small.len()
    );
}

fn quick(name: &str) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = by_name(name).expect("it is in the list");
    let mut pool = (target.seeds)();
    assert!(!pool.is_empty(), "{name} has no seeds");
    pool.extend(kept("corpus", target).into_iter().map(|(_, input)| input));
    let found = kept("regressions", target);
    for (path, input) in &found {
        if let Some(what) = fault(target, input) {
            panic!("{} fails again: {what}", path.display());
        }
    }
    for input in pool.iter().chain(&[Vec::new()]) {
        if let Some(what) = fault(target, input) {
            report(target, input, &what);
        }
    }
    // What once went wrong is a good place to look for more.
    pool.extend(found.into_iter().map(|(_, input)| input));
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..target.quick_cases {
        let mut input = pool[rng.random_range(0..pool.len())].clone();
        let other = &pool[rng.random_range(0..pool.len())];
        mutate(&mut rng, &mut input, other, target.len_max);
        if let Some(what) = fault(target, &input) {
            report(target, &input, &what);
        }
    }
}

macro_rules! quick {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            quick(stringify!($name));
        })*

        /// A target without a line here would never run.
        #[test]
        fn every_target_is_run() {
            let run = [$(stringify!($name)),*];
            let all: Vec<&str> = ferro_fuzz::ALL.iter().map(|target| target.name).collect();
            assert_eq!(run.as_slice(), all);
        }
    };
}

quick! {
    peer_frame
    data_stream
    join_token
    join_messages
    signing_request
    certificate
    vhost_messages
    vhost_rings
    vhost_net_rings
    journal_batch
    superblock
    whole_disk
    directory_command
    directory_script
    replica_requests
    switch_frames
    tunnel_datagrams
    mesh_messages
    gateway_frames
    lease_book
    boot_partitions
    boot_ext4
    boot_grub
    boot_entries
    boot_kernel
    vmm_accesses
    vmm_states
    vmm_rings
    vmm_requests
    vmm_connection
    vm_specs
    vm_documents
    vm_requests
}

/// The driver itself: a panic and a large allocation are both seen, and what is found is made small.
#[test]
fn faults_are_seen_and_made_small() {
    fn picky(input: &[u8]) {
        assert!(!input.contains(&0xab), "it is in there");
        if input.first() == Some(&0xcd) {
            std::hint::black_box(vec![1_u8; PEAK_BYTES_MAX + 1]);
        }
    }
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let target = Target { name: "picky", run: picky, seeds: Vec::new, quick_cases: 0, len_max: 100 };
    assert_eq!(fault(&target, &[1, 2, 3]), None);
    assert_eq!(fault(&target, &[1, 0xab, 3]).as_deref(), Some("it is in there"));
    assert!(fault(&target, &[0xcd]).is_some_and(|what| what.contains("MiB")));
    let mut long = vec![7; 90];
    long[60] = 0xab;
    assert_eq!(shrink(&target, &long), [0xab]);
}
