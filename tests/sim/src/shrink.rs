//! Shrinking: what can be taken away from a failing scenario while it still fails.

use crate::breakage::Breakage;
use crate::run::{Failure, run};
use crate::scenario::{Offload, Scenario, Settings};
use std::time::Duration;

/// One simplification, by name; which of several is meant, by its place at the time.
pub type Cut = String;

/// Runs that shrinking may take.
const MAX_RUNS: usize = 600;

/// Takes away what can be, and returns the smallest failure found and the cuts that lead to it.
#[must_use]
pub fn shrink(failure: Failure, broken: Option<Breakage>) -> (Failure, Vec<Cut>) {
    let mut smallest = failure;
    let mut taken = Vec::new();
    let mut runs = 0;
    loop {
        let before = taken.len();
        for name in names(&smallest.scenario) {
            let Some(smaller) = apply(&smallest.scenario, &name) else { continue };
            runs += 1;
            if runs > MAX_RUNS {
                return (smallest, taken);
            }
            if let Err(next) = run(&smaller, broken) {
                if next.violation.rule == smallest.violation.rule {
                    smallest = next;
                    taken.push(name);
                }
            }
        }
        if taken.len() == before {
            return (smallest, taken);
        }
    }
}

/// The cuts that may be tried on a scenario, the largest first.
fn names(scenario: &Scenario) -> Vec<Cut> {
    let mut names = Vec::new();
    for index in (0..scenario.connections.len()).rev() {
        names.push(format!("connection-{index}"));
    }
    for index in (0..scenario.faults.len()).rev() {
        names.push(format!("fault-{index}"));
    }
    for name in [
        "loss",
        "reorder",
        "duplicate",
        "corrupt",
        "marks",
        "strays",
        "trickle",
        "jitter",
        "rate",
        "epoch-jitter",
        "odd",
        "tags",
        "v6",
        "stamps",
        "sack",
        "offload",
        "ack-delay",
        "budget",
    ] {
        for side in ["guest", "client"] {
            names.push(format!("{name}-{side}"));
        }
    }
    for index in 0..scenario.connections.len() {
        for name in ["reset", "stall", "slow", "to-client", "to-guest", "half-to-client", "half-to-guest"] {
            names.push(format!("{name}-{index}"));
        }
    }
    names
}

/// A scenario without one thing; none when there is no such thing, or no such name.
#[must_use]
pub fn apply(scenario: &Scenario, cut: &str) -> Option<Scenario> {
    let (name, which) = cut.rsplit_once('-')?;
    let mut smaller = scenario.clone();
    let done = match which.parse::<usize>() {
        Ok(index) => cut_numbered(&mut smaller, name, index),
        Err(_) => cut_sided(&mut smaller, name, which == "guest"),
    };
    done.then_some(smaller)
}

fn cut_numbered(scenario: &mut Scenario, name: &str, index: usize) -> bool {
    if name == "fault" {
        return index < scenario.faults.len() && {
            scenario.faults.remove(index);
            true
        };
    }
    let alone = scenario.connections.len() == 1;
    let Some(connection) = scenario.connections.get_mut(index) else { return false };
    match name {
        "connection" => {
            if alone {
                return false;
            }
            scenario.connections.remove(index);
        }
        "reset" => return connection.reset.take().is_some(),
        "stall" => {
            let stalls = [connection.to_client.stall.take(), connection.to_guest.stall.take()];
            return stalls.iter().any(Option::is_some);
        }
        "slow" => {
            let mut any = false;
            for flow in [&mut connection.to_client, &mut connection.to_guest] {
                any |= !flow.pause.is_zero();
                (flow.pause, flow.chunk) = (Duration::ZERO, 64 << 10);
            }
            return any;
        }
        "to-client" | "to-guest" | "half-to-client" | "half-to-guest" => {
            let flow =
                if name.ends_with("client") { &mut connection.to_client } else { &mut connection.to_guest };
            if flow.bytes == 0 || connection.reset.is_some() {
                return false;
            }
            flow.bytes = if name.starts_with("half") { flow.bytes / 2 } else { 0 };
            if let Some(stall) = &mut flow.stall {
                stall.after = stall.after.min(flow.bytes);
            }
        }
        _ => return false,
    }
    true
}

fn cut_sided(scenario: &mut Scenario, name: &str, guest: bool) -> bool {
    let wire = if guest { &mut scenario.to_guest } else { &mut scenario.to_client };
    let settings = if guest { &mut scenario.guest } else { &mut scenario.client };
    let cleared = |number: &mut u32| std::mem::take(number) != 0;
    match name {
        "loss" => cleared(&mut wire.loss),
        "reorder" => cleared(&mut wire.reorder),
        "duplicate" => cleared(&mut wire.duplicate),
        "corrupt" => cleared(&mut wire.corrupt),
        "marks" => cleared(&mut wire.mark),
        "strays" => cleared(&mut wire.stray),
        "trickle" => std::mem::take(&mut scenario.trickle) | cleared(&mut scenario.silent_commits),
        "jitter" => !std::mem::take(&mut wire.jitter).is_zero(),
        "rate" => std::mem::replace(&mut wire.per_byte, Duration::from_nanos(1)) > Duration::from_nanos(1),
        "epoch-jitter" => !std::mem::take(&mut scenario.epochs.jitter).is_zero(),
        "odd" => cut_oddities(settings),
        "tags" => std::mem::take(&mut scenario.tags) != 0,
        "v6" => std::mem::take(&mut scenario.v6),
        "stamps" => std::mem::take(&mut settings.timestamps),
        "sack" => std::mem::take(&mut settings.sack),
        "offload" => std::mem::replace(&mut settings.offload, Offload::None) != Offload::None,
        "ack-delay" => settings.ack_delay.take().is_some(),
        "budget" => {
            let before = (scenario.held_bytes, scenario.flow_bytes);
            (scenario.held_bytes, scenario.flow_bytes) = (1 << 20, 256 << 10);
            before != (scenario.held_bytes, scenario.flow_bytes)
        }
        _ => false,
    }
}

fn cut_oddities(settings: &mut Settings) -> bool {
    let mut any = settings.odd_option.take().is_some();
    for flag in [&mut settings.keepalive_byte, &mut settings.wraps, &mut settings.ecn] {
        any |= std::mem::take(flag);
    }
    for number in [
        &mut settings.urgent_every,
        &mut settings.fragment_every,
        &mut settings.broken_every,
        &mut settings.shrink_every,
    ] {
        any |= std::mem::take(number) != 0;
    }
    any
}
