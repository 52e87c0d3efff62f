//! Settings of the credentials that are tokens: who issues them, and what their claims are called.

use jsonwebtoken::Algorithm;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What signs tokens: signatures that are checked with a public key. HMAC would make every reader of a key a writer of tokens, and
/// `none` is no signature.
pub(super) const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];
const CLAIM: &str = "must be the name of a claim of its own";
const KNOWN: &str = "must be some of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA";
/// Bytes of an issuer's name: it is a part of every audit record's actor.
const ISSUER_BYTES_MAX: usize = 512;
const ISSUERS_MAX: usize = 100;
const LEEWAY_MS_MAX: u64 = 300_000;

/// Whose tokens are accepted, and how their keys are kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who issues tokens; at most 100. Without any only API keys count.
    pub issuers: Vec<IssuerConfig>,
    /// How often the keys of an issuer are fetched again, milliseconds. Default: 300,000. Bound: 1,000 to 86,400,000.
    pub keys_interval_ms: u64,
    /// Least time between two fetches of an issuer's keys, whoever asks for them, milliseconds. Default: 10,000. Bound: 100 to
    /// 600,000.
    pub keys_interval_min_ms: u64,
    /// Largest token, bytes. Default: 8,192. Bound: 512 to 65,536.
    pub token_bytes_max: usize,
}

/// One issuer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct IssuerConfig {
    /// What the tokens' `iss` says, to the byte. Required. An https URL where its keys are to be discovered.
    pub issuer: String,
    /// What must be in the tokens' `aud`. Required.
    pub audience: String,
    /// Where its JWK set is, by https.
    pub jwks_uri: Option<String>,
    /// A file that holds its JWK set, looked at as often as certificates are. With neither of both the issuer's own
    /// `/.well-known/openid-configuration` says where the set is.
    pub jwks_file: Option<PathBuf>,
    /// Name of the claim that holds the tenant's slug.
    pub tenant_claim: String,
    /// Name of the claim that holds the role, or a list of which the highest role counts.
    pub role_claim: String,
    /// Name of the claim that holds the slug of the app which the token is limited to, where it is there.
    pub app_claim: String,
    /// Names of the signature algorithms that are accepted. Default: all that are known: RS256 to RS512, PS256 to PS512, ES256, ES384
    /// and EdDSA.
    pub algorithms: Vec<String>,
    /// How far the issuer's clock may be from the database's, milliseconds. Default: 30,000. Bound: 0 to 300,000.
    pub leeway_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { issuers: Vec::new(), keys_interval_ms: 300_000, keys_interval_min_ms: 10_000, token_bytes_max: 8 * 1024 }
    }
}

impl Default for IssuerConfig {
    fn default() -> Self {
        Self {
            issuer: String::new(),
            audience: String::new(),
            jwks_uri: None,
            jwks_file: None,
            tenant_claim: "carillon_tenant".to_owned(),
            role_claim: "carillon_role".to_owned(),
            app_claim: "carillon_app".to_owned(),
            algorithms: ALGORITHMS.iter().map(|(name, _)| (*name).to_owned()).collect(),
            leeway_ms: 30_000,
        }
    }
}

impl Config {
    /// Checks bounds and rules. Errors: the key within the section, and the rule it breaks; never the value.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |key, value: u64, from: u64, to: u64| {
            if (from..=to).contains(&value) { Ok(()) } else { Err((key, format!("must be {from} to {to}"))) }
        };
        within("keys_interval_ms", self.keys_interval_ms, 1_000, 86_400_000)?;
        within("keys_interval_min_ms", self.keys_interval_min_ms, 100, 600_000)?;
        within("token_bytes_max", self.token_bytes_max as u64, 512, 64 * 1024)?;
        if self.issuers.len() > ISSUERS_MAX {
            return Err(("issuers", format!("must be at most {ISSUERS_MAX}")));
        }
        for (index, issuer) in self.issuers.iter().enumerate() {
            let of_entry = |(key, rule): (_, &str)| (key, format!("entry {}: {rule}", index + 1));
            issuer.check().map_err(of_entry)?;
            if self.issuers[..index].iter().any(|earlier| earlier.issuer == issuer.issuer) {
                return Err(of_entry(("issuers.issuer", "is that of an earlier entry")));
            }
        }
        Ok(())
    }
}

