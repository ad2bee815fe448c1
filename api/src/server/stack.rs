//! The real stack behind the server: its handle, in the protocol's words.

use super::handle::{Answer, Named, Open, Opened, StackHandle};
use crate::protocol::{
    DatagramRequest, DtlsStat, EpochKeyBytes, EpochStat, KeyBytes, KeyStat, Reply, SocketOptions,
    SocketRequest, SocketStat, TcpStat,
};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::net::SocketAddr;
use uktls_record::dtls::DiscardKind;
use uktls_stack::dtls::{DtlsInfo, EpochInfo};
use uktls_stack::handle as stack;
use uktls_stack::ingress::sink::SinkRequest;
use uktls_stack::socket_info as info;
use uktls_stack::stack::Handle;
use uktls_stack::tcp;

impl StackHandle for Handle {
    fn open(&self, open: Open, uid: u32, answer: Answer<Result<Opened, Errno>>) {
        let reply: stack::Reply<stack::ClientEnd> = Box::new(move |end| {
            answer(end.map(|end| Opened {
                id: end.id.0,
                fd: end.fd,
                local: end.local,
            }))
        });
        match open {
            Open::Connect {
                remote,
                local,
                options,
            } => {
                let options = socket_options(&options);
                self.connect(
                    stack::ConnectRequest {
                        remote,
                        local,
                        options,
                        uid,
                    },
                    reply,
                );
            }
            Open::Listen {
                local,
                backlog,
                options,
            } => {
                let options = socket_options(&options);
                self.listen(
                    stack::ListenRequest {
                        local,
                        backlog,
                        options,
                        uid,
                    },
                    reply,
                );
            }
            Open::Udp { local, remote } => {
                self.bind_udp(stack::UdpRequest { local, remote, uid }, reply)
            }
        }
    }

    fn act(&self, id: u64, act: SocketRequest, answer: Answer<Result<Reply, Errno>>) {
        match operation(act) {
            Ok(operation) => {
                let reply: stack::Reply<stack::SocketReply> =
                    Box::new(move |done| answer(done.map(reply_of)));
                self.socket(stack::SocketId(id), operation, reply);
            }
            Err(errno) => answer(Err(errno)),
        }
    }

    fn receive_to(&self, id: u64, sink: SinkRequest, answer: Answer<Result<Reply, Errno>>) {
        let reply: stack::Reply<stack::SocketReply> =
            Box::new(move |done| answer(done.map(reply_of)));
        let operation = stack::SocketOp::ReceiveTo(Box::new(sink));
        self.socket(stack::SocketId(id), operation, reply);
    }

    fn attach_dtls(&self, id: u64, peer: SocketAddr, answer: Answer<Result<OwnedFd, Errno>>) {
        let reply: stack::Reply<stack::SocketReply> = Box::new(move |done| {
            answer(done.and_then(|reply| match reply {
                stack::SocketReply::End(end) => Ok(end),
                _ => Err(Errno::PROTO),
            }));
        });
        self.socket(
            stack::SocketId(id),
            stack::SocketOp::DtlsAttach { peer },
            reply,
        );
    }

    fn named(&self, cookie: u64) -> Option<Named> {
        self.named(cookie).map(|named| match named {
            stack::Named::Live { id, uid } => Named::Live { id: id.0, uid },
            stack::Named::Gone(epitaph) => Named::Gone(epitaph.reason),
        })
    }

    fn sockets(&self, answer: Answer<Vec<SocketStat>>) {
        self.sockets(Box::new(move |sockets| {
            answer(sockets.iter().map(socket_stat).collect())
        }));
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counters()
    }
}

fn socket_options(options: &SocketOptions) -> stack::SocketOptions {
    stack::SocketOptions {
        nodelay: options.nodelay,
        keepalive: options.keepalive,
        adaptive_records: options.adaptive_records,
        receive_buffer: usize::try_from(options.receive_buffer).unwrap_or(usize::MAX),
    }
}

fn operation(act: SocketRequest) -> Result<stack::SocketOp, Errno> {
    Ok(match act {
        SocketRequest::SetUlp => stack::SocketOp::SetUlp,
        SocketRequest::StageTx(keys) => stack::SocketOp::StageTx(keys.crypto_info()?),
        SocketRequest::RxFreeze => stack::SocketOp::RxFreeze,
        SocketRequest::RxBytes(bytes) => stack::SocketOp::RxBytes(bytes.into_vec()),
        SocketRequest::RxKeys(keys) => stack::SocketOp::RxKeys(Some(keys.crypto_info()?)),
        SocketRequest::RxThaw => stack::SocketOp::RxKeys(None),
        SocketRequest::GetTx => stack::SocketOp::GetKeys(stack::Direction::Tx),
        SocketRequest::GetRx => stack::SocketOp::GetKeys(stack::Direction::Rx),
        SocketRequest::SetMaxPayload(bytes) => stack::SocketOp::SetMaxPayload(bytes),
        SocketRequest::SetExpectNoPad(expect) => stack::SocketOp::SetExpectNoPad(expect),
        SocketRequest::SetNoDelay(nodelay) => stack::SocketOp::SetNoDelay(nodelay),
        SocketRequest::SetKeepAlive(idle) => stack::SocketOp::SetKeepAlive(idle),
        SocketRequest::SetAdaptiveRecords(adaptive) => {
            stack::SocketOp::SetAdaptiveRecords(adaptive)
        }
        SocketRequest::SetRecordEnds(on) => stack::SocketOp::SetRecordEnds(on),
        SocketRequest::SetAttached(attached) => stack::SocketOp::SetAttached(attached),
        SocketRequest::RxHold => stack::SocketOp::RxHold,
        SocketRequest::RxRelease => stack::SocketOp::RxRelease,
        SocketRequest::Info => stack::SocketOp::Info,
        SocketRequest::Abort => stack::SocketOp::Abort,
        SocketRequest::Datagram(act) => datagram_operation(act)?,
    })
}

