//! Compiles a schema document.
//!
//! Subschemas are compiled one after the other, never one within another, and each once: what a document takes here is in proportion to
//! what it holds. Its shape was validated before; what a reference names where no schema is expected was not, so nothing here relies on it.

use super::asserted::{self, Asserted};
use super::compatibility::{Decimal, is_positive};
use super::patterns::{Expressions, Pattern};
use super::program::{Bound, Check, Contains, Elements, Members, Node, NodeId, Program, Type};
use super::references::{Document, address};
use super::weight::memory;
use super::{SchemaError, escape, refuse, told, without_fragment};
use jsonschema::{Draft, Uri};
use serde_json::{Map, Value};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// How many expressions all drafts' own schemas may have.
const OTHERS_MAX: usize = 16;

/// Compiles a document. Errors: with the place, for what has not the shape of a schema, or is no regular expression.
pub(super) fn compile(document: &Document<'_>, expressions: &Expressions) -> Result<Program, SchemaError> {
    let mut compiler = Compiler {
        document,
        expressions,
        others: HashMap::new(),
        nodes: Vec::new(),
        known: HashMap::new(),
        queue: VecDeque::new(),
        resources: HashMap::new(),
        bases: HashMap::new(),
        names: HashMap::new(),
        anchors: HashMap::new(),
        asserted: HashMap::new(),
        memory: 0,
    };
    let base = document.base(document.root).unwrap_or_else(|| document.default_base());
    compiler.node(Subschema { schema: document.root, base, draft: document.draft, pointer: String::new() });
    compiler.anchored()?;
    while let Some((id, subschema)) = compiler.queue.pop_front() {
        let node = compiler.compile(&subschema)?;
        compiler.memory += size_of::<Node>() + node.pointer.len() + node.checks.len() * size_of::<Check>();
        compiler.nodes[id] = node;
    }
    Ok(Program { nodes: compiler.nodes, anchors: compiler.anchors, memory_bytes: compiler.memory })
}

/// A subschema that is yet to be compiled.
struct Subschema<'c> {
    schema: &'c Value,
    /// Its own identifier, or that of what it stands in.
    base: Rc<Uri<String>>,
    draft: Draft,
    pointer: String,
}

struct Compiler<'c> {
    document: &'c Document<'c>,
    /// Those of the document.
    expressions: &'c Expressions,
    /// Those of the drafts' own schemas.
    others: HashMap<String, Pattern>,
    nodes: Vec<Node>,
    /// By where the subschemas are.
    known: HashMap<usize, NodeId>,
    queue: VecDeque<(NodeId, Subschema<'c>)>,
    resources: HashMap<String, usize>,
    /// The same by where the bases are, which are kept with them.
    bases: HashMap<*const Uri<String>, (Rc<Uri<String>>, usize)>,
    /// Of dynamic anchors.
    names: HashMap<String, usize>,
    anchors: HashMap<(usize, usize), NodeId>,
    /// None for what says nothing.
    asserted: HashMap<String, Option<Arc<Asserted>>>,
    /// About what is kept, in bytes.
    memory: usize,
}

impl<'c> Compiler<'c> {
    /// The node of a subschema.
    fn node(&mut self, subschema: Subschema<'c>) -> NodeId {
        let id = *self.known.entry(address(subschema.schema)).or_insert(self.nodes.len());
        if id == self.nodes.len() {
            self.nodes.push(Node::default());
            self.queue.push_back((id, subschema));
        }
        id
    }

    /// The node of what stands below a subschema.
    fn below(&mut self, above: &Subschema<'c>, schema: &'c Value, at: &[&str]) -> NodeId {
        if let Some(id) = self.known.get(&address(schema)) {
            return *id;
        }
        let pointer = at.iter().fold(above.pointer.clone(), |pointer, part| pointer + "/" + &escape(part));
        let base = self.document.base_below(schema, &above.base, above.draft);
        self.node(Subschema { schema, base, draft: above.draft, pointer })
    }

