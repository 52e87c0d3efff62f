//! From the sources to a [`Config`]: merge, then blame the one key that does not fit.

use super::{Config, reference};
use crate::cli::Cli;
use clap::CommandFactory as _;
use std::ffi::OsString;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use toml::{Table, Value};

/// What every variable of a setting starts with.
const PREFIX: &str = "CARILLON_";

/// Where settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Environment variables, name and value; a value that is no text is refused where a setting has it.
    pub environment: Vec<(String, OsString)>,
    /// Dotted keys and values of the command line.
    pub flags: Vec<(String, String)>,
}

impl Sources {
    /// A file and the environment of this process.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let named = |(name, value): (OsString, OsString)| (name.to_string_lossy().into_owned(), value);
        Self { file, environment: std::env::vars_os().map(named).collect(), flags }
    }
}

/// Why the configuration is refused. Names keys, never values.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {reason}; --config or CARILLON_CONFIG names it", path.display())]
    FileUnreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The file is not TOML, or names a key twice.
    #[error("the configuration file {} is not valid TOML: line {line}: {message}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// What is wrong.
        message: String,
    },
    /// No such key.
    #[error("unknown setting {key} ({origin}){near}")]
    Unknown {
        /// The dotted key.
        key: String,
        /// Where it was given.
        origin: String,
        /// A key that looks like it.
        near: String,
    },
    /// A value that does not fit its key.
    #[error("bad value for {key} ({origin}): {reason}")]
    Value {
        /// The dotted key.
        key: String,
        /// Where it was given.
        origin: String,
        /// What is expected.
        reason: String,
    },
    /// A key that breaks a rule, or is missing.
    #[error("setting {key}: {reason}")]
    Rule {
        /// The dotted key.
        key: String,
        /// What the rule is.
        reason: String,
    },
}

impl ConfigError {
    /// A key that breaks a rule.
    pub fn bad(key: &str, reason: impl Into<String>) -> Self {
        Self::Rule { key: key.to_owned(), reason: reason.into() }
    }
}

/// One value, where it goes and where it came from.
struct Leaf {
    path: Vec<String>,
    value: Value,
    origin: String,
}

impl Leaf {
    fn key(&self) -> String {
        self.path.join(".")
    }

    /// A configuration that sets this and nothing else.
    fn alone(&self, value: Value) -> Value {
        self.path.iter().rev().fold(value, |inner, name| Value::Table(Table::from_iter([(name.clone(), inner)])))
    }

    fn fits(&self, value: &Value) -> Result<(), toml::de::Error> {
        self.alone(value.clone()).try_into::<Config>().map(drop)
    }
}

/// Merges the sources; every leaf is checked by itself, so that an error names its key.
pub(super) fn merge(sources: &Sources) -> Result<Config, ConfigError> {
    let mut leaves = Vec::new();
    if let Some(path) = &sources.file {
        let origin = format!("file {}", path.display());
        flatten(read(path)?, &mut Vec::new(), &origin, &mut leaves);
    }
    for (name, value) in &sources.environment {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let origin = format!("variable {name}");
        if rest.contains("__") {
            let path: Vec<_> = rest.split("__").map(str::to_lowercase).collect();
            let Some(text) = value.to_str() else {
                return Err(ConfigError::Value { key: path.join("."), origin, reason: "must be UTF-8".to_owned() });
            };
            leaves.push(Leaf { path, value: Value::String(text.to_owned()), origin });
        } else if let Some(setting) = reference().into_iter().find(|s| s.variable.replace("__", "_") == *name) {
            let near = format!("; did you mean {}?", setting.variable);
            return Err(ConfigError::Unknown { key: setting.key, origin, near });
        } else if !is_of_the_tools(name) && !is_of_an_orchestrator(rest, &value.to_string_lossy()) {
            let near = "; settings are CARILLON_SECTION__KEY".to_owned();
            return Err(ConfigError::Unknown { key: rest.to_lowercase(), origin, near });
        }
    }
    for (key, text) in &sources.flags {
        let path = key.split('.').map(str::to_owned).collect();
        leaves.push(Leaf { path, value: Value::String(text.clone()), origin: "--set".to_owned() });
    }

    let mut merged = Table::new();
    for leaf in leaves {
        let value = typed(&leaf)?;
        insert(&mut merged, &leaf.path, value);
    }
    // Leaves that fit alone fit together, so this fails only where a section was given as a value.
    Value::Table(merged).try_into().map_err(|_| ConfigError::bad("(root)", "the settings do not fit together"))
}

