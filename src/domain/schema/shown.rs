//! Values and names of the schemas in messages. They may be long, and messages are made often: no more of one is looked at than is
//! shown.

use super::cost::charge;
use serde_json::Value;

/// How many characters of a value, or of a name, are shown.
const CHARS_MAX: usize = 60;
/// As many bytes hold as many characters in any case.
const BYTES_MAX: usize = 4 * CHARS_MAX;

/// A value as JSON has it, cut where it is long.
pub(super) fn shown(value: &Value) -> String {
    let mut text = String::new();
    show(value, &mut text);
    if let Some((end, _)) = text.char_indices().nth(CHARS_MAX) {
        text.truncate(end);
    }
    text
}

/// A name in quotes, cut where it is long.
pub(super) fn quoted(name: &str) -> String {
    charge(1);
    let short: String = name.chars().take(CHARS_MAX).collect();
    Value::String(short).to_string()
}

fn show(value: &Value, text: &mut String) {
    match value {
        Value::String(string) => text.push_str(&quoted(string)),
        Value::Array(elements) => {
            text.push('[');
            for (index, element) in elements.iter().enumerate() {
                if text.len() >= BYTES_MAX {
                    return;
                }
                text.push_str(if index > 0 { "," } else { "" });
                show(element, text);
            }
            text.push(']');
        }
        Value::Object(members) => {
            text.push('{');
            for (index, (name, member)) in members.iter().enumerate() {
                if text.len() >= BYTES_MAX {
                    return;
                }
                text.push_str(if index > 0 { "," } else { "" });
                text.push_str(&quoted(name));
                text.push(':');
                show(member, text);
            }
            text.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => text.push_str(&value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_shown_is_json_as_far_as_it_goes() {
        for value in [json!(null), json!([true, -1.5, "a\"b"]), json!({"a": {"b": []}, "\u{e9}": [1, {}]})] {
            assert_eq!(shown(&value), value.to_string());
        }
        let long = "\u{10348}".repeat(100_000);
        for value in [json!(long), json!([long]), json!({ "a": long }), json!(vec![long.as_str(); 9])] {
            let whole: String = value.to_string().chars().take(CHARS_MAX).collect();
            assert_eq!(shown(&value), whole);
        }
        assert_eq!(quoted(&long).chars().count(), CHARS_MAX + 2);
    }

    #[test]
    fn showing_a_long_value_costs_next_to_nothing() {
        let wide = json!({ "a": vec![json!([["x".repeat(9)]]); 20_000], "b": "x".repeat(200_000) });
        let bounded = crate::domain::schema::cost::bounded(100, || shown(&wide));
        assert!(bounded.is_ok());
    }
}
