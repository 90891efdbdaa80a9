//! The engine: bytes are choices of what guest, client, backup and operator do next.
//!
//! What a flow's witness knows is judged ([`holdfast_conformance::witness`]): SP-1, SP-3, SP-4, OC-1 and
//! the checksums of every frame. Frames whose bytes were changed at random taint the flows that they may
//! belong to: of those, only the bounds, and that nothing panics, are judged (RB-1).

use crate::Features;
use crate::input::Input;
use holdfast_conformance::described;
use holdfast_conformance::flow::Made;
use holdfast_conformance::frame;
use holdfast_conformance::script::{
    Bound, Comparison, Family, FlowDeclaration, Mark, Mode, Segment, Side, TcpOption,
};
use holdfast_conformance::seen::Seen;
use holdfast_conformance::stage::Stage;
use holdfast_conformance::witness::before;
use holdfast_packet::headers::{Layout, Transport, flag};
use holdfast_speculation::client_leg::Congestion;
use holdfast_speculation::{EngineConfig, FlowState, Rules};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Prints each step, for replays.
pub static TRACE: AtomicBool = AtomicBool::new(false);

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
/// Steps of one run.
const MAX_STEPS: usize = 200;

/// Plays the choices.
///
/// # Errors
/// The invariant that the engine broke.
pub fn run(data: &[u8]) -> Result<Features, String> {
    let mut input = Input::new(data);
    let mut play = Play::new(&mut input);
    let mut steps = 0;
    while !input.is_empty() && steps < MAX_STEPS {
        steps += 1;
        play.step(&mut input)?;
        play.check()?;
    }
    Ok(play.features())
}

/// A stage, and who on it behaves.
pub(crate) struct Play {
    pub(crate) stage: Stage,
    pub(crate) config: EngineConfig,
    protected: bool,
    last: Option<(Side, Vec<u8>)>,
    /// The right edge of each client's window, which no honest client moves left.
    edges: [u32; NAMES.len()],
}

impl Play {
    pub(crate) fn new(input: &mut Input<'_>) -> Self {
        let family = input.of([Family::V4, Family::V6]);
        let config = EngineConfig {
            max_flows: input.of([4, 1, 2, 8]),
            held_bytes: input.of([256 << 10, 16 << 10, 64 << 10]),
            flow_bytes: input.of([64 << 10, 8 << 10, 256 << 10]),
            mtu: input.of([1500, 576, 1280, 9000]),
            congestion: input.of([Congestion::Cubic, Congestion::NewReno]),
            rules: Rules::default(),
            seed: 1,
        };
        let mut stage = Stage::new(family, config.clone());
        for (nth, name) in (0..).zip(&NAMES[1..]) {
            let flow = FlowDeclaration {
                name: (*name).to_owned(),
                again: false,
                vlans: if nth == 1 { vec![7] } else { Vec::new() },
                ports: None,
                start: None,
            };
            stage.flows.declare(&flow).unwrap_or_default();
        }
        Self { stage, config, protected: true, last: None, edges: [0; NAMES.len()] }
    }

    pub(crate) fn step(&mut self, input: &mut Input<'_>) -> Result<(), String> {
        let choice = input.byte() % 40;
        let name = input.of(NAMES);
        if TRACE.load(Ordering::Relaxed) {
            println!("{} choice {choice}, flow {name}", self.stage.now);
        }
        match choice {
            0..=3 => self.handshake(name, input)?,
            4..=11 => self.guest_data(name, input)?,
            12..=17 => self.client_ack(name, input)?,
            18..=19 => self.client_data(name, input)?,
            20..=22 => self.seal()?,
            23..=25 => self.commit()?,
            26..=28 => {
                let time = input.of([1, 20, 250, 1_000, 5_000, 60_000, 200_000]);
                self.stage
                    .advance(Duration::from_millis(time) + Duration::from_micros(input.byte().into()))?;
            }
            29 => self.ending(name, input)?,
            30 => self.mode(input)?,
            31 => self.fail_over()?,
            32 => self.room(input)?,
            33..=35 => self.changed(input)?,
            36 => self.raw(input)?,
            37 => self.too_big(name, input)?,
            38 => self.pure_ack(name, input)?,
            _ => self.again(name, input)?,
        }
        if TRACE.load(Ordering::Relaxed) {
            self.trace();
        }
        self.forget();
        Ok(())
    }

