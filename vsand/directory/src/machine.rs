//! The replicated state machine: what this crate asks of it, and how it is held.
//!
//! The state lives in memory behind an `Arc`. Readers take the `Arc` and keep a frozen state as long as they like;
//! applying an entry changes the state in place, and copies it first only if a reader still holds it.
//!
//! A proposer that got no answer sends its command again, so the log may hold it twice. The answers of the last
//! [`WINDOW`] entries are remembered, as part of the replicated state: a second copy gets the first one's answer and
//! changes nothing. A copy that lies so far behind its proposer's start that the first could be forgotten is not applied.
//!
//! What it must not know: Raft, disks, the network.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::types::{Applied, Proposal, ProposalId};

/// Version of the encoding of commands and answers: those of the state machine, which only ever get variants and fields at
/// their ends.
const ENCODING_VERSION: u8 = 1;
/// Version byte and CRC-32 in front of a snapshot's state.
const SNAPSHOT_HEAD_BYTES: usize = 5;
/// For so many entries the answer is remembered.
pub(crate) const WINDOW: u64 = 1024;

/// A deterministic state machine. Every member applies the same commands in the same order, so `apply` must depend on
/// nothing but the state and its arguments: no clock, no randomness, no iteration over a hash map.
pub trait StateMachine: Default + Clone + Send + Sync + 'static {
    /// What is proposed. Encoded with postcard and kept in the log: variants and fields are only ever added at the end.
    type Command: Serialize + DeserializeOwned + Send + Sync;
    /// What the proposer gets back.
    type Response: Serialize + DeserializeOwned + Send + Sync;

    /// The versions of snapshots that [`Self::read`] reads. A state is one value in them and can't get a field without becoming another.
    const SNAPSHOTS: RangeInclusive<u8>;

    /// The state for a snapshot, and in which version: one that all members read which may get it.
    fn write(&self) -> Result<(u8, Vec<u8>), postcard::Error>;

    /// The state that stands at the beginning of a snapshot of one of [`Self::SNAPSHOTS`], and what comes after it.
    fn read(version: u8, bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError>;

    /// Refuses a command that this member reads, and after which it could not go on. It stops instead of applying it.
    fn check(_command: &Self::Command) -> Result<(), DecodeError> {
        Ok(())
    }

    /// Applies the command of log entry `index`. A refusal is a response too: it must not change the state.
    fn apply(&mut self, index: u64, command: Self::Command) -> Self::Response;
}

/// Why bytes are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// Nothing there, or cut short.
    #[error("it is cut short")]
    Short,
    /// Written by another version of this software.
    #[error("it has format version {found}, this host reads version {read}")]
    Version {
        /// Its version.
        found: u8,
        /// What this software reads.
        read: u8,
    },
    /// The cluster is at a feature level that this software does not know.
    #[error(
        "it is of feature level {found}, this vsand knows those up to {known}: install the release that the cluster runs"
    )]
    Level {
        /// The cluster's.
        found: u16,
        /// The last one that this software knows.
        known: u16,
    },
    /// The checksum does not match.
    #[error("its checksum does not match")]
    Checksum,
    /// It does not decode.
    #[error("it does not decode: {0}")]
    Content(#[from] postcard::Error),
}

/// Encodes with the version byte in front.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, postcard::Error> {
    postcard::to_extend(value, vec![ENCODING_VERSION])
}

/// Decodes what [`encode`] made; trailing bytes are an error.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match bytes {
        [] => Err(DecodeError::Short),
        [ENCODING_VERSION, rest @ ..] => match postcard::take_from_bytes(rest)? {
            (value, []) => Ok(value),
            _ => Err(DecodeError::Content(postcard::Error::DeserializeBadEncoding)),
        },
        [found, ..] => Err(DecodeError::Version { found: *found, read: ENCODING_VERSION }),
    }
}

/// A frozen state that can still be encoded, on another thread, while the machine goes on.
pub(crate) type Frozen = Arc<dyn Fn() -> Result<Vec<u8>, postcard::Error> + Send + Sync>;

