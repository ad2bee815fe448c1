//! A stack without TCP: connections between its own sockets, with real marks and real TLS records.
//!
//! Each TCP socket has two threads: one takes bytes and marks off the client's end and puts plain bytes or sealed records
//! on the wire, the other takes the wire's bytes, opens them once keys are set, and writes plain bytes and marks to the
//! client's end. The wire is a queue of byte strings.

use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType, shutdown, sockopt};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use uktls::protocol::{KeyBytes, KeyStat, Reason, Reply, SocketKind, SocketRequest, SocketStat};
use uktls::server::{Answer, Named, Open, Opened, StackHandle};
use uktls_record::{ContentType, CryptoInfo, Opener, ProtocolVersion, Sealer};
use uktls_stack::address::{self, ADDRESS_LEN};
use uktls_stack::ingress::sink::SinkRequest;
use uktls_stack::mark::{MARK_LEN, Mark, bytes_behind, bytes_in_hand};

mod wire;

use wire::{Sender, ends, hung_up, nap};
pub use wire::{receive, send};

#[derive(Clone, Default, Debug)]
pub struct MockStack(Arc<Mutex<Inner>>);

#[derive(Default, Debug)]
struct Inner {
    last_id: u64,
    last_port: u16,
    sockets: BTreeMap<u64, Socket>,
    cookies: HashMap<u64, u64>,
    gone: HashMap<u64, Reason>,
    /// Connections to these are never answered.
    pub silent: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Socket {
    uid: u32,
    cookie: u64,
    local: SocketAddr,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Listener(Arc<OwnedFd>),
    Udp {
        end: Arc<OwnedFd>,
        remote: Option<SocketAddr>,
    },
    Tcp(Arc<Tcp>),
}

#[derive(Debug)]
struct Tcp {
    end: OwnedFd,
    remote: SocketAddr,
    state: Mutex<TcpState>,
}

#[derive(Debug, Default)]
struct TcpState {
    established: bool,
    ulp: bool,
    staged: Vec<CryptoInfo>,
    /// How many of the staged keys their marks have put in force.
    in_force: usize,
    sealer: Option<Sealer>,
    opener: Option<Opener>,
    wire: VecDeque<u8>,
    fin: bool,
    frozen: bool,
    expired: bool,
    handed_back: Vec<u8>,
    /// Opened and not yet written to the client.
    out: VecDeque<Piece>,
    closed_notify: bool,
    reason: Option<Reason>,
    /// Sizes of the records sealed, in order.
    sealed: Vec<(u8, usize)>,
    over: bool,
    refuse_keys: bool,
    /// Ends for this reason as soon as it is asked for anything.
    fragile: Option<Reason>,
    /// Files wait.
    stalled: bool,
}

#[derive(Debug)]
struct Piece {
    bytes: Vec<u8>,
    marked: bool,
}

impl MockStack {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no test panics with it")
    }

    /// Never answer connections to `address`.
    pub fn silence(&self, address: SocketAddr) {
        self.lock().silent.push(address);
    }

    fn tcp(&self, local: SocketAddr, remote: SocketAddr) -> Arc<Tcp> {
        self.lock()
            .sockets
            .values()
            .find_map(|socket| match &socket.kind {
                Kind::Tcp(tcp) if socket.local == local && tcp.remote == remote => {
                    Some(Arc::clone(tcp))
                }
                _ => None,
            })
            .expect("a live connection")
    }

    /// Content type and plaintext length of each record the socket sealed.
    pub fn sealed(&self, stream: &uktls::TcpStream) -> Vec<(u8, usize)> {
        let tcp = self.of(stream);
        let state = tcp.state.lock().expect("sound");
        state.sealed.clone()
    }

    fn of(&self, stream: &uktls::TcpStream) -> Arc<Tcp> {
        self.tcp(
            stream.local_addr().expect("open"),
            stream.peer_addr().expect("open"),
        )
    }

    /// These bytes arrive for the stream, as if its peer had sent them.
    pub fn inject(&self, stream: &uktls::TcpStream, bytes: &[u8]) {
        self.of(stream)
            .state
            .lock()
            .expect("sound")
            .wire
            .extend(bytes);
    }