    /// Prints what arrived.
    fn trace(&mut self) {
        for side in [Side::Guest, Side::Client] {
            for arrival in std::mem::take(self.stage.inbox(side)) {
                let flow = self.stage.flows.at(arrival.flow);
                println!("  >{side}/{} {}", flow.name, described(&arrival.seen, flow, side));
            }
        }
    }

    /// RB-1: the bounds that hold whatever happened.
    pub(crate) fn check(&self) -> Result<(), String> {
        let engine = &self.stage.engine;
        if engine.held_bytes() > self.config.held_bytes {
            return Err(format!("bounds: {} bytes are held", engine.held_bytes()));
        }
        let (mut flows, mut held) = (0, 0);
        for flow in engine.flows() {
            flows += 1;
            held += flow.held_bytes as usize;
            if flow.held_bytes as usize > self.config.flow_bytes.max(16 << 10) + (1 << 14) {
                return Err(format!("bounds: a flow holds {} bytes", flow.held_bytes));
            }
        }
        if flows > self.config.max_flows {
            return Err(format!("bounds: {flows} flows"));
        }
        if held != engine.held_bytes() {
            return Err(format!("bounds: flows hold {held} bytes, the engine {}", engine.held_bytes()));
        }
        Ok(())
    }

    /// What was counted, by orders of two, and the states of flows.
    pub(crate) fn features(&self) -> Features {
        let engine = &self.stage.engine;
        let counted = (0u16..).zip(engine.counters().iter()).filter(|(_, (_, count))| *count > 0);
        let counted = counted.map(|(nth, (_, count))| nth << 3 | count.ilog2().min(7) as u16);
        counted.chain(engine.flows().map(|flow| 0x1000 | flow.state as u16)).collect()
    }

    fn forget(&mut self) {
        self.stage.at_guest.clear();
        self.stage.at_client.clear();
    }

    fn taint(&mut self, name: &str) -> Result<(), String> {
        self.stage.flows.get_mut(name)?.witness.tainted = true;
        Ok(())
    }

    fn speculates(&self, name: &str) -> Result<bool, String> {
        let flow = self.stage.flows.get(name)?;
        let mut vlans = [0; 2];
        vlans.iter_mut().zip(&flow.vlans).for_each(|(slot, vlan)| *slot = *vlan);
        Ok(self.stage.engine.flows().any(|report| {
            (report.guest.1, report.client.1) == flow.ports
                && report.vlans == vlans
                && report.state == FlowState::Speculating
        }))
    }

    /// The window that a client has with this ACK: what it would like, but its edge stays or moves right.
    fn window(&mut self, name: &str, ack: u32, wish: u64) -> Result<Option<Bound>, String> {
        let scale = self.stage.flows.get(name)?.witness.scale;
        let shift = if let (Some(_), Some(shift)) = scale { u32::from(shift.min(14)) } else { 0 };
        let edge = &mut self.edges[NAMES.iter().position(|known| *known == name).unwrap_or_default()];
        let least = edge.saturating_sub(ack).div_ceil(1 << shift);
        let value = wish.max(least.into()).min(65_535);
        *edge = (*edge).max(ack.wrapping_add((value as u32) << shift));
        Ok(Some(Bound { comparison: Comparison::Equal, value }))
    }

    fn send(&mut self, from: Side, name: &str, marks: &[Mark], segment: &Segment) -> Result<(), String> {
        let made = self.stage.flows.segment(from, name, marks, segment, self.stage.now)?;
        self.last = Some((from, made.finished.clone()));
        if TRACE.load(Ordering::Relaxed) {
            let flow = self.stage.flows.get(name)?;
            let text = Seen::read(&made.finished).map(|seen| described(&seen, flow, from.other()));
            println!("  {from}/{name}> {marks:?} {}", text.unwrap_or_else(|broken| broken.to_string()));
        }
        match from {
            Side::Guest => self.stage.guest_sends(&made),
            Side::Client => self.stage.wire_brings(&made.frame),
        }
    }

