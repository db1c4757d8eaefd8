//! What a test has to itself: a database, topics, and the job as a process. One file, because every
//! test begins here.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::oracle::{Event, Row};
use crate::server::Server;

/// How long a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct World {
    pub kafka: String,
    /// `host:port` of the server.
    pub server: String,
    pub user: String,
    pub password: String,
    /// The login of the job, if it is not [`World::user`].
    pub login: Option<String>,
    pub database: String,
    /// The name of the first topic, and the prefix of all other names of this test.
    pub name: String,
    /// Files that are removed with the test.
    files: Mutex<Vec<PathBuf>>,
    /// A connection for queries, and to which database: a test that waits for something asks often.
    client: Mutex<Option<(String, postgres::Client)>>,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| {
        panic!("{name} is not set: these tests need a real Kafka and PostgreSQL; run scripts/test")
    })
}

impl World {
    /// A fresh database, and a name for topics and the job.
    pub fn new(test: &str) -> World {
        let url = variable("SESSIONIZER_TEST_POSTGRES");
        let config: postgres::Config = url.parse().expect("a URL of PostgreSQL");
        let host = match &config.get_hosts()[0] {
            postgres::config::Host::Tcp(host) => host.clone(),
            other => panic!("the job goes by TCP, not {other:?}"),
        };
        let port = config.get_ports().first().copied().unwrap_or(5432);
        let user = config.get_user().expect("a user");
        let password = String::from_utf8_lossy(config.get_password().unwrap_or_default());
        let server = format!("{host}:{port}");
        World::made(test, &variable("SESSIONIZER_TEST_KAFKA"), &server, user, &password)
    }

    /// The same on a private PostgreSQL.
    pub fn on(server: &Server, test: &str) -> World {
        World::at(test, &variable("SESSIONIZER_TEST_KAFKA"), &server.address, "postgres")
    }

    /// The same on servers that the test has started itself.
    pub fn at(test: &str, kafka: &str, server: &str, user: &str) -> World {
        World::made(test, kafka, server, user, "")
    }

