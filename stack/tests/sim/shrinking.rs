//! Planted bugs that only something a program does to the network brings out, and what is left of everything that went wrong.

use super::{echo, exchange, lossy, noise, serve, two};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uktls_stack::clock::{Duration, Instant};
use uktls_stack::sim::fault::{Action, Fault};
use uktls_stack::sim::link::{Loss, Rate};
use uktls_stack::sim::random::Chance;
use uktls_stack::sim::schedule::{Change, Schedule};
use uktls_stack::sim::{self, Failure, FailureKind, Host, Link, Net, Runs, TcpStream, Way};

/// What a saboteur does beside what matters: the network loses packets by its dice, gets slower, breaks and heals.
async fn trouble(net: Net, link: Link, client: Host, server: Host) {
    let pause = || sim::sleep(Duration::from_millis(150));
    pause().await;
    link.turn_both(|knobs| knobs.delay = Duration::from_millis(25));
    link.turn(Way::Back, |knobs| {
        knobs.rate = Rate::mbit(20);
        knobs.limit = 300;
    });
    pause().await;
    net.partition(&client, &server);
    pause().await;
    net.heal();
    pause().await;
    link.fault(Way::There, Fault::new(Action::Duplicate).tcp().every(3));
    pause().await;
    link.clear_faults(Way::There);
    link.turn_both(|knobs| knobs.loss = Loss::random(Chance::percent(3)));
}

/// Asks and is answered every 50 ms, and waits for no answer longer than two seconds.
async fn ask(bug: &str, questions: u32) {
    let mut stream = TcpStream::connect("server:7").await.expect("connected");
    for question in 0..questions {
        let answered = async {
            stream.write_all(&question.to_be_bytes()).await?;
            stream.read_exact(&mut [0; 4]).await
        };
        match sim::timeout(Duration::from_secs(2), answered).await {
            Ok(answer) => assert!(answer.is_ok(), "{bug}: {answer:?}"),
            Err(_) => panic!("{bug}: slow"),
        }
        sim::sleep(Duration::from_millis(50)).await;
    }
}

