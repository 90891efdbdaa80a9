//! Plays a script, line by line.

use crate::compare::{described, differences};
use crate::flow::Made;
use crate::script::{
    Body, Bound, Comparison, Family, Line, Mark, Opening, Packet, Script, Segment, Setting, Side, Statement,
    TcpOption,
};
use crate::seen::SeenPacket;
use crate::stage::{Arrival, Stage};
use holdfast_packet::headers::flag;
use holdfast_speculation::client_leg::Congestion;
use holdfast_speculation::{EngineConfig, FlowReport, Prefix, Rule, Rules};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

/// The engine did something else than the script says.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Over which family.
    pub family: Family,
    /// Line of the script, from 1; zero behind the last.
    pub number: usize,
    /// The line.
    pub text: String,
    /// What was expected and what came.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, line {}: {}\n  {}", self.family, self.number, self.text, self.what)
    }
}

impl std::error::Error for Failure {}

/// Plays a script over one family.
///
/// # Errors
/// The first line that the engine does not fulfil.
pub fn play(script: &Script, family: Family) -> Result<(), Box<Failure>> {
    let (config, first) = configuration(script);
    let mut stage = Stage::new(family, config);
    let fail = |number: usize, text: &str, what: String| {
        Box::new(Failure { family, number, text: text.to_owned(), what })
    };
    for line in &script.lines[first..] {
        perform(&mut stage, line).map_err(|what| fail(line.number, &line.text, what))?;
    }
    nothing(&mut stage, None).map_err(|what| fail(0, "the end of the script", what))
}

/// The engine's configuration, and the line behind those that say it.
fn configuration(script: &Script) -> (EngineConfig, usize) {
    let mut config =
        EngineConfig { max_flows: 64, held_bytes: 4 << 20, flow_bytes: 1 << 20, ..EngineConfig::default() };
    let mut first = 0;
    for line in &script.lines {
        match &line.statement {
            Statement::Config(settings) => {
                for (setting, value) in settings {
                    match setting {
                        Setting::Flows => config.max_flows = *value as usize,
                        Setting::Held => config.held_bytes = *value as usize,
                        Setting::Flow => config.flow_bytes = *value as usize,
                        Setting::Mtu => config.mtu = *value as u16,
                        Setting::NewReno if *value > 0 => config.congestion = Congestion::NewReno,
                        Setting::NewReno => config.congestion = Congestion::Cubic,
                    }
                }
            }
            _ => break,
        }
        first += 1;
    }
    (config, first)
}

/// A rule that forbids speculation to every flow.
const fn excluded() -> Rule {
    Rule { guest_ports: None, client_ports: None, client: None, speculate: false }
}

/// The range of addresses that all clients are in.
const fn clients(family: Family) -> Prefix {
    match family {
        Family::V4 => Prefix { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), bits: 24 },
        Family::V6 => Prefix { address: IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)), bits: 64 },
    }
}

