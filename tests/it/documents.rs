//! The pages under `docs/` say what the code says.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use carillon::proto::public::ErrorReason;

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn the_page_of_errors_lists_every_reason() {
    let page = read("docs/errors.md");
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect::<Vec<_>>();
    let reasons = (0..1_000).filter_map(|number| ErrorReason::try_from(number).ok());
    let expected: Vec<_> = reasons
        .filter(|reason| *reason != ErrorReason::Unspecified)
        .map(|reason| reason.as_str_name().trim_start_matches("ERROR_REASON_").to_owned())
        .collect();
    assert_eq!(listed, expected);
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
