//! The daemon's side of the control socket.

use super::{Answer, MAX_LINE, Request};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use thiserror::Error;

/// Why the control socket could not be opened. The operator or the host is at fault.
#[derive(Debug, Error)]
pub(crate) enum ServerError {
    #[error(
        "another Holdfast answers on {0}; mend: give this one its own host.control_socket, or stop the other"
    )]
    InUse(PathBuf),
    #[error(
        "{0} exists and is not a socket; mend: give host.control_socket another path, or remove the file"
    )]
    NotASocket(PathBuf),
    #[error("cannot open the control socket {path}: {source}; mend: a folder that exists and is writable")]
    Open { path: PathBuf, source: std::io::Error },
}

/// The open control socket; its file goes when this is dropped.
pub(crate) struct Server {
    path: PathBuf,
    listener: UnixListener,
}

impl Server {
    /// Opens the socket, and its folder if need be. Who connects waits until [`Server::serve`].
    pub(crate) fn open(path: &Path) -> Result<Self, ServerError> {
        let fault = |source| ServerError::Open { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(fault)?;
        }
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(fault)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(fault)?;
        Ok(Self { path: path.to_owned(), listener })
    }

    /// Answers each request with `handler`, on threads of its own.
    pub(crate) fn serve(
        &self,
        handler: impl Fn(Request) -> Answer + Send + Sync + 'static,
    ) -> std::io::Result<()> {
        let listener = self.listener.try_clone()?;
        let handler = Arc::new(handler);
        std::thread::Builder::new().name("control".into()).spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => serve(stream, Arc::clone(&handler)),
                    Err(fault) => tracing::warn!("control socket: {fault}"),
                }
            }
        })?;
        Ok(())
    }
}

/// Removes a socket whose process was killed; nothing else.
fn remove_stale(path: &Path) -> Result<(), ServerError> {
    let Ok(meta) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err(ServerError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(fault) if fault.kind() == std::io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| ServerError::Open { path: path.to_owned(), source })
        }
        _ => Err(ServerError::InUse(path.to_owned())),
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(fault) = std::fs::remove_file(&self.path) {
            tracing::debug!("control socket {}: {fault}", self.path.display());
        }
    }
}

/// Answers one connection on a thread of its own, so that a slow client delays nobody else.
fn serve(stream: UnixStream, handler: Arc<impl Fn(Request) -> Answer + Send + Sync + 'static>) {
    let spawned = std::thread::Builder::new().name("control-client".into()).spawn(move || {
        if let Err(fault) = converse(&stream, &*handler) {
            tracing::debug!("control client: {fault}");
        }
    });
    if let Err(fault) = spawned {
        tracing::warn!("control socket: cannot answer a client: {fault}");
    }
}

fn converse(mut stream: &UnixStream, handler: &impl Fn(Request) -> Answer) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(10)))?;
    let peer = getsockopt(&stream, PeerCredentials)?;
    let own = nix::unistd::geteuid().as_raw();
    let allowed = peer.uid() == 0 || peer.uid() == own;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if reader.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let answer = if allowed {
            match serde_json::from_slice(&line) {
                Ok(request) => handler(request),
                Err(fault) => Answer::Error(format!("the request is not understood: {fault}")),
            }
        } else {
            Answer::Error(format!(
                "user {} may not control this Holdfast; mend: ask as root or as user {own}",
                peer.uid()
            ))
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        stream.write_all(&text)?;
        if !allowed {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ask;

    #[test]
    fn a_request_is_answered_and_the_socket_is_private() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("control.sock");
        let server = Server::open(&path).expect("open");
        let serving = server.serve(|request| match request {
            Request::Status { .. } => Answer::Ok(serde_json::json!({"vms": []})),
            other => Answer::Error(format!("no {other:?} here")),
        });
        serving.expect("served");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let document =
            ask(&path, &Request::Status { vm: None, flows: false, epochs: false }).expect("answered");
        assert_eq!(document, serde_json::json!({"vms": []}));
        let refused = ask(&path, &Request::Failover { vm: "x".into() }).expect_err("refused");
        assert!(refused.to_string().contains("no Failover"), "{refused}");
        assert!(matches!(Server::open(&path), Err(ServerError::InUse(_))));
        drop(server);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone_and_a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("precious");
        std::fs::write(&path, "text").expect("written");
        assert!(matches!(Server::open(&path), Err(ServerError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "text");
        let stale = folder.path().join("stale");
        drop(UnixListener::bind(&stale).expect("bound"));
        assert!(stale.exists());
        Server::open(&stale).expect("replaced");
    }

    /// RB-1: rubbish on the control socket is answered with an error, and the next request is served.
    #[test]
    fn rubbish_is_refused_and_the_connection_goes_on() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("control.sock");
        let server = Server::open(&path).expect("open");
        server.serve(|_| Answer::Ok(serde_json::Value::Null)).expect("served");
        let mut stream = UnixStream::connect(&path).expect("connect");
        let mut reader = BufReader::new(stream.try_clone().expect("clone"));
        for (line, part) in [("\x01\x02 not json\n", "not understood"), ("{\"command\":\"status\"}\n", "ok")]
        {
            stream.write_all(line.as_bytes()).expect("sent");
            let mut answer = String::new();
            reader.read_line(&mut answer).expect("answered");
            assert!(answer.contains(part), "{answer}");
        }
    }
}
