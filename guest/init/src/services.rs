//! The services on TCP and UDP, a thread per connection.
//!
//! What a client sends is checked and bounded: a connection that speaks something else is closed, and
//! at most [`MAX_CONNECTIONS`] are served at a time.

use crate::boot::BootError;
use crate::dirtier;
use holdfast_guest_init::protocol::{DIRTY_PORT, Direction, Dirty, ECHO_PORT, Request, STREAM_PORT, Verdict};
use holdfast_guest_init::stream::{BLOCK_BYTES, Stream};
use nix::sys::socket::{Backlog, listen as listen_again};
use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

const MAX_CONNECTIONS: usize = 1024;
/// Bytes per write and read: whole blocks of the stream, and few system calls.
const BUFFER_BYTES: usize = 4 * BLOCK_BYTES;

static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// Starts every service; returns once all listen.
pub(crate) fn start() -> Result<(), BootError> {
    listen(STREAM_PORT, serve_stream)?;
    listen(ECHO_PORT, serve_echo)?;
    listen(DIRTY_PORT, serve_dirty)?;
    let port = ECHO_PORT;
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port))
        .map_err(|source| BootError::Service { port, source })?;
    thread::spawn(move || serve_echo_datagrams(&socket));
    Ok(())
}

/// A socket on `::` takes IPv4 as well.
fn listen(port: u16, serve: fn(TcpStream) -> io::Result<()>) -> Result<(), BootError> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .map_err(|source| BootError::Service { port, source })?;
    // The standard library lets 128 handshakes wait. When hundreds of SYN-ACKs have been held for one commit,
    // as many ACKs come at once: those beyond the backlog would find no connection, and be reset.
    let backlog = Backlog::new(MAX_CONNECTIONS as i32).unwrap_or(Backlog::MAXCONN);
    listen_again(&listener, backlog).map_err(|fault| BootError::Service { port, source: fault.into() })?;
    thread::spawn(move || {
        for connection in listener.incoming() {
            match connection {
                Ok(stream) => accept(port, stream, serve),
                Err(error) => println!("holdfast-guest: port {port}: accept: {error}"),
            }
        }
    });
    Ok(())
}

fn accept(port: u16, stream: TcpStream, serve: fn(TcpStream) -> io::Result<()>) {
    if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= MAX_CONNECTIONS {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        println!("holdfast-guest: port {port}: more than {MAX_CONNECTIONS} connections, one refused");
        return;
    }
    thread::spawn(move || {
        if let Err(error) = stream.set_nodelay(true).and_then(|()| serve(stream)) {
            println!("holdfast-guest: port {port}: {error}");
        }
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    });
}

fn serve_stream(mut client: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut made: Option<Stream> = None;
    while let Some(record) = read_record::<{ Request::LEN }>(&mut client)? {
        let request = Request::decode(&record).map_err(io::Error::other)?;
        let stream = match &made {
            Some(stream) if stream.seed() == request.seed => stream,
            _ => made.insert(Stream::new(request.seed)),
        };
        match request.direction {
            Direction::Download => send(&mut client, stream, &request, &mut buffer)?,
            Direction::Upload => {
                let verdict = check(&mut client, stream, &request, &mut buffer)?;
                client.write_all(&verdict.encode())?;
            }
            Direction::Echo => give_back(&mut client, request.length, &mut buffer)?,
        }
    }
    Ok(())
}

fn send(client: &mut TcpStream, stream: &Stream, request: &Request, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < request.length {
        let part = part_of(request.length - done, buffer);
        stream.fill(request.offset.wrapping_add(done), part);
        client.write_all(part)?;
        done += part.len() as u64;
    }
    Ok(())
}

fn check(
    client: &mut TcpStream,
    stream: &Stream,
    request: &Request,
    buffer: &mut [u8],
) -> io::Result<Verdict> {
    let (mut done, mut first) = (0, None);
    while done < request.length {
        let part = part_of(request.length - done, buffer);
        let read = read_some(client, part)?;
        if first.is_none() {
            first = stream.first_difference(request.offset.wrapping_add(done), &part[..read]);
        }
        done += read as u64;
    }
    Ok(match first {
        None => Verdict::Exact { bytes: done },
        Some(first) => Verdict::Differs { bytes: done, first },
    })
}

fn give_back(client: &mut TcpStream, length: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < length {
        let part = part_of(length - done, buffer);
        let read = read_some(client, part)?;
        client.write_all(&part[..read])?;
        done += read as u64;
    }
    Ok(())
}

/// The head of the buffer that is no longer than what is left.
fn part_of(left: u64, buffer: &mut [u8]) -> &mut [u8] {
    let len = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    &mut buffer[..len]
}

/// Reads at least one byte: an end inside a request is the client's fault.
fn read_some(client: &mut TcpStream, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match client.read(into) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The next record, or none when the client closed the connection between two.
fn read_record<const LEN: usize>(client: &mut TcpStream) -> io::Result<Option<[u8; LEN]>> {
    let mut record = [0; LEN];
    let mut done = 0;
    while done < LEN {
        match client.read(&mut record[done..]) {
            Ok(0) if done == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Some(record))
}

fn serve_echo(mut client: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let read = client.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        client.write_all(&buffer[..read])?;
    }
}

fn serve_echo_datagrams(socket: &UdpSocket) {
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let answered =
            socket.recv_from(&mut buffer).and_then(|(read, from)| socket.send_to(&buffer[..read], from));
        if let Err(error) = answered {
            println!("holdfast-guest: datagram: {error}");
        }
    }
}

fn serve_dirty(mut client: TcpStream) -> io::Result<()> {
    while let Some(record) = read_record::<{ Dirty::LEN }>(&mut client)? {
        let request = Dirty::decode(&record).map_err(io::Error::other)?;
        dirtier::set(request);
        client.write_all(&Verdict::Exact { bytes: u64::from(request.pages) * 4096 }.encode())?;
    }
    Ok(())
}
