//! How much a guest may ask of a volume: on the wire `{"iops":500,"bytes_per_second":104857600,"burst_seconds":10}`.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::format_size;

/// The fewest requests a second that a limit may leave: with fewer, guests take the disk for dead.
pub const LIMIT_IOPS_MIN: u32 = 10;
/// The fewest bytes a second that a limit may leave, for the same reason.
pub const LIMIT_BYTES_MIN: u64 = 1 << 20;
/// The longest burst, in seconds.
pub const LIMIT_BURST_MAX: u32 = 3_600;

/// The limits of a volume; by default none. They are for its guest, not for imports, exports, resyncs and scrubs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VolumeLimits {
    /// Reads, writes and discards a second, of any size; 10 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 500)]
    pub iops: Option<u32>,
    /// Bytes read and written a second; 1 MiB or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = 104_857_600)]
    pub bytes_per_second: Option<u64>,
    /// What was not used for a while may be used at once: of so many seconds, up to an hour. By default 0, so never.
    #[serde(default)]
    pub burst_seconds: u32,
}

/// Why limits are none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadLimits {
    /// Too few requests.
    #[error("{0} requests a second are too few: a limit is {LIMIT_IOPS_MIN} or more")]
    Iops(u32),
    /// Too few bytes.
    #[error("{} a second are too few: a limit is {} or more", format_size(*.0), format_size(LIMIT_BYTES_MIN))]
    Bytes(u64),
    /// Too long a burst.
    #[error("a burst of {0} s is too long: the longest is {LIMIT_BURST_MAX} s")]
    Burst(u32),
    /// A burst of nothing.
    #[error("a burst needs a limit that it goes beyond")]
    BurstAlone,
}

impl VolumeLimits {
    /// Whether there are none.
    pub const fn is_none(&self) -> bool {
        self.iops.is_none() && self.bytes_per_second.is_none()
    }

    /// Whether they can be kept to.
    pub fn check(&self) -> Result<(), BadLimits> {
        match *self {
            Self { iops: Some(iops), .. } if iops < LIMIT_IOPS_MIN => Err(BadLimits::Iops(iops)),
            Self { bytes_per_second: Some(bytes), .. } if bytes < LIMIT_BYTES_MIN => {
                Err(BadLimits::Bytes(bytes))
            }
            Self { burst_seconds, .. } if burst_seconds > LIMIT_BURST_MAX => {
                Err(BadLimits::Burst(burst_seconds))
            }
            Self { burst_seconds: 1.., .. } if self.is_none() => Err(BadLimits::BurstAlone),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for VolumeLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.iops, self.bytes_per_second) {
            (None, None) => return f.write_str("none"),
            (Some(iops), None) => write!(f, "{iops} IOPS")?,
            (None, Some(bytes)) => write!(f, "{}/s", format_size(bytes))?,
            (Some(iops), Some(bytes)) => write!(f, "{iops} IOPS and {}/s", format_size(bytes))?,
        }
        if self.burst_seconds > 0 {
            write!(f, ", bursts of {} s", self.burst_seconds)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(iops: Option<u32>, bytes_per_second: Option<u64>, burst_seconds: u32) -> VolumeLimits {
        VolumeLimits { iops, bytes_per_second, burst_seconds }
    }

    #[test]
    fn limits_that_would_stop_a_guest_are_refused() {
        for good in [limits(None, None, 0), limits(Some(10), None, 3_600), limits(None, Some(1 << 20), 0)] {
            assert_eq!(good.check(), Ok(()), "{good:?}");
        }
        assert_eq!(limits(Some(9), None, 0).check(), Err(BadLimits::Iops(9)));
        assert_eq!(limits(Some(0), Some(1 << 30), 0).check(), Err(BadLimits::Iops(0)));
        assert_eq!(limits(None, Some(1_000), 0).check(), Err(BadLimits::Bytes(1_000)));
        assert_eq!(limits(Some(100), None, 3_601).check(), Err(BadLimits::Burst(3_601)));
        assert_eq!(limits(None, None, 5).check(), Err(BadLimits::BurstAlone));
    }

    #[test]
    fn they_are_said_in_words() {
        assert_eq!(limits(None, None, 0).to_string(), "none");
        assert_eq!(limits(Some(500), None, 0).to_string(), "500 IOPS");
        assert_eq!(
            limits(Some(500), Some(100 << 20), 10).to_string(),
            "500 IOPS and 100 MiB/s, bursts of 10 s"
        );
    }
}
