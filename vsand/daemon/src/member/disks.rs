//! This host's disks: which there are, opening them at start, adding and giving them up.
//!
//! `disks.json` in the state directory lists the directories of the disks; everything else about a disk is on the disk itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ferro_protocol::ids::DiskId;
use ferro_transport::files;
use serde::{Deserialize, Serialize};
use vsand_core::directory::{Command, Refused};
use vsand_directory::DirectoryError;
use vsand_store::check::Finding;
use vsand_store::{FormatOptions, OpenError, Store, StoreConfig};

use super::Member;
use super::devices::{self, DeviceError};
use crate::data::clock;
use crate::data::port::{Command as DataCommand, LoopGone};

/// The first number of a disk in the tokens of its requests; those below are the data loop's own.
const FIRST_NUMBER: u16 = 16;

/// One line of the list.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The directory.
    pub path: PathBuf,
    /// The disk that was there when it was added.
    pub disk: DiskId,
    /// The UUID of the file system that must be mounted there first, if vsand made it on a device.
    #[serde(default)]
    pub device_uuid: Option<String>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    version: u8,
    disks: Vec<Listed>,
}

/// Why a disk can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The list.
    #[error("{path}: {source}; check the state directory and its permissions")]
    List {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The disk itself.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is another cluster's.
    #[error("the disk at {} belongs to cluster {cluster}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Whose.
        cluster: ferro_protocol::ids::ClusterId,
    },
    /// It is not one of this host's.
    #[error("disk {0} is not in this host's list of disks")]
    NotHere(DiskId),
    /// It can be opened, but its content is wrong.
    #[error("the disk at {} is damaged: {what}", path.display())]
    Damaged {
        /// The directory.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// Another disk is there.
    #[error("another disk is at {}: {found}", path.display())]
    Another {
        /// The directory.
        path: PathBuf,
        /// Which.
        found: DiskId,
    },
    /// It is served already.
    #[error("the disk at {} is in use by this host already", .0.display())]
    AlreadyHere(PathBuf),
    /// The device that it is on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Something of the system failed.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The directory refused.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The directory did not answer.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The daemon is ending.
    #[error(transparent)]
    Stopping(#[from] LoopGone),
}

/// This host's disks.
pub struct Disks {
    file: PathBuf,
    debug_faults: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    listed: Vec<Listed>,
    /// Those that are served, with their size in extents.
    open: BTreeMap<DiskId, (PathBuf, u64)>,
    /// Why others are not.
    failed: BTreeMap<DiskId, String>,
    /// Those that leave the cluster right now: it is not told of them again.
    leaving: BTreeSet<DiskId>,
    next_number: u16,
}

impl Disks {
    /// Reads the list.
    pub fn load(state_dir: &Path, debug_faults: bool) -> Result<Self, DiskError> {
        let file = state_dir.join("disks.json");
        let failed = |source| DiskError::List { path: file.clone(), source };
        let list: List = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => List::default(),
            Err(error) => return Err(failed(error)),
        };
        let inner = Inner { listed: list.disks, next_number: FIRST_NUMBER, ..Inner::default() };
        Ok(Self { file, debug_faults, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disks that are served.
    pub fn open_disks(&self) -> Vec<(DiskId, PathBuf)> {
        self.inner().open.iter().map(|(id, (path, _))| (*id, path.clone())).collect()
    }

    /// Why listed disks are not served.
    pub fn failures(&self) -> BTreeMap<DiskId, String> {
        self.inner().failed.clone()
    }

    /// Opens every listed disk; one that can't be opened is logged and left out.
    pub async fn open_all(&self, member: &Member) {
        let listed = self.inner().listed.clone();
        for entry in listed {
            let served = match mount(&entry).await {
                Ok(()) => self.serve(member, &entry.path).await,
                Err(error) => Err(error),
            };
            match served {
                Ok(disk) => tracing::info!(%disk, path = %entry.path.display(), "a disk is served"),
                Err(error) => {
                    tracing::error!(disk = %entry.disk, path = %entry.path.display(), %error, "a disk can't be served");
                    self.inner().failed.insert(entry.disk, error.to_string());
                }
            }
        }
    }

    /// Makes a disk of an empty directory, or takes up one that is there, and serves it. True if it was there; its id is then
    /// its own.
    pub async fn add(
        &self,
        member: &Member,
        new: &Listed,
        capacity_bytes: u64,
    ) -> Result<(DiskId, bool), DiskError> {
        if self.inner().open.values().any(|(open, _)| *open == new.path) {
            return Err(DiskError::AlreadyHere(new.path.clone()));
        }
        let (cluster, host) = (member.membership.cluster, member.host());
        let (at, disk) = (new.path.clone(), new.disk);
        let adopted = blocking(move || match Store::identify(&at) {
            Ok(superblock) if superblock.cluster == cluster => Ok(true),
            Ok(superblock) => Err(DiskError::Foreign { path: at, cluster: superblock.cluster }),
            Err(OpenError::NotFormatted(_)) => {
                let options =
                    FormatOptions { disk, cluster, host, capacity_bytes, journal_bytes: None, tiny: false };
                Store::format(&at, &options)?;
                Ok(false)
            }
            Err(error) => Err(error.into()),
        })
        .await?;
        if adopted {
            self.take_back(member, &new.path).await?;
        }
        let disk = self.serve(member, &new.path).await?;
        self.remember(Listed { disk, ..new.clone() })?;
        self.announce(member).await;
        Ok((disk, adopted))
    }

    /// Tells the cluster that a disk which was removed may come back, if this is one.
    async fn take_back(&self, member: &Member, path: &Path) -> Result<(), DiskError> {
        let at = path.to_owned();
        let disk = blocking(move || Ok(Store::identify(&at)?.disk)).await?;
        let state = member.directory.linearizable_state().await?;
        let Some(removed) = state.removed_disks.at(disk) else { return Ok(()) };
        member.propose(&Command::ReturnDisk { disk, removed }).await??;
        tracing::info!(%disk, "a disk that was removed from the cluster is given to it again");
        Ok(())
    }

    /// Opens the disk and gives it to the data loop.
    async fn serve(&self, member: &Member, path: &Path) -> Result<DiskId, DiskError> {
        let number = {
            let mut inner = self.inner();
            let number = inner.next_number;
            inner.next_number += 1;
            number
        };
        let (cluster, host) = (member.membership.cluster, member.host());
        let config = StoreConfig { owner: number, debug_faults: self.debug_faults, ..StoreConfig::default() };
        let at = path.to_owned();
        let (store, extents) = blocking(move || {
            let found = Store::identify(&at)?;
            if found.cluster != cluster {
                return Err(DiskError::Foreign { path: at, cluster: found.cluster });
            }
            let (mut store, recovery) = Store::open(&at, config)?;
            if recovery.superblock.host != host {
                tracing::info!(disk = %store.disk(), from = %recovery.superblock.host, "a disk of another host is taken over");
                store.adopt(host).map_err(|source| DiskError::Io { path: at, source })?;
            }
            let extents = u64::from(store.stats().extents);
            Ok((store, extents))
        })
        .await?;
        let disk = store.disk();
        member.data.send(DataCommand::AddDisk(Box::new(store)))?;
        let mut inner = self.inner();
        inner.open.insert(disk, (path.to_owned(), extents));
        inner.failed.remove(&disk);
        Ok(disk)
    }

    /// Stops serving a disk and forgets it; its data stays where it is.
    pub async fn forget(&self, member: &Member, disk: DiskId) -> Result<(), DiskError> {
        member.data.ask(|answer| DataCommand::RemoveDisk(disk, answer)).await?;
        let mounted = {
            let mut inner = self.inner();
            inner.open.remove(&disk);
            inner.failed.remove(&disk);
            let mounted = inner.listed.iter().find(|l| l.disk == disk && l.device_uuid.is_some()).cloned();
            inner.listed.retain(|l| l.disk != disk);
            self.write(&inner)?;
            mounted
        };
        if let Some(listed) = mounted {
            blocking(move || Ok(devices::unmount(&listed.path)?)).await?;
        }
        Ok(())
    }

    /// Takes a disk out of the directory, which refuses it while data depends on it, and then gives it up here.
    pub async fn take_out(&self, member: &Member, disk: DiskId) -> Result<(), DiskError> {
        self.inner().leaving.insert(disk);
        let taken = async {
            let command = Command::RemoveDisk { disk, unix_s: clock::unix_s() };
            match member.propose(&command).await? {
                Ok(_) | Err(Refused::NoDisk(_)) => {}
                Err(refused) => return Err(refused.into()),
            }
            self.forget(member, disk).await
        };
        let taken = taken.await;
        self.inner().leaving.remove(&disk);
        taken
    }

    /// Opens a disk that was given up as dead anew: it is closed, checked and served again. The cluster is told by the
    /// caller.
    pub async fn reopen(&self, member: &Member, disk: DiskId) -> Result<(), DiskError> {
        let listed = self.inner().listed.iter().find(|l| l.disk == disk).cloned();
        let listed = listed.ok_or(DiskError::NotHere(disk))?;
        member.data.ask(|answer| DataCommand::RemoveDisk(disk, answer)).await?;
        self.inner().open.remove(&disk);
        let reopened = async {
            mount(&listed).await?;
            let at = listed.path.clone();
            let report = blocking(move || Ok(vsand_store::check::verify(&at)?)).await?;
            if let Some(finding) = report.findings.iter().find(|f| !is_repairable(f)) {
                let what = format!("{finding:?}");
                return Err(DiskError::Damaged { path: listed.path.clone(), what });
            }
            self.serve(member, &listed.path).await
        };
        match reopened.await {
            Ok(found) if found == disk => Ok(()),
            Ok(found) => Err(DiskError::Another { path: listed.path, found }),
            Err(error) => {
                self.inner().failed.insert(disk, error.to_string());
                Err(error)
            }
        }
    }

    fn remember(&self, listed: Listed) -> Result<(), DiskError> {
        let mut inner = self.inner();
        inner.listed.retain(|l| l.disk != listed.disk && l.path != listed.path);
        inner.listed.push(listed);
        self.write(&inner)
    }

    fn write(&self, inner: &Inner) -> Result<(), DiskError> {
        let list = List { version: 1, disks: inner.listed.clone() };
        let failed = |source| DiskError::List { path: self.file.clone(), source };
        let bytes = serde_json::to_vec_pretty(&list).map_err(|e| failed(e.into()))?;
        files::replace(&self.file, &bytes).map_err(failed)
    }

    /// Tells the cluster which disks this host has, where it does not know.
    pub async fn announce(&self, member: &Member) {
        let state = member.state();
        let open: Vec<(DiskId, PathBuf, u64)> =
            self.inner().open.iter().map(|(id, (path, extents))| (*id, path.clone(), *extents)).collect();
        for (disk, path, capacity_extents) in open {
            if self.inner().leaving.contains(&disk) {
                continue;
            }
            let path = path.display().to_string();
            let known = state.disks.get(&disk).is_some_and(|d| {
                d.host == member.host() && d.path == path && d.capacity_extents == capacity_extents
            });
            if known {
                continue;
            }
            let used_extents = state.disks.get(&disk).map_or(0, |d| d.used_extents);
            let command =
                Command::PutDisk { disk, host: member.host(), path, capacity_extents, used_extents };
            match member.propose(&command).await {
                Ok(Ok(_)) => tracing::info!(%disk, "the cluster knows the disk now"),
                Ok(Err(refused @ Refused::DiskRemoved(_))) => {
                    tracing::warn!(
                        %disk, %refused,
                        "this host was not there when that was done; it gives the disk up, and leaves what is on it. \
                         `vsanctl disk add` gives it to the cluster again"
                    );
                    if let Err(error) = self.forget(member, disk).await {
                        tracing::error!(%disk, %error, "a disk that was removed could not be given up; trying again");
                    }
                }
                Ok(Err(refused)) => tracing::error!(%disk, %refused, "the cluster does not take the disk"),
                Err(error) => {
                    tracing::warn!(%disk, %error, "the cluster could not be told of the disk; trying again")
                }
            }
        }
    }
}

/// Whether a finding is put right by itself: a bad block is read from another copy, a superblock's copy written anew.
fn is_repairable(finding: &Finding) -> bool {
    matches!(finding, Finding::BadBlock { .. } | Finding::SuperblockCopy)
}

/// Mounts the file system that a disk is on, if vsand made it.
async fn mount(listed: &Listed) -> Result<(), DiskError> {
    let Some(uuid) = listed.device_uuid.clone() else { return Ok(()) };
    let path = listed.path.clone();
    blocking(move || Ok(devices::mount(&uuid, &path)?)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DiskError> + Send + 'static,
) -> Result<T, DiskError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

impl Disks {
    /// Where the disk is, if it is listed.
    pub fn path_of(&self, disk: DiskId) -> Option<PathBuf> {
        self.inner().listed.iter().find(|l| l.disk == disk).map(|l| l.path.clone())
    }
}
