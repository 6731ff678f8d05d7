//! Deliberate bugs, to prove that the simulator would find them. Off unless the feature `bugs` is on, which only the
//! simulator turns on: in the daemon [`Bugs::has`] is a constant `false`.

/// A deliberate bug. Its name is what `ferro-sim storage --bug` takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A write is answered before it is on stable storage.
    AckBeforeFlush,
    /// Replicas accept any epoch.
    NoSeal,
    /// The promise not to serve lower epochs is not written down.
    SealInMemory,
    /// A resync does not mirror the writes that come meanwhile.
    ResyncSkipsWrites,
    /// A write is acknowledged before the directory has removed the component that missed it.
    ShrinkAfterAck,
    /// The watermark counts writes that are still under way.
    WrongWatermark,
    /// Reads are served after the lease has ended.
    StaleReadAfterLease,
    /// Checksums are not looked at.
    CrcUnchecked,
    /// A resync copies only what changed on the source, not what the returning component alone has.
    ResyncKeepsDivergent,
    /// A new owner serves before its components agree.
    ServeBeforeAgreement,
    /// An overtaken change of the in-sync set is taken by the directory.
    NoRevisionCheck,
}

impl Bug {
    /// All of them, with their names and what they do.
    pub const ALL: [(&'static str, Self, &'static str); 11] = [
        ("ack-before-flush", Self::AckBeforeFlush, "a write is answered before it is on stable storage"),
        ("no-seal", Self::NoSeal, "replicas accept any epoch"),
        ("seal-in-memory", Self::SealInMemory, "the promise to refuse lower epochs is not written down"),
        ("resync-skips-writes", Self::ResyncSkipsWrites, "a resync does not mirror concurrent writes"),
        (
            "shrink-after-ack",
            Self::ShrinkAfterAck,
            "a write is acknowledged before a component that missed it is out",
        ),
        ("wrong-watermark", Self::WrongWatermark, "the watermark counts writes that are under way"),
        ("stale-read-after-lease", Self::StaleReadAfterLease, "reads are served after the lease has ended"),
        ("crc-unchecked", Self::CrcUnchecked, "checksums are not looked at"),
        (
            "resync-keeps-divergent",
            Self::ResyncKeepsDivergent,
            "a resync leaves what only the returning component has",
        ),
        (
            "serve-before-agreement",
            Self::ServeBeforeAgreement,
            "a new owner serves before its components agree",
        ),
        (
            "no-revision-check",
            Self::NoRevisionCheck,
            "the directory takes an overtaken change of the in-sync set",
        ),
    ];
}

/// Which bug is on, if any.
pub type Bugs = ferro_protocol::bugs::Bugs<Bug>;
