//! Pages: sizes, and opaque tokens that continue exactly one call.
//!
//! A token says where the next page starts. It is sealed with a key of the service and bound to the RPC, the tenant and the
//! parameters of the call, so that one cannot be made up, carried to another tenant, or used with another filter.

use super::FieldError;
use crate::domain::ids::TenantId;
use aws_lc_rs::{digest, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const VERSION: u8 = 1;
const TAG: usize = 16;
/// Longest token that is looked at; a place is a name or a number.
const TOKEN_CHARS_MAX: usize = 1_024;

/// A token that this service did not make for this call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the page token is unreadable, or belongs to a call with other parameters")]
pub struct PageTokenError;

/// What a token is bound to: one RPC of one tenant with its parameters.
#[derive(Clone)]
pub struct PageScope {
    digest: digest::Context,
}

impl PageScope {
    /// Starts with the RPC's name and the caller's tenant.
    pub fn new(rpc: &str, tenant: TenantId) -> Self {
        Self { digest: digest::Context::new(&digest::SHA256) }.with(rpc.as_bytes()).with(tenant.0.as_bytes())
    }

    /// Adds a parameter; the order counts, the page size does not belong here.
    #[must_use]
    pub fn with(mut self, parameter: impl AsRef<[u8]>) -> Self {
        let parameter = parameter.as_ref();
        // The length first, so that two parameters cannot trade bytes.
        self.digest.update(&(parameter.len() as u64).to_be_bytes());
        self.digest.update(parameter);
        self
    }
}

/// Makes and reads page tokens. Cheap to clone.
#[derive(Clone)]
pub struct PageTokens {
    key: hmac::Key,
}

impl PageTokens {
    /// Takes the key that every replica shares; page tokens and cursors may share one, they seal under different names.
    pub fn new(key: &[u8; 32]) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), b"carillon page tokens");
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()) }
    }

    /// The token of the page after `place`.
    pub fn seal(&self, scope: &PageScope, place: &[u8]) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(place);
        let tag = self.tag(scope, &bytes);
        bytes.extend_from_slice(&tag.as_ref()[..TAG]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place that a token names; none for an empty token, which asks for the first page.
    pub fn open(&self, scope: &PageScope, token: &str) -> Result<Option<Vec<u8>>, PageTokenError> {
        if token.is_empty() {
            return Ok(None);
        }
        if token.len() > TOKEN_CHARS_MAX {
            return Err(PageTokenError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| PageTokenError)?;
        let body = bytes.len().checked_sub(TAG).ok_or(PageTokenError)?;
        let (body, tag) = bytes.split_at(body);
        let expected = self.tag(scope, body);
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&expected.as_ref()[..TAG], tag)) {
            return Err(PageTokenError);
        }
        match body.split_first() {
            Some((&VERSION, place)) => Ok(Some(place.to_vec())),
            _ => Err(PageTokenError),
        }
    }

    /// [`PageTokens::seal`] for a place that is a text.
    pub fn seal_text(&self, scope: &PageScope, place: &str) -> String {
        self.seal(scope, place.as_bytes())
    }

    /// [`PageTokens::open`] for a place that is a text.
    pub fn open_text(&self, scope: &PageScope, token: &str) -> Result<Option<String>, PageTokenError> {
        self.open(scope, token)?.map(String::from_utf8).transpose().map_err(|_| PageTokenError)
    }

    /// [`PageTokens::seal`] for a place that is a number.
    pub fn seal_number(&self, scope: &PageScope, place: i64) -> String {
        self.seal(scope, &place.to_be_bytes())
    }

    /// [`PageTokens::open`] for a place that is a number.
    pub fn open_number(&self, scope: &PageScope, token: &str) -> Result<Option<i64>, PageTokenError> {
        let place = self.open(scope, token)?;
        let number = place.map(|bytes| bytes.try_into().map(i64::from_be_bytes));
        number.transpose().map_err(|_| PageTokenError)
    }

    fn tag(&self, scope: &PageScope, body: &[u8]) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(scope.digest.clone().finish().as_ref());
        context.update(body);
        context.sign()
    }
}

/// Reads a page size: 0 means `default`, more than `max` counts as `max`.
pub fn page_size(field: &str, value: i32, default: u32, max: u32) -> Result<u32, FieldError> {
    match u32::try_from(value) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(max)),
        Err(_) => Err(FieldError::new(field, "must not be negative")),
    }
}

/// Cuts a list that was read with one entry too many to its page; true where another page follows.
pub fn cut<T>(list: &mut Vec<T>, page_size: u32) -> bool {
    let size = page_size as usize;
    let more = list.len() > size;
    list.truncate(size);
    more
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn tokens() -> PageTokens {
        PageTokens::new(&[3; 32])
    }

    fn scope() -> PageScope {
        PageScope::new("ListThings", TenantId(Uuid::from_u128(1))).with("app").with([1, 2])
    }

    #[test]
    fn a_token_continues_its_own_call_only() {
        let token = tokens().seal_number(&scope(), 42);
        assert_eq!(tokens().open_number(&scope(), &token), Ok(Some(42)));
        assert_eq!(tokens().open_number(&scope(), ""), Ok(None));
        let tenant = TenantId(Uuid::from_u128(1));
        let others = [
            PageScope::new("ListOthers", tenant).with("app").with([1, 2]),
            PageScope::new("ListThings", TenantId(Uuid::from_u128(2))).with("app").with([1, 2]),
            PageScope::new("ListThings", tenant).with("ap").with([1, 2]),
            PageScope::new("ListThings", tenant).with("app\u{1}").with([2]),
            PageScope::new("ListThings", tenant).with("app"),
        ];
        for other in others {
            assert_eq!(tokens().open_number(&other, &token), Err(PageTokenError));
        }
        assert_eq!(PageTokens::new(&[4; 32]).open_number(&scope(), &token), Err(PageTokenError));
    }

    #[test]
    fn every_changed_bit_and_every_other_length_is_refused() {
        let token = tokens().seal_text(&scope(), "CUSTOM_x");
        assert_eq!(tokens().open_text(&scope(), &token), Ok(Some("CUSTOM_x".to_owned())));
        let bytes = URL_SAFE_NO_PAD.decode(&token).expect("base64");
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(tokens().open(&scope(), &URL_SAFE_NO_PAD.encode(changed)), Err(PageTokenError));
        }
        for wrong in ["x", "ä", "\0", &token[1..], &format!("{token}A"), &"A".repeat(100_000)] {
            assert_eq!(tokens().open(&scope(), wrong), Err(PageTokenError));
        }
        // A text is not a number.
        assert_eq!(tokens().open_number(&scope(), &tokens().seal_text(&scope(), "123")), Err(PageTokenError));
    }

    #[test]
    fn page_sizes_have_a_default_and_a_bound() {
        assert_eq!(page_size("page_size", 0, 50, 1_000), Ok(50));
        assert_eq!(page_size("page_size", 7, 50, 1_000), Ok(7));
        assert_eq!(page_size("page_size", i32::MAX, 50, 1_000), Ok(1_000));
        assert!(page_size("page_size", -1, 50, 1_000).is_err());
        let mut list = vec![1, 2, 3];
        assert!(cut(&mut list, 2) && list == [1, 2] && !cut(&mut list, 2));
    }
}
