//! How a volume's data is kept: on the wire `{"method":"mirror","copies":3}`, on the command line `mirror:3`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most copies of a mirror: two failures to tolerate.
pub const MIRROR_COPIES_MAX: u8 = 3;

/// A policy that can be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "PolicySpec", into = "PolicySpec")]
pub enum Policy {
    /// RAID-1: whole copies, each in another fault domain; tolerates one failure fewer than there are copies.
    Mirror {
        /// 1 to [`MIRROR_COPIES_MAX`].
        copies: u8,
    },
}

/// A policy as a request spells it, checked by [`Policy::try_from`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// `mirror`.
    #[schema(example = "mirror")]
    pub method: String,
    /// Of a mirror: how many copies, 1 to 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 3)]
    pub copies: Option<u8>,
}

/// Why a text or a specification is no policy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPolicy {
    /// Not a method that there is or will be.
    #[error("{0:?} is not a policy; use mirror:1, mirror:2 or mirror:3")]
    Unknown(String),
    /// A method that is planned.
    #[error("the policy {0} is not available yet; use mirror:2 (one failure) or mirror:3 (two failures)")]
    NotYet(String),
    /// A mirror of too few or too many copies.
    #[error("a mirror has 1, 2 or 3 copies, not {0:?}; use mirror:1, mirror:2 or mirror:3")]
    Copies(String),
}

impl Policy {
    /// How many copies of each block there are.
    pub const fn copies(self) -> u8 {
        match self {
            Self::Mirror { copies } => copies,
        }
    }

    /// How many hosts or disks may fail with no data lost.
    pub const fn failures_to_tolerate(self) -> u8 {
        self.copies().saturating_sub(1)
    }
}

impl TryFrom<PolicySpec> for Policy {
    type Error = BadPolicy;
    fn try_from(spec: PolicySpec) -> Result<Self, BadPolicy> {
        match (spec.method.as_str(), spec.copies) {
            ("mirror", Some(copies @ 1..=MIRROR_COPIES_MAX)) => Ok(Self::Mirror { copies }),
            ("mirror", Some(copies)) => Err(BadPolicy::Copies(copies.to_string())),
            ("mirror", None) => Err(BadPolicy::Copies("none".to_owned())),
            ("raid5" | "raid6", _) => Err(BadPolicy::NotYet(spec.method)),
            _ => Err(BadPolicy::Unknown(spec.method)),
        }
    }
}

impl From<Policy> for PolicySpec {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Mirror { copies } => Self { method: "mirror".to_owned(), copies: Some(copies) },
        }
    }
}

impl FromStr for Policy {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let (method, argument) = match text.split_once(':') {
            Some((method, argument)) => (method, Some(argument)),
            None => (text, None),
        };
        match (method, argument) {
            ("mirror", Some(copies)) => {
                let copies = copies.parse().map_err(|_| BadPolicy::Copies(copies.to_owned()))?;
                PolicySpec { method: method.to_owned(), copies: Some(copies) }.try_into()
            }
            ("mirror", None) => Err(BadPolicy::Copies("none".to_owned())),
            ("raid5" | "raid6", _) => Err(BadPolicy::NotYet(method.to_owned())),
            _ => Err(BadPolicy::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mirror { copies } => write!(f, "mirror:{copies}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_specification_agree() {
        for copies in 1..=3 {
            let policy = Policy::Mirror { copies };
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(Policy::try_from(PolicySpec::from(policy)), Ok(policy));
            assert_eq!(policy.failures_to_tolerate(), copies - 1);
        }
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in ["mirror", "mirror:", "mirror:0", "mirror:4", "mirror:-1", "mirror:300", "mirror:3:1"] {
            assert!(matches!(text.parse::<Policy>(), Err(BadPolicy::Copies(_))), "{text}");
        }
        for text in ["", "raid1", "Mirror:3", ":", "3"] {
            assert!(matches!(text.parse::<Policy>(), Err(BadPolicy::Unknown(_))), "{text}");
        }
        for text in ["raid5", "raid6", "raid5:4"] {
            assert!(matches!(text.parse::<Policy>(), Err(BadPolicy::NotYet(_))), "{text}");
        }
    }
}