    fn made(test: &str, kafka: &str, server: &str, user: &str, password: &str) -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{test}-{}-{count}", std::process::id()).replace('_', "-");
        let world = World {
            kafka: kafka.to_owned(),
            server: server.to_owned(),
            user: user.to_owned(),
            password: password.to_owned(),
            login: None,
            database: name.replace('-', "_"),
            name,
            files: Mutex::default(),
            client: Mutex::default(),
        };
        let create = format!("create database {}", world.database);
        let mut client = world.connect("postgres").expect("PostgreSQL answers");
        client.batch_execute(&create).expect("a database can be created");
        world
    }

    pub fn client(&self) -> postgres::Client {
        self.connect(&self.database).expect("PostgreSQL answers")
    }

    fn connect(&self, database: &str) -> Result<postgres::Client, postgres::Error> {
        let (host, port) = self.server.rsplit_once(':').expect("host:port");
        postgres::Config::new()
            .host(host)
            .port(port.parse().expect("a port"))
            .user(&self.user)
            .password(&self.password)
            .dbname(database)
            .connect_timeout(PATIENCE)
            .connect(postgres::NoTls)
    }

    /// The name of a login for this test, with fewer rights than [`World::user`].
    pub fn role(&self) -> String {
        format!("{}_role", self.database)
    }

    /// Runs statements.
    pub fn execute(&self, sql: &str) {
        self.client().batch_execute(sql).unwrap_or_else(|why| panic!("{sql}: {why}"));
    }

    /// The rows of a query as text.
    pub fn query(&self, sql: &str) -> Vec<Vec<String>> {
        // Without a panic while it is locked, because tests catch some.
        let place = format!("{}/{} as {}", self.server, self.database, self.user);
        let known = self.client.lock().expect("not poisoned").take();
        let known = known.filter(|(of, client)| *of == place && !client.is_closed());
        let asked = known.map(|(_, mut client)| {
            let messages = client.simple_query(sql);
            (client, messages)
        });
        // The server may have been restarted, or have ended the connection.
        let (client, messages) = match asked {
            Some((client, messages)) if !client.is_closed() => (client, messages),
            _ => {
                let mut client = self.client();
                let messages = client.simple_query(sql);
                (client, messages)
            }
        };
        *self.client.lock().expect("not poisoned") = Some((place, client));
        let messages = messages.unwrap_or_else(|why| panic!("{sql}: {why}"));
        let rows = messages.into_iter().filter_map(|message| match message {
            postgres::SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        rows.map(|row| (0..row.len()).map(|i| row.get(i).unwrap_or("").to_owned()).collect())
            .collect()
    }

    /// The single value of a query.
    pub fn value(&self, sql: &str) -> String {
        self.query(sql)[0][0].clone()
    }

    /// The table of sessions; duplicate rows fail the test.
    pub fn rows(&self) -> BTreeSet<Row> {
        self.rows_of("sessionized_events")
    }

    pub fn rows_of(&self, table: &str) -> BTreeSet<Row> {
        let ms = |column: &str| format!("(extract(epoch from {column}) * 1000)::bigint");
        let sql = format!(
            "select ip, host, {}, {}, num_logs from {table}",
            ms("session_start"),
            ms("session_end")
        );
        let mut rows = BTreeSet::new();
        for row in self.query(&sql) {
            let number = |at: usize| row[at].parse().expect("a number");
            let row = (row[0].clone(), row[1].clone(), number(2), number(3), number(4));
            assert!(rows.insert(row.clone()), "a row is there twice: {row:?}");
        }
        rows
    }

    /// The difference of the balance view, or `none` while there is no balance.
    pub fn imbalance(&self) -> String {
        let rows = self.query("select difference from sessionizer.balance");
        rows.first().map_or("none".to_owned(), |row| row[0].clone())
    }

    /// Dead letters as (reason, how many).
    pub fn dead_letters(&self) -> Vec<(String, u64)> {
        let rows = self
            .query("select reason, count(*) from sessionizer.dead_letters group by 1 order by 1");
        rows.into_iter().map(|row| (row[0].clone(), row[1].parse().expect("a count"))).collect()
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.kafka_client().create().expect("an admin client")
    }

    pub fn kafka_client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.kafka);
        config
    }

    /// Creates the topic [`World::name`].
    pub fn create_topic(&self, partitions: i32) {
        self.create(&self.name, partitions, &[]);
    }

    pub fn create(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in settings {
            new = new.set(name, value);
        }
        let created = self.admin();
        let created = created.create_topics([&new], &AdminOptions::new());
        let created = futures_executor::block_on(created).expect("the broker answers");
        created[0].as_ref().expect("the topic is new");
        self.wait_for_partitions(topic, partitions);
    }

    /// Waits until the broker reports that the topic has this many partitions, which happens a
    /// moment after they were created.
    pub fn wait_for_partitions(&self, topic: &str, count: i32) {
        let consumer = self.consumer("asks");
        eventually("the partitions are known", || {
            let metadata = consumer.fetch_metadata(Some(topic), PATIENCE);
            let metadata = metadata.expect("the broker answers");
            metadata.topics()[0].partitions().len() == count as usize
        });
    }

    pub fn delete_topic(&self, topic: &str) {
        let admin = self.admin();
        let deleted = admin.delete_topics(&[topic], &AdminOptions::new());
        let deleted = futures_executor::block_on(deleted).expect("the broker answers");
        deleted[0].as_ref().expect("the topic was there");
        self.wait_for_partitions(topic, 0);
    }

    /// Raises the number of partitions.
    pub fn add_partitions(&self, topic: &str, count: usize) {
        let new = NewPartitions::new(topic, count);
        let admin = self.admin();
        let done = admin.create_partitions([&new], &AdminOptions::new());
        let done = futures_executor::block_on(done).expect("the broker answers");
        done[0].as_ref().expect("partitions can be added");
        self.wait_for_partitions(topic, count as i32);
    }

    /// A producer with other settings, for what [`World::send`] cannot do.
    pub fn producer(&self, settings: &[(&str, &str)]) -> ThreadedProducer<DefaultProducerContext> {
        let mut config = self.kafka_client();
        for (name, value) in settings {
            config.set(*name, *value);
        }
        config.create().expect("a producer")
    }

    /// Sends payloads to a partition of the topic, in order; `None` is a tombstone.
    pub fn send<P: AsRef<[u8]>>(
        &self,
        partition: i32,
        payloads: impl IntoIterator<Item = Option<P>>,
    ) {
        self.send_to(&self.name, partition, payloads);
    }

    /// The same for any topic.
    pub fn send_to<P: AsRef<[u8]>>(
        &self,
        topic: &str,
        partition: i32,
        payloads: impl IntoIterator<Item = Option<P>>,
    ) {
        let producer = self.producer(&[("linger.ms", "1")]);
        for payload in payloads {
            let mut record = BaseRecord::<(), [u8]>::to(topic).partition(partition);
            record.payload = payload.as_ref().map(AsRef::as_ref);
            producer.send(record).map_err(|(why, _)| why).expect("queued");
        }
        producer.flush(PATIENCE).expect("delivered");
    }

    /// Sends events to a partition of the topic, in order.
    pub fn send_events<'a>(&self, partition: i32, events: impl IntoIterator<Item = &'a Event>) {
        self.send(partition, events.into_iter().map(|event| Some(json(event))));
    }

    /// A consumer of a group, to ask about offsets.
    pub fn consumer(&self, group: &str) -> BaseConsumer {
        let mut config = self.kafka_client();
        config.set("group.id", group).set("isolation.level", "read_uncommitted");
        config.create().expect("a consumer")
    }

    /// The oldest offset of a partition, and the one after everything that was ever written.
    pub fn log_range(&self, topic: &str, partition: i32) -> (i64, i64) {
        let range = self.consumer("asks").fetch_watermarks(topic, partition, PATIENCE);
        range.expect("the broker answers")
    }

    /// Waits until no transaction is open in a partition. A producer has its reply when the end of
    /// a transaction is decided; the markers in the partitions, which readers need, come later.
    pub fn wait_for_markers(&self, topic: &str, partition: i32) {
        let mut config = self.kafka_client();
        config.set("group.id", "asks").set("isolation.level", "read_committed");
        let consumer: BaseConsumer = config.create().expect("a consumer");
        eventually("the markers of the transaction are written", || {
            let stable = consumer.fetch_watermarks(topic, partition, PATIENCE);
            stable.expect("the broker answers").1 == self.log_range(topic, partition).1
        });
    }

    /// Moves the log start of a partition, as retention does.
    pub fn delete_records(&self, topic: &str, partition: i32, before: i64) {
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition_offset(topic, partition, Offset::Offset(before)).expect("an offset");
        let admin = self.admin();
        let done = admin.delete_records(&wanted, &AdminOptions::new());
        let done = futures_executor::block_on(done).expect("the broker answers");
        done.elements()[0].error().expect("records can be deleted");
    }

    /// The built program, with an environment that holds nothing but the settings of this world.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sessionizer"));
        command
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .env("KAFKA_URL", &self.kafka)
            .env("KAFKA_TOPIC", &self.name)
            .env("KAFKA_GROUP", &self.name)
            .env("POSTGRES_URL", format!("jdbc:postgresql://{}/{}", self.server, self.database))
            .env("POSTGRES_USER", self.login.as_ref().unwrap_or(&self.user))
            .env("POSTGRES_PASSWORD", &self.password)
            // Many jobs run at once, so the HTTP port is off unless a test sets it.
            .env("SESSIONIZER_HTTP", "none")
            .stdin(Stdio::null());
        command
    }

    /// Writes a file that is removed with the test.
    pub fn write(&self, file: &Path, text: &str) {
        std::fs::write(file, text).expect("a temporary file");
        self.files.lock().expect("not poisoned").push(file.to_owned());
    }

    /// Runs the job to the end of its topics; it must succeed. Gives its log.
    pub fn run_to_end(&self, args: &[&str]) -> String {
        let mut command = self.command();
        command.arg("--until-end").args(args);
        let (status, log) = finish(command);
        assert!(status.success(), "{status}:\n{log}");
        log
    }

    /// Starts the job and leaves it running.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = self.command();
        command.args(args);
        Running::start(command)
    }
}

