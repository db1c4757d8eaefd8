//! The thread of the monitor: it listens, answers, and samples the job once a second.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{info, warn};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::monitor::answer::{Reply, Wanted, file, reply, text, wanted, whole};
use crate::monitor::body::Answer;
use crate::monitor::connections::Connections;
use crate::monitor::document::{self, Document};
use crate::monitor::exposition::{self, Shown};
use crate::monitor::health::Verdict;
use crate::monitor::job_header;
use crate::monitor::job_state::{JobState, Totals};
use crate::monitor::sample::{MetricHosts, Sample, sample};
use crate::monitor::{AskBalance, Asked, HttpConfig, JobFacts, Shared, process};

/// How often the job is sampled.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);
/// How long a client may take to send the head of a request, and keep an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may last, unless it is a stream.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// The largest request, in bytes.
const MAX_REQUEST_BYTES: usize = 16 * 1_024;
/// How long to wait before trying again to listen on a port that is taken.
const BIND_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How often the balance is read while somebody is watching.
const BALANCE_INTERVAL: Duration = Duration::from_secs(5);
/// How often it is read, and the last audit with it, if only the metrics are.
const AUDIT_INTERVAL: Duration = Duration::from_secs(15);
/// Somebody is watching if the document was requested within this time.
const WATCHED_PERIOD: Duration = Duration::from_secs(30);
/// The metrics are read if they were requested within this time.
const SCRAPED_PERIOD: Duration = Duration::from_secs(150);
/// How long sending the last message may take.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(200);

const JSON: &str = "application/json";
const EVENTS: &str = "text/event-stream";

/// Runs the monitor until it is told to stop.
pub fn run(
    address: SocketAddr,
    config: HttpConfig,
    facts: JobFacts,
    shared: Arc<Shared>,
    balance: AskBalance,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(why) => return warn!("metrics, health and the page are off: {why}"),
    };
    let site = Rc::new(RefCell::new(Site::new(config, facts, shared, balance)));
    let tasks = LocalSet::new();
    tasks.spawn_local(listen(address, Rc::clone(&site)));
    tasks.block_on(&runtime, look(site, stopped));
}

