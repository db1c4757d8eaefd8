//! Why a run has to end, whose fault it is, what to do about it, and the exit code that says so.

use std::fmt;

/// What is wrong, and what to do about it, if that is known. It is shown as one text, and by
/// `sessionizer check` as two. So whoever writes the text decides where one ends and the other
/// begins, and nobody has to search for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    pub problem: String,
    pub remedy: Option<Remedy>,
}

/// What to do about a problem.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remedy {
    /// What joins it to the problem: punctuation, and words that only make sense in one text.
    joint: &'static str,
    /// Sentences, commands or SQL, one on each line.
    text: String,
}

impl Message {
    pub fn new(problem: impl Into<String>) -> Self {
        Message { problem: problem.into(), remedy: None }
    }

    /// Adds what to do, with what stands between the problem and that in one text: `"; "`, or
    /// `"; grant it: "` before a statement.
    pub fn remedy(self, joint: &'static str, text: impl Into<String>) -> Self {
        debug_assert!(self.remedy.is_none(), "a remedy would be lost: {self}");
        Message { remedy: Some(Remedy { joint, text: text.into() }), ..self }
    }

    /// Adds what to do if that is not known yet.
    pub fn or_remedy(self, joint: &'static str, text: impl Into<String>) -> Self {
        if self.remedy.is_some() { self } else { self.remedy(joint, text) }
    }

    /// Puts what was being done before the problem: `doing: problem`.
    pub fn context(self, doing: impl fmt::Display) -> Self {
        self.after(&format!("{doing}: "))
    }

    /// Completes a problem that is only the end of a sentence.
    pub fn after(self, beginning: &str) -> Self {
        Message { problem: format!("{beginning}{}", self.problem), ..self }
    }

    /// What to do, in order; empty if that is not known.
    pub fn remedies(&self) -> Vec<String> {
        let remedy = self.remedy.iter();
        remedy.flat_map(|remedy| remedy.text.lines()).map(str::to_owned).collect()
    }
}

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problem)?;
        match &self.remedy {
            Some(Remedy { joint, text }) => write!(f, "{joint}{text}"),
            None => Ok(()),
        }
    }
}

impl From<String> for Message {
    fn from(problem: String) -> Self {
        Message::new(problem)
    }
}

impl From<&str> for Message {
    fn from(problem: &str) -> Self {
        Message::new(problem)
    }
}

/// Why a run has to end. Once one of these exists, retrying is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The command line or a setting is wrong, or there is another problem that waiting does not
    /// solve: a missing privilege, records that are gone. Somebody has to act before the next
    /// start.
    Config(Message),
    /// Another instance of the job has taken over.
    Fenced(Message),
    /// Another process of the cluster was lost.
    Peer(Message),
    /// The database went back to an earlier state: the next start continues from there.
    GoneBack(Message),
    /// Something outside has failed and may recover: the next start may succeed.
    Environment(Message),
}

/// Each kind of fault, from a text or a message.
impl Fault {
    pub fn config(why: impl Into<Message>) -> Self {
        Fault::Config(why.into())
    }

    pub fn fenced(why: impl Into<Message>) -> Self {
        Fault::Fenced(why.into())
    }

    pub fn peer(why: impl Into<Message>) -> Self {
        Fault::Peer(why.into())
    }

    pub fn gone_back(why: impl Into<Message>) -> Self {
        Fault::GoneBack(why.into())
    }

    pub fn environment(why: impl Into<Message>) -> Self {
        Fault::Environment(why.into())
    }

    /// The fault with this exit code; any other code counts as 1.
    pub fn with_code(code: u8, why: impl Into<Message>) -> Self {
        match code {
            2 => Fault::config(why),
            3 => Fault::fenced(why),
            4 => Fault::peer(why),
            _ => Fault::environment(why),
        }
    }
}

impl Fault {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Fault::Environment(_) | Fault::GoneBack(_) => 1,
            Fault::Config(_) => 2,
            Fault::Fenced(_) => 3,
            Fault::Peer(_) => 4,
        }
    }

    pub fn message(&self) -> &Message {
        match self {
            Fault::Config(why)
            | Fault::Fenced(why)
            | Fault::Environment(why)
            | Fault::GoneBack(why)
            | Fault::Peer(why) => why,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message().fmt(f)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_its_problem_the_joint_and_the_remedy() {
        let plain = Message::from("it is broken: nobody knows why");
        assert_eq!(plain.to_string(), "it is broken: nobody knows why");
        assert_eq!(plain.remedies(), Vec::<String>::new());
        let message =
            Message::new("a right is missing").remedy("; grant it: ", "grant a;\ngrant b;");
        let message = message.context("Postgres refuses");
        let want = "Postgres refuses: a right is missing; grant it: grant a;\ngrant b;";
        assert_eq!(message.to_string(), want);
        assert_eq!(message.problem, "Postgres refuses: a right is missing");
        assert_eq!(message.remedies(), ["grant a;", "grant b;"]);
    }

    #[test]
    fn a_fault_of_each_code_shows_its_message() {
        for code in 1..=4 {
            let fault = Fault::with_code(code, Message::new("a").remedy(": ", "b"));
            assert_eq!((fault.exit_code(), fault.to_string()), (code, "a: b".to_owned()));
            assert_eq!(fault.message().remedies(), ["b"]);
        }
    }

    /// Supervisors act on these codes: the README lists them.
    #[test]
    fn every_fault_says_why_and_has_an_exit_code_that_leads_back_to_what_a_start_can_do() {
        let why = || Message::from("the disk is full");
        let [config, fenced, peer, gone_back, environment] =
            [Fault::Config, Fault::Fenced, Fault::Peer, Fault::GoneBack, Fault::Environment]
                .map(|fault| fault(why()));
        for (fault, code, back) in [
            (&environment, 1, &environment),
            (&gone_back, 1, &environment),
            (&config, 2, &config),
            (&fenced, 3, &fenced),
            (&peer, 4, &peer),
        ] {
            assert_eq!((fault.exit_code(), fault.to_string()), (code, why().to_string()));
            assert_eq!(&Fault::with_code(code, why()), back);
        }
        assert_eq!(Fault::with_code(101, why()), environment, "that of a panic");
    }
}
