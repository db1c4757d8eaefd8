//! Processes that share a secret, and peers that do not know it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::*;

const SECRET: Option<&str> = Some("a secret of tests");
const ANOTHER: Option<&str> = Some("another secret of tests");

/// A proxy before a process that can change, cut and record the traffic.
struct Proxy {
    address: String,
    /// The offset in each direction of a connection after which the next byte is flipped.
    flip: Arc<Mutex<Option<usize>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
    /// What the connecting sides have sent, one entry for each connection.
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Proxy {
    fn to(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let proxy =
            Proxy { address, flip: Arc::default(), open: Arc::default(), sent: Arc::default() };
        let target = target.to_owned();
        let (flip, open) = (Arc::clone(&proxy.flip), Arc::clone(&proxy.open));
        let sent = Arc::clone(&proxy.sent);
        thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.expect("a connection");
                // The process may not listen yet.
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let clone = |stream: &TcpStream| stream.try_clone().expect("a clone");
                open.lock().expect("not poisoned").extend([clone(&client), clone(&server)]);
                let number = {
                    let mut sent = sent.lock().expect("not poisoned");
                    sent.push(Vec::new());
                    sent.len() - 1
                };
                let keep = Some((Arc::clone(&sent), number));
                pass(clone(&client), clone(&server), Arc::clone(&flip), keep);
                pass(server, client, Arc::clone(&flip), None);
            }
        });
        proxy
    }

    fn cut(&self) {
        for stream in self.open.lock().expect("not poisoned").drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

type Kept = (Arc<Mutex<Vec<Vec<u8>>>>, usize);

fn pass(
    mut from: TcpStream,
    mut to: TcpStream,
    flip: Arc<Mutex<Option<usize>>>,
    keep: Option<Kept>,
) {
    thread::spawn(move || {
        let (mut passed, mut buffer) = (0, [0; 4_096]);
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if let Some((kept, number)) = &keep {
                let mut kept = kept.lock().expect("not poisoned");
                kept[*number].extend_from_slice(&buffer[..read]);
            }
            let mut flip = flip.lock().expect("not poisoned");
            if let Some(at) = flip.filter(|at| *at < passed + read) {
                buffer[at.saturating_sub(passed)] ^= 1;
                *flip = None;
            }
            drop(flip);
            passed += read;
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
}

/// Connects to a process that is about to listen. The previous listener may still be there for a
/// moment, and then for a moment there is none.
fn connect(address: &str) -> TcpStream {
    let began = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return stream,
            Err(why) => assert!(began.elapsed() < PATIENCE, "nobody listens: {why}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn stop((run_state, gathering): (Arc<RunState>, Gathering)) {
    run_state.request_stop();
    let ended = gathering.join().expect("no panic").expect("it has no fault of its own");
    assert!(ended.is_none(), "it has found the others");
}

#[test]
fn processes_with_the_same_secret_find_each_other_and_what_they_send_is_not_to_be_read() {
    let real = addresses(2);
    let proxy = Proxy::to(&real[0]);
    let (run_state, first) = process_with(&real, 0, "5m", SECRET);
    let by_proxy = [proxy.address.clone(), real[1].clone()];
    let (_, second) = process_with(&by_proxy, 1, "5m", SECRET);
    let (mut first, mut second) = (complete(first), complete(second));
    let mut there = second.wires[0].take().expect("a wire to process 0");
    let mut here = first.wires[1].take().expect("a wire to process 1");
    let text = b"a text that is long enough to be found";
    there.write_all(&message(text)).expect("sent");
    let mut bytes = vec![0; 48 + text.len()];
    here.read_exact(&mut bytes).expect("received");
    assert_eq!(&bytes[48..], text);
    // And a lot, in the other direction.
    let lot: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let sent = lot.clone();
    let sender = thread::spawn(move || here.write_all(&message(&sent)).map(|()| here));
    let mut bytes = vec![0; 48 + lot.len()];
    there.read_exact(&mut bytes).expect("received");
    assert!(bytes[48..] == lot, "what was sent");
    sender.join().expect("no panic").expect("sent");
    let sent = proxy.sent.lock().expect("not poisoned").concat();
    for clear in [&text[..], b"--gap", b"sessionizer-peer"] {
        assert!(!sent.windows(clear.len()).any(|window| window == clear), "it is not encrypted");
    }
    assert!(sent.len() > 1_000 && run_state.fault().is_none());
}

#[test]
fn a_process_with_another_secret_or_none_is_not_admitted_and_ends_nobody() {
    for (ours, theirs) in [(SECRET, ANOTHER), (SECRET, None), (None, SECRET)] {
        let addresses = addresses(2);
        let (run_state, first) = process_with(&addresses, 0, "5m", ours);
        let stranger = process_with(&addresses, 1, "1m", theirs);
        thread::sleep(Duration::from_secs(5));
        assert!(!run_state.failed(), "{:?}", run_state.fault());
        assert!(!stranger.0.failed(), "{:?}", stranger.0.fault());
        stop(stranger);
        let (_, second) = process_with(&addresses, 1, "5m", ours);
        drop((complete(first), complete(second)));
    }
}

#[test]
fn other_settings_are_reported_with_a_secret_as_well() {
    let addresses = addresses(2);
    let started =
        [("5m", 0), ("1m", 1)].map(|(gap, at)| process_with(&addresses, at, gap, SECRET).1);
    for gathering in started {
        let Err(Fault::Config(why)) = gathering.join().expect("no panic") else {
            panic!("it has begun");
        };
        let why = why.to_string();
        assert!(why.contains("was started with other settings: --gap is "), "{why}");
    }
}

#[test]
fn a_stranger_who_knows_everything_but_the_secret_learns_nothing() {
    let addresses = addresses(2);
    let first = process_with(&addresses, 0, "5m", SECRET);
    eventually("it listens", || TcpStream::connect(&addresses[0]).is_ok());
    let hello = greeting::Hello {
        process: 1,
        incarnation: 1,
        purpose: greeting::Purpose::Watch,
        clock_ms: crate::job::clock::now_ms(),
        settings: settings(2, "5m"),
    };
    // In the clear: it gets no answer, not even the magic number.
    let mut stranger = TcpStream::connect(&addresses[0]).expect("it listens");
    greeting::send(&mut stranger, &hello).expect("sent");
    let mut answer = Vec::new();
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.is_empty(), "{answer:?}");
    // Encrypted, with another secret, or as a process for which the key was not derived.
    let socket = || {
        let stream = TcpStream::connect(&addresses[0]).expect("it listens");
        channel::Socket::new(stream, PATIENCE).expect("a socket")
    };
    let sealed = |secret: Option<&str>, me: usize| {
        let key = SecretKey::of(secret.expect("one of ours").as_bytes()).expect("long enough");
        Protection::sealed(key, me, 2).expect("OpenSSL can")
    };
    let refused = sealed(ANOTHER, 1).connect(socket(), 1, 0).expect_err("another secret");
    assert!(refused.to_string().contains("cluster secret"), "{refused}");
    for (me, server) in [(1, 1), (0, 0), (0, 1), (2, 0)] {
        assert!(sealed(SECRET, me).connect(socket(), me, server).is_err(), "{me} to {server}");
    }
    // A process of the cluster cannot claim to be another one.
    let mut channel = sealed(SECRET, 1).connect(socket(), 1, 0).expect("the key fits");
    greeting::send(&mut channel, &greeting::Hello { process: 0, ..hello.clone() }).expect("sent");
    assert!(greeting::receive::<greeting::GreetingReply>(&mut channel).is_err());
    // With the right key it is not turned away as a stranger.
    let mut channel = sealed(SECRET, 1).connect(socket(), 1, 0).expect("the key fits");
    greeting::send(&mut channel, &hello).expect("sent");
    let answer = greeting::receive::<greeting::GreetingReply>(&mut channel).expect("an answer");
    assert!(matches!(answer, greeting::GreetingReply::Welcome { .. }), "{answer:?}");
    drop(channel);
    stop(first);
}

#[test]
fn a_greeting_that_was_recorded_is_good_for_nothing() {
    let real = addresses(2);
    let proxy = Proxy::to(&real[0]);
    let by_proxy = [proxy.address.clone(), real[1].clone()];
    let (_, first) = process_with(&real, 0, "5m", SECRET);
    let (_, second) = process_with(&by_proxy, 1, "5m", SECRET);
    drop((complete(first), complete(second)));
    proxy.cut();
    let recorded = proxy.sent.lock().expect("not poisoned").clone();
    let recorded: Vec<Vec<u8>> = recorded.into_iter().filter(|it| it.len() > 100).collect();
    assert!(recorded.len() >= 3, "a link and two connections for data");
    let again = process_with(&real, 0, "5m", SECRET);
    for bytes in recorded {
        let mut replayed = connect(&real[0]);
        let _ = replayed.write_all(&bytes);
        let mut answer = Vec::new();
        replayed.set_read_timeout(Some(Duration::from_secs(7))).expect("set");
        let _ = replayed.read_to_end(&mut answer);
        // A server hello is sent to anybody whose first message proves the key, as this one does.
        // Nothing follows: the proof for this handshake is missing.
        assert!(answer.len() < 400, "{} bytes", answer.len());
    }
    // The replayed messages have not taken a place: the real process has it.
    let (_, second) = process_with(&real, 1, "5m", SECRET);
    drop((complete(again.1), complete(second)));
}

#[test]
fn a_byte_that_is_changed_on_the_way_is_never_taken_for_data() {
    for at in [0, 5, 60, 200] {
        // During the greeting: this connection fails, and the next one is good.
        let real = addresses(2);
        let proxy = Proxy::to(&real[0]);
        *proxy.flip.lock().expect("not poisoned") = Some(at);
        let by_proxy = [proxy.address.clone(), real[1].clone()];
        let (_, first) = process_with(&real, 0, "5m", SECRET);
        let (_, second) = process_with(&by_proxy, 1, "5m", SECRET);
        drop((complete(first), complete(second)));
    }
    for to_first in [true, false] {
        // After the greeting: on a wire or on the link, whichever sends first.
        let real = addresses(2);
        let proxy = Proxy::to(&real[0]);
        let by_proxy = [proxy.address.clone(), real[1].clone()];
        let (run_state, first) = process_with(&real, 0, "5m", SECRET);
        let (other, second) = process_with(&by_proxy, 1, "5m", SECRET);
        let (mut first, mut second) = (complete(first), complete(second));
        let here = first.wires[1].take().expect("a wire to process 1");
        let there = second.wires[0].take().expect("a wire to process 0");
        let (mut from, mut to) = if to_first { (there, here) } else { (here, there) };
        let (wrong, right) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (is_wrong, is_right) = (Arc::clone(&wrong), Arc::clone(&right));
        thread::spawn(move || {
            let mut bytes = [0; 48 + 64];
            while to.read_exact(&mut bytes).is_ok() {
                is_wrong.fetch_or(bytes[48..] != [7; 64], Relaxed);
                is_right.fetch_add(1, Relaxed);
            }
        });
        thread::spawn(move || while from.write_all(&message(&[7; 64])).is_ok() {});
        eventually("data arrives", || right.load(Relaxed) > 1_000);
        *proxy.flip.lock().expect("not poisoned") = Some(0);
        eventually("it is noticed", || run_state.failed() && other.failed());
        let faults = [run_state.fault(), other.fault()];
        assert!(faults.iter().all(|it| matches!(it, Some(Fault::Peer(_)))), "{faults:?}");
        let says = |fault: &Option<Fault>| format!("{fault:?}").contains("changed on the way");
        assert!(faults.iter().any(says), "{faults:?}");
        assert!(!wrong.load(Relaxed), "something was read that nobody has sent");
    }
}

#[test]
fn beyond_loopback_a_secret_is_required() {
    let config = |address: &str, secret: Option<&str>, insecure: bool| ClusterConfig {
        process: 0,
        addresses: vec![address.to_owned(), "127.0.0.1:1".to_owned()],
        peer_timeout: Duration::from_secs(2),
        start_timeout: Duration::from_secs(5),
        wall_ms: crate::job::clock::now_ms,
        secret: secret.map(|secret| SecretSource::Variable(Secret::new(secret))),
        insecure,
    };
    for address in ["10.8.0.1:2101", "0.0.0.0:2101", "[::]:2101", "alpha:2101"] {
        let Err(Fault::Config(why)) = config(address, None, false).protection() else {
            panic!("{address} needs none")
        };
        let why = why.to_string();
        for says in [address, "--cluster-secret-file", "/dev/urandom", "--cluster-insecure"] {
            assert!(why.contains(says), "{says} is missing in {why}");
        }
        assert!(matches!(config(address, None, true).protection(), Ok(Protection::Open)));
        assert!(matches!(config(address, SECRET, false).protection(), Ok(Protection::Sealed(_))));
    }
    let here = config("localhost:2101", None, false).protection();
    assert!(matches!(here, Ok(Protection::Open)));
    assert!(config("127.0.0.1:2101", Some("short"), false).protection().is_err());
}
