//! The kernel's TCP with TLS 1.3, or in the clear in a laboratory.

use crate::keys::Identity;
use crate::transport::link::link;
use crate::transport::wire::Wire;
use crate::transport::{Bypass, Link, LinkError, Transport};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// What protects a connection.
#[derive(Clone, Debug)]
pub enum Security {
    /// TLS 1.3 with the keys of the pair.
    Tls(Identity),
    /// Nothing: anybody on the network can read the guest's memory and take the machine over. For a
    /// laboratory, and only where a setting asks for it by name.
    LaboratoryPlaintext,
}

/// Dials the other host by TCP.
#[derive(Clone, Debug)]
pub struct TcpTransport {
    peer: SocketAddr,
    security: Security,
    bypass: Option<Bypass>,
}

impl TcpTransport {
    /// Sessions with the host at `peer`.
    #[must_use]
    pub const fn new(peer: SocketAddr, security: Security) -> Self {
        Self { peer, security, bypass: None }
    }

    /// Lets the sessions use the bypass; one in the clear does not.
    #[must_use]
    pub fn over(self, bypass: Option<Bypass>) -> Self {
        Self { bypass, ..self }
    }

    /// What protects the sessions.
    #[must_use]
    pub const fn security(&self) -> &Security {
        &self.security
    }

    fn shake_hands(&self, socket: TcpStream, deadline: Instant) -> Result<Wire, LinkError> {
        let peer = || self.peer.to_string();
        match &self.security {
            Security::LaboratoryPlaintext => Ok(Wire::clear(socket)),
            Security::Tls(identity) => {
                let tls = identity.dialing().map_err(io::Error::other)?;
                Wire::tls(socket, tls, deadline).map_err(|error| match error.kind() {
                    io::ErrorKind::InvalidData => {
                        LinkError::Stranger { peer: peer(), reason: error.to_string() }
                    }
                    _ => LinkError::Unreachable { peer: peer(), source: error },
                })
            }
        }
    }
}

impl Transport for TcpTransport {
    fn dial(&self, timeout: Duration) -> Result<Link, LinkError> {
        let deadline = Instant::now() + timeout;
        let socket = TcpStream::connect_timeout(&self.peer, timeout)
            .map_err(|source| LinkError::Unreachable { peer: self.peer.to_string(), source })?;
        socket.set_nodelay(true)?;
        let wire = self.shake_hands(socket, deadline)?;
        let (handle, owner) = link(wire, self.peer.to_string(), self.bypass.as_ref())?;
        thread::Builder::new().name("hf-link".to_owned()).spawn(move || owner.run())?;
        Ok(handle)
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }
}
