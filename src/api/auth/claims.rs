//! What a token says of its bearer, read by the names of its issuer's settings. Pure; the signature, `iss` and `aud` were checked before.
//!
//! Times are checked here and not by the token library: it reads the process's clock where credentials go by the database's, and finds
//! no number in JSON that keeps numbers as they were written, as the JSON of this crate does.
//! Source: RFC 7519, section 4.1.

use super::config::IssuerConfig;
use crate::domain::access::Role;
use crate::wire;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};

/// Characters of a subject. Source: OpenID Connect Core 1.0, section 2.
const SUB_MAX: usize = 255;

/// What a token says of its bearer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claims {
    /// Whom the issuer means.
    pub(super) sub: String,
    /// Slug of the tenant.
    pub(super) tenant: String,
    /// Slug of the app it is limited to.
    pub(super) app: Option<String>,
    /// What it may do.
    pub(super) role: Role,
    /// From then on it is refused: its `exp`, and the leeway.
    pub(super) expires_at: DateTime<Utc>,
    /// Before that it is refused: its `nbf`, less the leeway.
    not_before: Option<DateTime<Utc>>,
}

impl Claims {
    /// Reads the claims. Errors: what is wrong, for the log.
    pub(super) fn read(claims: &Map<String, Value>, names: &IssuerConfig) -> Result<Self, &'static str> {
        let leeway = TimeDelta::milliseconds(names.leeway_ms.try_into().unwrap_or(i64::MAX));
        let exp = claims.get("exp").ok_or("exp is missing")?;
        let nbf = claims.get("nbf").map(|nbf| numeric_date(nbf).ok_or("nbf is not a time")).transpose()?;
        let sub = claims.get("sub").and_then(Value::as_str).ok_or("sub is missing, or not a text")?;
        let fits = (1..=SUB_MAX).contains(&sub.chars().count()) && !sub.chars().any(char::is_control);
        let app = claims.get(&names.app_claim).filter(|app| !app.is_null());
        Ok(Self {
            sub: if fits { sub.to_owned() } else { return Err("sub is empty, too long, or holds control characters") },
            tenant: claims
                .get(&names.tenant_claim)
                .and_then(slug)
                .ok_or("its claim of a tenant is missing, or no slug")?,
            app: app.map(|app| slug(app).ok_or("its claim of an app is no slug")).transpose()?,
            role: claims
                .get(&names.role_claim)
                .and_then(role)
                .ok_or("its claim of a role is missing, or names none")?,
            expires_at: numeric_date(exp).and_then(|exp| exp.checked_add_signed(leeway)).ok_or("exp is not a time")?,
            not_before: nbf.map(|nbf| nbf.checked_sub_signed(leeway).ok_or("nbf is not a time")).transpose()?,
        })
    }

    /// Refuses what is over, or has not begun.
    pub(super) fn check_times(&self, now: DateTime<Utc>) -> Result<(), &'static str> {
        if now >= self.expires_at {
            return Err("it has expired");
        }
        if self.not_before.is_some_and(|begin| now < begin) { Err("it is not valid yet") } else { Ok(()) }
    }
}

/// Seconds since 1970, whole or with a fraction, which is cut off.
fn numeric_date(value: &Value) -> Option<DateTime<Utc>> {
    let text = value.as_number()?.to_string();
    let whole = text.split_once('.').map_or(text.as_str(), |(whole, fraction)| {
        // An exponent would make another number of what stands before the point.
        if fraction.bytes().all(|byte| byte.is_ascii_digit()) { whole } else { "" }
    });
    DateTime::from_timestamp(whole.parse().ok()?, 0)
}

fn slug(value: &Value) -> Option<String> {
    wire::slug("", value.as_str()?.to_owned()).ok()
}

/// The named role; of a list the highest, whatever else it holds.
fn role(value: &Value) -> Option<Role> {
    match value {
        Value::String(name) => Role::parse(name),
        Value::Array(names) => names.iter().filter_map(|name| Role::parse(name.as_str()?)).max(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names() -> IssuerConfig {
        IssuerConfig { leeway_ms: 5_000, ..IssuerConfig::default() }
    }

    fn good() -> Value {
        json!({"sub": "alice", "exp": 1_000, "nbf": 500, "carillon_tenant": "acme", "carillon_role": "viewer"})
    }

    fn read(changes: &Value) -> Result<Claims, &'static str> {
        let mut claims = good();
        for (name, value) in changes.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        // As a token's text is read, not as a value that was built.
        let claims: Map<String, Value> = serde_json::from_str(&claims.to_string()).expect("JSON");
        Claims::read(&claims, &names())
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).expect("a time")
    }

    #[test]
    fn times_hold_with_their_leeway_and_to_the_second() {
        let claims = read(&json!({})).expect("good");
        let of = |seconds| claims.check_times(at(seconds)).is_ok();
        assert_eq!([494, 495, 1_004, 1_005].map(of), [false, true, true, false]);
        assert_eq!(read(&json!({"exp": 1_000.9})).expect("a fraction is a time").expires_at, at(1_005));
        for wrong in
            [json!(null), json!("1000"), json!(1e99), json!(-1e99), json!([1_000]), json!(true), json!(u64::MAX)]
        {
            assert!(read(&json!({"exp": wrong})).is_err(), "exp {wrong}");
            assert!(read(&json!({"nbf": wrong})).is_err(), "nbf {wrong}");
        }
        for text in [r#"{"a": 1.7e3}"#, r#"{"a": 17e2}"#] {
            let number: Value = serde_json::from_str(text).expect("JSON");
            assert_eq!(numeric_date(&number["a"]), None, "{text}");
        }
    }

    #[test]
    fn whom_it_means_must_be_said_whole() {
        let claims = read(&json!({})).expect("good");
        assert_eq!((claims.sub.as_str(), claims.tenant.as_str(), claims.app), ("alice", "acme", None));
        let long = "x".repeat(256);
        for (claim, wrong) in [
            ("sub", json!("")),
            ("sub", json!(17)),
            ("sub", json!("a\nb")),
            ("sub", json!(long)),
            ("carillon_tenant", json!(null)),
            ("carillon_tenant", json!("")),
            ("carillon_tenant", json!("ACME")),
            ("carillon_tenant", json!(["acme"])),
            ("carillon_app", json!("")),
            ("carillon_app", json!(["shop"])),
            ("carillon_app", json!(false)),
        ] {
            assert!(read(&json!({ claim: wrong })).is_err(), "{claim} {wrong}");
        }
        assert_eq!(read(&json!({"carillon_app": "shop"})).expect("good").app.as_deref(), Some("shop"));
        assert_eq!(read(&json!({"carillon_app": null})).expect("no app is no limit").app, None);
    }

    #[test]
    fn of_several_roles_the_highest_counts_and_unknown_ones_give_nothing() {
        let role = |role: Value| read(&json!({"carillon_role": role})).map(|claims| claims.role).ok();
        for (name, known) in [
            ("viewer", Some(Role::Viewer)),
            ("subscriber", Some(Role::Subscriber)),
            ("developer", Some(Role::Developer)),
            ("admin", Some(Role::Admin)),
            ("Admin", None),
            ("operator", None),
            ("", None),
        ] {
            assert_eq!(role(json!(name)), known, "{name}");
        }
        assert_eq!(role(json!(["offline_access", "viewer", "developer", 17])), Some(Role::Developer));
        assert_eq!(role(json!(["offline_access"])), None);
        assert_eq!(role(json!([])), None);
        assert_eq!(role(json!({"admin": true})), None);
    }
}