fn perform(stage: &mut Stage, line: &Line) -> Result<(), String> {
    let looks = matches!(
        line.statement,
        Statement::Expect { .. }
            | Statement::ExpectStream { .. }
            | Statement::ExpectAcks { .. }
            | Statement::Nothing(_)
            | Statement::Check { .. }
            | Statement::State { .. }
    );
    if !looks || line.delay > Duration::ZERO {
        nothing(stage, None)?;
    }
    stage.advance(line.delay)?;
    if !looks {
        nothing(stage, None)?;
    }
    match &line.statement {
        Statement::Config(_) => Err("the configuration must come first".to_owned()),
        Statement::ExcludePort(port) => {
            stage.set_rules(Rules::new([Rule { guest_ports: Some(*port..=*port), ..excluded() }]))
        }
        Statement::ExcludeClients => {
            stage.set_rules(Rules::new([Rule { client: Some(clients(stage.family)), ..excluded() }]))
        }
        Statement::IncludeAll => stage.set_rules(Rules::default()),
        Statement::Flow(flow) => stage.flows.declare(flow),
        Statement::Open(opening) => open(stage, opening),
        Statement::Send { from, flow, packet } => send(stage, *from, flow, packet),
        Statement::Expect { to, flow, packet, within } => expect(stage, *to, flow, packet, *within),
        Statement::ExpectStream { flow, range, acked, mss, within } => {
            expect_stream(stage, flow, *range, *acked, *mss, *within)
        }
        Statement::ExpectAcks { flow, ack, window } => expect_acks(stage, flow, *ack, *window),
        Statement::Nothing(side) => nothing(stage, *side),
        Statement::Seal(name) => stage.seal(name.clone()),
        Statement::Commit { name, refused } => match (stage.commit(name.as_deref())?, refused) {
            (Ok(()), false) | (Err(_), true) => Ok(()),
            (Ok(()), true) => Err("SP-2: the backup took an epoch that it must refuse".to_owned()),
            (Err(refusal), false) => Err(format!("the backup refuses the epoch: {refusal}")),
        },
        Statement::Stream(max) => {
            stage.stream(*max);
            stage.poll()
        }
        Statement::LoseStream => {
            stage.lose_stream();
            Ok(())
        }
        Statement::Streaming(on) => {
            stage.streaming = *on;
            stage.poll()
        }
        Statement::GuestTakes(on) => {
            stage.guest_takes = *on;
            stage.poll()
        }
        Statement::WireTakes(on) => {
            stage.wire_takes = *on;
            stage.poll()
        }
        Statement::Mode(mode) => stage.set_mode(*mode),
        Statement::Failover => stage.fail_over(),
        Statement::Discard => stage.discard(),
        Statement::State { flow, name } => state(stage, flow, name),
        Statement::Check { name, bound } => check(stage, name, *bound),
    }
}

/// Fails when something was emitted that no line has named.
fn nothing(stage: &mut Stage, side: Option<Side>) -> Result<(), String> {
    for to in [Side::Guest, Side::Client] {
        if side.is_some_and(|side| side != to) {
            continue;
        }
        if let Some(arrival) = stage.inbox(to).pop_front() {
            let flow = stage.flows.at(arrival.flow);
            let (name, text) = (flow.name.clone(), described(&arrival.seen, flow, to));
            return Err(format!(
                "expected nothing more before this line\n  got >{to}/{name} {text} at {}",
                stage.now
            ));
        }
    }
    Ok(())
}

fn send(stage: &mut Stage, from: Side, flow: &str, packet: &Packet) -> Result<(), String> {
    let made = match &packet.body {
        Body::Segment(segment) => stage.flows.segment(from, flow, &packet.marks, segment, stage.now)?,
        Body::Udp(len) => finished(stage.flows.udp(from, flow, &packet.marks, *len)?),
        Body::Opaque(len) => finished(stage.flows.opaque(from, flow, *len)?),
        Body::TooBig { mtu, sequence } => finished(stage.flows.too_big(from, flow, *mtu, *sequence)?),
    };
    if packet.marks.contains(&Mark::Elsewhere) {
        return stage.bypass(from, &made.finished);
    }
    match from {
        Side::Guest => stage.guest_sends(&made),
        Side::Client => stage.wire_brings(&made.frame),
    }
}

fn finished(frame: Vec<u8>) -> Made {
    Made { finished: frame.clone(), frame, checksum_done: true }
}

/// The next frame of a flow towards a side, waiting up to `within` for it.
fn next(stage: &mut Stage, to: Side, flow: &str, within: Duration) -> Result<Option<Arrival>, String> {
    let wanted = stage.flows.get(flow)?.name.clone();
    let until = stage.now + within;
    loop {
        let place = (0..stage.inbox(to).len()).find(|place| {
            let index = stage.inbox(to)[*place].flow;
            stage.flows.at(index).name == wanted
        });
        if let Some(place) = place {
            return Ok(stage.inbox(to).remove(place));
        }
        if stage.now >= until {
            return Ok(None);
        }
        stage.step(until)?;
    }
}