    /// The socket's creator is somebody else.
    pub fn give_away(&self, stream: &uktls::TcpStream, uid: u32) {
        let local = stream.local_addr().expect("open");
        let mut inner = self.lock();
        let of =
            |socket: &&mut Socket| socket.local == local && matches!(socket.kind, Kind::Tcp(_));
        inner
            .sockets
            .values_mut()
            .find(of)
            .expect("a live connection")
            .uid = uid;
    }

    /// The connection ends just before the next request about it is carried out.
    pub fn end_when_asked(&self, stream: &uktls::TcpStream, reason: Reason) {
        self.of(stream).state.lock().expect("sound").fragile = Some(reason);
    }

    /// Files that the stream sends wait, or go on.
    pub fn stall(&self, stream: &uktls::TcpStream, stalled: bool) {
        self.of(stream).state.lock().expect("sound").stalled = stalled;
    }

    /// The next keys for receiving are answered by EINVAL.
    pub fn refuse_keys(&self, stream: &uktls::TcpStream) {
        self.of(stream).state.lock().expect("sound").refuse_keys = true;
    }

    /// The connection ends at once for a reason.
    pub fn break_off(&self, stream: &uktls::TcpStream, reason: Reason) {
        self.end(&self.of(stream), reason);
    }

    fn end(&self, tcp: &Arc<Tcp>, reason: Reason) {
        let mut inner = self.lock();
        let id = inner
            .sockets
            .iter()
            .find_map(|(id, socket)| match &socket.kind {
                Kind::Tcp(other) if Arc::ptr_eq(other, tcp) => Some(*id),
                _ => None,
            });
        if let Some(socket) = id.and_then(|id| inner.sockets.remove(&id)) {
            inner.gone.insert(socket.cookie, reason);
        }
        drop(inner);
        tcp.state.lock().expect("sound").over = true;
        let _ = shutdown(&tcp.end, Shutdown::Both);
    }

    /// The daemon is gone with everything it held.
    pub fn die(&self) {
        let sockets = std::mem::take(&mut self.lock().sockets);
        self.lock().gone.clear();
        for socket in sockets.into_values() {
            match socket.kind {
                Kind::Tcp(tcp) => {
                    tcp.state.lock().expect("sound").over = true;
                    let _ = shutdown(&tcp.end, Shutdown::Both);
                }
                Kind::Listener(end) | Kind::Udp { end, .. } => {
                    let _ = shutdown(&end, Shutdown::Both);
                }
            }
        }
    }

    pub fn live(&self) -> usize {
        self.lock().sockets.len()
    }

    fn bind(inner: &mut Inner, mut local: SocketAddr) -> Result<SocketAddr, Errno> {
        if local.port() == 0 {
            inner.last_port += 1;
            local.set_port(40_000 + inner.last_port);
        }
        let taken = inner
            .sockets
            .values()
            .any(|s| s.local == local && !matches!(s.kind, Kind::Tcp(_)));
        if taken {
            Err(Errno::ADDRINUSE)
        } else {
            Ok(local)
        }
    }

    fn add(
        inner: &mut Inner,
        uid: u32,
        theirs: &OwnedFd,
        local: SocketAddr,
        kind: Kind,
    ) -> Result<u64, Errno> {
        let cookie = sockopt::socket_cookie(theirs)?;
        inner.last_id += 1;
        let id = inner.last_id;
        inner.cookies.insert(cookie, id);
        inner.sockets.insert(
            id,
            Socket {
                uid,
                cookie,
                local,
                kind,
            },
        );
        Ok(id)
    }

    fn listen(&self, local: SocketAddr, uid: u32) -> Result<Opened, Errno> {
        let mut inner = self.lock();
        let local = MockStack::bind(&mut inner, local)?;
        let (ours, fd) = ends(SocketType::SEQPACKET)?;
        let id = MockStack::add(&mut inner, uid, &fd, local, Kind::Listener(Arc::new(ours)))?;
        Ok(Opened { id, fd, local })
    }

