//! A small HTTP/1.1 client for connections that stay open and may have several requests under way.

use super::left;
use super::tree::TreeFile;
use holdfast_guest_init::stream::Stream;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Instant;

const BUFFER_BYTES: usize = 64 << 10;
/// A head that is longer is not nginx's.
const MOST_HEAD_BYTES: u64 = 4096;

/// What is asked for: a file or bytes of it, and the place in the stream at which its first byte must be.
#[derive(Debug, Clone)]
pub(super) struct Resource {
    request: Vec<u8>,
    status: &'static str,
    offset: u64,
    pub(super) bytes: u64,
}

impl Resource {
    /// A whole file.
    pub(super) fn whole(file: &TreeFile, root: &str) -> Self {
        let request = request(file, root, "");
        Self { request, status: "200", offset: file.offset, bytes: file.bytes }
    }

    /// So many bytes of a file from `from` on.
    pub(super) fn part(file: &TreeFile, root: &str, from: u64, bytes: u64) -> Self {
        let request = request(file, root, &format!("Range: bytes={from}-{}\r\n", from + bytes - 1));
        Self { request, status: "206", offset: file.offset + from, bytes }
    }
}

fn request(file: &TreeFile, root: &str, line: &str) -> Vec<u8> {
    let path = file.path.trim_start_matches(root);
    format!("GET {path} HTTP/1.1\r\nHost: guest\r\n{line}\r\n").into_bytes()
}

/// A connection.
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    until: Instant,
}

impl Connection {
    /// Nothing is waited for beyond `until`.
    pub(super) fn new(stream: TcpStream, until: Instant) -> io::Result<Self> {
        stream.set_write_timeout(Some(left(until)))?;
        Ok(Self { reader: BufReader::with_capacity(BUFFER_BYTES, stream), until })
    }

    /// Asks for these, one behind the other.
    pub(super) fn ask(&mut self, resources: &[Resource]) -> io::Result<()> {
        let all: Vec<u8> = resources.iter().flat_map(|resource| resource.request.iter().copied()).collect();
        self.reader.get_mut().write_all(&all)
    }

    /// Takes the next answer, which must be for `resource`; whether each byte was right.
    pub(super) fn answer(&mut self, resource: &Resource, stream: &Stream) -> io::Result<bool> {
        self.reader.get_ref().set_read_timeout(Some(left(self.until)))?;
        self.head(resource)?;
        let (mut done, mut exact) = (0, true);
        while done < resource.bytes {
            // What trickles must end in time as well.
            if Instant::now() > self.until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let found = self.reader.fill_buf()?;
            let len = (resource.bytes - done).min(found.len() as u64) as usize;
            if len == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            exact &= stream.first_difference(resource.offset + done, &found[..len]).is_none();
            self.reader.consume(len);
            done += len as u64;
        }
        Ok(exact)
    }

    fn head(&mut self, resource: &Resource) -> io::Result<()> {
        let mut lines = (&mut self.reader).take(MOST_HEAD_BYTES);
        let mut line = || {
            let mut line = String::new();
            match lines.read_line(&mut line)? {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => Ok(line),
            }
        };
        let first = line()?;
        if first.split(' ').nth(1) != Some(resource.status) {
            return Err(io::Error::other(format!("the server says {:?}", first.trim())));
        }
        let mut length = None;
        loop {
            let next = line()?;
            if next.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = next.split_once(':') {
                if name.eq_ignore_ascii_case("content-length") {
                    length = value.trim().parse().ok();
                }
            }
        }
        if length == Some(resource.bytes) {
            return Ok(());
        }
        Err(io::Error::other(format!("{length:?} bytes for {} that were asked for", resource.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::tree::{WEB_ROOT, pages, stream};
    use std::net::TcpListener;
    use std::thread;
    use std::time::Duration;

    /// What the client makes of these answers to two requests of the first page.
    fn taken(answers: Vec<u8>) -> (io::Result<bool>, io::Result<bool>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let address = listener.local_addr().expect("an address");
        let page = Resource::whole(&pages()[0], WEB_ROOT);
        let asked = 2 * page.request.len();
        let server = thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("accepted");
            // All of it: what is left unread when a socket is closed makes it a reset.
            client.read_exact(&mut vec![0; asked]).expect("asked");
            client.write_all(&answers).expect("answered");
        });
        let stream = stream();
        let until = Instant::now() + Duration::from_secs(20);
        let mut connection =
            Connection::new(TcpStream::connect(address).expect("connected"), until).expect("set up");
        connection.ask(&[page.clone(), page.clone()]).expect("asked");
        let both = (connection.answer(&page, &stream), connection.answer(&page, &stream));
        server.join().expect("ended");
        both
    }

    fn answer(wrong_at: Option<usize>) -> Vec<u8> {
        let page = &pages()[0];
        let mut body = vec![0; page.bytes as usize];
        stream().fill(page.offset, &mut body);
        if let Some(at) = wrong_at {
            body[at] ^= 1;
        }
        let head = format!("HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length: {}\r\n\r\n", page.bytes);
        [head.into_bytes(), body].concat()
    }

    #[test]
    fn answers_that_come_at_once_are_told_apart_and_a_wrong_byte_is_seen() {
        let (first, second) = taken([answer(None), answer(Some(101))].concat());
        assert!(first.expect("an answer"));
        assert!(!second.expect("an answer"));
    }

    #[test]
    fn refusals_other_lengths_and_a_broken_end_are_faults() {
        let (first, _) = taken(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
        assert!(first.expect_err("refused").to_string().contains("404"));
        let (first, _) = taken(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n1234567".to_vec());
        assert!(first.expect_err("too short").to_string().contains("asked for"));
        let (first, second) = taken([answer(None), answer(None)[..90].to_vec()].concat());
        assert!(first.expect("an answer"));
        assert_eq!(second.expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
    }
}