fn expect(stage: &mut Stage, to: Side, flow: &str, packet: &Packet, within: Duration) -> Result<(), String> {
    let Some(arrival) = next(stage, to, flow, within)? else {
        return Err(format!("got nothing by {}", stage.now));
    };
    let flow = stage.flows.at(arrival.flow);
    let found = differences(packet, &arrival.seen, flow, to);
    if found.is_empty() {
        return Ok(());
    }
    let text = described(&arrival.seen, flow, to);
    Err(format!("got >{to} {text} at {}\n  {}", stage.now, found.join("\n  ")))
}

fn expect_acks(stage: &mut Stage, flow: &str, ack: u32, window: Option<Bound>) -> Result<(), String> {
    let mut last = None;
    while let Some(arrival) = next(stage, Side::Guest, flow, Duration::ZERO)? {
        let known = stage.flows.at(arrival.flow);
        let text = described(&arrival.seen, known, Side::Guest);
        let SeenPacket::Tcp(tcp) = &arrival.seen.packet else { return Err(format!("got {text}")) };
        if tcp.flags != flag::ACK || !tcp.payload.is_empty() {
            return Err(format!("expected pure ACKs alone\n  got >guest {text}"));
        }
        last = Some((tcp.ack.wrapping_sub(known.witness.start.0), u64::from(tcp.window), text));
    }
    let (acked, shown, text) = last.ok_or("got nothing")?;
    if acked == ack && window.is_none_or(|window| window.admits(shown)) {
        return Ok(());
    }
    Err(format!("the last one is >guest {text}"))
}

fn expect_stream(
    stage: &mut Stage,
    flow: &str,
    (begin, end): (u32, u32),
    acked: bool,
    mss: Option<u32>,
    within: Duration,
) -> Result<(), String> {
    let until = stage.now + within;
    let mut at = begin;
    while at != end {
        let left = until.since(stage.now);
        let Some(arrival) = next(stage, Side::Client, flow, left)? else {
            return Err(format!("bytes up to {at} came, then nothing by {}", stage.now));
        };
        let known = stage.flows.at(arrival.flow);
        let text = described(&arrival.seen, known, Side::Client);
        let wrong = |what: &str| Err(format!("{what}\n  got >client {text}"));
        let SeenPacket::Tcp(tcp) = &arrival.seen.packet else { return wrong("no segment") };
        let len = tcp.payload.len() as u32;
        if tcp.sequence.wrapping_sub(known.witness.start.0) != at || len == 0 {
            return wrong(&format!("expected bytes from {at} on"));
        }
        if mss.is_some_and(|mss| len > mss) {
            return wrong("longer than it may be");
        }
        at = at.wrapping_add(len);
        if acked {
            let ack = Segment {
                flags: flag::ACK,
                ack: Some(at),
                sequence: Some(known.witness.client_end),
                ..Segment::default()
            };
            send(stage, Side::Client, flow, &Packet { marks: Vec::new(), body: Body::Segment(ack) })?;
        }
    }
    Ok(())
}

/// A handshake, each of its segments passed on and its epochs committed.
fn open(stage: &mut Stage, opening: &Opening) -> Result<(), String> {
    let flow = stage.flows.get_mut(&opening.flow)?;
    flow.window = opening.window;
    let (first, second) = (opening.by, opening.by.other());
    let ecn = if opening.ecn { flag::ECE | flag::CWR } else { 0 };
    let confirmed = if opening.ecn { flag::ECE } else { 0 };
    exchange(stage, opening, first, flag::SYN | ecn, 0)?;
    exchange(stage, opening, second, flag::SYN | flag::ACK | confirmed, 0)?;
    exchange(stage, opening, first, flag::ACK, 1)
}

