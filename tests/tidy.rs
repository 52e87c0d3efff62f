//! The shape of the source tree as a test: which folder may know which, which big dependency lives where, and the small
//! things that reviews forget.
//!
//! It reads every Rust file as text, takes comments and literals apart from code, and prints each breach as
//! `file:line: rule`. It must never need a build of the crate, the network or a database.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What each folder below `src/` may use of the others. `*` means all of them.
const LAYERS: &[(&str, &str)] = &[
    ("domain", ""),
    ("clock", ""),
    ("proto", ""),
    ("planted", ""),
    ("shutdown", ""),
    ("telemetry", "shutdown"),
    ("feed", "domain"),
    ("long_work", "domain"),
    ("turnstile", "domain"),
    ("wire", "proto domain"),
    ("store", "domain feed turnstile clock planted"),
    ("publish", "domain store feed long_work clock shutdown telemetry"),
    ("watch", "domain store wire proto feed long_work turnstile clock shutdown telemetry planted"),
    ("executor", "domain turnstile clock shutdown telemetry"),
    ("dispatch", "domain store publish executor feed turnstile clock shutdown telemetry planted"),
    ("pending", "domain store publish executor feed long_work turnstile clock shutdown telemetry planted"),
    ("api", "proto wire domain store publish pending watch dispatch feed long_work turnstile clock shutdown telemetry"),
    ("config", "*"),
    ("app", "*"),
    ("cli", "*"),
    ("dev", "*"),
    ("lib", "*"),
    ("main", "*"),
];

/// A word of code that may stand only below some paths: (words, allowed path prefixes, rule).
const HOMES: &[(&[&str], &[&str], &str)] = &[
    (&["sqlx::"], &["store/", "dev/"], "sqlx only in store/ and dev/"),
    (
        &["tonic::", "tonic_types::", "tonic_prost::", "tonic_web::", "tonic_health::", "tonic_reflection::"],
        &["api/", "app.rs", "cli/", "proto.rs", "watch/codec.rs"],
        "tonic only in api/, app.rs, cli/, proto.rs and watch/codec.rs",
    ),
    (
        &["opentelemetry::", "opentelemetry_sdk::", "opentelemetry_otlp::", "tracing_opentelemetry::"],
        &["telemetry/", "telemetry.rs"],
        "OpenTelemetry only in telemetry",
    ),
    (
        &["hyper_util::client", "hyper::client", "reqwest::"],
        &["executor/", "cli/"],
        "the HTTP client only in executor/ and cli/",
    ),
    (&["std::env", "env::var"], &["config.rs", "config/", "main.rs"], "the environment only in config and main"),
    (
        &["Utc::now", "Local::now", "SystemTime::now", "rand::"],
        &["clock.rs"],
        "the wall clock and randomness only in clock.rs",
    ),
];

/// A piece of code that no source file may hold outside tests.
const NEVER_IN_SOURCE: &[&str] = &[".unwrap()"];
/// Where a piece of code is allowed all the same: (file, piece). Each needs a reason here.
const EXCEPTIONS: &[(&str, &str)] = &[
    // The end of a throw-away server is waited for in a drop, which cannot await.
    ("src/dev/server.rs", "thread::sleep"),
    // So is the end of what the children of a killed program still write below it.
    ("src/dev/postgres.rs", "thread::sleep"),
];
/// A piece of code that no file may hold at all.
const NEVER: &[&str] = &["todo!", "unimplemented!", "#[allow", "#![allow", "#[ignore", "thread::sleep"];
/// What the tests under `tests/` may not do besides.
const NEVER_IN_TESTS: &[&str] = &["time::sleep"];
/// Words that leave work for later.
const NOTES: &[&str] = &["TODO", "FIXME", "HACK", "XXX"];
const LINES_MAX: usize = 500;

