//! Tokens that are not accepted: all of them are told what the bearer of a bad API key is told, to the byte.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, Header};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{Stage, changed, lists, seconds_from_now, socket};
use crate::harness::Tenant;
use crate::harness::issuer::{Signer, encoded};

/// A token that is signed with a secret instead of a key.
fn with_secret(kid: &str, claims: &Value, secret: &[u8]) -> String {
    let message = format!("{}.{}", encoded(&json!({"alg": "HS256", "typ": "JWT", "kid": kid})), encoded(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
}

/// A token with another payload under the same signature.
fn with_payload(token: &str, claims: &Value) -> String {
    let parts: Vec<&str> = token.split('.').collect();
    format!("{}.{}.{}", parts[0], encoded(claims), parts[2])
}

/// Tokens whose claims are wrong, though their issuer has signed them.
fn wrong_claims(stage: &Stage, tenant: &Tenant) -> Vec<(String, String)> {
    let changes = [
        json!({"exp": seconds_from_now(-1)}),
        json!({"exp": seconds_from_now(0)}),
        json!({"exp": null}),
        json!({"exp": "4000000000"}),
        json!({"exp": 1e99}),
        json!({"nbf": seconds_from_now(60)}),
        json!({"nbf": "soon"}),
        json!({"aud": "somebody else"}),
        json!({"aud": ["account", "Carillon", "carillon "]}),
        json!({"aud": []}),
        json!({"aud": null}),
        json!({"iss": format!("{}/", stage.issuer.url)}),
        json!({"iss": "other"}),
        json!({"iss": [stage.issuer.url]}),
        json!({"iss": null}),
        json!({"sub": null}),
        json!({"sub": ""}),
        json!({"sub": "a\u{0}"}),
        json!({"carillon_tenant": null}),
        json!({"carillon_tenant": ""}),
        json!({"carillon_tenant": [tenant.slug]}),
        json!({"carillon_tenant": tenant.slug.to_uppercase()}),
        json!({"carillon_tenant": "nobody-here"}),
        json!({"carillon_role": null}),
        json!({"carillon_role": "operator"}),
        json!({"carillon_role": "Admin"}),
        json!({"carillon_role": ["offline_access"]}),
        json!({"carillon_app": "nothing-here"}),
        json!({"carillon_app": ""}),
        json!({"carillon_app": [tenant.app]}),
    ];
    changes.iter().map(|changes| (changes.to_string(), stage.token(tenant, changes))).collect()
}

/// Tokens of good claims that their issuer has not signed, or not so.
fn wrong_signatures(stage: &Stage, tenant: &Tenant) -> Vec<(String, String)> {
    let claims = stage.claims(tenant, &json!({}));
    let good = stage.ed.sign(&claims);
    let header = |kid: &str, algorithm| Header { kid: Some(kid.to_owned()), ..Header::new(algorithm) };
    let (message, signature) = good.rsplit_once('.').expect("it has parts");
    let unsigned = |alg: &str| format!("{}.{}.", encoded(&json!({"alg": alg, "kid": "ed"})), encoded(&claims));
    let public = stage.rsa.jwk();
    let modulus = URL_SAFE_NO_PAD.decode(public["n"].as_str().expect("a modulus")).expect("base64");
    let critical = Header { crit: Some(vec!["b64".to_owned()]), ..header("ed", Algorithm::EdDSA) };
    let of_another = Header {
        jwk: serde_json::from_value(Signer::new("x", Algorithm::EdDSA).jwk()).ok(),
        ..header("x", Algorithm::EdDSA)
    };
    let mut flipped = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    flipped[7] ^= 1;
    let named = |what: &str, token: String| (what.to_owned(), token);
    vec![
        named("alg none", unsigned("none")),
        named("alg None", unsigned("None")),
        named("no signature", format!("{message}.")),
        named("no last part", message.to_owned()),
        named("a part more", format!("{good}.x")),
        named("padding", format!("{good}=")),
        named("another signature", format!("{message}.{}", URL_SAFE_NO_PAD.encode(&flipped))),
        named("another payload", with_payload(&good, &changed(claims.clone(), &json!({"carillon_role": "viewer"})))),
        named("HMAC with the modulus", with_secret("rsa", &claims, &modulus)),
        named(
            "HMAC with the modulus as text",
            with_secret("rsa", &claims, public["n"].as_str().expect("text").as_bytes()),
        ),
        named("HMAC with the JWK", with_secret("rsa", &claims, public.to_string().as_bytes())),
        named("HMAC with nothing", with_secret("rsa", &claims, b"")),
        named("an algorithm that is not accepted", stage.rsa.with(Algorithm::RS512).sign(&claims)),
        named("the id of another kind of key", stage.ed.sign_with(&header("rsa", Algorithm::EdDSA), &claims)),
        named("the id of another curve", stage.p256.sign_with(&header("p384", Algorithm::ES256), &claims)),
        named("another's key under a known id", Signer::new("ed", Algorithm::EdDSA).sign(&claims)),
        named("an unknown id", stage.ed.sign_with(&header("unknown", Algorithm::EdDSA), &claims)),
        named("what is critical and not understood", stage.ed.sign_with(&critical, &claims)),
        named("a key that it brings itself", Signer::new("x", Algorithm::EdDSA).sign_with(&of_another, &claims)),
        named("9 KB", stage.ed.sign(&changed(claims.clone(), &json!({"more": "x".repeat(9 << 10)})))),
        named("dots", "..".to_owned()),
        named("no JSON", format!("{}.{}.{signature}", encoded(&json!("x")), encoded(&json!("x")))),
    ]
}

#[tokio::test]
async fn whatever_is_wrong_with_a_token_is_answered_as_a_bad_key_is() {
    let stage = Stage::shared().await;
    let tenant = stage.world.tenant().await;
    let bad_key = format!("{}x", &tenant.key[..tenant.key.len() - 1]);
    let expected = lists(&stage.world, &bad_key).await.expect_err("a bad key");
    let shown = |status: &Status| (status.code(), status.message().to_owned(), status.details().to_vec());
    assert_eq!(expected.code(), Code::Unauthenticated);
    let tokens = wrong_claims(stage, &tenant).into_iter().chain(wrong_signatures(stage, &tenant));
    let (mut wrong, mut tried) = (Vec::new(), 0);
    for (what, token) in tokens {
        tried += 1;
        match stage.lists(&token).await {
            Ok(()) => wrong.push(format!("{what}: accepted")),
            Err(status) if shown(&status) != shown(&expected) => wrong.push(format!("{what}: {status:?}")),
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty() && tried >= 50, "{tried} tried\n{}", wrong.join("\n"));
    let expired = stage.token(&tenant, &json!({"exp": seconds_from_now(-1)}));
    assert_eq!(socket(&stage.world, &expired).await.err(), Some(401));
    stage.lists(&stage.token(&tenant, &json!({}))).await.expect("what they were made from is good");
}

#[tokio::test]
async fn without_issuers_no_token_is_accepted() {
    let stage = Stage::shared().await;
    let world = crate::harness::World::shared().await;
    let tenant = world.tenant().await;
    let token = stage.token(&tenant, &json!({}));
    let status = lists(world, &token).await.expect_err("nobody has said whose tokens count");
    assert_eq!(status.code(), Code::Unauthenticated);
}