    fn udp(
        &self,
        local: SocketAddr,
        remote: Option<SocketAddr>,
        uid: u32,
    ) -> Result<Opened, Errno> {
        let mut inner = self.lock();
        let local = MockStack::bind(&mut inner, local)?;
        let (ours, fd) = ends(SocketType::SEQPACKET)?;
        let end = Arc::new(ours);
        let id = MockStack::add(
            &mut inner,
            uid,
            &fd,
            local,
            Kind::Udp {
                end: Arc::clone(&end),
                remote,
            },
        )?;
        let stack = self.clone();
        thread::spawn(move || {
            let mut message = vec![0; 70_000];
            while let Ok((len @ 1.., _)) = receive(end.as_fd(), &mut message, RecvFlags::empty()) {
                let Some(to) = address::decode(&message[..len]) else {
                    continue;
                };
                message[..ADDRESS_LEN].copy_from_slice(&address::encode(local));
                for socket in stack.lock().sockets.values() {
                    if let Kind::Udp { end, remote } = &socket.kind
                        && socket.local == to
                        && remote.is_none_or(|remote| remote == local)
                    {
                        let _ = rustix::net::send(
                            end,
                            &message[..len],
                            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
                        );
                    }
                }
            }
        });
        Ok(Opened { id, fd, local })
    }

    fn connect(
        &self,
        remote: SocketAddr,
        local: Option<SocketAddr>,
        uid: u32,
    ) -> Result<Opened, Errno> {
        let mut inner = self.lock();
        let unbound = SocketAddr::new("10.77.0.1".parse().expect("a literal"), 0);
        let local = MockStack::bind(&mut inner, local.unwrap_or(unbound))?;
        let (ours, fd) = ends(SocketType::STREAM)?;
        // Not writable before it stands.
        let mut filler = 0;
        while let Ok(sent) = rustix::net::send(&fd, &[0; 4096], SendFlags::DONTWAIT) {
            filler += sent;
        }
        if inner.silent.contains(&remote) {
            let tcp = Arc::new(Tcp {
                end: ours,
                remote,
                state: Mutex::default(),
            });
            let id = MockStack::add(&mut inner, uid, &fd, local, Kind::Tcp(tcp))?;
            return Ok(Opened { id, fd, local });
        }
        let listener = inner
            .sockets
            .values()
            .find_map(|socket| match &socket.kind {
                Kind::Listener(end) if socket.local == remote => {
                    Some((Arc::clone(end), socket.uid))
                }
                _ => None,
            });
        let Some((listener, their_uid)) = listener else {
            inner
                .gone
                .insert(sockopt::socket_cookie(&fd)?, Reason::Refused);
            return Ok(Opened { id: 0, fd, local });
        };
        let mut waste = vec![0; filler];
        let mut at = 0;
        while at < filler {
            at += receive(ours.as_fd(), &mut waste[at..], RecvFlags::empty())?.0;
        }
        let (their_ours, their_fd) = ends(SocketType::STREAM)?;
        let established = || {
            Mutex::new(TcpState {
                established: true,
                ..TcpState::default()
            })
        };
        let near = Arc::new(Tcp {
            end: ours,
            remote,
            state: established(),
        });
        let far = Arc::new(Tcp {
            end: their_ours,
            remote: local,
            state: established(),
        });
        let id = MockStack::add(&mut inner, uid, &fd, local, Kind::Tcp(Arc::clone(&near)))?;
        MockStack::add(
            &mut inner,
            their_uid,
            &their_fd,
            remote,
            Kind::Tcp(Arc::clone(&far)),
        )?;
        drop(inner);
        for (from, to) in [(&near, &far), (&far, &near)] {
            let (stack, from, to) = (self.clone(), Arc::clone(from), Arc::clone(to));
            thread::spawn(move || stack.send_half(&from, &to));
        }
        for tcp in [near, far] {
            let stack = self.clone();
            thread::spawn(move || stack.receive_half(&tcp));
        }
        let mut addresses = address::encode(remote).to_vec();
        addresses.extend(address::encode(local));
        send(
            listener.as_fd(),
            &addresses,
            &[their_fd.as_fd()],
            SendFlags::empty(),
        )?;
        Ok(Opened { id, fd, local })
    }

