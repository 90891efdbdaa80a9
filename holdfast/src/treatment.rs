//! How a VM's output is treated while it is protected: whether its flows speculate, and which do not.
//!
//! The operator changes it while the VM runs. It travels with each checkpoint, before the state of the ports, so
//! that the machine goes on at the other host as it was treated in the committed epoch:
//!
//! ```text
//!  u32 length   JSON of [`Treatment`]   state of the ports
//! ```
//!
//! Threading: control threads change it, the supervisor's thread cuts. What is in force changes under the same
//! lock under which a cut is made, so that a checkpoint says what its epoch ended with. Nobody waits for
//! the supervisor under it.

use crate::config::{Exception, Mode};
use holdfast_dataplane::{GateError, Handle, PortId, Rules};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Longest encoding that is read (RB-1).
const MAX_ENCODED: usize = 64 << 10;

/// What is carried to the other host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Treatment {
    /// Whether flows run ahead of their epochs.
    pub(crate) speculative: bool,
    /// Whether the guest's agent may know of it.
    pub(crate) aware: bool,
    /// Those that do not.
    pub(crate) except: Vec<Exception>,
}

impl Treatment {
    /// The mode of a protected VM that is treated so.
    const fn mode(&self) -> Mode {
        match (self.speculative, self.aware) {
            (false, _) => Mode::Commit,
            (true, false) => Mode::Speculative,
            (true, true) => Mode::Aware,
        }
    }

    /// Its bytes, behind which the state of the ports follows.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let text = serde_json::to_vec(self).expect("plain data");
        let len = u32::try_from(text.len()).expect("exceptions are bounded");
        [&len.to_le_bytes(), &text[..]].concat()
    }

    /// The treatment, and the state of the ports that follows.
    pub(crate) fn decode(state: &[u8]) -> Result<(Self, &[u8]), String> {
        let cut_short = || "the treatment of the VM's output is cut short".to_owned();
        let (len, rest) = state.split_first_chunk().ok_or_else(cut_short)?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > MAX_ENCODED {
            return Err(format!("the treatment of the VM's output claims {len} bytes"));
        }
        let (text, ports) = rest.split_at_checked(len).ok_or_else(cut_short)?;
        let treatment: Self = serde_json::from_slice(text)
            .map_err(|fault| format!("the treatment of the VM's output is not understood: {fault}"))?;
        if treatment.except.len() > Exception::MOST {
            return Err(format!(
                "{} exceptions, where at most {} can be",
                treatment.except.len(),
                Exception::MOST
            ));
        }
        Ok((treatment, ports))
    }
}

/// The output of one VM: how it is treated here.
pub(crate) struct Output {
    handle: Handle,
    ports: Vec<PortId>,
    now: Mutex<Now>,
}

struct Now {
    /// What the operator asked for last, or the machine came with.
    mode: Mode,
    /// What is in force in the polling core.
    treatment: Treatment,
    /// On the backup: what would be, if the machine came here.
    foreseen: Option<Treatment>,
}

