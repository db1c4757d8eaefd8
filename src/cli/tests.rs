//! Flags, their variables, and how mistakes are handled.

use std::collections::BTreeMap;

use super::*;

fn parse_with(
    args: &[&str],
    variables: &[(&str, &str)],
) -> Result<(Cli, Environment), clap::Error> {
    let args = std::iter::once(&"sessionizer").chain(args).map(Into::into);
    parse(args, variables.iter().map(|(name, value)| (name.into(), value.into())))
}

/// The mistakes in flags and variables.
fn wrong(args: &[&str], variables: &[(&str, &str)]) -> String {
    let (_, env) = parse_with(args, variables).unwrap_or_else(|why| panic!("{args:?}: {why}"));
    crate::config::Problems::new(&env).fault().to_string()
}

fn run(args: &[&str], variables: &[(&str, &str)]) -> RunArgs {
    let (cli, env) = parse_with(args, variables).unwrap_or_else(|why| panic!("{args:?}: {why}"));
    assert!(crate::config::Problems::new(&env).is_empty(), "{}", wrong(args, variables));
    cli.run
}

#[test]
fn the_definition_is_one_that_clap_accepts() {
    command().debug_assert();
}

/// Sets every flag of every command by its variable: the value must arrive.
#[test]
fn every_flag_has_the_variable_of_its_name() {
    let mut root = command();
    root.build();
    let commands = std::iter::once(("", &root))
        .chain(root.get_subcommands().map(|command| (command.get_name(), command)));
    let mut tried = 0;
    for (name, command) in commands.filter(|(name, _)| *name != "help") {
        for arg in command.get_arguments().filter(|arg| variables::has_variable(name, arg)) {
            let flag = arg.get_long().expect("a long name");
            if flag == "env-file" {
                continue;
            }
            let regular = format!("SESSIONIZER_{}", flag.to_uppercase().replace('-', "_"));
            let all = variables::names(name, flag);
            let own = [("produce", "late"), ("report", "from"), ("report", "host")];
            if !own.contains(&(name, flag)) {
                assert_eq!(all[0], regular);
            }
            let value = match arg.get_action() {
                clap::ArgAction::SetTrue => "yes",
                _ => "0.25",
            };
            let value = if flag == "late" && name != "produce" { "drop" } else { value };
            for variable in all {
                let args: &[&str] = match name {
                    "" => &[],
                    "completions" => &["completions", "bash"],
                    "forget" => &["forget", "--ip", "192.0.2.7"],
                    "redrive" => &["redrive", "--reason", "late"],
                    "produce" => match flag {
                        "days" | "visits" | "tail" | "incidents" => {
                            &["produce", "--scenario", "clean"]
                        }
                        "late-by" => &["produce", "--late", "0.1"],
                        _ => &["produce"],
                    },
                    name => &[name],
                };
                let (cli, env) = parse_with(args, &[(&variable, value)]).expect("it is known");
                assert!(env.warnings().is_empty(), "{variable}");
                let shown = format!("{cli:?}");
                let field = arg.get_id().as_str();
                let want = match arg.get_action() {
                    clap::ArgAction::SetTrue => format!("{field}: true"),
                    _ => format!("{value:?}"),
                };
                assert!(shown.contains(&want), "{variable} does not set --{flag}: {shown}");
                tried += 1;
            }
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn a_flag_counts_more_than_a_variable_and_a_variable_more_than_the_file() {
    let file = std::env::temp_dir().join(format!("sessionizer-{}.env", std::process::id()));
    let text =
        "SESSIONIZER_GAP=1m\nSESSIONIZER_EPOCH='2s'\nSESSIONIZER_TABLE=of_file\nRUST_LOG=x\n";
    std::fs::write(&file, text).expect("a temporary file");
    let path = file.to_str().expect("UTF-8");
    let set = [("SESSIONIZER_GAP", "2m"), ("SESSIONIZER_EPOCH", ""), ("SESSIONIZER_TABLE", "mine")];
    let args = run(&["--env-file", path, "--table=typed"], &set);
    assert_eq!((&*args.gap, &*args.epoch, &*args.table), ("2m", "2s", "typed"));
    assert_eq!(run(&[], &[("SESSIONIZER_ENV_FILE", path)]).gap, "1m");
    for args in [["--env-file", path, "audit"], ["audit", "--env-file", path]] {
        let (_, env) = parse_with(&args, &[]).expect("on either side");
        assert_eq!(env.value("RUST_LOG").as_deref(), Some("x"));
    }
    std::fs::write(&file, "SESSIONIZER_UNTIL_END=hunter\nhunter2\n").expect("written");
    let why = wrong(&["--env-file", path], &[]);
    assert!(why.contains("--env-file") && why.contains("line 2 of"), "{why}");
    assert!(!why.contains("hunter2"), "{why}");
    std::fs::write(&file, "\nSESSIONIZER_UNTIL_END=perhaps\n").expect("written");
    let why = wrong(&["--env-file", path], &[]);
    assert!(why.contains("SESSIONIZER_UNTIL_END") && why.contains("(line 2 of"), "{why}");
    std::fs::remove_file(&file).expect("ours");
    let why = wrong(&["--env-file", "/nowhere/job.env"], &[]);
    assert!(why.contains("--env-file  /nowhere/job.env cannot be read"), "{why}");
}

#[test]
fn a_value_may_begin_with_a_dash_and_may_not_be_missing() {
    assert_eq!(run(&["--gap", "-5m", "-w", "-1"], &[]).gap, "-5m");
    for args in [["-w", "3"], ["-w3", "-p0"], ["-w=3", "-p0"], ["--workers", "3"]] {
        let args = run(&args, &[]);
        assert_eq!(args.workers, "3");
    }
    for (args, want) in [
        (&["--gap", "--table", "x"][..], "--gap  has no value: write --gap DURATION"),
        (&["--gap"], "--gap  has no value"),
        (&["-w", "-p", "1"], "--workers  has no value: write --workers N"),
        (&["--gap="], "--gap  has an empty value"),
        (&["--gap", ""], "--gap  has an empty value"),
        (&["--env-file"], "--env-file  has no value"),
        (&["--env-file", "a", "--env-file", "b"], "--env-file  is given twice"),
    ] {
        let why = wrong(args, &[]);
        assert!(why.contains(want), "{args:?}: {why}");
    }
}

#[test]
fn what_is_unknown_is_refused_with_a_suggestion() {
    let takes_options = "takes nothing but options";
    for (args, want) in [
        (&["prodcue"][..], "did you mean `produce`?"),
        (&["run"], "runs the job: leave out `run`"),
        (&["version"], "--version"),
        (&["web-events"], "brokers, topic and database are set by variables"),
        (&["--until-end", "no"], "--until-end takes no value"),
        (&["--workes", "5"], "did you mean --workers?"),
        (&["--Late_Events", "drop"], "'--Late_Events' found"),
        (&["--max_drift", "5m"], "did you mean --max-drift?"),
        (&["--gpa", "5m"], "did you mean --gap?"),
        (&["-gpa", "5m"], "did you mean --gap?"),
        (&["-W", "5"], "did you mean -w, --workers?"),
        (&["--no-until-end"], "--until-end is off unless it is given"),
        (&["--topic", "x"], "set by the environment variable KAFKA_TOPIC"),
        (&["--bootstrap-server", "x"], "set by the environment variable KAFKA_URL"),
        (&["--postgres-url=x"], "set by the environment variable POSTGRES_URL"),
        (&["--yes"], "--yes is an option of `sessionizer reset`"),
        (&["audit", "--table", "x"], "--table is an option of `sessionizer` without a command"),
        (&["audit", "--shwo", "3"], "did you mean --show?"),
        (&["audit", "web"], takes_options),
        (&["produce", "5"], takes_options),
        (&["--gap", "5m", "check"], "options follow the command: sessionizer check"),
        (&["-w", "2", "audit", "--show", "3"], "options follow the command: sessionizer audit"),
    ] {
        let why = parse_with(args, &[]).err().unwrap_or_else(|| panic!("{args:?} is known"));
        let text = why.to_string();
        assert!(text.contains(want), "{args:?}: {text}");
        assert!(text.matches("tip:").count() <= 1, "{args:?}: {text}");
        assert!(text.lines().all(|line| line.len() <= 80), "{args:?}: {text}");
        assert_eq!((why.exit_code(), only_shows(&why)), (2, false));
    }
}

#[test]
fn a_tip_that_is_ours_is_not_beside_one_of_clap() {
    let text = parse_with(&["--topic", "x"], &[]).err().expect("unknown").to_string();
    assert!(!text.contains("--stop-timeout"), "{text}");
    assert!(text.contains("Usage: sessionizer [OPTIONS]"), "{text}");
}

#[test]
fn no_help_has_two_blank_lines_in_a_row() {
    let root = command();
    let commands = root.get_subcommands().map(|command| Some(command.get_name()));
    for command in std::iter::once(None).chain(commands) {
        let args: Vec<&str> = command.into_iter().chain(["--help"]).collect();
        let text = parse_with(&args, &[]).err().expect("help is shown").to_string();
        assert!(text.contains("Usage: ") && !text.contains("\n\n\n"), "{args:?}: {text}");
    }
}

#[test]
fn a_flag_with_one_dash_or_a_value_too_many_is_refused() {
    for (args, want) in [
        (&["-workers", "4"][..], "-workers  has one dash too few: write --workers"),
        (&["-gap=5m", "-w", "2"], "-gap=5m  has one dash too few: write --gap"),
        (&["-until-end"], "-until-end  has one dash too few: write --until-end"),
        (&["--until-end=no"], "--until-end  takes no value: leave it out"),
    ] {
        let why = wrong(args, &[]);
        assert!(why.contains(want), "{args:?}: {why}");
        assert!(!why.contains("--workers  is"), "{args:?}: {why}");
    }
}

#[test]
fn a_variable_of_a_flag_is_checked_like_the_flag() {
    for (variables, want) in [
        (&[("SESSIONIZER_ACCEPT_LOST_OFFSETS", "never")][..], "is \"never\": it must be true"),
        (&[("SESSIONIZER_UNTIL_END", "2")], "SESSIONIZER_UNTIL_END  is \"2\""),
        (&[("SESSIONIZER_GAP", "\"5m\"")], "SESSIONIZER_GAP  has quotes around it"),
        (&[("KAFKA_URL", "'h:1'")], "KAFKA_URL  has quotes around it"),
        (
            &[("SESSIONIZER_LATE", "drop"), ("SESSIONIZER_LATE_EVENTS", "merge")],
            "SESSIONIZER_LATE_EVENTS  is not the same as SESSIONIZER_LATE",
        ),
    ] {
        let why = wrong(&[], variables);
        assert!(why.contains(want), "{variables:?}: {why}");
    }
    let set =
        [("SESSIONIZER_UNTIL_END", " Yes\r"), ("SESSIONIZER_GAP", " 7m\r"), ("KAFKA_URL", "")];
    let args = run(&[], &set);
    assert_eq!((&*args.gap, args.until_end), ("7m", true));
    assert!(!run(&[], &[("SESSIONIZER_UNTIL_END", "off")]).until_end);
}

#[test]
fn the_job_and_the_producer_do_not_read_each_others_late() {
    let late = |value| run(&[], &[("SESSIONIZER_LATE", value)]).late;
    assert_eq!([late("drop"), late("0.1"), late("dorp")], ["drop", "merge", "dorp"]);
    let of_producer = |variables: &[(&str, &str)]| {
        let (cli, _) = parse_with(&["produce"], variables).expect("valid");
        let Some(Command::Produce(args)) = cli.command else { panic!("another command") };
        args.late
    };
    assert_eq!(of_producer(&[("SESSIONIZER_LATE", "drop")]), "0");
    assert_eq!(of_producer(&[("SESSIONIZER_LATE", "0.1")]), "0.1");
    let both = [("SESSIONIZER_LATE", "drop"), ("SESSIONIZER_PRODUCE_LATE", "0.2")];
    assert_eq!(of_producer(&both), "0.2");
}

#[test]
fn an_unread_variable_is_reported_if_it_looks_like_ours() {
    let warned = |name: &str| {
        let (_, env) = parse_with(&[], &[(name, "x")]).expect("valid");
        env.warnings().join("\n")
    };
    let slips: BTreeMap<&str, &str> = [
        ("SESSIONIZER_GPA", "did you mean SESSIONIZER_GAP?"),
        ("SESSIONIZER_WORKER", "did you mean SESSIONIZER_WORKERS?"),
        ("sessionizer_gap", "did you mean SESSIONIZER_GAP?"),
        ("SESSIONIZER_OUT_OF_ORDERNES", "did you mean SESSIONIZER_OUT_OF_ORDERNESS?"),
        ("SESSIONIZER_WATERMELON_TREE", "is not a variable that sessionizer reads"),
        ("KAFKA_TOPICS", "did you mean KAFKA_TOPIC?"),
        ("KAFKA_BROKERS", "did you mean KAFKA_URL?"),
        ("DATABASE_URL", "did you mean POSTGRES_URL?"),
        ("POSTGRES_USER_FILE", "only secrets can be in files; set POSTGRES_USER"),
        ("KAFKA_WEB_TRAFFIC_KEY_FILE", "only secrets can be in files"),
        ("KAFKA_BOOTSTRAP_SERVERS", "did you mean KAFKA_URL?"),
        ("KAFKA_WEB_TRAFFIC_SECERT", "did you mean KAFKA_WEB_TRAFFIC_SECRET?"),
        ("POSTGRES_PASSWD", "did you mean POSTGRES_PASSWORD?"),
        ("POSTGRES_URI", "did you mean POSTGRES_URL?"),
    ]
    .into();
    for (name, want) in slips {
        let warning = warned(name);
        assert!(warning.contains(want) && warning.starts_with(name), "{name}: {warning}");
    }
    for other in [
        "KAFKA_HEAP_OPTS",
        "KAFKA_OPTS",
        "KAFKA_HOME",
        "KAFKA_LOG_DIRS",
        "KAFKA_NODE_ID",
        "KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS",
        "POSTGRES_DB",
        "POSTGRES_HOST",
        "POSTGRES_PORT",
        "POSTGRES_INITDB_ARGS",
        "SESSIONIZER_TEST_KAFKA",
        "SESSIONIZER_PROGRAM",
        "SESSIONIZER_SEEDS",
        "SESSIONIZER_VISITORS",
        "PATH",
    ] {
        assert_eq!(warned(other), "", "{other}");
    }
    let (_, env) = parse_with(&[], &[("KAFKA_BROKERS", "x"), ("KAFKA_URL", "h:1")]).expect("valid");
    assert!(env.warnings().is_empty(), "KAFKA_URL is set: the other is somebody else's");
}

#[test]
fn secrets_are_taken_as_they_are() {
    let names = ["POSTGRES_PASSWORD", "KAFKA_WEB_TRAFFIC_SECRET", "SESSIONIZER_CLUSTER_SECRET"];
    for (value, want) in [("\"x\"", "quotes"), (" x", "blank"), ("x\n\r", "line break")] {
        for name in names {
            let (_, env) = parse_with(&[], &[(name, value)]).expect("valid");
            assert_eq!(env.secret(name).as_deref(), Some(value));
            let warning = env.warnings().join("\n");
            assert!(warning.contains(name) && warning.contains(want), "{warning}");
            assert!(!warning.contains('x'), "{warning}");
        }
    }
    // One newline at its end is not part of this secret.
    let (_, env) = parse_with(&[], &[("SESSIONIZER_CLUSTER_SECRET", "x\n")]).expect("valid");
    assert!(env.warnings().is_empty(), "{:?}", env.warnings());
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_utf8_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let bad = OsString::from_vec(b"\xff".to_vec());
    let typed = ["sessionizer".into()];
    for name in ["KAFKA_URL", "SESSIONIZER_GAP", "POSTGRES_PASSWORD"] {
        let (_, env) = parse(typed.clone(), [(name.into(), bad.clone())]).expect("valid");
        let why = crate::config::Problems::new(&env).fault().to_string();
        assert!(why.contains(&format!("{name}  is not valid UTF-8")), "{why}");
    }
}

#[test]
fn the_help_names_what_is_required_first_and_fits_the_screen() {
    let mut root = command();
    root.build();
    for name in ["", "produce", "audit", "reset", "demo"] {
        for width in [80, 100] {
            let command = match name {
                "" => root.clone(),
                name => root.find_subcommand(name).expect("there").clone(),
            };
            let mut command = command.term_width(width);
            for help in [command.render_help(), command.render_long_help()] {
                let help = help.to_string();
                let widest = help.lines().map(|line| line.chars().count()).max();
                assert!(widest <= Some(width), "{widest:?} at {width}:\n{help}");
                let required = help.find("POSTGRES_URL").or(help.find("KAFKA_URL"));
                assert!(required < help.find("--job").or(help.find("--help")), "{help}");
            }
        }
    }
    let help = root.term_width(80).render_long_help().to_string();
    for heading in ["Sessions:", "Where to read:", "Where to write:", "Tuning:", "Examples:"] {
        assert!(help.contains(heading), "{heading} is missing:\n{help}");
    }
    assert!(help.contains("[env: SESSIONIZER_GAP] [default: 5m]"), "{help}");
}

#[test]
fn every_command_explains_itself_in_lines_that_a_terminal_does_not_break() {
    let mut root = command();
    root.build();
    for command in root.get_subcommands().chain([&root]) {
        let name = command.get_name();
        // These are laid out by hand: clap would break a longer line anywhere.
        for text in [command.get_before_help(), command.get_after_help()].into_iter().flatten() {
            let text = text.to_string();
            let widest = text.lines().max_by_key(|line| line.chars().count()).unwrap_or_default();
            assert!(widest.chars().count() <= 80, "{name}: {widest}");
        }
        for help in [command.clone().render_help(), command.clone().render_long_help()] {
            let help = help.to_string();
            assert!(!help.contains("\n\n\n"), "{name} has blank lines:\n{help}");
        }
    }
}

/// Why clap refuses these words.
fn refused(words: &[&str]) -> String {
    match parse_with(words, &[]) {
        Ok(_) => panic!("{words:?} is accepted"),
        Err(why) => why.to_string(),
    }
}

#[test]
fn a_stray_word_with_a_value_is_not_repeated_whole() {
    for words in [
        &["POSTGRES_PASSWORD=GEHEIM"][..],
        &["check", "POSTGRES_PASSWORD=GEHEIM"],
        &["--kafka-config", "ssl.ca.location=/x", "sasl.password=GEHEIM"],
        &["jdbc:postgresql://u:GEHEIM@h/db"],
        &["audit", "jdbc:postgresql://u:GEHEIM@h/db"],
    ] {
        let why = refused(words);
        assert!(!why.contains("GEHEIM"), "{why}");
    }
    assert!(refused(&["A=1"]).contains("A=... sessionizer"));
    let why = refused(&["--kafka-config", "a.b=c", "sasl.password=x"]);
    assert!(why.contains("needs a --kafka-config before it"), "{why}");
}

#[test]
fn produce_refuses_what_it_would_ignore() {
    for words in [
        &["produce", "--days", "3"][..],
        &["produce", "--tail", "heavy"],
        &["produce", "--late-by", "2h"],
        &["produce", "--access-log", "x", "--host", "h", "--bad", "0.1"],
    ] {
        refused(words);
    }
}
