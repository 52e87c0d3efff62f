//! Where the references of a schema document lead: each subschema's pointer and base, and what a `$ref` names.
//!
//! Works on the document alone: nothing is fetched. A subschema is known by its place in memory, so the document must not move
//! while it is looked at.

use super::told::unresolved;
use super::{DATA_KEYWORDS, MAP_KEYWORDS, SchemaError, escape, refuse, without_fragment};
use jsonschema::{Draft, ReferencingError, Registry, Uri, uri};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// The base of a document that has no `$id`.
const DEFAULT_BASE: &str = "json-schema:///";

/// A document with its references.
pub(super) struct Document<'d> {
    /// The whole of it.
    pub(super) root: &'d Value,
    /// The draft it is written in.
    pub(super) draft: Draft,
    registry: Registry<'d>,
    default_base: Rc<Uri<String>>,
    places: HashMap<usize, Place<'d>>,
    /// Every value of it, those included that are no subschemas.
    values: HashSet<usize>,
}

/// Where a reference leads.
pub(super) struct Found<'f> {
    pub schema: &'f Value,
    pub base: Rc<Uri<String>>,
    pub draft: Draft,
    /// Where that is, as a URI; empty for what is in the document.
    pub place: String,
}

/// The base and the draft of what is not in the document.
type Elsewhere = (Rc<Uri<String>>, Draft);

/// Where a subschema is.
struct Place<'d> {
    schema: &'d Value,
    pointer: String,
    base: Rc<Uri<String>>,
}

impl<'d> Document<'d> {
    /// Reads a document's identifiers. Errors: for one that is none, and for references to what is not in the document.
    pub(super) fn new(root: &'d Value, draft: Draft) -> Result<Self, SchemaError> {
        let default_base = uri::from_str(DEFAULT_BASE).map_err(|error| refuse("", unresolved(&error)))?;
        let unread = |error: ReferencingError| {
            let found = unresolved_at(root, draft, &default_base, &error, &mut String::new());
            found.unwrap_or_else(|| refuse("", unresolved(&error)))
        };
        let registry =
            Registry::new().draft(draft).add(DEFAULT_BASE, root).map_err(unread)?.prepare().map_err(unread)?;
        let default_base = Rc::new(default_base);
        let (places, values, base) = (HashMap::new(), HashSet::new(), Rc::clone(&default_base));
        let mut document = Self { root, draft, registry, default_base, places, values };
        document.count(root);
        document.enter(root, &mut String::new(), &base);
        Ok(document)
    }

    /// JSON pointer of a subschema; none for what is not in the document.
    pub(super) fn pointer(&self, schema: &Value) -> Option<&str> {
        self.places.get(&address(schema)).map(|place| place.pointer.as_str())
    }

