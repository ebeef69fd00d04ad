//! The operators of conditions (RAM, "Condition operators").

use super::{
    context::Key,
    element::{DocumentError, Element},
    pattern::{Case, matches},
};

/// The type that an operator compares, and the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    Text(Comparison),
    Number(Order),
    Time(Order),
    Flag,
    Address,
}

/// A comparison of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    Equal,
    EqualIgnoringCase,
    Like,
}

/// A comparison of numbers or times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Equal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

/// An operator: the type that it compares, the comparison, and whether the result is negated.
#[derive(Debug)]
pub struct Operator {
    pub name: &'static str,
    pub test: Test,
    pub negated: bool,
}

/// The supported operators.
pub const OPERATORS: [Operator; 21] = {
    const fn operator(name: &'static str, test: Test, negated: bool) -> Operator {
        Operator { name, test, negated }
    }
    use Order::{AtLeast, AtMost, Equal, Greater, Less};
    use Test::{Address, Flag, Number, Text, Time};
    [
        operator("StringEquals", Text(Comparison::Equal), false),
        operator("StringNotEquals", Text(Comparison::Equal), true),
        operator("StringEqualsIgnoreCase", Text(Comparison::EqualIgnoringCase), false),
        operator("StringNotEqualsIgnoreCase", Text(Comparison::EqualIgnoringCase), true),
        operator("StringLike", Text(Comparison::Like), false),
        operator("StringNotLike", Text(Comparison::Like), true),
        operator("NumericEquals", Number(Equal), false),
        operator("NumericNotEquals", Number(Equal), true),
        operator("NumericLessThan", Number(Less), false),
        operator("NumericLessThanEquals", Number(AtMost), false),
        operator("NumericGreaterThan", Number(Greater), false),
        operator("NumericGreaterThanEquals", Number(AtLeast), false),
        operator("DateEquals", Time(Equal), false),
        operator("DateNotEquals", Time(Equal), true),
        operator("DateLessThan", Time(Less), false),
        operator("DateLessThanEquals", Time(AtMost), false),
        operator("DateGreaterThan", Time(Greater), false),
        operator("DateGreaterThanEquals", Time(AtLeast), false),
        operator("Bool", Flag, false),
        operator("IpAddress", Address, false),
        operator("NotIpAddress", Address, true),
    ]
};

impl Operator {
    /// Checks that the operator compares the type of the key's values.
    pub fn check_key(&self, key: &Key, element: Element<'_>) -> Result<(), DocumentError> {
        let (is_compatible, expected) = match key {
            Key::SourceIp => (self.test == Test::Address, "an address; use IpAddress or NotIpAddress"),
            Key::CurrentTime => (matches!(self.test, Test::Time(_)), "a time; use an operator that begins with Date"),
            Key::SecureTransport => (self.test == Test::Flag, "a boolean; use Bool"),
            Key::PrincipalArn => {
                (matches!(self.test, Test::Text(_)), "a string; use an operator that begins with String")
            }
            Key::Claim(_) => (true, ""),
        };
        if is_compatible {
            Ok(())
        } else {
            Err(element.error(format_args!("{} can't be used with this key, which is {expected}", self.name)))
        }
    }
}

impl Comparison {
    pub fn holds(self, text: &str, value: &str) -> bool {
        match self {
            Self::Equal => text == value,
            Self::EqualIgnoringCase => lower(text).eq(lower(value)),
            Self::Like => matches(value, text, Case::Sensitive),
        }
    }
}

fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

impl Order {
    pub fn holds<T: PartialOrd>(self, actual: &T, value: &T) -> bool {
        match self {
            Self::Equal => actual == value,
            Self::Less => actual < value,
            Self::AtMost => actual <= value,
            Self::Greater => actual > value,
            Self::AtLeast => actual >= value,
        }
    }
}
