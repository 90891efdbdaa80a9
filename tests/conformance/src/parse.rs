//! From text to a [`Script`].

use crate::cursor::{Cursor, SyntaxError};
use crate::script::{
    Body, Bound, Comparison, Family, FlowDeclaration, Line, Mark, Mode, Opening, Packet, Script, Segment,
    Setting, Side, Statement, TcpOption,
};
use holdfast_packet::headers::flag;
use std::time::Duration;

/// Name of the flow that needs none.
pub const DEFAULT_FLOW: &str = "a";

const STATEMENT: &str = "a statement: config, exclude, include, flow, again, open, guest>, client>, >guest, >client, \
     nothing, seal, commit, stream, lose, full, free, mode, failover, discard, state or check";
const FLAGS: [(char, u8); 8] = [
    ('S', flag::SYN),
    ('F', flag::FIN),
    ('R', flag::RST),
    ('P', flag::PSH),
    ('U', flag::URG),
    ('E', flag::ECE),
    ('W', flag::CWR),
    ('.', flag::ACK),
];

/// The control bits as a script writes them.
#[must_use]
pub(crate) fn flags_text(flags: u8) -> String {
    let text: String = FLAGS.iter().filter(|(_, bit)| flags & bit != 0).map(|(letter, _)| letter).collect();
    if text.is_empty() { "0".to_owned() } else { text }
}

impl Script {
    /// Parses a script.
    ///
    /// # Errors
    /// The first line that cannot be understood, with the column and what was expected there; whose
    /// fault: the script's author.
    pub fn parse(text: &str) -> Result<Self, SyntaxError> {
        let mut script = Self {
            rows: Vec::new(),
            clauses: Vec::new(),
            families: vec![Family::V4, Family::V6],
            lines: Vec::new(),
        };
        for (index, text) in text.lines().enumerate() {
            if let Some(comment) = text.strip_prefix('#') {
                script.comment(comment.trim());
                continue;
            }
            let body = text.split(" #").next().unwrap_or_default();
            let mut cursor = Cursor::new(index + 1, body);
            if cursor.at_end() {
                continue;
            }
            if cursor.eat_word("family") {
                script.families = vec![family(&mut cursor)?];
                cursor.expect_end()?;
                continue;
            }
            let delay = if cursor.eat("+") { cursor.duration()? } else { Duration::ZERO };
            let statement = statement(&mut cursor)?;
            cursor.expect_end()?;
            script.lines.push(Line { number: index + 1, text: text.trim().to_owned(), delay, statement });
        }
        let head = |expected: &str| SyntaxError {
            line: 1,
            column: 1,
            expected: expected.to_owned(),
            found: "none in the script's comments".to_owned(),
        };
        if script.rows.is_empty() {
            return Err(head("a comment '# row: ID' with the row of the rules"));
        }
        if script.clauses.is_empty() {
            return Err(head("a comment that names the clause of an RFC, or an invariant"));
        }
        Ok(script)
    }

    fn comment(&mut self, comment: &str) {
        if let Some(rows) = comment.strip_prefix("row:") {
            self.rows.extend(rows.split(',').map(|row| row.trim().to_owned()));
        } else if ["RFC ", "SP-", "OC-", "CK-", "RB-"].iter().any(|id| comment.contains(id)) {
            self.clauses.push(comment.to_owned());
        }
    }
}

fn family(cursor: &mut Cursor<'_>) -> Result<Family, SyntaxError> {
    if cursor.eat_word("v4") {
        Ok(Family::V4)
    } else if cursor.eat_word("v6") {
        Ok(Family::V6)
    } else {
        Err(cursor.wrong("v4 or v6"))
    }
}

fn statement(cursor: &mut Cursor<'_>) -> Result<Statement, SyntaxError> {
    for side in [Side::Guest, Side::Client] {
        let mut ahead = *cursor;
        if ahead.eat(&side.to_string()) {
            let flow = flow_suffix(&mut ahead)?;
            if ahead.eat(">") {
                *cursor = ahead;
                return Ok(Statement::Send { from: side, flow, packet: packet(cursor)? });
            }
        }
        if cursor.eat(&format!(">{side}")) {
            return expectation(cursor, side);
        }
    }
    if cursor.eat_word("config") {
        return config(cursor);
    }
    if cursor.eat_word("exclude") {
        if cursor.eat_word("clients") {
            return Ok(Statement::ExcludeClients);
        }
        cursor.expect("port")?;
        return Ok(Statement::ExcludePort(cursor.small("a port")?));
    }
    if cursor.eat_word("include") {
        cursor.expect("all")?;
        return Ok(Statement::IncludeAll);
    }
    if cursor.eat_word("flow") {
        return flow(cursor, false);
    }
    if cursor.eat_word("again") {
        return flow(cursor, true);
    }
    if cursor.eat("open") {
        return open(cursor);
    }
    if cursor.eat_word("nothing") {
        let side = match () {
            () if cursor.eat(">guest") => Some(Side::Guest),
            () if cursor.eat(">client") => Some(Side::Client),
            () => None,
        };
        return Ok(Statement::Nothing(side));
    }
    command(cursor)
}