fn exchange(
    stage: &mut Stage,
    opening: &Opening,
    from: Side,
    flags: u8,
    sequence: u32,
) -> Result<(), String> {
    let mut segment = Segment { flags, sequence: Some(sequence), ..Segment::default() };
    let flow = stage.flows.get(&opening.flow)?;
    if flags & flag::SYN != 0 {
        let (mss, scale) = match from {
            Side::Guest => (opening.mss.0, opening.scale.0),
            Side::Client => (opening.mss.1, opening.scale.1),
        };
        // 1000 bytes of payload a segment.
        let usual = if opening.timestamps { 1012 } else { 1000 };
        let mut options = vec![TcpOption::Mss(mss.unwrap_or(usual))];
        if opening.sack {
            options.push(TcpOption::SackPermitted);
        }
        if opening.timestamps {
            let echo = if flags & flag::ACK != 0 { None } else { Some(0) };
            options.push(TcpOption::Timestamps(None, echo));
        }
        options.extend(scale.map(TcpOption::Scale));
        segment.options = Some(options);
        segment.window = Some(Bound { comparison: Comparison::Equal, value: 64_000 });
    }
    let expected = Segment { options: None, window: None, ..segment.clone() };
    let name = flow.name.clone();
    send(stage, from, &name, &Packet { marks: Vec::new(), body: Body::Segment(segment) })?;
    if from == Side::Guest && !stage.unprotected {
        stage.seal(None)?;
        stage.commit(None)??;
    }
    let packet = Packet { marks: Vec::new(), body: Body::Segment(expected) };
    expect(stage, from.other(), &name, &packet, Duration::ZERO)
        .map_err(|what| format!("the handshake's {} did not pass: {what}", crate::parse::flags_text(flags)))
}

fn report(stage: &Stage, name: &str) -> Result<Option<FlowReport>, String> {
    let flow = stage.flows.get(name)?;
    let mut vlans = [0; 2];
    vlans.iter_mut().zip(&flow.vlans).for_each(|(slot, vlan)| *slot = *vlan);
    Ok(stage
        .engine
        .flows()
        .find(|report| (report.guest.1, report.client.1) == flow.ports && report.vlans == vlans))
}

fn state(stage: &Stage, flow: &str, expected: &str) -> Result<(), String> {
    let state = report(stage, flow)?.map_or("unknown".to_owned(), |report| report.state.to_string());
    if state == expected { Ok(()) } else { Err(format!("the flow is {state}")) }
}

fn check(stage: &Stage, name: &str, bound: Bound) -> Result<(), String> {
    let value = if let Some(counter) = name.strip_prefix("counter.") {
        let found = stage.engine.counters().iter().find(|(known, _)| *known == counter);
        found.ok_or_else(|| format!("there is no counter {counter}"))?.1
    } else {
        match name {
            "flows" => stage.engine.flows().count() as u64,
            "held" => stage.engine.held_bytes() as u64,
            "ledger.flows" => stage.ledger.flows() as u64,
            "ledger.held" => stage.ledger.held_bytes() as u64,
            _ => of_flow(stage, name)?,
        }
    };
    if bound.admits(value) { Ok(()) } else { Err(format!("it is {value}")) }
}

fn of_flow(stage: &Stage, name: &str) -> Result<u64, String> {
    const KNOWN: &str = "flows, held, ledger.flows, ledger.held, counter.NAME, or of a flow NAME.ahead, \
         NAME.held, NAME.window, NAME.cwnd, NAME.retransmissions, NAME.srtt_us";
    let (flow, field) =
        name.split_once('.').ok_or_else(|| format!("there is no {name}; there are {KNOWN}"))?;
    let report = report(stage, flow)?.ok_or("the engine does not know the flow")?;
    Ok(match field {
        "ahead" => report.ahead_bytes.into(),
        "held" => report.held_bytes.into(),
        "window" => report.window_bytes.into(),
        "cwnd" => report.cwnd_bytes.into(),
        "retransmissions" => report.retransmissions,
        "srtt_us" => report.srtt.map_or(0, |srtt| srtt.as_micros() as u64),
        _ => return Err(format!("there is no {name}; there are {KNOWN}")),
    })
}
