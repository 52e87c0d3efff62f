//! The filters of a watch as its caller writes them: parsed, changed, and encoded for the rows that other replicas read.
//!
//! Pure: no I/O. What is stored went through the same parsing as what is asked for.

use super::filter::{Filters, NamedSelection, Selection};
use crate::domain::event_type::EventTypePattern;
use crate::domain::filter::Filter;
use crate::proto::public::{WatchFilter, WatchRequest};
use prost::Message as _;
use std::collections::HashSet;

/// Event types that one selection may name.
const EVENT_TYPES_MAX: usize = 64;
/// Length of a filter's name.
const NAME_BYTES_MAX: usize = 64;

/// Filters with the text they were made from.
#[derive(Debug, Clone, Default)]
pub struct FilterSet {
    source: Vec<WatchFilter>,
    filters: Filters,
}

/// The filters that a watch changes to.
#[derive(Debug, Clone)]
pub struct FilterChange {
    /// The version that they make.
    pub version: i64,
    /// The filters.
    pub set: FilterSet,
}

/// Why filters are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterSetError {
    /// A field breaks its shape or bound.
    #[error("{field}: {message}")]
    Field {
        /// Path in the request.
        field: String,
        /// What is wrong.
        message: String,
    },
    /// An expression does not compile, or is too costly.
    #[error("{field}: column {column}: {message}")]
    Expression {
        /// Path in the request.
        field: String,
        /// 1-based column.
        column: usize,
        /// What is wrong.
        message: String,
    },
}

fn wrong(field: impl Into<String>, message: impl Into<String>) -> FilterSetError {
    FilterSetError::Field { field: field.into(), message: message.into() }
}

/// Parses event types and an expression. `prefix` is empty, or `filters[3].`.
pub fn selection(event_types: &[String], filter: &str, prefix: &str) -> Result<Selection, FilterSetError> {
    if event_types.len() > EVENT_TYPES_MAX {
        return Err(wrong(format!("{prefix}event_types"), format!("has more than {EVENT_TYPES_MAX} entries")));
    }
    let parse = |(index, text): (usize, &String)| {
        EventTypePattern::parse(text).map_err(|error| wrong(format!("{prefix}event_types[{index}]"), error.to_string()))
    };
    let event_types = event_types.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    let filter = match filter {
        "" => None,
        source => Some(Filter::parse(source).map_err(|error| FilterSetError::Expression {
            field: format!("{prefix}filter"),
            column: error.column,
            message: error.message,
        })?),
    };
    Ok(Selection { event_types, filter })
}

impl FilterSet {
    /// Parses the filters of a request's field.
    pub fn parse(field: &str, source: Vec<WatchFilter>) -> Result<Self, FilterSetError> {
        if source.len() > Filters::MAX {
            return Err(wrong(field, format!("has more than {} entries", Filters::MAX)));
        }
        let single = source.len() == 1;
        let mut names = HashSet::new();
        let mut named = Vec::with_capacity(source.len());
        for (index, filter) in source.iter().enumerate() {
            let shaped = filter.name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
            let wrong_name = |what: &str| Err(wrong(format!("{field}[{index}].name"), what));
            if filter.name.is_empty() && !single {
                return wrong_name("is required where there is more than one filter");
            }
            if !shaped || filter.name.len() > NAME_BYTES_MAX {
                return wrong_name("must match [A-Za-z0-9_.-]{1,64}");
            }
            if !names.insert(filter.name.clone()) {
                return wrong_name("is used twice");
            }
            let selection = selection(&filter.event_types, &filter.filter, &format!("{field}[{index}]."))?;
            named.push(NamedSelection { name: filter.name.clone(), selection });
        }
        Ok(Self { source, filters: Filters::new(named) })
    }

