//! `holdfast run`: the appliance, composed of its parts.
//!
//! ```text
//!   configuration --> EAL, pools, wires --> polling cores <-- vhost-user devices (one a NIC)
//!                                              ^  Handle
//!                     control socket --> supervisors (one a protected VM) --> replication link, arbiter
//! ```
//!
//! Threads: the polling cores; a control thread for each device; for each protected VM a supervisor and
//! a replication thread; the control socket's. The main thread waits for SIGTERM or SIGINT.

mod bypass;
mod dataplane;
mod machine;
mod preflight;

use crate::cli::Failure;
use crate::config::{Config, Replication};
use crate::control::{Answer, Request};
use dataplane::Dataplane;
pub(crate) use dataplane::poll;
use holdfast_checkpoint::keys::Identity;
use holdfast_checkpoint::transport::{Bypass, Listener, Security};
use holdfast_dataplane::Handle;
use machine::Machine;
use nix::sys::signal::{SigSet, Signal};
use preflight::Ready;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> Result<(), Failure> {
    holdfast_checkpoint::heap::keep_buffers();
    let signals = blocked_signals()?;
    let Ready { server, mut link } = preflight::check(&config)?;
    let mut dataplane = Dataplane::start(&config)?;
    if let Some(link) = &mut link {
        link.start_bypass(&config, &mut dataplane)?;
    }
    let bypass = link.as_ref().and_then(|link| link.bypass.clone());
    let mut machines = Vec::new();
    let mut first_port = 0;
    for vm in &config.vms {
        machines.push(Machine::start(&config, vm, &dataplane, link.as_ref(), first_port)?);
        first_port += vm.nics.len() as u16;
    }
    let listener = Mutex::new(link.and_then(|link| link.listener));
    let (host, cores) = (config.host.clone(), dataplane.cores());
    let appliance = Arc::new(Appliance { host, cores, machines, listener, bypass });
    let asked = Arc::clone(&appliance);
    server.serve(move |request| asked.answer(request)).map_err(Failure::failed)?;
    tracing::info!(
        "host {}: {} VM(s), control socket {}",
        config.host,
        config.vms.len(),
        config.control_socket.display()
    );
    let signal = signals.wait().map_err(Failure::failed)?;
    tracing::info!("{signal}: ending");
    drop(server);
    // The peer finds nobody, rather than somebody who knows no machine any more.
    drop(appliance.listener().take());
    for machine in &appliance.machines {
        machine.end();
    }
    dataplane.stop();
    for machine in &appliance.machines {
        machine.unplug();
    }
    Ok(())
}

/// Blocks the signals that end the appliance, in this thread and all that it starts.
fn blocked_signals() -> Result<SigSet, Failure> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(Failure::failed)?;
    Ok(signals)
}

/// The replication link of this host.
pub(crate) struct Link {
    pub(crate) security: Security,
    pub(crate) listener: Option<Listener>,
    pub(crate) bypass: Option<Bypass>,
}

impl Link {
    /// Loads the keys and takes the address to listen on; what the operator must mend otherwise.
    fn open(replication: &Replication) -> Result<Self, String> {
        let security = match &replication.keys {
            Some(folder) => {
                Security::Tls(Identity::load(folder).map_err(|fault| format!("replication.keys: {fault}"))?)
            }
            None => {
                tracing::warn!("the replication link is NOT encrypted: laboratory_plaintext is set");
                Security::LaboratoryPlaintext
            }
        };
        let bind = |address| {
            Listener::bind(address, security.clone()).map_err(|fault| {
                format!(
                    "replication.listen: cannot listen on {address}: {fault}; mend: an address of this host, on a \
                     port that nothing else uses"
                )
            })
        };
        let listener = replication.listen.map(bind).transpose()?;
        Ok(Self { security, listener, bypass: None })
    }

    /// Lets sessions use the bypass, where one is configured.
    fn start_bypass(&mut self, config: &Config, dataplane: &mut Dataplane) -> Result<(), Failure> {
        let identity = match &self.security {
            Security::Tls(identity) => Some(identity),
            Security::LaboratoryPlaintext => None,
        };
        self.bypass = bypass::start(config, dataplane, identity)?;
        if let (Some(listener), Some(bypass)) = (&self.listener, &self.bypass) {
            listener.over(bypass.clone());
        }
        Ok(())
    }
}

/// What the control socket speaks to.
struct Appliance {
    host: String,
    /// The polling cores, each with its processor.
    cores: Vec<(Option<u32>, Handle)>,
    machines: Vec<Machine>,
    /// None without a replication link, and at the end.
    listener: Mutex<Option<Listener>>,
    bypass: Option<Bypass>,
}

impl Appliance {
    fn listener(&self) -> MutexGuard<'_, Option<Listener>> {
        self.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, request: Request) -> Answer {
        let result = match request {
            Request::Status { vm, flows, epochs } => self.status(vm.as_deref(), flows, epochs),
            Request::Failover { vm } => self.machine(&vm).and_then(Machine::fail_over),
            Request::Protect { vm } => self.machine(&vm).and_then(|machine| machine.protect(true)),
            Request::Unprotect { vm } => self.machine(&vm).and_then(|machine| machine.protect(false)),
            Request::Epoch { vm, epoch_ms, epoch_policy, max_paused_percent } => self
                .machine(&vm)
                .and_then(|machine| machine.set_epoch(epoch_ms, epoch_policy, max_paused_percent)),
            Request::Except { vm, except } => {
                self.machine(&vm).and_then(|machine| machine.set_exceptions(&except))
            }
            Request::SetMode { vm, mode } => self.machine(&vm).and_then(|machine| machine.set_mode(mode)),
        };
        result.map_or_else(Answer::Error, Answer::Ok)
    }

    fn machine(&self, name: &str) -> Result<&Machine, String> {
        self.machines.iter().find(|machine| machine.name() == name).ok_or_else(|| {
            let known: Vec<_> = self.machines.iter().map(Machine::name).collect();
            format!("there is no VM '{name}' on host {}; mend: one of {}", self.host, known.join(", "))
        })
    }

    fn status(&self, vm: Option<&str>, flows: bool, epochs: bool) -> Result<Value, String> {
        let vms: Vec<Value> = match vm {
            Some(name) => vec![self.machine(name)?.status(flows, epochs)],
            None => self.machines.iter().map(|machine| machine.status(flows, epochs)).collect(),
        };
        let listener = self.listener().as_ref().map(|listener| {
            let mut row = json!(listener.counters());
            row["address"] = json!(listener.address());
            row["last_refusal"] = json!(listener.last_refusal());
            row
        });
        let bypass = self.bypass.as_ref().map(|bypass| {
            let counters = bypass.counters();
            counters.iter().map(|(name, value)| (name.to_owned(), json!(value))).collect::<Value>()
        });
        let (core, cores) = self.counters();
        Ok(json!({
            "host": self.host,
            "version": env!("CARGO_PKG_VERSION"),
            "core": core,
            "cores": cores,
            "replication": listener,
            "bypass": bypass,
            "vms": vms
        }))
    }

    /// Counters of the polling cores: their sums, and those of each with its processor.
    fn counters(&self) -> (BTreeMap<String, u64>, Vec<Value>) {
        let mut sums = BTreeMap::new();
        let rows = self.cores.iter().map(|(processor, handle)| {
            let mut row = json!({"processor": processor});
            for (name, value) in &handle.counters().core.0 {
                row[*name] = json!(value);
                *sums.entry((*name).to_owned()).or_default() += value;
            }
            row
        });
        let rows = rows.collect();
        (sums, rows)
    }
}
