//! Whose a VM is. Two things say so: `vm/run` in the directory, and the lock of the VM's first disk. The lock is what keeps two
//! hosts from writing, so it decides; the document is what people see, and all there is for a VM without disks.
//!
//! ```text
//!   the lock is this host's                → it is ours, and a document that names another is put right
//!   the lock is another's, or nobody's     → lost: the vmm is killed
//!   there is no lock (yet)                 → the document decides
//!   what decides can't be asked            → as before: a running VM does not depend on the directory
//! ```
//!
//! A document can name a host that never had the VM: one that was told to start it while this host's daemon was away, and
//! could not, since the lock was ours.

use ferro_protocol::ids::{Epoch, HostId};

use crate::documents::RunDocument;

/// What is known of the lock of a VM's first disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// The VM has no disk.
    NoDisk,
    /// It can't be asked now.
    Unknown,
    /// Nobody has it; the last who had, had it under this epoch.
    Nobody(Epoch),
    /// This host has it, under this epoch.
    Held(HostId, Epoch),
}

/// What is known of the document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claimed<'a> {
    /// It can't be asked now.
    Unknown,
    /// There is none.
    Nobody,
    /// It says this.
    By(&'a RunDocument),
}

/// Whose a VM is that runs here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Ours, as far as is known; under this epoch of its lock, where that is known.
    Ours(Option<Epoch>),
    /// Somebody else's, or nobody's; why, for people.
    Lost(String),
}

/// Whose a VM is that this host runs under the epoch `ours`.
pub fn verdict(me: HostId, ours: Option<Epoch>, claimed: Claimed<'_>, lock: Lock) -> Verdict {
    if matches!(claimed, Claimed::Nobody) {
        return Verdict::Lost("the cluster directory no longer has it".to_owned());
    }
    match lock {
        Lock::Unknown if ours.is_some() => Verdict::Ours(ours),
        Lock::NoDisk | Lock::Unknown => match claimed {
            Claimed::By(run) if run.host != me => {
                Verdict::Lost(format!("host {} has taken the VM over", run.host))
            }
            _ => Verdict::Ours(ours),
        },
        // Who answers may be behind: what it says is of a time before we took the lock.
        Lock::Nobody(epoch) | Lock::Held(_, epoch) if ours.is_some_and(|ours| epoch < ours) => {
            Verdict::Ours(ours)
        }
        Lock::Nobody(_) => Verdict::Lost("the lock of its first disk was broken".to_owned()),
        Lock::Held(host, _) if host != me => {
            Verdict::Lost(format!("host {host} has taken the lock of its first disk"))
        }
        // A vsand of ours that was started again takes the same lock up under the next epoch. That nobody had it in between is
        // what the document says, or that there is no epoch between.
        Lock::Held(_, epoch) => match (claimed, ours) {
            (Claimed::By(run), Some(ours)) if run.host != me && epoch.0 > ours.0 + 1 => {
                Verdict::Lost(format!("host {} had taken the VM over", run.host))
            }
            _ => Verdict::Ours(Some(epoch)),
        },
    }
}

#[cfg(test)]
mod tests {
    use ferro_protocol::api::vm::VmPower;

    use super::*;
    use crate::documents::FORMAT;

    const ME: HostId = HostId::from_bytes([1; 16]);
    const OTHER: HostId = HostId::from_bytes([2; 16]);

    fn run(host: HostId) -> RunDocument {
        let (epoch, wanted) = (Some(Epoch(3)), VmPower::On);
        RunDocument {
            format: FORMAT,
            host,
            epoch,
            wanted,
            incarnation: 1,
            order: 1,
            verb: None,
            ports: Vec::new(),
        }
    }

    #[test]
    fn the_lock_decides_and_the_document_where_there_is_none() {
        let (mine, theirs) = (run(ME), run(OTHER));
        let ours = Some(Epoch(3));
        for (claimed, lock, lost) in [
            (Claimed::By(&mine), Lock::Held(ME, Epoch(3)), false),
            (Claimed::By(&mine), Lock::Held(ME, Epoch(4)), false),
            (Claimed::By(&mine), Lock::Unknown, false),
            (Claimed::By(&mine), Lock::NoDisk, false),
            (Claimed::Unknown, Lock::Unknown, false),
            (Claimed::Unknown, Lock::Held(ME, Epoch(3)), false),
            (Claimed::By(&theirs), Lock::Held(ME, Epoch(3)), false),
            (Claimed::By(&theirs), Lock::Held(ME, Epoch(4)), false),
            (Claimed::By(&theirs), Lock::Held(ME, Epoch(5)), true),
            (Claimed::By(&mine), Lock::Held(ME, Epoch(5)), false),
            (Claimed::By(&theirs), Lock::Held(OTHER, Epoch(4)), true),
            (Claimed::By(&theirs), Lock::Nobody(Epoch(3)), true),
            (Claimed::By(&theirs), Lock::Unknown, false),
            (Claimed::By(&theirs), Lock::NoDisk, true),
            (Claimed::By(&mine), Lock::Held(OTHER, Epoch(4)), true),
            (Claimed::By(&mine), Lock::Nobody(Epoch(3)), true),
            (Claimed::By(&mine), Lock::Nobody(Epoch(2)), false),
            (Claimed::By(&mine), Lock::Held(OTHER, Epoch(2)), false),
            (Claimed::Nobody, Lock::Held(ME, Epoch(3)), true),
            (Claimed::Unknown, Lock::Held(OTHER, Epoch(4)), true),
        ] {
            let verdict = verdict(ME, ours, claimed, lock);
            assert_eq!(matches!(verdict, Verdict::Lost(_)), lost, "{claimed:?} {lock:?}: {verdict:?}");
        }
        let next = verdict(ME, ours, Claimed::By(&mine), Lock::Held(ME, Epoch(5)));
        assert_eq!(next, Verdict::Ours(Some(Epoch(5))));
        // Before it has the lock, a start is ended by a document that names another.
        assert!(matches!(verdict(ME, None, Claimed::By(&theirs), Lock::Unknown), Verdict::Lost(_)));
        assert_eq!(verdict(ME, None, Claimed::By(&mine), Lock::Unknown), Verdict::Ours(None));
    }
}