    /// The nodes of a list of subschemas.
    fn list(&mut self, above: &Subschema<'c>, keyword: &str, value: &'c Value) -> Result<Vec<NodeId>, SchemaError> {
        let list = value.as_array().ok_or_else(|| misshapen(above, keyword))?;
        self.memory += list.len() * size_of::<NodeId>();
        Ok(list
            .iter()
            .enumerate()
            .map(|(index, schema)| self.below(above, schema, &[keyword, &index.to_string()]))
            .collect())
    }

    fn resource(&mut self, base: &Rc<Uri<String>>) -> usize {
        // A long identifier above thousands of subschemas is looked at once.
        if let Some((_, resource)) = self.bases.get(&Rc::as_ptr(base)) {
            return *resource;
        }
        let next = self.resources.len();
        let resource = *self.resources.entry(without_fragment(base.as_str()).to_owned()).or_insert(next);
        self.bases.insert(Rc::as_ptr(base), (Rc::clone(base), resource));
        resource
    }

    fn name(&mut self, name: &str) -> usize {
        let next = self.names.len();
        *self.names.entry(name.to_owned()).or_insert(next)
    }

    /// Notes every place of the document that a dynamic reference may lead to. Errors: for a resource that has one name twice.
    fn anchored(&mut self) -> Result<(), SchemaError> {
        let document = self.document;
        if document.draft == Draft::Draft7 {
            // It knows no such keyword.
            return Ok(());
        }
        for schema in document.subschemas().filter(|schema| schema.get("$dynamicAnchor").is_some()) {
            let base = document.base(schema).unwrap_or_else(|| document.default_base());
            let pointer = document.pointer(schema).unwrap_or_default().to_owned();
            let at = format!("{pointer}/$dynamicAnchor");
            if !self.anchor(Subschema { schema, base, draft: document.draft, pointer }) {
                return Err(refuse(&at, "is a name that stands twice in the same document"));
            }
        }
        Ok(())
    }

    /// False where another subschema has the name already.
    fn anchor(&mut self, subschema: Subschema<'c>) -> bool {
        let Some(name) = subschema.schema.get("$dynamicAnchor").and_then(Value::as_str) else { return true };
        let place = (self.resource(&subschema.base), self.name(name));
        let id = self.node(subschema);
        *self.anchors.entry(place).or_insert(id) == id
    }

    /// The node that a reference leads to, and the resource and the schema there.
    fn follow(
        &mut self,
        from: &Subschema<'c>,
        keyword: &str,
        value: &'c Value,
    ) -> Result<(NodeId, &'c Value), SchemaError> {
        let reference = value.as_str().ok_or_else(|| misshapen(from, keyword))?;
        let to_nothing =
            || refuse(&format!("{}/{keyword}", from.pointer), "refers to nothing, or to what is no schema");
        let found = self.document.follow(&from.base, reference).ok_or_else(to_nothing)?;
        let schema = found.schema;
        if let Some(id) = self.known.get(&address(schema)) {
            return Ok((*id, schema));
        }
        let pointer = match self.document.pointer(schema) {
            Some(pointer) => pointer.to_owned(),
            None => found.place,
        };
        let subschema = Subschema { schema, base: found.base, draft: found.draft, pointer };
        if self.document.pointer(schema).is_none() {
            // What is elsewhere may be led to by its own dynamic references, whatever part of it was entered.
            let uri = without_fragment(subschema.base.as_str()).to_owned();
            if let Some(whole) = self.document.follow(&subschema.base, &uri) {
                let pointer = format!("{uri}#");
                self.anchor(Subschema { schema: whole.schema, base: whole.base, draft: whole.draft, pointer });
            }
        }
        Ok((self.node(subschema), schema))
    }

