//! Waiting with a bound and a reason.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

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
