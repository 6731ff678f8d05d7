//! What the guest has printed and nobody has taken yet: a bounded queue between the processors that print and the loop
//! that writes.
//!
//! A processor never waits for who reads its console. When the queue is full the oldest bytes go, and their number is
//! kept: the end of a log says why a guest died, its beginning does not.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Most bytes that wait.
pub const WAITING_MAX: usize = 256 << 10;

#[derive(Debug, Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    dropped: u64,
}

/// The queue. Clones are the same queue.
#[derive(Debug, Clone)]
pub struct ConsoleOutput {
    waiting: Arc<Mutex<Waiting>>,
    filled: Arc<EventFd>,
}

impl ConsoleOutput {
    /// An empty queue.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self { waiting: Arc::default(), filled: Arc::new(EventFd::new(EFD_NONBLOCK)?) })
    }

    /// Readable when an empty queue has got bytes.
    pub fn filled(&self) -> &EventFd {
        &self.filled
    }

    /// Up to `most` bytes from the front, which stay.
    pub fn peek(&self, most: usize) -> Vec<u8> {
        self.lock().bytes.iter().take(most).copied().collect()
    }

    /// Takes so many bytes away.
    pub fn consume(&self, count: usize) {
        let mut waiting = self.lock();
        let count = count.min(waiting.bytes.len());
        waiting.bytes.drain(..count);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.lock().bytes.is_empty()
    }

    /// Bytes that found no room since the start.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        // Bytes can't be half there.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut waiting = self.lock();
        let was_empty = waiting.bytes.is_empty();
        waiting.bytes.extend(bytes);
        let over = waiting.bytes.len().saturating_sub(WAITING_MAX);
        waiting.bytes.drain(..over);
        waiting.dropped += over as u64;
        drop(waiting);
        if was_empty && !bytes.is_empty() {
            self.filled.write(1)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_that_nobody_reads_keeps_its_end() {
        let mut output = ConsoleOutput::new().unwrap();
        for _ in 0..WAITING_MAX / 4 {
            output.write_all(b"old ").unwrap();
        }
        assert_eq!(output.dropped(), 0);
        output.write_all(b"new").unwrap();
        assert_eq!(output.dropped(), 3);
        let all = output.peek(usize::MAX);
        assert_eq!(all.len(), WAITING_MAX);
        assert!(all.starts_with(b" old") && all.ends_with(b"old new"));
        assert_eq!(output.filled().read().unwrap(), 1, "only the first byte wakes the loop");
        output.consume(WAITING_MAX - 3);
        assert_eq!(output.peek(100), b"new");
        output.consume(100);
        assert!(output.is_empty());
    }
}
