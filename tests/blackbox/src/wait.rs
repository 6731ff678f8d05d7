//! Waiting with a bound and a reason.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// Asks again and again until the answer is good, and says what the last bad one was if it never is.
pub fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(not_yet) if began.elapsed() >= limit => {
                return Err(not_yet).with_context(|| format!("not seen within {limit:?}: {what}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Acts, and looks all the while whether something holds that must never fail to.
pub fn while_holding<T>(holds: impl Fn() -> Result<()> + Sync, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Acquire) {
                holds()?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        let outcome = act();
        done.store(true, Ordering::Release);
        watch.join().map_err(|_| anyhow!("the watcher panicked"))?.and(outcome)
    })
}