fn datagram_operation(act: DatagramRequest) -> Result<stack::SocketOp, Errno> {
    Ok(match act {
        DatagramRequest::SetDontFragment(on) => stack::SocketOp::SetDontFragment(on),
        DatagramRequest::PathMtu => stack::SocketOp::PathMtu,
        DatagramRequest::Detach => stack::SocketOp::DtlsDetach,
        DatagramRequest::StageTx(keys) => stack::SocketOp::DtlsStageTx(keys.epoch_keys()?),
        DatagramRequest::RxKeys(keys) => stack::SocketOp::DtlsRxKeys(keys.epoch_keys()?),
        DatagramRequest::GetTx => stack::SocketOp::DtlsGetKeys(stack::Direction::Tx),
        DatagramRequest::GetRx => stack::SocketOp::DtlsGetKeys(stack::Direction::Rx),
        DatagramRequest::SetMtu(mtu) => stack::SocketOp::DtlsSetMtu(mtu),
        DatagramRequest::GiveBack { from, datagram } => stack::SocketOp::DtlsGiveBack {
            from,
            datagram: datagram.into_vec(),
        },
        DatagramRequest::Info => stack::SocketOp::DtlsInfo,
    })
}

fn reply_of(reply: stack::SocketReply) -> Reply {
    match reply {
        stack::SocketReply::EpochKeys(keys) => Reply::EpochKeys(EpochKeyBytes::from(&keys)),
        stack::SocketReply::Dtls(info) => Reply::Dtls(Box::new(dtls_stat(&info))),
        stack::SocketReply::PathMtu(mtu) => Reply::PathMtu(u32::try_from(mtu).unwrap_or(u32::MAX)),
        // No request of this kind is answered by an end; attaching has a way of its own.
        stack::SocketReply::End(_) => Reply::Error(Errno::PROTO.raw_os_error()),
        stack::SocketReply::Released(number) => Reply::Released(number),
        stack::SocketReply::Done => Reply::Done,
        stack::SocketReply::KeyId(id) => Reply::KeyId(id),
        stack::SocketReply::Keys(keys) => Reply::Keys(KeyBytes::from(&keys)),
        stack::SocketReply::Info(info) => Reply::Info(Box::new(socket_stat(&info))),
    }
}

fn dtls_stat(info: &DtlsInfo) -> DtlsStat {
    let epoch = |epoch: &EpochInfo| EpochStat {
        version: epoch.version.wire(),
        cipher: epoch.cipher.linux_id(),
        epoch: epoch.epoch,
        sequence: epoch.sequence,
    };
    DtlsStat {
        peer: info.peer,
        tx: info.tx.as_ref().map(epoch),
        rx: info.rx.as_ref().map(epoch),
        sealed: info.sealed,
        opened: info.opened,
        dropped: DiscardKind::ALL
            .into_iter()
            .zip(info.dropped)
            .map(|(kind, times)| (kind.name().to_owned(), times))
            .collect(),
        full: info.full,
        too_long: info.too_long,
    }
}

fn socket_stat(info: &info::SocketInfo) -> SocketStat {
    SocketStat {
        id: info.id,
        kind: info.kind,
        shard: u32::try_from(info.shard).unwrap_or(u32::MAX),
        uid: info.uid,
        local: info.local,
        remote: info.remote,
        state: info.state.map(|state| state_name(state).to_owned()),
        tcp: info.tcp.as_ref().map(tcp_stat),
        ulp: info.ulp,
        tx: info.tx.as_ref().map(key_stat),
        rx: info.rx.as_ref().map(key_stat),
        records_sent: info.records.0,
        records_received: info.records.1,
        reason: info.reason,
        memory: info.memory as u64,
    }
}

/// As `ss` names them.
fn state_name(state: tcp::State) -> &'static str {
    match state {
        tcp::State::SynSent => "SYN-SENT",
        tcp::State::SynReceived => "SYN-RECV",
        tcp::State::Established => "ESTAB",
        tcp::State::FinWait1 => "FIN-WAIT-1",
        tcp::State::FinWait2 => "FIN-WAIT-2",
        tcp::State::CloseWait => "CLOSE-WAIT",
        tcp::State::LastAck => "LAST-ACK",
        tcp::State::Closing => "CLOSING",
        tcp::State::TimeWait => "TIME-WAIT",
        tcp::State::Closed => "CLOSED",
    }
}

fn tcp_stat(stats: &tcp::Stats) -> TcpStat {
    TcpStat {
        cwnd: stats.cwnd,
        srtt_us: stats
            .srtt
            .map(|srtt| u64::try_from(srtt.as_micros()).unwrap_or(u64::MAX)),
        mss: stats.mss.into(),
        in_flight: stats.in_flight,
        segments_sent: stats.segments_out,
        segments_received: stats.segments_in,
        bytes_sent: stats.bytes_out,
        bytes_received: stats.bytes_in,
        retransmits: stats.retransmits,
    }
}

fn key_stat(keys: &info::KeyInfo) -> KeyStat {
    KeyStat {
        version: keys.version.wire(),
        cipher: keys.cipher.linux_id(),
        rec_seq: keys.rec_seq,
        records_left: keys.records_left,
    }
}
