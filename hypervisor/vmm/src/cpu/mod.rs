//! What a virtual processor is before its first instruction: registers, CPUID, MSRs, local APIC. Pure; KVM gets the
//! results from [`crate::kvm`].

pub mod cpuid;
pub mod lapic;
pub mod msrs;
pub mod registers;
