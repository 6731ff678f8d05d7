//! What one port may ask of a gateway in a second. A guest that asks for more is not heard, and takes nothing from others.

use std::collections::BTreeMap;

use ferro_protocol::net::NetName;
use vswitch_core::shaping::Limit;
use vswitch_core::time::Instant;

/// Frames a second of one port: a flood ping is noticed, and harms nobody.
const FRAMES_S: u32 = 2000;
/// DHCP messages a second of one port; a tenth at once is enough for what a machine does at its start.
const DHCP_S: u32 = 50;
/// Wishes a second of one port: each is a write to the directory.
const WISHES_S: u32 = 20;

#[derive(Debug)]
struct Budget {
    frames: Limit,
    dhcp: Limit,
    wishes: Limit,
}

/// The budgets of the ports that have asked for something.
#[derive(Debug, Default)]
pub(super) struct Budgets(BTreeMap<NetName, Budget>);

impl Budgets {
    fn admit(&mut self, now: Instant, port: &NetName, of: impl Fn(&mut Budget) -> &mut Limit) -> bool {
        if let Some(budget) = self.0.get_mut(port) {
            return of(budget).admit(now);
        }
        let mut budget =
            Budget { frames: Limit::new(FRAMES_S), dhcp: Limit::new(DHCP_S), wishes: Limit::new(WISHES_S) };
        let admitted = of(&mut budget).admit(now);
        self.0.insert(port.clone(), budget);
        admitted
    }

    /// Whether one frame more is heard.
    pub(super) fn frame(&mut self, now: Instant, port: &NetName) -> bool {
        self.admit(now, port, |budget| &mut budget.frames)
    }

    /// Whether one DHCP message more is heard.
    pub(super) fn dhcp(&mut self, now: Instant, port: &NetName) -> bool {
        self.admit(now, port, |budget| &mut budget.dhcp)
    }

    /// Whether one wish more is passed on.
    pub(super) fn wish(&mut self, now: Instant, port: &NetName) -> bool {
        self.admit(now, port, |budget| &mut budget.wishes)
    }

    /// Forgets ports that are gone.
    pub(super) fn retain(&mut self, there: impl Fn(&NetName) -> bool) {
        self.0.retain(|port, _| there(port));
    }
}
