//! The keys of a pair of hosts, and what TLS makes of them.
//!
//! Each host has a key and a self-signed certificate of its own, and its peer's certificate. It accepts
//! exactly that certificate, whatever name or date is in it: a link between two machines of one
//! operator needs no authority (decision 0004). TLS 1.3 only, both sides show a certificate.
//!
//! ```text
//! DIR/own.key   private key of this host, readable by its owner alone
//! DIR/own.crt   certificate of this host
//! DIR/peer.crt  certificate of the other host
//! ```

mod pinned;

use pinned::PinnedPeer;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, ServerConfig, ServerConnection, SupportedProtocolVersion,
};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;

const OWN_KEY: &str = "own.key";
const OWN_CERTIFICATE: &str = "own.crt";
const PEER_CERTIFICATE: &str = "peer.crt";
/// The only version of TLS that is spoken.
static VERSIONS: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// Name in each certificate; nobody reads it.
const NAME: &str = "holdfast";

/// Why keys cannot be made or used; the operator is at fault.
#[derive(Debug, Error)]
pub enum KeyError {
    /// A file cannot be read or written.
    #[error("{}: {source}; {}", path.display(), mend_of(source))]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Keys are there already; the peer's copy would not match new ones.
    #[error("{} exists: remove both hosts' keys first if you mean to replace them", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The private key can be read by others.
    #[error("{} can be read by others (mode {mode:o}): chmod 600 it", path.display())]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file does not hold what its name says.
    #[error("{} does not hold {expected} in PEM form: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The key and the certificate do not belong together.
    #[error(
        "the key and the certificate in {} cannot be used: {reason}; \
         copy the whole folder that `holdfast keys` made for this host",
        dir.display()
    )]
    Mismatch {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Both hosts would have the same certificate.
    #[error("{} holds this host's own certificate as the peer's: copy the other host's own.crt there", dir.display())]
    SameCertificate {
        /// The folder.
        dir: PathBuf,
    },
    /// Making a key failed.
    #[error("a key cannot be made: {0}")]
    Generation(String),
}

/// What TLS is made of, with AES-128-GCM before the others: all the guest's memory goes through it, and keys of 256 bits
/// take a quarter longer.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn mend_of(fault: &io::Error) -> &'static str {
    match fault.kind() {
        io::ErrorKind::NotFound => "make a pair's keys with `holdfast keys`, and name this host's folder",
        io::ErrorKind::PermissionDenied => "be root, or the user to whom the keys belong",
        _ => "name a folder that can be used",
    }
}

/// Makes the keys of a pair: one folder for each host. Existing keys are left alone.
///
/// # Errors
/// When a folder holds keys already or cannot be written.
pub fn make_pair(dir_a: &Path, dir_b: &Path) -> Result<(), KeyError> {
    for dir in [dir_a, dir_b] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| KeyError::File { path: dir.to_owned(), source })?;
        for name in [OWN_KEY, OWN_CERTIFICATE, PEER_CERTIFICATE] {
            let path = dir.join(name);
            if path.exists() {
                return Err(KeyError::Exists { path });
            }
        }
    }
    let (key_a, certificate_a) = generate()?;
    let (key_b, certificate_b) = generate()?;
    write_host(dir_a, &key_a, &certificate_a, &certificate_b)?;
    write_host(dir_b, &key_b, &certificate_b, &certificate_a)
}

fn generate() -> Result<(String, String), KeyError> {
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])
        .map_err(|error| KeyError::Generation(error.to_string()))?;
    Ok((made.key_pair.serialize_pem(), made.cert.pem()))
}

fn write_host(dir: &Path, key: &str, own: &str, peer: &str) -> Result<(), KeyError> {
    for (name, text, mode) in
        [(OWN_KEY, key, 0o600), (OWN_CERTIFICATE, own, 0o644), (PEER_CERTIFICATE, peer, 0o644)]
    {
        let path = dir.join(name);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|source| KeyError::File { path, source })?;
    }
    Ok(())
}