    pub(crate) fn handshake(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        if self.stage.flows.get(name)?.witness.guest_end != 0 {
            return Ok(());
        }
        let first = input.of([Side::Client, Side::Guest]);
        let kind = input.byte();
        let options = |echo: Option<u32>, scale: u8| {
            let mut options = vec![TcpOption::Mss([1460, 1012, 536, 64, 9000, 0, 1][usize::from(kind) % 7])];
            if kind & 1 == 0 {
                options.push(TcpOption::SackPermitted);
            }
            if kind & 2 == 0 {
                options.push(TcpOption::Timestamps(None, echo));
            }
            if kind & 4 == 0 {
                options.push(TcpOption::Scale(scale));
            }
            if kind >= 250 {
                options.push(TcpOption::Other(kind - 220, 2));
            }
            options
        };
        let value = input.of([64_000, 3_000, 1_000]);
        self.edges[NAMES.iter().position(|known| *known == name).unwrap_or_default()] = value as u32 + 1;
        let window = Some(Bound { comparison: Comparison::Equal, value });
        let ecn = if kind & 8 == 8 { flag::ECE | flag::CWR } else { 0 };
        let syn = Segment {
            flags: flag::SYN | ecn,
            sequence: Some(0),
            options: Some(options(Some(0), input.of([7, 0, 14, 15]))),
            window,
            ..Segment::default()
        };
        self.send(first, name, &[], &syn)?;
        self.epoch()?;
        let answer = Segment {
            flags: flag::SYN | flag::ACK | (ecn & flag::ECE),
            ack: Some(1),
            options: Some(options(None, input.of([7, 0, 14]))),
            ..syn
        };
        self.send(first.other(), name, &[], &answer)?;
        self.epoch()?;
        let window = if first == Side::Client { self.window(name, 1, 0)? } else { None };
        let ack = Segment { flags: flag::ACK, sequence: Some(1), ack: Some(1), window, ..Segment::default() };
        self.send(first, name, &[], &ack)?;
        self.epoch()
    }

    fn epoch(&mut self) -> Result<(), String> {
        self.seal()?;
        self.commit()
    }

    pub(crate) fn guest_data(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        let witness = &self.stage.flows.get(name)?.witness;
        if witness.guest_end == 0 || witness.guest_closed {
            return Ok(());
        }
        let (end, acked) = (witness.guest_end, witness.acked.unwrap_or(1).max(1));
        let len = input.of([1000, 1, 1448, 5000, 60_000, 100, 0, 20_000]);
        let begin = match input.byte() % 8 {
            0..=3 => end,
            4 | 5 => acked,
            6 => end.wrapping_sub(u32::from(input.byte()) * 8).max(1),
            _ => end.wrapping_add(u32::from(input.byte())),
        };
        // A guest may overlook its window, but not by more than it ever was.
        if witness.edge.is_some_and(|edge| before(edge.wrapping_add(60_000), begin.wrapping_add(len))) {
            return Ok(());
        }
        let kind = input.byte();
        let mut flags = flag::ACK;
        if kind & 1 == 1 {
            flags |= flag::PSH;
        }
        let mut marks = Vec::new();
        match kind >> 1 & 31 {
            0 => marks.push(Mark::BadChecksum),
            1 => {
                // What the engine cannot read, it cannot reckon with; the client can.
                marks.push(Mark::Fragment);
                self.taint(name)?;
            }
            2 => flags |= flag::URG,
            3 => flags |= flag::ECE,
            4 => marks.push(Mark::Extensions(input.byte() % 5)),
            5 => {
                marks.push(Mark::Other);
                self.taint(name)?;
            }
            6 => marks.push(Mark::Offload),
            7 => marks.push(Mark::Ect0),
            _ => {}
        }
        let segment =
            Segment { flags, sequence: Some(begin), len, urgent: Some(kind.into()), ..Segment::default() };
        self.send(Side::Guest, name, &marks, &segment)
    }