/// Variables of the commands' own options, and of the tests and scripts around them.
fn is_of_the_tools(name: &str) -> bool {
    fn of(command: &clap::Command, name: &str) -> bool {
        command.get_arguments().any(|argument| argument.get_env().is_some_and(|known| known == name))
            || command.get_subcommands().any(|command| of(command, name))
    }
    name == "CARILLON_UPDATE_DOCS" || of(&Cli::command(), name)
}

/// Variables that Kubernetes makes for every service of the namespace, one named `carillon...` included.
fn is_of_an_orchestrator(rest: &str, value: &str) -> bool {
    let is_link = |name: &str| {
        ["_TCP", "_UDP", "_PROTO", "_PORT", "_ADDR"].iter().any(|end| name.ends_with(end))
            && name.split('_').any(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let is_service = rest.ends_with("SERVICE_HOST") || rest.contains("SERVICE_PORT");
    let is_port = (rest == "PORT" || rest.ends_with("_PORT")) && value.contains("://");
    is_service || is_port || rest.contains("PORT_") && is_link(rest)
}

fn read(path: &PathBuf) -> Result<Table, ConfigError> {
    let text = fs::read_to_string(path).map_err(|reason| ConfigError::FileUnreadable { path: path.clone(), reason })?;
    text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        ConfigError::Syntax {
            path: path.clone(),
            line: before.matches('\n').count() + 1,
            message: match error.span().and_then(|span| key_at(&text, span)) {
                Some(key) => format!("{}: {key}", error.message()),
                None => error.message().to_owned(),
            },
        }
    })
}

/// The key that stands there; none for anything else, which may be a value.
fn key_at(text: &str, span: Range<usize>) -> Option<&str> {
    let (key, rest) = (text.get(span.clone())?, text.get(span.end..)?.trim_start());
    let is_key = key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    (is_key && !key.is_empty() && rest.starts_with(['=', ']', '.'])).then_some(key)
}

fn flatten(table: Table, path: &mut Vec<String>, origin: &str, leaves: &mut Vec<Leaf>) {
    for (name, value) in table {
        path.push(name);
        match value {
            Value::Table(inner) if !inner.is_empty() => flatten(inner, path, origin, leaves),
            value => leaves.push(Leaf { path: path.clone(), value, origin: origin.to_owned() }),
        }
        path.pop();
    }
}