    /// What a `$ref` in `schema` names, where that is a subschema of the document.
    pub(super) fn target(&self, schema: &Value, reference: &str) -> Option<&'d Value> {
        let base = &self.places.get(&address(schema))?.base;
        self.places.get(&address(self.lookup(base, reference)?.0)).map(|place| place.schema)
    }

    /// True for a reference to nothing that is known, and to what is in the document and no subschema of it: `const`, `examples` and the
    /// like hold data, and what holds named subschemas is none itself.
    pub(super) fn is_astray(&self, schema: &Value, reference: &str) -> bool {
        let Some(place) = self.places.get(&address(schema)) else { return false };
        self.lookup(&place.base, reference).is_none_or(|(found, _)| {
            let found = address(found);
            self.values.contains(&found) && !self.places.contains_key(&found)
        })
    }

    /// What a reference leads to; with the base and the draft there, where that was looked up elsewhere.
    fn lookup(&self, base: &Uri<String>, reference: &str) -> Option<(&Value, Option<Elsewhere>)> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let whole =
            if uri.is_empty() { base.clone() } else { (*self.registry.resolve_uri(&base.borrow(), uri).ok()?).clone() };
        let resolver = self.registry.resolver(whole);
        // A pointer is followed here: to the registry each identifier on its way is a URI to be resolved, again for every reference.
        let pointer = percent_decode_str(fragment).decode_utf8().ok()?;
        if pointer.starts_with('/') {
            let root = resolver.lookup("#").ok()?.contents();
            if self.values.contains(&address(root)) {
                return root.pointer(&pointer).map(|found| (found, None));
            }
        }
        // A name is looked up in what the URI names, and nowhere on the way there: what is dynamic is so by its keyword alone.
        let resolved = resolver.lookup(&format!("#{fragment}")).ok()?;
        let (found, resolver, draft) = resolved.into_inner();
        Some((found, Some((Rc::new((*resolver.base_uri()).clone()), draft))))
    }

    /// The base of a document that has no identifier.
    pub(super) fn default_base(&self) -> Rc<Uri<String>> {
        Rc::clone(&self.default_base)
    }

    /// The base of a subschema of the document; none for what is not in it.
    pub(super) fn base(&self, schema: &Value) -> Option<Rc<Uri<String>>> {
        self.places.get(&address(schema)).map(|place| Rc::clone(&place.base))
    }

    /// The base of a subschema, which may be elsewhere, below one with this base.
    pub(super) fn base_below(&self, schema: &Value, above: &Rc<Uri<String>>, draft: Draft) -> Rc<Uri<String>> {
        self.base(schema).or_else(|| self.own_base(schema, above, draft).ok()).unwrap_or_else(|| Rc::clone(above))
    }

    /// Where a reference from a subschema with this base leads.
    pub(super) fn follow(&self, base: &Uri<String>, reference: &str) -> Option<Found<'_>> {
        let (schema, elsewhere) = self.lookup(base, reference)?;
        if let Some(place) = self.places.get(&address(schema)) {
            return Some(Found { schema, base: Rc::clone(&place.base), draft: self.draft, place: String::new() });
        }
        let (base, draft) = elsewhere?;
        let pointer = reference.rsplit_once('#').map(|(_, fragment)| fragment).filter(|it| it.starts_with('/'));
        let place = format!("{}#{}", without_fragment(base.as_str()), pointer.unwrap_or_default());
        Some(Found { schema, base, draft, place })
    }

    /// Every subschema, in the order of the document; what stands in keywords that nobody knows is none.
    pub(super) fn subschemas(&self) -> impl Iterator<Item = &'d Value> {
        let (mut left, draft) = (vec![self.root], self.draft);
        std::iter::from_fn(move || {
            let schema = left.pop()?;
            left.extend(draft.subresources_of(schema));
            Some(schema)
        })
    }

    /// The base that a subschema gives itself, or that of what it stands in.
    fn own_base(
        &self,
        schema: &Value,
        above: &Rc<Uri<String>>,
        draft: Draft,
    ) -> Result<Rc<Uri<String>>, ReferencingError> {
        let Some(id) = identifier(schema, draft) else { return Ok(Rc::clone(above)) };
        Ok(Rc::new((*self.registry.resolve_uri(&above.borrow(), id)?).clone()))
    }

    fn count(&mut self, value: &Value) {
        self.values.insert(address(value));
        match value {
            Value::Array(elements) => elements.iter().for_each(|element| self.count(element)),
            Value::Object(members) => members.values().for_each(|member| self.count(member)),
            _ => {}
        }
    }

    fn enter(&mut self, schema: &'d Value, pointer: &mut String, base: &Rc<Uri<String>>) {
        // Where nobody looks for identifiers, what is none says nothing.
        let base = self.own_base(schema, base, self.draft).unwrap_or_else(|_| Rc::clone(base));
        self.places.insert(address(schema), Place { schema, pointer: pointer.clone(), base: Rc::clone(&base) });
        for (way, schema) in below(schema) {
            let length = pointer.len();
            pointer.push_str(&way);
            self.enter(schema, pointer, &base);
            pointer.truncate(length);
        }
    }
}

/// What stands below a value of a document and may be a subschema, each with what its pointer has besides; what is data is left out.
pub(super) fn below(schema: &Value) -> Vec<(String, &Value)> {
    match schema {
        Value::Array(elements) => {
            elements.iter().enumerate().map(|(index, element)| (format!("/{index}"), element)).collect()
        }
        Value::Object(members) => {
            let mut found = Vec::new();
            for (keyword, value) in members {
                match value {
                    Value::Object(named) if MAP_KEYWORDS.contains(&keyword.as_str()) => {
                        found.extend(named.iter().map(|(name, value)| (format!("/{keyword}/{}", escape(name)), value)));
                    }
                    _ if DATA_KEYWORDS.contains(&keyword.as_str()) => {}
                    _ => found.push((format!("/{}", escape(keyword)), value)),
                }
            }
            found
        }
        _ => Vec::new(),
    }
}

