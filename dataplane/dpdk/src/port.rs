//! A port: one network device, opened with its queues, closed when the last of them is gone.
#![expect(unsafe_code, reason = "calls into DPDK")]

use crate::device::{Plugged, alone};
use crate::{BURST, Device, DeviceError, Eal, Errno, Pool, RxQueue, TxQueue, log, signals};
use holdfast_dpdk_sys as sys;
use std::ffi::CStr;
use std::fmt;
use std::sync::Arc;
use thiserror::Error;

/// Bytes of a frame beyond its MTU: Ethernet header and one VLAN tag.
const OVERHEAD: u16 = 14 + 4;

/// Bytes of a frame beyond its MTU as drivers count them: Ethernet header and checksum.
const FRAMING: u32 = 14 + 4;

/// What is asked of a port.
#[derive(Clone, Debug)]
pub struct PortConfig {
    /// Bytes of payload in a frame; `None` leaves it to the driver. `net_memif` and `net_af_packet` do not know of
    /// more than 1500: beyond, the rings that the device's arguments ask for must be made for it, and the interface
    /// of a packet socket must carry it.
    pub mtu: Option<u16>,
    /// Receive queues, each for one core.
    pub rx_queues: u16,
    /// Transmit queues, each for one core.
    pub tx_queues: u16,
    /// Frames in a receive ring; adjusted to what the driver takes.
    pub rx_ring: u16,
    /// Frames in a transmit ring; adjusted to what the driver takes.
    pub tx_ring: u16,
    /// Whether frames for other addresses are taken too (the guests' own, so: yes for a wire).
    pub promiscuous: bool,
    /// Whether to ask for a descriptor that becomes readable when frames arrive.
    pub rx_interrupt: bool,
}

impl Default for PortConfig {
    fn default() -> Self {
        Self {
            mtu: None,
            rx_queues: 1,
            tx_queues: 1,
            rx_ring: 512,
            tx_ring: 512,
            promiscuous: true,
            rx_interrupt: true,
        }
    }
}

/// What a port offers to do itself; nothing of it is switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Checks IPv4 header checksums of what it receives.
    pub rx_ipv4_checksum: bool,
    /// Checks TCP and UDP checksums of what it receives.
    pub rx_l4_checksum: bool,
    /// Coalesces TCP segments of what it receives.
    pub rx_tcp_coalesce: bool,
    /// Fills in IPv4 header checksums.
    pub tx_ipv4_checksum: bool,
    /// Fills in TCP and UDP checksums.
    pub tx_l4_checksum: bool,
    /// Segments TCP.
    pub tx_tcp_segment: bool,
    /// Longest frame that it receives.
    pub rx_frame_max: u32,
    /// Receive queues that it has at most.
    pub rx_queues_max: u16,
    /// Transmit queues that it has at most.
    pub tx_queues_max: u16,
}

/// State of a port's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whether the other end is there.
    pub up: bool,
    /// In Mbit/s; `None` when the driver does not know.
    pub speed_mbit_s: Option<u32>,
    /// Whether both directions at once.
    pub full_duplex: bool,
}

/// Counters of a port since it was opened, as its driver counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortStats {
    /// Frames received.
    pub rx_frames: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Frames lost because the receive ring was full.
    pub rx_missed: u64,
    /// Frames received broken.
    pub rx_errors: u64,
    /// Frames lost because the pool was empty.
    pub rx_no_buffer: u64,
    /// Frames that could not be sent.
    pub tx_errors: u64,
}

