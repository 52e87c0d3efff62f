//! Identifiers: UUIDv7 inside, a prefix and 26 characters of Crockford base32 outside.
//!
//! Ids are made by the caller's clock and randomness ([`crate::clock`] in the server), never here.

use std::fmt;
use uuid::Uuid;

/// Lower-case Crockford base32: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// A text that is not an identifier of the expected kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not an id of the form {prefix}_{form}{fault}")]
pub struct IdError {
    prefix: &'static str,
    form: &'static str,
    fault: Fault,
}

/// What is wrong with an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// Prefix or length.
    Shape,
    /// A character behind the prefix, 1-based, that is none of the alphabet.
    Character(usize),
    /// The last character of 26 holds two bits that no id uses.
    Last,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape => Ok(()),
            Self::Character(place) => {
                write!(f, ": character {place} of them is no digit and no lower-case letter other than i, l, o and u")
            }
            Self::Last => f.write_str(": the last of them is 0, 4, 8, c, g, m, r or w"),
        }
    }
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

/// Decodes what follows a prefix to exactly `N` bytes; only the one canonical spelling is accepted.
fn decode<const N: usize>(text: &str) -> Result<[u8; N], Fault> {
    if text.len() != (N * 8).div_ceil(5) {
        return Err(Fault::Shape);
    }
    let mut out = [0_u8; N];
    let mut filled = 0;
    let mut accumulator: u32 = 0;
    let mut bits = 0;
    for (place, character) in (1..).zip(text.chars()) {
        let value = (0_u32..).zip(ALPHABET).find(|(_, known)| char::from(**known) == character);
        accumulator = (accumulator << 5) | value.ok_or(Fault::Character(place))?.0;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out[filled] = (accumulator >> bits & 0xff) as u8;
            filled += 1;
            accumulator &= (1 << bits) - 1;
        }
    }
    if accumulator == 0 { Ok(out) } else { Err(Fault::Last) }
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
                    .ok_or(Fault::Shape)
                    .and_then(decode::<16>)
                    .map(|bytes| Self(Uuid::from_bytes(bytes)))
                    .map_err(|fault| IdError { prefix: $prefix, form: "<26 characters>", fault })
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
        let bytes: [u8; 20] = text
            .strip_prefix("inv_")
            .ok_or(Fault::Shape)
            .and_then(decode)
            .map_err(|fault| IdError { prefix: "inv", form: "<32 characters>", fault })?;
        let (mut event, mut number) = ([0; 16], [0; 4]);
        event.copy_from_slice(&bytes[..16]);
        number.copy_from_slice(&bytes[16..]);
        let subscription_no = SubscriptionNo::from_be_bytes(number);
        Ok(Self { event: EventId(Uuid::from_bytes(event)), subscription_no })
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
    fn what_is_wrong_with_an_id_is_told() {
        let zeros = "0".repeat(25);
        let cases = [
            ("evt_".to_owned(), ""),
            (format!("sub_{zeros}0"), ""),
            (format!("evt_{zeros}"), ""),
            (format!("evt_{zeros}00"), ""),
            (format!("evt_{zeros}1"), ": the last of them is 0, 4, 8, c, g, m, r or w"),
            (
                format!("evt_00U{}", &zeros[2..]),
                ": character 3 of them is no digit and no lower-case letter other than i, l, o and u",
            ),
        ];
        for (text, fault) in cases {
            let said = EventId::parse(&text).unwrap_err().to_string();
            assert_eq!(said, format!("is not an id of the form evt_<26 characters>{fault}"), "{text}");
        }
        for last in "048cgmrw".chars() {
            assert!(EventId::parse(&format!("evt_{zeros}{last}")).is_ok(), "{last}");
        }
        let said = InvocationId::parse(&format!("inv_{}-", "0".repeat(31))).unwrap_err().to_string();
        assert!(said.contains("inv_<32 characters>: character 32 "), "{said}");
    }

    #[test]
    fn an_invocation_id_names_its_event_and_subscription() {
        let id = InvocationId { event: EventId(Uuid::from_u128(7)), subscription_no: 300 };
        assert_eq!(id.to_string().len(), 36);
        assert_eq!(InvocationId::parse(&id.to_string()), Ok(id));
    }
}