    fn compile(&mut self, of: &Subschema<'c>) -> Result<Node, SchemaError> {
        let resource = self.resource(&of.base);
        let mut node = Node { pointer: of.pointer.clone().into(), resource, ..Node::default() };
        let members = match of.schema {
            Value::Bool(true) => return Ok(node),
            Value::Bool(false) => {
                node.checks.push(Check::Never);
                return Ok(node);
            }
            Value::Object(members) => members,
            _ => return Err(refuse(&of.pointer, "is no schema")),
        };
        if of.draft == Draft::Draft7
            && let Some(reference) = members.get("$ref")
        {
            // Draft 7 ignores what stands beside it.
            node.checks.push(Check::Reference(self.follow(of, "$ref", reference)?.0));
            return Ok(node);
        }
        self.values(of, members, &mut node.checks)?;
        self.texts(of, members, &mut node.checks)?;
        self.parts(of, members, &mut node.checks)?;
        self.in_place(of, members, &mut node.checks)?;
        if of.draft != Draft::Draft7 {
            for (keyword, unevaluated) in [
                ("unevaluatedItems", &mut node.unevaluated_items),
                ("unevaluatedProperties", &mut node.unevaluated_properties),
            ] {
                *unevaluated = members.get(keyword).map(|schema| self.below(of, schema, &[keyword]));
            }
        }
        Ok(node)
    }

    /// Keywords about a value of any type, and numbers.
    fn values(
        &mut self,
        of: &Subschema<'c>,
        members: &Map<String, Value>,
        checks: &mut Vec<Check>,
    ) -> Result<(), SchemaError> {
        if let Some(value) = members.get("type") {
            let types: Option<BTreeSet<Type>> = match value {
                // Each once, however often it is listed.
                Value::Array(types) => types.iter().map(|one| Type::parse(one.as_str()?)).collect(),
                one => one.as_str().and_then(Type::parse).map(|one| BTreeSet::from([one])),
            };
            let types = types.ok_or_else(|| misshapen(of, "type"))?;
            checks.push(Check::Type(types.into_iter().collect()));
        }
        if let Some(value) = members.get("const") {
            self.keep(value);
            checks.push(Check::Const(value.clone()));
        }
        if let Some(value) = members.get("enum") {
            self.keep(value);
            let list = value.as_array().ok_or_else(|| misshapen(of, "enum"))?;
            let texts = list.iter().filter_map(Value::as_str).map(Into::into).collect();
            let others = list.iter().filter(|one| !one.is_string()).cloned().collect();
            checks.push(Check::Enum { texts, others, shown: told::listed(list).into() });
        }
        for (keyword, bound) in [
            ("minimum", Bound::Least),
            ("maximum", Bound::Most),
            ("exclusiveMinimum", Bound::Above),
            ("exclusiveMaximum", Bound::Below),
        ] {
            if let Some(value) = members.get(keyword) {
                let number = value.as_number().ok_or_else(|| misshapen(of, keyword))?;
                checks.push(Check::Bound(bound, Decimal::read(number), number.as_str().into()));
            }
        }
        if let Some(value) = members.get("multipleOf") {
            let number = value.as_number().filter(|number| is_positive(number));
            let number = number.ok_or_else(|| misshapen(of, "multipleOf"))?;
            checks.push(Check::MultipleOf(Decimal::read(number), number.as_str().into()));
        }
        Ok(())
    }

    /// Keywords about texts, and how much there is of something.
    fn texts(
        &mut self,
        of: &Subschema<'c>,
        members: &Map<String, Value>,
        checks: &mut Vec<Check>,
    ) -> Result<(), SchemaError> {
        type Make = fn(Bound, u64) -> Check;
        for (keyword, bound, make) in [
            ("minLength", Bound::Least, Check::Length as Make),
            ("maxLength", Bound::Most, Check::Length),
            ("minItems", Bound::Least, Check::Items),
            ("maxItems", Bound::Most, Check::Items),
            ("minProperties", Bound::Least, Check::Properties),
            ("maxProperties", Bound::Most, Check::Properties),
        ] {
            if let Some(count) = count(of, members, keyword)? {
                checks.push(make(bound, count));
            }
        }
        if let Some(value) = members.get("pattern") {
            let source = value.as_str().ok_or_else(|| misshapen(of, "pattern"))?;
            checks.push(Check::Pattern(self.pattern(source, || format!("{}/pattern", of.pointer))?));
        }
        for keyword in asserted::keywords(of.draft, members) {
            let (text, make) = Asserted::of(of.draft, keyword, members);
            let asserted = match self.asserted.get(&text) {
                Some(asserted) => asserted.clone(),
                None => {
                    let asserted = make().map(Arc::new);
                    self.memory += asserted::MEMORY_BYTES;
                    self.asserted.insert(text, asserted.clone());
                    asserted
                }
            };
            checks.extend(asserted.map(|asserted| Check::Asserted(keyword, asserted)));
        }
        Ok(())
    }

