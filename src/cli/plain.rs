//! Text of others on a terminal: what a payload or a name holds must never be taken by the terminal as an instruction.
//!
//! A terminal obeys control characters: it can be made to write to the clipboard, to change its title, to hide what came before. So
//! none but line ends and tabs reach it, and of the sequences that begin with an escape only those that set styles, which are ours.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Stands for a control character.
const REPLACED: char = '\u{fffd}';
const ESCAPE: char = '\u{1b}';

/// The character itself, or what stands for it where a terminal would obey it.
pub fn visible(character: char) -> char {
    if is_control(character) { REPLACED } else { character }
}

/// Text that others wrote, without what a terminal would obey.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\r\n", "\n").chars().map(visible).collect())
}

/// The same for text with styles of ours, which stay.
pub fn styled(text: &str) -> String {
    let mut parts = text.split(ESCAPE);
    let mut shown = plain(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        shown.push(if sets_style(part) { ESCAPE } else { REPLACED });
        shown.push_str(&plain(part));
    }
    shown
}

/// JSON that says the same without a character that a terminal would obey: those that JSON does not escape by itself.
pub fn json(text: &str) -> Cow<'_, str> {
    if !text.contains(is_control) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_control(character) {
            write!(escaped, "\\u{:04x}", u32::from(character)).expect("writing to a string cannot fail");
        } else {
            escaped.push(character);
        }
    }
    Cow::Owned(escaped)
}

/// C0, DEL and C1, but for what lays text out; and what turns the direction of the text that follows, to the end of a table's row.
fn is_control(character: char) -> bool {
    match character {
        '\n' | '\t' => false,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => true,
        other => other.is_control(),
    }
}

/// True where what follows an escape sets a style: `[`, numbers with semicolons, `m`.
fn sets_style(part: &str) -> bool {
    let numbers = part.strip_prefix('[').and_then(|rest| rest.split_once('m'));
    numbers.is_some_and(|(numbers, _)| numbers.bytes().all(|byte| byte.is_ascii_digit() || byte == b';'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anstyle::{AnsiColor, Style};

    /// The clipboard, the title, the cursor, a bell, and the same by single characters.
    const HOSTILE: &str =
        "a\u{1b}]52;c;cm0=\u{7}\u{1b}]0;t\u{1b}\\\u{1b}[2J\u{1b}[31m\u{8}\r\u{7f}\u{9b}2J\u{9d}0;t\u{9c}\u{202e}b";

    fn obeyed(text: &str) -> String {
        text.chars().filter(|character| is_control(*character)).collect()
    }

    #[test]
    fn nothing_that_others_wrote_is_obeyed() {
        let shown = plain(HOSTILE);
        assert_eq!(obeyed(&shown), "");
        assert!(shown.starts_with('a') && shown.ends_with('b') && shown.contains("]52;c;cm0="), "{shown}");
        assert!(matches!(plain("ä\tb\nc"), Cow::Borrowed("ä\tb\nc")));
        assert_eq!(plain("a\r\nb\rc"), "a\nb\u{fffd}c");
    }

    #[test]
    fn styles_stay_and_nothing_else() {
        let style = Style::new().fg_color(Some(AnsiColor::Green.into())).bold();
        let ours = format!("{style}state{style:#} 1;2m");
        assert_eq!(styled(&ours), ours);
        let shown = styled(&format!("{style}{HOSTILE}{style:#}\u{1b}"));
        assert!(
            obeyed(&shown.replace(&style.to_string(), "").replace("\u{1b}[0m", "").replace("\u{1b}[31m", ""))
                .is_empty()
        );
        assert!(shown.starts_with(&style.to_string()) && shown.ends_with("\u{1b}[0m\u{fffd}"), "{shown:?}");
        for not_ours in ["\u{1b}", "\u{1b}[", "\u{1b}[1", "\u{1b}m", "\u{1b}[?1m", "\u{1b}ä[m"] {
            assert_eq!(obeyed(&styled(not_ours)), "", "{not_ours:?}");
        }
    }

    #[test]
    fn json_says_the_same() {
        let document = serde_json::json!({"a": HOSTILE, "b": "ä\n"});
        let text = serde_json::to_string(&document).expect("serializes");
        let shown = json(&text);
        assert_eq!(obeyed(&shown), "");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).expect("JSON"), document);
    }
}