    /// Client's end → wire.
    fn send_half(&self, from: &Arc<Tcp>, to: &Arc<Tcp>) {
        let mut buffer = vec![0; 64 * 1024];
        let mut sender = Sender {
            from,
            to,
            record: Vec::new(),
            open: false,
            typed: None,
            skip: 0,
        };
        loop {
            let (len, fds) = match receive(from.end.as_fd(), &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) => break,
                Ok(received) => received,
                Err(_) => {
                    // Closed with unread data: the peer gets a RST.
                    self.end(from, Reason::Reset);
                    return self.end(to, Reason::Reset);
                }
            };
            if fds.is_empty() {
                sender.bytes(&buffer[..len]);
                continue;
            }
            let in_hand = bytes_in_hand(buffer[len - 1]);
            let data = len - in_hand;
            let mut mark = [0; MARK_LEN];
            mark[..in_hand].copy_from_slice(&buffer[data..len]);
            let mut at = in_hand;
            while at < MARK_LEN {
                at += receive(from.end.as_fd(), &mut mark[at..], RecvFlags::empty())
                    .expect("a whole mark")
                    .0;
            }
            sender.bytes(&buffer[..data]);
            sender.mark(Mark::decode(&mark).expect("a mark"), &fds);
        }
        if from.state.lock().expect("sound").over {
            return;
        }
        to.state.lock().expect("sound").fin = true;
        if hung_up(&from.end) && to.state.lock().expect("sound").over {
            self.end(from, Reason::CleanEnd);
        }
    }

    /// Wire → client's end.
    fn receive_half(&self, tcp: &Arc<Tcp>) {
        loop {
            let mut state = tcp.state.lock().expect("sound");
            if state.over {
                return;
            }
            state.open();
            let Some(piece) = state.out.front_mut() else {
                let ended = state.fin && !state.frozen && state.reason.is_none();
                if ended {
                    let clean =
                        state.wire.is_empty() && (state.opener.is_none() || state.closed_notify);
                    state.reason = Some(if clean {
                        Reason::CleanEnd
                    } else {
                        Reason::Truncated
                    });
                    let _ = shutdown(&tcp.end, Shutdown::Write);
                }
                drop(state);
                nap(&tcp.end, PollFlags::empty());
                continue;
            };
            let token = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)
                .expect("a descriptor");
            let fds: &[BorrowedFd<'_>] = if piece.marked { &[token.as_fd()] } else { &[] };
            match send(tcp.end.as_fd(), &piece.bytes, fds, SendFlags::DONTWAIT) {
                Ok(sent) => {
                    piece.bytes.drain(..sent);
                    if piece.bytes.is_empty() {
                        state.out.pop_front();
                    }
                }
                Err(Errno::AGAIN) => {
                    drop(state);
                    nap(&tcp.end, PollFlags::OUT);
                }
                // The client reads no more: discard.
                Err(_) => state.out.clear(),
            }
        }
    }
}

impl TcpState {
    /// Moves what can be delivered from the wire to the client.
    fn open(&mut self) {
        if self.frozen || self.expired || self.reason.is_some() || self.out.len() > 64 {
            return;
        }
        let Some(opener) = &mut self.opener else {
            let take = self.wire.len().min(32 * 1024);
            if take > 0 {
                let bytes = self.wire.drain(..take).collect();
                self.out.push_back(Piece {
                    bytes,
                    marked: false,
                });
            }
            return;
        };
        let Some(header) = self
            .wire
            .iter()
            .copied()
            .take(5)
            .collect::<Vec<u8>>()
            .try_into()
            .ok()
        else {
            return;
        };
        let mut fail = None;
        match opener.parse_header(&header) {
            Ok(header) if self.wire.len() < header.record_len() => return,
            Ok(header) => {
                let mut record: Vec<u8> = self.wire.drain(..header.record_len()).collect();
                match opener.open_in_place(&mut record) {
                    Ok(opened) => {
                        let plaintext = record[opened.plaintext].to_vec();
                        if opened.content_type != ContentType::APPLICATION_DATA {
                            let mark = Mark::Control {
                                content_type: opened.content_type.0,
                                len: plaintext.len() as u32,
                            };
                            self.out.push_back(Piece {
                                bytes: mark.encode().to_vec(),
                                marked: true,
                            });
                            self.closed_notify |=
                                opened.content_type == ContentType::ALERT && plaintext == [1, 0];
                            self.expired = opened.content_type == ContentType::HANDSHAKE
                                && opener.version() == ProtocolVersion::Tls13
                                && plaintext.first() == Some(&24);
                        }
                        let mut plaintext = plaintext;
                        if opened.content_type != ContentType::APPLICATION_DATA {
                            plaintext.resize(bytes_behind(plaintext.len()), 0);
                        }
                        if !plaintext.is_empty() {
                            self.out.push_back(Piece {
                                bytes: plaintext,
                                marked: false,
                            });
                        }
                    }
                    Err(error) => fail = Some(error.errno()),
                }
            }
            Err(error) => fail = Some(error.errno()),
        }
        if let Some(errno) = fail {
            self.out.push_back(Piece {
                bytes: Mark::Error { errno }.encode().to_vec(),
                marked: true,
            });
            self.reason = Some(Reason::BadRecord(errno));
        }
    }