#[test]
fn the_source_tree_keeps_its_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut breaches = Vec::new();
    let mut seen = 0_usize;
    for folder in ["src", "tests"] {
        for path in rust_files(&root.join(folder)) {
            let text = fs::read_to_string(&path).expect("a listed file can be read");
            let name = path.strip_prefix(root).expect("listed below the root").to_string_lossy().into_owned();
            breaches.extend(check(&name, &text));
            seen += 1;
        }
    }
    assert!(seen > 20, "only {seen} files found: is the list of files broken?");
    assert!(breaches.is_empty(), "{} breaches:\n{}", breaches.len(), breaches.join("\n"));
}

#[test]
fn no_default_and_no_build_but_the_fault_suites_has_planted_defects() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let manifest = read("Cargo.toml");
    let features: Vec<&str> = manifest
        .lines()
        .skip_while(|line| *line != "[features]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .collect();
    assert!(features.contains(&"default = []") && features.contains(&"planted-defects = []"), "{features:?}");
    assert_eq!(features.iter().filter(|line| line.contains("planted-defects")).count(), 1, "{features:?}");
    assert!(!read(".ci/run").contains("features"), "what is checked is what is released");
    let makefile = read("Makefile");
    let recipe = makefile.split("\nfaults:").nth(1).and_then(|rest| rest.split("\n\n").next()).unwrap_or_default();
    assert!(recipe.contains("--features planted-defects"), "{recipe}");
    assert_eq!(makefile.matches("features").count(), 1, "only the fault suite builds with a feature");
}

#[test]
fn one_tls_stack_and_no_ring() {
    // The lock file also names what no feature turns on, so the tree of what is built is asked.
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "all", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    let printed = String::from_utf8_lossy(&tree.stdout);
    assert!(printed.contains("aws-lc-rs v"), "cargo tree said {}", String::from_utf8_lossy(&tree.stderr));
    let found = banned_packages(&printed);
    assert!(found.is_empty(), "the build holds {found:?}: one TLS stack (rustls on aws-lc-rs), no second one");
}

/// The packages of a second TLS stack in the output of `cargo tree`.
fn banned_packages(tree: &str) -> BTreeSet<&str> {
    let banned = ["ring", "openssl", "openssl-sys", "native-tls", "boring"];
    tree.lines().filter_map(|line| line.split(' ').next()).filter(|name| banned.contains(name)).collect()
}

/// Every breach in one file, as `file:line: rule`.
fn check(name: &str, text: &str) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut report = |line: usize, rule: String| breaches.push(format!("{name}:{line}: {rule}"));
    let in_source = name.strip_prefix("src/");
    let whole_file_is_test = in_source.is_none() || name.ends_with("/tests.rs") || name.contains("/tests/");
    let lines = test_regions(scan(text), whole_file_is_test);

    if !text.starts_with("//!") {
        report(1, "a file opens with `//!`: what it is, where it sits, what it must never do".to_owned());
    }
    if lines.len() > LINES_MAX {
        report(LINES_MAX + 1, format!("{} lines; the most is {LINES_MAX}", lines.len()));
    }
    if name == "src/main.rs" && lines.len() > 40 {
        report(41, format!("main.rs has {} lines; the most is 40", lines.len()));
    }
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        for word in NEVER.iter().filter(|word| line.code.contains(**word) && !EXCEPTIONS.contains(&(name, **word))) {
            report(number, format!("`{word}` is not allowed"));
        }
        for word in NOTES.iter().filter(|word| has_word(&line.comment, word) || has_word(&line.code, word)) {
            report(number, format!("`{word}`: do it now, or write an issue"));
        }
        if in_source.is_none() {
            for word in NEVER_IN_TESTS.iter().filter(|word| line.code.contains(**word)) {
                report(number, format!("`{word}` in a test: wait on a predicate instead"));
            }
        }
        if line.test {
            continue;
        }
        for word in NEVER_IN_SOURCE.iter().filter(|word| line.code.contains(**word)) {
            report(number, format!("`{word}` outside tests"));
        }
        let Some(inside) = in_source else { continue };
        for (words, homes, rule) in HOMES {
            let at_home = homes.iter().any(|home| inside.starts_with(home));
            if !at_home && words.iter().any(|word| has_path(&line.code, word)) {
                report(number, (*rule).to_owned());
            }
        }
    }
    if let Some(inside) = in_source {
        let code: Vec<&str> = lines.iter().map(|line| if line.test { "" } else { line.code.as_str() }).collect();
        for (number, used) in uses(inside, &code) {
            if let Some(rule) = direction(inside, &used) {
                report(number, rule);
            }
        }
    }
    breaches
}

