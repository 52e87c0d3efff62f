//! Where the references of a schema document lead: each subschema's pointer and base, what a `$ref` names, and whether a chain of
//! references comes back to where it began without having gone into the data.
//!
//! Works on the document alone: nothing is fetched. A subschema is known by its place in memory, so the document must not move
//! while it is looked at.

use super::told::unresolved;
use super::{DATA_KEYWORDS, MAP_KEYWORDS, SchemaError, pointer, refuse, without_fragment};
use jsonschema::{Draft, ReferencingError, Registry, Uri, uri};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// The base of a document that has no `$id`.
const DEFAULT_BASE: &str = "json-schema:///";

/// How often one subschema may lead on to another one that judges the same data: each time takes some of the stack.
const STEPS_MAX: usize = 100;
/// How many subschemas one may apply to the same data.
const REACHED_MAX: u64 = 20_000;
/// How many values of the document those may hold that keywords have to look through which speak of what all others left over.
const LOOKED_THROUGH_MAX: u64 = 100_000;
const UNEVALUATED: [&str; 2] = ["unevaluatedItems", "unevaluatedProperties"];

/// How much is applied to the same data as a subschema, itself included.
#[derive(Debug, Clone, Copy, Default)]
struct Reach {
    subschemas: u64,
    /// Of the document, with what stands below them.
    values: u64,
    /// The longest way there.
    steps: usize,
}

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

/// Where a subschema is.
struct Place<'d> {
    schema: &'d Value,
    pointer: String,
    base: Rc<Uri<String>>,
}

impl<'d> Document<'d> {
    /// Reads a document's identifiers. Errors: for one that is none, and for references to what is not in the document.
    pub(super) fn new(root: &'d Value, draft: Draft) -> Result<Self, SchemaError> {
        let unread = |error: ReferencingError| refuse("", unresolved(&error));
        let registry =
            Registry::new().draft(draft).add(DEFAULT_BASE, root).map_err(unread)?.prepare().map_err(unread)?;
        let no_identifier = || refuse("", "has an identifier that cannot be resolved");
        let base = Rc::new(uri::from_str(DEFAULT_BASE).map_err(|_| no_identifier())?);
        let (places, values, default_base) = (HashMap::new(), HashSet::new(), Rc::clone(&base));
        let mut document = Self { root, draft, registry, default_base, places, values };
        document.count(root);
        document.enter(root, &mut Vec::new(), &base).ok_or_else(no_identifier)?;
        Ok(document)
    }

    /// JSON pointer of a subschema; none for what is not in the document.
    pub(super) fn pointer(&self, schema: &Value) -> Option<&str> {
        self.places.get(&address(schema)).map(|place| place.pointer.as_str())
    }

