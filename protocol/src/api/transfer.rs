//! Bulk data in and out of a volume, for import and export.
//!
//! ```text
//!   POST …/transfers ──► open ──► PUT / GET data, POST discard (several in flight, in any order)
//!                                   │
//!                                   ▼
//!   DELETE …/transfers/{id}?outcome=complete | abort      (or nobody asks for a while: abort)
//! ```
//!
//! While a transfer is open the daemon owns the volume, so that nobody else can. From the beginning of an import until it is
//! completed the volume is marked `incomplete`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::{TransferId, VolumeName};

/// Which way the data goes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferDirection {
    /// Into the volume.
    Import,
    /// Out of it.
    Export,
}

/// Begin a transfer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginTransferRequest {
    /// Which way.
    pub direction: TransferDirection,
    /// Of an import, the image's size: refused at once if the volume is smaller.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_bytes: Option<u64>,
}

/// A transfer that is open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Transfer {
    /// Its id.
    pub id: TransferId,
    /// The volume.
    pub volume: VolumeName,
    /// Which way.
    pub direction: TransferDirection,
    /// The volume's size.
    pub size_bytes: u64,
    /// It is aborted when nobody used it for this long.
    pub idle_seconds_max: u64,
}

/// Make a part of the volume read as zeros and free its space.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiscardRequest {
    /// The first byte: whole blocks of 4 KiB.
    pub offset: u64,
    /// How many: whole blocks of 4 KiB, any number of them.
    pub length: u64,
}

/// How a transfer ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TransferOutcome {
    /// All is there; the volume is not `incomplete` any more.
    Complete,
    /// It was given up; an import leaves the volume `incomplete`.
    Abort,
}

/// A transfer that is over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct TransferEnded {
    /// Whether the volume is `incomplete`.
    pub incomplete: bool,
}
