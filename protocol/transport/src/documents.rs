//! The form of what daemons keep in the cluster directory: JSON whose `format` says which version it is. One of another
//! format is refused, not guessed.
//!
//! What it must not know: what a document says.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Why a document can't be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadDocument {
    /// Another version wrote it.
    #[error("it has format {found}, this daemon reads {reads}: bring this host to the cluster's version")]
    Format {
        /// What it has.
        found: u32,
        /// What can be read.
        reads: u32,
    },
    /// It is not ours.
    #[error("it can't be read: {0}")]
    Content(String),
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Reads one of this format.
pub fn read<T: DeserializeOwned>(text: &str, reads: u32) -> Result<T, BadDocument> {
    let content = |error: serde_json::Error| BadDocument::Content(error.to_string());
    let Format { format: found } = serde_json::from_str(text).map_err(content)?;
    if found != reads {
        return Err(BadDocument::Format { found, reads });
    }
    serde_json::from_str(text).map_err(content)
}

/// Writes one.
pub fn write<T: Serialize>(document: &T) -> Result<String, BadDocument> {
    serde_json::to_string(document).map_err(|error| BadDocument::Content(error.to_string()))
}
