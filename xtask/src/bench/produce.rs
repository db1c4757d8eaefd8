//! Fills topics, by `sessionizer produce` or by one of Kafka's tools.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Bench;
use crate::failure::Result;
use crate::process::Process;
use crate::screen::{Ticker, say};

/// How long filling a topic may take.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Options for `sessionizer produce`. If an option is set twice, the last value counts.
#[derive(Clone)]
pub struct Recipe(BTreeMap<&'static str, String>);

impl Recipe {
    /// Events into four partitions.
    pub fn new() -> Recipe {
        Recipe(BTreeMap::new()).with("--partitions", 4)
    }

    /// The usual events: a site with 100 events a second, 50,000 visitors, eight events a visit, up
    /// to ten seconds out of order, about 360 bytes each. Unusual spellings of events are left out,
    /// because Flink's JSON format does not understand all of them.
    pub fn ordinary(events: u64) -> Recipe {
        let site = Recipe::new().with("--historical", "300d").with("--density", 100);
        let site = site.with("--visitors", 50_000).with("--disorder", "10s").with("--odd", 0);
        site.with("--number", events)
    }

    pub fn with(mut self, option: &'static str, value: impl ToString) -> Recipe {
        self.0.insert(option, value.to_string());
        self
    }

    pub fn words(&self) -> impl Iterator<Item = &str> {
        self.0.iter().flat_map(|(option, value)| [*option, value.as_str()])
    }
}

impl Bench {
    /// Fills a topic.
    pub fn fill(&self, topic: &str, recipe: &Recipe) -> Result<()> {
        say(format!("filling the topic {topic}"));
        let mut command = self.servers.command(&self.program);
        command.env("KAFKA_TOPIC", topic).arg("produce").args(recipe.words());
        let log = self.servers.file("produce.log");
        let mut producer = Process::start("the producer", command, &log)?;
        let mut ticker = Ticker::new("filling");
        while !producer.has_ended()? {
            ticker.tick(String::new);
            std::thread::sleep(Duration::from_millis(50));
        }
        producer.finish(PATIENCE).map(|_| ())
    }

    /// The ordinary backlog, filled once. Returns the name of its topic.
    pub fn backlog(&mut self) -> Result<&'static str> {
        const TOPIC: &str = "backlog";
        if !self.backlog_filled {
            self.fill(TOPIC, &Recipe::ordinary(self.events))?;
            self.backlog_filled = true;
        }
        Ok(TOPIC)
    }

    /// Fills a topic with records of capital letters.
    pub fn fill_with_letters(&self, topic: &str, count: u64, bytes: u64) -> Result<()> {
        say(format!("filling the topic {topic}"));
        let kafka = &self.servers.kafka;
        kafka.tool("TopicCommand", &["--create", "--topic", topic, "--partitions", "4"])?;
        let (count, bytes) = (count.to_string(), bytes.to_string());
        let size = ["--num-records", &count, "--record-size", &bytes, "--throughput", "-1"];
        kafka.tool("ProducerPerformance", &[&["--topic", topic], &size[..]].concat())
    }

    pub fn drop_topic(&self, topic: &str) -> Result<()> {
        self.servers.kafka.tool("TopicCommand", &["--delete", "--topic", topic])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_option_that_is_given_twice_the_last_counts() {
        let recipe = Recipe::new().with("--number", 5).with("--partitions", 1);
        let words: Vec<&str> = recipe.words().collect();
        assert_eq!(words, ["--number", "5", "--partitions", "1"]);
    }
}