/// What was being done to a port when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Its capabilities were asked.
    Inspect,
    /// Queues, MTU and interrupts were set.
    Configure,
    /// Its ring sizes were fitted.
    Rings,
    /// A receive queue was set up.
    RxQueue,
    /// A transmit queue was set up.
    TxQueue,
    /// It was started.
    Start,
    /// Its MTU was set.
    Mtu,
    /// It was told to take frames for all addresses.
    Promiscuous,
    /// Its address was asked.
    Address,
    /// Its link was asked.
    Link,
    /// Its counters were asked.
    Counters,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Inspect => "its capabilities cannot be read",
            Self::Configure => "its queues cannot be configured",
            Self::Rings => "its ring sizes cannot be fitted",
            Self::RxQueue => "a receive queue cannot be set up",
            Self::TxQueue => "a transmit queue cannot be set up",
            Self::Start => "it cannot be started",
            Self::Mtu => "its MTU cannot be set",
            Self::Promiscuous => "it cannot be made to take frames for all addresses",
            Self::Address => "its address cannot be read",
            Self::Link => "its link cannot be read",
            Self::Counters => "its counters cannot be read",
        })
    }
}

impl Step {
    const fn mend(self) -> &'static str {
        match self {
            Self::Configure | Self::Rings | Self::RxQueue | Self::TxQueue => {
                "raise `frames` of this wire and memory_mb under [dpdk], or give it fewer queues"
            }
            Self::Start => "the interface must be there and nobody else may hold it (`ip link`)",
            Self::Mtu => "set `mtu` of this wire to what its interface takes (`ip -d link`)",
            Self::Inspect | Self::Promiscuous | Self::Address | Self::Link | Self::Counters => {
                "the driver is at fault: try another kind of wire for the same interface"
            }
        }
    }
}

/// Why a port could not be opened or asked.
#[derive(Debug, Error)]
pub enum PortError {
    /// Its device could not be plugged in.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The configuration asks for more than there is, or for none.
    #[error("port {port}: {what}\n  mend: {mend}")]
    Config {
        /// Name of the port's device.
        port: String,
        /// What does not fit.
        what: String,
        /// What to do.
        mend: &'static str,
    },
    /// A step of the driver's failed.
    #[error("port {port}: {step}: {errno}; DPDK said: {log}\n  mend: {}", step.mend())]
    Driver {
        /// Name of the port's device.
        port: String,
        /// What was being done.
        step: Step,
        /// The error that the driver gave.
        errno: Errno,
        /// Its own last warnings and errors.
        log: String,
    },
}

/// The control side of an open port: questions and counters. Any thread may ask.
#[derive(Clone, Debug)]
pub struct Port {
    open: Arc<OpenPort>,
}

/// A started port; closes when the handle and all queues are gone, so that no queue is ever used on
/// a port that stands.
#[derive(Debug)]
pub(crate) struct OpenPort {
    plugged: Plugged,
    name: String,
    started: bool,
    pub(crate) frame_max: u16,
}

impl Port {
    /// Plugs `device` in, sets it up with queues that receive into `pool`, and starts it.
    ///
    /// A port that closes gives its frames back to the pool, but for `net_af_xdp`: that driver keeps the
    /// 2048 of its fill ring for good, so that a pool bears few openings of it.
    ///
    /// # Errors
    /// [`PortError`]; whatever was done until then is undone.
    pub fn open(
        running: Eal,
        device: &Device,
        pool: Pool,
        config: &PortConfig,
    ) -> Result<(Self, Vec<RxQueue>, Vec<TxQueue>), PortError> {
        log::take_recent();
        let plugged = device.plug(running)?;
        let mut open = OpenPort { plugged, name: device.name().to_owned(), started: false, frame_max: 0 };
        let info = open.info()?;
        let beyond = config.mtu.filter(|mtu| {
            device.carries_what_its_rings_hold() && u32::from(*mtu) + FRAMING > info.max_rx_frame
        });
        let known = PortConfig { mtu: config.mtu.filter(|_| beyond.is_none()), ..config.clone() };
        open.check(&info, pool, &known)?;
        open.set_up(pool, &known)?;
        open.start(config)?;
        let mtu = beyond.map_or_else(|| open.mtu(), Ok)?;
        open.frame_max = mtu.saturating_add(OVERHEAD);
        if usize::from(open.frame_max) > pool.frame_max() {
            return Err(open.config_fault(
                format!("its MTU is {mtu}, but the pool's frames hold {} bytes", pool.frame_max()),
                "set `mtu` of this wire, or give the pool larger frames",
            ));
        }
        let open = Arc::new(open);
        let rx = (0..config.rx_queues).map(|queue| RxQueue::new(Arc::clone(&open), queue, config)).collect();
        let tx = (0..config.tx_queues).map(|queue| TxQueue::new(Arc::clone(&open), queue)).collect();
        Ok((Self { open }, rx, tx))
    }

