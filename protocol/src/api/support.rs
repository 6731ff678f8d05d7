//! What somebody needs who looks for a fault and is not there: gathered from each host, without secrets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ids::HostId;

/// One file of a support bundle.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SupportFile {
    /// Its name, without folders.
    pub name: String,
    /// What it says.
    pub text: String,
}

/// What should be in a support bundle and is not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct MissingPart {
    /// What it is.
    pub what: String,
    /// Why it is missing.
    pub why: String,
}

/// What one host has to say.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct HostSupport {
    /// The host.
    pub host: HostId,
    /// What it is called.
    pub host_name: String,
    /// Its files.
    pub files: Vec<SupportFile>,
    /// What it could not give.
    pub missing: Vec<MissingPart>,
}