fn command(cursor: &mut Cursor<'_>) -> Result<Statement, SyntaxError> {
    if cursor.eat_word("seal") {
        return Ok(Statement::Seal(optional_name(cursor)?));
    }
    if cursor.eat_word("commit") {
        let refused = cursor.eat_word("refused");
        return Ok(Statement::Commit { name: optional_name(cursor)?, refused });
    }
    if cursor.eat_word("stream") {
        if cursor.eat_word("all") || cursor.at_end() {
            return Ok(Statement::Stream(usize::MAX));
        }
        return Ok(Statement::Stream(cursor.small("how many bytes, or 'all'")?));
    }
    if cursor.eat_word("lose") {
        cursor.expect("stream")?;
        return Ok(Statement::LoseStream);
    }
    for (word, takes) in [("full", false), ("free", true)] {
        if cursor.eat_word(word) {
            return match () {
                () if cursor.eat_word("stream") => Ok(Statement::Streaming(takes)),
                () if cursor.eat_word("guest") => Ok(Statement::GuestTakes(takes)),
                () if cursor.eat_word("wire") => Ok(Statement::WireTakes(takes)),
                () => Err(cursor.wrong("stream, guest or wire")),
            };
        }
    }
    if cursor.eat_word("mode") {
        for (word, mode) in [("off", Mode::Off), ("hold", Mode::Hold), ("on", Mode::On)] {
            if cursor.eat_word(word) {
                return Ok(Statement::Mode(mode));
            }
        }
        return Err(cursor.wrong("off, hold or on"));
    }
    if cursor.eat_word("failover") {
        return Ok(Statement::Failover);
    }
    if cursor.eat_word("discard") {
        return Ok(Statement::Discard);
    }
    if cursor.eat("state") {
        let flow = flow_suffix(cursor)?;
        return Ok(Statement::State { flow, name: cursor.word("the state of a flow")?.to_owned() });
    }
    if cursor.eat_word("check") {
        let name = cursor.token("the name of a number that the engine reports")?.to_owned();
        return Ok(Statement::Check { name, bound: bound(cursor)? });
    }
    Err(cursor.wrong(STATEMENT))
}

fn optional_name(cursor: &mut Cursor<'_>) -> Result<Option<String>, SyntaxError> {
    if cursor.at_end() { Ok(None) } else { Ok(Some(cursor.word("a name")?.to_owned())) }
}

fn flow_suffix(cursor: &mut Cursor<'_>) -> Result<String, SyntaxError> {
    if cursor.eat("/") { Ok(cursor.word("a flow")?.to_owned()) } else { Ok(DEFAULT_FLOW.to_owned()) }
}

fn expectation(cursor: &mut Cursor<'_>, to: Side) -> Result<Statement, SyntaxError> {
    let flow = flow_suffix(cursor)?;
    if to == Side::Client && cursor.eat_word("stream") {
        let begin = cursor.small("the first byte")?;
        cursor.expect(":")?;
        let end = cursor.small("the byte behind the last")?;
        let mut expected = Statement::ExpectStream {
            flow,
            range: (begin, end),
            acked: false,
            mss: None,
            within: Duration::ZERO,
        };
        let Statement::ExpectStream { acked, mss, within, .. } = &mut expected else { unreachable!() };
        *acked = cursor.eat_word("acked");
        if cursor.eat_word("mss") {
            *mss = Some(cursor.small("bytes")?);
        }
        *within = self::within(cursor)?;
        return Ok(expected);
    }
    if to == Side::Guest && cursor.eat_word("acks") {
        let ack = cursor.small("an acknowledgement number")?;
        let window = if cursor.eat_word("win") { Some(bound(cursor)?) } else { None };
        return Ok(Statement::ExpectAcks { flow, ack, window });
    }
    let packet = packet(cursor)?;
    Ok(Statement::Expect { to, flow, packet, within: within(cursor)? })
}

