//! Rows of what single parts cost, from which one sees how that grows: pauses, frames through the rings, pages
//! on the link, the engine's work.
//!
//! `bench pause`, `bench pps` and `bench pages` write them, and the benchmark of the speculation engine. A
//! document has rows of one kind; where a row does not say which, the document's name does.

use super::{Row, Run};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The benchmarks of such rows, each with the name of its rows' kind.
pub const COSTS: [&str; 4] = ["pause", "pps", "pages", "engine"];

/// Pauses of some epochs of one guest with one set of dirty pages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pause {
    /// The guest's memory.
    pub guest_mib: u64,
    /// Pages that the guest was asked to write in an epoch.
    pub dirty_pages: u64,
    /// How long epochs were.
    pub epoch_ms: u64,
    /// Epochs that were looked at.
    pub epochs: u64,
    /// How long the guest stood still: the median epoch.
    pub pause_p50_us: f64,
    /// As above, in one epoch of a hundred longer.
    pub pause_p99_us: f64,
    /// Median of stopping the guest.
    pub pause_stop_p50_us: Option<f64>,
    /// Median of ending the epoch of its output.
    pub pause_cut_p50_us: Option<f64>,
    /// Median of all scans for dirty pages, which go on beside the save.
    pub pause_scan_p50_us: Option<f64>,
    /// Median of copying pages, beside the save as well.
    pub pause_copy_p50_us: Option<f64>,
    /// Median of saving devices and processors.
    pub pause_save_p50_us: Option<f64>,
    /// Median of letting the guest go on.
    pub pause_cont_p50_us: Option<f64>,
    /// Pages that were copied while the guest ran; none in documents from before that was done.
    pub ahead_pages_p50: Option<f64>,
    /// From the stop to the backup's confirmation.
    pub commit_latency_p50_us: Option<f64>,
    /// What an epoch put on the link.
    pub wire_bytes_p50: Option<f64>,
}

/// Frames a second through the rings of two ports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pps {
    /// `testpmd` or `holdfast`.
    pub backend: String,
    /// What Holdfast does with output, or how testpmd forwards.
    pub mode: String,
    /// `split` or `packed`.
    pub ring: String,
    /// On Ethernet, with the checksum.
    pub frame_bytes: u64,
    /// Pairs of queues of each port; one where the document does not say.
    pub queues: Option<u64>,
    /// Millions of frames a second at which nothing was lost, both directions together.
    pub mpps: f64,
}

impl Pps {
    /// Pairs of queues of each port.
    pub fn queue_pairs(&self) -> u64 {
        self.queues.unwrap_or(1)
    }
}

/// Pages on their way to the other host, or by another way beside it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pages {
    /// Such as `tcp` or `bypass`; `qemu` or `memcpy` for what is set beside them.
    pub path: String,
    /// What the guest did meanwhile.
    pub workload: String,
    /// The guest's memory.
    pub guest_mib: Option<u64>,
    /// Bytes of pages a second, before reduction.
    pub payload_bytes_s: f64,
    /// What a page of 4 KiB put on the link; none where there is no link.
    pub wire_bytes_per_page: Option<f64>,
    /// What else the row says, such as `send_bytes_s_core`: bytes of pages by the processor time of a stage.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One function of the speculation engine, with so many flows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Engine {
    /// Its name, such as `cut`.
    pub name: String,
    /// What is timed, in words.
    pub what: String,
    /// Flows that the engine had; none where that makes no difference.
    pub flows: Option<u64>,
    /// Whether that is done for all flows at once, and not for one of them.
    #[serde(default)]
    pub of_all: bool,
    /// The median.
    pub time_ns: f64,
}

impl Run {
    /// Whether it is of what single parts cost, and not of a guest's traffic.
    pub fn is_of_costs(&self) -> bool {
        COSTS.contains(&self.bench.as_str())
    }

    /// The rows of pauses.
    pub fn pauses(&self) -> impl Iterator<Item = &Pause> {
        self.rows.iter().filter_map(|row| if let Row::Pause(row) = row { Some(row) } else { None })
    }

    /// The rows of frames a second.
    pub fn pps(&self) -> impl Iterator<Item = &Pps> {
        self.rows.iter().filter_map(|row| if let Row::Pps(row) = row { Some(row) } else { None })
    }

    /// The rows of pages.
    pub fn pages(&self) -> impl Iterator<Item = &Pages> {
        self.rows.iter().filter_map(|row| if let Row::Pages(row) = row { Some(row) } else { None })
    }

    /// The rows of the engine.
    pub fn engine(&self) -> impl Iterator<Item = &Engine> {
        self.rows.iter().filter_map(|row| if let Row::Engine(row) = row { Some(row) } else { None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(bench: &str, row: &Value) -> Run {
        Run::read(&json!({"bench": bench, "rows": [row], "refused": ["a guest of 1 TiB"]}).to_string())
            .unwrap()
    }

    #[test]
    fn rows_of_costs_are_of_the_kind_that_their_document_names() {
        let pause = json!({"round": 1, "guest_mib": 256, "dirty_pages": 200, "epoch_ms": 50, "epochs": 20,
            "pause_p50_us": 3011.0, "pause_p99_us": 11386.0, "pause_stop_p50_us": 566.0,
            "of_the_future": [1]});
        let run = read("pause", &pause);
        assert!(run.is_of_costs() && run.refused == ["a guest of 1 TiB"]);
        let found = run.pauses().next().unwrap();
        assert_eq!(
            (found.guest_mib, found.pause_stop_p50_us, found.ahead_pages_p50),
            (256, Some(566.0), None)
        );

        let pps =
            json!({"backend": "holdfast", "mode": "native", "ring": "split", "frame_bytes": 64, "mpps": 8.0});
        let run = read("pps", &pps);
        let found = run.pps().next().unwrap();
        assert_eq!((found.queue_pairs(), found.mpps), (1, 8.0));

        let pages = json!({"path": "memcpy", "workload": "sync", "payload_bytes_s": 5e9,
            "wire_bytes_per_page": null, "send_bytes_s_core": 1.0});
        let run = read("pages", &pages);
        let found = run.pages().next().unwrap();
        assert_eq!((found.wire_bytes_per_page, &found.more["send_bytes_s_core"]), (None, &json!(1.0)));

        let engine = json!({"name": "cut", "what": "cut", "flows": 256, "time_ns": 9e3});
        assert_eq!(read("engine", &engine).engine().next().unwrap().flows, Some(256));
    }

    #[test]
    fn a_row_of_costs_is_written_as_it_is_read() {
        let pages = json!({"kind": "pages", "path": "tcp", "workload": "idle", "guest_mib": 256, "payload_bytes_s": 1.0,
            "wire_bytes_per_page": 4.0, "apply_cpu_s": 2.0});
        let run = read("pages", &pages);
        assert_eq!(serde_json::to_value(&run.rows[0]).unwrap(), pages);
    }

    #[test]
    fn a_figure_of_another_shape_is_named() {
        let row = json!({"guest_mib": 256, "pause_p50_us": "long"});
        let text = json!({"bench": "pause", "rows": [row]}).to_string();
        let fault = Run::read(&text).unwrap_err().to_string();
        assert!(fault.contains("rows[0]") && fault.contains("long"), "{fault}");
    }
}
