//! An issuer's published keys: a JWK set, of which only what verifies signatures is kept. Pure.
//!
//! A key serves the algorithms of its kind and no others: a public key is never taken for a secret, nor one curve for another.
//! Source: RFC 7517 (JWK sets), RFC 7518, sections 3.1 and 6 (which key goes with which algorithm).

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use std::sync::Arc;

const RSA: [Algorithm; 6] =
    [Algorithm::RS256, Algorithm::RS384, Algorithm::RS512, Algorithm::PS256, Algorithm::PS384, Algorithm::PS512];

/// The keys of an issuer.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    keys: Vec<Arc<IssuerKey>>,
}

/// One key that verifies.
#[derive(Debug)]
pub(super) struct IssuerKey {
    id: Option<String>,
    /// By what it is known again; not its id, which another key may get later.
    pub(super) thumbprint: Arc<str>,
    algorithms: Vec<Algorithm>,
    pub(super) public: DecodingKey,
}

/// What is no JWK set at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a JWK set: a JSON object with a list of keys")]
pub(super) struct NotAKeySet;

impl KeySet {
    /// Reads a set. Keys that verify no signature, or none of a known kind, are left out.
    pub(super) fn parse(text: &[u8]) -> Result<Self, NotAKeySet> {
        let document: Value = serde_json::from_slice(text).map_err(|_| NotAKeySet)?;
        let keys = document.get("keys").and_then(Value::as_array).ok_or(NotAKeySet)?;
        // One by one: an entry that nobody can read must not take the others with it.
        Ok(Self { keys: keys.iter().filter_map(IssuerKey::parse).map(Arc::new).collect() })
    }

    /// How many keys verify something.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// True where both hold the same keys under the same ids, in whatever order.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let holds = |set: &Self, key: &IssuerKey| {
            set.keys.iter().any(|own| own.id == key.id && own.thumbprint == key.thumbprint)
        };
        self.keys.iter().all(|key| holds(other, key)) && other.keys.iter().all(|key| holds(self, key))
    }

    /// The key for a token's header. A header without an id is that of the one key that could have signed it.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&Arc<IssuerKey>> {
        let mut fitting = self
            .keys
            .iter()
            .filter(|key| key.algorithms.contains(&algorithm) && id.is_none_or(|id| key.id.as_deref() == Some(id)));
        let first = fitting.next()?;
        if id.is_none() && fitting.next().is_some() { None } else { Some(first) }
    }

    /// True where a key is still published.
    pub(super) fn holds(&self, thumbprint: &str) -> bool {
        self.keys.iter().any(|key| &*key.thumbprint == thumbprint)
    }
}

impl IssuerKey {
    fn parse(value: &Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let common = &jwk.common;
        let verifies = common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature)
            && common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
        if !verifies {
            return None;
        }
        let mut algorithms = algorithms_of(&jwk.algorithm);
        if let Some(only) = common.key_algorithm {
            algorithms.retain(|algorithm| KeyAlgorithm::from(*algorithm) == only);
        }
        if algorithms.is_empty() {
            return None;
        }
        Some(Self {
            id: common.key_id.clone(),
            thumbprint: jwk.thumbprint(ThumbprintHash::SHA256).ok()?.into(),
            algorithms,
            public: DecodingKey::from_jwk(&jwk).ok()?,
        })
    }
}

/// What a kind of key can verify; nothing for secrets and kinds that are not known.
fn algorithms_of(parameters: &AlgorithmParameters) -> Vec<Algorithm> {
    match parameters {
        AlgorithmParameters::RSA(_) => RSA.to_vec(),
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => vec![Algorithm::ES256],
            EllipticCurve::P384 => vec![Algorithm::ES384],
            _ => Vec::new(),
        },
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(keys: &Value) -> KeySet {
        KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).expect("a set")
    }

    fn ed(id: Option<&str>, x: &str) -> Value {
        let mut key = json!({"kty": "OKP", "crv": "Ed25519", "x": x, "expires": 17});
        if let Some(id) = id {
            key["kid"] = json!(id);
        }
        key
    }

    #[test]
    fn a_key_serves_its_own_kind_and_nothing_else() {
        let rsa = json!({"kty": "RSA", "kid": "r", "n": "AQAB", "e": "AQAB"});
        let only = json!({"kty": "RSA", "kid": "o", "n": "AQAB", "e": "AQAB", "alg": "PS256", "use": "sig"});
        let p256 = json!({"kty": "EC", "kid": "e", "crv": "P-256", "x": "AQAB", "y": "AQAB", "key_ops": ["verify"]});
        let keys = set(&json!([rsa, only, p256, ed(Some("d"), "AQAB")]));
        assert_eq!(keys.len(), 4);
        let fits = |id: &str, algorithm| keys.find(Some(id), algorithm).is_some();
        assert!(RSA.iter().all(|algorithm| fits("r", *algorithm)));
        assert!(fits("o", Algorithm::PS256) && !fits("o", Algorithm::RS256));
        assert!(fits("e", Algorithm::ES256) && !fits("e", Algorithm::ES384));
        assert!(fits("d", Algorithm::EdDSA) && !fits("d", Algorithm::ES256));
        for id in ["r", "o", "e", "d"] {
            assert!(![Algorithm::HS256, Algorithm::HS384, Algorithm::HS512].iter().any(|hmac| fits(id, *hmac)), "{id}");
        }
    }

    #[test]
    fn what_verifies_nothing_is_left_out_and_takes_nothing_with_it() {
        let keys = set(&json!([
            {"kty": "oct", "kid": "secret", "k": "AQAB"},
            {"kty": "RSA", "kid": "encrypts", "n": "AQAB", "e": "AQAB", "use": "enc"},
            {"kty": "RSA", "kid": "signs", "n": "AQAB", "e": "AQAB", "key_ops": ["sign"]},
            {"kty": "RSA", "kid": "broken", "n": "?", "e": "AQAB"},
            {"kty": "RSA", "kid": "hmac", "n": "AQAB", "e": "AQAB", "alg": "HS256"},
            {"kty": "EC", "kid": "other curve", "crv": "secp256k1", "x": "AQAB", "y": "AQAB"},
            {"kty": "AKP", "kid": "other kind", "pub": "AQAB"},
            "no key", null, 17,
            ed(Some("good"), "AQAB"),
        ]));
        assert_eq!(keys.len(), 1);
        assert!(keys.find(Some("good"), Algorithm::EdDSA).is_some());
        for text in ["", "[]", "{}", r#"{"keys": {}}"#, "\u{0}"] {
            assert_eq!(KeySet::parse(text.as_bytes()).expect_err("no set"), NotAKeySet, "{text}");
        }
        assert_eq!(set(&json!([])).len(), 0);
    }

    #[test]
    fn a_header_without_an_id_means_the_only_key_that_fits() {
        let one = set(&json!([ed(Some("a"), "AQAB")]));
        let (first, other) = (one.find(None, Algorithm::EdDSA).expect("the only one"), set(&json!([ed(None, "AQAC")])));
        assert!(one.find(Some("b"), Algorithm::EdDSA).is_none());
        assert!(other.find(Some("a"), Algorithm::EdDSA).is_none() && other.find(None, Algorithm::EdDSA).is_some());
        let two = set(&json!([ed(Some("a"), "AQAB"), ed(Some("b"), "AQAC")]));
        assert!(two.find(None, Algorithm::EdDSA).is_none());
        // Another key under the same id is another key.
        let moved = set(&json!([ed(Some("a"), "AQAC")]));
        assert!(two.holds(&first.thumbprint) && !moved.holds(&first.thumbprint));
    }
}
