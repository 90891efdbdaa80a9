//! The table that `holdfast status` prints, drawn from the JSON document that the daemon answers.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A TCP flow that speculates, in a VM's array `flows`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FlowRow {
    /// Place of the VM's NIC that it passes, from 0.
    pub(crate) nic: usize,
    /// The guest's end.
    pub(crate) guest: SocketAddr,
    /// The client's end.
    pub(crate) client: SocketAddr,
    /// The VLAN, where frames have a tag.
    pub(crate) vlan: Option<u16>,
    /// What the flow is doing, in a word.
    pub(crate) state: String,
    /// What was acknowledged to the guest in the client's name, and not by the client yet.
    pub(crate) ahead_bytes: u64,
    /// Held for the client: committed or not.
    pub(crate) escrow_bytes: u64,
    /// What the guest may still send into its window.
    pub(crate) window_bytes: u64,
    /// Smoothed round trip to the client; null before the first.
    pub(crate) rtt_us: Option<u64>,
    /// The congestion window.
    pub(crate) cwnd_bytes: u64,
    /// Segments that were sent again.
    pub(crate) retransmissions: u64,
}

/// A table of the VMs and their NICs in `document`.
pub(crate) fn table(document: &Value) -> String {
    let mut out = String::new();
    let rows = document["vms"].as_array().map_or(&[][..], Vec::as_slice);
    line(&mut out, format_args!("host {}, {} VM(s)", text(&document["host"]), rows.len()));
    if let Some(lost) = document["core"]["wire_lost_frames"].as_u64().filter(|lost| *lost > 0) {
        line(
            &mut out,
            format_args!("wires lost {lost} frames that they could not carry; mend: compare the MTUs"),
        );
    }
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
        if let Some(refusal) = link["last_refusal"].as_str() {
            line(&mut out, format_args!("  refused last: {refusal}"));
        }
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
                    "  pause p50 {} p99 {}  guest's clock slow by {:.1} %  commit latency p50 {}  dirty pages p50 {}  \
                     replicated {} MiB",
                    milliseconds(&stats["pause"]["p50_us"]),
                    milliseconds(&stats["pause"]["p99_us"]),
                    stats["guest_clock_lag_ppm"].as_f64().unwrap_or(0.0) / 1e4,
                    milliseconds(&stats["commit_latency"]["p50_us"]),
                    text(&stats["dirty_pages_p50"]),
                    stats["replicated_bytes"].as_u64().unwrap_or(0) >> 20,
                ),
            );
        }
        if let Some(said) = reduction(stats) {
            line(&mut out, format_args!("  {said}"));
        }
        if !document["bypass"].is_null() && vm["link"]["connected"].as_bool() == Some(true) {
            let over = vm["link"]["over_bypass"].as_bool() == Some(true);
            line(
                &mut out,
                format_args!(
                    "  replicates over {}  came back from the bypass {} times",
                    if over { "the bypass" } else { "the connection, as the bypass has no path" },
                    text(&vm["link"]["bypass_returns"]),
                ),
            );
        }
        if let Some(said) = agent(vm) {
            line(&mut out, format_args!("  {said}"));
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
            if let Some(pairs) = nic["queue_pairs"].as_array().filter(|pairs| pairs.len() > 1) {
                queue_pairs(&mut out, pairs);
            }
            if let Some(fault) = nic["last_frontend_fault"].as_str() {
                let count = text(&nic["frontend_faults"]);
                line(
                    &mut out,
                    format_args!("    closed {count} times for a fault of the other end, last: {fault}"),
                );
            }
        }
        if let Some(rows) = vm["flows"].as_array() {
            flows(&mut out, rows);
        }
        if let Some(rows) = vm["epochs"].as_array() {
            epochs(&mut out, rows);
        }
        if let Some(trouble) = vm["trouble"]["text"].as_str() {
            let (fault, age) = (text(&vm["trouble"]["fault"]), age_s(&vm["trouble"]["at_unix_ms"]));
            line(&mut out, format_args!("  last trouble ({fault}'s, {age} s ago): {trouble}"));
        }
    }
    out
}

/// How many of the last epochs the table shows; JSON has all that are remembered.
const EPOCHS_SHOWN: usize = 20;

