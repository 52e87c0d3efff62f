//! The pages under `docs/` and the help of the commands say what the code says.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use carillon::cli::Cli;
use carillon::proto::public::ErrorReason;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory as _, Parser as _};

use crate::bad_inputs::raw;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The comments become the documentation of SDKs.
#[test]
fn the_page_of_errors_says_of_every_reason_what_the_proto_file_says() {
    let page = read("docs/errors.md");
    let listed = page.lines().filter_map(|line| {
        let (reason, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
        Some((reason.to_owned(), rest.split_once(" | ")?.1.trim_end_matches(" |").to_owned()))
    });
    let listed: Vec<_> = listed.collect();

    let mut comment = String::new();
    let mut expected = Vec::new();
    for line in read("proto/carillon/v1/errors.proto").lines().map(str::trim) {
        if let Some(more) = line.strip_prefix("//") {
            comment.push_str(more);
        } else if let Some((reason, _)) = line.strip_prefix("ERROR_REASON_").and_then(|rest| rest.split_once(" = ")) {
            expected.push((reason.to_owned(), comment.trim().to_owned()));
            comment.clear();
        } else {
            comment.clear();
        }
    }
    expected.retain(|(reason, _)| reason != "UNSPECIFIED");
    let reasons = (1..1_000).filter_map(|number| ErrorReason::try_from(number).ok());
    assert_eq!(reasons.count(), expected.len(), "the enum is read whole");
    assert_eq!(listed, expected);
}

/// These comments, too.
#[test]
fn every_call_lists_its_errors_and_those_that_come_with_its_fields_are_among_them() {
    let reasons = (1..1_000).filter_map(|number| ErrorReason::try_from(number).ok());
    let reasons: Vec<_> = reasons.map(|reason| reason.as_str_name().replace("ERROR_REASON_", "")).collect();
    let mut calls = 0;
    for file in ["v1/event_service", "v1/event_type", "v1/invocation", "internal/v1/publish", "internal/v1/admin"] {
        let text = read(&format!("proto/carillon/{file}.proto"));
        let mut comment = String::new();
        for line in text.lines().map(str::trim) {
            if let Some(more) = line.strip_prefix("//") {
                comment.push_str(more);
                continue;
            }
            let comment = std::mem::take(&mut comment);
            let Some((name, rest)) = line.strip_prefix("rpc ").and_then(|rest| rest.split_once('(')) else { continue };
            let listed = comment.split_once("Errors: ").unwrap_or_else(|| panic!("{name} lists no errors")).1;
            let listed: Vec<_> = listed
                .split(|letter: char| !letter.is_ascii_uppercase() && letter != '_')
                .filter(|word| word.starts_with(|letter: char| letter.is_ascii_uppercase()) && word.contains('_'))
                .collect();
            for word in &listed {
                assert!(reasons.iter().any(|reason| reason == word), "{name}: {word} is no reason");
            }
            let request = rest.split_once(')').expect("it has a request").0;
            let fields = text.split_once(&format!("\nmessage {request} {{")).expect("it is in the same file").1;
            let fields = fields.split_once("\n}").expect("it ends").0;
            for (field, reason) in [
                (" request_id = ", "REQUEST_ID_REUSED"),
                (" page_token = ", "PAGE_TOKEN_INVALID"),
                (" etag = ", "ETAG_MISMATCH"),
                (" filter = ", "FILTER_INVALID"),
                (" page_size = ", "FIELD_INVALID"),
            ] {
                assert!(!fields.contains(field) || listed.contains(&reason), "{name} does not list {reason}");
            }
            calls += 1;
        }
    }
    assert!(calls > 40, "{calls}");
}

#[test]
fn the_tests_named_for_a_guarantee_exist() {
    the_named_tests_exist("docs/guarantees.md", 25);
}

#[test]
fn the_tests_named_for_bad_input_exist() {
    the_named_tests_exist("docs/bad-inputs.md", 35);
}

/// `folder/file::function`, or `file::*` for all of a file.
fn the_named_tests_exist(page: &str, at_least: usize) {
    let page = read(page);
    let names: Vec<_> = page.split('`').filter(|word| word.contains("::")).collect();
    assert!(names.len() >= at_least, "{names:?}");
    for name in names {
        let (file, function) = name.split_once("::").expect("it has a separator");
        let source = read(&format!("tests/it/{file}.rs"));
        let tests = if function == "*" { "#[tokio::test]".to_owned() } else { format!("fn {function}()") };
        assert!(source.contains(&tests), "{name} is not there");
    }
}

#[test]
fn every_rpc_has_a_file_of_tests_that_is_named_after_it() {
    for rpc in raw::rpcs().iter().filter(|rpc| rpc.path.starts_with("/carillon.")) {
        let (service, method) = rpc.name.split_once('.').expect("it has a separator");
        let mut file = if service == "AdminService" { "admin/".to_owned() } else { String::new() };
        for (place, letter) in method.char_indices() {
            if place > 0 && letter.is_uppercase() {
                file.push('_');
            }
            file.push(letter.to_ascii_lowercase());
        }
        let source = read(&format!("tests/it/{file}.rs"));
        assert!(source.contains("#[tokio::test]"), "tests/it/{file}.rs has no test of {}", rpc.name);
    }
}

/// `CARILLON_UPDATE_DOCS=1` writes the table instead of comparing it: `make readme`.
#[test]
fn the_readme_lists_every_setting_with_its_default() {
    let readme = read("README.md");
    let (before, rest) = readme.split_once("<!-- config:begin -->\n").expect("the marker is there");
    let (table, after) = rest.split_once("<!-- config:end -->").expect("the marker is there");
    let mut expected = String::from("| setting | default | meaning |\n|---|---|---|\n");
    for setting in carillon::config::reference() {
        let (key, default, description) = (setting.key, setting.default, setting.description.replace('|', "\\|"));
        writeln!(expected, "| `{key}` | `{default}` | {description} |").expect("a string takes any text");
    }
    if std::env::var_os("CARILLON_UPDATE_DOCS").is_some() {
        let text = format!("{before}<!-- config:begin -->\n{expected}<!-- config:end -->{after}");
        fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"), text).expect("the README can be written");
        return;
    }
    assert_eq!(table, expected, "the table is old; run: make readme");
}

#[test]
fn every_command_line_of_the_pages_is_one() {
    let docs = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs")).expect("the folder is there");
    let names = docs.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
    let pages = names
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "md"))
        .map(|name| format!("docs/{name}"));
    let (mut lines, mut mentions) = (0, 0);
    for page in pages.chain(["README.md".to_owned()]) {
        let text = read(&page).replace("\\\n", " ").replace("whsec_...", "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3");
        for line in text.lines() {
            if line.starts_with("carillon ") {
                lines += 1;
                let parsed = Cli::try_parse_from(words(line));
                assert!(parsed.is_ok(), "{page}: {line}\n{}", parsed.unwrap_err());
            }
            // In running text a part of a command line will do.
            for mention in line.split('`').skip(1).step_by(2).filter(|part| part.starts_with("carillon ")) {
                mentions += 1;
                let Err(error) = Cli::try_parse_from(words(mention)) else { continue };
                let wrong = matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand);
                assert!(!wrong, "{page}: {mention}\n{error}");
            }
        }
    }
    assert!(lines >= 25 && mentions >= 3, "{lines} {mentions}");
}