/// A state machine without its types: what the Raft side sees.
pub(crate) trait Machine: Send + Sync + 'static {
    /// Applies the commands of one batch, then publishes; `None` stands for an entry without a command. `last` is the
    /// index of the batch's last entry.
    fn apply(&self, batch: Vec<(u64, Option<Proposal>)>, last: u64) -> Result<Vec<Applied>, BadEntry>;
    /// The present state.
    fn freeze(&self) -> Frozen;
    /// Checks a snapshot and returns what puts it in place; nothing has changed until that is called.
    fn prepare(&self, snapshot: &[u8]) -> Result<Box<dyn FnOnce(u64) + Send>, DecodeError>;
    /// Whether these bytes are a command.
    fn check(&self, command: &[u8]) -> Result<(), DecodeError>;
    /// The index that was applied last.
    fn applied(&self) -> watch::Receiver<u64>;
}

/// A committed entry that this host can't apply. It must stop: going on without it would make its state differ.
#[derive(Debug, thiserror::Error)]
#[error(
    "entry {index} of the directory's log can't be applied ({source}); bring this host to the cluster's version"
)]
pub(crate) struct BadEntry {
    index: u64,
    source: DecodeError,
}

/// Holds the state and publishes it.
pub(crate) struct Cell<S> {
    inner: Arc<Inner<S>>,
}

struct Inner<S> {
    state: RwLock<Arc<S>>,
    recent: Mutex<Recent>,
    applied: watch::Sender<u64>,
}

/// The answers of the last [`WINDOW`] entries.
#[derive(Clone, Default)]
struct Recent {
    answers: BTreeMap<ProposalId, Vec<u8>>,
    order: VecDeque<(u64, ProposalId)>,
}

/// [`Recent`] as a snapshot holds it: index, id, answer.
type Remembered = Vec<(u64, ProposalId, Vec<u8>)>;

impl Recent {
    fn forget_before(&mut self, index: u64) {
        while let Some((at, id)) = self.order.front().copied()
            && at < index
        {
            self.order.pop_front();
            self.answers.remove(&id);
        }
    }

    fn remember(&mut self, index: u64, id: ProposalId, answer: Vec<u8>) {
        self.order.push_back((index, id));
        self.answers.insert(id, answer);
    }

    fn to_remembered(&self) -> Remembered {
        let each = |(index, id): &(u64, ProposalId)| Some((*index, *id, self.answers.get(id)?.clone()));
        self.order.iter().filter_map(each).collect()
    }

    fn from_remembered(remembered: Remembered) -> Self {
        let mut recent = Self::default();
        for (index, id, answer) in remembered {
            recent.remember(index, id, answer);
        }
        recent
    }
}

/// Decodes what must take up all bytes.
fn whole<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        _ => Err(DecodeError::Content(postcard::Error::DeserializeBadEncoding)),
    }
}

impl<S: StateMachine> Cell<S> {
    pub(crate) fn new() -> Self {
        let state = RwLock::new(Arc::new(S::default()));
        Self { inner: Arc::new(Inner { state, recent: Mutex::default(), applied: watch::Sender::new(0) }) }
    }

