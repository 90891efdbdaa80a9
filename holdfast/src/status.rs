//! The table that `holdfast status` prints, drawn from the JSON document that the daemon answers.

use serde_json::Value;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// A table of the VMs and their NICs in `document`.
pub(crate) fn table(document: &Value) -> String {
    let mut out = String::new();
    let rows = document["vms"].as_array().map_or(&[][..], Vec::as_slice);
    line(&mut out, format_args!("host {}, {} VM(s)", text(&document["host"]), rows.len()));
    let link = &document["replication"];
    let refused = ["strangers", "refused", "dropped"].map(|name| link[name].as_u64().unwrap_or(0));
    if refused.iter().any(|count| *count > 0) {
        let [strangers, refused, dropped] = refused;
        line(
            &mut out,
            format_args!(
                "replication on {}: {strangers} connections of strangers or with other keys, {refused} refused, \
                 {dropped} too many at once; see the log",
                text(&link["address"])
            ),
        );
    }
    for vm in rows {
        line(
            &mut out,
            format_args!(
                "\n{}  {} {}  mode {}  term {}  epoch {}",
                text(&vm["vm"]),
                text(&vm["role"]),
                text(&vm["state"]),
                text(&vm["mode"]),
                text(&vm["term"]),
                text(&vm["committed_epoch"]),
            ),
        );
        let stats = &vm["stats"];
        if stats["epochs_sealed"].as_u64().is_some_and(|epochs| epochs > 0) {
            line(
                &mut out,
                format_args!(
                    "  pause p50 {} p99 {}  commit latency p50 {}  dirty pages p50 {}  replicated {} MiB",
                    milliseconds(&stats["pause"]["p50_us"]),
                    milliseconds(&stats["pause"]["p99_us"]),
                    milliseconds(&stats["commit_latency"]["p50_us"]),
                    text(&stats["dirty_pages_p50"]),
                    stats["replicated_bytes"].as_u64().unwrap_or(0) >> 20,
                ),
            );
        }
        for nic in vm["nics"].as_array().map_or(&[][..], Vec::as_slice) {
            line(
                &mut out,
                format_args!(
                    "  nic {}  {}  to wire {} frames  to guest {} frames  held {} frames, {} bytes  dropped {}",
                    text(&nic["socket"]),
                    if nic["connected"].as_bool() == Some(true) { "connected" } else { "waiting for QEMU" },
                    text(&nic["sent_frames"]),
                    text(&nic["delivered_frames"]),
                    text(&nic["held_frames"]),
                    text(&nic["held_bytes"]),
                    text(&nic["dropped_frames"]),
                ),
            );
            if let Some(fault) = nic["last_frontend_fault"].as_str() {
                let count = text(&nic["frontend_faults"]);
                line(
                    &mut out,
                    format_args!("    closed {count} times for a fault of the other end, last: {fault}"),
                );
            }
        }
        if let Some(trouble) = vm["trouble"]["text"].as_str() {
            let (fault, age) = (text(&vm["trouble"]["fault"]), age_s(&vm["trouble"]["at_unix_ms"]));
            line(&mut out, format_args!("  last trouble ({fault}'s, {age} s ago): {trouble}"));
        }
    }
    out
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("a string takes all text");
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

/// Seconds since a moment: what was mended is told from what still stands.
fn age_s(at_unix_ms: &Value) -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    now.saturating_sub(at_unix_ms.as_u64().unwrap_or(0).into()) / 1000
}

fn milliseconds(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".into(), |us| format!("{:.1} ms", us / 1000.0))
}
