//! Cursors: opaque, resumable places in a tenant's log, sealed so that only this service can make them.
//!
//! A cursor says "everything up to and including `position` has been seen". It carries the tenant, the log's epoch (which
//! changes when a log is restored from a backup) and the date of the last seen event, which lets a resume touch one partition.

use super::ids::{Position, TenantId};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::NaiveDate;

const VERSION: u8 = 1;
const BODY: usize = 1 + 16 + 8 + 8 + 4;
const TAG: usize = 16;

/// A place in a tenant's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Whose log.
    pub tenant: TenantId,
    /// Which life of that log.
    pub epoch: i64,
    /// Everything up to here has been seen.
    pub position: Position,
    /// The UTC date of the event at `position`, or a date not after that of the next one.
    pub day: NaiveDate,
}

/// Why a cursor cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// Unreadable or tampered with: one text for all of it.
    #[error("the cursor is not one that this service made")]
    Malformed,
    /// Another tenant's, or from before a restore.
    #[error("the cursor belongs to another log")]
    Foreign,
}

/// Makes and reads cursors with one secret key.
#[derive(Clone)]
pub struct CursorSealer {
    key: hmac::Key,
}

impl CursorSealer {
    /// Takes the key, 32 random bytes shared by every replica.
    pub fn new(key: &[u8; 32]) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, key) }
    }

    /// The text form: 71 characters of URL-safe base64.
    pub fn seal(&self, cursor: &Cursor) -> String {
        let mut bytes = [0_u8; BODY + TAG];
        bytes[0] = VERSION;
        bytes[1..17].copy_from_slice(cursor.tenant.0.as_bytes());
        bytes[17..25].copy_from_slice(&cursor.epoch.to_be_bytes());
        bytes[25..33].copy_from_slice(&cursor.position.to_be_bytes());
        bytes[33..37].copy_from_slice(&chrono::Datelike::num_days_from_ce(&cursor.day).to_be_bytes());
        let tag = hmac::sign(&self.key, &bytes[..BODY]);
        bytes[BODY..].copy_from_slice(&tag.as_ref()[..TAG]);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads a cursor back, for one tenant's log.
    ///
    /// Errors: [`CursorError::Malformed`] for anything this key did not seal, [`CursorError::Foreign`] for another log.
    pub fn open(&self, text: &str, tenant: TenantId, epoch: i64) -> Result<Cursor, CursorError> {
        if text.len() != (BODY + TAG) * 8 / 6 + 1 {
            return Err(CursorError::Malformed);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Malformed)?;
        let (body, tag) = bytes.split_at_checked(BODY).ok_or(CursorError::Malformed)?;
        let expected = hmac::sign(&self.key, body);
        if !bool::from(subtle::ConstantTimeEq::ct_eq(&expected.as_ref()[..TAG], tag)) || body[0] != VERSION {
            return Err(CursorError::Malformed);
        }
        let array = |from: usize| -> [u8; 8] { std::array::from_fn(|i| body[from + i]) };
        let owner = TenantId(uuid::Uuid::from_bytes(std::array::from_fn(|i| body[1 + i])));
        let days = i32::from_be_bytes(std::array::from_fn(|i| body[33 + i]));
        let cursor = Cursor {
            tenant: owner,
            epoch: i64::from_be_bytes(array(17)),
            position: Position::from_be_bytes(array(25)),
            day: NaiveDate::from_num_days_from_ce_opt(days).ok_or(CursorError::Malformed)?,
        };
        if cursor.tenant == tenant && cursor.epoch == epoch { Ok(cursor) } else { Err(CursorError::Foreign) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn cursor() -> Cursor {
        let day = NaiveDate::from_ymd_opt(2026, 2, 28).expect("a date");
        Cursor { tenant: TenantId(Uuid::from_u128(9)), epoch: 3, position: 1 << 40, day }
    }

    #[test]
    fn g12_a_cursor_round_trips_and_every_flipped_bit_is_malformed() {
        let sealer = CursorSealer::new(&[7; 32]);
        let text = sealer.seal(&cursor());
        assert_eq!(sealer.open(&text, cursor().tenant, 3), Ok(cursor()));
        let bytes = URL_SAFE_NO_PAD.decode(&text).expect("base64");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let text = URL_SAFE_NO_PAD.encode(flipped);
            assert_eq!(sealer.open(&text, cursor().tenant, 3), Err(CursorError::Malformed), "bit {bit}");
        }
        for text in ["", "x", &text[1..], &format!("{text}A"), &"A".repeat(100_000)] {
            assert_eq!(sealer.open(text, cursor().tenant, 3), Err(CursorError::Malformed));
        }
    }

    #[test]
    fn g10_a_cursor_of_another_log_is_foreign() {
        let sealer = CursorSealer::new(&[7; 32]);
        let text = sealer.seal(&cursor());
        assert_eq!(sealer.open(&text, TenantId(Uuid::from_u128(8)), 3), Err(CursorError::Foreign));
        assert_eq!(sealer.open(&text, cursor().tenant, 4), Err(CursorError::Foreign));
        let other = CursorSealer::new(&[8; 32]);
        assert_eq!(other.open(&text, cursor().tenant, 3), Err(CursorError::Malformed));
    }
}
