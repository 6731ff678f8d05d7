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
    /// A new owner takes versions again that a stale component is marked with.
    MarksForgotten,
    /// Checksums are not looked at.
    CrcUnchecked,
    /// A resync copies only what changed on the source, not what the returning component alone has.
    ResyncKeepsDivergent,
    /// A new owner serves before its components agree.
    ServeBeforeAgreement,
    /// An overtaken change of the in-sync set is taken by the directory.
    NoRevisionCheck,
    /// Data is put into its shard before the parity is: the write hole.
    DataBeforeParity,
    /// Parities of different generations are decoded as if they were of one.
    GenerationsMixed,
    /// A shard that is not in sync is made use of.
    StaleShardDecoded,
    /// A shard is rebuilt without holding its rows against jobs.
    RebuildRacesDestage,
    /// The directory takes a chunk's shards out of the in-sync set until too few are left.
    TooFewShards,
    /// The log's slots are given back when the data was sent to its shard, not when it is there.
    LogTrimmedEarly,
    /// A record of the log is given back when it was written over, though a parity may be counted with it.
    LogForgetsOverwritten,
    /// A new owner takes a record for whole that is not.
    LogNotRead,
    /// A scrub finds bad blocks and does not have them mended.
    ScrubLeavesBad,
    /// A scrub looks at one component of each chunk only.
    ScrubSkipsCopies,
    /// A host in maintenance may be switched off though the other copies are not in sync.
    MaintenanceCountsStale,
    /// What is away because its host is in maintenance is built elsewhere.
    MaintenanceRebuilds,
    /// The directory does not remember which disks were removed.
    RemovedForgotten,
    /// While an object is converted, what is written where it was copied already goes to the former object only.
    ConversionMissesWrites,
    /// Staged data is put in force before the staged parity.
    DataPromotedFirst,
    /// A new owner takes nothing for staged, whatever the log says.
    StagedForgotten,
    /// The directory does not know who is away.
    AwayUnknown,
    /// A component that is in sync goes at once, and what it answers afterwards counts.
    GoneAnswered,
}

impl Bug {
    /// All of them, with their names and what they do.
    pub const ALL: [(&'static str, Self, &'static str); 30] = [
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
        (
            "marks-forgotten",
            Self::MarksForgotten,
            "a new owner takes versions again that a stale component is marked with",
        ),
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
        (
            "data-before-parity",
            Self::DataBeforeParity,
            "data is put into its shard before the parity (the write hole)",
        ),
        (
            "generations-mixed",
            Self::GenerationsMixed,
            "parities of different generations are decoded as if they were of one",
        ),
        ("stale-shard-decoded", Self::StaleShardDecoded, "a shard that is not in sync is made use of"),
        (
            "rebuild-races-destage",
            Self::RebuildRacesDestage,
            "a shard is rebuilt without holding its rows against destaging",
        ),
        ("too-few-shards", Self::TooFewShards, "the in-sync set shrinks below what the code needs"),
        ("log-trimmed-early", Self::LogTrimmedEarly, "the log forgets data that is not in its shard yet"),
        (
            "log-forgets-overwritten",
            Self::LogForgetsOverwritten,
            "the log forgets an overwritten value that a parity was counted with",
        ),
        ("log-not-read", Self::LogNotRead, "a new owner does not read the log that the former one left"),
        ("scrub-leaves-bad", Self::ScrubLeavesBad, "a scrub does not mend the bad blocks that it finds"),
        ("scrub-skips-copies", Self::ScrubSkipsCopies, "a scrub looks at one component of each chunk only"),
        (
            "maintenance-counts-stale",
            Self::MaintenanceCountsStale,
            "a host may be switched off though the other copies are not in sync",
        ),
        (
            "maintenance-rebuilds",
            Self::MaintenanceRebuilds,
            "what is away because its host is in maintenance is built elsewhere",
        ),
        (
            "removed-forgotten",
            Self::RemovedForgotten,
            "the directory does not remember which disks were removed",
        ),
        (
            "conversion-misses-writes",
            Self::ConversionMissesWrites,
            "what is written during a conversion goes to the former object only",
        ),
        (
            "data-promoted-first",
            Self::DataPromotedFirst,
            "staged data is put in force before the staged parity",
        ),
        (
            "staged-forgotten",
            Self::StagedForgotten,
            "a new owner does not ask for what the log says is staged",
        ),
        ("away-unknown", Self::AwayUnknown, "the directory does not know which hosts are away"),
        (
            "gone-answered",
            Self::GoneAnswered,
            "a component goes at once, and what it answers afterwards counts",
        ),
    ];
}

/// Which bug is on, if any.
pub type Bugs = ferro_protocol::bugs::Bugs<Bug>;
