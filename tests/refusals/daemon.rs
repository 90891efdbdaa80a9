//! The tested program, run as an operator runs it.

use holdfast_lab::netns::Namespace;
use holdfast_lab::process::{Process, ProcessSpec};
use holdfast_tests::program::holdfast;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A state that should come within a second or two is waited for that long: the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// A command's exit code and what it printed, both streams.
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) text: String,
}

impl Ended {
    /// Checks the exit code and that each of `parts` was said.
    pub(crate) fn expect(&self, case: &str, code: i32, parts: &[&str]) {
        println!("{case}: exit {}\n{}", self.code, self.text);
        assert_eq!(self.code, code, "{case}: {}", self.text);
        for part in parts {
            assert!(self.text.contains(part), "{case}: no {part:?} in: {}", self.text);
        }
        assert!(!self.text.contains("panicked"), "{case}: {}", self.text);
    }
}

/// Runs the program with those arguments to its end, in a namespace and as another user if asked to.
pub(crate) fn run(namespace: Option<&Namespace>, user: Option<u32>, arguments: &[&str]) -> Ended {
    let mut command = match user {
        None => Command::new(holdfast()),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]);
            command.arg(holdfast());
            command
        }
    };
    command.args(arguments).env("HOLDFAST_LOG", "warn");
    if let Some(namespace) = namespace {
        namespace.enter_on_exec(&mut command);
    }
    let output = command.output().expect("the program starts");
    let text = [output.stdout, output.stderr].concat();
    Ended { code: output.status.code().unwrap_or(-1), text: String::from_utf8_lossy(&text).into_owned() }
}

/// `holdfast run`, as it runs.
pub(crate) struct Daemon {
    pub(crate) process: Process,
    control: PathBuf,
}

impl Daemon {
    /// Starts it; with a mount namespace of its own in which the shell command `mounts` has run, if given.
    pub(crate) fn start(
        name: &str,
        namespace: &Namespace,
        config: &Path,
        control: &Path,
        log: &Path,
        mounts: Option<&str>,
    ) -> Self {
        let spec = match mounts {
            None => ProcessSpec::new(name, holdfast(), log),
            Some(mounts) => {
                let script = format!("{mounts} && exec \"$0\" \"$@\"");
                let spec = ProcessSpec::new(name, "unshare", log);
                spec.args(["--mount", "--propagation", "private", "sh", "-c", &script]).args([holdfast()])
            }
        };
        let process = spec
            .args(["run", "-c"])
            .args([config])
            .env("HOLDFAST_LOG", "info")
            .namespace(namespace)
            .spawn()
            .expect("the program starts");
        Self { process, control: control.to_owned() }
    }

    /// Waits until it answers on its control socket.
    pub(crate) fn ready(mut self) -> Self {
        self.process.wait_for_log("VM(s), control socket", SOON).expect("it runs");
        let answer = self.command(&["status"]);
        assert_eq!(answer.code, 0, "{}\n{}", answer.text, self.process.log_tail(20));
        self
    }

    /// Waits for its end.
    pub(crate) fn ended(mut self) -> Ended {
        let status = self.process.wait(SOON).expect("a child");
        let text = self.process.log_tail(60);
        let code = status.unwrap_or_else(|| panic!("it runs:\n{text}")).code();
        Ended { code: code.unwrap_or(-1), text }
    }

    /// Ends it as an operator would.
    pub(crate) fn stop(mut self) {
        self.process.signal(Signal::SIGTERM).expect("signalled");
        let status = self.process.wait(SOON).expect("a child");
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {}", self.process.log_tail(20));
    }

    /// Runs a command of the program on its control socket.
    pub(crate) fn command(&self, arguments: &[&str]) -> Ended {
        let socket = self.control.display().to_string();
        run(None, None, &[arguments, &["--socket", &socket]].concat())
    }

    /// The status of a VM.
    pub(crate) fn vm(&self, name: &str) -> Value {
        let answer = self.command(&["status", "--json", name]);
        assert_eq!(answer.code, 0, "{}\n{}", answer.text, self.process.log_tail(20));
        let document: Value = serde_json::from_str(&answer.text).expect("JSON");
        document["vms"][0].clone()
    }

    /// Waits until the status of a VM fulfils `done`.
    pub(crate) fn wait(&self, vm: &str, wanted: &str, done: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + SOON;
        loop {
            let status = self.vm(vm);
            if done(&status) {
                return status;
            }
            if Instant::now() > until {
                let (state, trouble) = (&status["state"], &status["trouble"]);
                let log = self.process.log_tail(30);
                panic!("{vm} is not {wanted} but {state}; trouble {trouble}; the log ends:\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a VM is in that state.
    pub(crate) fn wait_state(&self, vm: &str, state: &str) -> Value {
        self.wait(vm, state, |status| status["state"] == state)
    }

    /// Waits until a VM shows a trouble in which all of `parts` stand; gives it.
    pub(crate) fn wait_trouble(&self, vm: &str, parts: &[&str]) -> Value {
        let wanted = format!("in a trouble with {parts:?}");
        let status = self.wait(vm, &wanted, |status| {
            status["trouble"]["text"]
                .as_str()
                .is_some_and(|text| parts.iter().all(|part| text.contains(part)))
        });
        println!("{vm}: {} ({}'s)", status["trouble"]["text"], status["trouble"]["fault"]);
        status
    }
}