    /// Name of the port's device.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.open.name
    }

    /// Name of the driver that serves it.
    ///
    /// # Errors
    /// When the driver cannot be asked.
    pub fn driver(&self) -> Result<String, PortError> {
        let info = self.open.info()?;
        if info.driver.is_null() {
            return Ok(String::new());
        }
        // SAFETY: the driver's name is a terminated string in the driver, which is never unloaded.
        Ok(unsafe { CStr::from_ptr(info.driver) }.to_string_lossy().into_owned())
    }

    /// What the port offers to do itself.
    ///
    /// # Errors
    /// When the driver cannot be asked.
    pub fn capabilities(&self) -> Result<Capabilities, PortError> {
        let info = self.open.info()?;
        let (rx, tx) = (info.rx_capabilities, info.tx_capabilities);
        let all = |offered: u64, wanted: u64| offered & wanted == wanted;
        Ok(Capabilities {
            rx_ipv4_checksum: all(rx, sys::HF_RX_IPV4_CKSUM),
            rx_l4_checksum: all(rx, sys::HF_RX_TCP_CKSUM | sys::HF_RX_UDP_CKSUM),
            rx_tcp_coalesce: all(rx, sys::HF_RX_TCP_LRO),
            tx_ipv4_checksum: all(tx, sys::HF_TX_IPV4_CKSUM),
            tx_l4_checksum: all(tx, sys::HF_TX_TCP_CKSUM | sys::HF_TX_UDP_CKSUM),
            tx_tcp_segment: all(tx, sys::HF_TX_TCP_TSO),
            rx_frame_max: info.max_rx_frame,
            rx_queues_max: info.max_rx_queues,
            tx_queues_max: info.max_tx_queues,
        })
    }

    /// The port's own address.
    ///
    /// # Errors
    /// When the driver cannot be asked.
    pub fn mac(&self) -> Result<[u8; 6], PortError> {
        let mut mac = [0u8; 6];
        // SAFETY: the port is open; `mac` has the six bytes that are written.
        let returned = unsafe { sys::hf_mac(self.open.plugged.port, mac.as_mut_ptr()) };
        self.open.checked(returned, Step::Address)?;
        Ok(mac)
    }

    /// Bytes of payload in a frame.
    ///
    /// # Errors
    /// When the driver cannot be asked.
    pub fn mtu(&self) -> Result<u16, PortError> {
        self.open.mtu()
    }

    /// State of the link, without waiting for it.
    ///
    /// # Errors
    /// When the driver cannot be asked.
    pub fn link(&self) -> Result<Link, PortError> {
        let mut link = sys::hf_link { speed_mbit_s: 0, up: 0, full_duplex: 0 };
        // SAFETY: the port is open; `link` is written whole or not at all.
        let returned = unsafe { sys::hf_link(self.open.plugged.port, &raw mut link) };
        self.open.checked(returned, Step::Link)?;
        let known = link.speed_mbit_s != 0 && link.speed_mbit_s != u32::MAX;
        Ok(Link {
            up: link.up != 0,
            speed_mbit_s: known.then_some(link.speed_mbit_s),
            full_duplex: link.full_duplex != 0,
        })
    }

    /// The driver's common counters.
    ///
    /// # Errors
    /// When the driver cannot be asked.
    pub fn stats(&self) -> Result<PortStats, PortError> {
        let mut stats = sys::hf_stats {
            rx_frames: 0,
            tx_frames: 0,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_missed: 0,
            rx_errors: 0,
            rx_no_buffer: 0,
            tx_errors: 0,
        };
        // SAFETY: the port is open; `stats` is written whole or not at all.
        let returned = unsafe { sys::hf_stats(self.open.plugged.port, &raw mut stats) };
        self.open.checked(returned, Step::Counters)?;
        Ok(PortStats {
            rx_frames: stats.rx_frames,
            tx_frames: stats.tx_frames,
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            rx_missed: stats.rx_missed,
            rx_errors: stats.rx_errors,
            rx_no_buffer: stats.rx_no_buffer,
            tx_errors: stats.tx_errors,
        })
    }

    /// All counters that the driver has, by the names it gives them.
    ///
    /// # Errors
    /// When the driver cannot be asked.
    pub fn driver_stats(&self) -> Result<Vec<(String, u64)>, PortError> {
        const MOST: usize = 1024;
        let none = sys::hf_xstat { name: [0; sys::HF_XSTAT_NAME as usize], value: 0 };
        let mut found = vec![none; MOST];
        let most = u32::try_from(MOST).expect("a thousand");
        // SAFETY: the port is open; `found` has room for `most` entries.
        let returned = unsafe { sys::hf_xstats(self.open.plugged.port, found.as_mut_ptr(), most) };
        let filled = self.open.checked(returned, Step::Counters)?;
        found.truncate(usize::try_from(filled).unwrap_or(0));
        Ok(found.iter().map(|one| (name_of(&one.name), one.value)).collect())
    }
}

