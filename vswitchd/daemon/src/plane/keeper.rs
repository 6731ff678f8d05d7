//! Which network is in force on this host: what is taken over, what is gone back on, and when.
//!
//! ```text
//!                 newer revision, and it can be
//!   in force ────────────────────────────────────► on trial ──30 s, peers are there──► in force
//!      ▲                                              │
//!      │       30 s, and cut off from most peers      │
//!      └──────── went back on it ◄────────────────────┘   the directory is asked to undo it for all
//! ```
//!
//! A change is on trial on a host that was connected to most of its peers when it took the change over. It is cut off by the
//! change if it loses them soon afterwards ([`BLAME`]) and they are still gone at the end ([`TRIAL`]). A change that somebody
//! confirmed is not on trial. One that asks to be confirmed is undone in the directory, by whoever gets there first.
//!
//! Invariants: a revision never gets older; one that was gone back on is not taken over again; what is in force was
//! validated by this host. The network that was in force before is kept until the trial is over, over restarts too.
//!
//! What it must not know: where documents come from, clocks, the worker.

use std::time::Duration;

use ferro_protocol::api::switch::Spec;
use ferro_protocol::time::Instant;
use serde::{Deserialize, Serialize};
use vswitch_core::config::{Config, validate};

use super::documents::{NetworkDocument, Undo};

/// How long a change is on trial.
pub(super) const TRIAL: Duration = Duration::from_secs(30);
/// A change is to blame for peers that are lost so soon after it.
pub(super) const BLAME: Duration = Duration::from_secs(10);
/// The directory is asked again so often to undo a change.
const UNDO_AGAIN: Duration = Duration::from_secs(5);

/// A network and its revision.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Version {
    /// The revision.
    pub(super) revision: u64,
    /// What it says.
    pub(super) spec: Spec,
}

/// What outlives a restart.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Kept {
    /// In force.
    pub(super) current: Version,
    /// In force before, as long as `current` is on trial.
    pub(super) previous: Option<Version>,
    /// The revision that was gone back on.
    pub(super) rolled_back: Option<u64>,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Effect {
    /// Put into force.
    Apply(Box<Config>),
    /// [`Keeper::kept`] has changed: write it down, and tell the others.
    Keep,
    /// Ask the directory to go from this revision to what was before it.
    Undo {
        /// The revision.
        revision: u64,
        /// What was before.
        spec: Box<Spec>,
    },
}

/// A change whose end is open.
#[derive(Clone, Debug)]
struct Trial {
    until: Instant,
    blame_until: Instant,
    /// Most peers are gone, and the change is to blame.
    cut_off: bool,
}

/// A change that waits to be confirmed.
#[derive(Clone, Debug)]
struct Waiting {
    until: Instant,
    spec: Spec,
}

/// What has to be confirmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Open {
    /// The revision.
    pub(super) revision: u64,
    /// Until when.
    pub(super) until: Instant,
    /// It asked for it; otherwise this host is cut off.
    pub(super) asked: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Keeper {
    kept: Kept,
    /// The newest revision that was seen, whether it could be taken over or not.
    newest: u64,
    failed: Option<(u64, String)>,
    connected: bool,
    trial: Option<Trial>,
    waiting: Option<Waiting>,
    /// No document was seen since the start.
    fresh: bool,
}

fn waiting(now: Instant, document: &NetworkDocument) -> Option<Waiting> {
    let Undo { within_s, spec } = document.undo.as_ref()?;
    Some(Waiting { until: now + Duration::from_secs(u64::from(*within_s)), spec: spec.clone() })
}

