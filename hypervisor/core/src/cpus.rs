//! Sets of a host's processors, as Linux writes them (`Documentation/admin-guide/cgroup-v2.rst`, `cpuset.cpus`): `0-3,8`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ferro_protocol::api::vm::spec::CPUS_MAX;

/// The highest number of a processor that is taken: what Linux can be built for.
pub const CPU_MAX: u32 = 8191;

/// The longest text that is taken for an [`Affinity`]. A list names up to 8192 processors in 6 bytes, so what a longer text asks for
/// in memory is out of proportion to it.
const AFFINITY_BYTES_MAX: usize = 2048;

/// Some of a host's processors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuSet(BTreeSet<u32>);

/// A text that is no set of processors.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a list of processors: write numbers and ranges up to {CPU_MAX}, as in 0-3,8")]
pub struct BadCpuSet(pub String);

/// A text that does not say where virtual processors run.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadAffinity {
    /// One of its lists is none.
    #[error(transparent)]
    List(#[from] BadCpuSet),
    /// It is too long.
    #[error(
        "it has {bytes} bytes and {lists} lists: at most {AFFINITY_BYTES_MAX} and {CPUS_MAX} are possible"
    )]
    TooLong {
        /// Its length.
        bytes: usize,
        /// How many lists it has.
        lists: usize,
    },
}

impl CpuSet {
    /// These.
    pub fn new(cpus: impl IntoIterator<Item = u32>) -> Self {
        Self(cpus.into_iter().collect())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of `self` that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// Those of either.
    #[must_use]
    pub fn with(mut self, other: &Self) -> Self {
        self.0.extend(&other.0);
        self
    }
}

impl FromStr for CpuSet {
    type Err = BadCpuSet;
    fn from_str(text: &str) -> Result<Self, BadCpuSet> {
        let bad = || BadCpuSet(text.to_owned());
        let number = |part: &str| {
            let digits = (1..=4).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse::<u32>().ok()).flatten().filter(|cpu| *cpu <= CPU_MAX).ok_or_else(bad)
        };
        let mut cpus = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

/// Where virtual processors run: one set for all of them, or one for each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Affinity(Vec<CpuSet>);

impl Affinity {
    /// The sets: one, or one for each virtual processor.
    pub fn sets(&self) -> &[CpuSet] {
        &self.0
    }

    /// All processors that are named.
    pub fn all(&self) -> CpuSet {
        self.0.iter().fold(CpuSet::default(), |all, set| all.with(set))
    }
}

impl FromStr for Affinity {
    type Err = BadAffinity;
    fn from_str(text: &str) -> Result<Self, BadAffinity> {
        let (bytes, lists) = (text.len(), text.split(';').count());
        if bytes > AFFINITY_BYTES_MAX || lists > CPUS_MAX as usize {
            return Err(BadAffinity::TooLong { bytes, lists });
        }
        Ok(Self(text.split(';').map(str::parse).collect::<Result<_, _>>()?))
    }
}

impl fmt::Display for Affinity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, set) in self.0.iter().enumerate() {
            let between = if at == 0 { "" } else { ";" };
            write!(f, "{between}{set}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_linux_does() {
        for (text, written) in [("0", "0"), ("3,1,2", "1-3"), ("0-3,8", "0-3,8"), ("5,5-6,9-9", "5-6,9")] {
            assert_eq!(text.parse::<CpuSet>().unwrap().to_string(), written);
        }
        for bad in ["", ",", "1-", "-1", "3-1", "a", "0,,1", "8192", "1 2", "+1", "99999999999"] {
            assert!(bad.parse::<CpuSet>().is_err(), "{bad}");
        }
        let affinity: Affinity = "0-1;4".parse().unwrap();
        assert_eq!((affinity.to_string().as_str(), affinity.all().to_string().as_str()), ("0-1;4", "0-1,4"));
        assert!("0;;1".parse::<Affinity>().is_err());
    }

    /// A body of 256 KiB could name every processor 37,000 times: gigabytes.
    #[test]
    fn what_takes_memory_out_of_proportion_is_not_read() {
        let (lists, ranges) = (vec!["0-8191"; 65].join(";"), vec!["0-8191"; 600].join(","));
        for text in [lists, ranges] {
            let error = text.parse::<Affinity>().unwrap_err();
            assert!(matches!(error, BadAffinity::TooLong { .. }), "{error}");
        }
        assert!(vec!["0-8191"; 64].join(";").parse::<Affinity>().is_ok());
    }
}