    /// What a `$ref` in `schema` names, where that is a subschema of the document.
    pub(super) fn target(&self, schema: &Value, reference: &str) -> Option<&'d Value> {
        let base = &self.places.get(&address(schema))?.base;
        let resolved = self.registry.resolver((**base).clone()).lookup(reference).ok()?;
        self.places.get(&address(resolved.contents())).map(|place| place.schema)
    }

    /// True for a reference to nothing that is known, and to what is in the document and no subschema of it: `const`, `examples` and the
    /// like hold data, and what holds named subschemas is none itself.
    fn is_astray(&self, schema: &Value, reference: &str) -> bool {
        let Some(place) = self.places.get(&address(schema)) else { return false };
        let resolver = self.registry.resolver((*place.base).clone());
        resolver.lookup(reference).map_or(true, |resolved| {
            let found = address(resolved.contents());
            self.values.contains(&found) && !self.places.contains_key(&found)
        })
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
        let (schema, resolver, draft) = self.registry.resolver(base.clone()).lookup(reference).ok()?.into_inner();
        if let Some(place) = self.places.get(&address(schema)) {
            return Some(Found { schema, base: Rc::clone(&place.base), draft: self.draft, place: String::new() });
        }
        let base = Rc::new((*resolver.base_uri()).clone());
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
        // Draft 7 ignores what stands beside a reference.
        let id = schema.get("$id").and_then(Value::as_str);
        let id = id.filter(|id| !(id.starts_with('#') || draft == Draft::Draft7 && schema.get("$ref").is_some()));
        let Some(id) = id else { return Ok(Rc::clone(above)) };
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

    fn enter(&mut self, schema: &'d Value, path: &mut Vec<String>, base: &Rc<Uri<String>>) -> Option<()> {
        let base = self.own_base(schema, base, self.draft).ok()?;
        self.places.insert(address(schema), Place { schema, pointer: pointer(path), base: Rc::clone(&base) });
        match schema {
            Value::Array(elements) => {
                for (index, element) in elements.iter().enumerate() {
                    path.push(index.to_string());
                    self.enter(element, path, &base)?;
                    path.pop();
                }
            }
            Value::Object(members) => {
                for (keyword, value) in members {
                    path.push(keyword.clone());
                    match value {
                        Value::Object(named) if MAP_KEYWORDS.contains(&keyword.as_str()) => {
                            for (name, schema) in named {
                                path.push(name.clone());
                                self.enter(schema, path, &base)?;
                                path.pop();
                            }
                        }
                        _ if DATA_KEYWORDS.contains(&keyword.as_str()) => {}
                        _ => self.enter(value, path, &base)?,
                    }
                    path.pop();
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Refuses references that come back to where they began without going into the data: checking one would never end. Refuses as well
    /// what leads to too much, each way there counted for itself: a few references that lead on twice each are an endless lot.
    ///
    /// A schema that refers to itself below `properties`, `items` and the like is fine, because data ends.
    pub(super) fn check_progress(&self) -> Result<(), SchemaError> {
        /// What is being followed from one subschema.
        struct Step<'d> {
            schema: &'d Value,
            next: Vec<(&'static str, &'d Value)>,
            by: &'static str,
        }
        // Of what is being followed there is no count yet.
        let mut marks: HashMap<usize, Option<Reach>> = HashMap::new();
        let mut looked_through = 0_u64;
        let mut starts: Vec<&'d Value> = vec![self.root];
        gather(self.root, &mut starts);
        for start in starts {
            for keyword in ["$ref", "$dynamicRef"] {
                let reference = start.get(keyword).and_then(Value::as_str);
                if reference.is_some_and(|reference| self.is_astray(start, reference)) {
                    let at = format!("{}/{keyword}", self.pointer(start).unwrap_or_default());
                    return Err(refuse(&at, "refers to nothing, or to what is no schema"));
                }
            }
            if marks.contains_key(&address(start)) {
                continue;
            }
            marks.insert(address(start), None);
            let mut steps = vec![Step { schema: start, next: self.in_place(start), by: "" }];
            while let Some(step) = steps.last_mut() {
                let Some((by, next)) = step.next.pop() else {
                    let reach = self.reach(step.schema, &marks);
                    let at = |keyword: &str| format!("{}/{keyword}", self.pointer(step.schema).unwrap_or_default());
                    if reach.subschemas > REACHED_MAX {
                        let what = format!("leads to the same data through more than {REACHED_MAX} subschemas");
                        return Err(refuse(at("").trim_end_matches('/'), what));
                    }
                    if reach.steps > STEPS_MAX {
                        let what = format!("leads on more than {STEPS_MAX} times without going into the data");
                        return Err(refuse(at("").trim_end_matches('/'), what));
                    }
                    if let Some(keyword) = UNEVALUATED.into_iter().find(|keyword| step.schema.get(keyword).is_some()) {
                        looked_through = reach.values.saturating_add(looked_through);
                        if looked_through > LOOKED_THROUGH_MAX {
                            return Err(refuse(&at(keyword), "has to look through too many subschemas"));
                        }
                    }
                    marks.insert(address(step.schema), Some(reach));
                    steps.pop();
                    continue;
                };
                match marks.get(&address(next)) {
                    Some(Some(_)) => {}
                    Some(None) => {
                        // Going down the document never comes back, so one step of every circle is a reference.
                        let from = steps.iter().position(|step| address(step.schema) == address(next)).unwrap_or(0);
                        let circle = &steps[from..];
                        let bys = circle.iter().skip(1).map(|step| step.by).chain([by]);
                        let reference = circle.iter().zip(bys).find(|(_, by)| by.starts_with('$'));
                        let at = reference.map_or_else(String::new, |(step, by)| {
                            format!("{}/{by}", self.pointer(step.schema).unwrap_or_default())
                        });
                        return Err(refuse(&at, "refers in a circle that never goes into the data"));
                    }
                    None => {
                        marks.insert(address(next), None);
                        steps.push(Step { schema: next, next: self.in_place(next), by });
                    }
                }
            }
        }
        Ok(())
    }

    /// What one subschema leads to, where that is known of all that it leads to at once.
    fn reach(&self, schema: &'d Value, known: &HashMap<usize, Option<Reach>>) -> Reach {
        let own = Reach { subschemas: 1, values: size(schema), steps: 0 };
        self.in_place(schema).into_iter().fold(own, |all, (_, next)| {
            let next = known.get(&address(next)).copied().flatten().unwrap_or_default();
            Reach {
                subschemas: all.subschemas.saturating_add(next.subschemas),
                values: all.values.saturating_add(next.values),
                steps: all.steps.max(next.steps.saturating_add(1)),
            }
        })
    }

    /// The subschemas that are applied to the same data as `schema`, each with the keyword that leads there.
    fn in_place(&self, schema: &'d Value) -> Vec<(&'static str, &'d Value)> {
        let Value::Object(members) = schema else { return Vec::new() };
        let mut next = Vec::new();
        if let Some(reference) = members.get("$ref").and_then(Value::as_str) {
            next.extend(self.target(schema, reference).map(|target| ("$ref", target)));
            if self.draft == Draft::Draft7 {
                return next;
            }
        }
        // Another document's anchor cannot come in between, so what it names by itself is where it leads in a circle.
        if let Some(reference) = members.get("$dynamicRef").and_then(Value::as_str) {
            next.extend(self.target(schema, reference).map(|target| ("$dynamicRef", target)));
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            next.extend(members.get(keyword).and_then(Value::as_array).into_iter().flatten().map(|one| (keyword, one)));
        }
        let conditional = members.contains_key("if");
        for keyword in ["not", "if", "then", "else"] {
            if matches!(keyword, "then" | "else") && !conditional {
                continue;
            }
            next.extend(members.get(keyword).map(|one| (keyword, one)));
        }
        for keyword in ["dependentSchemas", "dependencies"] {
            let named = members.get(keyword).and_then(Value::as_object).into_iter().flat_map(Map::values);
            next.extend(named.map(|one| (keyword, one)));
        }
        next
    }
}

/// Every subschema that a reference could name or a keyword holds; what is data is left out.
fn gather<'d>(schema: &'d Value, found: &mut Vec<&'d Value>) {
    let mut below: Vec<&'d Value> = Vec::new();
    match schema {
        Value::Array(elements) => below.extend(elements),
        Value::Object(members) => {
            for (keyword, value) in members {
                match value {
                    Value::Object(named) if MAP_KEYWORDS.contains(&keyword.as_str()) => {
                        below.extend(named.values());
                    }
                    _ if DATA_KEYWORDS.contains(&keyword.as_str()) => {}
                    _ => below.push(value),
                }
            }
        }
        _ => {}
    }
    for value in below {
        found.push(value);
        gather(value, found);
    }
}

/// How many values of a document stand in a subschema.
fn size(schema: &Value) -> u64 {
    let below = match schema {
        Value::Array(elements) => elements.iter().map(size).sum(),
        Value::Object(members) => members.values().map(size).sum(),
        _ => 0,
    };
    1 + below
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
