//! Names that people give: short, and fit for a file's name.

/// The longest name, in bytes.
pub(crate) const LEN_MAX: usize = 63;

/// Whether the text is a name of letters (`is_letter` says which), digits, `-`, `_` and `.`, beginning with a letter or
/// a digit.
pub(crate) fn is_name(text: &str, is_letter: fn(&u8) -> bool) -> bool {
    let begins = |c: &u8| is_letter(c) || c.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=LEN_MAX).contains(&bytes.len())
        && begins(&bytes[0])
        && bytes.iter().all(|c| begins(c) || matches!(c, b'-' | b'_' | b'.'))
}

/// Makes a type of names: its doc and name, which letters it may have, then the doc, name and message of its error.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $letter:path, $(#[$bad_doc:meta])* $bad:ident, $message:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
        #[serde(try_from = "String", into = "String")]
        #[schema(value_type = String)]
        pub struct $name(String);

        $(#[$bad_doc])*
        #[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
        #[error($message)]
        pub struct $bad(pub String);

        impl $name {
            /// The longest name, in bytes.
            pub const LEN_MAX: usize = $crate::name::LEN_MAX;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = $bad;
            fn try_from(text: String) -> Result<Self, $bad> {
                if $crate::name::is_name(&text, $letter) { Ok(Self(text)) } else { Err($bad(text)) }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $bad;
            fn from_str(text: &str) -> Result<Self, $bad> {
                Self::try_from(text.to_owned())
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

pub(crate) use name;