/// The last epochs of a VM.
fn epochs(out: &mut String, rows: &[Value]) {
    if rows.is_empty() {
        line(out, format_args!("  no epoch was sealed here"));
        return;
    }
    let titles = ["epoch", "ran ms", "pause ms", "sent ms", "commit ms", "pages", "wire KiB", "ahead KiB"];
    let [first, rest @ ..] = titles;
    let rest: String = rest.iter().map(|title| format!(" {title:>10}")).collect();
    line(out, format_args!("  {first:>10}{rest}"));
    for row in rows.iter().skip(rows.len().saturating_sub(EPOCHS_SHOWN)) {
        // Sent and committed count from the stop.
        let ms = |to: &str, from: &str| match (row[to].as_u64(), row[from].as_u64()) {
            (Some(to), Some(from)) => format!("{:.2}", to.saturating_sub(from) as f64 / 1e3),
            _ => "-".into(),
        };
        let kib = |name: &str| (row[name].as_u64().unwrap_or(0) >> 10).to_string();
        let cells = [
            text(&row["number"]),
            ms("stopped_us", "began_us"),
            row["pause_us"].as_f64().map_or_else(|| "-".into(), |us| format!("{:.2}", us / 1e3)),
            ms("sent_us", "stopped_us"),
            ms("committed_us", "stopped_us"),
            text(&row["dirty_pages"]),
            kib("wire_bytes"),
            kib("streamed_bytes"),
        ];
        let cells: String = cells.iter().map(|cell| format!(" {cell:>10}")).collect();
        line(out, format_args!(" {cells}"));
    }
}

/// What became of the pages that were sent, in percent: of their bytes, and of the pages that went each way.
fn reduction(stats: &Value) -> Option<String> {
    let ways = ["unchanged", "zero", "equal", "delta", "compress", "whole"];
    let of = |way: &str, figure: &str| stats["reduction"][way][figure].as_u64().unwrap_or(0);
    let all = |figure: &str| ways.iter().map(|way| of(way, figure)).sum::<u64>();
    let (pages, wire_bytes) = (all("pages"), all("wire_bytes"));
    if pages == 0 {
        return None;
    }
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
    let shares: String =
        ways.iter().map(|way| format!("  {way} {:.1}", percent(of(way, "pages"), pages))).collect();
    Some(format!(
        "pages came to {:.1} % of their bytes; percent of them{shares}",
        percent(wire_bytes, pages << 12)
    ))
}

/// How a NIC's frames are spread over its pairs of queues.
fn queue_pairs(out: &mut String, pairs: &[Value]) {
    let frames = |name: &str| pairs.iter().map(|pair| text(&pair[name])).collect::<Vec<_>>().join(", ");
    line(
        out,
        format_args!(
            "    {} of {} queue pairs enabled  from guest {} frames  to guest {} frames",
            pairs.iter().filter(|pair| pair["enabled"] == true).count(),
            pairs.len(),
            frames("captured_frames"),
            frames("delivered_frames"),
        ),
    );
}

/// What is to be said of the guest's agent: nothing where none has been heard and none is asked for.
fn agent(vm: &Value) -> Option<String> {
    let is_wanted = vm["mode"] == "aware" && vm["role"] == "primary";
    let silent_s = vm["agent"]["silent_ms"].as_u64().unwrap_or(0) / 1000;
    let means = if is_wanted {
        ": mode aware is as speculative without it; mend: holdfast-guest install"
    } else {
        ""
    };
    match vm["agent"]["state"].as_str()? {
        "present" => Some("guest's agent present".into()),
        "absent" => Some(format!("guest's agent absent for {silent_s} s{means}")),
        _ if is_wanted => Some(format!("guest's agent never heard{means}, in the guest")),
        _ => None,
    }
}