    pub(crate) fn client_ack(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        let witness = &self.stage.flows.get(name)?.witness;
        let (got, next) = (witness.client_got, witness.client_end);
        if next == 0 || got == 0 {
            return Ok(());
        }
        let back = u32::from(input.byte());
        // Of a plain flow an odd ACK is passed as it is, and is the guest's to judge.
        let odd = input.byte() % if self.speculates(name)? { 8 } else { 5 };
        let (ack, mut flags) = match odd {
            0..=4 => (got, flag::ACK),
            5 => (got.saturating_sub(back * 8), flag::ACK),
            6 => (got.wrapping_add(back), flag::ACK),
            _ => (got, flag::ACK | flag::ECE),
        };
        let wish = input.of([512, 0, 1, 16, 65_535]);
        let window = self.window(name, ack, wish)?;
        let mut options = None;
        if input.byte() % 4 == 0 {
            let left = got.wrapping_add(input.word().into());
            let block = (left, left.wrapping_add(input.word().into()));
            let stamps = TcpOption::Timestamps(None, None);
            options = Some(vec![stamps, TcpOption::Sack(vec![block, (got.wrapping_sub(100), got)])]);
        }
        let len = match input.byte() {
            0 => {
                flags |= flag::PSH;
                100
            }
            _ => 0,
        };
        let segment = Segment {
            flags,
            sequence: Some(next),
            len,
            ack: Some(ack),
            window,
            options,
            ..Segment::default()
        };
        self.send(Side::Client, name, &[], &segment)
    }

    fn client_data(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        let witness = &self.stage.flows.get(name)?.witness;
        if witness.guest_end == 0 || witness.client_end == 0 || witness.client_closed {
            return Ok(());
        }
        let end = witness.client_end;
        let begin = match input.byte() % 4 {
            0 | 1 => end,
            2 => end.wrapping_sub(input.byte().into()).max(1),
            _ => end.wrapping_add(input.byte().into()),
        };
        let len = input.of([100, 1, 1000, 1400]);
        if before(witness.guest_right, begin.wrapping_add(len)) {
            return Ok(());
        }
        let ack = witness.client_got.max(1);
        let window = self.window(name, ack, 0)?;
        let segment = Segment {
            flags: flag::ACK,
            sequence: Some(begin),
            len,
            ack: Some(ack),
            window,
            ..Segment::default()
        };
        let marks: &[Mark] = if input.byte() % 16 == 0 { &[Mark::Padded(6)] } else { &[] };
        self.send(Side::Client, name, marks, &segment)
    }

    fn pure_ack(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        let end = self.stage.flows.get(name)?.witness.guest_end;
        if end == 0 {
            return Ok(());
        }
        let flags = input.of([flag::ACK, flag::ACK | flag::ECE]);
        let sequence = Some(end.wrapping_sub((input.byte() % 2).into()));
        let value = input.of([502, 0, 1, 65_535]);
        let window = Some(Bound { comparison: Comparison::Equal, value });
        self.send(Side::Guest, name, &[], &Segment { flags, sequence, window, ..Segment::default() })
    }

    /// FIN and RST of both sides.
    fn ending(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        let from = input.of([Side::Guest, Side::Client]);
        let reset = input.byte() % 3 == 0;
        let witness = &mut self.stage.flows.get_mut(name)?.witness;
        if witness.guest_end == 0 || witness.client_end == 0 {
            return Ok(());
        }
        let closed = if from == Side::Guest { &mut witness.guest_closed } else { &mut witness.client_closed };
        if reset {
            witness.tainted = true;
        } else if std::mem::replace(closed, true) {
            return Ok(());
        }
        let end = if from == Side::Guest { witness.guest_end } else { witness.client_end };
        let flags = if reset { input.of([flag::RST, flag::RST | flag::ACK]) } else { flag::FIN | flag::ACK };
        let sequence = Some(end.wrapping_add(if reset { input.byte().into() } else { 0 }));
        let len = if reset { 0 } else { input.of([0, 100, 1000]) };
        let witness = &self.stage.flows.get(name)?.witness;
        let (got, ack) = (witness.client_got.max(1), witness.guest_got);
        let (ack, window) = match from {
            Side::Guest => (ack, None),
            Side::Client => (got, self.window(name, got, 0)?),
        };
        let segment = Segment { flags, sequence, len, ack: Some(ack), window, ..Segment::default() };
        self.send(from, name, &[], &segment)
    }