/// Listens, and waits if another program has the port.
async fn listen(address: SocketAddr, site: Rc<RefCell<Site>>) {
    let mut is_reported = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(why) if !is_reported => {
                is_reported = true;
                warn!(
                    "cannot listen on {address} ({why}): metrics, health and the page are off \
                     until the port is free. --http 127.0.0.1:0 takes any free port, and --http \
                     none switches them off"
                );
            }
            Err(_) => {}
        }
        sleep(BIND_RETRY_INTERVAL).await;
    };
    if let Ok(address) = listener.local_addr() {
        info!("metrics, health and the page: http://{address}/");
    }
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream, &site),
            // Too many open files, or the client has already gone.
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// Serves one connection, on a task of its own.
fn serve(stream: TcpStream, site: &Rc<RefCell<Site>>) {
    let _ = stream.set_nodelay(true);
    let id = site.borrow_mut().connections.enter();
    let of_service = Rc::clone(site);
    let service = service_fn(move |request: Request<Incoming>| {
        let reply = of_service.borrow_mut().answer(id, &request);
        async move { Ok::<_, Infallible>(reply) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_REQUEST_BYTES);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let of_task = Rc::clone(site);
    let task = tokio::task::spawn_local(async move {
        // If it ends with an error, there is nobody left to report it to.
        let mut connection = std::pin::pin!(connection);
        while timeout(CONNECTION_TIMEOUT, connection.as_mut()).await.is_err() {
            if !of_task.borrow().connections.is_stream(id) {
                break;
            }
        }
        of_task.borrow_mut().connections.left(id);
    });
    site.borrow_mut().connections.driven_by(id, task.abort_handle());
}

/// Samples the job once a second until the run ends; then shows how it has ended.
async fn look(site: Rc<RefCell<Site>>, mut stopped: oneshot::Receiver<()>) {
    let mut ticks = interval(SAMPLE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        let tick = timeout(SAMPLE_INTERVAL * 2, ticks.tick());
        let ended = {
            let mut tick = std::pin::pin!(tick);
            std::future::poll_fn(|context| {
                use std::future::Future;
                if std::pin::Pin::new(&mut stopped).poll(context).is_ready() {
                    return std::task::Poll::Ready(true);
                }
                tick.as_mut().poll(context).map(|_| false)
            })
            .await
        };
        site.borrow_mut().look();
        if ended {
            let watched = site.borrow().connections.streams() > 0;
            if watched {
                site.borrow_mut().connections.end_streams();
                sleep(FLUSH_TIMEOUT).await;
            }
            return;
        }
    }
}

/// Everything that is served, as of the last second.
struct Site {
    config: HttpConfig,
    shared: Arc<Shared>,
    job_state: JobState,
    metric_hosts: MetricHosts,
    connections: Connections,
    samples: Vec<Sample>,
    totals: Totals,
    document: Document,
    marked: usize,
    /// Answers rendered since the last sample.
    status: Option<Bytes>,
    metrics: [Option<Bytes>; 2],
    balance: BalanceReader,
    /// When the document was last requested, and the metrics.
    asked: Option<Instant>,
    scraped: Option<Instant>,
}

impl Site {
    fn new(config: HttpConfig, facts: JobFacts, shared: Arc<Shared>, balance: AskBalance) -> Self {
        let mut metric_hosts = MetricHosts {
            chosen: !config.metrics_hosts.is_empty(),
            hosts: config.metrics_hosts.clone(),
        };
        let now_ms = (shared.now_ms)();
        let process = facts.process;
        let mut job_state = JobState::new(facts, now_ms);
        let samples = vec![sample(&shared.run_state(), process, now_ms, &mut metric_hosts)];
        let totals = job_state.update(&samples);
        let document = document::document(&job_state, &totals, &samples);
        Site {
            config,
            shared,
            job_state,
            metric_hosts,
            connections: Connections::default(),
            samples,
            totals,
            document,
            marked: 0,
            status: None,
            metrics: [None, None],
            balance: BalanceReader::new(balance),
            asked: None,
            scraped: None,
        }
    }

    /// Samples the job, and sends what has changed to the streams.
    fn look(&mut self) {
        let process = self.job_state.facts.process;
        let now_ms = (self.shared.now_ms)();
        self.job_state.ended = self.shared.ended();
        self.read_balance();
        let run_state = self.shared.run_state();
        self.samples = vec![sample(&run_state, process, now_ms, &mut self.metric_hosts)];
        let peers = &run_state.metrics.figures.peers;
        match process {
            0 => self.samples.extend(peers.reports().iter().filter_map(|text| Sample::read(text))),
            _ => match self.samples[0].write() {
                Some(text) => peers.set_outgoing(text),
                None => log::debug!("the figures of this process are too long for process 0"),
            },
        }
        self.totals = self.job_state.update(&self.samples);
        let document = document::document(&self.job_state, &self.totals, &self.samples);
        let before = std::mem::replace(&mut self.document, document);
        (self.status, self.metrics) = (None, [None, None]);
        let history = &self.job_state.history;
        let new = history.marked - self.marked;
        self.marked = history.marked;
        if self.connections.streams() > 0 {
            let points = history.points.back().map(document::point).into_iter().collect();
            let first = history.marks.len().saturating_sub(new);
            let marks = history.marks.range(first..).map(document::mark_row).collect();
            let change = document::change(&before, &self.document, points, marks);
            self.connections.send(&event("change", &Value::Object(change)));
        }
    }

    fn read_balance(&mut self) {
        let looks = self.connections.streams() > 0
            || self.asked.is_some_and(|asked| asked.elapsed() < WATCHED_PERIOD);
        // Only process 0 has metrics of audits.
        let scrapes = self.job_state.facts.process == 0
            && self.scraped.is_some_and(|scraped| scraped.elapsed() < SCRAPED_PERIOD);
        let every = looks.then_some(BALANCE_INTERVAL).or(scrapes.then_some(AUDIT_INTERVAL));
        if let Some(found) = self.balance.read(every) {
            let now_ms = (self.shared.now_ms)();
            self.job_state.balance = found.balance.map(|balance| (now_ms, balance));
            if let Some(audit) = found.audit {
                self.job_state.audit = Ok(audit);
            }
        }
    }

    /// The whole document.
    fn status(&mut self) -> Bytes {
        if self.asked.is_none() {
            self.asked = Some(Instant::now());
            self.read_balance();
        }
        self.asked = Some(Instant::now());
        let history = &self.job_state.history;
        let document = &self.document;
        let bytes = self.status.get_or_insert_with(|| whole_document(document, history));
        bytes.clone()
    }

    fn metrics(&mut self, format: exposition::Format) -> Bytes {
        self.scraped = Some(Instant::now());
        let Site { job_state, totals, samples, connections, .. } = self;
        let written = &mut self.metrics[format as usize];
        let bytes = written.get_or_insert_with(|| {
            let shown = Shown::new(job_state, totals, &samples[0], connections.streams());
            exposition::write(shown, process::read(), format).into()
        });
        bytes.clone()
    }

    fn answer(&mut self, id: u64, request: &Request<Incoming>) -> Reply {
        let asked = (request.method(), request.uri(), request.version());
        let wanted = match wanted(asked, request.headers(), &self.config.hosts) {
            Ok(wanted) => wanted,
            Err(reply) => return *reply,
        };
        let mut reply = self.reply(id, request, wanted);
        // Not in a refusal: that may go to a foreign web page.
        if let Ok(job) = HeaderValue::from_str(&job_header::encode(&self.job_state.facts.job)) {
            reply.headers_mut().insert(job_header::JOB_HEADER, job);
        }
        reply
    }

    fn reply(&mut self, id: u64, request: &Request<Incoming>, wanted: Wanted) -> Reply {
        match wanted {
            Wanted::File(at) => file(at, request.headers()),
            Wanted::Status => whole(StatusCode::OK, JSON, self.status()),
            Wanted::Metrics(format) => {
                whole(StatusCode::OK, format.media_type(), self.metrics(format))
            }
            Wanted::Live => verdict(&self.job_state.live, "live"),
            Wanted::Ready => verdict(&self.job_state.ready, &self.job_state.sentence.text),
            Wanted::Events => self.events(id, request.method() == Method::HEAD),
        }
    }

    fn events(&mut self, id: u64, head: bool) -> Reply {
        if head {
            return whole(StatusCode::OK, EVENTS, Bytes::new());
        }
        let status = self.status();
        let mut first = b"retry: 1000\n\nevent: snapshot\ndata: ".to_vec();
        first.extend_from_slice(&status);
        first.extend_from_slice(b"\n\n");
        let Some(stream) = self.connections.stream(id, first.into()) else {
            let why = "too many pages are open: close some\n";
            return text(StatusCode::SERVICE_UNAVAILABLE, why);
        };
        let mut reply = reply(StatusCode::OK, EVENTS, Answer::Stream(stream));
        // A proxy must not buffer the stream.
        let off = HeaderValue::from_static("no");
        reply.headers_mut().insert("x-accel-buffering", off);
        reply
    }
}

fn verdict(verdict: &Verdict, good: &str) -> Reply {
    match verdict {
        Ok(()) => text(StatusCode::OK, &format!("{good}\n")),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
    }
}

fn whole_document(document: &Document, history: &crate::monitor::history::History) -> Bytes {
    let mut whole = document.clone();
    whole.insert("history".to_owned(), document::history(history.points.iter()));
    let marks: Vec<Value> = history.marks.iter().map(document::mark_row).collect();
    whole.insert("marks".to_owned(), serde_json::json!({"rows": marks}));
    Value::Object(whole).to_string().into()
}

/// A message of a stream. JSON has no line breaks.
fn event(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

/// Reads the balance on a thread of its own, because Postgres may be slow.
struct BalanceReader {
    /// Not started yet.
    idle: Option<AskBalance>,
    asks: Option<SyncSender<()>>,
    found: Option<Receiver<Asked>>,
    asked: Option<Instant>,
    waits: bool,
}

impl BalanceReader {
    fn new(ask: AskBalance) -> Self {
        BalanceReader { idle: Some(ask), asks: None, found: None, asked: None, waits: false }
    }

    /// Requests the balance if it is due: `None` if nobody is watching. Returns what was read since
    /// the last call.
    fn read(&mut self, every: Option<Duration>) -> Option<Asked> {
        let is_over = |every| self.asked.is_none_or(|asked| asked.elapsed() >= every);
        if every.is_some_and(is_over) && !self.waits {
            self.start();
            self.asked = Some(Instant::now());
            self.waits = self.asks.as_ref().is_some_and(|asks| asks.try_send(()).is_ok());
        }
        match self.found.as_ref()?.try_recv() {
            Ok(found) => {
                self.waits = false;
                Some(found)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }

    fn start(&mut self) {
        let Some(mut ask) = self.idle.take() else { return };
        let (asks, asked) = sync_channel::<()>(1);
        let (answers, found) = sync_channel(1);
        let work = move || {
            while asked.recv().is_ok() && answers.send(ask()).is_ok() {}
        };
        // Without a thread, the balance stays unknown.
        let _ = std::thread::Builder::new().name("balance".to_owned()).spawn(work);
        (self.asks, self.found) = (Some(asks), Some(found));
    }
}
