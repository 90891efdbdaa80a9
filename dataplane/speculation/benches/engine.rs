//! Cost of the engine's hot path, a line a function: `cargo bench -p holdfast-speculation`.
//!
//! Each line is the median of several rounds over warm caches. Frames are made, and given back, outside
//! of what is measured; a sink takes every frame into the same buffer. `--bench engine -- --json FILE` also
//! writes the lines as a document for `holdfast bench report`; a path that is not absolute begins at this crate.

#[path = "../tests/ends/mod.rs"]
mod ends;

use ends::{Ends, Wire};
use holdfast_epoch::EpochId;
use holdfast_packet::headers::flag;
use holdfast_speculation::{Engine, EngineConfig, FromGuest, FromWire, Speculation, Time};
use std::time::{Duration, Instant};

const ROUNDS: usize = 25;
/// A unit of the window's scale: when all memory is promised, less is not acknowledged by itself.
const SMALL: usize = 128;

/// Times of one line, a unit each.
struct Line {
    name: &'static str,
    what: String,
    /// Where the time depends on them.
    flows: Option<u32>,
    /// Whether a unit is work for all flows.
    of_all: bool,
    times: Vec<f64>,
}

impl Line {
    fn new(name: &'static str, what: &str) -> Self {
        Self { name, what: what.to_owned(), flows: None, of_all: false, times: Vec::new() }
    }

    fn with(self, flows: u32) -> Self {
        Self { flows: Some(flows), ..self }
    }

    fn of_all(self) -> Self {
        Self { of_all: true, ..self }
    }

    fn measure<R>(&mut self, units: usize, work: impl FnOnce() -> R) -> R {
        let (result, took) = timed(work);
        self.times.push(took / units as f64);
        result
    }

    /// The median; the first round was for the caches.
    fn median_ns(&self) -> f64 {
        let mut times = self.times[1..].to_vec();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    fn print(&self) {
        let flows = self.flows.map_or_else(String::new, |flows| format!(", {flows} flows"));
        let median = self.median_ns();
        println!("{:<12} {median:>9.1} ns, {:>11.0} /s: {}{flows}", self.name, 1e9 / median, self.what);
    }

    /// As a row; names and words are plain ASCII, and quoted as in JSON.
    fn json(&self) -> String {
        let flows = self.flows.map_or_else(|| "null".to_owned(), |flows| flows.to_string());
        let (name, what, of_all, time_ns) = (self.name, &self.what, self.of_all, self.median_ns());
        format!(
            "{{\"name\": {name:?}, \"what\": {what:?}, \"flows\": {flows}, \"of_all\": {of_all}, \"time_ns\": {time_ns:.1}}}"
        )
    }
}

/// Where `--json` says.
fn json_path() -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "--json");
    arguments.next().map(|_| arguments.next().expect("--json FILE"))
}

/// The document of all lines, for `holdfast bench report`.
fn document(lines: &[Line]) -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cpu = model.map_or("unknown", |(_, name)| name);
    let rows: Vec<String> = lines.iter().map(|line| format!("    {}", line.json())).collect();
    format!(
        "{{\n  \"bench\": \"engine\",\n  \"machine\": {{\"cpu\": {cpu:?}}},\n  \"rows\": [\n{}\n  ]\n}}\n",
        rows.join(",\n")
    )
}

/// What `work` gave, and nanoseconds that it took.
fn timed<R>(work: impl FnOnce() -> R) -> (R, f64) {
    let begin = Instant::now();
    let result = work();
    (result, begin.elapsed().as_nanos() as f64)
}

struct Bench {
    engine: Engine,
    now: Time,
    epoch: u64,
    wire: Wire,
    chunk: Vec<u8>,
    state: Vec<u8>,
}

impl Bench {
    fn new(max_flows: usize, flows: &[Ends]) -> Self {
        // 8 KiB a flow are the least window and its blocks.
        let held_bytes = (256 << 20).max(max_flows << 13);
        let config = EngineConfig { max_flows, held_bytes, ..EngineConfig::default() };
        let mut bench = Self {
            engine: Engine::new(config),
            now: Time::ZERO,
            epoch: 0,
            wire: Wire::new(),
            chunk: Vec::with_capacity(256 << 10),
            state: Vec::with_capacity(64 << 20),
        };
        bench.engine.set_mode(bench.now, Speculation::On);
        for ends in flows {
            assert_eq!(bench.engine.handle_wire(bench.now, &mut ends.client_syn()), FromWire::Pass);
            assert_eq!(bench.guest(&ends.guest_syn_ack(), true), FromGuest::Pass);
        }
        bench.cut();
        bench.engine.commit(bench.now, EpochId::new(bench.epoch));
        for ends in flows {
            assert_eq!(bench.engine.handle_wire(bench.now, &mut ends.client_ack(1, 1)), FromWire::Pass);
        }
        bench
    }

    /// Room in the window of the only flow.
    fn window(&self) -> usize {
        self.engine.flows().next().map_or(0, |flow| flow.window_bytes as usize)
    }