fn within(cursor: &mut Cursor<'_>) -> Result<Duration, SyntaxError> {
    if cursor.eat_word("within") { cursor.duration() } else { Ok(Duration::ZERO) }
}

fn config(cursor: &mut Cursor<'_>) -> Result<Statement, SyntaxError> {
    let known = [
        ("flows", Setting::Flows),
        ("held", Setting::Held),
        ("flow", Setting::Flow),
        ("mtu", Setting::Mtu),
        ("newreno", Setting::NewReno),
    ];
    let mut settings = Vec::new();
    while !cursor.at_end() {
        let Some((_, setting)) = known.iter().find(|(name, _)| cursor.eat(&format!("{name}="))) else {
            return Err(cursor.wrong("flows=, held=, flow=, mtu= or newreno="));
        };
        settings.push((*setting, cursor.number("a number")?));
    }
    Ok(Statement::Config(settings))
}

fn flow(cursor: &mut Cursor<'_>, again: bool) -> Result<Statement, SyntaxError> {
    let name = cursor.word("a name for the flow")?.to_owned();
    let mut flow = FlowDeclaration { name, again, vlans: Vec::new(), ports: None, start: None };
    while !cursor.at_end() {
        if cursor.eat_word("vlan") {
            flow.vlans.push(cursor.small("a VLAN")?);
        } else if cursor.eat_word("ports") {
            flow.ports = Some((cursor.small("the guest's port")?, cursor.small("the client's port")?));
        } else if cursor.eat_word("iss") {
            flow.start =
                Some((cursor.small("the guest's first number")?, cursor.small("the client's first number")?));
        } else {
            return Err(cursor.wrong("vlan N, ports GUEST CLIENT or iss GUEST CLIENT"));
        }
    }
    Ok(Statement::Flow(flow))
}

fn open(cursor: &mut Cursor<'_>) -> Result<Statement, SyntaxError> {
    let mut opening = Opening {
        flow: flow_suffix(cursor)?,
        by: Side::Client,
        mss: (None, None),
        scale: (Some(7), Some(7)),
        sack: true,
        timestamps: true,
        ecn: false,
        window: (502, 512),
    };
    while !cursor.at_end() {
        match () {
            () if cursor.eat("by=") => {
                opening.by = match () {
                    () if cursor.eat_word("guest") => Side::Guest,
                    () if cursor.eat_word("client") => Side::Client,
                    () => return Err(cursor.wrong("guest or client")),
                }
            }
            () if cursor.eat("mss=") => opening.mss = pair(cursor)?,
            () if cursor.eat("ws=") => opening.scale = pair(cursor)?,
            () if cursor.eat("sack=") => opening.sack = yes(cursor)?,
            () if cursor.eat("ts=") => opening.timestamps = yes(cursor)?,
            () if cursor.eat("ecn=") => opening.ecn = yes(cursor)?,
            () if cursor.eat("win=") => {
                let (Some(guest), Some(client)) = pair(cursor)? else {
                    return Err(cursor.wrong("two windows"));
                };
                opening.window = (guest, client);
            }
            () => return Err(cursor.wrong("by=, mss=, ws=, sack=, ts=, ecn= or win=")),
        }
    }
    Ok(Statement::Open(opening))
}

/// `GUEST/CLIENT`, each a number or `none`; one stands for both.
fn pair<T: TryFrom<u64> + Copy>(cursor: &mut Cursor<'_>) -> Result<(Option<T>, Option<T>), SyntaxError> {
    let one = |cursor: &mut Cursor<'_>| {
        if cursor.eat_word("none") { Ok(None) } else { cursor.small("a number or 'none'").map(Some) }
    };
    let guest = one(cursor)?;
    let client = if cursor.eat("/") { one(cursor)? } else { guest };
    Ok((guest, client))
}

fn yes(cursor: &mut Cursor<'_>) -> Result<bool, SyntaxError> {
    if cursor.eat_word("yes") {
        Ok(true)
    } else if cursor.eat_word("no") {
        Ok(false)
    } else {
        Err(cursor.wrong("yes or no"))
    }
}