/// The identifier that a subschema gives itself. Draft 7 ignores what stands beside a reference.
fn identifier(schema: &Value, draft: Draft) -> Option<&str> {
    let id = schema.get("$id").and_then(Value::as_str);
    let id = id.filter(|id| !(id.starts_with('#') || draft == Draft::Draft7 && schema.get("$ref").is_some()));
    // An empty fragment says nothing.
    id.map(|id| id.strip_suffix('#').unwrap_or(id))
}

/// What is wrong with the first identifier or reference below `pointer` that is no URI, or names what is not there as `error` has it.
fn unresolved_at(
    schema: &Value,
    draft: Draft,
    base: &Uri<String>,
    error: &ReferencingError,
    pointer: &mut String,
) -> Option<SchemaError> {
    let at = |keyword: &str, error: &ReferencingError| Some(refuse(&format!("{pointer}/{keyword}"), unresolved(error)));
    let own = match identifier(schema, draft).map(|id| uri::resolve_against(&base.borrow(), id)) {
        Some(Err(error)) => return at("$id", &error),
        Some(Ok(own)) => Some(own),
        None => None,
    };
    let base = own.as_ref().unwrap_or(base);
    for keyword in ["$ref", "$dynamicRef"] {
        let Some(reference) = schema.get(keyword).and_then(Value::as_str) else { continue };
        match (uri::resolve_against(&base.borrow(), reference), error) {
            (Err(error), _) => return at(keyword, &error),
            (Ok(found), ReferencingError::Unretrievable { uri, .. })
                if uri == reference || uri == without_fragment(found.as_str()) =>
            {
                return at(keyword, error);
            }
            _ => {}
        }
    }
    below(schema).into_iter().find_map(|(way, schema)| {
        let length = pointer.len();
        pointer.push_str(&way);
        let found = unresolved_at(schema, draft, base, error, pointer);
        pointer.truncate(length);
        found
    })
}

/// What tells one subschema from another: where it is in memory.
pub(super) fn address(value: &Value) -> usize {
    std::ptr::from_ref(value).addr()
}

#[cfg(test)]
mod tests {
    use crate::domain::schema::tests::{schema, violations};
    use std::time::Instant;

    const DRAFTS: [(&str, &str); 2] = [
        ("https://json-schema.org/draft/2020-12/schema", "$defs"),
        ("http://json-schema.org/draft-07/schema#", "definitions"),
    ];

