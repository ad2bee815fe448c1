//! Counters of the whole stack: Linux's `tls_stat` names where they exist, then the stack's own.
//!
//! Plain relaxed atomics, shared by all shards; nothing is decided by them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident = $name:literal,)*) => {
        /// The counters. Each field's doc says what it counts.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$doc])* pub $field: Counter,)*
        }

        impl Counters {
            /// All names and values, in a fixed order: the 17 of `/proc/net/tls_stat` first.
            pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
                vec![$(($name, self.$field.get()),)*]
            }
        }
    };
}

counters! {
    /// Sockets with keys for sending in force.
    curr_tx = "TlsCurrTxSw",
    /// Sockets with keys for receiving in force.
    curr_rx = "TlsCurrRxSw",
    /// Always 0: there is no NIC below.
    curr_tx_device = "TlsCurrTxDevice",
    /// Always 0.
    curr_rx_device = "TlsCurrRxDevice",
    /// Times that keys for sending were set on a socket that had none.
    tx = "TlsTxSw",
    /// The same for receiving.
    rx = "TlsRxSw",
    /// Always 0.
    tx_device = "TlsTxDevice",
    /// Always 0.
    rx_device = "TlsRxDevice",
    /// Records that did not open.
    decrypt_error = "TlsDecryptError",
    /// Always 0.
    rx_device_resync = "TlsRxDeviceResync",
    /// Always 0: nothing is opened on the expectation that there is no padding.
    decrypt_retry = "TlsDecryptRetry",
    /// Always 0, for the same reason.
    rx_no_pad_violation = "TlsRxNoPadViolation",
    /// Keys for receiving replaced.
    rx_rekey_ok = "TlsRxRekeyOk",
    /// Replacements that were refused.
    rx_rekey_error = "TlsRxRekeyError",
    /// Keys for sending replaced.
    tx_rekey_ok = "TlsTxRekeyOk",
    /// Replacements that were refused.
    tx_rekey_error = "TlsTxRekeyError",
    /// KeyUpdate messages received.
    rx_rekey_received = "TlsRxRekeyReceived",
    /// Records sealed.
    records_sealed = "RecordsSealed",
    /// Records opened.
    records_opened = "RecordsOpened",
    /// IP packets received.
    packets_in = "PacketsIn",
    /// IP packets (or super-segments) sent.
    packets_out = "PacketsOut",
    /// TCP segments sent, super-segments counted as what they are cut into.
    segments_out = "SegmentsOut",
    /// TCP payload bytes sent, retransmissions included.
    tcp_bytes_out = "TcpBytesOut",
    /// TCP payload bytes received.
    tcp_bytes_in = "TcpBytesIn",
    /// TCP segments sent again.
    retransmits = "Retransmits",
    /// Packets that the device did not take.
    device_full = "DropDeviceFull",
    /// Packets that are no well-formed IP, TCP, UDP or ICMP.
    malformed = "DropMalformed",
    /// Packets with a wrong checksum.
    bad_checksum = "DropChecksum",
    /// Packets for an address that is not the stack's.
    not_ours = "DropNotOurs",
    /// Packets that another shard's queue had no room for.
    forward_full = "DropForwardFull",
    /// SYNs that found the backlog full.
    backlog_full = "DropBacklogFull",
    /// SYNs answered by a cookie, the backlog being full of half-open connections.
    syncookies_sent = "SyncookiesSent",
    /// Connections that a cookie brought back.
    syncookies_received = "SyncookiesRecv",
    /// Acknowledgements that brought no genuine cookie back where one was possible.
    syncookies_failed = "SyncookiesFailed",
    /// Datagrams that found their socket's end full.
    udp_full = "DropUdpFull",
    /// Datagrams not sent because they are longer than the path's MTU and may not be fragmented.
    udp_too_long = "DropUdpTooLong",
    /// DTLS records sealed.
    dtls_sealed = "DtlsSealed",
    /// DTLS records opened.
    dtls_opened = "DtlsOpened",
    /// DTLS records dropped: not a record, or of an impossible length.
    dtls_malformed = "DropDtlsMalformed",
    /// DTLS records dropped: their epoch's keys are not here.
    dtls_wrong_epoch = "DropDtlsWrongEpoch",
    /// DTLS records dropped: seen before.
    dtls_replayed = "DropDtlsReplayed",
    /// DTLS records dropped: left of the replay window.
    dtls_too_old = "DropDtlsTooOld",
    /// DTLS records dropped: they do not verify.
    dtls_unverified = "DropDtlsUnverified",
    /// DTLS records dropped: too many of their epoch did not verify.
    dtls_key_exhausted = "DropDtlsKeyExhausted",
    /// Fragments and partial datagrams that were given up.
    fragments_dropped = "DropFragments",
    /// Resets sent for segments that belong to no connection.
    resets_out = "ResetsOut",
    /// Connections accepted.
    accepted = "Accepted",
    /// Connections opened.
    connected = "Connected",
}

/// One counter.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Counts `n` fewer (for the `TlsCurr…` gauges).
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
