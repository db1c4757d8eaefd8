//! pgbouncer between the job and PostgreSQL: session mode works as if it were not there, and any
//! other mode is refused before anything is changed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::lifecycle::{SOON, Traffic, wait_for_records};
use crate::skipped::skipped;
use crate::world::{Running, World, eventually, finish};

/// Debian installs it where only root's PATH leads.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push(PathBuf::from("/usr/sbin"));
    places.iter().map(|place| place.join("pgbouncer")).find(|program| program.exists())
}

struct Pooler {
    child: Child,
    address: String,
}

impl Pooler {
    /// `None`, with a notice, where there is no pgbouncer.
    fn start(world: &World, settings: &str) -> Option<Pooler> {
        let Some(program) = program() else {
            skipped(&format!("the pooler test {}", world.name), "pgbouncer is not installed");
            return None;
        };
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
            listener.local_addr().expect("bound").port()
        };
        let (host, server_port) = world.server.rsplit_once(':').expect("host:port");
        let password = match world.password.as_str() {
            "" => String::new(),
            password => format!(" password='{password}'"),
        };
        let user = &world.user;
        let config = format!(
            "[databases]
             * = host={host} port={server_port} user={user}{password}
             [pgbouncer]
             listen_addr = 127.0.0.1
             listen_port = {port}
             unix_socket_dir =
             auth_type = any
             {settings}\n"
        );
        let file = std::env::temp_dir().join(format!("{}-{port}.ini", world.name));
        let config: Vec<&str> = config.lines().map(str::trim).collect();
        world.write(&file, &config.join("\n"));
        let mut command = Command::new(program);
        // It refuses to run as root.
        if is_root() {
            command.args(["-u", "postgres"]);
        }
        command.arg("-q").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("it can be run");
        let address = format!("127.0.0.1:{port}");
        eventually("pgbouncer listens", || TcpStream::connect(&address).is_ok());
        Some(Pooler { child, address })
    }

    fn command(&self, world: &World, parameters: &str) -> Command {
        command_by(&self.address, world, parameters)
    }

    /// A client of the pool that is not the program.
    fn client(&self, world: &World) -> postgres::Client {
        let (host, port) = self.address.rsplit_once(':').expect("host:port");
        postgres::Config::new()
            .host(host)
            .port(port.parse().expect("a port"))
            .user(&world.user)
            .dbname(&world.database)
            .connect(postgres::NoTls)
            .expect("pgbouncer answers")
    }
}