    /// A document of so many documents with identifiers, each of which refers to those that `to` says.
    fn bundle((draft, defs): (&str, &str), count: usize, within: &str, to: impl Fn(usize) -> Vec<usize>) -> String {
        let refer = |n: usize| {
            let to = to(n).into_iter().map(|m| format!(r#""p{m}": {{"$ref": "https://e.org/{m}/"}}"#));
            to.collect::<Vec<_>>().join(",")
        };
        let all: Vec<_> = (0..count)
            .map(|n| format!(r#""a{n}": {{"$id": "https://e.org/{n}/", {within} "properties": {{{}}}}}"#, refer(n)))
            .collect();
        let last = format!(r#""a{count}": {{"$id": "https://e.org/{count}/", "type": "integer"}}"#);
        format!(
            r#"{{"$schema": "{draft}", "{defs}": {{{}, {last}}}, "allOf": [{{"$ref": "https://e.org/0/"}}]}}"#,
            all.join(",")
        )
    }

    #[test]
    fn documents_with_identifiers_that_lead_to_each_other_in_many_ways_are_compiled_once() {
        for draft in DRAFTS {
            for document in [
                bundle(draft, 300, "", |n| vec![n + 1, (n + 2).min(300)]),
                bundle(draft, 40, "", |_| (0..=40).collect()),
            ] {
                let begin = Instant::now();
                let schema = schema(&document);
                assert!(begin.elapsed() < super::super::tests::PARSE_MAX, "{:?}", begin.elapsed());
                assert!(schema.memory_bytes() < 8 << 20, "{}", schema.memory_bytes());
            }
            let two = bundle(draft, 2, "", |n| vec![n + 1]);
            assert_eq!(schema(&two).validate(br#"{"p1": {"p2": 5}}"#), Ok(()));
            let pointer = format!("/{}/a2/type", draft.1);
            let told = violations(&two, r#"{"p1": {"p2": "x"}}"#);
            assert_eq!((told[0].0.as_str(), told[0].1.as_str()), ("/p1/p2", pointer.as_str()));
        }
    }

    #[test]
    fn documents_in_a_document_with_dynamic_references_cost_what_others_cost() {
        let tree = |dynamic: &str| {
            format!(
                r#"{{"$id": "https://e.org/strict", "$dynamicAnchor": "node", "$ref": "tree", "unevaluatedProperties": false,
                "$defs": {{"tree": {{"$id": "https://e.org/tree", "$dynamicAnchor": "node", "properties": {{"data": true,
                "children": {{"items": {{{dynamic}}}}}}}}}}}}}"#
            )
        };
        let data = (0..50).fold(format!("\"{}\"", "a".repeat(400_000)), |data, level| {
            if level == 0 { format!(r#"{{"data": {data}}}"#) } else { format!(r#"{{"children": [{data}]}}"#) }
        });
        let schema = schema(&tree(r##""$dynamicRef": "#node""##));
        assert_eq!(schema.validate(data.as_bytes()), Ok(()), "none of them is a draft's own");
        assert!(schema.validate(br#"{"children": [{"daat": 1}]}"#).is_err());
    }

    #[test]
    fn dynamic_references_that_lead_on_in_many_ways_are_compiled_once() {
        let within = r##""$dynamicAnchor": "m", "minProperties": 0, "items": {"$dynamicRef": "#m"},"##;
        let document = |count: usize| bundle(DRAFTS[0], count, within, |n| vec![n + 1, (n + 2).min(count)]);
        let begin = Instant::now();
        let many = schema(&document(200));
        assert!(begin.elapsed() < super::super::tests::PARSE_MAX, "{:?}", begin.elapsed());
        assert!(many.memory_bytes() < 20 * document(200).len(), "{}", many.memory_bytes());
        let few = document(2);
        assert_eq!(schema(&few).validate(br#"{"p1": {"p2": 5}}"#), Ok(()));
        let told = violations(&few, r#"{"p1": {"p2": "x"}}"#);
        assert_eq!((told[0].0.as_str(), told[0].1.as_str()), ("/p1/p2", "/$defs/a2/type"));
        let meta = r#""$ref": "https://json-schema.org/draft/2020-12/schema""#;
        let with_meta = few.replace(r#""type": "integer""#, meta);
        assert_eq!(schema(&with_meta).validate(br#"{"p1": {"p2": {"type": "integer"}}}"#), Ok(()));
        let told = violations(&with_meta, r#"{"p1": {"p2": {"items": {"minimum": "x"}}}}"#);
        assert_eq!(told[0].0, "/p1/p2/items/minimum");
        assert!(told[0].1.starts_with("https://json-schema.org/draft/2020-12/meta/validation#/"), "{told:?}");
    }

    #[test]
    fn references_lead_to_the_same_whether_by_identifier_anchor_or_pointer() {
        let document = r##"{
            "$id": "https://e.org/root", "$anchor": "here",
            "properties": {
                "by_id": {"$ref": "other"}, "by_anchor": {"$ref": "other#there"}, "by_pointer": {"$ref": "other#/$defs/a~1b%20%25%C3%A9"},
                "whole": {"$ref": "#here"}, "meta": {"$ref": "https://json-schema.org/draft/2020-12/schema"},
                "$id": {"type": "string"}
            },
            "$defs": {
                "other": {
                    "$id": "other", "type": "integer", "examples": [{"$id": "kept"}],
                    "$defs": {"x": {"$anchor": "there", "type": "string"}, "a/b %é": {"$ref": "#there"}}
                }
            },
            "additionalProperties": false
        }"##;
        for fits in [
            r#"{"by_id": 5, "by_anchor": "x", "by_pointer": "x", "$id": "x"}"#,
            r#"{"whole": {"by_id": 5}, "meta": {}}"#,
        ] {
            assert_eq!(schema(document).validate(fits.as_bytes()), Ok(()), "{fits}");
        }
        for (breaks, at) in [
            (r#"{"by_id": "x"}"#, "/by_id"),
            (r#"{"by_anchor": 5}"#, "/by_anchor"),
            (r#"{"by_pointer": 5}"#, "/by_pointer"),
            (r#"{"whole": {"by_id": "x"}}"#, "/whole/by_id"),
            (r#"{"meta": {"type": 5}}"#, "/meta/type"),
            (r#"{"$id": 5}"#, "/$id"),
        ] {
            let told = violations(document, breaks);
            assert_eq!(told.first().map(|told| told.0.as_str()), Some(at), "{breaks}: {told:?}");
        }
    }
}
