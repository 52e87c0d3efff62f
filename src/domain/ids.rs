//! Identifiers: UUIDv7 inside, a prefix and 26 characters of Crockford base32 outside.
//!
//! Ids are made by the caller's clock and randomness ([`crate::clock`] in the server), never here.

use std::fmt;
use uuid::Uuid;

/// Lower-case Crockford base32: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A text that is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not an id of the form {prefix}_{form}")]
pub struct IdError {
    prefix: &'static str,
    form: &'static str,
}

fn encode(bytes: &[u8], out: &mut String) {
    let mut accumulator: u32 = 0;
    let mut bits = 0;
    for byte in bytes {
        accumulator = (accumulator << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(ALPHABET[(accumulator >> bits & 31) as usize]));
        }
        accumulator &= (1 << bits) - 1;
    }
    if bits > 0 {
        out.push(char::from(ALPHABET[(accumulator << (5 - bits) & 31) as usize]));
    }
}

/// Decodes exactly `N` bytes; only the one canonical spelling is accepted.
fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != (N * 8).div_ceil(5) {
        return None;
    }
    let mut out = [0_u8; N];
    let mut filled = 0;
    let mut accumulator: u32 = 0;
    let mut bits = 0;
    for character in text.bytes() {
        let value = ALPHABET.iter().position(|c| *c == character)?;
        accumulator = (accumulator << 5) | u32::try_from(value).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            if filled == N {
                return None;
            }
            out[filled] = u8::try_from(accumulator >> bits & 0xff).ok()?;
            filled += 1;
            accumulator &= (1 << bits) - 1;
        }
    }
    (filled == N && accumulator == 0).then_some(out)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub Uuid);

        impl $name {
            /// What the text form starts with.
            pub const PREFIX: &'static str = $prefix;

            /// Parses the text form.
            ///
            /// Errors: anything but the prefix, an underscore and 26 canonical characters.
            pub fn parse(text: &str) -> Result<Self, IdError> {
                text.strip_prefix(concat!($prefix, "_"))
                    .and_then(decode::<16>)
                    .map(|bytes| Self(Uuid::from_bytes(bytes)))
                    .ok_or(IdError { prefix: $prefix, form: "<26 characters>" })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut text = String::with_capacity(32);
                text.push_str(concat!($prefix, "_"));
                encode(self.0.as_bytes(), &mut text);
                f.write_str(&text)
            }
        }
    };
}

id!(
    /// A tenant, the isolation boundary.
    TenantId, "ten"
);
id!(
    /// An app inside a tenant.
    AppId, "app"
);
id!(
    /// An API key.
    ApiKeyId, "key"
);
id!(
    /// A certificate identity that may publish.
    PublisherIdentityId, "pub"
);
id!(
    /// An event.
    EventId, "evt"
);
id!(
    /// A subscription.
    SubscriptionId, "sub"
);
id!(
    /// A live watch stream.
    WatchId, "wat"
);
id!(
    /// A running server process.
    ReplicaId, "rep"
);

/// A subscription's small number within its tenant; what event rows list. Never reused.
pub type SubscriptionNo = i32;

/// A place in a tenant's log: 1 for the first event, no gaps, in commit order.
pub type Position = i64;

/// An invocation: derived from the event and the subscription, so it exists from the moment of publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InvocationId {
    /// The event.
    pub event: EventId,
    /// The subscription's number in the event's tenant.
    pub subscription_no: SubscriptionNo,
}

impl InvocationId {
    /// Parses `inv_` and 32 canonical characters.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let wrong = IdError { prefix: "inv", form: "<32 characters>" };
        let bytes = text.strip_prefix("inv_").and_then(decode::<20>).ok_or(wrong.clone())?;
        let (event, number) = bytes.split_at(16);
        let event = Uuid::from_slice(event).map_err(|_| wrong.clone())?;
        let number: [u8; 4] = number.try_into().map_err(|_| wrong)?;
        Ok(Self { event: EventId(event), subscription_no: SubscriptionNo::from_be_bytes(number) })
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0_u8; 20];
        bytes[..16].copy_from_slice(self.event.0.as_bytes());
        bytes[16..].copy_from_slice(&self.subscription_no.to_be_bytes());
        let mut text = String::with_capacity(36);
        text.push_str("inv_");
        encode(&bytes, &mut text);
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_and_only_the_canonical_spelling_parses() {
        let id = EventId(Uuid::from_u128(0x0193_5b6a_ffff_7abc_8def_0123_4567_89ab));
        let text = id.to_string();
        assert_eq!(text.len(), 30);
        assert_eq!(EventId::parse(&text), Ok(id));
        assert!(EventId::parse(&text.to_uppercase()).is_err());
        assert!(EventId::parse(&text.replace("evt", "sub")).is_err());
        assert!(EventId::parse(&text[..29]).is_err());
        assert!(EventId::parse(&format!("{text}0")).is_err());
        // The last character carries two unused bits, which must be zero.
        assert!(EventId::parse("evt_00000000000000000000000001").is_err());
        for hostile in ["", "evt_", "evt_\0", "../x", "evt_ууууууууууууу"] {
            assert!(EventId::parse(hostile).is_err(), "{hostile:?}");
        }
    }

    #[test]
    fn an_invocation_id_names_its_event_and_subscription() {
        let id = InvocationId { event: EventId(Uuid::from_u128(7)), subscription_no: 300 };
        assert_eq!(id.to_string().len(), 36);
        assert_eq!(InvocationId::parse(&id.to_string()), Ok(id));
    }
}