impl Output {
    /// The output of these ports, treated as the configuration says.
    pub(crate) fn new(
        handle: &Handle,
        ports: Vec<PortId>,
        mode: Mode,
        except: &[Exception],
    ) -> Result<Self, GateError> {
        let (speculative, aware) = (mode.speculates(), mode == Mode::Aware);
        let treatment = Treatment { speculative, aware, except: except.to_vec() };
        let now = Mutex::new(Now { mode, treatment: treatment.clone(), foreseen: None });
        let output = Self { handle: handle.clone(), ports, now };
        output.take_over(treatment)?;
        output.now().mode = mode;
        Ok(output)
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Never left half changed, so a panic elsewhere does not spoil it.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mode, and the flows that keep plain output commit in it; on the backup those of the last commit.
    pub(crate) fn shown(&self) -> (Mode, Vec<Exception>) {
        let now = self.now();
        match &now.foreseen {
            Some(foreseen) => (foreseen.mode(), foreseen.except.clone()),
            None => (now.mode, now.treatment.except.clone()),
        }
    }

    /// Shows another mode; what it takes has been done.
    pub(crate) fn show(&self, mode: Mode) {
        self.now().mode = mode;
    }

    /// Lets flows run ahead while the VM is protected if that mode wants it, or works those off that have; and lets
    /// the guest's agent know.
    pub(crate) fn speculate(&self, mode: Mode) -> Result<(), GateError> {
        let mut now = self.now();
        let (wanted, aware) = (mode.speculates(), mode == Mode::Aware);
        self.handle.let_agent_attach(&self.ports, aware)?;
        now.treatment.aware = aware;
        self.handle.speculate(&self.ports, wanted)?;
        now.treatment.speculative = wanted;
        // A change to another mode begins here, and may be refused on its way.
        if !wanted && now.mode.speculates() {
            now.mode = Mode::Commit;
        }
        Ok(())
    }

    /// Changes which flows may not.
    pub(crate) fn set_exceptions(&self, except: Vec<Exception>) -> Result<(), GateError> {
        let mut now = self.now();
        self.handle.set_rules(&self.ports, rules(&except))?;
        now.treatment.except = except;
        Ok(())
    }

    /// Makes a cut with the treatment that is in force at it.
    pub(crate) fn cut<T>(&self, cut: impl FnOnce(&Treatment) -> T) -> T {
        cut(&self.now().treatment)
    }

    /// Shows, on the backup, what the machine would be treated as if it came here.
    pub(crate) fn foresee(&self, treatment: &Treatment) {
        let mut now = self.now();
        if now.foreseen.as_ref() != Some(treatment) {
            now.foreseen = Some(treatment.clone());
        }
    }

    /// The machine comes here, treated so.
    pub(crate) fn take_over(&self, treatment: Treatment) -> Result<(), GateError> {
        let mut now = self.now();
        self.handle.set_rules(&self.ports, rules(&treatment.except))?;
        self.handle.let_agent_attach(&self.ports, treatment.aware)?;
        self.handle.speculate(&self.ports, treatment.speculative)?;
        now.mode = treatment.mode();
        now.treatment = treatment;
        now.foreseen = None;
        Ok(())
    }
}

/// The same for the engine.
fn rules(except: &[Exception]) -> Rules {
    Rules::new(except.iter().flat_map(Exception::rules))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn treatment() -> Treatment {
        let except = ["22", "10.0.0.0/8", "fd00::1"].map(|text| text.parse().expect("an exception"));
        Treatment { speculative: true, aware: true, except: except.to_vec() }
    }

    #[test]
    fn a_treatment_is_read_as_it_was_written_and_the_ports_follow() {
        let state = [&treatment().encode()[..], b"ports"].concat();
        assert_eq!(Treatment::decode(&state), Ok((treatment(), &b"ports"[..])));
        let most = Treatment { except: vec![treatment().except[1]; Exception::MOST], ..treatment() };
        assert_eq!(Treatment::decode(&most.encode()), Ok((most, &[][..])));
    }

    /// RB-1: what no treatment can be is refused, and nothing is taken on its word.
    #[test]
    fn bytes_that_are_no_treatment_are_refused() {
        let sound = treatment().encode();
        let framed = |text: &str| [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
        let many = vec!["\"22\""; Exception::MOST + 1].join(",");
        for wrong in [
            vec![],
            sound[..3].to_vec(),
            sound[..sound.len() - 1].to_vec(),
            [u32::MAX.to_le_bytes().to_vec(), vec![b'x'; 100]].concat(),
            framed("{}"),
            framed("{\"speculative\":true,\"except\":[]}"),
            framed("{\"speculative\":true,\"aware\":true,\"except\":[\"ssh\"]}"),
            framed("{\"speculative\":true,\"aware\":true,\"except\":[],\"more\":1}"),
            framed(&format!("{{\"speculative\":true,\"aware\":true,\"except\":[{many}]}}")),
        ] {
            assert!(Treatment::decode(&wrong).is_err(), "{wrong:?}");
        }
    }
}
