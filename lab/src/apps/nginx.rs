//! nginx with static files, and the load of a web benchmark.
//!
//! The load is [`CONNECTIONS`] that stay open, each with one request under way, for files in the mix of
//! SPECweb99's classes (its dynamic part left out). The generator is our own: `wrk` checks no byte of what it
//! gets and gives but some percentiles, and the laboratory's clients are byte-exact as it is.

use super::figures::{AppFigures, Tally};
use super::http::{Connection, Resource};
use super::tree::{self, WEB_ROOT};
use super::{App, AppsError, Unpacked, left};
use crate::client::Client;
use crate::guest::GuestSpec;
use crate::initramfs::Part;
use holdfast_guest_init::stream::{Stream, mix};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

pub(super) const PORT: u16 = 80;
/// As a server has that is worth protecting: with few of them, each waiting for its answer, the rate would be
/// nothing but the latency upside down.
const CONNECTIONS: u64 = 256;
pub(super) const PROGRAM: &str = "/usr/sbin/nginx";
const CONFIGURATION: &str = "/etc/nginx.conf";
/// One worker for one processor; connections stay open however long a benchmark lasts.
const SETTINGS: &str = "\
user root root;
daemon off;
worker_processes 1;
pid /run/nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    default_type application/octet-stream;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    client_body_temp_path /tmp/nginx-body;
    proxy_temp_path /tmp/nginx-proxy;
    fastcgi_temp_path /tmp/nginx-fastcgi;
    uwsgi_temp_path /tmp/nginx-uwsgi;
    scgi_temp_path /tmp/nginx-scgi;
    server {
        listen 80 backlog=1024;
        listen [::]:80 backlog=1024;
        root /srv/web;
    }
}
";

pub(super) fn serve(spec: &mut GuestSpec, unpacked: &Unpacked, parts: &mut Vec<Part>) {
    parts.push(unpacked.part(PROGRAM));
    parts.push(Part::file(CONFIGURATION, SETTINGS.as_bytes()));
    spec.start_at_boot(PROGRAM, &["-e", "stderr", "-c", CONFIGURATION]);
}

pub(super) fn measure(
    client: &Client,
    guest: IpAddr,
    seed: u64,
    (time, until): (Duration, Instant),
) -> Result<AppFigures, AppsError> {
    let target = SocketAddr::new(guest, PORT);
    drop(client.connect_listening(target, left(until))?);
    let pages: Vec<Resource> = tree::pages().iter().map(|file| Resource::whole(file, WEB_ROOT)).collect();
    let stream = tree::stream();
    let opened = open(client, target, until)?;
    // From here on, so that no handshake is in the figures.
    let began = Instant::now();
    let mut all = Tally::new();
    thread::scope(|scope| {
        let load = |(number, connection)| {
            let load =
                Load { pages: &pages, stream: &stream, seed: seed ^ (number as u64) << 48, began, time };
            scope.spawn(move || load.run(connection))
        };
        let threads: Vec<_> = opened.into_iter().enumerate().map(load).collect();
        for thread in threads {
            all.add(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    match all.fault {
        Some(fault) if all.requests == 0 => Err(AppsError::Nothing { app: App::Nginx, fault }),
        _ => Ok(all.figures(time)),
    }
}

/// All at once: each handshake may have to wait for its commit.
fn open(client: &Client, target: SocketAddr, until: Instant) -> Result<Vec<Connection>, AppsError> {
    let opened: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> =
            (0..CONNECTIONS).map(|_| scope.spawn(|| client.connect(target, left(until)))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let failed = |source: io::Error| crate::client::ClientError::Exchange { what: "connect", target, source };
    opened.into_iter().map(|stream| Ok(Connection::new(stream?, until).map_err(failed)?)).collect()
}

/// The load of one connection.
struct Load<'a> {
    pages: &'a [Resource],
    stream: &'a Stream,
    seed: u64,
    began: Instant,
    time: Duration,
}

impl Load<'_> {
    /// Until the time is over or the connection fails. A request that is answered later does not count, but its
    /// latency does: the slowest are not to be missed.
    fn run(&self, mut connection: Connection) -> Tally {
        let mut tally = Tally::new();
        for number in 0.. {
            if self.began.elapsed() >= self.time {
                break;
            }
            let page = &self.pages[tree::page_of_mix(mix(self.seed.wrapping_add(number)))];
            let asked = Instant::now();
            let answered = connection
                .ask(std::slice::from_ref(page))
                .and_then(|()| connection.answer(page, self.stream));
            match answered {
                Ok(true) => {}
                Ok(false) => tally.wrong("a byte of a page is wrong"),
                Err(fault) => {
                    tally.failed(fault);
                    break;
                }
            }
            tally.took(asked.elapsed());
            if self.began.elapsed() < self.time {
                tally.requests += 1;
                tally.bytes += page.bytes;
            }
        }
        tally
    }
}
