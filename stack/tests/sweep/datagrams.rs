//! Datagrams next to the streams: UDP as it is, and DTLS with keys that change on the way.
//!
//! Every record that is delivered is one that was sent, and comes once. What is missing must be explained: by packets that links
//! lost, dropped or damaged, by datagrams that a full queue or the replay window cost, by a crash or a partition.

use super::{Choices, noise};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::rc::Rc;
use uktls_record::dtls::{DiscardKind, EpochKeys};
use uktls_record::suite::CipherSuite;
use uktls_stack::clock::Duration;
use uktls_stack::sim::{self, Crashed, Host, KtlsSocket, Link, Net, UdpSocket, Way};

/// Longer than anything stays on its way: outages are shorter, and so are the longest queues.
const SILENCE: Duration = Duration::from_secs(300);

/// One pair of sockets and what it is to carry.
#[derive(Debug, Clone)]
struct Flow {
    number: u16,
    /// Plain UDP otherwise.
    dtls: Option<(bool, CipherSuite)>,
    /// Datagrams there and back.
    up: u64,
    down: u64,
    /// Their longest payload.
    most: usize,
    apart: Duration,
    /// The senders take new keys behind every so many records.
    rekey: u64,
    start: Duration,
    v6: bool,
    orphaned: bool,
}

/// What can be missing and why, over all flows of a run.
#[derive(Debug, Default)]
struct Account {
    missing: Cell<u64>,
    /// Datagrams that an end knows to have dropped.
    dropped: Cell<u64>,
}

impl Flow {
    /// What both ends know to be this datagram's payload.
    fn payload(&self, seed: u64, direction: &str, number: u64) -> Vec<u8> {
        let purpose = format!("{direction} datagram {number}");
        let mut lens = Choices::new(seed, &format!("flow {}", self.number), &purpose);
        let len = lens.below(self.most as u64 + 1) as usize;
        let mut payload = number.to_be_bytes().to_vec();
        payload.extend_from_slice(&noise(seed, self.number, &purpose, len));
        payload
    }

    fn keys(&self, seed: u64, direction: &str, epoch: u16) -> EpochKeys {
        let (newer, suite) = self.dtls.expect("asked of DTLS only");
        let bytes = noise(
            seed,
            1000 + self.number,
            &format!("{direction} {epoch}"),
            96,
        );
        let (key, rest) = bytes.split_at(suite.key_len());
        let (sn_key, iv) = rest.split_at(suite.key_len());
        if newer {
            EpochKeys::dtls13(suite, key, &iv[..12], sn_key, 2 + u64::from(epoch), 0)
        } else {
            let salt = if suite == CipherSuite::ChaCha20Poly1305 {
                12
            } else {
                4
            };
            EpochKeys::dtls12(suite, key, &iv[..salt], epoch, 0)
        }
        .expect("lengths of this suite")
    }

    fn epochs(&self, count: u64) -> u16 {
        // DTLS 1.3 shows two bits of the epoch; three epochs are enough to see keys follow keys.
        1 + (count / self.rekey).min(2) as u16
    }
}

/// A socket, with an association over it or without.
struct Ends {
    udp: UdpSocket,
    dtls: Option<KtlsSocket>,
}

impl Ends {
    async fn open(
        local: (std::net::IpAddr, u16),
        remote: (std::net::IpAddr, u16),
        flow: &Flow,
    ) -> io::Result<Ends> {
        let udp = UdpSocket::bind(local).await?;
        udp.connect(remote).await?;
        let dtls = match flow.dtls {
            Some(_) => Some(KtlsSocket::bind(&udp)?),
            None => None,
        };
        Ok(Ends { udp, dtls })
    }

    async fn send(&self, payload: &[u8]) -> io::Result<usize> {
        match &self.dtls {
            Some(dtls) => dtls.send(payload).await,
            None => self.udp.send(payload).await,
        }
    }

    async fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match &self.dtls {
            Some(dtls) => dtls.recv(buffer).await.map(|received| received.len),
            None => self.udp.recv(buffer).await,
        }
    }
}