    /// Keywords about the parts of an array or object.
    fn parts(
        &mut self,
        of: &Subschema<'c>,
        members: &'c Map<String, Value>,
        checks: &mut Vec<Check>,
    ) -> Result<(), SchemaError> {
        if let Some(value) = members.get("required") {
            checks.push(Check::Required(self.names_of(of, "required", value)?));
        }
        let mut objects = Members::default();
        if let Some(value) = members.get("properties") {
            for (name, schema) in map(of, "properties", value)? {
                self.memory += name.len() + 2 * size_of::<(Box<str>, NodeId)>();
                objects.named.insert(name.as_str().into(), self.below(of, schema, &["properties", name]));
            }
        }
        if let Some(value) = members.get("patternProperties") {
            for (name, schema) in map(of, "patternProperties", value)? {
                let pattern = self.pattern(name, || format!("{}/patternProperties/{}", of.pointer, escape(name)))?;
                objects.patterns.push((pattern, self.below(of, schema, &["patternProperties", name])));
            }
        }
        if let Some(schema) = members.get("additionalProperties") {
            objects.additional = Some(self.below(of, schema, &["additionalProperties"]));
        }
        if objects.additional.is_some() || !objects.named.is_empty() || !objects.patterns.is_empty() {
            checks.push(Check::Members(objects));
        }
        let (list, rest) = if of.draft == Draft::Draft7 {
            match members.get("items") {
                Some(list @ Value::Array(_)) => (Some(("items", list)), "additionalItems"),
                _ => (None, "items"),
            }
        } else {
            (members.get("prefixItems").map(|list| ("prefixItems", list)), "items")
        };
        let first = list.map(|(keyword, list)| self.list(of, keyword, list)).transpose()?.unwrap_or_default();
        let rest = members.get(rest).map(|schema| self.below(of, schema, &[rest]));
        if rest.is_some() || !first.is_empty() {
            checks.push(Check::Elements(Elements { first, rest }));
        }
        if let Some(schema) = members.get("contains") {
            let node = self.below(of, schema, &["contains"]);
            let bound = |keyword| if of.draft == Draft::Draft7 { Ok(None) } else { count(of, members, keyword) };
            let (least, most) = (bound("minContains")?, bound("maxContains")?);
            let contains = Contains { node, least: least.unwrap_or(1), most, is_least_given: least.is_some() };
            checks.push(Check::Contains(contains));
        }
        if let Some(schema) = members.get("propertyNames") {
            checks.push(Check::Names(self.below(of, schema, &["propertyNames"])));
        }
        if members.get("uniqueItems") == Some(&Value::Bool(true)) {
            checks.push(Check::Unique);
        }
        Ok(())
    }

