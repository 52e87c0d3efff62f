//! Values of a schema, compared exactly: a number may have more digits than any machine type.

use crate::domain::schema::cost::{charge, charge_for};
use num_bigint::BigUint;
use serde_json::{Number, Value};
use std::cmp::Ordering;

/// What reading a number costs that is written in another way.
pub(in crate::domain::schema) const DECIMAL_UNITS: u64 = 8;
/// The highest power of two or five that a number of 128 digits can hold, and a few more.
const TENS_MAX: u64 = 430;

/// A number: `0.digits` times ten to the `exponent`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::domain::schema) struct Decimal {
    negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: String,
    exponent: i64,
}

impl Decimal {
    /// Reads a number; none for another value.
    pub(super) fn of(value: &Value) -> Option<Self> {
        let number = value.as_number()?;
        charge(1);
        charge_for(number.as_str());
        Some(Self::read(number))
    }

    fn zero() -> Self {
        Self { negative: false, digits: String::new(), exponent: 0 }
    }

    /// Reads a number, as long as numbers may be. Whoever asks has charged for it.
    pub(in crate::domain::schema) fn read(number: &Number) -> Self {
        let text = number.as_str();
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let leading = digits.len() - digits.trim_start_matches('0').len();
        let point = i64::try_from(whole.len()).and_then(|whole| Ok(whole - i64::try_from(leading)?)).unwrap_or(0);
        let digits = digits.trim_matches('0').to_owned();
        if digits.is_empty() {
            return Self::zero();
        }
        let exponent: i64 = exponent.parse().unwrap_or(0);
        Self { negative, digits, exponent: exponent.saturating_add(point) }
    }

    /// True below zero.
    pub(in crate::domain::schema) fn is_negative(&self) -> bool {
        self.negative
    }

    /// True where it is another one, above zero, so many times.
    pub(in crate::domain::schema) fn is_multiple_of(&self, divisor: &Self) -> bool {
        if self.digits.is_empty() {
            return true;
        }
        // A whole number that does not end in zero, times ten to the `power`.
        let parts = |number: &Self| {
            let power = number.exponent - i64::try_from(number.digits.len()).ok()?;
            Some((number.digits.parse::<BigUint>().ok()?, power))
        };
        let (Some((number, power)), Some((divisor, least))) = (parts(self), parts(divisor)) else { return false };
        // One that does not end in zero is no multiple of ten.
        let Ok(power) = u64::try_from(power - least) else { return false };
        // More tens add nothing once they hold every two and five of the divisor, which has 128 digits at most.
        let power = power.min(TENS_MAX);
        let rest = number * BigUint::from(10_u8).modpow(&power.into(), &divisor) % &divisor;
        rest == BigUint::ZERO
    }

    /// True for a whole number.
    pub(in crate::domain::schema) fn is_whole(&self) -> bool {
        usize::try_from(self.exponent).map_or(self.digits.is_empty(), |exponent| exponent >= self.digits.len())
    }

    /// The whole number where it is one that fits.
    pub(in crate::domain::schema) fn whole(&self) -> Option<i128> {
        if !self.is_whole() {
            return None;
        }
        let exponent = usize::try_from(self.exponent).ok().filter(|exponent| *exponent <= 36)?;
        let magnitude: i128 = format!("{:0<exponent$}", self.digits)
            .parse()
            .or_else(|error| if self.digits.is_empty() { Ok(0) } else { Err(error) })
            .ok()?;
        Some(if self.negative { -magnitude } else { magnitude })
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |number: &Self| match (number.digits.is_empty(), number.negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        let size = || (self.exponent, &self.digits).cmp(&(other.exponent, &other.digits));
        sign(self).cmp(&sign(other)).then_with(|| if self.negative { size().reverse() } else { size() })
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A value as JSON Schema compares it: `1` is `1.0`, and members have no order.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(in crate::domain::schema) enum Canonical<'v> {
    Null,
    Boolean(bool),
    Number(Decimal),
    Text(&'v str),
    Elements(Vec<Self>),
    /// By their names, as they are sorted.
    Members(Vec<(&'v str, Self)>),
}

impl<'v> Canonical<'v> {
    /// Charged by every value within.
    pub(super) fn of(value: &'v Value) -> Self {
        charge_for_all(value);
        Self::read(value)
    }

    /// Whoever reads it has charged for it.
    pub(in crate::domain::schema) fn read(value: &'v Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Boolean(*value),
            Value::Number(number) => Self::Number(Decimal::read(number)),
            Value::String(text) => Self::Text(text),
            Value::Array(elements) => Self::Elements(elements.iter().map(Self::read).collect()),
            Value::Object(members) => {
                Self::Members(members.iter().map(|(name, value)| (name.as_str(), Self::read(value))).collect())
            }
        }
    }
}

/// Equality as JSON Schema has it, charged by what it looks at: no more than up to the first difference.
pub(in crate::domain::schema) fn are_equal(a: &Value, b: &Value) -> bool {
    charge(1);
    match (a, b) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || {
                charge(DECIMAL_UNITS + (one.as_str().len() / 16 + other.as_str().len() / 16) as u64);
                Decimal::read(one) == Decimal::read(other)
            }
        }
        (Value::String(one), Value::String(other)) => {
            charge_for(one);
            one == other
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| are_equal(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(name, member)| {
                    charge_for(name);
                    b.get(name).is_some_and(|other| are_equal(member, other))
                })
        }
        _ => a == b,
    }
}

/// True for a number above zero.
pub(in crate::domain::schema) fn is_positive(number: &Number) -> bool {
    Decimal::read(number) > Decimal::zero()
}

fn charge_for_all(value: &Value) {
    charge(1);
    match value {
        Value::Null | Value::Bool(_) => {}
        Value::Number(number) => charge_for(number.as_str()),
        Value::String(text) => charge_for(text),
        Value::Array(elements) => elements.iter().for_each(charge_for_all),
        Value::Object(members) => {
            for (name, member) in members {
                charge_for(name);
                charge_for_all(member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decimal(text: &str) -> Decimal {
        Decimal::of(&serde_json::from_str(text).expect("a number")).expect("it is one")
    }

    #[test]
    fn numbers_are_compared_by_value_whatever_their_spelling() {
        let ordered =
            ["-1e400", "-10", "-9.99", "-1e-400", "0", "1e-400", "0.1", "0.11", "1", "9", "10", "1.5e2", "1e400"];
        for (i, a) in ordered.iter().enumerate() {
            for (j, b) in ordered.iter().enumerate() {
                assert_eq!(decimal(a).cmp(&decimal(b)), i.cmp(&j), "{a} {b}");
            }
        }
        for (a, b) in [
            ("0", "0e999999999999999"),
            ("1", "1.0"),
            ("100", "1e2"),
            ("0", "-0.0"),
            ("0.5", "5e-1"),
            ("120", "1.2E+2"),
        ] {
            assert_eq!(decimal(a), decimal(b));
        }
        for (text, whole) in [("0", 0), ("-12.0", -12), ("1e3", 1000), ("9007199254740993", 9_007_199_254_740_993)] {
            assert_eq!(decimal(text).whole(), Some(whole), "{text}");
        }
        assert_eq!(decimal("0.5").whole(), None);
    }
}