    /// The keys for sending; staged ones count before their mark has come.
    fn tx_keys(&self) -> Option<CryptoInfo> {
        let staged = self
            .staged
            .last()
            .filter(|_| self.staged.len() > self.in_force);
        staged
            .cloned()
            .or_else(|| self.sealer.as_ref().map(Sealer::crypto_info))
    }

    fn thaw(&mut self) {
        for byte in self.handed_back.drain(..).rev() {
            self.wire.push_front(byte);
        }
        self.frozen = false;
    }
}

impl StackHandle for MockStack {
    fn open(&self, open: Open, uid: u32, answer: Answer<Result<Opened, Errno>>) {
        answer(match open {
            Open::Connect { remote, local, .. } => self.connect(remote, local, uid),
            Open::Listen { local, .. } => self.listen(local, uid),
            Open::Udp { local, remote } => self.udp(local, remote, uid),
        });
    }

    fn act(&self, id: u64, act: SocketRequest, answer: Answer<Result<Reply, Errno>>) {
        // Answered from another thread, as by a stack.
        let stack = self.clone();
        thread::spawn(move || answer(stack.act_now(id, act)));
    }

    fn receive_to(&self, _: u64, _: SinkRequest, answer: Answer<Result<Reply, Errno>>) {
        answer(Err(Errno::OPNOTSUPP));
    }

    fn attach_dtls(&self, _: u64, _: SocketAddr, answer: Answer<Result<OwnedFd, Errno>>) {
        answer(Err(Errno::OPNOTSUPP));
    }

    fn named(&self, cookie: u64) -> Option<Named> {
        let inner = self.lock();
        if let Some(reason) = inner.gone.get(&cookie) {
            return Some(Named::Gone(*reason));
        }
        let id = *inner.cookies.get(&cookie)?;
        inner.sockets.get(&id).map(|socket| Named::Live {
            id,
            uid: socket.uid,
        })
    }

    fn sockets(&self, answer: Answer<Vec<SocketStat>>) {
        answer(
            self.lock()
                .sockets
                .iter()
                .map(|(id, socket)| stat(*id, socket))
                .collect(),
        );
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("TlsCurrTxSw", 3),
            ("TlsDecryptError", 1),
            ("SegmentsSent", 9),
        ]
    }
}

