//! Runs that must fail: the exit code, and what the message must contain.

use crate::world::{World, finish};

/// Runs the job to the end of its topics, with changes to its environment; gives the exit code and
/// the log.
pub fn try_run(world: &World, args: &[&str], env: &[(&str, &str)]) -> (i32, String) {
    let mut command = world.command();
    command.arg("--until-end").args(args).envs(env.iter().copied());
    let (status, log) = finish(command);
    (status.code().unwrap_or_else(|| panic!("{status}:\n{log}")), log)
}

/// The job must refuse to run: the exit code, and what its message has to say. Where waiting may
/// help (code 1), it is told not to wait. Gives the log.
pub fn refused(
    world: &World,
    args: &[&str],
    env: &[(&str, &str)],
    code: i32,
    says: &[&str],
) -> String {
    let hasty: &[&str] = if code == 1 { &["--start-timeout", "0s"] } else { &[] };
    let (got, log) = try_run(world, &[hasty, args].concat(), env);
    assert_eq!(got, code, "{args:?}:\n{log}");
    for text in says {
        assert!(log.contains(text), "{args:?} does not say {text:?}:\n{log}");
    }
    assert!(!log.contains("panicked"), "{args:?}:\n{log}");
    log
}
