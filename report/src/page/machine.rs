//! Where it was measured, and what was asked for.

use crate::run::Run;
use maud::{Markup, html};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

pub(super) fn section(run: &Run) -> Markup {
    let machine = &run.machine;
    let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
    let number = |value: Option<u64>| value.map_or_else(|| "-".into(), |value| value.to_string());
    let mut rows = vec![
        ("Holdfast", text(&machine.holdfast)),
        ("commit", text(&machine.commit)),
        ("QEMU", text(&machine.qemu)),
        ("DPDK", text(&machine.dpdk)),
        ("kernel", text(&machine.kernel)),
        ("guest's kernel", text(&machine.guest_kernel)),
        ("in the guest", programs(&machine.applications)),
        ("processor", text(&machine.cpu)),
        ("cores", number(machine.cores)),
        ("memory", machine.memory_mib.map_or_else(|| "-".into(), |mib| format!("{mib} MiB"))),
        ("began", text(&machine.started)),
        ("took", machine.took_s.map_or_else(|| "-".into(), |took| format!("{took:.0} s"))),
    ];
    let asked = &run.configuration;
    let join = |values: Vec<String>| if values.is_empty() { "-".into() } else { values.join(", ") };
    rows.extend([
        ("modes", join(asked.modes.iter().map(ToString::to_string).collect())),
        ("epochs", join(asked.epochs_ms.iter().map(|ms| format!("{ms} ms")).collect())),
        ("rounds", number(asked.rounds.map(u64::from))),
        ("seconds of a stream", asked.seconds.map_or_else(|| "-".into(), |seconds| seconds.to_string())),
        ("seed", number(asked.seed)),
        (
            "wire",
            match asked.wire.as_deref() {
                None => "-".into(),
                Some("") => "a plain cable".into(),
                Some(wire) => wire.into(),
            },
        ),
        ("quick", asked.quick.map_or_else(|| "-".into(), |quick| if quick { "yes" } else { "no" }.into())),
    ]);
    if run.is_of_costs() {
        // Most of what a guest's traffic depends on is no part of such a run.
        rows.retain(|(_, value)| value != "-");
    }
    html! {
        div.scroll {
            table {
                tbody {
                    @for (name, value) in rows { tr { th { (name) } td { (value) } } }
                    (more(&machine.more))
                    (more(&asked.more))
                }
            }
        }
    }
}

/// Programs with their versions.
fn programs(versions: &BTreeMap<String, String>) -> String {
    let named: Vec<String> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    if named.is_empty() { "-".into() } else { named.join(", ") }
}

fn more(fields: &Map<String, Value>) -> Markup {
    html! {
        @for (name, value) in fields {
            tr { th { (name) } td { (value.as_str().map_or_else(|| value.to_string(), str::to_owned)) } }
        }
    }
}
