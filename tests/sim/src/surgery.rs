//! Changes to frames, as cards, routers and middleboxes make them; checksums are made anew after each.

use crate::segment::{self, Place, flag, fold, option, words};
use holdfast_speculation::SeqNum;

/// The Ethernet header of one direction, with its VLAN tags.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    header: Vec<u8>,
}

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 9];

impl Link {
    /// From guest to client, or the other way, with so many VLAN tags.
    pub(crate) fn new(from_guest: bool, tags: usize, v6: bool) -> Self {
        let mut header = Vec::new();
        let (destination, source) = if from_guest { (CLIENT, GUEST) } else { (GUEST, CLIENT) };
        header.extend(destination);
        header.extend(source);
        const TAGS: [[u8; 4]; 2] = [[0x88, 0xa8, 0, 7], [0x81, 0, 0x20, 9]];
        header.extend(TAGS[2 - tags.min(2)..].iter().flatten());
        header.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        Self { header }
    }

    /// The frame of a packet.
    pub(crate) fn frame(&self, packet: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(self.header.len() + packet.len());
        frame.extend(&self.header);
        frame.extend(packet);
        frame
    }

    /// The packet of a frame, if it is on this link.
    pub(crate) fn packet(&self, frame: &[u8]) -> Option<Vec<u8>> {
        frame.strip_prefix(&self.header[..]).map(<[u8]>::to_vec)
    }

    /// Length of the header.
    pub(crate) fn len(&self) -> usize {
        self.header.len()
    }
}

/// Makes the checksums of a TCP frame anew.
pub(crate) fn complete(frame: &mut [u8]) {
    let Some(place) = Place::of(frame) else { return };
    complete_ip(frame, &place);
    put(frame, place.tcp + 16, &[0, 0]);
    let sum = !segment::transport_sum(frame, &place);
    put(frame, place.tcp + 16, &sum.to_be_bytes());
}

/// Leaves the TCP checksum to the card: the field holds the sum of the pseudo header.
pub(crate) fn leave_to_the_card(frame: &mut [u8]) {
    let Some(place) = Place::of(frame) else { return };
    let sum = fold(segment::pseudo_sum(frame, &place));
    put(frame, place.tcp + 16, &sum.to_be_bytes());
}

fn complete_ip(frame: &mut [u8], place: &Place) {
    if !place.v6 {
        put(frame, place.ip + 10, &[0, 0]);
        let sum = !fold(words(&frame[place.ip..place.tcp]));
        put(frame, place.ip + 10, &sum.to_be_bytes());
    }
}

pub(crate) fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    frame[at..at + bytes.len()].copy_from_slice(bytes);
}

/// Where the ECN bits of the IP header are, and how far they are shifted (RFC 3168 §5).
fn marks(place: &Place) -> (usize, u8) {
    if place.v6 { (place.ip + 1, 4) } else { (place.ip + 1, 0) }
}

/// Says that the frame may be marked: ECT(0).
pub(crate) fn allow_marks(frame: &mut [u8], place: &Place) {
    let (at, shift) = marks(place);
    frame[at] = frame[at] & !(3 << shift) | 2 << shift;
}

/// Whether congestion was marked.
pub(crate) fn is_marked(frame: &[u8], place: &Place) -> bool {
    let (at, shift) = marks(place);
    frame[at] >> shift & 3 == 3
}

/// Marks congestion, if the frame allows it.
pub(crate) fn mark(frame: &mut [u8]) {
    let Some(place) = Place::of(frame) else { return };
    let (at, shift) = marks(&place);
    if frame[at] >> shift & 3 != 0 {
        frame[at] |= 3 << shift;
        complete_ip(frame, &place);
    }
}

/// Whether the frame may be marked, or is.
pub(crate) fn allows_marks(frame: &[u8], place: &Place) -> bool {
    let (at, shift) = marks(place);
    frame[at] >> shift & 3 != 0
}

/// Writes a sequence number.
pub(crate) fn set_seq(frame: &mut [u8], place: &Place, seq: SeqNum) {
    put(frame, place.tcp + 4, &seq.get().to_be_bytes());
}

/// Writes an acknowledgement number.
pub(crate) fn set_ack(frame: &mut [u8], place: &Place, ack: SeqNum) {
    put(frame, place.tcp + 8, &ack.get().to_be_bytes());
}

/// Writes a window.
pub(crate) fn set_window(frame: &mut [u8], place: &Place, window: u16) {
    put(frame, place.tcp + 14, &window.to_be_bytes());
}

/// Where the value of an option is.
pub(crate) fn find_option(frame: &[u8], place: &Place, wanted: u8) -> Option<usize> {
    let mut at = place.tcp + 20;
    while at < place.payload {
        match frame[at] {
            option::END => return None,
            option::NOP => at += 1,
            kind if kind == wanted => return Some(at + 2),
            _ => at += usize::from(*frame.get(at + 1)?).max(2),
        }
    }
    None
}

/// Turns an option into NOPs.
pub(crate) fn blank_option(frame: &mut [u8], place: &Place, kind: u8) {
    if let Some(value) = find_option(frame, place, kind) {
        let len = usize::from(frame[value - 1]);
        frame[value - 2..value - 2 + len].fill(option::NOP);
    }
}

