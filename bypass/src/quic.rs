//! How QUIC is set for a private link between two hosts.

use crate::congestion::OwnLink;
use quinn_proto::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    AckFrequencyConfig, ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TransportConfig, VarInt,
};
use std::sync::Arc;
use std::time::Duration;

/// A path from which nothing came for so long is lost.
const SILENCE: Duration = Duration::from_millis(750);
/// A path that has nothing to say says so this often.
const KEEP_ALIVE: Duration = Duration::from_millis(150);
/// What is assumed of the way before it was measured.
const FIRST_RTT: Duration = Duration::from_millis(20);
/// Packets that may overtake one that is not taken for lost yet.
const OVERTAKEN: u32 = 16;
/// How long an acknowledgement may be kept back, and after how many packets not.
const ACK_DELAY: Duration = Duration::from_millis(2);
const ACK_EVERY: u32 = 8;
/// Bytes of a stream that a receiver takes ahead of its reader.
const STREAM_WINDOW: u32 = 8 << 20;
/// Bulk bytes that may be written and not acknowledged.
pub(crate) const BULK_WINDOW: u64 = 8 << 20;
/// What urgent records may have beyond it, so that they never wait for bulk.
pub(crate) const URGENT_ROOM: u64 = 2 << 20;
/// Bytes of handshake that may come out of order.
const CRYPTO_BUFFER: usize = 16 << 10;
/// What both say that they speak.
const ALPN: &[u8] = b"holdfast-bypass/1";

/// Datagrams of `datagram_max` bytes: both ends are configured for it, nothing is probed.
fn transport(datagram_max: u16) -> Arc<TransportConfig> {
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_EVERY)).max_ack_delay(Some(ACK_DELAY));
    let mut transport = TransportConfig::default();
    transport
        .initial_mtu(datagram_max)
        .min_mtu(datagram_max)
        .mtu_discovery_config(None)
        .initial_rtt(FIRST_RTT)
        .packet_threshold(OVERTAKEN)
        .max_idle_timeout(Some(IdleTimeout::try_from(SILENCE).expect("less than 2^62 ms")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(2))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(BULK_WINDOW + URGENT_ROOM)
        .datagram_receive_buffer_size(None)
        .crypto_buffer_size(CRYPTO_BUFFER)
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(OwnLink));
    Arc::new(transport)
}

pub(crate) fn endpoint(datagram_max: u16) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(datagram_max).expect("at least 1200, as the MTU was checked");
    config
}

/// The side that opens paths.
pub(crate) fn client(
    tls: &rustls::ClientConfig,
    datagram_max: u16,
) -> Result<ClientConfig, NoInitialCipherSuite> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    config.transport_config(transport(datagram_max));
    Ok(config)
}

/// The side that awaits them.
pub(crate) fn server(
    tls: &rustls::ServerConfig,
    datagram_max: u16,
) -> Result<ServerConfig, NoInitialCipherSuite> {
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    config.transport_config(transport(datagram_max)).migration(false);
    Ok(config)
}