/// Why a file may not use a top-level module; none where it may.
fn direction(inside: &str, used: &str) -> Option<String> {
    let own = inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs");
    if own == used || !LAYERS.iter().any(|(layer, _)| *layer == used) {
        return None;
    }
    match LAYERS.iter().find(|(layer, _)| *layer == own) {
        None => Some(format!("`{own}` has no place in the layers: give it one in tests/tidy.rs")),
        Some((_, allowed)) if allowed.split(' ').any(|one| one == "*" || one == used) => None,
        Some((_, allowed)) => Some(format!("`{own}` must not use `{used}`; it may use: {allowed}")),
    }
}

/// The top-level modules that a file names, by `crate::` or by enough `super::`, with the line of each.
fn uses(inside: &str, code: &[&str]) -> BTreeSet<(usize, String)> {
    let parts = inside.split('/').count();
    let depth = if inside.ends_with("/mod.rs") { parts - 1 } else { parts };
    let to_root = "super::".repeat(depth);
    let mut joined = String::new();
    let mut starts = Vec::new();
    for line in code {
        starts.push(joined.len());
        joined.push_str(line);
        joined.push('\n');
    }
    let line_of = |offset: usize| starts.partition_point(|start| *start <= offset);
    let mut found = BTreeSet::new();
    for prefix in ["crate::", to_root.as_str()] {
        for (offset, _) in joined.match_indices(prefix) {
            let before = joined[..offset].chars().next_back();
            let is_inside_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$');
            if is_inside_word || joined[..offset].trim_end().ends_with("pub(in") {
                continue;
            }
            let rest = &joined[offset + prefix.len()..];
            if let Some(group) = rest.trim_start().strip_prefix('{') {
                let base = joined.len() - group.len();
                found.extend(group_heads(group).into_iter().map(|(at, head)| (line_of(base + at), head)));
            } else {
                let head: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if !head.is_empty() {
                    found.insert((line_of(offset), head));
                }
            }
        }
    }
    found
}

/// The first word of each member of a braced `use` group whose opening brace is already taken.
fn group_heads(group: &str) -> Vec<(usize, String)> {
    let mut heads = Vec::new();
    let mut depth = 1_usize;
    let mut start_of_member = true;
    let mut chars = group.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            ',' if depth == 1 => start_of_member = true,
            c if start_of_member && (c.is_alphabetic() || c == '_') => {
                let mut head = String::from(c);
                while let Some((_, next)) = chars.next_if(|(_, next)| next.is_alphanumeric() || *next == '_') {
                    head.push(next);
                }
                heads.push((at, head));
                start_of_member = false;
            }
            _ => {}
        }
    }
    heads
}

