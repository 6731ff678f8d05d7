//! One VM of KVM's: its memory, its interrupt controllers, its descriptors.

use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Host, KvmError};
use crate::layout::{KVM_IDENTITY_MAP, KVM_TSS};

/// A VM without processors.
#[derive(Debug)]
pub struct Vm {
    pub(super) fd: Arc<VmFd>,
    /// KVM reads and writes it for as long as the VM lives.
    memory: GuestMemoryMmap,
}

impl Vm {
    /// Makes a VM with this memory, PIC, IOAPIC and local APICs in the kernel, and no timer chip.
    pub fn new(host: &Host, memory: GuestMemoryMmap) -> Result<Self, KvmError> {
        let fd = host.kvm.create_vm().map_err(KvmError::doing("making a VM"))?;
        // Intel processors without "unrestricted guest" need these; others ignore them.
        fd.set_identity_map_address(KVM_IDENTITY_MAP).map_err(KvmError::doing("placing KVM's page table"))?;
        fd.set_tss_address(KVM_TSS).map_err(KvmError::doing("placing KVM's task state"))?;
        fd.create_irq_chip().map_err(KvmError::doing("making the interrupt controllers"))?;
        let vm = Self { fd: Arc::new(fd), memory };
        vm.give_memory()?;
        Ok(vm)
    }

    #[allow(unsafe_code)]
    fn give_memory(&self) -> Result<(), KvmError> {
        for (slot, region) in (0u32..).zip(self.memory.iter()) {
            let host_address = region.as_ptr() as u64;
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: host_address,
            };
            // SAFETY: the range is a mapping of exactly this length, no other slot has a part of it, and `memory`, which
            // owns it, lives as long as the VM's descriptor. Only volatile accesses are made to it from here.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(KvmError::doing("giving the VM its memory"))?;
        }
        Ok(())
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// An eventfd that raises an interrupt line for as long as it takes to be seen.
    pub fn interrupt_line(&self, gsi: u32) -> Result<EventFd, KvmError> {
        let line = EventFd::new(EFD_NONBLOCK).map_err(KvmError::system("making an eventfd"))?;
        self.fd.register_irqfd(&line, gsi).map_err(KvmError::doing("connecting an interrupt line"))?;
        Ok(line)
    }
}
