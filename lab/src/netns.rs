//! Network namespaces without names: they live by a descriptor, so that nothing can be left behind.
//!
//! A namespace ends when its last descriptor is closed and its last process gone, and takes its
//! interfaces along. While it lives, `nsenter --net=PATH` with [`Namespace::path`] looks inside.
#![expect(unsafe_code, reason = "setns between fork and exec")]

use crate::process::{ProcessError, kill_where, processes_where, run_tool};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thiserror::Error;

/// The host does not let us make, enter or furnish a namespace.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// No privilege, or the kernel has no namespaces.
    #[error("cannot make the network namespace {name}: {source}; run as root")]
    Create {
        /// Its name in the laboratory.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// Entering failed.
    #[error("cannot enter the network namespace {name}: {source}")]
    Enter {
        /// Its name in the laboratory.
        name: String,
        /// The system's word.
        source: io::Error,
    },
    /// A cable is there, and its end stays without a carrier.
    #[error("interface {interface} does not come up")]
    NoCarrier {
        /// The end.
        interface: String,
    },
    /// A tool that sets up interfaces failed.
    #[error(transparent)]
    Tool(#[from] ProcessError),
    /// A kernel setting could not be written.
    #[error("cannot set {setting} in {name}: {source}")]
    Setting {
        /// Its name in the laboratory.
        name: String,
        /// The setting.
        setting: String,
        /// The system's word.
        source: io::Error,
    },
}

/// The kernel notices a carrier within a second.
const CARRIER: Duration = Duration::from_secs(20);

/// A network namespace; clones are the same one.
#[derive(Debug, Clone)]
pub struct Namespace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    fd: OwnedFd,
    inode: u64,
}

impl Namespace {
    /// A new one, with its loopback up.
    pub fn create(name: &str) -> Result<Self, NetnsError> {
        let failed = |source: io::Error| NetnsError::Create { name: name.into(), source };
        // A thread of its own: unshare moves only the thread that calls it, and for good.
        let made = std::thread::scope(|scope| {
            scope
                .spawn(|| -> io::Result<(OwnedFd, u64)> {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    let file = File::open("/proc/thread-self/ns/net")?;
                    let inode = file.metadata()?.ino();
                    Ok((file.into(), inode))
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        let (fd, inode) = made.map_err(failed)?;
        let namespace = Self { inner: Arc::new(Inner { name: name.into(), fd, inode }) };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name in the laboratory.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The path by which tools reach it while this process lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.inner.fd.as_raw_fd())
    }

    /// Runs `work` on a thread inside the namespace. Sockets made there stay in it wherever they are
    /// used later.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&self.inner.fd, CloneFlags::CLONE_NEWNET).map_err(|source| NetnsError::Enter {
                        name: self.inner.name.clone(),
                        source: source.into(),
                    })?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes `command` enter the namespace before its program starts.
    pub fn enter_on_exec(&self, command: &mut Command) {
        let inner = Arc::clone(&self.inner);
        // SAFETY: between fork and exec only setns is called, which is async-signal-safe; the
        // descriptor is kept open by the Arc that the closure owns.
        unsafe {
            command.pre_exec(move || match libc::setns(inner.fd.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
    }

    /// Runs `ip` inside, with the words of `arguments`.
    pub fn ip(&self, arguments: &str) -> Result<String, NetnsError> {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        Ok(run_tool(Some(self), "ip", &words)?)
    }

    /// Runs any other short-lived tool inside.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<String, NetnsError> {
        Ok(run_tool(Some(self), program, arguments)?)
    }

    /// Writes a setting of the namespace, as `net/ipv6/conf/all/disable_ipv6`.
    pub fn set(&self, setting: &str, value: &str) -> Result<(), NetnsError> {
        let path = Path::new("/proc/sys").join(setting);
        self.run(|| fs::write(path, value))?.map_err(|source| NetnsError::Setting {
            name: self.inner.name.clone(),
            setting: setting.into(),
            source,
        })
    }

    /// A pair of interfaces that are each other's cable, both up: what is sent before the kernel has noticed the
    /// carrier would be lost. Without offloads they do what a plain card does.
    pub fn add_veth(&self, ends: [&str; 2], mtu: u32, offloads: bool) -> Result<(), NetnsError> {
        let [one, other] = ends;
        self.ip(&format!("link add {one} mtu {mtu} type veth peer name {other} mtu {mtu}"))?;
        for end in ends {
            if !offloads {
                self.disable_offloads(end)?;
            }
            self.ip(&format!("link set {end} up"))?;
        }
        let until = Instant::now() + CARRIER;
        for end in ends {
            while !self.ip(&format!("link show {end}"))?.contains("state UP") {
                if Instant::now() > until {
                    return Err(NetnsError::NoCarrier { interface: end.into() });
                }
            }
        }
        Ok(())
    }

    /// Switches off what a cable does not do: segmentation and checksums left to the next one.
    pub fn disable_offloads(&self, interface: &str) -> Result<(), NetnsError> {
        self.tool("ethtool", &["-K", interface, "tx", "off", "tso", "off", "gso", "off", "gro", "off"])?;
        Ok(())
    }

    /// Ids of all processes inside.
    pub fn processes(&self) -> Vec<i32> {
        processes_where(|process| self.holds(process))
    }

    /// SIGKILLs all processes inside at once, as the death of a host does; says how many there were.
    pub fn kill_all(&self) -> usize {
        kill_where(|process| self.holds(process), Duration::from_secs(10))
    }

    fn holds(&self, process: &Path) -> bool {
        fs::metadata(process.join("ns/net")).is_ok_and(|meta| meta.ino() == self.inner.inode)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let inode = self.inode;
        let holds =
            |process: &Path| fs::metadata(process.join("ns/net")).is_ok_and(|meta| meta.ino() == inode);
        let left = kill_where(holds, Duration::from_secs(10));
        if left > 0 {
            tracing::debug!("{left} processes were still in {}", self.name);
        }
    }
}