fn name_of(name: &[std::ffi::c_char]) -> String {
    let bytes: Vec<u8> = name.iter().map(|&c| c.to_ne_bytes()[0]).take_while(|&c| c != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

impl OpenPort {
    pub(crate) const fn number(&self) -> u16 {
        self.plugged.port
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn checked(&self, returned: i32, step: Step) -> Result<i32, PortError> {
        Errno::check(returned).map_err(|errno| PortError::Driver {
            port: self.name.clone(),
            step,
            errno,
            log: log::take_recent(),
        })
    }

    fn config_fault(&self, what: String, mend: &'static str) -> PortError {
        PortError::Config { port: self.name.clone(), what, mend }
    }

    fn info(&self) -> Result<sys::hf_port_info, PortError> {
        let mut info = sys::hf_port_info {
            rx_capabilities: 0,
            tx_capabilities: 0,
            max_rx_frame: 0,
            max_rx_queues: 0,
            max_tx_queues: 0,
            min_mtu: 0,
            max_mtu: 0,
            driver: std::ptr::null(),
        };
        // SAFETY: the device is plugged in; `info` is written whole or not at all.
        let returned = unsafe { sys::hf_port_info(self.plugged.port, &raw mut info) };
        self.checked(returned, Step::Inspect)?;
        Ok(info)
    }

    fn check(&self, info: &sys::hf_port_info, pool: Pool, config: &PortConfig) -> Result<(), PortError> {
        if config.rx_queues == 0 || config.tx_queues == 0 {
            return Err(self.config_fault("it has no queue".to_owned(), "give it one of each kind"));
        }
        if config.rx_queues > info.max_rx_queues || config.tx_queues > info.max_tx_queues {
            let what = format!(
                "{} receive and {} transmit queues are wanted, but it has at most {} and {}",
                config.rx_queues, config.tx_queues, info.max_rx_queues, info.max_tx_queues
            );
            return Err(self.config_fault(what, "lower the number of polling cores on this wire"));
        }
        let held = (usize::from(config.rx_ring) + BURST) * usize::from(config.rx_queues);
        if pool.frames() <= held {
            let what = format!(
                "its receive rings alone hold {held} frames, but the pool has only {}",
                pool.frames()
            );
            return Err(self.config_fault(what, "raise `frames` of this wire"));
        }
        if let Some(mtu) = config.mtu {
            if mtu < info.min_mtu || mtu > info.max_mtu {
                let what =
                    format!("an MTU of {mtu} is wanted, but it takes {} to {}", info.min_mtu, info.max_mtu);
                return Err(self.config_fault(what, "change `mtu` of this wire"));
            }
            if info.max_rx_frame != 0 && u32::from(mtu) + FRAMING > info.max_rx_frame {
                let what = format!(
                    "an MTU of {mtu} is wanted, but its driver takes {} at most",
                    info.max_rx_frame.saturating_sub(FRAMING)
                );
                return Err(self.config_fault(what, "change `mtu` of this wire"));
            }
            if usize::from(mtu.saturating_add(OVERHEAD)) > pool.frame_max() {
                let what = format!(
                    "an MTU of {mtu} is wanted, but the pool's frames hold {} bytes",
                    pool.frame_max()
                );
                return Err(
                    self.config_fault(what, "change `mtu` of this wire, or give the pool larger frames")
                );
            }
        }
        Ok(())
    }

    fn set_up(&self, pool: Pool, config: &PortConfig) -> Result<(), PortError> {
        let mut setup = sys::hf_port_setup {
            pool: pool.as_raw(),
            rx_queues: config.rx_queues,
            tx_queues: config.tx_queues,
            rx_ring: config.rx_ring,
            tx_ring: config.tx_ring,
            mtu: config.mtu.unwrap_or(0),
            rx_interrupt: u16::from(config.rx_interrupt),
        };
        let mut step = sys::HF_STEP_INFO;
        let configure = || {
            let _alone = alone();
            // SAFETY: the device is plugged in and its port is stopped; the pool lives for good.
            unsafe { sys::hf_port_configure(self.plugged.port, &raw mut setup, &raw mut step) }
        };
        let returned = signals::none_free_for(&self.name, configure);
        let step = match step {
            sys::HF_STEP_CONFIGURE => Step::Configure,
            sys::HF_STEP_RINGS => Step::Rings,
            sys::HF_STEP_RX_QUEUE => Step::RxQueue,
            sys::HF_STEP_TX_QUEUE => Step::TxQueue,
            _ => Step::Inspect,
        };
        self.checked(returned, step)?;
        // The MTU given to the configuration is advice that some drivers do not carry out.
        if let Some(mtu) = config.mtu {
            // SAFETY: the port is configured and stopped.
            let returned = unsafe { sys::rte_eth_dev_set_mtu(self.plugged.port, mtu) };
            if returned == -libc::ENOTSUP && self.mtu()? == mtu {
                return Ok(());
            }
            self.checked(returned, Step::Mtu)?;
        }
        Ok(())
    }

    fn start(&mut self, config: &PortConfig) -> Result<(), PortError> {
        let returned = {
            let _alone = alone();
            // SAFETY: the port is configured, all its queues are set up.
            unsafe { sys::rte_eth_dev_start(self.plugged.port) }
        };
        self.checked(returned, Step::Start)?;
        self.started = true;
        if config.promiscuous {
            // SAFETY: the port is started.
            let returned = unsafe { sys::rte_eth_promiscuous_enable(self.plugged.port) };
            // A driver that has no filter (net_memif) takes every frame anyway.
            if returned != -libc::ENOTSUP {
                self.checked(returned, Step::Promiscuous)?;
            }
        }
        Ok(())
    }

    fn mtu(&self) -> Result<u16, PortError> {
        let mut mtu = 0u16;
        // SAFETY: the device is plugged in; one number is written.
        let returned = unsafe { sys::rte_eth_dev_get_mtu(self.plugged.port, &raw mut mtu) };
        self.checked(returned, Step::Mtu)?;
        Ok(mtu)
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        let port = self.plugged.port;
        if self.started {
            let alone = alone();
            // SAFETY: the port was started, and no queue of it is left that could be in a burst.
            let returned = unsafe { sys::rte_eth_dev_stop(port) };
            drop(alone);
            if let Err(errno) = Errno::check(returned) {
                tracing::warn!(port = %self.name, %errno, "the port cannot be stopped");
            }
        }
        // Taking the device out closes its port.
        self.plugged.unplug();
    }
}