impl IssuerConfig {
    fn check(&self) -> Result<(), (&'static str, &'static str)> {
        let rule = |key, holds: bool, rule| if holds { Ok(()) } else { Err((key, rule)) };
        rule("issuers.issuer", !self.issuer.is_empty(), "is required")?;
        // A `#` ends the issuer in the actor of audit records. No issuer has one. Source: OpenID Connect Discovery 1.0, section 3.
        let fits = self.issuer.len() <= ISSUER_BYTES_MAX
            && self.issuer.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        rule("issuers.issuer", fits, "must be 1 to 512 visible ASCII characters without a #")?;
        rule("issuers.audience", !self.audience.is_empty(), "is required")?;
        let sources = (&self.jwks_uri, &self.jwks_file);
        rule(
            "issuers.jwks_file",
            !matches!(sources, (Some(_), Some(_))),
            "set one of jwks_uri and jwks_file, or neither",
        )?;
        if let Some(uri) = &self.jwks_uri {
            rule("issuers.jwks_uri", is_https(uri), "must be an https URL")?;
        }
        if sources == (&None, &None) {
            let discoverable = is_https(&self.issuer) && !self.issuer.contains('?');
            rule("issuers.issuer", discoverable, "must be an https URL, or set jwks_uri or jwks_file")?;
        }
        let named = |claim: &str| !claim.is_empty() && !["iss", "aud", "exp", "nbf", "iat"].contains(&claim);
        rule("issuers.tenant_claim", named(&self.tenant_claim), CLAIM)?;
        rule("issuers.role_claim", named(&self.role_claim) && self.role_claim != self.tenant_claim, CLAIM)?;
        let apart = self.app_claim != self.tenant_claim && self.app_claim != self.role_claim;
        rule("issuers.app_claim", named(&self.app_claim) && apart, CLAIM)?;
        let known = !self.algorithms.is_empty() && self.algorithms.iter().all(|name| algorithm(name).is_some());
        rule("issuers.algorithms", known, KNOWN)?;
        rule("issuers.leeway_ms", self.leeway_ms <= LEEWAY_MS_MAX, "must be 0 to 300000")
    }

    /// The accepted algorithms.
    pub(super) fn algorithms(&self) -> Vec<Algorithm> {
        self.algorithms.iter().filter_map(|name| algorithm(name)).collect()
    }
}

fn algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
}

fn is_https(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| uri.scheme_str() == Some("https") && uri.host().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> IssuerConfig {
        let text = "https://id.example.com/realms/one".to_owned();
        IssuerConfig { issuer: text, audience: "carillon".to_owned(), ..IssuerConfig::default() }
    }

    fn refused(issuer: IssuerConfig) -> (&'static str, String) {
        Config { issuers: vec![issuer], ..Config::default() }.check().expect_err("it is refused")
    }

    #[test]
    fn a_bad_issuer_names_its_key_and_entry_and_never_the_value() {
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(Config { issuers: vec![issuer()], ..Config::default() }.check(), Ok(()));
        let file = Some(PathBuf::from("jwks.json"));
        let by_file = IssuerConfig { issuer: "accounts.example".to_owned(), jwks_file: file.clone(), ..issuer() };
        assert_eq!(Config { issuers: vec![by_file], ..Config::default() }.check(), Ok(()));
        let text = |text: &str| text.to_owned();
        let uri = Some(text("https://id.example.com/keys"));
        let cases = [
            ("issuers.issuer", IssuerConfig { issuer: String::new(), ..issuer() }),
            ("issuers.issuer", IssuerConfig { issuer: text("http://hunter2.example"), ..issuer() }),
            ("issuers.issuer", IssuerConfig { issuer: text("https://hunter2.example/?a=b"), ..issuer() }),
            ("issuers.issuer", IssuerConfig { issuer: text("https://hunter2.example/#a"), ..issuer() }),
            ("issuers.audience", IssuerConfig { audience: String::new(), ..issuer() }),
            ("issuers.jwks_uri", IssuerConfig { jwks_uri: Some(text("http://hunter2.example/keys")), ..issuer() }),
            ("issuers.jwks_file", IssuerConfig { jwks_uri: uri, jwks_file: file, ..issuer() }),
            ("issuers.tenant_claim", IssuerConfig { tenant_claim: String::new(), ..issuer() }),
            ("issuers.role_claim", IssuerConfig { role_claim: text("aud"), ..issuer() }),
            ("issuers.app_claim", IssuerConfig { app_claim: text("carillon_role"), ..issuer() }),
            ("issuers.algorithms", IssuerConfig { algorithms: Vec::new(), ..issuer() }),
            ("issuers.algorithms", IssuerConfig { algorithms: vec![text("RS256"), text("HS256")], ..issuer() }),
            ("issuers.algorithms", IssuerConfig { algorithms: vec![text("none")], ..issuer() }),
            ("issuers.leeway_ms", IssuerConfig { leeway_ms: 300_001, ..issuer() }),
        ];
        for (key, bad) in cases {
            let (named, rule) = refused(bad);
            assert_eq!(named, key, "{rule}");
            assert!(rule.starts_with("entry 1: ") && !rule.contains("hunter2"), "{rule}");
        }
        let twice = Config { issuers: vec![issuer(), issuer()], ..Config::default() }.check().expect_err("refused");
        assert_eq!(twice, ("issuers.issuer", "entry 2: is that of an earlier entry".to_owned()));
        let often = Config { keys_interval_min_ms: 0, ..Config::default() }.check().expect_err("refused");
        assert_eq!(often.0, "keys_interval_min_ms");
    }
}
