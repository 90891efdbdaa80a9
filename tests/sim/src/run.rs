//! One run from scenario to verdict.

use crate::breakage::Breakage;
use crate::judge::Violation;
use crate::scenario::Scenario;
use crate::world::{Summary, World};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A scenario that ended badly.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The scenario.
    pub scenario: Box<Scenario>,
    /// What was violated.
    pub violation: Violation,
}

/// Runs a scenario.
///
/// # Errors
/// When an invariant is violated, or something panics.
pub fn run(scenario: &Scenario, broken: Option<Breakage>) -> Result<Summary, Failure> {
    attempt(scenario, broken, false)
        .0
        .map_err(|violation| Failure { scenario: Box::new(scenario.clone()), violation })
}

/// Runs a scenario and writes down what happens.
pub fn trace(scenario: &Scenario, broken: Option<Breakage>) -> (Result<Summary, Violation>, Vec<String>) {
    attempt(scenario, broken, true)
}

fn attempt(
    scenario: &Scenario,
    broken: Option<Breakage>,
    traced: bool,
) -> (Result<Summary, Violation>, Vec<String>) {
    let mut world = None;
    let result = catch_unwind(AssertUnwindSafe(|| world.insert(World::new(scenario, broken, traced)).run()));
    let lines = world.map(|world| world.trace.lines().to_vec()).unwrap_or_default();
    let result = result.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("without a word");
        Err(Violation { rule: "panic", text: text.to_owned() })
    });
    (result, lines)
}
