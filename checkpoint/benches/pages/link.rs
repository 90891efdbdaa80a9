//! Messages of pages from host to host: put together from a stream, and over a link with TLS on this machine.

#[expect(dead_code, unused_imports, reason = "of its tests")]
#[path = "../../src/transport/frames.rs"]
mod frames;

use crate::measure::{Bench, PAGES};
use crate::memory::{Pages, numbered};
use frames::Assembler;
use holdfast_checkpoint::keys::{Identity, make_pair};
use holdfast_checkpoint::pages::PAGE_SIZE;
use holdfast_checkpoint::protocol::{
    BATCH_PAGES, DeviceDigest, Hello, MESSAGE_LIMIT, Message, PROTOCOL_VERSION, PageBatch, PageBatchWriter,
    encode,
};
use holdfast_checkpoint::reduction::Reduced;
use holdfast_checkpoint::transport::{Link, LinkEvent, Listener, Security, TcpTransport, Transport, WINDOW};
use holdfast_epoch::Term;
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::io::ErrorKind;
use std::time::Duration;

const CHUNKS: usize = PAGES / BATCH_PAGES as usize;
const SOON: Duration = Duration::from_secs(10);

/// A message of the synchronisation with as many pages as one has, as they are.
fn message(noise: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut writer = PageBatchWriter::new(&mut body);
    for (page, bytes) in numbered(&noise[..BATCH_PAGES as usize * PAGE_SIZE]) {
        writer.add(page, Reduced::Raw(bytes));
    }
    encode(&Message::Base(PageBatch::from_bytes(body)))
}

pub(crate) fn measure(bench: &Bench, Pages { noise, .. }: &Pages) {
    let frame = message(noise);
    let mut spare = None;
    bench.line(
        "frame",
        "read, put together",
        || Assembler::new(MESSAGE_LIMIT),
        |assembler| {
            for _ in 0..CHUNKS {
                spare = Some(put_together(assembler, &frame, spare.take()));
            }
        },
    );
    let what = "time of a core over TLS, both ends with the kernel and a copy into the frame";
    if bench.wants("link", what) {
        let (from, to) = connected();
        bench.timed(
            "link",
            what,
            || (),
            |()| {
                let before = processor_time();
                carry(&from, &to, &frame);
                processor_time() - before
            },
        );
    }
}

/// Gives the buffer of its body back.
fn put_together(assembler: &mut Assembler, frame: &[u8], mut spare: Option<Vec<u8>>) -> Vec<u8> {
    let mut rest = frame;
    let read = |room: &mut [u8]| {
        if rest.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = room.len().min(rest.len()).min(1 << 14);
        room[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        Ok(count)
    };
    let whole = assembler.next(read, || spare.take()).expect("no fault of the stream").expect("all of it");
    match black_box(whole.expect("our own").message) {
        Message::Base(batch) => batch.into_buffer(),
        other => panic!("{} is not what was sent", other.name()),
    }
}

/// Both ends of a link with TLS.
fn connected() -> (Link, Link) {
    let keys = tempfile::tempdir().expect("a folder");
    let (a, b) = (keys.path().join("a"), keys.path().join("b"));
    make_pair(&a, &b).expect("keys");
    let [ours, theirs] = [a, b].map(|dir| Security::Tls(Identity::load(&dir).expect("keys load")));
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), theirs).expect("a port");
    let sessions = listener.route("bench");
    let from = TcpTransport::new(listener.address(), ours).dial(SOON).expect("the listener answers");
    from.send(&Message::Hello(Hello {
        ports: Vec::new(),
        version: PROTOCOL_VERSION,
        vm: "bench".to_owned(),
        host: "host-a".to_owned(),
        term: Term::new(1),
        memory: (PAGES * PAGE_SIZE) as u64,
        page_size: PAGE_SIZE as u32,
        session: 1,
        lease_ms: 300,
        devices: DeviceDigest::default(),
    }));
    let to = sessions.recv_timeout(SOON).expect("the session arrives").link;
    to.allow(WINDOW);
    // It is told so before it can read what is sent on this credit.
    to.send(&Message::Summon { term: Term::new(1) });
    from.events().recv_timeout(SOON).expect("its first word");
    from.set_window(WINDOW);
    (from, to)
}

/// Sends a round's pages, and takes them.
fn carry(from: &Link, to: &Link, frame: &[u8]) {
    let mut waiting = None;
    let (mut sent, mut came) = (0, 0);
    while came < CHUNKS {
        while sent < CHUNKS {
            let next = waiting.take().unwrap_or_else(|| {
                let mut buffer = from.buffer();
                buffer.extend_from_slice(frame);
                buffer
            });
            match from.try_send_bulk(next) {
                Ok(()) => sent += 1,
                Err(full) => {
                    waiting = Some(full.into_inner());
                    break;
                }
            }
        }
        match to.events().recv_timeout(SOON) {
            Ok(LinkEvent::Message { message: Message::Base(batch), charge }) => {
                to.give_back(batch.into_buffer());
                to.grant(charge);
                came += 1;
            }
            other => panic!("pages were sent, not {other:?}"),
        }
    }
}

/// Of all threads of this process.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("each process has this clock").into()
}
