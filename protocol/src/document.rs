//! Documents: named texts that the cluster directory keeps for other daemons. What they say is their owners' business.
//!
//! A document is put, changed and taken away by compare-and-set on its revision; revision 0 is that of one that is not there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The largest document, in bytes.
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;
/// The most documents of a cluster.
pub const DOCUMENTS_MAX: usize = 4_096;
/// All documents of a cluster together, in bytes: each host holds them in memory and sends them in snapshots.
pub const DOCUMENTS_BYTES_MAX: usize = 64 << 20;

/// A document's name: a path of names between slashes, such as `switch/network`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String)]
pub struct DocumentName(String);

/// A text that is no document's name.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is not a document's name: use at most 255 letters, digits, '-', '_' and '.', in parts of at most 63 that begin \
     with a letter or a digit, with '/' between them"
)]
pub struct BadDocumentName(pub String);

impl DocumentName {
    /// The longest name, in bytes.
    pub const LEN_MAX: usize = 255;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DocumentName {
    type Error = BadDocumentName;
    fn try_from(text: String) -> Result<Self, BadDocumentName> {
        let good = text.len() <= Self::LEN_MAX
            && text.split('/').all(|part| crate::name::is_name(part, u8::is_ascii_alphabetic));
        if good { Ok(Self(text)) } else { Err(BadDocumentName(text)) }
    }
}

impl From<DocumentName> for String {
    fn from(name: DocumentName) -> Self {
        name.0
    }
}

impl FromStr for DocumentName {
    type Err = BadDocumentName;
    fn from_str(text: &str) -> Result<Self, BadDocumentName> {
        Self::try_from(text.to_owned())
    }
}

impl fmt::Display for DocumentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_paths_of_names() {
        for good in ["a", "switch/network", "switch/host/0b5f-1", "a/B/c_d.e"] {
            assert_eq!(good.parse::<DocumentName>().unwrap().as_str(), good);
        }
        let long = "a/".repeat(128);
        for bad in ["", "/", "/a", "a/", "a//b", "a/../b", "a b", "a?b", "ü", long.as_str()] {
            assert!(bad.parse::<DocumentName>().is_err(), "{bad:?}");
        }
    }
}
