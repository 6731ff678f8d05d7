//! Model-specific registers that a kernel expects to find as firmware leaves them.

use kvm_bindings::kvm_msr_entry;

const IA32_MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations.
const FAST_STRING: u64 = 1;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
/// MTRRs enabled, write-back where none says otherwise.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// What is set at the boot of every processor.
pub fn at_boot() -> Vec<kvm_msr_entry> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    vec![entry(IA32_MISC_ENABLE, FAST_STRING), entry(MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK)]
}
