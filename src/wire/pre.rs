//! The veto of subscriptions to PRE event types between proto and domain.

use super::FieldError;
use crate::domain::pre::{ENRICH_PATHS_MAX, EnrichPath, FailurePolicy, PRIORITY_MAX, PrePolicy, Verdict, VerdictKind};
use crate::proto::internal as internal_proto;
use crate::proto::public as proto;

/// Why a veto is refused for a POST type.
pub const ONLY_PRE: &str = "is only for PRE event types";
/// Why an order is refused for a PRE type.
pub const UNORDERED: &str = "is not for PRE event types: their listeners are asked at once";

/// A field of the veto that an update changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrePart {
    /// `failure_policy`
    FailurePolicy,
    /// `priority`
    Priority,
    /// `enrich_paths`
    EnrichPaths,
}

impl PrePart {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::FailurePolicy, Self::Priority, Self::EnrichPaths];

    /// True where the request sets it.
    pub fn is_set(self, policy: &proto::PrePolicy) -> bool {
        match self {
            Self::FailurePolicy => policy.failure_policy != 0,
            Self::Priority => policy.priority != 0,
            Self::EnrichPaths => !policy.enrich_paths.is_empty(),
        }
    }

    /// Takes this part over from another veto.
    pub fn copy(self, from: &PrePolicy, to: &mut PrePolicy) {
        match self {
            Self::FailurePolicy => to.failure_policy = from.failure_policy,
            Self::Priority => to.priority = from.priority,
            Self::EnrichPaths => to.enrich_paths.clone_from(&from.enrich_paths),
        }
    }
}

/// Checks a veto; what the request leaves out is its default.
pub fn parse(field: &str, policy: &proto::PrePolicy) -> Result<PrePolicy, FieldError> {
    let failure_policy = match proto::PreFailurePolicy::try_from(policy.failure_policy) {
        Ok(proto::PreFailurePolicy::Unspecified | proto::PreFailurePolicy::Fail) => FailurePolicy::Fail,
        Ok(proto::PreFailurePolicy::Ignore) => FailurePolicy::Ignore,
        Err(_) => return Err(FieldError::new(format!("{field}.failure_policy"), "is not a known policy")),
    };
    if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&policy.priority) {
        return Err(FieldError::new(format!("{field}.priority"), "must be -1000 to 1000"));
    }
    if policy.enrich_paths.len() > ENRICH_PATHS_MAX {
        let description = format!("must hold at most {ENRICH_PATHS_MAX} pointers");
        return Err(FieldError::new(format!("{field}.enrich_paths"), description));
    }
    let mut enrich_paths: Vec<EnrichPath> = Vec::with_capacity(policy.enrich_paths.len());
    for (index, text) in policy.enrich_paths.iter().enumerate() {
        let field = || format!("{field}.enrich_paths[{index}]");
        let path = EnrichPath::parse(text).map_err(|error| FieldError::new(field(), error.to_string()))?;
        if enrich_paths.iter().any(|other| other.overlaps(&path)) {
            return Err(FieldError::new(field(), "lies within another one of the list, or names the same place"));
        }
        enrich_paths.push(path);
    }
    Ok(PrePolicy { failure_policy, priority: policy.priority, enrich_paths })
}

/// A veto as the API shows it.
pub fn to_proto(policy: &PrePolicy) -> proto::PrePolicy {
    let failure_policy = match policy.failure_policy {
        FailurePolicy::Fail => proto::PreFailurePolicy::Fail,
        FailurePolicy::Ignore => proto::PreFailurePolicy::Ignore,
    };
    proto::PrePolicy {
        failure_policy: failure_policy.into(),
        priority: policy.priority,
        enrich_paths: policy.enrich_paths.iter().map(EnrichPath::to_string).collect(),
    }
}

/// A listener's verdict as the API shows it.
pub fn verdict_to_proto(verdict: &Verdict) -> internal_proto::PreVerdict {
    let kind = match verdict.kind {
        VerdictKind::Succeeded => internal_proto::PreVerdictKind::Succeeded,
        VerdictKind::Rejected => internal_proto::PreVerdictKind::Rejected,
        VerdictKind::Failed => internal_proto::PreVerdictKind::Failed,
        VerdictKind::Cancelled => internal_proto::PreVerdictKind::Cancelled,
        VerdictKind::Skipped => internal_proto::PreVerdictKind::Skipped,
    };
    internal_proto::PreVerdict {
        subscription_id: verdict.subscription.to_string(),
        verdict: kind.into(),
        attempt_count: verdict.attempt,
        message: verdict.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_veto_is_checked_field_by_field() {
        let defaults = parse("pre_policy", &proto::PrePolicy::default());
        assert_eq!(defaults, Ok(PrePolicy::default()));
        let full = proto::PrePolicy {
            failure_policy: 2,
            priority: -1_000,
            enrich_paths: vec!["/a/b".to_owned(), "/c~1d".to_owned()],
        };
        assert_eq!(to_proto(&parse("pre_policy", &full).expect("valid")), full);
        let field = |policy: proto::PrePolicy| parse("p", &policy).expect_err("refused").field;
        assert_eq!(field(proto::PrePolicy { failure_policy: 9, ..full.clone() }), "p.failure_policy");
        assert_eq!(field(proto::PrePolicy { priority: 1_001, ..full.clone() }), "p.priority");
        let paths = |paths: &[&str]| proto::PrePolicy {
            enrich_paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..full.clone()
        };
        assert_eq!(field(paths(&["/a", "b"])), "p.enrich_paths[1]");
        assert_eq!(field(paths(&["/a/b", "/a"])), "p.enrich_paths[1]", "one within the other");
        let many: Vec<String> = (0..17).map(|n| format!("/{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(field(paths(&many)), "p.enrich_paths");
    }
}
