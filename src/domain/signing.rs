//! Keys of webhook signatures: the secrets that sign, and what receivers verify with.
//!
//! Source: Standard Webhooks specification 1.0.0, "Signature scheme". `v1` is HMAC-SHA256 with a shared secret, `v1a` is Ed25519, of
//! which the receiver knows the public key alone: who can verify cannot sign.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::sync::Arc;

/// Prefix of a shared secret.
const SHARED: &str = "whsec_";
/// Prefix of a private key.
const PRIVATE: &str = "whsk_";
/// Prefix of a public key.
const PUBLIC: &str = "whpk_";
/// Bytes of a seed, and of a public key.
const KEY_BYTES: usize = 32;
/// What a private key begins with where its bytes are kept: a shared secret is never that long.
const PRIVATE_TAG: u8 = 1;

/// How deliveries are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// HMAC-SHA256.
    V1,
    /// Ed25519.
    V1a,
}

/// A webhook signing secret: a shared secret of 24 to 64 bytes, or an Ed25519 private key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSecret(Secret);

#[derive(Clone)]
enum Secret {
    Shared(Vec<u8>),
    Private { seed: [u8; KEY_BYTES], pair: Arc<Ed25519KeyPair> },
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Shared(one), Self::Shared(other)) => one == other,
            (Self::Private { seed: one, .. }, Self::Private { seed: other, .. }) => one == other,
            _ => false,
        }
    }
}

impl Eq for Secret {}

impl SigningSecret {
    /// Parses `whsec_` and base64 of 24 to 64 bytes, or `whsk_` and base64 of an Ed25519 seed, with or without the public key behind
    /// it (32 or 64 bytes).
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(encoded) = text.strip_prefix(PRIVATE) {
            let bytes = STANDARD.decode(encoded).ok()?;
            let (seed, public) = bytes.split_at_checked(KEY_BYTES)?;
            let secret = Self::from_seed(seed.try_into().ok()?)?;
            return (public.is_empty() || secret.public_bytes() == Some(public)).then_some(secret);
        }
        Self::from_bytes(STANDARD.decode(text.strip_prefix(SHARED)?).ok()?)
    }

    /// A shared secret of these bytes, 24 to 64 of them.
    pub fn from_bytes(bytes: Vec<u8>) -> Option<Self> {
        (24..=64).contains(&bytes.len()).then_some(Self(Secret::Shared(bytes)))
    }

    /// The private key that a seed makes.
    pub fn from_seed(seed: [u8; KEY_BYTES]) -> Option<Self> {
        let pair = Arc::new(Ed25519KeyPair::from_seed_unchecked(&seed).ok()?);
        Some(Self(Secret::Private { seed, pair }))
    }

    /// A new one of a scheme, of 32 random bytes.
    pub fn of(scheme: Scheme, random: [u8; KEY_BYTES]) -> Option<Self> {
        match scheme {
            Scheme::V1 => Self::from_bytes(random.to_vec()),
            Scheme::V1a => Self::from_seed(random),
        }
    }

    /// How it signs.
    pub fn scheme(&self) -> Scheme {
        match &self.0 {
            Secret::Shared(_) => Scheme::V1,
            Secret::Private { .. } => Scheme::V1a,
        }
    }

    /// The bytes to keep; [`Self::from_kept`] reads them.
    pub fn to_kept(&self) -> Vec<u8> {
        match &self.0 {
            Secret::Shared(bytes) => bytes.clone(),
            Secret::Private { seed, pair } => [&[PRIVATE_TAG], seed.as_slice(), pair.public_key().as_ref()].concat(),
        }
    }

    /// Reads what [`Self::to_kept`] made.
    pub fn from_kept(bytes: Vec<u8>) -> Option<Self> {
        match bytes.as_slice() {
            [PRIVATE_TAG, keys @ ..] if keys.len() == 2 * KEY_BYTES => Self::from_seed(*keys.first_chunk()?),
            _ => Self::from_bytes(bytes),
        }
    }

    /// The text form, for the one answer that shows it.
    pub fn reveal(&self) -> String {
        match &self.0 {
            Secret::Shared(bytes) => format!("{SHARED}{}", STANDARD.encode(bytes)),
            Secret::Private { seed, pair } => {
                format!("{PRIVATE}{}", STANDARD.encode([seed.as_slice(), pair.public_key().as_ref()].concat()))
            }
        }
    }

    /// The text form of the public key, which may be told anybody; none of a shared secret.
    pub fn public_key(&self) -> Option<String> {
        self.public_bytes().map(|bytes| format!("{PUBLIC}{}", STANDARD.encode(bytes)))
    }

    /// Appends the signature of a message, given in parts, as it stands in the `webhook-signature` header.
    pub fn sign(&self, parts: &[&[u8]], text: &mut String) {
        match &self.0 {
            Secret::Shared(bytes) => {
                let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, bytes));
                for part in parts {
                    context.update(part);
                }
                text.push_str("v1,");
                STANDARD.encode_string(context.sign(), text);
            }
            Secret::Private { pair, .. } => {
                text.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&parts.concat()), text);
            }
        }
    }

    fn public_bytes(&self) -> Option<&[u8]> {
        match &self.0 {
            Secret::Shared(_) => None,
            Secret::Private { pair, .. } => Some(pair.public_key().as_ref()),
        }
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(..)")
    }
}

