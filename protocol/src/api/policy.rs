//! How a volume's data is kept: on the wire `{"method":"mirror","copies":3}` or `{"method":"raid6","data":4,"parity":2}`, on
//! the command line `mirror:3` or `raid6:4+2`; without its numbers, `raid5` is `raid5:2+1` and `raid6` is `raid6:4+2`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The most copies of a mirror: three failures to tolerate.
pub const MIRROR_COPIES_MAX: u8 = 4;

/// A policy that can be carried out.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "PolicySpec", into = "PolicySpec")]
pub enum Policy {
    /// RAID-1: whole copies, each in another fault domain; tolerates one failure fewer than there are copies.
    Mirror {
        /// 1 to [`MIRROR_COPIES_MAX`].
        copies: u8,
    },
    /// RAID-5 and RAID-6: shards of data and of parity, each in another fault domain; tolerates as many failures as there
    /// are shards of parity.
    Parity {
        /// 2 or 4.
        data: u8,
        /// 1 (RAID-5) or 2 (RAID-6).
        parity: u8,
    },
}

/// A policy as a request spells it, checked by [`Policy::try_from`].
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// `mirror`, `raid5` or `raid6`.
    #[schema(example = "mirror")]
    pub method: String,
    /// Of a mirror: how many copies, 1 to 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 3)]
    pub copies: Option<u8>,
    /// Of `raid5` and `raid6`: how many shards hold data, 2 or 4. Without it and `parity`, 2 of `raid5` and 4 of `raid6`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<u8>,
    /// Of `raid5` and `raid6`: how many shards hold parity, 1 and 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<u8>,
}

/// Why a text or a specification is no policy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadPolicy {
    /// Not a method that there is.
    #[error("{0:?} is not a policy; use mirror:1 to mirror:4, raid5:2+1, raid5:4+1, raid6:2+2 or raid6:4+2")]
    Unknown(String),
    /// A mirror of too few or too many copies.
    #[error(
        "a mirror has 1 to 4 copies, not {0:?}; use mirror:2 (one failure), mirror:3 (two) or mirror:4 (three)"
    )]
    Copies(String),
    /// Numbers of shards that there are not.
    #[error("{method} has no {shards:?}; use {method}:{} or {method}:{}", widths(.method)[0], widths(.method)[1])]
    Shards {
        /// The method.
        method: String,
        /// What was asked for.
        shards: String,
    },
}

fn widths(method: &str) -> [&'static str; 2] {
    if method == "raid6" { ["2+2", "4+2"] } else { ["2+1", "4+1"] }
}

impl Policy {
    /// How many hosts or disks may fail with no data lost.
    pub const fn failures_to_tolerate(self) -> u8 {
        match self {
            Self::Mirror { copies } => copies.saturating_sub(1),
            Self::Parity { parity, .. } => parity,
        }
    }

    /// How many fault domains with a usable disk it needs.
    pub const fn domains(self) -> u8 {
        match self {
            Self::Mirror { copies } => copies,
            Self::Parity { data, parity } => data.saturating_add(parity),
        }
    }

    /// What so many bytes of a guest's data take on all disks together, in bytes.
    pub const fn raw_bytes(self, guest_bytes: u64) -> u64 {
        let of = match self {
            Self::Mirror { .. } | Self::Parity { data: 0, .. } => 1,
            Self::Parity { data, .. } => data as u64,
        };
        guest_bytes.div_ceil(of).saturating_mul(self.domains() as u64)
    }

    fn of_shards(method: &str, data: u8, parity: u8) -> Result<Self, BadPolicy> {
        match (method, data, parity) {
            ("raid5", 2 | 4, 1) | ("raid6", 2 | 4, 2) => Ok(Self::Parity { data, parity }),
            _ => Err(BadPolicy::Shards { method: method.to_owned(), shards: format!("{data}+{parity}") }),
        }
    }
}

impl TryFrom<PolicySpec> for Policy {
    type Error = BadPolicy;
    fn try_from(spec: PolicySpec) -> Result<Self, BadPolicy> {
        let PolicySpec { method, copies, data, parity } = spec;
        let shown = |n: Option<u8>| n.map_or_else(|| "?".to_owned(), |n| n.to_string());
        match (method.as_str(), copies, data, parity) {
            ("mirror", Some(copies @ 1..=MIRROR_COPIES_MAX), None, None) => Ok(Self::Mirror { copies }),
            ("mirror", Some(copies), None, None) => Err(BadPolicy::Copies(copies.to_string())),
            ("mirror", None, None, None) => Err(BadPolicy::Copies("none".to_owned())),
            ("mirror", _, data, parity) => {
                Err(BadPolicy::Copies(format!("{}+{} shards", shown(data), shown(parity))))
            }
            ("raid5", None, None, None) => Self::of_shards("raid5", 2, 1),
            ("raid6", None, None, None) => Self::of_shards("raid6", 4, 2),
            ("raid5" | "raid6", None, Some(data), Some(parity)) => Self::of_shards(&method, data, parity),
            ("raid5" | "raid6", Some(copies), ..) => {
                Err(BadPolicy::Shards { method, shards: format!("{copies} copies") })
            }
            ("raid5" | "raid6", None, data, parity) => {
                Err(BadPolicy::Shards { method, shards: format!("{}+{}", shown(data), shown(parity)) })
            }
            _ => Err(BadPolicy::Unknown(method)),
        }
    }
}

