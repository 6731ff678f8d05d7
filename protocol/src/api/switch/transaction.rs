//! Transactions and how far they have come on each host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::change::Change;
use super::spec::Spec;
use crate::ids::HostId;

/// The most changes of one transaction.
pub const TRANSACTION_CHANGES_MAX: usize = 10_000;
/// How long a change that has to be confirmed holds without it, unless the transaction says otherwise.
pub const CONFIRM_SECONDS_DEFAULT: u32 = 30;
/// At most.
pub const CONFIRM_SECONDS_MAX: u32 = 3600;
/// The longest that one request waits for hosts.
pub const WAIT_SECONDS_MAX: u32 = 30;

/// Changes, all or none.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Transaction {
    /// The revision that the changes were made for. If the configuration has another one by now, nothing is done (code
    /// `conflict`). Without it the changes are made to whatever is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<u64>,
    /// What is to change, in this order. Checked as a whole, after the last: what is in between may be wrong.
    pub changes: Vec<Change>,
    /// Only say whether it could be done.
    #[serde(default)]
    pub dry_run: bool,
    /// Undo it after so many seconds unless it is confirmed. A change that cuts a host off from its peers undoes itself
    /// after [`CONFIRM_SECONDS_DEFAULT`] anyhow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_s: Option<u32>,
}

/// What came of a transaction. With a fault there is none, but an error (code `invalid_network`) with a line for each fault.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Transacted {
    /// The configuration's revision now; of a dry run and of a transaction that changes nothing, what it was.
    pub revision: u64,
    /// Whether anything changed, or would.
    pub changed: bool,
    /// It was only asked.
    pub dry_run: bool,
    /// What the configuration is now, or would be.
    pub spec: Spec,
    /// So many seconds are left to confirm it, if it has to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_within_s: Option<u32>,
}

/// How far a revision has come.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// The revision that was asked for.
    pub revision: u64,
    /// All hosts, by name.
    pub hosts: Vec<HostApplied>,
}

impl Applied {
    /// Whether no host that answers still has it to do.
    pub fn is_settled(&self) -> bool {
        self.hosts.iter().all(|host| host.progress != HostProgress::Pending)
    }
}

/// What one host has made of the configuration.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostApplied {
    /// Which host.
    pub host: HostId,
    /// Its name, where known; its id else.
    pub name: String,
    /// Whether it is the one that answers.
    pub this_host: bool,
    /// How far it is.
    pub progress: HostProgress,
    /// The revision in force there, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// What is in the way, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// How far a host is with a revision.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HostProgress {
    /// It has this revision, or a newer one.
    Applied,
    /// It answers and has an older one.
    Pending,
    /// It does not answer; it takes the configuration over when it is back.
    Unreachable,
    /// It can't take it over.
    Failed,
    /// It went back to what it had before, because it was cut off or nobody confirmed.
    RolledBack,
}