    /// The set without the filters of some names, and with others added or put in the place of those of the same name.
    pub fn changed(&self, add: Vec<WatchFilter>, remove: &[String]) -> Result<Self, FilterSetError> {
        if add.is_empty() && remove.is_empty() {
            return Err(wrong("add", "nothing to add and nothing to remove"));
        }
        // Checked by themselves first, so that the path names the caller's own field.
        let added = Self::parse("add", add)?.source;
        for (index, name) in remove.iter().enumerate() {
            let wrong_name = |what: &str| Err(wrong(format!("remove[{index}]"), what));
            if remove[..index].contains(name) {
                return wrong_name("is named twice");
            }
            if added.iter().any(|filter| filter.name == *name) {
                return wrong_name("is added by the same call");
            }
            if !self.source.iter().any(|filter| filter.name == *name) {
                return wrong_name("the watch has no filter of this name");
            }
        }
        let replaced = |name: &String| remove.contains(name) || added.iter().any(|filter| filter.name == *name);
        let mut source: Vec<WatchFilter> =
            self.source.iter().filter(|filter| !replaced(&filter.name)).cloned().collect();
        source.extend(added.iter().cloned());
        if source.is_empty() {
            // Without a filter a watch delivers everything: nobody means that by removing the last one.
            return Err(wrong("remove", "the last filter can only be replaced: add another in the same call"));
        }
        if source.len() > Filters::MAX {
            return Err(wrong("add", format!("the watch would have more than {} filters", Filters::MAX)));
        }
        if source.len() > 1 && source.iter().any(|filter| filter.name.is_empty()) {
            return Err(match added.iter().position(|filter| filter.name.is_empty()) {
                Some(index) => wrong(format!("add[{index}].name"), "is required where there is more than one filter"),
                None => {
                    wrong("remove", "the watch has an unnamed filter: remove it (by the empty name) in the same call")
                }
            });
        }
        Self::parse("add", source)
    }

    /// What is stored.
    pub fn encode(&self) -> Vec<u8> {
        WatchRequest { filters: self.source.clone(), ..WatchRequest::default() }.encode_to_vec()
    }

    /// Reads back what is stored; none where it is unreadable.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::parse("filters", WatchRequest::decode(bytes).ok()?.filters).ok()
    }

    /// The filters by themselves.
    pub fn into_filters(self) -> Filters {
        self.filters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(name: &str) -> WatchFilter {
        WatchFilter { name: name.to_owned(), event_types: vec!["CUSTOM_*".to_owned()], filter: "data.n > 1".to_owned() }
    }

    fn set(names: &[&str]) -> FilterSet {
        FilterSet::parse("filters", names.iter().map(|name| filter(name)).collect()).expect("good filters")
    }

    fn names(set: &FilterSet) -> Vec<&str> {
        set.source.iter().map(|filter| filter.name.as_str()).collect()
    }

    fn refused(result: Result<FilterSet, FilterSetError>) -> String {
        match result.expect_err("refused") {
            FilterSetError::Field { field, .. } | FilterSetError::Expression { field, .. } => field,
        }
    }

    #[test]
    fn filters_are_added_replaced_and_removed() {
        let changed = set(&["a", "b"]).changed(vec![filter("c")], &["a".to_owned()]).expect("a change");
        assert_eq!(names(&changed), ["b", "c"]);
        let narrow = WatchFilter { filter: "data.n > 7".to_owned(), ..filter("b") };
        let replaced = changed.changed(vec![narrow.clone()], &[]).expect("a change");
        assert_eq!(replaced.source, [filter("c"), narrow]);
        let first = FilterSet::default().changed(vec![filter("")], &[]).expect("a change");
        assert_eq!(names(&first), [""]);
        assert_eq!(
            names(&first.changed(vec![filter("a"), filter("b")], &[String::new()]).expect("a change")),
            ["a", "b"]
        );
        assert_eq!(FilterSet::decode(&changed.encode()).expect("readable").source, changed.source);
    }

    #[test]
    fn changes_that_mean_nothing_name_their_field() {
        let two = set(&["a", "b"]);
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(refused(two.changed(Vec::new(), &[])), "add");
        assert_eq!(refused(two.changed(Vec::new(), &named(&["c"]))), "remove[0]");
        assert_eq!(refused(two.changed(Vec::new(), &named(&["a", "a"]))), "remove[1]");
        assert_eq!(refused(two.changed(vec![filter("a")], &named(&["a"]))), "remove[0]");
        assert_eq!(refused(two.changed(Vec::new(), &named(&["a", "b"]))), "remove");
        assert_eq!(refused(two.changed(vec![filter("")], &[])), "add[0].name");
        assert_eq!(refused(set(&[""]).changed(vec![filter("a")], &[])), "remove");
        assert_eq!(refused(two.changed(vec![filter("c"), filter("c")], &[])), "add[1].name");
        let many: Vec<WatchFilter> = (0..15).map(|n| filter(&format!("f{n}"))).collect();
        assert_eq!(refused(two.changed(many, &[])), "add");
        let bad = WatchFilter { filter: "data.n >".to_owned(), ..filter("c") };
        assert_eq!(refused(two.changed(vec![bad], &[])), "add[0].filter");
    }
}