fn insert(table: &mut Table, path: &[String], value: Value) {
    match path {
        [] => {}
        [last] => {
            table.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            let inner = table.entry(first.clone()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// The leaf's value in the type its key takes: texts of variables and flags are read as TOML, or as comma-separated lists, where
/// the plain text does not fit.
fn typed(leaf: &Leaf) -> Result<Value, ConfigError> {
    let error = match leaf.fits(&leaf.value) {
        Ok(()) => return Ok(leaf.value.clone()),
        Err(error) => error,
    };
    let from_text = !leaf.origin.starts_with("file");
    if let (true, Value::String(text)) = (from_text, &leaf.value) {
        let parsed = format!("value = {text}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        let list = || text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(|s| Value::String(s.to_owned()));
        for candidate in parsed.into_iter().chain([Value::Array(list().collect())]) {
            if leaf.fits(&candidate).is_ok() {
                return Ok(candidate);
            }
        }
    }
    let message = error.message();
    if message.starts_with("unknown field") {
        let near = nearest(&leaf.key()).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        // Within a list of tables the field that is unknown is inside the leaf.
        let inner = message.split('`').nth(1).filter(|name| leaf.path.last().is_some_and(|last| last != name));
        let inner = inner.filter(|name| !leaf.path.iter().any(|part| part == name));
        let key = inner.map_or_else(|| leaf.key(), |name| format!("{}.{name}", leaf.key()));
        return Err(ConfigError::Unknown { key, origin: leaf.origin.clone(), near });
    }
    let described = || {
        let setting = reference().into_iter().find(|setting| setting.key == leaf.key());
        setting.map_or_else(|| "does not fit".to_owned(), |setting| format!("does not fit: {}", setting.description))
    };
    // Only what is expected may be told: the rest of the message quotes the value.
    let reason = match message.rsplit_once(", expected ") {
        // It was read as a list, too: one of its parts does not fit.
        Some((_, "a sequence")) if from_text => {
            format!("{}; a list is written a,b or in TOML, such as [\"a\", \"b\"]", described())
        }
        Some((_, expected)) => format!("expected {}", in_words(expected)),
        None => described(),
    };
    Err(ConfigError::Value { key: leaf.key(), origin: leaf.origin.clone(), reason })
}

/// What the parser expects, as people say it.
fn in_words(expected: &str) -> &str {
    match expected {
        "a sequence" => "a list",
        "a boolean" => "true or false",
        "usize" | "u16" | "u32" | "u64" => "a whole number, 0 or more",
        "f64" => "a number",
        other if other.starts_with("struct ") => "a section of settings",
        other => other,
    }
}

/// The known key that is most like an unknown one, where any is.
fn nearest(key: &str) -> Option<String> {
    let (distance, near) = reference().into_iter().map(|setting| (distance(key, &setting.key), setting.key)).min()?;
    (distance <= 3).then_some(near)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::ffi::OsStringExt as _;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn load(text: &str, environment: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = file(text);
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
        let flags = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        merge(&Sources { file: Some(file.path().to_owned()), environment, flags })
    }

    #[test]
    fn later_sources_win() {
        let text = "[server]\nconnections_max = 10\nstreams_per_connection = 11\nmessage_bytes_max = 5000\n";
        let environment =
            [("CARILLON_SERVER__STREAMS_PER_CONNECTION", "12"), ("CARILLON_SERVER__MESSAGE_BYTES_MAX", "6000")];
        let config = load(text, &environment, &[("server.message_bytes_max", "7000")]).unwrap().server;
        assert_eq!(config.connections_max, 10);
        assert_eq!(config.streams_per_connection, 12);
        assert_eq!(config.message_bytes_max, 7000);
    }

    #[test]
    fn texts_become_lists_and_flags() {
        let environment = [
            ("CARILLON_OPERATORS__SUBJECTS", "uri:spiffe://a/b, dns:c"),
            ("CARILLON_SERVER__PLAINTEXT_BEHIND_PROXY", "true"),
            ("CARILLON_SERVER__CORS_ORIGINS", r#"["https://a.example"]"#),
            // As Kubernetes makes them for a service that is called carillon.
            ("CARILLON_PORT", "tcp://10.0.0.1:7070"),
            ("CARILLON_PORT_7070_TCP", "tcp://10.0.0.1:7070"),
            ("CARILLON_PORT_7070_TCP_ADDR", "10.0.0.1"),
            ("CARILLON_PORT_7070_TCP_PROTO", "tcp"),
            ("CARILLON_SERVICE_HOST", "10.0.0.1"),
            ("CARILLON_SERVICE_PORT_GRPC", "7070"),
            ("CARILLON_INTERNAL_SERVICE_PORT", "7071"),
            ("CARILLON_INTERNAL_PORT_7071_TCP_PORT", "7071"),
            // Of the commands themselves.
            ("CARILLON_CACHE", "x"),
            ("CARILLON_CONFIG", "x"),
            ("CARILLON_API_KEY", "x"),
            ("CARILLON_UPDATE_DOCS", "1"),
        ];
        let config = load("", &environment, &[]).unwrap();
        assert_eq!(config.operators.subjects, ["uri:spiffe://a/b", "dns:c"]);
        assert!(config.server.plaintext_behind_proxy);
        assert_eq!(config.server.cors_origins, ["https://a.example"]);
        let flags =
            [("executor.allow_private_ranges", "10.0.0.0/8, ::1/128"), ("operators.subjects", r#"["dns:a", "dns:b"]"#)];
        let config = load("", &[], &flags).unwrap();
        assert_eq!(config.executor.allow_private_ranges.len(), 2);
        assert_eq!(config.operators.subjects, ["dns:a", "dns:b"]);
        let file = Some(PathBuf::from("x"));
        let mut config = config;
        config.database.url = Some("postgres://x@localhost/x".into());
        let tls = &mut config.server.internal_tls;
        (tls.certificate_file, tls.key_file, tls.client_ca_file) = (file.clone(), file.clone(), file);
        for wrong in ["uri:", "dns:", "uri:orders", "dns:*.example", "cn:x"] {
            let mut config = config.clone();
            config.operators.subjects.push(wrong.to_owned());
            let said = config.check().unwrap_err().to_string();
            assert!(said.contains("operators.subjects"), "{wrong}: {said}");
        }
    }

    #[test]
    fn errors_name_the_key_and_never_the_value() {
        const SECRET: &str = "hunter2, expected";
        let bad = format!("[server]\nconnections_max = \"{SECRET}\"\n");
        let key = format!("[[secrets.keys]]\nid = \"a\"\nkay = \"{SECRET}\"\n");
        let twice = format!("[log]\nlevel = \"{SECRET}\"\nlevel = \"{SECRET}\"\n");
        let level = format!("[log]\nformat = \"{SECRET}\"\n");
        let said = |result: Result<Config, ConfigError>| result.unwrap_err().to_string();
        let cases = [
            (said(load(&bad, &[], &[])), "server.connections_max"),
            (said(load(&key, &[], &[])), "secrets.keys.kay"),
            (said(load(&twice, &[], &[])), "line 3"),
            (said(load(&level, &[], &[])), "log.format"),
            (said(load(&format!("server = \"{SECRET}\"\n"), &[], &[])), "server"),
            (said(load(&format!("[server]\nconections_max = \"{SECRET}\"\n"), &[], &[])), "server.connections_max"),
            (said(load("", &[("CARILLON_SERVER__PUBLIC_LISTEN", SECRET)], &[])), "server.public_listen"),
            (said(load("", &[("CARILLON_NOTHING__AT_ALL", SECRET)], &[])), "nothing.at_all"),
            (said(load("", &[("CARILLON_DATABASE_URL", SECRET)], &[])), "CARILLON_DATABASE__URL"),
            (said(load("", &[("CARILLON_BOGUS", SECRET)], &[])), "CARILLON_BOGUS"),
            (said(load("", &[("CARILLON_PORT", SECRET)], &[])), "CARILLON_PORT"),
            (said(load("", &[("CARILLON_LOG_LEVEL", SECRET)], &[])), "CARILLON_LOG__LEVEL"),
            (said(load("", &[], &[("log.levle", SECRET)])), "log.level"),
            (said(load("", &[], &[("", SECRET)])), "setting"),
        ];
        for (text, expected) in cases {
            assert!(text.contains(expected), "{text}");
            assert!(!text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn a_variable_of_a_setting_that_is_no_text_is_refused_and_others_may_be_anything() {
        let of = |name: &str| {
            let environment = vec![(name.to_owned(), OsString::from_vec(b"hunter2 \xff".to_vec()))];
            merge(&Sources { environment, ..Sources::default() })
        };
        let said = of("CARILLON_DATABASE__URL").unwrap_err().to_string();
        assert_eq!(said, "bad value for database.url (variable CARILLON_DATABASE__URL): must be UTF-8");
        // A folder's name may be any bytes.
        assert!(of("CARILLON_DIR").is_ok() && of("PATH").is_ok());
        // Neither is a name that is no text passed over.
        assert!(of("CARILLON_DATABASE__URL\u{fffd}").is_err());
    }

    #[test]
    fn a_missing_file_is_named() {
        let sources = Sources { file: Some("no/such/file".into()), ..Sources::default() };
        assert!(merge(&sources).unwrap_err().to_string().contains("no/such/file"));
    }
}
