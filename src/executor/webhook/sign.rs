//! Standard Webhooks signatures over `<id>.<timestamp>.<body>`.
//!
//! Called for every attempt, just before it is sent. Must never log or return key material.
//!
//! Source: Standard Webhooks specification 1.0.0, "Signature scheme" and "Zero downtime secret rotation".

use crate::domain::webhook::SigningSecret;

/// The value of the `webhook-signature` header: one signature for every secret, space separated, in their order.
///
/// Shape: `v1,<base64 of 32 bytes>` or `v1a,<base64 of 64 bytes>` for each. Empty where there is no secret.
/// Units: `timestamp` is in seconds since 1970, UTC, and is what the `webhook-timestamp` header says.
pub fn signature(secrets: &[SigningSecret], id: &str, timestamp: &str, body: &[u8]) -> String {
    // The longer one: "v1a," and 88 characters of base64 for 64 bytes, and the space between two.
    let mut text = String::with_capacity(secrets.len() * 93);
    for secret in secrets {
        if !text.is_empty() {
            text.push(' ');
        }
        secret.sign(&[id.as_bytes(), b".", timestamp.as_bytes(), b".", body], &mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn secret(byte: u8) -> SigningSecret {
        SigningSecret::from_bytes(vec![byte; 32]).expect("32 bytes are a secret")
    }

    fn headers(id: &str, timestamp: &str, signature: &str) -> http::HeaderMap {
        let pairs = [("webhook-id", id), ("webhook-timestamp", timestamp), ("webhook-signature", signature)];
        pairs.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    #[test]
    fn the_reference_library_accepts_our_signatures() {
        let now = clock::now().timestamp().to_string();
        // The library reads bodies as text only, so these are.
        for body in ["", "{\"a\":1}", "\u{20ac}\0\r\n."] {
            let body = body.as_bytes();
            let headers = headers("inv_1", &now, &signature(&[secret(1)], "inv_1", &now, body));
            let oracle = standardwebhooks::Webhook::new(&secret(1).reveal()).expect("a secret");
            oracle.verify(body, &headers).expect("a valid signature");
            assert!(oracle.verify(b"another body", &headers).is_err());
        }
    }

    #[test]
    fn while_a_secret_rotates_old_and_new_both_verify() {
        let now = clock::now().timestamp().to_string();
        let text = signature(&[secret(1), secret(2)], "inv_1", &now, b"body");
        assert_eq!(text.split(' ').count(), 2);
        assert_eq!(text.len(), 95);
        for byte in [1, 2] {
            let oracle = standardwebhooks::Webhook::new(&secret(byte).reveal()).expect("a secret");
            oracle.verify(b"body", &headers("inv_1", &now, &text)).expect("a valid signature");
        }
        let stranger = standardwebhooks::Webhook::new(&secret(3).reveal()).expect("a secret");
        assert!(stranger.verify(b"body", &headers("inv_1", &now, &text)).is_err());
    }
}