fn packet(cursor: &mut Cursor<'_>) -> Result<Packet, SyntaxError> {
    let mut marks = Vec::new();
    if cursor.eat("[") {
        while !cursor.eat("]") {
            marks.push(mark(cursor)?);
            cursor.eat(",");
        }
    }
    let body = if cursor.eat_word("udp") {
        Body::Udp(cursor.small("bytes of payload")?)
    } else if cursor.eat_word("frame") {
        Body::Opaque(cursor.small("bytes")?)
    } else if cursor.eat_word("too-big") {
        cursor.expect("mtu")?;
        let mtu = cursor.small("an MTU")?;
        let sequence =
            if cursor.eat_word("quoting") { Some(cursor.small("a sequence number")?) } else { None };
        Body::TooBig { mtu, sequence }
    } else {
        Body::Segment(segment(cursor)?)
    };
    Ok(Packet { marks, body })
}

fn mark(cursor: &mut Cursor<'_>) -> Result<Mark, SyntaxError> {
    let known = [
        ("ect0", Mark::Ect0),
        ("ce", Mark::Ce),
        ("not-ect", Mark::NotEct),
        ("bad-checksum", Mark::BadChecksum),
        ("offload", Mark::Offload),
        ("other", Mark::Other),
        ("fragment", Mark::Fragment),
        ("ae", Mark::AccurateEcn),
        ("elsewhere", Mark::Elsewhere),
    ];
    if let Some((_, mark)) = known.iter().find(|(name, _)| cursor.eat_word(name)) {
        return Ok(*mark);
    }
    if cursor.eat_word("extensions") {
        return Ok(Mark::Extensions(cursor.small("how many")?));
    }
    if cursor.eat_word("padded") {
        return Ok(Mark::Padded(cursor.small("how many bytes")?));
    }
    Err(cursor.wrong(
        "ect0, ce, not-ect, bad-checksum, offload, other, fragment, ae, elsewhere, extensions N, padded N or ']'",
    ))
}

fn segment(cursor: &mut Cursor<'_>) -> Result<Segment, SyntaxError> {
    const EXPECTED: &str = "control bits of S, F, R, P, U, E, W and '.', or '*', udp, frame, too-big";
    let mut segment = Segment::default();
    let mut ahead = *cursor;
    for letter in ahead.token(EXPECTED)?.chars() {
        let Some((_, bit)) = FLAGS.iter().find(|(known, _)| *known == letter) else {
            segment.any_flags |= letter == '*';
            if matches!(letter, '0' | '*') {
                continue;
            }
            return Err(cursor.wrong(EXPECTED));
        };
        segment.flags |= bit;
    }
    *cursor = ahead;
    if !cursor.eat("*") {
        let begin: u32 = cursor.small("a sequence number or '*'")?;
        segment.sequence = Some(begin);
        if cursor.eat(":") {
            let before = *cursor;
            let end: u32 = cursor.small("the sequence number behind the payload")?;
            cursor.expect("(")?;
            segment.len = cursor.small("the payload's length")?;
            cursor.expect(")")?;
            if begin.wrapping_add(segment.len) != end {
                *cursor = before;
                return Err(cursor.wrong(&format!(
                    "{}, the first number and the length",
                    begin.wrapping_add(segment.len)
                )));
            }
        }
    }
    loop {
        match () {
            () if cursor.eat_word("ack") => segment.ack = Some(cursor.small("an acknowledgement number")?),
            () if cursor.eat_word("win") => segment.window = Some(bound(cursor)?),
            () if cursor.eat_word("urg") => segment.urgent = Some(cursor.small("an urgent pointer")?),
            () if cursor.eat("<") => segment.options = Some(options(cursor)?),
            () => return Ok(segment),
        }
    }
}

fn options(cursor: &mut Cursor<'_>) -> Result<Vec<TcpOption>, SyntaxError> {
    let mut options = Vec::new();
    while !cursor.eat(">") {
        options.push(option(cursor)?);
        if !cursor.eat(",") {
            cursor.expect(">")?;
            break;
        }
    }
    Ok(options)
}

fn option(cursor: &mut Cursor<'_>) -> Result<TcpOption, SyntaxError> {
    match () {
        () if cursor.eat_word("nop") => Ok(TcpOption::Nop),
        () if cursor.eat_word("eol") => Ok(TcpOption::End),
        () if cursor.eat_word("mss") => Ok(TcpOption::Mss(cursor.small("bytes")?)),
        () if cursor.eat_word("ws") => Ok(TcpOption::Scale(cursor.small("a shift")?)),
        () if cursor.eat_word("sackOK") => Ok(TcpOption::SackPermitted),
        () if cursor.eat_word("ts") => Ok(TcpOption::Timestamps(stamp(cursor)?, stamp(cursor)?)),
        () if cursor.eat_word("kind") => {
            Ok(TcpOption::Other(cursor.small("a kind")?, cursor.small("bytes of its body")?))
        }
        () if cursor.eat_word("sack") => {
            let mut blocks = Vec::new();
            loop {
                let left = cursor.small("the left edge of a block")?;
                cursor.expect(":")?;
                blocks.push((left, cursor.small("the right edge of the block")?));
                let mut ahead = *cursor;
                if ahead.eat(",") || ahead.eat(">") {
                    return Ok(TcpOption::Sack(blocks));
                }
            }
        }
        () => Err(cursor.wrong("an option: mss, ws, sackOK, ts, sack, nop, eol or kind")),
    }
}