/// One end: sends its datagrams, while it receives and checks the peer's. Gives how many came, and how many it dropped.
async fn end(
    ends: Ends,
    seed: u64,
    flow: Flow,
    is_client: bool,
    forged: bool,
) -> io::Result<(u64, u64)> {
    let (ours, theirs, send, expect) = if is_client {
        ("up", "down", flow.up, flow.down)
    } else {
        ("down", "up", flow.down, flow.up)
    };
    if let Some(dtls) = &ends.dtls {
        dtls.set_receive_keys(&flow.keys(seed, theirs, 1))?;
    }
    let ends = Rc::new(ends);
    let (sending, plan) = (ends.clone(), flow.clone());
    let sender = sim::spawn(async move {
        sim::sleep(plan.start).await;
        for number in 0..send {
            if number.is_multiple_of(plan.rekey)
                && number / plan.rekey < 3
                && let Some(dtls) = &sending.dtls
            {
                let epoch = 1 + (number / plan.rekey) as u16;
                dtls.set_send_keys(&plan.keys(seed, ours, epoch))?;
            }
            sending.send(&plan.payload(seed, ours, number)).await?;
            sim::sleep(plan.apart).await;
        }
        Ok::<(), io::Error>(())
    });
    let mut came = BTreeSet::new();
    let mut epoch = 1;
    let mut buffer = vec![0; 20_000];
    // The other end starts at some time, and then something comes now and then or it is over.
    let mut patience = flow.start + SILENCE;
    while let Ok(received) = sim::timeout(patience, ends.recv(&mut buffer)).await {
        let len = received?;
        patience = SILENCE + flow.apart;
        let number = buffer[..len]
            .first_chunk()
            .map_or(u64::MAX, |bytes| u64::from_be_bytes(*bytes));
        assert!(
            number < expect && buffer[..len] == flow.payload(seed, theirs, number),
            "flow {} receives what was not sent",
            flow.number
        );
        let first = came.insert(number);
        assert!(
            first || flow.dtls.is_none(),
            "flow {}: {number} came twice",
            flow.number
        );
        // The next keys are there long before the first record under them; if their herald is lost, the one behind it will do.
        if let Some(dtls) = &ends.dtls
            && epoch < flow.epochs(expect)
            && number >= u64::from(epoch - 1) * flow.rekey
        {
            epoch += 1;
            dtls.set_receive_keys(&flow.keys(seed, theirs, epoch))?;
        }
    }
    sender.await.map_err(io::Error::other)??;
    let mut dropped = 0;
    if let Some(dtls) = &ends.dtls {
        let info = dtls.stat()?;
        let of = |kind: DiscardKind| info.dropped[kind as usize];
        if !forged {
            let strange = of(DiscardKind::Unverified) + of(DiscardKind::Malformed);
            assert_eq!(strange, 0, "flow {}: nobody forged anything", flow.number);
        }
        dropped = info.full + of(DiscardKind::TooOld) + of(DiscardKind::WrongEpoch);
        dropped += of(DiscardKind::Unverified) + of(DiscardKind::Malformed);
    }
    Ok((came.len() as u64, dropped))
}

/// Some flows between the hosts, and somebody who judges what came of them. `unexplained`: something happens that no counter tells of.
pub(super) fn flows(
    net: &Net,
    choices: &mut Choices,
    hosts: &[Host],
    links: &[Link],
    victim: Option<usize>,
    forged: bool,
    unexplained: bool,
) {
    let seed = net.seed();
    let account = Rc::new(Account::default());
    let judge = net.host("umpire", "192.0.2.3");
    let mut judged = Vec::new();
    for number in 0..choices.below(4) as u16 {
        let from = choices.below(hosts.len() as u64) as usize;
        let to = (from + 1 + choices.below(hosts.len() as u64 - 1) as usize) % hosts.len();
        let suite = choices.pick(&[
            CipherSuite::Aes128Gcm,
            CipherSuite::Aes256Gcm,
            CipherSuite::ChaCha20Poly1305,
        ]);
        let newer = choices.one_in(2);
        let plain = choices.one_in(3) && !forged;
        let most = choices.pick(&[0, 100, 1_200, 1_400, 9_000]);
        let flow = Flow {
            number,
            dtls: (!plain).then_some((newer, suite)),
            up: choices.below(300),
            down: choices.below(300),
            most,
            apart: choices.micros(50_000),
            rekey: 50 + choices.below(300),
            // Behind the other end's setting up.
            start: Duration::from_millis(1) + choices.micros(3_000_000),
            v6: choices.one_in(3),
            orphaned: victim.is_some_and(|victim| victim == from || victim == to),
        };
        let address = |host: usize| hosts[host].addresses()[usize::from(flow.v6)];
        let ports = (2000 + number, 3000 + number);
        let mut tasks = Vec::new();
        for (host, local, remote, is_client) in [
            (from, (address(from), ports.0), (address(to), ports.1), true),
            (to, (address(to), ports.1), (address(from), ports.0), false),
        ] {
            let plan = flow.clone();
            let task = hosts[host].spawn(async move {
                let ends = Ends::open(local, remote, &plan).await?;
                end(ends, seed, plan, is_client, forged).await
            });
            tasks.push((task, if is_client { flow.down } else { flow.up }));
        }
        let account = account.clone();
        judged.push(judge.spawn(async move {
            for (task, expected) in tasks {
                match task.await {
                    Ok(Ok((came, dropped))) => {
                        account.missing.update(|n| n + (expected - came));
                        account.dropped.update(|n| n + dropped);
                    }
                    Err(Crashed) if flow.orphaned => {}
                    other => panic!(
                        "flow {number} ended with {other:?} at {}; {flow:?}",
                        sim::now()
                    ),
                }
            }
        }));
    }
    let (hosts, links) = (hosts.to_vec(), links.to_vec());
    judge.spawn(async move {
        for flow in judged {
            flow.await.expect("the umpire's host does not crash");
        }
        let mut explained = account.dropped.get();
        for counters in links
            .iter()
            .flat_map(|link| [Way::There, Way::Back].map(|way| link.counters(way)))
        {
            explained += counters.lost + counters.faulted + counters.overflowed;
            explained += counters.down + counters.too_long + counters.damaged;
        }
        for host in &hosts {
            let counters = host.counters();
            explained += counters.udp_full.get() + counters.fragments_dropped.get();
        }
        let missing = account.missing.get();
        assert!(
            unexplained || missing <= explained,
            "{missing} datagrams are missing, and only {explained} packets had anything happen to them"
        );
    });
}
