//! The arguments of `volume`.

use std::path::PathBuf;

use clap::{Subcommand, ValueHint};
use ferro_protocol::ids::VolumeName;

use super::parse_bytes;
use crate::vsanctl::limits::LimitOptions;
use crate::vsanctl::place::PlaceOptions;
use crate::vsanctl::policy::PolicyChoice;

/// The verbs of `volume`.
#[derive(Subcommand, Debug)]
pub enum VolumeVerb {
    /// Make a volume
    Create {
        /// Its name: 1 to 63 of a-z, 0-9, '-', '_' and '.'
        name: VolumeName,
        /// Its size, as in 10G
        #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
        size: u64,
        /// How its data is kept: mirror:N has N copies, 1 to 4, and survives N-1 failures; raid5:2+1 and raid5:4+1 survive
        /// one, raid6:2+2 and raid6:4+2 two, each on as many hosts as its numbers add up to. raid5 is raid5:2+1, raid6 is
        /// raid6:4+2. Or the name of one of `policy list`
        #[arg(short, long, value_name = "POLICY")]
        policy: PolicyChoice,
        /// How much of it is kept for it on the disks from the beginning, in percent: 0 (thin), to 100 (thick) [default: 0, or what
        /// the policy of that name says]
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
        reserve: Option<u8>,
        /// Make it although there is no place for all copies of a mirror now: the others are made once there is
        #[arg(long)]
        force_provisioning: bool,
        /// Its limits
        #[command(flatten)]
        limits: LimitOptions,
        /// Where it is rather kept
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Say where a volume is rather kept, in use or not: in some sites or fault domains, or spread over sites
    ///
    /// What is given is all that counts from then on. Parts of it that could be nearer move there, one after the other, while it is used. It is
    /// no condition: where there is no room, or the hosts are away, data is elsewhere until there is.
    Place {
        /// Its name
        name: VolumeName,
        /// Where
        #[command(flatten)]
        place: PlaceOptions,
        /// Anywhere: take back what was said before
        #[arg(long, conflicts_with_all = ["prefer", "across_sites"])]
        anywhere: bool,
    },
    /// Keep room on the disks for a volume, in use or not, so that its guest can write whatever others take
    ///
    /// All its parts get their places at once. What it has written counts; what it may come to write beyond that nobody else gets.
    Reserve {
        /// Its name
        name: VolumeName,
        /// How much of its size, in percent: 0 (thin) to 100 (thick)
        #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: u8,
    },
    /// Limit what a volume's guest may ask for, in use or not
    ///
    /// What is given is all that counts from then on. Imports, exports, resyncs and scrubs are not limited by it.
    Limit {
        /// Its name
        name: VolumeName,
        /// Its limits
        #[command(flatten)]
        limits: LimitOptions,
        /// Take all limits away
        #[arg(long, conflicts_with_all = ["iops", "bandwidth", "burst"])]
        none: bool,
    },
    /// List the volumes
    List,
    /// Show one volume
    Show {
        /// Its name
        name: VolumeName,
    },
    /// Serve a volume on a vhost-user socket of this host, for one virtual machine
    Open {
        /// Its name
        name: VolumeName,
        /// The guest may only read
        #[arg(long)]
        read_only: bool,
        /// The guest's memory, for the QEMU arguments that are printed
        #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = parse_bytes)]
        memory: u64,
    },
    /// Stop serving a volume and give it back
    Close {
        /// Its name
        name: VolumeName,
    },
    /// Grow a volume, in use or not; volumes don't shrink
    Resize {
        /// Its name
        name: VolumeName,
        /// Its new size, as in 20G
        #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
        size: u64,
    },
    /// Delete a volume and its data; asks for its name, or takes --yes
    Delete {
        /// Its name
        name: VolumeName,
    },
    /// Fill a volume with an image
    Import(ImportOptions),
    /// Write a volume to an image
    Export(ExportOptions),
}

/// A format of images.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum ImageFormat {
    /// The bytes of the disk.
    Raw,
    /// QEMU's format.
    Qcow2,
}

/// Options of `volume import`.
#[derive(clap::Args, Debug, Clone)]
pub struct ImportOptions {
    /// The volume's name
    pub name: VolumeName,
    /// The image, or a block device
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The image's format [default: told from its first bytes]
    #[arg(short, long, value_enum)]
    pub format: Option<ImageFormat>,
    /// Make the volume first, as large as the image or as --size says
    #[arg(long, requires = "policy")]
    pub create: bool,
    /// With --create: how its data is kept, as in mirror:3, or the name of a policy
    #[arg(short, long, value_name = "POLICY", requires = "create")]
    pub policy: Option<PolicyChoice>,
    /// With --create: its size [default: the image's]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes, requires = "create")]
    pub size: Option<u64>,
}

/// Options of `volume export`.
#[derive(clap::Args, Debug, Clone)]
pub struct ExportOptions {
    /// The volume's name
    pub name: VolumeName,
    /// The image to write
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// The image's format [default: qcow2 if the file is called so, else raw]
    #[arg(short, long, value_enum)]
    pub format: Option<ImageFormat>,
}
