//! Changes of a configuration: any number at once, all or none.

use super::spec::{GroupSpec, MirrorSpec, PortSpec, Spec, SwitchSpec};
use super::{Change, Config, Fault, Problem, validate};

/// Has a name, and with it a place in its list.
trait Named {
    const KIND: &str;
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($type:ty: $kind:literal),*) => {
        $(impl Named for $type {
            const KIND: &str = $kind;
            fn name(&self) -> &str {
                &self.name
            }
        })*
    };
}

named!(SwitchSpec: "switch", GroupSpec: "port group", PortSpec: "port", MirrorSpec: "mirror");

fn unknown<T: Named>(name: &str) -> Fault {
    Fault::new(T::KIND, name, Problem::NotThere)
}

/// Adding what is there is left to validation, which names all doubles.
fn set<T: Named>(list: &mut [T], new: T, faults: &mut Vec<Fault>) {
    match list.iter_mut().find(|old| old.name() == new.name()) {
        Some(old) => *old = new,
        None => faults.push(unknown::<T>(new.name())),
    }
}

fn remove<T: Named>(list: &mut Vec<T>, name: &str, faults: &mut Vec<Fault>) {
    match list.iter().position(|it| it.name() == name) {
        Some(at) => drop(list.remove(at)),
        None => faults.push(unknown::<T>(name)),
    }
}

/// The specification after all changes, and what it means; or every fault, and then nothing has changed. Asking without
/// using the answer is a dry run.
pub fn transact(spec: &Spec, changes: &[Change]) -> Result<(Spec, Config), Vec<Fault>> {
    let mut new = spec.clone();
    let mut faults = Vec::new();
    for change in changes {
        match change.clone() {
            Change::AddSwitch(it) => new.switches.push(it),
            Change::SetSwitch(it) => set(&mut new.switches, it, &mut faults),
            Change::RemoveSwitch(name) => remove(&mut new.switches, &name, &mut faults),
            Change::AddGroup(it) => new.groups.push(it),
            Change::SetGroup(it) => set(&mut new.groups, it, &mut faults),
            Change::RemoveGroup(name) => remove(&mut new.groups, &name, &mut faults),
            Change::AddPort(it) => new.ports.push(it),
            Change::SetPort(it) => set(&mut new.ports, it, &mut faults),
            Change::RemovePort(name) => remove(&mut new.ports, &name, &mut faults),
            Change::AddMirror(it) => new.mirrors.push(it),
            Change::SetMirror(it) => set(&mut new.mirrors, it, &mut faults),
            Change::RemoveMirror(name) => remove(&mut new.mirrors, &name, &mut faults),
        }
    }
    match validate(&new) {
        Ok(config) if faults.is_empty() => Ok((new, config)),
        Ok(_) => Err(faults),
        Err(more) => {
            faults.extend(more);
            Err(faults)
        }
    }
}
