//! The cases, one file each.

use clap::ValueEnum;

use super::Bench;
use crate::failure::Result;

mod backlog;
mod cluster;
mod flat;
mod flood;
mod flow;
mod hot_key;
mod late;
mod latency;
mod memory;
mod peer;
mod queries;
mod raw;
mod recovery;
mod scaling;
mod skew;
mod snapshots;
mod start;
mod statistics;
mod watch;

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Case {
    /// The upper bound: bare librdkafka consumers that discard the records, and COPY of the same
    /// sessions from a file into the same table
    Raw,
    /// The job over a backlog, up to the last commit, with -w 1 and -w 2, in turn with raw
    Backlog,
    /// -w 1 against -w 2 without Kafka or PostgreSQL: from memory into a ledger that discards
    Scaling,
    /// Two processes of one worker against one process of two: what serialising costs, and what
    /// encryption between them costs
    Cluster,
    /// CPU time of an event with 100,000 events to 4 times --events, 1,000 to 10,000,000 visitors,
    /// 1 to 64 partitions, 1 to 8 workers
    Flat,
    /// Half of all events from one visitor, against an even load
    HotKey,
    /// 0.1, 1 and 10 % stragglers, against none
    Late,
    /// The memory of an open session, with 100,000 to 10,000,000 of them
    Memory,
    /// A quarter of the topic an hour of event time behind the rest, against no skew
    Skew,
    /// Bad records of 100 kB, one for every 500 of --events: how fast they become dead letters,
    /// against consumers that discard them; and their memory while a lock keeps them from being
    /// written, against --memory
    Flood,
    /// 10,000 live events a second: from the event that closes a session to the row being visible,
    /// with epochs of 1 s and of 100 ms; and the cost of the shorter ones in a backlog
    Latency,
    /// PostgreSQL stopped for a minute in a backlog: memory meanwhile, and throughput afterwards
    Flow,
    /// An empty topic: from the start to the first commit, CPU time when idle, memory
    Start,
    /// One million open sessions, 2,000 events a second, -w 2, otherwise the defaults: from kill -9
    /// to the first new commit, and the same for a clean stop and start
    Recovery,
    /// A backlog that opens one million sessions, -w 2: the cost of saving them every 60 s, 5 s and
    /// 2 s, against never
    Snapshots,
    /// What the HTTP port costs: a page and a scraper in a backlog and on an empty topic, against
    /// --http none; and 1,000 requests a second beside 1,000 half-open connections in a backlog,
    /// with memory and open files afterwards, against a port that nobody asks
    Watch,
    /// Live statistics of hosts, with anomalies, and of visitors as well, against none: the dataflow
    /// alone, a backlog, and 10,000 live events a second
    Statistics,
    /// The analysis in queries/ over a table of two sessions for each of --events: the time of each
    /// query, and how PostgreSQL reads the table for it
    Queries,
    /// The same job on Apache Flink, written in two ways (bench/flink), in turn with this one
    Peer,
}

pub fn run(case: Case, bench: &mut Bench) -> Result<()> {
    match case {
        Case::Raw => raw::run(bench),
        Case::Backlog => backlog::run(bench),
        Case::Scaling => scaling::run(bench),
        Case::Cluster => cluster::run(bench),
        Case::Flat => flat::run(bench),
        Case::HotKey => hot_key::run(bench),
        Case::Late => late::run(bench),
        Case::Memory => memory::run(bench),
        Case::Skew => skew::run(bench),
        Case::Flood => flood::run(bench),
        Case::Latency => latency::run(bench),
        Case::Flow => flow::run(bench),
        Case::Start => start::run(bench),
        Case::Recovery => recovery::run(bench),
        Case::Snapshots => snapshots::run(bench),
        Case::Watch => watch::run(bench),
        Case::Statistics => statistics::run(bench),
        Case::Queries => queries::run(bench),
        Case::Peer => peer::run(bench),
    }
}