/// A client that asks, a saboteur who makes trouble, and what is done on top of that.
fn build(
    net: &Net,
    bug: &'static str,
    harm: impl AsyncFn(&Net, &Host, &Link, &Host) + Copy + 'static,
) {
    let client = net.host("client", "10.0.0.1");
    let server = net.host("server", "10.0.0.2");
    let link = net.link(&client, &server, lossy(1));
    serve(&server, "0.0.0.0:7", async |stream| {
        // A peer that goes away is no bug of the server's.
        let (mut read, mut write) = tokio::io::split(stream);
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    client.spawn(ask(bug, 40));
    client.spawn_background(trouble(
        net.clone(),
        link.clone(),
        client.clone(),
        server.clone(),
    ));
    let (net, target) = (net.clone(), client.clone());
    client.spawn_background(async move {
        sim::sleep(Duration::from_millis(1_000)).await;
        harm(&net, &target, &link, &server).await;
    });
}

/// The failure that `harm` brings, shrunk; and that what is printed fails in the same way when pasted.
fn shrunk(
    bug: &'static str,
    harm: impl AsyncFn(&Net, &Host, &Link, &Host) + Copy + 'static,
) -> Box<Failure> {
    let runs = Runs::from_env().only(3, 1);
    let calm = runs
        .clone()
        .try_run(|net| build(net, bug, async |_, _, _, _| {}));
    assert!(calm.is_ok(), "the trouble alone: {calm:?}");
    let failure = runs.shrink(true).try_run(|net| build(net, bug, harm));
    let failure = failure.expect_err("the planted bug");
    assert!(failure.schedule.events().len() > 8, "{failure}");
    let net = Net::new(failure.seed);
    net.replay(failure.shrunk.as_ref().expect("it was asked for"));
    build(&net, bug, async |_, _, _, _| {});
    let again = net.try_run().expect_err("the same");
    assert_eq!(again.kind, failure.kind);
    failure
}

fn line(failure: &Failure) -> String {
    let schedule = failure.shrunk.as_ref().expect("it was asked for");
    let text = schedule.to_string();
    assert!(failure.to_string().contains(&text), "{failure}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    lines[1].trim().to_owned()
}

#[test]
fn a_crash_is_what_is_left() {
    let failure = shrunk("the client cannot bear a reset", async |_, _, _, server| {
        server.crash();
        sim::sleep(Duration::from_millis(10)).await;
        server.restart();
    });
    assert!(failure.detail.contains("ConnectionReset"), "{failure}");
    // A restart of a host that runs is a crash too.
    assert_eq!(
        line(&failure),
        r#".at(Instant::from_millis(1010), Change::Restart("server".into()))"#
    );
}

#[test]
fn a_link_that_goes_down_is_what_is_left() {
    let failure = shrunk("nobody may wait", async |_, _, link, _| {
        link.down();
        sim::sleep(Duration::from_secs(4)).await;
        link.up();
    });
    assert!(matches!(failure.kind, FailureKind::Panic(_)), "{failure}");
    let line = line(&failure);
    assert!(
        line.starts_with(".at(Instant::from_secs(1), Change::Knob(")
            && line.ends_with(", Knob::Up(false)))"),
        "{line}"
    );
}

#[test]
fn a_partition_is_what_is_left() {
    let failure = shrunk("nobody may wait", async |net, client, _, server| {
        net.partition(client, server);
        sim::sleep(Duration::from_secs(4)).await;
        net.heal();
    });
    // The saboteur's own partition does as well, once nothing heals it.
    let parted = r#"Change::Partition(vec!["client".into()], vec!["server".into()]))"#;
    let line = line(&failure);
    assert!(line.ends_with(parted), "{line}");
}

#[test]
fn a_knob_that_is_turned_is_what_is_left() {
    let failure = shrunk("nobody may wait", async |_, _, link, _| {
        link.turn(Way::There, |knobs| {
            knobs.delay = Duration::from_secs(3);
            knobs.limit = 400;
        });
    });
    assert_eq!(
        line(&failure),
        r#".at(Instant::from_secs(1), Change::Knob("client>server".into(), Knob::Delay(Duration::from_secs(3))))"#
    );
}

#[test]
fn a_fault_that_is_set_is_what_is_left() {
    let failure = shrunk("nobody may wait", async |_, _, link, _| {
        link.fault(Way::Back, Fault::new(Action::Drop).with_payload());
    });
    assert_eq!(
        line(&failure),
        r#".fault("server>client", Fault::new(Action::Drop).with_payload().since(Instant::from_secs(1)))"#
    );
}

#[test]
fn what_programs_did_is_written_down_and_replayed_alike() {
    // Without dice, the schedule alone must give the very same run.
    let run = |replay: Option<&Schedule>| {
        let net = Net::new(5);
        if let Some(schedule) = replay {
            net.replay(schedule);
        }
        let (client, server) = two(&net, lossy(0));
        serve(&server, "0.0.0.0:7", echo);
        let (handle, from, to) = (net.clone(), server.clone(), client.clone());
        client.spawn_background(async move {
            sim::sleep(Duration::from_millis(55)).await;
            handle.partition_one_way(&from, &to);
            sim::sleep(Duration::from_millis(700)).await;
            handle.heal();
        });
        client.spawn(async {
            let stream = TcpStream::connect("server:7").await.expect("connected");
            assert_eq!(exchange(stream, noise(1, 300_000)).await.len(), 300_000);
        });
        net.run()
    };
    let first = run(None);
    let expected = Schedule::new()
        .at(
            Instant::from_millis(55),
            Change::OneWayPartition(vec!["server".into()], vec!["client".into()]),
        )
        .at(Instant::from_millis(755), Change::Heal);
    assert_eq!(first.schedule, expected);
    let again = run(Some(&first.schedule));
    assert_eq!(first.hash, again.hash);
    assert!(first.hash != run(Some(&Schedule::new())).hash);
}
