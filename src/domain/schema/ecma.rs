//! Reads a regular expression of ECMA-262 in Unicode mode, and writes it as the matcher reads one: the two languages look alike, and differ
//! in what `.`, `\b`, `\w`, `\<` and `[]` mean.

use jsonschema_regex::is_valid_ecma_regex;
use regex_syntax::is_meta_character;
use std::str::Chars;

/// What is said of an expression that is none.
pub(super) const NO_PATTERN: &str = "is not a regular expression of ECMA-262 in Unicode mode";
/// What is said of one whose matches are not found in linear time.
const LOOKS: &str = "has look-around or back-references, which are not supported";
/// What is said of one with half a character.
const HALF: &str = "names a surrogate, which no text holds";

const ANY: &str = r"[\x00-\x{10FFFF}]";
const NONE: &str = r"[^\x00-\x{10FFFF}]";
const WITHIN_A_LINE: &str = r"[^\n\r\x{2028}\x{2029}]";
/// White space and line ends.
const SPACE: &str = r"\t-\r \x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000}\x{FEFF}";

/// An expression as the matcher reads it.
pub(super) struct Translated {
    pub text: String,
    /// How many classes of characters it names by a property of Unicode.
    pub properties: usize,
}

/// Translates an expression. Errors: what is wrong with it.
pub(super) fn translate(source: &str) -> Result<Translated, &'static str> {
    if !is_valid_ecma_regex(source) {
        return Err(NO_PATTERN);
    }
    // What follows relies on that: nothing here ends early, and every range has its two ends.
    let translated = Translated { text: String::with_capacity(source.len()), properties: 0 };
    let mut reader = Reader { rest: source.chars(), translated, is_any: vec![false] };
    while let Some(next) = reader.rest.next() {
        match next {
            '\\' => reader.escape()?,
            '[' => reader.class()?,
            '(' => reader.group()?,
            ')' => {
                reader.is_any.pop();
                reader.write(")");
            }
            '.' => reader.write(if reader.is_any.last() == Some(&true) { ANY } else { WITHIN_A_LINE }),
            // Anchors, alternatives, repetitions, and whatever stands for itself.
            _ => reader.translated.text.push(next),
        }
    }
    Ok(reader.translated)
}

struct Reader<'s> {
    rest: Chars<'s>,
    translated: Translated,
    /// Whether `.` is any character, in each group that is open.
    is_any: Vec<bool>,
}

