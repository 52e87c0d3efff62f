//! Checks data against a compiled document.
//!
//! Everything that is looked at is charged before it is looked at, whatever comes of it, so what a check costs is bounded by its units and
//! nothing else; how far subschemas may lead on within each other is bounded by its depth. The first pass only judges, and stops at the
//! first no. The second one tells where the data breaks the schema, and stops when enough is told.

use super::cost::{UNITS_MAX, charge, charge_for};
use super::program::{Check, Contains, Elements, Members, Node, NodeId, Program};
use super::references::address;
use super::told::{Told, Violation};
use serde_json::{Map, Value};
use std::collections::HashSet;

mod alone;

/// What it costs to tell of one violation, with the way there.
const TOLD_UNITS: u64 = 100;

/// How many references lead on from a branch until it is known which types it takes.
const BRANCH_STEPS: usize = 4;

/// Where a value is in the data.
pub(super) struct Path<'a> {
    above: Option<(&'a Path<'a>, Part<'a>)>,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Element(usize),
    Member(&'a str),
    /// The name of a member, not its value.
    Name(&'a str),
}

impl<'a> Path<'a> {
    const WHOLE: Self = Self { above: None };

    fn element(&'a self, index: usize) -> Self {
        Self { above: Some((self, Part::Element(index))) }
    }

    fn member(&'a self, name: &'a str) -> Self {
        Self { above: Some((self, Part::Member(name))) }
    }

    fn name(&'a self, name: &'a str) -> Self {
        Self { above: Some((self, Part::Name(name))) }
    }

    fn pointer(&self) -> String {
        let mut parts = Vec::new();
        let mut at = self;
        while let Some((above, part)) = at.above {
            parts.push(part);
            at = above;
        }
        parts.iter().rev().fold(String::new(), |pointer, part| match part {
            Part::Element(index) => pointer + "/" + &index.to_string(),
            Part::Member(name) | Part::Name(name) => {
                charge_for(name);
                pointer + "/" + &super::escape(name)
            }
        })
    }
}

/// Which parts of one value its subschemas have looked at, by where these are.
#[derive(Default)]
struct Seen(HashSet<usize>);

impl Seen {
    fn add(&mut self, part: &Value) {
        self.0.insert(address(part));
    }

    fn add_all(&mut self, other: Self) {
        charge(other.0.len() as u64);
        if self.0.is_empty() { *self = other } else { self.0.extend(other.0) }
    }
}

/// One pass over data.
pub(super) struct Pass<'p> {
    program: &'p Program,
    /// The resources that led here, outermost first.
    scope: Vec<usize>,
    depth_left: usize,
    /// None where the pass, or a part of it, only judges.
    told: Option<Told>,
    tells_branches: bool,
}

impl<'p> Pass<'p> {
    /// True where the data is valid.
    pub fn judge(program: &'p Program, data: &Value, depth: usize) -> bool {
        let mut pass = Self { program, scope: Vec::new(), depth_left: depth, told: None, tells_branches: false };
        pass.check(0, data, &Path::WHOLE, None)
    }

    /// Where it is not; of a union whose one branch takes values of that type where that is not valid, if it is asked for.
    pub fn explain(program: &'p Program, data: &Value, depth: usize, tells_branches: bool) -> Vec<Violation> {
        let told = Some(Told(Vec::new()));
        let mut pass = Self { program, scope: Vec::new(), depth_left: depth, told, tells_branches };
        pass.check(0, data, &Path::WHOLE, None);
        pass.told.map(|told| told.0).unwrap_or_default()
    }

    /// Checks one value against one subschema, which adds the parts that it looks at to `seen`.
    fn check(&mut self, id: NodeId, value: &Value, at: &Path<'_>, seen: Option<&mut Seen>) -> bool {
        let program = self.program;
        let node = &program.nodes[id];
        charge(1 + node.checks.len() as u64);
        if self.depth_left == 0 {
            charge(UNITS_MAX + 1);
        }
        self.depth_left -= 1;
        let is_new = self.scope.last() != Some(&node.resource);
        if is_new {
            self.scope.push(node.resource);
        }
        let valid = if node.unevaluated_items.is_some() || node.unevaluated_properties.is_some() {
            self.all_and_the_rest(node, value, at, seen)
        } else {
            self.all(node, value, at, seen)
        };
        if is_new {
            self.scope.pop();
        }
        self.depth_left += 1;
        valid
    }

    fn all(&mut self, node: &'p Node, value: &Value, at: &Path<'_>, mut seen: Option<&mut Seen>) -> bool {
        let mut valid = true;
        for check in &node.checks {
            valid &= self.one(node, check, value, at, seen.as_deref_mut());
            if !valid && !self.goes_on() {
                return false;
            }
        }
        valid
    }

    /// Checks a subschema that says something about what its others have not looked at.
    #[inline(never)]
    fn all_and_the_rest(&mut self, node: &'p Node, value: &Value, at: &Path<'_>, seen: Option<&mut Seen>) -> bool {
        let mut own = Seen::default();
        let mut valid = self.all(node, value, at, Some(&mut own));
        if !valid && !self.goes_on() {
            return false;
        }
        match (value, node.unevaluated_items, node.unevaluated_properties) {
            (Value::Array(elements), Some(id), _) => {
                for (index, element) in elements.iter().enumerate() {
                    charge(1);
                    if own.0.insert(address(element)) {
                        valid &= self.check(id, element, &at.element(index), None);
                        if !valid && !self.goes_on() {
                            return false;
                        }
                    }
                }
            }
            (Value::Object(members), _, Some(id)) => {
                for (name, member) in members {
                    charge(1);
                    if own.0.insert(address(member)) {
                        valid &= self.check(id, member, &at.member(name), None);
                        if !valid && !self.goes_on() {
                            return false;
                        }
                    }
                }
            }
            _ => {}
        }
        if let Some(seen) = seen.filter(|_| valid) {
            seen.add_all(own);
        }
        valid
    }

    /// True where checks go on although one has said no.
    fn goes_on(&self) -> bool {
        self.told.as_ref().is_some_and(Told::has_room)
    }

    /// Judges only.
    fn quietly(&mut self, id: NodeId, value: &Value, at: &Path<'_>, seen: Option<&mut Seen>) -> bool {
        let told = self.told.take();
        let valid = self.check(id, value, at, seen);
        self.told = told;
        valid
    }

    /// Tells of a violation, where violations are told. Always false.
    #[inline(never)]
    fn tell(&mut self, node: &Node, keyword: &str, at: &Path<'_>, message: impl FnOnce() -> String) -> bool {
        if let Some(told) = self.told.as_mut().filter(|told| told.has_room()) {
            charge(TOLD_UNITS);
            let by = if keyword.is_empty() { node.pointer.to_string() } else { format!("{}/{keyword}", node.pointer) };
            let message = message();
            let message = match at.above {
                // No keyword has more to look at below a name.
                Some((_, Part::Name(_))) => {
                    format!("the name {}", message.strip_prefix("the value ").unwrap_or(&message))
                }
                _ => message,
            };
            told.0.push(Violation::new(at.pointer(), by, &message));
        }
        false
    }

    fn one(&mut self, node: &'p Node, check: &'p Check, value: &Value, at: &Path<'_>, seen: Option<&mut Seen>) -> bool {
        match (check, value) {
            (Check::Members(checks), Value::Object(members)) => self.members(checks, members, at, seen),
            (Check::Elements(checks), Value::Array(elements)) => self.elements(checks, elements, at, seen),
            (Check::Contains(checks), Value::Array(elements)) => self.contains(node, checks, elements, at, seen),
            (Check::Names(id), Value::Object(members)) => self.every(members.keys(), |pass, name| {
                charge(1);
                charge_for(name);
                pass.check(*id, &Value::String(name.clone()), &at.name(name), None)
            }),
            (Check::Reference(id), _) => self.check(*id, value, at, seen),
            (Check::Dynamic { usual, name }, _) => {
                let id = name.and_then(|name| self.dynamic(name)).unwrap_or(*usual);
                self.check(id, value, at, seen)
            }
            (Check::All(_) | Check::Any(_) | Check::One(_) | Check::Not(_) | Check::If { .. }, _)
            | (Check::DependentSchemas(_), Value::Object(_)) => self.branches(node, check, value, at, seen),
            (check, value) => self.alone(node, check, value, at),
        }
    }

    /// Asks each, or until the first no where violations are not told.
    fn every<T>(&mut self, each: impl Iterator<Item = T>, mut ask: impl FnMut(&mut Self, T) -> bool) -> bool {
        let mut valid = true;
        for one in each {
            valid &= ask(self, one);
            if !valid && !self.goes_on() {
                return false;
            }
        }
        valid
    }

    #[inline(never)]
    fn members(
        &mut self,
        checks: &'p Members,
        members: &Map<String, Value>,
        at: &Path<'_>,
        mut seen: Option<&mut Seen>,
    ) -> bool {
        self.every(members.iter(), |pass, (name, member)| {
            charge(1);
            charge_for(name);
            let at = &at.member(name);
            let mut asked = checks.named.get(name.as_str()).copied();
            let mut is_known = asked.is_some();
            let mut valid = true;
            let mut patterns = checks.patterns.iter();
            loop {
                if let Some(id) = asked.take() {
                    is_known = true;
                    valid &= pass.check(id, member, at, None);
                    if !valid && !pass.goes_on() {
                        return false;
                    }
                }
                let Some((pattern, id)) = patterns.next() else { break };
                asked = pattern.matches(name).then_some(*id);
            }
            if !is_known {
                let Some(id) = checks.additional else { return valid };
                valid &= pass.check(id, member, at, None);
            }
            if let Some(seen) = seen.as_deref_mut() {
                charge(1);
                seen.add(member);
            }
            valid
        })
    }

    #[inline(never)]
    fn elements(
        &mut self,
        checks: &'p Elements,
        elements: &[Value],
        at: &Path<'_>,
        mut seen: Option<&mut Seen>,
    ) -> bool {
        let ids = checks.first.iter().copied().map(Some).chain(std::iter::repeat(checks.rest));
        let asked = elements.iter().zip(ids).map_while(|(element, id)| Some((element, id?))).enumerate();
        self.every(asked, |pass, (index, (element, id))| {
            if let Some(seen) = seen.as_deref_mut() {
                charge(1);
                seen.add(element);
            }
            pass.check(id, element, &at.element(index), None)
        })
    }

    #[inline(never)]
    fn contains(
        &mut self,
        node: &Node,
        checks: &Contains,
        elements: &[Value],
        at: &Path<'_>,
        mut seen: Option<&mut Seen>,
    ) -> bool {
        let enough = checks.most.map_or(checks.least, |most| most.saturating_add(1).max(checks.least));
        let mut found = 0;
        for (index, element) in elements.iter().enumerate() {
            if found >= enough && seen.is_none() {
                break;
            }
            if self.quietly(checks.node, element, &at.element(index), None) {
                found += 1;
                // What matches is not left over for `unevaluatedItems`.
                if let Some(seen) = seen.as_deref_mut() {
                    charge(1);
                    seen.add(element);
                }
            }
        }
        if found < checks.least {
            let keyword = if checks.is_least_given { "minContains" } else { "contains" };
            return self.tell(node, keyword, at, || {
                format!("has {found} elements that are valid under contains, and {} are wanted", checks.least)
            });
        }
        match checks.most.filter(|most| found > *most) {
            Some(most) => self.tell(node, "maxContains", at, || {
                format!("has more than {most} elements that are valid under contains")
            }),
            None => true,
        }
    }

    /// Where a dynamic reference leads: to the outermost resource on the way here that has the name.
    fn dynamic(&self, name: usize) -> Option<NodeId> {
        charge(self.scope.len() as u64);
        self.scope.iter().find_map(|resource| self.program.anchors.get(&(*resource, name)).copied())
    }

    /// Keywords that lead to several subschemas of the same value.
    #[inline(never)]
    fn branches(
        &mut self,
        node: &'p Node,
        check: &'p Check,
        value: &Value,
        at: &Path<'_>,
        mut seen: Option<&mut Seen>,
    ) -> bool {
        match check {
            Check::All(ids) => self.every(ids.iter(), |pass, id| pass.check(*id, value, at, seen.as_deref_mut())),
            Check::Any(ids) => {
                let mut valid = false;
                for id in ids {
                    valid |= self.apart(*id, value, at, seen.as_deref_mut());
                    // What the others look at is wanted, too.
                    if valid && seen.is_none() {
                        break;
                    }
                }
                valid || self.tell_branches(node, "anyOf", ids, value, at)
            }
            Check::One(ids) => {
                let mut valid = 0;
                for id in ids {
                    valid += usize::from(self.apart(*id, value, at, seen.as_deref_mut()));
                    if valid > 1 {
                        break;
                    }
                }
                match valid {
                    0 => self.tell_branches(node, "oneOf", ids, value, at),
                    1 => true,
                    _ => self
                        .tell(node, "oneOf", at, || "is valid under more than one of the schemas in oneOf".to_owned()),
                }
            }
            Check::Not(id) => {
                !self.quietly(*id, value, at, None)
                    || self.tell(node, "not", at, || "is valid under the schema in not".to_owned())
            }
            Check::If { condition, then, otherwise } => {
                if then.is_none() && otherwise.is_none() && seen.is_none() {
                    return true;
                }
                let holds = self.apart(*condition, value, at, seen.as_deref_mut());
                let next = if holds { then } else { otherwise };
                next.is_none_or(|id| self.check(id, value, at, seen))
            }
            Check::DependentSchemas(schemas) => self.every(schemas.iter(), |pass, (name, id)| {
                charge(1);
                charge_for(name);
                value.get(&**name).is_none() || pass.check(*id, value, at, seen.as_deref_mut())
            }),
            _ => true,
        }
    }

    /// Tells what is wrong by the one branch that takes values of this type, or that none is valid. Always false.
    fn tell_branches(
        &mut self,
        node: &'p Node,
        keyword: &str,
        ids: &'p [NodeId],
        value: &Value,
        at: &Path<'_>,
    ) -> bool {
        if self.tells_branches && self.goes_on() {
            charge(ids.len() as u64);
            let mut meant = ids.iter().filter(|id| self.program.takes(**id, value, BRANCH_STEPS));
            if let (Some(id), None) = (meant.next(), meant.next()) {
                return self.check(*id, value, at, None);
            }
        }
        self.tell(node, keyword, at, || format!("is not valid under any of the schemas in {keyword}"))
    }

    /// Judges only; what it looks at counts where it says yes.
    fn apart(&mut self, id: NodeId, value: &Value, at: &Path<'_>, seen: Option<&mut Seen>) -> bool {
        let Some(seen) = seen else { return self.quietly(id, value, at, None) };
        let mut own = Seen::default();
        let valid = self.quietly(id, value, at, Some(&mut own));
        if valid {
            seen.add_all(own);
        }
        valid
    }
}

#[cfg(test)]
mod tests;