fn stamp(cursor: &mut Cursor<'_>) -> Result<Option<u32>, SyntaxError> {
    if cursor.eat("*") { Ok(None) } else { cursor.small("a timestamp or '*'").map(Some) }
}

fn bound(cursor: &mut Cursor<'_>) -> Result<Bound, SyntaxError> {
    let known = [
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("<", Comparison::Below),
        (">", Comparison::Above),
        ("=", Comparison::Equal),
    ];
    let comparison = known
        .iter()
        .find(|(sign, _)| cursor.eat(sign))
        .map_or(Comparison::Equal, |(_, comparison)| *comparison);
    Ok(Bound { comparison, value: cursor.number("a number")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "# row: towards-guest/window\n# RFC 9293 §3.8.6\n";

    fn wrong(line: &str) -> String {
        Script::parse(&format!("{HEAD}{line}\n")).expect_err("not a script").to_string()
    }

    fn only(line: &str) -> Line {
        Script::parse(&format!("{HEAD}{line}\n")).expect("a script").lines.remove(0)
    }

    #[test]
    fn a_segment_has_all_its_parts() {
        let line = only(
            "+20ms guest/b> [offload, ect0] PW. 1:1449(1448) ack 7 win 502 <nop, ts 1 *, sack 5:9 11:12>",
        );
        assert_eq!(line.delay, Duration::from_millis(20));
        let Statement::Send { from: Side::Guest, flow, packet } = line.statement else { panic!("{line:?}") };
        assert_eq!((flow.as_str(), packet.marks), ("b", vec![Mark::Offload, Mark::Ect0]));
        let Body::Segment(segment) = packet.body else { panic!("{:?}", packet.body) };
        assert_eq!(segment.flags, flag::PSH | flag::ACK | flag::CWR);
        assert_eq!((segment.sequence, segment.len, segment.ack), (Some(1), 1448, Some(7)));
        assert_eq!(segment.window.map(|bound| bound.value), Some(502));
        let options = segment.options.expect("options");
        assert_eq!(options[1], TcpOption::Timestamps(Some(1), None));
        assert_eq!(options[2], TcpOption::Sack(vec![(5, 9), (11, 12)]));
    }

    #[test]
    fn expectations_and_commands_are_understood() {
        let Statement::ExpectStream { range, acked: true, mss: Some(1400), within, .. } =
            only(">client stream 1:65161 acked mss 1400 within 2s").statement
        else {
            panic!("not a stream");
        };
        assert_eq!((range, within), ((1, 65161), Duration::from_secs(2)));
        assert!(matches!(only("commit refused").statement, Statement::Commit { refused: true, .. }));
        assert!(matches!(only("full stream").statement, Statement::Streaming(false)));
        assert!(matches!(only("nothing >guest").statement, Statement::Nothing(Some(Side::Guest))));
        assert!(matches!(only("client> too-big mtu 1300 quoting 1").statement, Statement::Send { .. }));
    }

    #[test]
    fn errors_point_at_what_is_wrong() {
        assert_eq!(
            wrong("guest> . 1:1450(1448) ack 1"),
            "line 3, column 12: expected 1449, the first number and the length, found '1450(1448)'"
        );
        assert_eq!(wrong("seal 1 2"), "line 3, column 8: expected the end of the line, found '2'");
        assert!(wrong("guest> . 1 <mss>").contains("column 16: expected bytes, found '>'"));
        assert!(wrong("wait").contains("expected a statement"));
        assert!(wrong("config speed=1").contains("expected flows=, held="));
    }

    #[test]
    fn a_script_names_its_row_and_its_clause() {
        assert!(Script::parse("seal\n").expect_err("no row").to_string().contains("'# row: ID'"));
        let error = Script::parse("# row: x\nseal\n").expect_err("no clause");
        assert!(error.to_string().contains("clause"), "{error}");
    }
}