    /// Keywords that apply other subschemas to the same value.
    fn in_place(
        &mut self,
        of: &Subschema<'c>,
        members: &'c Map<String, Value>,
        checks: &mut Vec<Check>,
    ) -> Result<(), SchemaError> {
        let is_latest = of.draft != Draft::Draft7;
        let mut schemas = Vec::new();
        for keyword in ["dependentRequired", "dependencies", "dependentSchemas"] {
            let Some(value) = members.get(keyword).filter(|_| is_latest || keyword == "dependencies") else { continue };
            let mut names = Vec::new();
            for (name, dependent) in map(of, keyword, value)? {
                self.memory += name.len() + 2 * size_of::<(Box<str>, NodeId)>();
                match dependent {
                    Value::Array(_) if keyword != "dependentSchemas" => {
                        names.push((name.as_str().into(), self.names_of(of, keyword, dependent)?));
                    }
                    _ if keyword == "dependentRequired" => return Err(misshapen(of, keyword)),
                    _ => schemas.push((name.as_str().into(), self.below(of, dependent, &[keyword, name]))),
                }
            }
            if !names.is_empty() {
                checks.push(Check::DependentRequired(keyword, names));
            }
        }
        if !schemas.is_empty() {
            checks.push(Check::DependentSchemas(schemas));
        }
        if let Some(reference) = members.get("$ref") {
            checks.push(Check::Reference(self.follow(of, "$ref", reference)?.0));
        }
        if let Some(reference) = members.get("$dynamicRef").filter(|_| is_latest) {
            let (usual, schema) = self.follow(of, "$dynamicRef", reference)?;
            let name = reference.as_str().and_then(|reference| reference.rsplit_once('#')).map(|(_, name)| name);
            let name = name.filter(|name| schema.get("$dynamicAnchor").and_then(Value::as_str) == Some(*name));
            let name = name.map(|name| self.name(name));
            checks.push(Check::Dynamic { usual, name });
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            let Some(value) = members.get(keyword) else { continue };
            let ids = self.list(of, keyword, value)?;
            checks.push(match keyword {
                "allOf" => Check::All(ids),
                "anyOf" => Check::Any(ids),
                _ => Check::One(ids),
            });
        }
        let [condition, then, otherwise, not] = ["if", "then", "else", "not"]
            .map(|keyword| members.get(keyword).map(|schema| self.below(of, schema, &[keyword])));
        checks.extend(condition.map(|condition| Check::If { condition, then, otherwise }));
        checks.extend(not.map(Check::Not));
        Ok(())
    }

    fn names_of(&mut self, of: &Subschema<'c>, keyword: &str, value: &Value) -> Result<Vec<Box<str>>, SchemaError> {
        self.keep(value);
        let names = value.as_array().and_then(|list| list.iter().map(|name| Some(name.as_str()?.into())).collect());
        names.ok_or_else(|| misshapen(of, keyword))
    }

    fn pattern(&mut self, source: &str, at: impl Fn() -> String) -> Result<Pattern, SchemaError> {
        if let Some(compiled) = self.expressions.compiled(source) {
            return compiled.map_err(|message| refuse(&at(), message));
        }
        if let Some(pattern) = self.others.get(source) {
            return Ok(pattern.clone());
        }
        // None of these is a stranger's, so they are as few as the drafts have.
        let few = self.others.len() < OTHERS_MAX;
        let pattern =
            Pattern::compile(source).ok().filter(|_| few).ok_or_else(|| refuse(&at(), "cannot be compiled"))?;
        self.others.insert(source.to_owned(), pattern.clone());
        Ok(pattern)
    }

    /// Counts a value of the document that is kept.
    fn keep(&mut self, value: &Value) {
        self.memory += memory(value);
    }
}

fn map<'v>(of: &Subschema<'_>, keyword: &str, value: &'v Value) -> Result<&'v Map<String, Value>, SchemaError> {
    value.as_object().ok_or_else(|| misshapen(of, keyword))
}

/// A whole number that is not negative: the largest that fits, where it is larger.
fn count(of: &Subschema<'_>, members: &Map<String, Value>, keyword: &str) -> Result<Option<u64>, SchemaError> {
    let Some(value) = members.get(keyword) else { return Ok(None) };
    let number = value.as_number().map(Decimal::read).filter(|number| number.is_whole() && !number.is_negative());
    let number = number.ok_or_else(|| misshapen(of, keyword))?;
    Ok(Some(number.whole().and_then(|whole| u64::try_from(whole).ok()).unwrap_or(u64::MAX)))
}

fn misshapen(of: &Subschema<'_>, keyword: &str) -> SchemaError {
    refuse(&format!("{}/{keyword}", of.pointer), "has not the shape that its keyword takes")
}
