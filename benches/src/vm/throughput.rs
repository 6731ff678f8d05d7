//! What a machine gets from its disk and its card, and what its monitor needs for it.
//!
//! The guest says when each [`Work`] begins and, at its end, how much it got done. Between the two the processor time of the
//! monitor's processes is counted; the guest's own is part of it, since both run in them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;

use super::running::RunningVm;
use super::{Figures, round};
use crate::process::Stop;

/// The most that a work may take, and what comes before the first.
const WORK_MAX: Duration = Duration::from_secs(120);

/// One of the guest's loads. `test=throughput` of its init does those of `works=a,b` one after another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Work {
    /// Its name in reports and on the guest's command line.
    pub(super) name: &'static str,
    /// What the guest counts a second.
    unit: Unit,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Unit {
    Requests,
    Megabytes,
    Megabits,
}

/// fio at the disk, past the guest's page cache.
pub(super) const DISK: [Work; 4] = [
    Work { name: "randread_4k_qd32", unit: Unit::Requests },
    Work { name: "randwrite_4k_qd32", unit: Unit::Requests },
    Work { name: "read_1m_qd4", unit: Unit::Megabytes },
    Work { name: "write_1m_qd4", unit: Unit::Megabytes },
];
/// iperf3, one connection, to a server on the host behind the switch.
pub(super) const NET: [Work; 2] =
    [Work { name: "net_send", unit: Unit::Megabits }, Work { name: "net_receive", unit: Unit::Megabits }];

/// The words for the guest's command line.
pub(super) fn words(works: &[Work]) -> String {
    let names: Vec<_> = works.iter().map(|work| work.name).collect();
    format!("test=throughput works={}", names.join(","))
}

/// Waits for the guest to do them all.
pub(super) fn measure(
    vm: &mut RunningVm,
    works: &[Work],
    stop: &Stop,
) -> anyhow::Result<BTreeMap<String, Figures>> {
    let mut all = BTreeMap::new();
    for work in works {
        let begun = vm.printed(format!("guest: {} begins", work.name).as_bytes(), WORK_MAX, stop)?;
        let cpu = vm.cpu_time()?;
        let ends = format!("guest: {} ends ", work.name);
        let ended = vm.printed(ends.as_bytes(), WORK_MAX, stop)?;
        let cpu = vm.cpu_time()?.saturating_sub(cpu);
        let said = vm.rest_of_line(WORK_MAX, stop)?;
        let got: f64 =
            said.trim().parse().with_context(|| format!("{}: the guest says {said:?}", work.name))?;
        let seconds = (ended.saturating_sub(begun)).as_secs_f64();
        all.insert(work.name.to_owned(), work.figures(got, cpu.as_secs_f64() / seconds.max(0.001)));
    }
    Ok(all)
}

impl Work {
    fn figures(self, got: f64, processors: f64) -> Figures {
        let mut figures = Figures { cpu_percent: Some(round(processors * 100.0)), ..Figures::default() };
        let place = match self.unit {
            Unit::Requests => &mut figures.iops,
            Unit::Megabytes => &mut figures.mb_s,
            Unit::Megabits => &mut figures.mbit_s,
        };
        *place = Some(round(got));
        figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_told_what_to_do_and_its_number_gets_its_unit() {
        assert_eq!(words(&NET), "test=throughput works=net_send,net_receive");
        let figures = NET[0].figures(12.5, 0.8);
        assert_eq!((figures.mbit_s, figures.iops, figures.cpu_percent), (Some(12.5), None, Some(80.0)));
    }
}