    pub(crate) fn state(&self) -> Arc<S> {
        // A panic in `apply` stops the group (Raft reports it as fatal); readers keep what there is.
        Arc::clone(&self.inner.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<S: StateMachine> Machine for Cell<S> {
    fn apply(&self, batch: Vec<(u64, Option<Proposal>)>, last: u64) -> Result<Vec<Applied>, BadEntry> {
        let mut answers = Vec::with_capacity(batch.len());
        {
            let mut state = self.inner.state.write().unwrap_or_else(PoisonError::into_inner);
            let mut recent = self.inner.recent.lock().unwrap_or_else(PoisonError::into_inner);
            for (index, proposal) in batch {
                let Some(Proposal { id, base, command, .. }) = proposal else {
                    answers.push(Applied::Nothing);
                    continue;
                };
                recent.forget_before(index.saturating_sub(WINDOW));
                if let Some(answer) = recent.answers.get(&id) {
                    answers.push(Applied::Answer(answer.clone()));
                    continue;
                }
                if index > base.saturating_add(WINDOW) {
                    answers.push(Applied::Expired);
                    continue;
                }
                let bad = |source| BadEntry { index, source };
                let command = decode(&command).map_err(bad)?;
                S::check(&command).map_err(bad)?;
                // Copies the state only while somebody holds an older one.
                let answer = Arc::make_mut(&mut *state).apply(index, command);
                let answer = encode(&answer).map_err(|error| bad(error.into()))?;
                recent.remember(index, id, answer.clone());
                answers.push(Applied::Answer(answer));
            }
        }
        self.inner.applied.send_replace(last);
        Ok(answers)
    }

    fn freeze(&self) -> Frozen {
        let state = self.state();
        let recent = self.inner.recent.lock().unwrap_or_else(PoisonError::into_inner).to_remembered();
        Arc::new(move || {
            let (version, state) = state.write()?;
            let mut bytes = vec![version, 0, 0, 0, 0];
            bytes.extend(state);
            let mut bytes = postcard::to_extend(&recent, bytes)?;
            let crc = crc32fast::hash(&bytes[SNAPSHOT_HEAD_BYTES..]);
            bytes[1..SNAPSHOT_HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
            Ok(bytes)
        })
    }

    fn prepare(&self, snapshot: &[u8]) -> Result<Box<dyn FnOnce(u64) + Send>, DecodeError> {
        let Some((head, body)) = snapshot.split_first_chunk::<SNAPSHOT_HEAD_BYTES>() else {
            return Err(DecodeError::Short);
        };
        let [version, crc @ ..] = head;
        if !S::SNAPSHOTS.contains(version) {
            return Err(DecodeError::Version { found: *version, read: *S::SNAPSHOTS.end() });
        }
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(DecodeError::Checksum);
        }
        let (state, recent) = S::read(*version, body)?;
        let recent = whole(recent)?;
        let inner = Arc::clone(&self.inner);
        Ok(Box::new(move |index| {
            *inner.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
            *inner.recent.lock().unwrap_or_else(PoisonError::into_inner) = Recent::from_remembered(recent);
            inner.applied.send_replace(index);
        }))
    }

    fn check(&self, command: &[u8]) -> Result<(), DecodeError> {
        S::check(&decode(command)?)
    }

    fn applied(&self) -> watch::Receiver<u64> {
        self.inner.applied.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small sums are written as all were once, in halves.
    #[derive(Default, Clone, Debug, PartialEq)]
    struct Sum(u64);

    const SMALL: u64 = 10;

    impl StateMachine for Sum {
        type Command = u64;
        type Response = u64;
        const SNAPSHOTS: RangeInclusive<u8> = 2..=3;

        fn write(&self) -> Result<(u8, Vec<u8>), postcard::Error> {
            if self.0 < SMALL {
                return Ok((2, postcard::to_allocvec(&(self.0, 0_u64))?));
            }
            Ok((3, postcard::to_allocvec(&self.0)?))
        }

        fn read(version: u8, bytes: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
            if version == 2 {
                let ((half, other), rest) = postcard::take_from_bytes::<(u64, u64)>(bytes)?;
                return Ok((Self(half + other), rest));
            }
            let (sum, rest) = postcard::take_from_bytes(bytes)?;
            Ok((Self(sum), rest))
        }

        fn check(command: &u64) -> Result<(), DecodeError> {
            if *command == u64::MAX { Err(DecodeError::Level { found: 9, known: 8 }) } else { Ok(()) }
        }

        fn apply(&mut self, _index: u64, command: u64) -> u64 {
            self.0 += command;
            self.0
        }
    }

    fn proposal(count: u64, base: u64, n: u64) -> Proposal {
        let id = ProposalId { run: 1, count };
        Proposal { id, base, command: encode(&n).unwrap(), ticket: crate::types::Ticket::default() }
    }

    fn apply(cell: &Cell<Sum>, index: u64, proposal: Proposal) -> Option<u64> {
        match &cell.apply(vec![(index, Some(proposal))], index).unwrap()[..] {
            [Applied::Answer(answer)] => Some(decode(answer).unwrap()),
            other => {
                assert_eq!(other, [Applied::Expired]);
                None
            }
        }
    }

    fn add(cell: &Cell<Sum>, index: u64, n: u64) -> u64 {
        apply(cell, index, proposal(index, index - 1, n)).unwrap()
    }

    #[test]
    fn a_copy_of_a_command_is_answered_but_not_applied() {
        let cell = Cell::<Sum>::new();
        assert_eq!(apply(&cell, 1, proposal(0, 0, 5)), Some(5));
        assert_eq!(add(&cell, 2, 1), 6);
        assert_eq!(apply(&cell, 3, proposal(0, 0, 5)), Some(5), "the first one's answer");
        // What is remembered travels with the snapshot.
        let other = Cell::<Sum>::new();
        other.prepare(&cell.freeze()().unwrap()).unwrap()(3);
        for cell in [&cell, &other] {
            assert_eq!(apply(cell, WINDOW + 2, proposal(0, 0, 5)), None, "too late: it was forgotten");
            assert_eq!(
                apply(cell, WINDOW + 3, proposal(9, 1, 5)),
                None,
                "too late: it could have been forgotten"
            );
            assert_eq!(cell.state().0, 6);
        }
    }

    #[test]
    fn a_copy_within_the_window_is_always_known() {
        for gap in [1, 2, WINDOW / 2, WINDOW - 1, WINDOW] {
            let cell = Cell::<Sum>::new();
            assert_eq!(apply(&cell, 10, proposal(0, 9, 5)), Some(5));
            for index in 11..10 + gap {
                add(&cell, index, 1);
            }
            let again = apply(&cell, 10 + gap, proposal(0, 9, 5));
            assert_eq!(again, Some(5), "gap {gap}");
        }
    }

    #[test]
    fn a_reader_keeps_the_state_it_took() {
        let cell = Cell::<Sum>::new();
        assert_eq!(add(&cell, 1, 5), 5);
        let old = cell.state();
        assert_eq!(add(&cell, 2, 5), 10);
        assert_eq!((old.0, cell.state().0, *cell.applied().borrow()), (5, 10, 2));
    }

    #[test]
    fn a_snapshot_that_was_touched_is_refused() {
        let cell = Cell::<Sum>::new();
        add(&cell, 1, 300);
        let good = cell.freeze()().unwrap();
        let other = Cell::<Sum>::new();
        other.prepare(&good).unwrap()(1);
        assert_eq!(other.state().0, 300);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(other.prepare(&bad).is_err(), "byte {at}");
        }
        for len in 0..good.len() {
            assert!(other.prepare(&good[..len]).is_err(), "cut at {len}");
        }
    }

    #[test]
    fn a_snapshot_has_the_version_that_its_state_asks_for() {
        for (sum, version) in [(SMALL - 1, 2), (SMALL, 3)] {
            let cell = Cell::<Sum>::new();
            add(&cell, 1, sum);
            let bytes = cell.freeze()().unwrap();
            assert_eq!(bytes[0], version);
            let other = Cell::<Sum>::new();
            other.prepare(&bytes).unwrap()(5);
            assert_eq!((other.state().0, *other.applied().borrow()), (sum, 5));
        }
    }

    #[test]
    fn a_command_that_this_member_can_t_go_on_after_stops_it() {
        let cell = Cell::<Sum>::new();
        let error = cell.apply(vec![(1, Some(proposal(0, 0, u64::MAX)))], 1).unwrap_err();
        assert!(error.to_string().contains("feature level 9"), "{error}");
        assert_eq!((cell.state().0, *cell.applied().borrow()), (0, 0));
        // Nor does a leader take it from another host.
        assert!(cell.check(&encode(&u64::MAX).unwrap()).is_err());
        cell.check(&encode(&1_u64).unwrap()).unwrap();
    }

    #[test]
    fn a_snapshot_of_another_version_is_named() {
        let cell = Cell::<Sum>::new();
        add(&cell, 1, 300);
        let mut old = cell.freeze()().unwrap();
        old[0] = 1;
        let Err(error) = cell.prepare(&old) else { panic!("an old snapshot was taken") };
        assert_eq!(error, DecodeError::Version { found: 1, read: 3 });
    }

    #[test]
    fn an_unknown_command_stops_the_machine() {
        let cell = Cell::<Sum>::new();
        let mut future = proposal(0, 0, 7);
        future.command[0] = 2;
        assert!(cell.apply(vec![(1, Some(future))], 1).is_err());
        assert_eq!(*cell.applied().borrow(), 0);
    }
}