impl MockStack {
    fn act_now(&self, id: u64, act: SocketRequest) -> Result<Reply, Errno> {
        let mut inner = self.lock();
        let socket = inner.sockets.get_mut(&id).ok_or(Errno::BADF)?;
        if let Kind::Tcp(tcp) = &socket.kind {
            let tcp = Arc::clone(tcp);
            let fragile = tcp.state.lock().map_err(|_| Errno::IO)?.fragile;
            if let Some(reason) = fragile {
                drop(inner);
                self.end(&tcp, reason);
                return Err(Errno::BADF);
            }
        }
        if matches!(act, SocketRequest::Info) {
            return Ok(Reply::Info(Box::new(stat(id, socket))));
        }
        let Kind::Tcp(tcp) = &socket.kind else {
            return Err(Errno::OPNOTSUPP);
        };
        let tcp = Arc::clone(tcp);
        drop(inner);
        let mut state = tcp.state.lock().map_err(|_| Errno::IO)?;
        match act {
            SocketRequest::SetUlp if !state.established => Err(Errno::NOTCONN),
            SocketRequest::SetUlp if state.ulp => Err(Errno::EXIST),
            SocketRequest::SetUlp => {
                state.ulp = true;
                Ok(Reply::Done)
            }
            SocketRequest::Abort => {
                drop(state);
                self.end(&tcp, Reason::Aborted);
                Ok(Reply::Done)
            }
            SocketRequest::SetNoDelay(_)
            | SocketRequest::SetKeepAlive(_)
            | SocketRequest::SetRecordEnds(_)
            | SocketRequest::SetAdaptiveRecords(_) => Ok(Reply::Done),
            SocketRequest::Datagram(_) | SocketRequest::SetAttached(_) => Err(Errno::OPNOTSUPP),
            _ if !state.ulp => Err(Errno::NOPROTOOPT),
            SocketRequest::StageTx(keys) => {
                let keys = keys.crypto_info()?;
                if state
                    .staged
                    .last()
                    .is_some_and(|old| old.version() == ProtocolVersion::Tls12)
                {
                    return Err(Errno::BUSY);
                }
                state.staged.push(keys);
                Ok(Reply::KeyId(state.staged.len() as u32 - 1))
            }
            SocketRequest::RxFreeze => {
                // Freezing answers once nothing more of the plain bytes is on its way.
                state.frozen = true;
                let out: Vec<u8> = state.out.drain(..).flat_map(|piece| piece.bytes).collect();
                for byte in out.into_iter().rev() {
                    state.wire.push_front(byte);
                }
                Ok(Reply::Done)
            }
            SocketRequest::RxBytes(bytes) => {
                state.handed_back.extend(bytes.into_vec());
                Ok(Reply::Done)
            }
            SocketRequest::RxThaw => {
                state.thaw();
                Ok(Reply::Done)
            }
            SocketRequest::RxKeys(_) if std::mem::take(&mut state.refuse_keys) => Err(Errno::INVAL),
            SocketRequest::RxKeys(keys) => {
                let keys = keys.crypto_info()?;
                match &mut state.opener {
                    Some(opener) => opener
                        .rekey(&keys)
                        .map_err(|e| Errno::from_raw_os_error(e.errno()))?,
                    None => {
                        state.opener = Some(
                            Opener::new(&keys).map_err(|e| Errno::from_raw_os_error(e.errno()))?,
                        )
                    }
                }
                state.thaw();
                state.expired = false;
                Ok(Reply::Done)
            }
            SocketRequest::GetTx => state
                .tx_keys()
                .map(|keys| Reply::Keys(KeyBytes::from(&keys)))
                .ok_or(Errno::BUSY),
            SocketRequest::GetRx => state
                .opener
                .as_ref()
                .map(|o| Reply::Keys(KeyBytes::from(&o.crypto_info())))
                .ok_or(Errno::BUSY),
            SocketRequest::SetMaxPayload(bytes) if !(64..=16384).contains(&bytes) => {
                Err(Errno::INVAL)
            }
            SocketRequest::SetExpectNoPad(_)
                if state
                    .opener
                    .as_ref()
                    .is_none_or(|o| o.version() == ProtocolVersion::Tls12) =>
            {
                Err(Errno::INVAL)
            }
            SocketRequest::RxHold | SocketRequest::RxRelease => Err(Errno::OPNOTSUPP),
            SocketRequest::SetMaxPayload(_)
            | SocketRequest::SetExpectNoPad(_)
            | SocketRequest::Info => Ok(Reply::Done),
        }
    }
}

fn stat(id: u64, socket: &Socket) -> SocketStat {
    let (kind, remote) = match &socket.kind {
        Kind::Listener(_) => (SocketKind::TcpListener, None),
        Kind::Udp { remote, .. } => (SocketKind::Udp, *remote),
        Kind::Tcp(tcp) => (SocketKind::Tcp, Some(tcp.remote)),
    };
    let mut stat = SocketStat {
        id,
        kind,
        shard: 0,
        uid: socket.uid,
        local: socket.local,
        remote,
        state: None,
        tcp: None,
        ulp: false,
        tx: None,
        rx: None,
        records_sent: 0,
        records_received: 0,
        reason: Reason::Open,
        memory: 0,
    };
    if let Kind::Tcp(tcp) = &socket.kind {
        let state = tcp.state.lock().expect("sound");
        let keys = |version: ProtocolVersion, rec_seq| KeyStat {
            version: version.wire(),
            cipher: 51,
            rec_seq,
            records_left: 1,
        };
        stat.ulp = state.ulp;
        stat.tx = state.tx_keys().map(|tx| keys(tx.version(), tx.rec_seq()));
        stat.rx = state
            .opener
            .as_ref()
            .map(|opener| keys(opener.version(), opener.sequence()));
        stat.reason = state.reason.unwrap_or(Reason::Open);
    }
    stat
}
