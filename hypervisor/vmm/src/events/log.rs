//! The console's log: what the guest prints, in a file of bounded size and the one before it.
//!
//! A log that can't be written is told once and tried again; the guest never notices.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::outside::Outside;

/// How long nothing is tried after a failure.
const AGAIN: Duration = Duration::from_secs(1);

/// The log.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    /// Bytes in the file, and how many it may have.
    bytes: u64,
    bytes_max: u64,
    outside: Arc<dyn Outside>,
    failed: Option<Instant>,
    lost: u64,
}

impl Log {
    /// Goes on in this file, which is open at its end.
    pub(crate) fn new(file: File, bytes_max: u64, outside: Arc<dyn Outside>) -> std::io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file, bytes, bytes_max, outside, failed: None, lost: 0 })
    }

    /// Writes some bytes, at most as many as a file may have.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_some_and(|when| when.elapsed() < AGAIN) {
            self.lost += bytes.len() as u64;
            return;
        }
        match self.try_write(bytes) {
            Ok(()) => {
                if self.failed.take().is_some() {
                    info!("the console's log is written again; {} bytes were lost", self.lost);
                    self.lost = 0;
                }
            }
            Err(error) => {
                self.lost += bytes.len() as u64;
                if self.failed.replace(Instant::now()).is_none() {
                    warn!(
                        "the console's log can't be written: {error}; trying again, what is printed is lost"
                    );
                }
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let count = bytes.len() as u64;
        if self.bytes > 0 && self.bytes.saturating_add(count) > self.bytes_max {
            self.file = self.outside.next_log()?;
            self.bytes = self.file.metadata()?.len();
        }
        self.file.write_all(bytes)?;
        self.bytes += count;
        Ok(())
    }
}
