//! How results reach standard output: tables and lines for people, one JSON document per line for programs.
//!
//! Every client command writes through [`Output`]. Colour reaches a terminal only, and not where NO_COLOR says so.
//! Notes and progress go to standard error, so that they never mix with results. What others wrote, such as payloads and names, is
//! made harmless to the terminal on the way; see [`super::plain`].

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use chrono::{DateTime, Utc};
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::plain::{self, plain, visible};

/// Columns of a terminal that does not say how many it has.
const WIDTH_UNKNOWN: u16 = 80;

/// Where results go, and in which form.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// For what the global options say.
    pub fn new(global: &Global) -> Self {
        Self { json: global.json }
    }

    /// True where the reader is a program.
    pub fn is_json(self) -> bool {
        self.json
    }

    /// Writes one JSON document and a line end.
    ///
    /// *Shape*: a proto message becomes its canonical proto JSON.
    pub fn document(self, document: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(document).map_err(|error| CliError::Output(error.into()))?;
        self.line(&plain::json(&text))
    }

    /// Writes one line for people, with its styles where the terminal shows them.
    #[expect(clippy::unused_self, reason = "only who knows the form that the reader wants may write")]
    pub fn line(self, text: &str) -> Result<(), CliError> {
        let mut stdout = anstream::stdout().lock();
        writeln!(stdout, "{}", plain::styled(text)).and_then(|()| stdout.flush()).map_err(CliError::Output)
    }

    /// Writes the names and values of one thing, aligned; empty values are left out.
    pub fn fields(self, fields: &[(&str, String)]) -> Result<(), CliError> {
        let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        let dim = Style::new().dimmed();
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
            self.line(&format!("{dim}{name:<width$}{dim:#}  {}", plain(value)))?;
        }
        Ok(())
    }

    /// Writes a table; without rows, a note on standard error says so.
    pub fn table(self, header: &[&str], rows: Vec<Vec<Cell>>) -> Result<(), CliError> {
        if rows.is_empty() {
            note("nothing there");
            return Ok(());
        }
        let mut table = Table::new();
        table.load_preset(presets::NOTHING).set_header(header.to_vec());
        // A pipe has no width: rows stay on one line there.
        if std::io::stdout().is_terminal() {
            arrange(&mut table);
        }
        for row in rows {
            table.add_row(row.into_iter().map(harmless));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.line(&table.trim_fmt())
    }
}

/// A cell without what a terminal would obey. Only what others wrote can have that, and it has no colour to lose.
fn harmless(cell: Cell) -> Cell {
    match plain(&cell.content()) {
        Cow::Borrowed(_) => cell,
        Cow::Owned(text) => Cell::new(text),
    }
}

/// Fits a table to the terminal. One that does not know its width says 0: a column would get a letter.
fn arrange(table: &mut Table) {
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none_or(|width| width == 0) {
        table.set_width(WIDTH_UNKNOWN);
    }
}

/// Tells something beside the result, on standard error.
pub fn note(text: &str) {
    let dim = Style::new().dimmed();
    anstream::eprintln!("{dim}{}{dim:#}", plain(text));
}

/// Warns, on standard error.
pub fn warn(text: &str) {
    let yellow = Style::new().fg_color(Some(AnsiColor::Yellow.into()));
    anstream::eprintln!("{yellow}note:{yellow:#} {}", plain(text));
}

/// A progress bar on standard error; it shows only on a terminal.
pub fn progress(length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), terminal_only());
    let style =
        ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}").unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_message(what);
    bar
}

/// A turning sign for work whose length is unknown, on standard error; it shows only on a terminal.
pub fn spinner(what: impl Into<Cow<'static, str>>) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, terminal_only());
    bar.set_message(what);
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn terminal_only() -> ProgressDrawTarget {
    if std::io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

/// A cell with a state's name in its colour: green runs, yellow waits, red is wrong.
pub fn state_cell(state: &str) -> Cell {
    let color = match state {
        "ACTIVE" | "SUCCEEDED" => Color::Green,
        "WAITING" | "PENDING" | "DISABLED" => Color::Yellow,
        "DEAD_LETTERED" => Color::Red,
        _ => Color::DarkGrey,
    };
    Cell::new(state).fg(color)
}

/// An enum value's name without the prefix that its proto enum gives it: `SUBSCRIPTION_STATE_ACTIVE` is `ACTIVE`.
pub fn short<'a>(name: &'a str, prefix: &str) -> &'a str {
    name.strip_prefix(prefix).unwrap_or(name)
}

