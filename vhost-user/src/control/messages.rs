//! The messages of the protocol, each a few lines: the `vhost` crate parses them, [`Control`] acts.

use super::{Control, ControlError};
use crate::mailbox::Command;
use crate::memory::{DirtyLog, FrontendAddress, Gpa, RegionSpec};
use crate::notifier::Notifier;
use crate::ring::RingLayout;
use std::fs::File;
use std::io;
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

/// Protocol features offered; REPLY_ACK is added by the `vhost` crate.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::RARP)
    .union(VhostUserProtocolFeatures::MTU)
    .union(VhostUserProtocolFeatures::REPLY_ACK);

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(ControlError::Unsupported(what).into())
}

fn notifier(file: Option<File>) -> std::result::Result<Option<Notifier>, ControlError> {
    Ok(file.map(Notifier::from_peer).transpose()?)
}

impl Control {
    fn set_addresses(&mut self, index: usize, layout: RingLayout) -> std::result::Result<(), ControlError> {
        let log = self.active_log();
        let vring = self.vring(index)?;
        let before = vring.addresses.replace(layout);
        if !vring.running {
            return self.refresh(index);
        }
        let moved = before.is_none_or(|before| RingLayout { used_log: layout.used_log, ..before } != layout);
        if moved {
            self.park(index)?;
            return self.refresh(index);
        }
        self.cores.call(Command::SetLog { index, log, used_log: layout.used_log })?;
        Ok(())
    }

    fn set_call(&mut self, index: usize, file: Option<File>) -> std::result::Result<(), ControlError> {
        let call = notifier(file)?;
        let vring = self.vring(index)?;
        if vring.running {
            self.cores.call(Command::SetCall { index, call })?;
        } else {
            vring.call = call;
        }
        Ok(())
    }

    fn set_kick(&mut self, index: usize, file: Option<File>) -> std::result::Result<(), ControlError> {
        let kick = notifier(file)?;
        self.vring(index)?;
        self.park(index)?;
        let vring = self.vring(index)?;
        vring.kick = kick;
        vring.started = true;
        self.refresh(index)
    }

    fn set_error(&mut self, index: usize, file: Option<File>) -> std::result::Result<(), ControlError> {
        let error = notifier(file)?;
        self.vring(index)?;
        self.park(index)?;
        self.vring(index)?.error = error;
        self.refresh(index)
    }

    fn set_size(&mut self, index: usize, size: u32) -> std::result::Result<(), ControlError> {
        let value = ControlError::Value { what: "ring size", value: u64::from(size) };
        self.parked_vring("SET_VRING_NUM", index)?.size = u16::try_from(size).map_err(|_| value)?;
        self.refresh(index)
    }

    /// Where the ring goes on. Of a packed ring frontends say it twice, for what was taken and for what was
    /// returned; some only once, as it is the same.
    fn set_base(&mut self, index: usize, base: u32) -> std::result::Result<(), ControlError> {
        let packed = self.is_packed();
        let vring = self.parked_vring("SET_VRING_BASE", index)?;
        if base > u32::from(u16::MAX) && !packed {
            return Err(ControlError::Value { what: "ring index", value: u64::from(base) });
        }
        vring.base = base as u16;
        Ok(())
    }

    /// Stops the ring. The answer is given when the polling core has left it (CK-2).
    fn stop_and_get_base(&mut self, index: usize) -> std::result::Result<u16, ControlError> {
        let vring = self.vring(index)?;
        vring.started = false;
        if vring.running {
            self.stop(index)?;
        }
        let vring = self.vring(index)?;
        vring.kick = None;
        Ok(vring.base)
    }
}

impl VhostUserBackendReqHandlerMut for Control {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.park_all()?;
        self.give_up_all()?;
        for vring in &mut self.session.vrings {
            vring.started = false;
            vring.enabled = false;
        }
        self.shared.state().rings_enabled.fill(false);
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        unsupported("RESET_DEVICE")
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        Ok(Self::set_features(self, features)?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let specs = regions.iter().map(|region| RegionSpec {
            gpa: Gpa(region.guest_phys_addr),
            bytes: region.memory_size,
            frontend: FrontendAddress(region.user_addr),
            offset: region.mmap_offset,
        });
        let table: Vec<_> = specs.zip(files).collect();
        self.set_memory(&table)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Ok(self.set_size(index as usize, num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let used_log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let layout = RingLayout { size: 0, descriptors, available, used, used_log };
        Ok(self.set_addresses(index as usize, layout)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Ok(self.set_base(index as usize, base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = u32::from(self.stop_and_get_base(index as usize)?);
        // What was taken was returned: both places of a packed ring are the same.
        let returned = if self.is_packed() { base << 16 } else { 0 };
        Ok(VhostUserVringState::new(index, returned | base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_kick(usize::from(index), fd)?)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_call(usize::from(index), fd)?)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        Ok(self.set_error(usize::from(index), fd)?)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !PROTOCOL_FEATURES.bits();
        if unknown != 0 {
            return Err(ControlError::Features(unknown).into());
        }
        self.session.protocol_features = features;
        self.shared.state().protocol_features = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        // For network devices frontends count pairs.
        Ok(u64::from(self.queue_pairs))
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Ok(self.set_enabled(index as usize, u32::from(enable))?)
    }

    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        unsupported("GET_CONFIG")
    }

    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        unsupported("SET_CONFIG")
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        unsupported("GPU_SET_SOCKET")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        unsupported("GET_SHARED_OBJECT")
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        unsupported("GET_INFLIGHT_FD")
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        unsupported("SET_INFLIGHT_FD")
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        unsupported("GET_MAX_MEM_SLOTS")
    }

    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        unsupported("ADD_MEM_REG")
    }

    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        unsupported("REM_MEM_REG")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        unsupported("SET_DEVICE_STATE_FD")
    }

    fn check_device_state(&mut self) -> Result<()> {
        unsupported("CHECK_DEVICE_STATE")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        unsupported("GET_SHMEM_CONFIG")
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let log = DirtyLog::map(&file, log.mmap_offset, log.mmap_size).map_err(ControlError::from)?;
        Ok(self.set_log(log)?)
    }
}
