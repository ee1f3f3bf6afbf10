//! Passes the `vhost` crate's requests to the [`Device`].

use std::fs::File;
use std::io;
use std::sync::{Mutex, PoisonError};

use crosspoint_memory::RegionSpec;
use crosspoint_vring::RingAddresses;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};

use super::device::{Device, MAX_MEMORY_SLOTS, refusal};

/// The crate requires a shared handler. There is one thread per port, so the lock is never contended.
pub(super) struct Handler(pub(super) Mutex<Device>);

/// The protocol features that are offered. The crate implements REPLY_ACK.
fn protocol_features(device: &Device) -> VhostUserProtocolFeatures {
    // User-Mode Linux sets up its interrupt only if it has BACKEND_REQ's channel.
    let always = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::STATUS;
    // Only with several queue pairs: QEMU takes the answer to GET_QUEUE_NUM for pairs, Cloud Hypervisor for rings, and
    // without MQ neither asks.
    let many = match device.queue_pairs() {
        1 => VhostUserProtocolFeatures::empty(),
        _ => VhostUserProtocolFeatures::MQ,
    };
    let state = match device.offers_state() {
        true => VhostUserProtocolFeatures::DEVICE_STATE,
        false => VhostUserProtocolFeatures::empty(),
    };
    always | many | state
}

impl Handler {
    pub(super) fn device(&self) -> std::sync::MutexGuard<'_, Device> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unsupported<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

impl VhostUserBackendReqHandler for Handler {
    fn set_owner(&self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        self.device().reset();
        Ok(())
    }

    fn reset_device(&self) -> Result<()> {
        self.device().reset();
        Ok(())
    }

    fn get_features(&self) -> Result<u64> {
        Ok(self.device().offered())
    }

    fn set_features(&self, features: u64) -> Result<()> {
        self.device().set_features(features)
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let spec = |region: &VhostUserMemoryRegion| RegionSpec {
            guest_address: region.guest_phys_addr,
            size: region.memory_size,
            user_address: region.user_addr,
            mmap_offset: region.mmap_offset,
        };
        let table = regions.iter().map(spec).zip(files).collect();
        self.device().set_memory(table).map_err(|_| refusal())?;
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        self.device().set_vring_num(index, num)
    }

    fn set_vring_addr(
        &self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.device().set_vring_addresses(
            index,
            RingAddresses {
                descriptors,
                available,
                used,
            },
        )
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        self.device().set_vring_base(index, base)
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let base = self.device().get_vring_base(index);
        let base = base.map_err(|e| unanswerable(&e.to_string()))?;
        Ok(VhostUserVringState::new(index, base))
    }

    fn set_vring_kick(&self, index: u8, fd: Option<File>) -> Result<()> {
        self.device().set_vring_kick(index.into(), fd)
    }

    fn set_vring_call(&self, index: u8, fd: Option<File>) -> Result<()> {
        self.device().set_vring_call(index.into(), fd)
    }

    fn set_vring_err(&self, _index: u8, fd: Option<File>) -> Result<()> {
        // Errors are logged; nothing is written to this descriptor.
        if let Some(fd) = fd {
            self.device().attachment.caller.retire(fd.into());
        }
        Ok(())
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(protocol_features(&self.device()))
    }

    fn set_protocol_features(&self, features: u64) -> Result<()> {
        let mut device = self.device();
        // Bits that were not offered are ignored. Whether a state is offered may have changed since the offer.
        let offered = protocol_features(&device) | VhostUserProtocolFeatures::DEVICE_STATE;
        device.protocol_features = features & offered.bits();
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(self.device().queue_pairs().into())
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.device().set_vring_enable(index, enable)
    }

    fn get_config(&self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.device().config_space(offset, size)
    }

    fn set_config(&self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        unsupported("the configuration space is read-only")
    }

    fn set_gpu_socket(&self, _gpu: GpuBackend) -> Result<()> {
        unsupported("this is a network device")
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        unsupported("shared objects are not offered")
    }

    fn get_inflight_fd(&self, inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, ring_size) = (inflight.num_queues, inflight.queue_size);
        let made = self.device().new_inflight(queues, ring_size);
        let (file, len) = made.map_err(|why| unanswerable(&why))?;
        Ok((VhostUserInflight::new(len, 0, queues, ring_size), file))
    }

    fn set_inflight_fd(&self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let (queues, ring_size) = (inflight.num_queues, inflight.queue_size);
        let span = (inflight.mmap_offset, inflight.mmap_size);
        let mut device = self.device();
        let set = device.set_inflight(&file, span, queues, ring_size);
        set.map_err(|why| device.refused(&why))
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(MAX_MEMORY_SLOTS as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        let mut device = self.device();
        let added = device.add_region(single(region), file);
        added.map_err(|why| device.refused(&why))?;
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let mut device = self.device();
        let removed = device.remove_region(&single(region));
        removed.map_err(|why| device.refused(&why))
    }

    fn set_device_state_fd(
        &self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        fd: File,
    ) -> Result<Option<File>> {
        let mut device = self.device();
        // The front end is given another descriptor, which it cannot hold up.
        device.retire([fd.into()]);
        let own = device.may_have_state().and_then(|()| match direction {
            VhostTransferStateDirection::SAVE => device.save_state(),
            VhostTransferStateDirection::LOAD => device.restore_state(),
        });
        own.map(Some).map_err(|why| device.refused(&why))
    }

    fn check_device_state(&self) -> Result<()> {
        let mut device = self.device();
        let checked = device.may_have_state();
        let checked = checked.and_then(|()| device.check_state());
        checked.map_err(|why| device.refused(&why))
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        unsupported("shared memory regions are not offered")
    }

    fn set_log_base(&self, log: &VhostUserLog, file: File) -> Result<()> {
        let set = self.device().set_log(&file, log.mmap_offset, log.mmap_size);
        set.map_err(|why| unanswerable(&why))
    }
}

fn single(region: &VhostUserSingleMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest_address: region.guest_phys_addr,
        size: region.memory_size,
        user_address: region.user_addr,
        mmap_offset: region.mmap_offset,
    }
}

/// An error where the reply cannot express one: the front end is disconnected.
fn unanswerable(why: &str) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::ConnectionAborted, why))
}
