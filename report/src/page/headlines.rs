//! What was aimed at, and whether it was reached.

use super::words;
use crate::aims;
use crate::run::Run;
use maud::{Markup, html};

pub(super) fn section(run: &Run) -> Markup {
    let aims = aims::of(run);
    let missed = aims.iter().filter(|aim| aim.reached() == Some(false)).count();
    let reached = aims.iter().filter(|aim| aim.reached() == Some(true)).count();
    html! {
        p { (reached) " reached, " (missed) " missed, " (aims.len() - reached - missed) " not measured. Ratios are taken "
            "within this run: over all rounds, and beside that the least and the greatest of a single round." }
        table {
            thead { tr { th { "what" } th.figure { "found" } th.figure { "single rounds" } th.figure { "aim" } th { "" } } }
            tbody {
                @for aim in &aims {
                    tr {
                        td { (aim.aim) }
                        td.figure { (aim.found.map_or_else(|| "-".into(), |found| words::number(found) + aim.unit)) }
                        td.figure { (aim.spread()) }
                        td.figure { (aim.bound()) }
                        td class=(match aim.reached() { Some(true) => "reached", Some(false) => "missed", None => "soft" }) {
                            (aim.verdict())
                        }
                    }
                }
            }
        }
    }
}