impl Reader<'_> {
    fn write(&mut self, text: &str) {
        self.translated.text.push_str(text);
    }

    /// What a character stands for that stands for itself.
    fn literal(&mut self, character: char) {
        if is_meta_character(character) {
            self.write("\\");
        }
        self.translated.text.push(character);
    }

    fn eat(&mut self, text: &str) -> bool {
        let rest = self.rest.as_str().strip_prefix(text).map(str::chars);
        rest.map(|rest| self.rest = rest).is_some()
    }

    /// What comes before the next such character, which is left out.
    fn until(&mut self, end: char) -> Result<&str, &'static str> {
        let (text, rest) = self.rest.as_str().split_once(end).ok_or(NO_PATTERN)?;
        self.rest = rest.chars();
        Ok(text)
    }

    /// A group, whose name nobody asks for.
    fn group(&mut self) -> Result<(), &'static str> {
        let mut is_any = self.is_any.last() == Some(&true);
        if ["?=", "?!", "?<=", "?<!"].iter().any(|look| self.rest.as_str().starts_with(look)) {
            return Err(LOOKS);
        }
        if self.eat("?<") {
            self.until('>')?;
            self.write("(?:");
        } else if self.eat("?") {
            let flags = self.until(':')?;
            let (on, off) = flags.split_once('-').unwrap_or((flags, ""));
            is_any = on.contains('s') || is_any && !off.contains('s');
            // A line may end in a carriage return, too.
            let [on, off] = [on, off].map(|flags| flags.replace('s', "").replace('m', "mR"));
            let minus = if off.is_empty() { "" } else { "-" };
            self.write(&format!("(?{on}{minus}{off}:"));
        } else {
            self.write("(?:");
        }
        self.is_any.push(is_any);
        Ok(())
    }

    /// What follows a backslash outside of a class.
    fn escape(&mut self) -> Result<(), &'static str> {
        match self.rest.next().ok_or(NO_PATTERN)? {
            'b' => self.write(r"(?-u:\b)"),
            'B' => self.write(r"(?-u:\B)"),
            'k' | '1'..='9' => return Err(LOOKS),
            other => self.set_or_character(other)?,
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), &'static str> {
        let negated = self.eat("^");
        if self.eat("]") {
            self.write(if negated { ANY } else { NONE });
            return Ok(());
        }
        self.write(if negated { "[^" } else { "[" });
        while !self.eat("]") {
            self.member()?;
            if self.rest.as_str().starts_with('-') && !self.rest.as_str().starts_with("-]") {
                self.rest.next();
                self.write("-");
                self.member()?;
            }
        }
        self.write("]");
        Ok(())
    }

    /// One end of a range in a class, or what stands there alone.
    fn member(&mut self) -> Result<(), &'static str> {
        match self.rest.next().ok_or(NO_PATTERN)? {
            '\\' => match self.rest.next().ok_or(NO_PATTERN)? {
                'b' => self.literal('\u{8}'),
                other => self.set_or_character(other)?,
            },
            other => self.literal(other),
        }
        Ok(())
    }

    /// What a backslash before this character stands for, in a class and elsewhere.
    fn set_or_character(&mut self, escaped: char) -> Result<(), &'static str> {
        match escaped {
            'd' => self.write("[0-9]"),
            'D' => self.write("[^0-9]"),
            'w' => self.write("[0-9A-Za-z_]"),
            'W' => self.write("[^0-9A-Za-z_]"),
            's' => self.write(&format!("[{SPACE}]")),
            'S' => self.write(&format!("[^{SPACE}]")),
            'p' | 'P' => {
                let property = self.until('}')?.to_owned();
                self.write(&format!("\\{escaped}{property}}}"));
                self.translated.properties += 1;
            }
            _ => {
                let character = self.character(escaped)?;
                self.literal(char::from_u32(character).ok_or(HALF)?);
            }
        }
        Ok(())
    }

    /// The code point that a backslash before this character stands for.
    fn character(&mut self, escaped: char) -> Result<u32, &'static str> {
        Ok(match escaped {
            '0' => 0,
            't' => 0x9,
            'n' => 0xA,
            'v' => 0xB,
            'f' => 0xC,
            'r' => 0xD,
            'c' => u32::from(self.rest.next().ok_or(NO_PATTERN)?) % 32,
            'x' => self.hex(2)?,
            'u' if self.eat("{") => u32::from_str_radix(self.until('}')?, 16).map_err(|_| NO_PATTERN)?,
            'u' => {
                let first = self.hex(4)?;
                let before = self.rest.clone();
                if (0xD800..0xDC00).contains(&first) && self.eat("\\u") {
                    match self.hex(4) {
                        Ok(second @ 0xDC00..=0xDFFF) => {
                            return Ok(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00));
                        }
                        _ => self.rest = before,
                    }
                }
                first
            }
            other => u32::from(other),
        })
    }

    fn hex(&mut self, digits: usize) -> Result<u32, &'static str> {
        let digits = self.rest.as_str().get(..digits).ok_or(NO_PATTERN)?;
        let value = u32::from_str_radix(digits, 16).map_err(|_| NO_PATTERN)?;
        self.rest = self.rest.as_str()[digits.len()..].chars();
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::schema::Schema;
    use crate::domain::schema::tests::schema;
    use serde_json::json;

    #[test]
    fn expressions_mean_what_ecma_262_says() {
        for (pattern, matches, others) in [
            (r"^\<b\>$", "<b>", "b"),
            ("^.$", "a", "\r"),
            ("^a.c$", "abc", "a\u{2028}c"),
            ("^(?s:a.c)$", "a\nc", "ac"),
            ("^(?s:(?-s:.).)$", "a\n", "\na"),
            (r"\bb", "éb", "ab"),
            (r"^a\B", "ab", "a é"),
            ("^(?:a|[]b)$", "a", "b"),
            (r"^[^]x$", "\nx", "x"),
            (r"^[\w.\-]+$", "a_1.-", "é"),
            (r"^[\d\s]+$", "1\u{feff}2\u{a0}", "a"),
            (r"^\W\D\S$", "é-é", "é-\u{3000}"),
            (r"^[^\D]$", "5", "٥"),
            (r"^[a&&b~~c[]+$", "[&~", "]"),
            (r"^[---]-[a-]$", "--a", "b-a"),
            (r"^[\b]$", "\u{8}", "b"),
            (r"^\cA\x41\u0042\u{1F600}\uD83D\uDE00\0\v$", "\u{1}AB😀😀\0\u{b}", "A"),
            (r"^\p{L}\P{Lu}\p{Script=Greek}$", "éeλ", "éEλ"),
            (r"^(?<year>\d{4})-(?:\d\d)$", "2020-10", "202-10"),
            (r"^(?i:é)k$", "Ék", "éK"),
            ("(?m:^b$)", "a\rb\nc", "abc"),
            (r"^\/\#\ \-\“é$", "/# -“é", "/#-“é"),
            ("^a{2,}?$", "aaa", "a"),
        ] {
            let schema = schema(&json!({"pattern": pattern}).to_string());
            assert_eq!(schema.validate(json!(matches).to_string().as_bytes()), Ok(()), "{pattern}");
            assert!(schema.validate(json!(others).to_string().as_bytes()).is_err(), "{pattern} beside {others:?}");
        }
    }

    #[test]
    fn what_means_something_to_the_matcher_alone_is_no_expression() {
        for (pattern, why) in [
            (r"(?x) a b", "ECMA-262"),
            (r"(?i)a", "ECMA-262"),
            (r"\Aa\z", "ECMA-262"),
            ("a**", "ECMA-262"),
            ("a++", "ECMA-262"),
            (r"\U0001F600", "ECMA-262"),
            (r"\pL", "ECMA-262"),
            ("(?P<x>a)", "ECMA-262"),
            (r"\b{start}a", "ECMA-262"),
            ("a{,5}", "ECMA-262"),
            ("a{2", "ECMA-262"),
            ("]", "ECMA-262"),
            (r"[\w-.]", "ECMA-262"),
            (r"\p{Nothing}", "ECMA-262"),
            ("(?=a)", "look-around"),
            ("(?<!a)b", "look-around"),
            (r"(a)\1", "look-around"),
            (r"(?<n>a)\k<n>", "look-around"),
            (r"[\uD800-\uDFFF]", "surrogate"),
        ] {
            for draft in ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"] {
                let document = json!({"$schema": draft, "properties": {"a": {"pattern": pattern}}});
                let error = Schema::parse(&document.to_string()).expect_err(pattern);
                assert_eq!(error.pointer, "/properties/a/pattern");
                assert!(error.message.contains(why), "{pattern}: {error}");
            }
        }
    }
}