impl From<Policy> for PolicySpec {
    fn from(policy: Policy) -> Self {
        match policy {
            Policy::Mirror { copies } => {
                Self { method: "mirror".to_owned(), copies: Some(copies), ..Self::default() }
            }
            Policy::Parity { data, parity } => Self {
                method: method_of(parity).to_owned(),
                copies: None,
                data: Some(data),
                parity: Some(parity),
            },
        }
    }
}

const fn method_of(parity: u8) -> &'static str {
    if parity == 1 { "raid5" } else { "raid6" }
}

impl FromStr for Policy {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let (method, argument) = match text.split_once(':') {
            Some((method, argument)) => (method, Some(argument)),
            None => (text, None),
        };
        let spec = PolicySpec { method: method.to_owned(), ..PolicySpec::default() };
        match (method, argument) {
            ("mirror", Some(copies)) => {
                let copies = copies.parse().map_err(|_| BadPolicy::Copies(copies.to_owned()))?;
                PolicySpec { copies: Some(copies), ..spec }.try_into()
            }
            ("raid5" | "raid6", Some(shards)) => {
                let numbers = shards
                    .split_once('+')
                    .and_then(|(data, parity)| Some((data.parse().ok()?, parity.parse().ok()?)));
                let Some((data, parity)) = numbers else {
                    return Err(BadPolicy::Shards { method: method.to_owned(), shards: shards.to_owned() });
                };
                PolicySpec { data: Some(data), parity: Some(parity), ..spec }.try_into()
            }
            (_, Some(_)) => Err(BadPolicy::Unknown(text.to_owned())),
            (_, None) => spec.try_into(),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mirror { copies } => write!(f, "mirror:{copies}"),
            Self::Parity { data, parity } => write!(f, "{}:{data}+{parity}", method_of(*parity)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_specification_agree() {
        let mirrors = (1..=MIRROR_COPIES_MAX).map(|copies| (Policy::Mirror { copies }, copies - 1));
        let shards = [(2, 1), (4, 1), (2, 2), (4, 2)];
        let parity = shards.map(|(data, parity)| (Policy::Parity { data, parity }, parity));
        for (policy, failures) in mirrors.chain(parity) {
            assert_eq!(policy.to_string().parse(), Ok(policy));
            assert_eq!(Policy::try_from(PolicySpec::from(policy)), Ok(policy));
            assert_eq!(policy.failures_to_tolerate(), failures);
        }
        assert_eq!("raid5".parse(), Ok(Policy::Parity { data: 2, parity: 1 }));
        assert_eq!("raid6".parse(), Ok(Policy::Parity { data: 4, parity: 2 }));
        assert_eq!(Policy::Parity { data: 4, parity: 2 }.to_string(), "raid6:4+2");
    }

    #[test]
    fn what_a_policy_takes() {
        let taken = |text: &str| {
            let policy: Policy = text.parse().unwrap();
            (policy.domains(), policy.raw_bytes(1 << 20))
        };
        assert_eq!(taken("mirror:3"), (3, 3 << 20));
        assert_eq!(taken("raid5:2+1"), (3, 3 << 19));
        assert_eq!(taken("raid6:4+2"), (6, 6 << 18));
        assert_eq!(Policy::Mirror { copies: 3 }.raw_bytes(u64::MAX), u64::MAX);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for text in ["mirror", "mirror:", "mirror:0", "mirror:9", "mirror:-1", "mirror:300", "mirror:3:1"] {
            assert!(matches!(text.parse::<Policy>(), Err(BadPolicy::Copies(_))), "{text}");
        }
        for text in ["", "raid1", "Mirror:3", ":", "3", "raid7:4+2"] {
            assert!(matches!(text.parse::<Policy>(), Err(BadPolicy::Unknown(_))), "{text}");
        }
        for text in [
            "raid5:",
            "raid5:4",
            "raid5:3+1",
            "raid5:4+2",
            "raid6:4+1",
            "raid6:4+2+1",
            "raid6:+",
            "raid6:999+2",
        ] {
            assert!(matches!(text.parse::<Policy>(), Err(BadPolicy::Shards { .. })), "{text}");
        }
        let spec = |method: &str, copies, data, parity| PolicySpec {
            method: method.to_owned(),
            copies,
            data,
            parity,
        };
        for spec in [
            spec("mirror", Some(2), Some(2), None),
            spec("raid6", Some(2), None, None),
            spec("raid6", None, Some(4), None),
            spec("raid6", Some(1), Some(4), Some(2)),
        ] {
            assert!(Policy::try_from(spec.clone()).is_err(), "{spec:?}");
        }
        let refused = "raid6:8+3".parse::<Policy>().unwrap_err().to_string();
        assert_eq!(refused, r#"raid6 has no "8+3"; use raid6:2+2 or raid6:4+2"#);
    }
}
