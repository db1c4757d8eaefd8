//! `sessionizer completions`: what a shell needs to complete the flags and commands.

use clap_complete::Shell;
use sessionizer_core::fault::Fault;

use crate::cli::{self, CompletionsArgs};
use crate::commands::output::print_document;

/// Prints the script for one shell.
pub fn completions(args: &CompletionsArgs) -> Result<(), Fault> {
    print_document(&script(args.shell))
}

/// The script for a shell, from the same definition as `--help`.
pub fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), "sessionizer", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;
    use crate::commands::man::tests::flags;

    #[test]
    fn every_shell_knows_every_flag_of_every_command() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(script(*shell)).expect("UTF-8");
            for (command, flag) in flags() {
                let written = match shell {
                    // Fish writes the name without dashes.
                    Shell::Fish => format!("-l {flag}"),
                    _ => format!("--{flag}"),
                };
                assert!(script.contains(&written), "{shell}: {command} --{flag}");
            }
        }
    }
}