/// Whether a path occurs and its first word is not merely the end of another.
fn has_path(code: &str, path: &str) -> bool {
    code.match_indices(path).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

fn has_word(text: &str, word: &str) -> bool {
    let edge = |c: Option<char>| !c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .any(|(at, _)| edge(text[..at].chars().next_back()) && edge(text[at + word.len()..].chars().next()))
}

/// One line, taken apart.
#[derive(Debug, Default, Clone)]
struct Line {
    /// What the compiler reads; the inside of literals is left out.
    code: String,
    comment: String,
    test: bool,
}

/// Takes code, comments and literals apart.
fn scan(text: &str) -> Vec<Line> {
    #[derive(Clone, Copy)]
    enum State {
        Code,
        LineComment,
        BlockComment(usize),
        Text,
        RawText(usize),
    }
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let chars: Vec<char> = text.chars().collect();
    let ahead = |at: usize, wanted: &str| wanted.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let mut at = 0;
    while at < chars.len() {
        let c = chars[at];
        if c == '\n' {
            if matches!(state, State::LineComment) {
                state = State::Code;
            }
            lines.push(Line::default());
            at += 1;
            continue;
        }
        let line = lines.last_mut().expect("there is always a last line");
        let mut step = 1;
        match state {
            State::Code if ahead(at, "//") => (state, step) = (State::LineComment, 2),
            State::Code if ahead(at, "/*") => (state, step) = (State::BlockComment(1), 2),
            State::Code if c == '"' => state = State::Text,
            State::Code if c == 'r' && !chars[..at].last().is_some_and(|b| b.is_alphanumeric() && *b != 'b') => {
                let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
                if chars.get(at + 1 + hashes) == Some(&'"') {
                    (state, step) = (State::RawText(hashes), 2 + hashes);
                } else {
                    line.code.push(c);
                }
            }
            // A character, not a lifetime: it closes after one character or one escape.
            State::Code if c == '\'' && chars.get(at + 1) == Some(&'\\') => {
                step = 2 + chars[at + 2..].iter().skip(1).take_while(|c| **c != '\'').count() + 2;
            }
            State::Code if c == '\'' && chars.get(at + 2) == Some(&'\'') => step = 3,
            State::Code => line.code.push(c),
            State::BlockComment(depth) if ahead(at, "*/") => {
                (state, step) = (if depth == 1 { State::Code } else { State::BlockComment(depth - 1) }, 2);
            }
            State::BlockComment(depth) if ahead(at, "/*") => (state, step) = (State::BlockComment(depth + 1), 2),
            State::LineComment | State::BlockComment(_) => line.comment.push(c),
            State::Text if c == '\\' && chars.get(at + 1) != Some(&'\n') => step = 2,
            State::Text if c == '"' => state = State::Code,
            State::RawText(hashes) if c == '"' && ahead(at + 1, &"#".repeat(hashes)) => {
                (state, step) = (State::Code, 1 + hashes);
            }
            State::Text | State::RawText(_) => {}
        }
        at += step;
    }
    if lines.last().is_some_and(|line| line.code.is_empty() && line.comment.is_empty()) {
        lines.pop();
    }
    lines
}

/// Marks the lines of `#[cfg(test)]` items.
fn test_regions(mut lines: Vec<Line>, all: bool) -> Vec<Line> {
    let mut open: Option<(usize, bool)> = None;
    for line in &mut lines {
        if open.is_none() && line.code.contains("#[cfg(test)]") {
            open = Some((0, false));
        }
        line.test = all || open.is_some();
        let Some((mut depth, mut entered)) = open else { continue };
        let mut ended = false;
        for c in line.code.chars() {
            match c {
                '{' => (depth, entered) = (depth + 1, true),
                '}' => depth = depth.saturating_sub(1),
                ';' if !entered => ended = true,
                _ => {}
            }
        }
        open = if ended || (entered && depth == 0) { None } else { Some((depth, entered)) };
    }
    lines
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the source tree can be listed") {
            let path = entry.expect("an entry can be read").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && name != "node_modules" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[test]
fn a_forbidden_direction_is_found_in_every_spelling() {
    let cases = [
        ("src/domain/ids.rs", "use crate::store::Store;"),
        ("src/domain/ids.rs", "use crate::{\n    domain::event,\n    store::{Store, events},\n};"),
        ("src/domain/ids.rs", "fn f() { crate::clock::now(); }"),
        ("src/domain/ids.rs", "use super::super::store::Store;"),
        ("src/domain/mod.rs", "use super::store::Store;"),
        ("src/store/mod.rs", "use crate::publish::Registry;"),
        ("src/executor/webhook.rs", "use crate::store::Store;"),
        ("src/wire/event.rs", "use crate::api::status;"),
        ("src/nowhere.rs", "use crate::domain::ids;"),
    ];
    for (name, code) in cases {
        let found = check(name, &format!("//! A file.\n{code}\n"));
        assert_eq!(found.len(), 1, "{name}: {code}: {found:?}");
        assert!(found[0].starts_with(&format!("{name}:")), "{found:?}");
    }
}

#[test]
fn an_allowed_direction_is_left_alone() {
    let cases = [
        ("src/store/events.rs", "use crate::domain::ids;\nuse super::StoreError;\npub(in crate::store) fn f() {}"),
        ("src/api/mod.rs", "use crate::{proto, wire, watch::Ring};"),
        ("src/cli/serve.rs", "use crate::app::App;"),
        ("src/domain/ids.rs", "//! Made by [`crate::clock`].\nfn f() {}"),
        ("src/domain/ids.rs", "#[cfg(test)]\nmod tests {\n    use crate::clock;\n}\n"),
        ("src/domain/ids.rs", "const TEXT: &str = \"use crate::store\";"),
    ];
    for (name, code) in cases {
        let found = check(name, &format!("//! A file.\n{code}\n"));
        assert!(found.is_empty(), "{name}: {code}: {found:?}");
    }
}

#[test]
fn what_is_never_allowed_is_found_outside_literals_only() {
    let cases = [
        ("src/a/b.rs", "fn f() { x.unwrap() }", 1),
        ("src/a/b.rs", "fn f() { \"x.unwrap()\"; }", 0),
        ("src/a/b.rs", "#[cfg(test)]\nmod tests {\n fn f() { x.unwrap() }\n}", 0),
        ("src/a/b.rs", "#[cfg(test)]\nmod tests;\nfn f() { x.unwrap() }", 1),
        ("src/a/tests.rs", "fn f() { x.unwrap() }", 0),
        ("src/a/b.rs", "fn f() { '\"'; x.unwrap(); '\\''; }", 1),
        ("src/a/b.rs", "fn f<'a>(x: &'a str) { r#\"todo!\"#; }", 0),
        ("src/a/b.rs", "/* todo!() */ fn f() {}", 0),
        ("src/a/b.rs", "#[allow(dead_code)]\nfn f() {}", 1),
        ("src/a/b.rs", "fn f() { todo!() }", 1),
        ("tests/it/a.rs", "#[ignore]\nfn f() {}", 1),
        ("tests/it/a.rs", "fn f() { tokio::time::sleep(x).await }", 1),
        ("src/publish/a.rs", "use sqlx::PgPool;", 1),
        ("src/store/a.rs", "use sqlx::PgPool;", 0),
        ("src/dispatch/a.rs", "fn f() -> tonic::Status {}", 1),
        ("src/dispatch/a.rs", "fn f() { std::env::var(x) }", 1),
        ("src/dispatch/a.rs", "fn f() { chrono::Utc::now() }", 1),
        ("src/dispatch/a.rs", "fn f() { operand::x() }", 0),
    ];
    for (name, code, expected) in cases {
        let found = check(name, &format!("//! A file.\n{code}\n"));
        assert_eq!(!found.is_empty(), expected == 1, "{name}: {code}: {found:?}");
    }
    for note in NOTES {
        assert_eq!(check("src/a.rs", &format!("//! A file.\n// {note}: later\n")).len(), 1);
    }
}

#[test]
fn long_files_and_files_without_an_opening_are_found() {
    assert_eq!(check("src/a.rs", "fn f() {}\n").len(), 1);
    let long = format!("//! A file.\n{}", "fn f() {}\n".repeat(LINES_MAX));
    assert_eq!(check("src/a.rs", &long), [format!("src/a.rs:501: 501 lines; the most is {LINES_MAX}")]);
    let fat_main = format!("//! A file.\n{}", "fn f() {}\n".repeat(40));
    assert_eq!(check("src/main.rs", &fat_main).len(), 1);
}

#[test]
fn a_banned_package_is_found() {
    assert_eq!(banned_packages("rustls v0.23.46\nring v0.17.0 (*)\n").into_iter().collect::<Vec<_>>(), ["ring"]);
    assert!(banned_packages("bring v1.0.0\nopenssl-probe v0.2.2\n").is_empty());
}