impl Keeper {
    /// As it was left. What was on trial is on trial again. The effects put it into force.
    pub(super) fn new(now: Instant, kept: Kept) -> (Self, Vec<Effect>) {
        let newest = kept.current.revision.max(kept.rolled_back.unwrap_or(0));
        let mut keeper =
            Self { kept, newest, failed: None, connected: false, trial: None, waiting: None, fresh: true };
        if keeper.kept.previous.is_some() {
            // Until peers were heard there is nobody to be cut off from; then the change is not to blame for long.
            keeper.trial = Some(Trial { until: now + TRIAL, blame_until: now + BLAME, cut_off: true });
        }
        let effects = match validate(&keeper.kept.current.spec) {
            Ok(config) => vec![Effect::Apply(Box::new(config))],
            // Written by a version that had other rules. Nothing is in force until the directory says what is.
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                keeper.failed = Some((keeper.kept.current.revision, faults.join("; ")));
                Vec::new()
            }
        };
        (keeper, effects)
    }

    /// What is in force, and what was before.
    pub(super) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The newest revision that is known.
    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// The revision that this host can't take over, and why.
    pub(super) fn failed(&self) -> Option<&(u64, String)> {
        self.failed.as_ref()
    }

    /// What has to be confirmed, if anything.
    pub(super) fn open(&self) -> Option<Open> {
        let revision = self.kept.current.revision;
        if let Some(waiting) = &self.waiting {
            return Some(Open { revision, until: waiting.until, asked: true });
        }
        let trial = self.trial.as_ref().filter(|trial| trial.cut_off)?;
        Some(Open { revision, until: trial.until, asked: false })
    }

    /// When [`Self::handle_time`] is to be called.
    pub(super) fn next_at(&self) -> Option<Instant> {
        let trial = self.trial.as_ref().map(|trial| trial.until);
        let waiting = self.waiting.as_ref().map(|waiting| waiting.until);
        trial.into_iter().chain(waiting).min()
    }

    /// The directory has a revision.
    pub(super) fn handle_document(
        &mut self,
        now: Instant,
        revision: u64,
        document: &NetworkDocument,
    ) -> Vec<Effect> {
        let first = std::mem::replace(&mut self.fresh, false);
        if first && revision == self.kept.current.revision {
            // Taken over before a restart; only its end was not written down.
            self.waiting = waiting(now, document);
        }
        if revision <= self.newest {
            return Vec::new();
        }
        let config = match validate(&document.spec) {
            Ok(config) => config,
            Err(faults) => {
                let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
                return self.refuse(revision, faults.join("; "));
            }
        };
        self.newest = revision;
        self.failed = None;
        self.waiting = waiting(now, document);
        let new = Version { revision, spec: document.spec.clone() };
        // What is on trial was never proven: what was in force before it is what one goes back to.
        let old = std::mem::replace(&mut self.kept.current, new);
        let proven = self.kept.previous.take().filter(|_| self.trial.as_ref().is_some_and(|t| t.cut_off));
        self.kept.rolled_back = None;
        self.trial = None;
        let same = old.spec == document.spec;
        if !document.confirmed && !same && (self.connected || proven.is_some()) {
            self.trial =
                Some(Trial { until: now + TRIAL, blame_until: now + BLAME, cut_off: !self.connected });
            self.kept.previous = Some(proven.unwrap_or(old));
        }
        if same { vec![Effect::Keep] } else { vec![Effect::Apply(Box::new(config)), Effect::Keep] }
    }

    /// The directory has a revision that can't be read or can't be. What is in force stays.
    pub(super) fn refuse(&mut self, revision: u64, why: String) -> Vec<Effect> {
        if revision <= self.newest {
            return Vec::new();
        }
        self.newest = revision;
        self.failed = Some((revision, why));
        // The directory has moved on from what waited.
        self.waiting = None;
        vec![Effect::Keep]
    }

    /// Whether this host is connected to most of its peers; without any, it is.
    pub(super) fn handle_connected(&mut self, now: Instant, connected: bool) {
        self.connected = connected;
        if let Some(trial) = &mut self.trial {
            trial.cut_off = !connected && (trial.cut_off || now <= trial.blame_until);
        }
    }

    /// Time has passed.
    pub(super) fn handle_time(&mut self, now: Instant) -> Vec<Effect> {
        let revision = self.kept.current.revision;
        let mut effects = Vec::new();
        if let Some(waiting) = &mut self.waiting
            && now >= waiting.until
        {
            effects.push(Effect::Undo { revision, spec: Box::new(waiting.spec.clone()) });
            waiting.until = now + UNDO_AGAIN;
        }
        if self.trial.as_ref().is_some_and(|trial| now >= trial.until)
            && let Some(trial) = self.trial.take()
            && let Some(previous) = self.kept.previous.take()
        {
            effects.extend(if trial.cut_off { self.go_back(previous) } else { vec![Effect::Keep] });
        }
        effects
    }

    fn go_back(&mut self, previous: Version) -> Vec<Effect> {
        let revision = self.kept.current.revision;
        let spec = Box::new(previous.spec.clone());
        let config = validate(&previous.spec);
        self.waiting = None;
        self.kept.current = previous;
        self.kept.rolled_back = Some(revision);
        let apply = config.ok().map(|config| Effect::Apply(Box::new(config)));
        apply.into_iter().chain([Effect::Keep, Effect::Undo { revision, spec }]).collect()
    }

    /// Somebody on this host says that the revision is to stay; `None` if it does not wait for that.
    pub(super) fn confirm(&mut self, revision: u64) -> Option<Vec<Effect>> {
        if self.kept.current.revision != revision || (self.trial.is_none() && self.waiting.is_none()) {
            return None;
        }
        self.trial = None;
        self.waiting = None;
        self.kept.previous = None;
        Some(vec![Effect::Keep])
    }

    /// Somebody on this host says that the revision is not to stay; `None` if it does not wait for that.
    pub(super) fn undo(&mut self, now: Instant, revision: u64) -> Option<Vec<Effect>> {
        if self.kept.current.revision != revision {
            return None;
        }
        if let Some(waiting) = &mut self.waiting {
            waiting.until = now;
        } else {
            let trial = self.trial.as_mut()?;
            (trial.until, trial.cut_off) = (now, true);
        }
        Some(self.handle_time(now))
    }
}
