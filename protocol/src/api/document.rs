//! Documents of the cluster directory.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::document::DocumentName;

/// The longest that a request waits for a change, in seconds.
pub const DOCUMENTS_WAIT_MAX_S: u64 = 60;

/// A document without its content.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct DocumentInfo {
    /// Its name.
    pub name: DocumentName,
    /// Its revision: each change makes it higher.
    pub revision: u64,
    /// How long it is.
    pub bytes: u64,
}

/// Documents, by name.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct DocumentList {
    /// The revision of the last change to any document of the cluster, one that was deleted too. It never goes back; a host
    /// that is behind the others answers with an earlier one than they do.
    pub revision: u64,
    /// The documents.
    pub documents: Vec<DocumentInfo>,
}

/// A document.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Document {
    /// Its name.
    pub name: DocumentName,
    /// Its revision.
    pub revision: u64,
    /// What it says.
    pub content: String,
}

/// A document that was put.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PutDocument {
    /// Its revision now.
    pub revision: u64,
}