/// Adds an option of a kind that nobody here knows; four bytes more.
pub(crate) fn add_option(frame: &mut Vec<u8>, place: &Place, kind: u8) {
    let words = frame[place.tcp + 12] >> 4;
    if words >= 15 {
        return;
    }
    frame[place.tcp + 12] = (words + 1) << 4;
    frame.splice(place.tcp + 20..place.tcp + 20, [kind, 4, 0x12, 0x34]);
    set_len(frame, place, place.end + 4 - place.ip);
}

/// Cuts the payload down to `len` bytes; a FIN goes with the bytes before it.
pub(crate) fn trim(frame: &mut Vec<u8>, place: &Place, len: usize) {
    if place.payload + len < place.end {
        frame.truncate(place.payload + len);
        frame[place.tcp + 13] &= !(flag::FIN | flag::PSH);
        set_len(frame, place, place.payload + len - place.ip);
    }
}

fn set_len(frame: &mut [u8], place: &Place, packet: usize) {
    if place.v6 {
        put(frame, place.ip + 4, &((packet - 40) as u16).to_be_bytes());
    } else {
        put(frame, place.ip + 2, &(packet as u16).to_be_bytes());
    }
}

/// Cuts a segment into segments of at most `payload` bytes, as a card with segmentation offload does.
pub(crate) fn split(frame: Vec<u8>, payload: usize) -> Vec<Vec<u8>> {
    let Some(place) = Place::of(&frame) else { return vec![frame] };
    let whole = place.end - place.payload;
    if whole <= payload {
        return vec![frame];
    }
    let mut pieces = Vec::new();
    let seq = segment::long(&frame, place.tcp + 4).unwrap_or_default();
    for start in (0..whole).step_by(payload) {
        let len = payload.min(whole - start);
        let mut piece = frame[..place.payload].to_vec();
        piece.extend(&frame[place.payload + start..place.payload + start + len]);
        set_len(&mut piece, &place, place.payload + len - place.ip);
        set_seq(&mut piece, &place, SeqNum::new(seq) + start as u32);
        if start + len < whole {
            piece[place.tcp + 13] &= !(flag::FIN | flag::PSH);
        }
        complete(&mut piece);
        pieces.push(piece);
    }
    pieces
}

/// Cuts an IPv4 packet into two fragments (RFC 791 §3.2).
pub(crate) fn fragments(frame: &[u8]) -> Option<[Vec<u8>; 2]> {
    let place = Place::of(frame)?;
    let body = place.end - place.tcp;
    let cut = (body / 2) & !7;
    if place.v6 || cut == 0 {
        return None;
    }
    let mut first = frame[..place.tcp + cut].to_vec();
    let mut second = frame[..place.tcp].to_vec();
    second.extend(&frame[place.tcp + cut..place.end]);
    put(&mut first, place.ip + 2, &((place.tcp - place.ip + cut) as u16).to_be_bytes());
    put(&mut first, place.ip + 6, &0x2000u16.to_be_bytes());
    put(&mut second, place.ip + 2, &((place.end - place.ip - cut) as u16).to_be_bytes());
    put(&mut second, place.ip + 6, &((cut / 8) as u16).to_be_bytes());
    for piece in [&mut first, &mut second] {
        put(piece, place.ip + 10, &[0, 0]);
        let sum = !fold(words(&piece[place.ip..place.tcp]));
        put(piece, place.ip + 10, &sum.to_be_bytes());
    }
    Some([first, second])
}

/// Puts the two fragments of [`fragments`] together again; holds one packet at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reassembly {
    first: Option<Vec<u8>>,
    second: Option<Vec<u8>>,
}

impl Reassembly {
    /// Takes a frame; gives it back when it is no fragment, or the whole when it was the last piece.
    pub(crate) fn take(&mut self, frame: Vec<u8>, link: &Link) -> Option<Vec<u8>> {
        let ip = link.len();
        let v4 = frame.get(ip).is_some_and(|first| first >> 4 == 4) && frame.len() >= ip + 20;
        let pieces = if v4 { segment::word(&frame, ip + 6).unwrap_or(0) & 0x3fff } else { 0 };
        if pieces == 0 {
            return Some(frame);
        }
        *(if pieces == 0x2000 { &mut self.first } else { &mut self.second }) = Some(frame);
        let (first, second) = (self.first.as_ref()?, self.second.as_ref()?);
        if first[ip + 4..ip + 6] != second[ip + 4..ip + 6] {
            return None;
        }
        let mut whole = first.clone();
        whole.extend(&second[ip + 20..]);
        let len = (whole.len() - ip) as u16;
        put(&mut whole, ip + 2, &len.to_be_bytes());
        put(&mut whole, ip + 6, &[0, 0]);
        put(&mut whole, ip + 10, &[0, 0]);
        let sum = !fold(words(&whole[ip..ip + 20]));
        put(&mut whole, ip + 10, &sum.to_be_bytes());
        (self.first, self.second) = (None, None);
        Some(whole)
    }
}
