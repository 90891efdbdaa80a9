//! Keys are changed before they have sealed too much: by QUIC itself, seen in the AEAD that it is given.

use crate::world::World;
use holdfast_bypass::Counter;
use holdfast_checkpoint::keys::make_pair;
use rustls::crypto::CryptoProvider;
use rustls::crypto::cipher::{AeadKey, Iv};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::quic::{Algorithm, HeaderProtectionKey, PacketKey, Tag};
use rustls::{ClientConfig, Error, RootCertStore, ServerConfig, SupportedCipherSuite, Tls13CipherSuite};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Packets that a key may seal. QUIC changes it this many before.
const LIMIT: u64 = MARGIN + 500;
const MARGIN: u64 = 10_000;
/// After three probe timeouts no packet is expected that was sealed with an earlier key.
const FORGOTTEN: Duration = Duration::from_millis(50);

/// AES-128-GCM whose keys are counted and are worn out soon.
struct Counting {
    algorithm: &'static dyn Algorithm,
    made: Arc<AtomicU64>,
    most_sealed: Arc<AtomicU64>,
}

struct CountingKey {
    key: Box<dyn PacketKey>,
    sealed: AtomicU64,
    most_sealed: Arc<AtomicU64>,
}

impl Algorithm for Counting {
    fn packet_key(&self, key: AeadKey, iv: Iv) -> Box<dyn PacketKey> {
        self.made.fetch_add(1, Ordering::Relaxed);
        let (key, most_sealed) = (self.algorithm.packet_key(key, iv), Arc::clone(&self.most_sealed));
        Box::new(CountingKey { key, sealed: AtomicU64::new(0), most_sealed })
    }

    fn header_protection_key(&self, key: AeadKey) -> Box<dyn HeaderProtectionKey> {
        self.algorithm.header_protection_key(key)
    }

    fn aead_key_len(&self) -> usize {
        self.algorithm.aead_key_len()
    }
}

impl PacketKey for CountingKey {
    fn encrypt_in_place(&self, number: u64, header: &[u8], payload: &mut [u8]) -> Result<Tag, Error> {
        let sealed = self.sealed.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_sealed.fetch_max(sealed, Ordering::Relaxed);
        self.key.encrypt_in_place(number, header, payload)
    }

    fn decrypt_in_place<'a>(
        &self,
        number: u64,
        header: &[u8],
        payload: &'a mut [u8],
    ) -> Result<&'a [u8], Error> {
        self.key.decrypt_in_place(number, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.key.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        LIMIT
    }

    fn integrity_limit(&self) -> u64 {
        self.key.integrity_limit()
    }
}

/// TLS with AES-128-GCM alone, as [`Counting`] has it; what its keys count.
fn provider() -> (Arc<CryptoProvider>, Arc<AtomicU64>, Arc<AtomicU64>) {
    let SupportedCipherSuite::Tls13(suite) = rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
    let (made, most_sealed) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let algorithm = suite.quic.expect("ring has QUIC");
    let counting = Counting { algorithm, made: Arc::clone(&made), most_sealed: Arc::clone(&most_sealed) };
    let suite = Tls13CipherSuite {
        common: rustls::crypto::CipherSuiteCommon { ..suite.common },
        quic: Some(Box::leak(Box::new(counting))),
        ..*suite
    };
    let suites = vec![SupportedCipherSuite::Tls13(Box::leak(Box::new(suite)))];
    let provider = CryptoProvider { cipher_suites: suites, ..rustls::crypto::ring::default_provider() };
    (Arc::new(provider), made, most_sealed)
}

/// Both halves of TLS for the host whose keys are in `dir`; whom it talks to is not what is tried here.
fn configs(dir: &Path, provider: &Arc<CryptoProvider>) -> (ClientConfig, ServerConfig) {
    let certificate = |name| CertificateDer::from_pem_file(dir.join(name)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(certificate("peer.crt")).expect("the peer's certificate");
    let versions = &[&rustls::version::TLS13];
    let client = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::from_pem_file(dir.join("own.key")).expect("a key");
    let server = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(versions)
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate("own.crt")], key)
        .expect("a key and its certificate");
    (client, server)
}

#[test]
fn keys_are_changed_before_they_are_worn_out_and_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a folder");
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    make_pair(&a, &b).expect("keys");
    let (provider, made, most_sealed) = provider();
    let [a, b] = [a, b].map(|dir| configs(&dir, &provider));
    let mut world = World::of(1, [(&a.0, &a.1), (&b.0, &b.1)], false, 1500);
    world.connect();
    let (before, patience) = (made.load(Ordering::Relaxed), Duration::from_secs(60));
    for records in (4..=400).step_by(4) {
        world.send_all(0, (0, records), patience);
        world.run(patience, |world| world.sides[1].received == world.sides[0].sent);
        // Keys are not changed again before those of the last change are forgotten.
        let until = world.now + FORGOTTEN;
        world.run(patience, |world| world.now >= until);
    }
    assert!(world.sides.iter().all(|side| side.lost.is_none()));
    let sent = world.sides[0].port.counters().get(Counter::FramesOut);
    assert!(sent > LIMIT, "{sent} frames do not wear out a key");
    // Each of both ends makes a pair of keys ahead at each change.
    let changes = (made.load(Ordering::Relaxed) - before) / 4;
    let most = most_sealed.load(Ordering::Relaxed);
    assert!(
        changes > 20 && most < LIMIT,
        "{changes} changes for {sent} frames, of which one key sealed {most}"
    );
}
