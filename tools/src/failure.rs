//! What a tool ends with when it could not do what it was asked.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use ferro_protocol::api::{ApiError, ErrorClass, FaultLine};
use serde::Serialize;

/// The exit codes of every tool. [`EXIT_CODES_HELP`], its like of the other tools and docs/operations.md tell people about them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// It was done.
    Ok = 0,
    /// It broke.
    Failure = 1,
    /// It was asked wrongly.
    Usage = 2,
    /// It is not there.
    NotFound = 3,
    /// Something that is there is in the way.
    Conflict = 4,
    /// Policy or capacity forbids it.
    Refused = 5,
    /// No quorum, no cluster, or the data can't be reached.
    Unavailable = 6,
    /// It took too long; it may still happen.
    TimedOut = 7,
    /// The daemon does not answer on its socket.
    Unreachable = 8,
    /// It was not confirmed.
    Aborted = 9,
}

/// The exit codes for `--help` and the man page of `vsanctl`.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0  done
  1  failed: a disk, a file or a fault of the daemon
  2  asked wrongly: bad option, name, size or policy
  3  not found: no such volume, host, disk, object or lock
  4  in conflict: in use, name taken, disk not empty, lock still held
  5  refused by policy or capacity: full, too few hosts, would lose data, shrinking, bad token
  6  not available now: no quorum, not in a cluster, data out of reach
  7  timed out; it may still happen
  8  the daemon can't be reached on its socket
  9  not confirmed";

/// Why a tool could not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What it ends with.
    pub exit: Exit,
    /// For programs: the API's codes and a few of our own.
    pub code: String,
    /// What failed, for which object.
    pub message: String,
    /// What to do about it.
    pub next_step: String,
    /// Further facts.
    pub details: BTreeMap<String, String>,
    /// Every single fault, if it was several things that were checked together.
    pub faults: Box<[FaultLine]>,
}

/// What `-o json` prints of a failure.
#[derive(Serialize)]
struct FailureJson<'a> {
    code: &'a str,
    message: &'a str,
    next_step: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    details: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "<[FaultLine]>::is_empty")]
    faults: &'a [FaultLine],
    exit_code: u8,
}

/// An answer or why there is none.
pub type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// A failure that this tool found by itself.
    pub fn new(exit: Exit, code: &str, message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self {
            exit,
            code: code.to_owned(),
            message: message.into(),
            next_step: next_step.into(),
            details: BTreeMap::new(),
            faults: Box::default(),
        }
    }

    /// It was asked wrongly.
    pub fn usage(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "usage", message, next_step)
    }

    /// A person did not say yes.
    pub fn aborted(message: impl Into<String>, next_step: impl Into<String>) -> Self {
        Self::new(Exit::Aborted, "aborted", message, next_step)
    }

    /// A local file can't be used.
    pub fn file(doing: &str, path: &Path, error: &io::Error) -> Self {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            io::ErrorKind::AlreadyExists => Exit::Conflict,
            _ => Exit::Failure,
        };
        let next = match error.kind() {
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check who may use the file, or run this as another user",
            io::ErrorKind::StorageFull => "free some space there, or choose another place",
            io::ErrorKind::AlreadyExists => "choose another name",
            _ => "check the file and the disk that it is on",
        };
        Self::new(exit, "file", format!("{doing} {}: {error}", path.display()), next)
    }

    /// The terminal or pipe that output goes to can't be written.
    pub fn output(error: &io::Error) -> Self {
        let code = if error.kind() == io::ErrorKind::BrokenPipe { BROKEN_PIPE } else { "output" };
        Self::new(Exit::Failure, code, format!("writing the output: {error}"), "check where it goes to")
    }

    /// Whether whoever read the output has gone: there is nobody to tell.
    pub fn is_broken_pipe(&self) -> bool {
        self.code == BROKEN_PIPE
    }

    /// The failure as one line of JSON.
    pub fn to_json(&self) -> String {
        let shown = FailureJson {
            code: &self.code,
            message: &self.message,
            next_step: &self.next_step,
            details: &self.details,
            faults: &self.faults,
            exit_code: self.exit as u8,
        };
        // Strings and a number: there is nothing in it that JSON can't hold.
        serde_json::to_string(&shown).unwrap_or_else(|_| self.message.clone())
    }
}

const BROKEN_PIPE: &str = "broken_pipe";

impl From<ErrorClass> for Exit {
    fn from(class: ErrorClass) -> Self {
        match class {
            ErrorClass::Usage => Self::Usage,
            ErrorClass::NotFound => Self::NotFound,
            ErrorClass::Conflict => Self::Conflict,
            ErrorClass::Refused => Self::Refused,
            ErrorClass::Unavailable => Self::Unavailable,
            ErrorClass::TimedOut => Self::TimedOut,
            ErrorClass::Failure => Self::Failure,
        }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let code = serde_json::to_value(error.code)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_else(|| "unknown".to_owned());
        Self {
            exit: error.code.class().into(),
            code,
            message: error.message,
            next_step: error.next_step,
            details: error.details,
            faults: error.faults.into(),
        }
    }
}
