//! Names that a wrong name may have been meant to be, for the answer to an unknown event type.

/// How many names are ever told.
const NAMES_MAX: usize = 5;
/// How long a name may be to be compared; no event type's name is longer.
const NAME_BYTES_MAX: usize = 128;

/// At most `count` candidates, the most similar first, equally similar ones by name. Letter case does not count.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>, count: usize) -> Vec<String> {
    if name.len() > NAME_BYTES_MAX {
        return Vec::new();
    }
    let wanted = name.to_ascii_lowercase().into_bytes();
    // A third of the name may be wrong: further away it is another name rather than a slip.
    let distance_max = (wanted.len() / 3).max(1);
    let mut row = Vec::new();
    let mut near: Vec<(usize, &str)> = candidates
        .filter(|candidate| candidate.len().abs_diff(wanted.len()) <= distance_max)
        .filter_map(|candidate| {
            let distance = distance(&wanted, &candidate.to_ascii_lowercase().into_bytes(), &mut row);
            (distance <= distance_max).then_some((distance, candidate))
        })
        .collect();
    near.sort_unstable();
    near.dedup();
    near.into_iter().take(count.min(NAMES_MAX)).map(|(_, candidate)| candidate.to_owned()).collect()
}

/// How many bytes must be inserted, deleted or replaced to turn one text into the other. `row` is memory that is used again.
fn distance(from: &[u8], to: &[u8], row: &mut Vec<usize>) -> usize {
    row.clear();
    row.extend(0..=to.len());
    for (i, a) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_the_nearest_first() {
        let names = ["USER_CREATE", "USER_UPDATE", "USER_CREATED", "FILE_DELETED", "A"];
        let near = |name: &str, count: usize| nearest(name, names.into_iter(), count);
        assert_eq!(near("user_create", 2), ["USER_CREATE", "USER_CREATED"]);
        assert_eq!(near("USER_CRAETE", 9), ["USER_CREATE", "USER_CREATED"]);
        assert_eq!(near("FILE_DELETE", 5), ["FILE_DELETED"]);
        assert!(near("CUSTOM_ORDER", 5).is_empty() && near("USER_CREATE", 0).is_empty());
        assert!(near("", 5).len() <= 1 && near(&"x".repeat(1 << 20), 5).is_empty());
    }

    #[test]
    fn at_most_five_are_told() {
        let names: Vec<String> = (0..9).map(|i| format!("USER_{i}")).collect();
        assert_eq!(nearest("USER_X", names.iter().map(String::as_str), 100).len(), 5);
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        let mut row = Vec::new();
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("flaw", "lawn", 2)]
        {
            assert_eq!(distance(a.as_bytes(), b.as_bytes(), &mut row), expected, "{a} {b}");
        }
    }
}