impl Drop for World {
    /// Cleans up on the shared servers; a failed test leaves everything for inspection.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for file in self.files.lock().expect("not poisoned").drain(..) {
            let _ = std::fs::remove_file(file);
        }
        // Dropping a database makes the server write all that it holds to disk. One that goes after
        // the tests need not.
        let goes = std::env::var_os("SESSIONIZER_TEST_POSTGRES_GOES").is_some();
        if !goes && let Ok(mut client) = self.connect("postgres") {
            let drop = format!("drop database if exists {} with (force)", self.database);
            let _ = client.batch_execute(&drop);
            let drop = format!("drop role if exists {}", self.role());
            let _ = client.batch_execute(&drop);
        }
        if self.kafka != variable("SESSIONIZER_TEST_KAFKA") {
            return; // A broker of the test's own goes with all it has.
        }
        let admin = self.admin();
        let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(5));
        let topics = metadata.iter().flat_map(|metadata| metadata.topics());
        // The name of one test may begin that of another, with a digit more.
        let mine = |name: &&str| {
            let rest = name.strip_prefix(self.name.as_str());
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let mine: Vec<&str> = topics.map(|topic| topic.name()).filter(mine).collect();
        let _ = futures_executor::block_on(admin.delete_topics(&mine, &AdminOptions::new()));
    }
}