    /// ACKs for what a client has got beyond `confirmed`, one for two segments.
    fn acks(&self, ends: &Ends, confirmed: u32) -> Vec<Vec<u8>> {
        let reached = self.wire.got(ends);
        let each = (confirmed..reached).step_by(2896).skip(1);
        each.chain((reached > confirmed).then_some(reached)).map(|ack| ends.client_ack(1, ack)).collect()
    }

    /// Uses the window until it is large; where the guest is then.
    fn warm_up(&mut self, ends: &Ends) -> u32 {
        let (mut next, mut confirmed) = (1, 1);
        while next < 4_000_000 {
            let len = self.window().min(60_000);
            assert!(len > 0, "the window stays closed");
            self.take(&[ends.guest_data(next, len)], false);
            next += len as u32;
            self.stream();
            self.forge();
        }
        self.cut();
        self.engine.commit(self.now, EpochId::new(self.epoch));
        while confirmed < next {
            self.emit();
            let mut acks = self.acks(ends, confirmed);
            confirmed = self.wire.got(ends);
            self.pass(Duration::from_micros(100));
            self.acknowledge(&mut acks);
        }
        self.forge();
        next
    }

    fn guest(&mut self, frame: &[u8], checksum_done: bool) -> FromGuest {
        ends::from_guest(&mut self.engine, self.now, frame, checksum_done)
    }

    fn take(&mut self, frames: &[Vec<u8>], checksum_done: bool) {
        for frame in frames {
            assert_eq!(self.guest(frame, checksum_done), FromGuest::Taken);
        }
    }

    fn stream(&mut self) {
        self.chunk.clear();
        while self.engine.stream(64 << 10, &mut self.chunk) > 0 {
            self.chunk.clear();
        }
    }

    fn forge(&mut self) -> usize {
        self.engine.poll_guest(self.now, &mut self.wire)
    }

    fn cut(&mut self) {
        self.epoch += 1;
        self.state.clear();
        self.engine.cut(EpochId::new(self.epoch), self.epoch == 1, &mut self.state);
    }

    fn emit(&mut self) -> usize {
        let mut emitted = 0;
        loop {
            match self.engine.poll_wire(self.now, 32, &mut self.wire) {
                0 => return emitted,
                count => emitted += count,
            }
        }
    }

    fn acknowledge(&mut self, frames: &mut [Vec<u8>]) {
        for frame in frames {
            assert_eq!(self.engine.handle_wire(self.now, frame), FromWire::Taken);
        }
    }

    fn pass(&mut self, by: Duration) {
        self.now = self.now + by;
        if self.engine.next_deadline().is_some_and(|deadline| deadline <= self.now) {
            self.engine.handle_timeouts(self.now);
        }
    }
}

/// One flow in bulk, its segments of `len` bytes: taken, streamed, acknowledged, sent, confirmed.
fn bulk(len: usize, checksum_done: bool) -> Vec<Line> {
    let ends = Ends::new(1, false);
    let mut bench = Bench::new(64, &[ends]);
    let how = if checksum_done { "checksum verified" } else { "checksum left to the card" };
    let mut take = Line::new("take", &format!("segment of {len} bytes taken, {how}"));
    let mut stream = Line::new("stream", &format!("segment of {len} bytes copied for the backup"));
    let mut forge = Line::new("forge", "forged ACK");
    let mut emit = Line::new("emit", "segment of 1448 bytes emitted");
    let mut confirm = Line::new("confirm", "client ACK of two segments handled");
    let mut next = bench.warm_up(&ends);
    let mut confirmed = next;
    for _ in 0..400 {
        let count = (bench.window() / len).min(200_000 / len);
        assert!(count > 0, "the window is too small");
        let frames: Vec<Vec<u8>> =
            (0..count).map(|nth| ends.guest_data(next + (nth * len) as u32, len)).collect();
        next += (count * len) as u32;
        take.measure(count, || bench.take(&frames, checksum_done));
        stream.measure(count, || bench.stream());
        let forged = forge.measure(1, || bench.forge());
        assert_eq!(forged, 1);
        bench.cut();
        bench.engine.commit(bench.now, EpochId::new(bench.epoch));
        while confirmed < next {
            let (emitted, took) = timed(|| bench.emit());
            if emitted >= 8 {
                emit.times.push(took / emitted as f64);
            }
            let mut acks = bench.acks(&ends, confirmed);
            confirmed = bench.wire.got(&ends);
            bench.pass(Duration::from_micros(100));
            let ((), took) = timed(|| bench.acknowledge(&mut acks));
            if acks.len() >= 4 {
                confirm.times.push(took / acks.len() as f64);
            }
        }
    }
    vec![take, stream, forge, emit, confirm]
}

