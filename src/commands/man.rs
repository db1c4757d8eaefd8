//! `sessionizer man`: the manual, one page for each command.
//!
//! Its text is that of `--help`. What clap_mangen leaves out (the variables that are not flags) or
//! has no section for (exit codes, examples) is taken from the same texts.

use std::fs;
use std::io;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use sessionizer_core::fault::Fault;

use crate::cli::version::VERSION;
use crate::cli::{self, ManArgs};
use crate::commands::output::print_document;

/// Prints the page of the job, or writes all pages into a directory.
pub fn man(args: &ManArgs) -> Result<(), Fault> {
    let pages = pages();
    let Some(directory) = &args.dir else {
        return print_document(&pages[0].1);
    };
    let directory = Path::new(directory);
    fs::create_dir_all(directory).map_err(|why| {
        Fault::config(format!("cannot make the directory {}: {why}", directory.display()))
    })?;
    for (name, page) in pages {
        let file = directory.join(format!("{name}.1"));
        fs::write(&file, page).map_err(|why| cannot_write(&file, &why))?;
    }
    Ok(())
}

fn cannot_write(path: &Path, why: &io::Error) -> Fault {
    let message = format!("cannot write {}: {why}", path.display());
    match why.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Fault::environment(message),
        _ => Fault::config(message),
    }
}

/// The name and text of each page; the first is that of the job.
pub fn pages() -> Vec<(String, Vec<u8>)> {
    let mut root = cli::command().disable_help_subcommand(true);
    root.build();
    let of_commands = root.get_subcommands().map(|command| {
        let name = format!("sessionizer-{}", command.get_name());
        // The name as it is typed, not the name of the page.
        let typed = format!("sessionizer {}", command.get_name());
        (name.clone(), command.clone().display_name(name).bin_name(typed))
    });
    let all = std::iter::once(("sessionizer".to_owned(), root.clone())).chain(of_commands);
    all.map(|(name, command)| {
        let page = page(&command).expect("a vector takes everything");
        (name, page)
    })
    .collect()
}

fn page(command: &Command) -> io::Result<Vec<u8>> {
    let text =
        |text: Option<&clap::builder::StyledStr>| text.map(ToString::to_string).unwrap_or_default();
    let before = text(command.get_before_long_help().or(command.get_before_help()));
    let after = text(command.get_after_long_help().or(command.get_after_help()));
    let man = Man::new(with_usage(command))
        .manual("User Commands")
        .source(format!("sessionizer {VERSION}"))
        .date(" ");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    section(&mut page, "ENVIRONMENT", &before)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    for (title, lines) in parts(&after) {
        section(&mut page, title, &lines)?;
    }
    Ok(page)
}

/// Makes the usage of `--help` the synopsis, which would otherwise list every flag.
fn with_usage(command: &Command) -> Command {
    let mut command = command.clone().subcommand_help_heading("COMMANDS");
    let usage = command.render_usage().to_string();
    command.override_usage(usage.trim_start_matches("Usage: ").to_owned())
}

/// Writes a section whose lines stay as they are, because their columns are aligned.
fn section(page: &mut Vec<u8>, title: &str, lines: &str) -> io::Result<()> {
    let lines = lines.trim_matches('\n');
    if lines.is_empty() {
        return Ok(());
    }
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    roff.control("nf", []);
    for line in lines.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
    roff.to_writer(page)
}

/// Divides the text after the flags into its examples and exit codes.
fn parts(text: &str) -> Vec<(&'static str, String)> {
    const TITLES: [(&str, &str); 2] = [("Examples:", "EXAMPLES"), ("Exit codes:", "EXIT STATUS")];
    let mut parts: Vec<(&'static str, String)> = Vec::new();
    for line in text.lines() {
        let begun =
            TITLES.iter().find_map(|(begin, title)| Some((line.strip_prefix(begin)?, title)));
        let line = match begun {
            Some((rest, title)) => {
                parts.push((title, String::new()));
                rest.trim_start()
            }
            None => line,
        };
        if let Some((_, lines)) = parts.last_mut() {
            lines.push_str(line);
            lines.push('\n');
        }
    }
    parts
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The long name of each flag that is shown, with its command.
    pub fn flags() -> Vec<(String, String)> {
        let mut root = cli::command();
        root.build();
        let commands = std::iter::once(&root).chain(root.get_subcommands());
        let commands = commands.filter(|command| command.get_name() != "help");
        let mut flags = Vec::new();
        for command in commands {
            let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
            for flag in shown.filter_map(|arg| arg.get_long()) {
                flags.push((command.get_name().to_owned(), flag.to_owned()));
            }
        }
        assert!(flags.len() > 80, "{}", flags.len());
        flags
    }

    #[test]
    fn the_page_of_a_command_has_each_of_its_flags() {
        let pages = pages();
        for (command, flag) in flags() {
            let name = match &*command {
                "sessionizer" => command.clone(),
                command => format!("sessionizer-{command}"),
            };
            let (_, page) = pages.iter().find(|(other, _)| *other == name).expect("a page");
            let page = String::from_utf8_lossy(page);
            let options = page.split_once(".SH OPTIONS").map_or(&*page, |(_, options)| options);
            let written = format!("\\-\\-{}", flag.replace('-', "\\-"));
            assert!(options.contains(&written), "{name}: --{flag}");
        }
    }

    #[test]
    fn a_page_has_what_clap_mangen_leaves_out() {
        let pages = pages();
        let page = |name: &str| {
            let (_, page) = pages.iter().find(|(other, _)| other == name).expect("a page");
            String::from_utf8_lossy(page).into_owned()
        };
        let job = page("sessionizer");
        for want in
            [".SH ENVIRONMENT", "KAFKA_WEB_TRAFFIC_SECRET", ".SH EXAMPLES", ".SH \"EXIT STATUS\""]
        {
            assert!(job.contains(want), "{want}: {job}");
        }
        assert!(job.contains("[OPTIONS]") && !job.contains("[\\fB\\-\\-gap"), "{job}");
        // What a page says is said once.
        assert_eq!(job.matches("another instance of the job has taken over").count(), 1);
        let audit = page("sessionizer-audit");
        assert!(audit.contains("0 the table is right, 1 it is not"), "{audit}");
        assert!(audit.contains("sessionizer audit"), "as it is typed: {audit}");
    }
}