    pub(crate) fn seal(&mut self) -> Result<(), String> {
        if self.protected { self.stage.seal(None) } else { Ok(()) }
    }

    pub(crate) fn commit(&mut self) -> Result<(), String> {
        if !self.stage.is_sealed() {
            return Ok(());
        }
        self.stage.commit(None)?.map_err(|refusal| format!("SP-2: the backup refuses the epoch: {refusal}"))
    }

    fn mode(&mut self, input: &mut Input<'_>) -> Result<(), String> {
        let mode = input.of([Mode::On, Mode::Hold, Mode::Off]);
        self.protected = mode != Mode::Off;
        self.stage.set_mode(mode)
    }

    /// Flows of which nothing was committed are strangers to the backup.
    fn fail_over(&mut self) -> Result<(), String> {
        if !self.stage.backed {
            return Ok(());
        }
        for flow in self.stage.flows.iter_mut() {
            flow.witness.tainted |= !flow.witness.is_committed();
            // A FIN that went with the lost epoch may be sent again, with other bytes before it.
            flow.witness.tainted |= flow.witness.guest_closed;
        }
        self.protected = false;
        self.stage.fail_over()
    }

    fn room(&mut self, input: &mut Input<'_>) -> Result<(), String> {
        let bits = input.byte();
        self.stage.streaming = bits & 1 == 0;
        self.stage.guest_takes = bits & 2 == 0;
        self.stage.wire_takes = bits & 4 == 0;
        if bits & 8 == 8 {
            self.stage.stream(usize::from(input.word()));
        }
        self.stage.poll()
    }

    /// The last frame again, with a few bytes changed; its checksum is wrong then, or made right.
    fn changed(&mut self, input: &mut Input<'_>) -> Result<(), String> {
        let Some((from, mut frame)) = self.last.clone() else { return Ok(()) };
        for _ in 0..=input.byte() % 4 {
            let at = usize::from(input.byte()) % frame.len().min(120);
            frame[at] = input.byte();
        }
        if input.flip() {
            frame.truncate(frame.len() - usize::from(input.byte()) % frame.len());
        }
        if input.flip() {
            mend(&mut frame);
        }
        self.strange(from, frame, input.flip())
    }

    /// Bytes as they are.
    fn raw(&mut self, input: &mut Input<'_>) -> Result<(), String> {
        let from = input.of([Side::Guest, Side::Client]);
        let len = usize::from(input.byte());
        let frame = input.bytes(len).to_vec();
        if frame.is_empty() {
            return Ok(());
        }
        self.strange(from, frame, true)
    }

    fn strange(&mut self, from: Side, frame: Vec<u8>, checksum_done: bool) -> Result<(), String> {
        for flow in self.stage.flows.iter_mut() {
            flow.witness.tainted = true;
        }
        let made = Made { finished: frame.clone(), frame, checksum_done };
        match from {
            Side::Guest => self.stage.guest_sends(&made),
            Side::Client => self.stage.wire_brings(&made.frame),
        }
    }

    fn too_big(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        let mtu = input.of([1400, 700, 576, 1280, 68, 0, 65_535]);
        let quoted = self.stage.flows.get(name)?.witness.client_got.wrapping_add(input.byte().into());
        let frame = self.stage.flows.too_big(Side::Client, name, mtu, Some(quoted))?;
        self.last = Some((Side::Client, frame.clone()));
        self.stage.wire_brings(&frame)
    }

    /// A new connection between the same ends.
    fn again(&mut self, name: &str, input: &mut Input<'_>) -> Result<(), String> {
        let start = Some((input.long(), input.long()));
        let flow =
            FlowDeclaration { name: name.to_owned(), again: true, vlans: Vec::new(), ports: None, start };
        self.stage.flows.declare(&flow)?;
        // What is under way of the old connection would be taken for the new one's.
        self.stage.flows.get_mut(name)?.witness.tainted = true;
        self.handshake(name, input)
    }
}

/// Makes the checksums of a TCP frame right, if it is one.
fn mend(frame: &mut [u8]) {
    let Some(layout) = Layout::parse(frame) else { return };
    let Transport::Tcp(tcp) = layout.transport else { return };
    frame::finish(frame, layout.link.len(), tcp.offset);
}