/// Many flows at once: forged ACKs and cuts, of which the one is a burst and the other a pause.
fn many(flows: u32) -> Vec<Line> {
    let all: Vec<Ends> = (0..flows).map(|nth| Ends::new(nth, nth % 2 == 1)).collect();
    let mut bench = Bench::new(flows as usize, &all);
    let mut forge = Line::new("forge", "forged ACK in a burst for all").with(flows);
    let mut cut = Line::new("cut", "cut, all changed").with(flows).of_all();
    let mut each = Line::new("cut", "flow of a cut, all changed").with(flows);
    let mut still = Line::new("cut", "cut, one changed").with(flows).of_all();
    let mut commit = Line::new("commit", "commit, all changed").with(flows).of_all();
    let mut next = 1;
    for _ in 0..ROUNDS {
        let frames: Vec<Vec<u8>> = all.iter().map(|ends| ends.guest_data(next, SMALL)).collect();
        next += SMALL as u32;
        bench.take(&frames, false);
        bench.stream();
        let forged = forge.measure(flows as usize, || bench.forge());
        assert_eq!(forged, flows as usize);
        cut.measure(1, || bench.cut());
        each.times.push(cut.times.last().copied().unwrap_or_default() / f64::from(flows));
        commit.measure(1, || bench.engine.commit(bench.now, EpochId::new(bench.epoch)));
        bench.emit();
        bench.pass(Duration::from_micros(100));
        let mut acks: Vec<Vec<u8>> = all.iter().map(|ends| ends.client_ack(1, next)).collect();
        bench.acknowledge(&mut acks);
        bench.cut();
        bench.engine.commit(bench.now, EpochId::new(bench.epoch));
        bench.take(&[all[0].guest_data(next, SMALL)], false);
        bench.stream();
        bench.forge();
        still.measure(1, || bench.cut());
        bench.engine.commit(bench.now, EpochId::new(bench.epoch));
        bench.emit();
        next += SMALL as u32;
        // The others go on where the first is.
        let frames: Vec<Vec<u8>> =
            all[1..].iter().map(|ends| ends.guest_data(next - SMALL as u32, SMALL)).collect();
        bench.take(&frames, false);
        bench.stream();
        bench.forge();
        bench.cut();
        bench.engine.commit(bench.now, EpochId::new(bench.epoch));
        bench.emit();
        let mut acks: Vec<Vec<u8>> = all.iter().map(|ends| ends.client_ack(1, next)).collect();
        bench.acknowledge(&mut acks);
        bench.cut();
        bench.engine.commit(bench.now, EpochId::new(bench.epoch));
    }
    vec![forge, cut, each, still, commit]
}

/// Data of the client on its way to the guest: verified, rewritten in place.
fn rewrite() -> Vec<Line> {
    let ends = Ends::new(1, false);
    let mut bench = Bench::new(64, &[ends]);
    bench.take(&[ends.guest_data(1, 1000)], false);
    bench.stream();
    bench.forge();
    let mut line = Line::new("rewrite", "client segment of 1448 bytes rewritten");
    for _ in 0..ROUNDS {
        let mut frames: Vec<Vec<u8>> =
            (0..200).map(|nth| ends.client_data(1 + nth * 1448, 1448, 1)).collect();
        line.measure(200, || {
            for frame in &mut frames {
                assert_eq!(bench.engine.handle_wire(bench.now, frame), FromWire::Pass);
            }
        });
    }
    vec![line]
}

/// Pure ACKs of the guest: passed, and adapted as they leave.
fn release() -> Vec<Line> {
    let ends = Ends::new(1, false);
    let mut bench = Bench::new(64, &[ends]);
    bench.take(&[ends.guest_data(1, 1000)], false);
    let mut pass = Line::new("pass", "pure ACK of the guest looked at and passed");
    let mut line = Line::new("release", "pure ACK of the guest adapted");
    for _ in 0..ROUNDS {
        let mut frames = vec![ends.guest_segment(flag::ACK, 1001, 1); 200];
        pass.measure(200, || {
            for frame in &frames {
                assert_eq!(bench.guest(frame, true), FromGuest::Pass);
            }
        });
        line.measure(200, || frames.iter_mut().for_each(|frame| bench.engine.release(bench.now, frame)));
    }
    vec![pass, line]
}

/// A turn that finds nothing, with many flows that have nothing to do.
fn idle() -> Vec<Line> {
    let all: Vec<Ends> = (0..4096).map(|nth| Ends::new(nth, false)).collect();
    let mut bench = Bench::new(4096, &all);
    let mut line = Line::new("idle", "turn that finds nothing, 4096 flows");
    for _ in 0..ROUNDS {
        line.measure(10_000, || {
            for _ in 0..10_000 {
                bench.stream();
                bench.forge();
                bench.emit();
                bench.pass(Duration::ZERO);
            }
        });
    }
    vec![line]
}

fn main() {
    let json = json_path();
    let mut lines = Vec::new();
    let mut show = |group: Vec<Line>| {
        group.iter().for_each(Line::print);
        lines.extend(group);
    };
    show(bulk(65_160, false));
    show(bulk(1_448, false));
    show(bulk(1_448, true));
    show(rewrite());
    show(release());
    for flows in [1, 256, 4_096, 65_536] {
        show(many(flows));
    }
    show(idle());
    if let Some(path) = json {
        std::fs::write(&path, document(&lines)).expect("the file of --json can be written");
    }
}
