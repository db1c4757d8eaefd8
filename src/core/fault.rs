//! Why a run has to end, whose fault it is, and the exit code that says so.

use std::fmt;

/// Why a run has to end. Once one of these exists, retrying is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The command line or a setting is wrong, or there is another problem that waiting does not
    /// solve: a missing privilege, records that are gone. Somebody has to act before the next
    /// start.
    Config(String),
    /// Another instance of the job has taken over.
    Fenced(String),
    /// Another process of the cluster was lost.
    Peer(String),
    /// The database went back to an earlier state: the next start continues from there.
    GoneBack(String),
    /// Something outside has failed and may recover: the next start may succeed.
    Environment(String),
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

    /// The fault with this exit code; any other code counts as 1.
    pub fn with_code(code: u8, why: String) -> Self {
        match code {
            2 => Fault::Config(why),
            3 => Fault::Fenced(why),
            4 => Fault::Peer(why),
            _ => Fault::Environment(why),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Config(why)
            | Fault::Fenced(why)
            | Fault::Environment(why)
            | Fault::GoneBack(why)
            | Fault::Peer(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Supervisors act on these codes: the README lists them.
    #[test]
    fn every_fault_says_why_and_has_an_exit_code_that_leads_back_to_what_a_start_can_do() {
        let why = || "the disk is full".to_owned();
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
            assert_eq!((fault.exit_code(), fault.to_string()), (code, why()));
            assert_eq!(&Fault::with_code(code, why()), back);
        }
        assert_eq!(Fault::with_code(101, why()), environment, "that of a panic");
    }
}
