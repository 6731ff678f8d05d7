//! What this process says of itself, on its standard error. Some of it a guest can bring about as often as it likes, such as a ring
//! that breaks the rules and is set up again, and it goes to a file that nobody cuts: so it is bounded.

use std::io::{self, Stderr, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

/// Messages at once.
const BURST: u32 = 200;
/// Then one in such a time: at most some hundred KiB a day.
const EVERY: Duration = Duration::from_secs(30);

/// Standard error, for so many messages.
#[derive(Debug, Clone)]
pub struct Messages(Option<Arc<Mutex<Budget>>>);

#[derive(Debug)]
struct Budget {
    left: u32,
    /// When the last one was added.
    since: Instant,
    missed: u64,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { left: BURST, since: now, missed: 0 }
    }

    /// Whether a message may be written now; and how many could not be since the last one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let more = now.saturating_duration_since(self.since).as_secs() / EVERY.as_secs();
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.since = now;
        }
        if self.left == 0 {
            self.missed += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.missed))
    }
}

impl Messages {
    /// Bounded.
    pub fn bounded() -> Self {
        Self(Some(Arc::new(Mutex::new(Budget::new(Instant::now())))))
    }

    /// All of them, for who has asked for more and looks at it.
    pub fn all() -> Self {
        Self(None)
    }
}

impl<'a> MakeWriter<'a> for Messages {
    type Writer = Message;
    fn make_writer(&'a self) -> Message {
        let taken = match &self.0 {
            Some(budget) => budget.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()),
            None => Some(0),
        };
        Message { to: taken.map(|missed| (io::stderr(), missed)) }
    }
}

/// One message, or none.
#[derive(Debug)]
pub struct Message {
    to: Option<(Stderr, u64)>,
}

impl Write for Message {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some((to, missed)) = &mut self.to else { return Ok(bytes.len()) };
        if std::mem::take(missed) > 0 {
            writeln!(to, "(there was too much to say: some messages before this one are left out)")?;
        }
        to.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.as_mut().map_or(Ok(()), |(to, _)| to.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_makes_us_talk_fills_no_disk() {
        let begin = Instant::now();
        let mut budget = Budget::new(begin);
        let mut said = 0;
        // A thousand a second, for a day.
        for tick in 0..86_400 {
            let now = begin + Duration::from_secs(tick);
            said += (0..1000).filter(|_| budget.take(now).is_some()).count();
        }
        assert!((2_000..4_000).contains(&said), "{said}");
        // Who is quiet for long may say as much at once as before, and the first word is that some were missed.
        let later = begin + Duration::from_secs(2 * 86_400);
        assert!(budget.take(later).is_some_and(|missed| missed > 0));
        assert_eq!((0..1000).filter(|_| budget.take(later) == Some(0)).count(), BURST as usize - 1);
    }
}
