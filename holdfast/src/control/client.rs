//! The command line's side of the control socket.

use super::{Answer, MAX_LINE, Request};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thiserror::Error;

/// Why a request was not carried out.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    #[error("{path} may not be opened: {source}; mend: ask as root, or as the user who runs Holdfast")]
    NotAllowed { path: PathBuf, source: std::io::Error },
    #[error(
        "no Holdfast answers on {path}: {source}; mend: start `holdfast run -c FILE`, or name its socket with --socket"
    )]
    Connect { path: PathBuf, source: std::io::Error },
    #[error("the control connection broke: {0}")]
    Broken(#[from] std::io::Error),
    #[error(
        "the answer is not understood: {0}; mend: use the same version of Holdfast on both ends of the socket"
    )]
    Answer(#[from] serde_json::Error),
    #[error("{0}")]
    Refused(String),
}

/// Asks the Holdfast at `path` and waits for its answer.
pub(crate) fn ask(path: &Path, request: &Request) -> Result<serde_json::Value, ClientError> {
    let mut stream = UnixStream::connect(path).map_err(|source| {
        let path = path.to_owned();
        match source.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::NotAllowed { path, source },
            _ => ClientError::Connect { path, source },
        }
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text)?;
    let mut line = Vec::new();
    BufReader::new(stream).take(MAX_LINE as u64).read_until(b'\n', &mut line)?;
    match serde_json::from_slice(&line)? {
        Answer::Ok(document) => Ok(document),
        Answer::Error(fault) => Err(ClientError::Refused(fault)),
    }
}