pub fn chrono_now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_millis() as i64
}

/// An event as people send it.
pub fn json(event: &Event) -> String {
    let time = chrono::DateTime::from_timestamp_millis(event.time_ms).expect("a time");
    serde_json::json!({
        "url": "/", "referrer": null, "user_agent": "test", "headers": {},
        "host": event.host, "ip": event.ip,
        "event_time": time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    })
    .to_string()
}

/// Runs a command to its end and returns its status and its log.
pub fn finish(command: Command) -> (ExitStatus, String) {
    Running::start(command).wait()
}

/// A process whose log is read as it is written. It is killed when dropped.
pub struct Running {
    child: Child,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    pub fn start(mut command: Command) -> Running {
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program was built");
        let stderr = child.stderr.take().expect("piped");
        let log: Arc<Mutex<String>> = Arc::default();
        let sink = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = sink.lock().expect("not poisoned");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Running { child, log, reader: Some(reader) }
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Sends a signal by name: TERM, KILL, STOP, CONT.
    pub fn signal(&self, name: &str) {
        // The shell has a `kill` of its own; a program of that name is not on every machine.
        let kill = format!("kill -s {name} {}", self.pid());
        let status = Command::new("sh").args(["-c", &kill]).status();
        assert!(status.expect("there is a shell").success(), "cannot send {name}");
    }

    /// Asks for a clean stop; it must succeed. Gives the log.
    pub fn stop(self) -> String {
        self.signal("TERM");
        let (status, log) = self.wait();
        assert!(status.success(), "{status}:\n{log}");
        log
    }

    /// Kills it.
    pub fn kill(self) -> String {
        self.signal("KILL");
        self.wait().1
    }

    /// Waits for its end.
    pub fn wait(self) -> (ExitStatus, String) {
        self.wait_at_most(PATIENCE)
    }

    /// Waits for its end, for work that takes long while other tests use the processors.
    pub fn wait_at_most(mut self, patience: Duration) -> (ExitStatus, String) {
        let until = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                let _ = self.reader.take().expect("read once").join();
                return (status, self.log());
            }
            if Instant::now() >= until {
                panic!("it does not end:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the log contains something; the job must not end before.
    pub fn wait_for(&mut self, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.log().contains(text) {
            assert!(self.is_running() || self.log().contains(text), "it ended:\n{}", self.log());
            assert!(Instant::now() < until, "it never said {text:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the log of the job, killed now:\n{}", self.log());
        }
    }
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