/// A time in UTC with milliseconds; empty where there is none.
pub fn time(timestamp: Option<&crate::proto::Timestamp>) -> String {
    let time = timestamp.copied().and_then(|timestamp| DateTime::<Utc>::try_from(timestamp).ok());
    time.map(|time| time.format("%Y-%m-%d %H:%M:%S%.3fZ").to_string()).unwrap_or_default()
}

/// A duration such as `1.5s`; empty where there is none.
pub fn duration(duration: Option<&pbjson_types::Duration>) -> String {
    let duration = duration.copied().and_then(|duration| Duration::try_from(duration).ok());
    duration.map(human).unwrap_or_default()
}

/// A duration as people write it: `1h`, `1m 30s`, `1.5s`, `6.743ms`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        return format!("{duration:?}");
    }
    // Beside minutes nobody reads fractions of seconds.
    let parts = [(seconds / 86_400, 'd'), (seconds / 3_600 % 24, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
    let parts: Vec<_> = parts.iter().filter(|(n, _)| *n > 0).map(|(n, unit)| format!("{n}{unit}")).collect();
    parts.join(" ")
}

/// How many of something: `1 attempt`, `8 attempts`.
pub fn counted(count: impl Into<i64>, one: &str) -> String {
    let count = count.into();
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// The start of a text on one line, at most `width` characters.
pub fn excerpt(text: &str, width: usize) -> String {
    // The bytes looked at are bounded too, because payloads can be large.
    let mut words = text.split_whitespace();
    let mut line = String::new();
    while line.chars().count() <= width {
        let Some(word) = words.next() else { return line };
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().take(width + 1).map(visible));
    }
    let mut short: String = line.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_line_of_bounded_width() {
        assert_eq!(excerpt("{\n  \"a\": 1\n}", 20), "{ \"a\": 1 }");
        assert_eq!(excerpt("aaaaaaaaaa", 5), "aaaa…");
        assert_eq!(excerpt("aaaaa", 5), "aaaaa");
        assert_eq!(excerpt("ää öö üü", 5), "ää ö…");
        assert_eq!(excerpt("", 5), "");
        assert_eq!(excerpt("a\u{1b}[2J \u{9b}b", 20), "a\u{fffd}[2J \u{fffd}b");
    }

    #[test]
    fn a_cell_is_harmless_and_keeps_its_colour() {
        let state = state_cell("ACTIVE");
        assert_eq!(harmless(state.clone()), state);
        assert_eq!(harmless(Cell::new("a\u{1b}]0;t\u{7}")).content(), "a\u{fffd}]0;t\u{fffd}");
    }

    #[test]
    fn a_table_on_a_terminal_of_unknown_width_is_as_wide_as_terminals_are() {
        for unknown in [None, Some(0)] {
            let mut table = Table::new();
            if let Some(width) = unknown {
                table.set_width(width);
            }
            arrange(&mut table);
            assert_eq!(table.width(), Some(WIDTH_UNKNOWN), "{unknown:?}");
        }
        let mut table = Table::new();
        table.set_width(200);
        arrange(&mut table);
        assert_eq!(table.width(), Some(200));
    }

    #[test]
    fn durations_are_written_as_people_do() {
        let cases = [
            (Duration::ZERO, "0ns"),
            (Duration::from_micros(6_743), "6.743ms"),
            (Duration::from_millis(1_500), "1.5s"),
            (Duration::from_secs(59), "59s"),
            (Duration::from_secs(90), "1m 30s"),
            (Duration::from_hours(1), "1h"),
            (Duration::from_secs(93_784), "1d 2h 3m 4s"),
        ];
        for (duration, text) in cases {
            assert_eq!(human(duration), text);
        }
        assert_eq!((counted(1, "attempt").as_str(), counted(0, "attempt").as_str()), ("1 attempt", "0 attempts"));
    }

    #[test]
    fn enum_names_lose_their_prefix_only() {
        assert_eq!(short("SUBSCRIPTION_STATE_ACTIVE", "SUBSCRIPTION_STATE_"), "ACTIVE");
        assert_eq!(short("OTHER", "SUBSCRIPTION_STATE_"), "OTHER");
    }
}