/// What a receiver verifies with: a shared secret, or the public key of a private one.
#[derive(Clone)]
pub struct VerificationKey(Verifies);

#[derive(Clone)]
enum Verifies {
    Shared(Vec<u8>),
    Public([u8; KEY_BYTES]),
}

impl VerificationKey {
    /// Parses a secret as [`SigningSecret::parse`] does, or `whpk_` and base64 of an Ed25519 public key.
    pub fn parse(text: &str) -> Option<Self> {
        match text.strip_prefix(PUBLIC) {
            Some(encoded) => Some(Self(Verifies::Public(STANDARD.decode(encoded).ok()?.try_into().ok()?))),
            None => Self::of(&SigningSecret::parse(text)?),
        }
    }

    /// That which verifies what a secret signs.
    pub fn of(secret: &SigningSecret) -> Option<Self> {
        Some(Self(match &secret.0 {
            Secret::Shared(bytes) => Verifies::Shared(bytes.clone()),
            Secret::Private { pair, .. } => Verifies::Public(pair.public_key().as_ref().try_into().ok()?),
        }))
    }

    /// Whether one of the header's signatures fits the message.
    pub fn fits(&self, header: &str, message: &[u8]) -> bool {
        header.split(' ').filter_map(|signature| signature.split_once(',')).any(|(version, encoded)| {
            let Ok(signature) = STANDARD.decode(encoded) else { return false };
            // The comparisons take the same time wherever the first wrong byte is.
            match (&self.0, version) {
                (Verifies::Shared(key), "v1") => {
                    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), message, &signature).is_ok()
                }
                (Verifies::Public(key), "v1a") => {
                    UnparsedPublicKey::new(&ED25519, key).verify(message, &signature).is_ok()
                }
                _ => false,
            }
        })
    }
}

impl fmt::Debug for VerificationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("VerificationKey(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn private() -> SigningSecret {
        SigningSecret::from_seed([7; 32]).expect("a seed")
    }

    #[test]
    fn a_private_key_is_read_in_both_forms_and_kept_apart_from_shared_secrets() {
        let text = private().reveal();
        assert_eq!(SigningSecret::parse(&text), Some(private()));
        assert_eq!(SigningSecret::parse(&format!("whsk_{}", STANDARD.encode([7; 32]))), Some(private()));
        let foreign = [[7_u8; 32], [8; 32]].concat();
        assert_eq!(SigningSecret::parse(&format!("whsk_{}", STANDARD.encode(foreign))), None, "another public key");
        for bad in ["whsk_", "whsk_AAAA", "whsk_x", "whpk_AAAA", "whsec_AAAA", ""] {
            assert_eq!(SigningSecret::parse(bad), None, "{bad}");
        }
        let longest = SigningSecret::from_bytes(vec![PRIVATE_TAG; 64]).expect("64 bytes");
        for secret in [private(), longest] {
            assert_eq!(SigningSecret::from_kept(secret.to_kept()), Some(secret));
        }
        assert_eq!(format!("{:?}", private()), "SigningSecret(..)");
    }

    #[test]
    fn the_vector_of_rfc_8032_is_signed_as_it_says() {
        // RFC 8032, 7.1, TEST 2: seed, public key and signature of the message 0x72.
        let seed = hex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb");
        let secret = SigningSecret::from_seed(seed.try_into().expect("32 bytes")).expect("a seed");
        let public = hex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c");
        assert_eq!(secret.public_key(), Some(format!("whpk_{}", STANDARD.encode(public))));
        let signature = hex(
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        );
        let mut text = String::new();
        secret.sign(&[&[0x72]], &mut text);
        assert_eq!(text, format!("v1a,{}", STANDARD.encode(signature)));
    }

    #[test]
    fn only_the_key_of_the_scheme_verifies() {
        let shared = SigningSecret::from_bytes(vec![7; 32]).expect("32 bytes");
        let mut header = String::new();
        private().sign(&[b"a", b"b"], &mut header);
        header.push(' ');
        shared.sign(&[b"ab"], &mut header);
        let public = VerificationKey::parse(&private().public_key().expect("it has one")).expect("a key");
        for key in [public, VerificationKey::of(&shared).expect("a key")] {
            assert!(key.fits(&header, b"ab") && !key.fits(&header, b"abc"));
        }
        let other = VerificationKey::of(&SigningSecret::from_seed([8; 32]).expect("a seed")).expect("a key");
        assert!(!other.fits(&header, b"ab") && !other.fits("v1a,x v1a", b"ab"));
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex")).collect()
    }
}