/// This host's side of a pair, ready for use.
#[derive(Clone)]
pub struct Identity {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// Loads this host's side of a pair from its folder.
    ///
    /// # Errors
    /// When a file is missing, malformed, open to others, or does not fit the rest.
    pub fn load(dir: &Path) -> Result<Self, KeyError> {
        let key_path = dir.join(OWN_KEY);
        let mode = fs::metadata(&key_path)
            .map_err(|source| KeyError::File { path: key_path.clone(), source })?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            return Err(KeyError::TooOpen { path: key_path, mode: mode & 0o7777 });
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|error| malformed(&key_path, "a private key", &error))?;
        let own = certificate(&dir.join(OWN_CERTIFICATE))?;
        let peer = certificate(&dir.join(PEER_CERTIFICATE))?;
        if own == peer {
            return Err(KeyError::SameCertificate { dir: dir.to_owned() });
        }
        Self::new(own, key, peer)
            .map_err(|error| KeyError::Mismatch { dir: dir.to_owned(), reason: error.to_string() })
    }

    fn new(
        own: CertificateDer<'static>,
        key: PrivateKeyDer<'static>,
        peer: CertificateDer<'static>,
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider());
        let pinned = Arc::new(PinnedPeer::new(peer, &provider));
        let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&pinned) as _)
            .with_client_auth_cert(vec![own.clone()], key.clone_key())?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)?
            .with_client_cert_verifier(pinned)
            .with_single_cert(vec![own], key)?;
        // Each session proves both keys anew.
        server.send_tls13_tickets = 0;
        Ok(Self { client: Arc::new(client), server: Arc::new(server) })
    }

    /// TLS of the host that dials, and of the host that was dialled: for what brings its own connections.
    #[must_use]
    pub fn configs(&self) -> (&ClientConfig, &ServerConfig) {
        (&self.client, &self.server)
    }

    /// The TLS side of the host that dials.
    ///
    /// # Errors
    /// When TLS does not take the settings, which is a bug.
    pub fn dialing(&self) -> Result<rustls::Connection, rustls::Error> {
        let name = ServerName::try_from(NAME).expect("the name is a valid host name");
        Ok(ClientConnection::new(Arc::clone(&self.client), name)?.into())
    }

    /// The TLS side of the host that was dialled.
    ///
    /// # Errors
    /// When TLS does not take the settings, which is a bug.
    pub fn accepting(&self) -> Result<rustls::Connection, rustls::Error> {
        Ok(ServerConnection::new(Arc::clone(&self.server))?.into())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, KeyError> {
    fs::read(path).map_err(|source| KeyError::File { path: path.to_owned(), source })
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, KeyError> {
    CertificateDer::from_pem_slice(&read(path)?).map_err(|error| malformed(path, "a certificate", &error))
}

fn malformed(path: &Path, expected: &'static str, error: &rustls::pki_types::pem::Error) -> KeyError {
    KeyError::Malformed { path: path.to_owned(), expected, reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn pair() -> (TempDir, PathBuf, PathBuf) {
        let dir = TempDir::new().expect("a folder");
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        make_pair(&a, &b).expect("keys are made");
        (dir, a, b)
    }

    fn copy(from: &Path, to: &Path) {
        fs::write(to, fs::read(from).unwrap()).unwrap();
    }

    #[test]
    fn each_host_gets_its_own_key_and_the_others_certificate() {
        let (_dir, a, b) = pair();
        assert_eq!(read(&a.join(OWN_CERTIFICATE)).unwrap(), read(&b.join(PEER_CERTIFICATE)).unwrap());
        assert_ne!(read(&a.join(OWN_KEY)).unwrap(), read(&b.join(OWN_KEY)).unwrap());
        let mode = fs::metadata(a.join(OWN_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        Identity::load(&a).expect("a's side loads");
        Identity::load(&b).expect("b's side loads");
    }

    #[test]
    fn existing_keys_are_not_replaced() {
        let (_dir, a, b) = pair();
        assert!(matches!(make_pair(&a, &b), Err(KeyError::Exists { .. })));
    }

    #[test]
    fn each_mistake_with_keys_has_its_own_words() {
        type Spoil = fn(&Path, &Path);
        let cases: [(Spoil, &str); 5] = [
            (|a, _| fs::remove_file(a.join(PEER_CERTIFICATE)).unwrap(), "holdfast keys"),
            (
                |a, _| fs::set_permissions(a.join(OWN_KEY), PermissionsExt::from_mode(0o640)).unwrap(),
                "chmod 600",
            ),
            (|a, _| fs::write(a.join(PEER_CERTIFICATE), "nonsense").unwrap(), "a certificate"),
            (|a, b| copy(&b.join(OWN_KEY), &a.join(OWN_KEY)), "cannot be used"),
            (|a, _| copy(&a.join(OWN_CERTIFICATE), &a.join(PEER_CERTIFICATE)), "this host's own certificate"),
        ];
        for (spoil, words) in cases {
            let (_dir, a, b) = pair();
            spoil(&a, &b);
            let fault = Identity::load(&a).expect_err("spoilt keys do not load").to_string();
            assert!(fault.contains(words), "{fault}");
        }
    }
}
