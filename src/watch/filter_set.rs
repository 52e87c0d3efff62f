//! The filters of a watch as its caller writes them: parsed, changed, and encoded for the rows that other replicas read.
//!
//! No I/O. What is stored was parsed when it was asked for; it is compiled when it is needed, and only what is not compiled already.

use super::filter::{Filters, NamedSelection, Selection};
use crate::domain::event_type::EventTypePattern;
use crate::domain::filter::{Filter, FilterError};
use crate::domain::ids::TenantId;
use crate::long_work;
use crate::proto::public::{WatchFilter, WatchRequest};
use prost::Message as _;
use std::collections::HashSet;
use std::time::Instant;

/// Event types that one selection may name.
const EVENT_TYPES_MAX: usize = 64;
/// Length of a filter's name.
const NAME_BYTES_MAX: usize = 64;

/// Filters with the text they were made from.
#[derive(Debug, Clone, Default)]
pub struct FilterSet {
    named: Vec<(WatchFilter, Selection)>,
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

/// Makes a filter of an expression.
type Compile = fn(&str) -> Result<Filter, FilterError>;

/// Parses event types and an expression. `prefix` is empty, or `filters[3].`.
pub fn selection(event_types: &[String], filter: &str, prefix: &str) -> Result<Selection, FilterSetError> {
    selection_by(Filter::parse, event_types, filter, prefix)
}

fn selection_by(
    compile: Compile,
    event_types: &[String],
    filter: &str,
    prefix: &str,
) -> Result<Selection, FilterSetError> {
    if event_types.len() > EVENT_TYPES_MAX {
        return Err(wrong(format!("{prefix}event_types"), format!("has more than {EVENT_TYPES_MAX} entries")));
    }
    let parse = |(index, text): (usize, &String)| {
        EventTypePattern::parse(text).map_err(|error| wrong(format!("{prefix}event_types[{index}]"), error.to_string()))
    };
    let event_types = event_types.iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    let filter = match filter {
        "" => None,
        source => Some(compile(source).map_err(|error| FilterSetError::Expression {
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
        Self::parse_by(Filter::parse, field, source)
    }

    fn parse_by(compile: Compile, field: &str, source: Vec<WatchFilter>) -> Result<Self, FilterSetError> {
        if source.len() > Filters::MAX {
            return Err(wrong(field, format!("has more than {} entries", Filters::MAX)));
        }
        let single = source.len() == 1;
        let mut names = HashSet::new();
        let mut named = Vec::with_capacity(source.len());
        for (index, filter) in source.into_iter().enumerate() {
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
            let prefix = format!("{field}[{index}].");
            let selection = selection_by(compile, &filter.event_types, &filter.filter, &prefix)?;
            named.push((filter, selection));
        }
        Ok(Self { named })
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.named.iter().map(|(filter, _)| filter.name.as_str())
    }

    /// The set without the filters of some names, and with those of the field `add` added or put in the place of those of the same name.
    pub fn changed(&self, add: &Self, remove: &[String]) -> Result<Self, FilterSetError> {
        if add.named.is_empty() && remove.is_empty() {
            return Err(wrong("add", "nothing to add and nothing to remove"));
        }
        for (index, name) in remove.iter().enumerate() {
            let wrong_name = |what: &str| Err(wrong(format!("remove[{index}]"), what));
            if remove[..index].contains(name) {
                return wrong_name("is named twice");
            }
            if add.names().any(|added| added == name) {
                return wrong_name("is added by the same call");
            }
            if !self.names().any(|present| present == name) {
                return wrong_name("the watch has no filter of this name");
            }
        }
        let mut changed = self.clone();
        changed
            .named
            .retain(|(filter, _)| !remove.contains(&filter.name) && !add.names().any(|name| name == filter.name));
        changed.named.extend(add.named.iter().cloned());
        if changed.named.is_empty() {
            // Without a filter a watch delivers everything: nobody means that by removing the last one.
            return Err(wrong("remove", "the last filter can only be replaced: add another in the same call"));
        }
        if changed.named.len() > Filters::MAX {
            return Err(wrong("add", format!("the watch would have more than {} filters", Filters::MAX)));
        }
        if changed.named.len() > 1 && changed.names().any(str::is_empty) {
            return Err(match add.names().position(str::is_empty) {
                Some(index) => wrong(format!("add[{index}].name"), "is required where there is more than one filter"),
                None => {
                    wrong("remove", "the watch has an unnamed filter: remove it (by the empty name) in the same call")
                }
            });
        }
        Ok(changed)
    }

    /// The same with what a watch has already, where it is the same: that is compiled.
    #[must_use]
    pub fn reusing(mut self, present: &Filters) -> Self {
        for filter in self.named.iter_mut().filter_map(|(_, selection)| selection.filter.as_mut()) {
            if let Some(same) = present.filters().find(|present| *present == filter) {
                *filter = same.clone();
            }
        }
        self
    }

    /// The same once all of it is compiled, which is long work of the tenant.
    pub async fn compiled(self, tenant: TenantId) -> Self {
        let filters = self.named.iter().filter_map(|(_, selection)| selection.filter.clone());
        let waiting: Vec<Filter> = filters.filter(|filter| !filter.is_compiled()).collect();
        if !waiting.is_empty() {
            let compile = |waiting: &mut Vec<Filter>, end| {
                while let Some(filter) = waiting.pop() {
                    filter.compile();
                    if Instant::now() > end {
                        break;
                    }
                }
                waiting.is_empty()
            };
            // Where that comes to nothing they are compiled when they are evaluated.
            long_work::in_pieces(tenant, waiting, compile).await;
        }
        self
    }

    /// What is stored.
    pub fn encode(&self) -> Vec<u8> {
        let filters = self.named.iter().map(|(filter, _)| filter.clone()).collect();
        WatchRequest { filters, ..WatchRequest::default() }.encode_to_vec()
    }

    /// Reads back what is stored; none where it is unreadable.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        Self::parse_by(|source| Ok(Filter::stored(source)), "filters", WatchRequest::decode(bytes).ok()?.filters).ok()
    }

    /// The filters by themselves.
    pub fn into_filters(self) -> Filters {
        let named = self.named.into_iter();
        Filters::new(named.map(|(filter, selection)| NamedSelection { name: filter.name, selection }).collect())
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
        set.names().collect()
    }

    fn sources(set: &FilterSet) -> Vec<WatchFilter> {
        set.named.iter().map(|(filter, _)| filter.clone()).collect()
    }

    fn added(filters: Vec<WatchFilter>) -> FilterSet {
        FilterSet::parse("add", filters).expect("good filters")
    }

    fn refused(result: Result<FilterSet, FilterSetError>) -> String {
        match result.expect_err("refused") {
            FilterSetError::Field { field, .. } | FilterSetError::Expression { field, .. } => field,
        }
    }

    #[test]
    fn filters_are_added_replaced_and_removed() {
        let changed = set(&["a", "b"]).changed(&added(vec![filter("c")]), &["a".to_owned()]).expect("a change");
        assert_eq!(names(&changed), ["b", "c"]);
        let narrow = WatchFilter { filter: "data.n > 7".to_owned(), ..filter("b") };
        let replaced = changed.changed(&added(vec![narrow.clone()]), &[]).expect("a change");
        assert_eq!(sources(&replaced), [filter("c"), narrow]);
        let first = FilterSet::default().changed(&added(vec![filter("")]), &[]).expect("a change");
        assert_eq!(names(&first), [""]);
        assert_eq!(
            names(&first.changed(&added(vec![filter("a"), filter("b")]), &[String::new()]).expect("a change")),
            ["a", "b"]
        );
        assert_eq!(sources(&FilterSet::decode(&changed.encode()).expect("readable")), sources(&changed));
    }

    #[test]
    fn changes_that_mean_nothing_name_their_field() {
        let two = set(&["a", "b"]);
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(refused(two.changed(&added(Vec::new()), &[])), "add");
        assert_eq!(refused(two.changed(&added(Vec::new()), &named(&["c"]))), "remove[0]");
        assert_eq!(refused(two.changed(&added(Vec::new()), &named(&["a", "a"]))), "remove[1]");
        assert_eq!(refused(two.changed(&added(vec![filter("a")]), &named(&["a"]))), "remove[0]");
        assert_eq!(refused(two.changed(&added(Vec::new()), &named(&["a", "b"]))), "remove");
        assert_eq!(refused(two.changed(&added(vec![filter("")]), &[])), "add[0].name");
        assert_eq!(refused(set(&[""]).changed(&added(vec![filter("a")]), &[])), "remove");
        assert_eq!(refused(FilterSet::parse("add", vec![filter("c"), filter("c")])), "add[1].name");
        let many: Vec<WatchFilter> = (0..15).map(|n| filter(&format!("f{n}"))).collect();
        assert_eq!(refused(two.changed(&added(many), &[])), "add");
        let bad = WatchFilter { filter: "data.n >".to_owned(), ..filter("c") };
        assert_eq!(refused(FilterSet::parse("add", vec![bad])), "add[0].filter");
    }

    #[tokio::test]
    async fn g9_what_a_watch_has_already_is_not_compiled_again() {
        let compiled = |set: &FilterSet| -> Vec<bool> {
            set.named.iter().filter_map(|(_, selection)| Some(selection.filter.as_ref()?.is_compiled())).collect()
        };
        let present = set(&["a", "b"]);
        let other = WatchFilter { filter: "data.n > 7".to_owned(), ..filter("c") };
        let changed = present.changed(&added(vec![other.clone()]), &[]).expect("a change");
        let stored = FilterSet::decode(&changed.encode()).expect("readable");
        assert_eq!(compiled(&stored), [false, false, false], "what is read back waits until it is needed");
        let reused = stored.reusing(&present.into_filters());
        assert_eq!(compiled(&reused), [true, true, false]);
        let tenant = TenantId(uuid::Uuid::from_u128(9));
        assert_eq!(compiled(&reused.compiled(tenant).await), [true, true, true]);
    }
}