fn command_by(address: &str, world: &World, parameters: &str) -> Command {
    let mut command = world.command();
    let url = format!("jdbc:postgresql://{address}/{}{parameters}", world.database);
    command.env("POSTGRES_URL", url);
    command
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(Path::new("/proc/self")).expect("there").uid() == 0
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pool_that_shares_sessions_is_refused_before_anything_is_touched() {
    let world = World::new("shared-pool");
    world.create_topic(1);
    let settings = [
        "pool_mode = transaction\ndefault_pool_size = 1",
        "pool_mode = transaction\ndefault_pool_size = 20",
        "pool_mode = transaction\nserver_round_robin = 1",
        "pool_mode = transaction\nmin_pool_size = 2\nserver_round_robin = 1",
        "pool_mode = transaction\nmin_pool_size = 3",
        "pool_mode = statement",
    ];
    for settings in settings {
        let Some(pooler) = Pooler::start(&world, settings) else { return };
        for args in [&["--until-end"][..], &["audit"], &["reset", "--yes"], &["report"], &["open"]]
        {
            for _ in 0..3 {
                let mut command = pooler.command(&world, "");
                command.args(args);
                let began = Instant::now();
                let (status, log) = finish(command);
                assert_eq!(status.code(), Some(2), "{settings} {args:?}: {log}");
                assert!(began.elapsed() < SOON, "{settings}: {log}");
                // A pool that happens to look steady is recognised by the first statement that
                // ends up in another session.
                for says in ["a pooler in transaction or statement mode", "a pool in session mode"]
                {
                    assert!(log.contains(says), "{settings} {args:?}: {log}");
                }
            }
        }
    }
    let schema = "select to_regnamespace('sessionizer') is null";
    assert_eq!(world.value(schema), "t", "nothing was made");
}

/// Forwards connections to the pool. Before anything that the second connection sends, it calls
/// `interfere`. Returns its address.
fn forward(to: &str, interfere: impl FnMut() + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("bound").to_string();
    let to = to.to_owned();
    std::thread::spawn(move || {
        let accept = || {
            let (client, _) = listener.accept().expect("a connection");
            (client, TcpStream::connect(&to).expect("pgbouncer listens"))
        };
        pass_on(accept(), || {});
        pass_on(accept(), interfere);
        loop {
            pass_on(accept(), || {});
        }
    });
    address
}

fn pass_on((client, server): (TcpStream, TcpStream), mut before: impl FnMut() + Send + 'static) {
    let clone = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
    let (mut answers, mut asker) = (clone(&server), clone(&client));
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut asker);
        let _ = asker.shutdown(Shutdown::Both);
    });
    let (mut client, mut server) = (client, server);
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(length @ 1..) = client.read(&mut buffer) {
            before();
            if server.write_all(&buffer[..length]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_pool_whose_sessions_change_places_while_it_is_examined_is_refused() {
    let world = World::new("changing-pool");
    world.create_topic(1);
    let Some(pooler) = Pooler::start(&world, "pool_mode = transaction") else { return };
    // What is idle is given out last in, first out: afterwards another session is next.
    let mut others = [pooler.client(&world), pooler.client(&world)];
    let exchange = move || {
        for statement in ["begin", "rollback"] {
            for other in &mut others {
                other.batch_execute(statement).expect("pgbouncer answers");
            }
        }
    };
    let address = forward(&pooler.address, exchange);
    let mut command = command_by(&address, &world, "");
    // It examines its first connection, with its second.
    command.args(["forget", "--ip", "192.0.2.7"]);
    let (status, log) = finish(command);
    assert_eq!(status.code(), Some(2), "{log}");
    for says in ["a pooler in transaction or statement mode", "a pool in session mode"] {
        assert!(log.contains(says), "{log}");
    }
}

#[test]
fn a_pool_in_session_mode_is_as_good_as_the_server() {
    let world = World::new("session-pool");
    let mut traffic = Traffic::new(&world);
    let Some(pooler) = Pooler::start(&world, "pool_mode = session\ndefault_pool_size = 30") else {
        return;
    };
    traffic.send(500);
    for workers in ["1", "3"] {
        let mut command = pooler.command(&world, "");
        command.args(["-w", workers, "--sink-connections", "3", "--epoch", "50ms"]);
        let job = Running::start(command);
        traffic.send(500);
        wait_for_records(&world, traffic.records());
        job.stop();
    }
    let mut command = pooler.command(&world, "");
    command.arg("--until-end");
    let (status, log) = finish(command);
    assert!(status.success(), "{log}");
    traffic.compare(&world);
    // One that has room for a single session has enough for a job of one connection.
    drop(pooler);
    let one = Pooler::start(&world, "pool_mode = session\ndefault_pool_size = 1");
    let one = one.expect("pgbouncer is here");
    let mut command = one.command(&world, "");
    command.args(["--until-end", "-w", "1", "--sink-connections", "1"]);
    let (status, log) = finish(command);
    assert!(status.success(), "{log}");
}

#[test]
fn a_parameter_that_a_pooler_refuses_is_named_with_the_remedy() {
    let world = World::new("pool-options");
    world.create_topic(1);
    let Some(pooler) = Pooler::start(&world, "pool_mode = session") else { return };
    let options = "?options=-c%20idle_in_transaction_session_timeout%3D500";
    let mut command = pooler.command(&world, options);
    command.args(["--until-end"]);
    let began = Instant::now();
    let (status, log) = finish(command);
    assert_eq!(status.code(), Some(2), "{log}");
    assert!(began.elapsed() < Duration::from_secs(10));
    for part in ["unsupported startup parameter", "options", "ignore_startup_parameters"] {
        assert!(log.contains(part), "{part:?} is missing in\n{log}");
    }
}