/// The flows of a VM; rows of another version's shape are passed over, and counted.
fn flows(out: &mut String, rows: &[Value]) {
    let read: Vec<FlowRow> = rows.iter().filter_map(|row| serde_json::from_value(row.clone()).ok()).collect();
    if rows.is_empty() {
        line(out, format_args!("  no flow speculates"));
        return;
    }
    line(
        out,
        format_args!(
            "  {:<44} {:<12} {:>10} {:>10} {:>10} {:>9} {:>10} {:>6}",
            "flow", "state", "ahead KiB", "escrow KiB", "window KiB", "rtt ms", "cwnd KiB", "resent"
        ),
    );
    for row in &read {
        let tag = row.vlan.map_or_else(String::new, |vlan| format!(" vlan {vlan}"));
        line(
            out,
            format_args!(
                "  {:<44} {:<12} {:>10} {:>10} {:>10} {:>9} {:>10} {:>6}",
                format!("{} > {}{tag}", row.guest, row.client),
                row.state,
                row.ahead_bytes >> 10,
                row.escrow_bytes >> 10,
                row.window_bytes >> 10,
                row.rtt_us.map_or_else(|| "-".into(), |us| format!("{:.2}", us as f64 / 1e3)),
                row.cwnd_bytes >> 10,
                row.retransmissions
            ),
        );
    }
    if read.len() < rows.len() {
        line(out, format_args!("  {} flows of another version's shape", rows.len() - read.len()));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn flows_are_a_row_each_and_an_idle_vm_says_so() {
        let flow = FlowRow {
            nic: 0,
            guest: "10.99.0.11:7001".parse().expect("an address"),
            client: "[fd00::1]:40000".parse().expect("an address"),
            vlan: Some(7),
            state: "speculating".into(),
            ahead_bytes: 5 << 20,
            escrow_bytes: 6 << 20,
            window_bytes: 64 << 10,
            rtt_us: Some(20_250),
            cwnd_bytes: 128 << 10,
            retransmissions: 3,
        };
        let document = json!({"host": "a", "vms": [{"vm": "web", "flows": [flow, {"old": true}]}]});
        let text = table(&document);
        for part in ["10.99.0.11:7001 > [fd00::1]:40000 vlan 7", "5120", "20.25", "1 flows of another"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(table(&json!({"vms": [{"flows": []}]})).contains("no flow speculates"));
        assert!(!table(&json!({"vms": [{}]})).contains("flow"));
    }

    #[test]
    fn the_last_epochs_are_a_row_each_and_what_has_not_happened_yet_is_a_dash() {
        let row = |number: u64| {
            let committed = (number < 30).then_some(1_030_000);
            json!({"number": number, "began_us": 1_000_000, "stopped_us": 1_020_500, "pause_us": 4_250,
                   "sent_us": 1_026_000, "committed_us": committed, "dirty_pages": 207, "wire_bytes": 8192,
                   "streamed_bytes": 1 << 20})
        };
        let rows: Vec<_> = (1..=30).map(row).collect();
        let text = table(&json!({"vms": [{"vm": "web", "epochs": rows}]}));
        let words: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
        assert_eq!(words[words.len() - 2], ["29", "20.50", "4.25", "5.50", "9.50", "207", "8", "1024"]);
        assert_eq!(words[words.len() - 1][4], "-");
        assert_eq!(words.iter().filter(|row| row.contains(&"207")).count(), EPOCHS_SHOWN);
        assert!(table(&json!({"vms": [{"epochs": []}]})).contains("no epoch was sealed"));
    }

    #[test]
    fn what_became_of_pages_is_told_once_some_were_sent() {
        let way = |pages: u64, wire_bytes: u64| json!({"pages": pages, "wire_bytes": wire_bytes});
        let ways = json!({"unchanged": way(25, 200), "zero": way(0, 0), "equal": way(50, 800),
                          "delta": way(0, 0), "compress": way(0, 0), "whole": way(25, 102_600)});
        let text = table(&json!({"vms": [{"vm": "web", "stats": {"reduction": ways}}]}));
        assert!(text.contains("pages came to 25.3 % of their bytes"), "{text}");
        assert!(text.contains("unchanged 25.0  zero 0.0  equal 50.0  delta 0.0"), "{text}");
        assert!(!table(&json!({"vms": [{"vm": "web"}]})).contains("of their bytes"));
    }

    #[test]
    fn a_nic_of_several_queue_pairs_says_what_each_carried() {
        let pair = |enabled: bool, frames: u64| json!({"enabled": enabled, "captured_frames": frames, "delivered_frames": 2 * frames});
        let said = |pairs: Vec<Value>| table(&json!({"vms": [{"nics": [{"queue_pairs": pairs}]}]}));
        let text = said(vec![pair(true, 5), pair(false, 7)]);
        assert!(
            text.contains("1 of 2 queue pairs enabled  from guest 5, 7 frames  to guest 10, 14 frames"),
            "{text}"
        );
        assert!(!said(vec![pair(true, 5)]).contains("queue pairs"));
    }

    #[test]
    fn mode_aware_without_an_agent_is_seen() {
        let said = |mode: &str, agent: Value| {
            table(&json!({"vms": [{"vm": "web", "role": "primary", "mode": mode, "agent": agent}]}))
        };
        let never = json!({"state": "never heard"});
        assert!(said("aware", never.clone()).contains("never heard: mode aware is as speculative"));
        assert!(!said("speculative", never).contains("agent"));
        let absent = json!({"state": "absent", "silent_ms": 12_345});
        assert!(said("aware", absent.clone()).contains("absent for 12 s: mode aware"));
        assert!(said("commit", absent).contains("absent for 12 s\n"));
        assert!(said("aware", json!({"state": "present", "silent_ms": 1})).contains("agent present\n"));
    }
}