#[test]
fn the_help_of_every_command_ends_in_examples_of_it_that_parse() {
    assert!(examples(&Cli::command(), "carillon") >= 100);
}

/// Checks the examples of a command and of those below it, and counts them.
fn examples(command: &Command, path: &str) -> usize {
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let section = help.strip_prefix("Examples:\n").unwrap_or_else(|| panic!("{path} --help has no examples"));
    let lines: Vec<&str> = section.lines().take_while(|line| !line.is_empty()).collect();
    assert!(!lines.is_empty(), "{path} --help has no examples");
    for line in &lines {
        let words = words(line.trim_start());
        assert!(words.join(" ").starts_with(path), "{path} --help shows another command: {line}");
        let parsed = Cli::try_parse_from(words);
        assert!(parsed.is_ok(), "{path}: {line}\n{}", parsed.unwrap_err());
    }
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    lines.len() + below.map(|below| examples(below, &format!("{path} {}", below.get_name()))).sum::<usize>()
}

/// The words of a shell's line up to the first operator or comment; quotes keep a word together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for letter in line.chars().chain([' ']) {
        match letter {
            _ if quote == Some(letter) => quote = None,
            '\'' | '"' if quote.is_none() => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            ' ' if quote.is_none() => match word.take().as_deref() {
                Some("|" | "&" | "&&" | "#" | ">" | "<") => return words,
                Some(whole) => words.push(whole.to_owned()),
                None => {}
            },
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words
}
