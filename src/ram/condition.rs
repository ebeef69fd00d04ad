//! Conditions (RAM, "Condition operators"): every one of a statement must hold, and one holds if any of its values does. A negated
//! operator holds exactly where the operator that it negates does not, so it holds for a key that a call does not have.
//!
//! A call may have several values under a key. An operator alone is about the set: it holds if any of the call's values is one of the
//! condition's, and its negation if none is. `ForAnyValue:` and `ForAllValues:` ask each of the call's values by itself.

use std::{fmt, net::IpAddr, str::FromStr as _};

use ipnet::IpNet;

use super::{
    context::{Context, Fact, Key, Keys},
    element::{DocumentError, Element},
    json::Json,
    pattern::{Case, matches},
};
use crate::domain::Timestamp;

/// `Condition`: all of them must hold.
#[derive(Debug, Clone, Default)]
pub struct Conditions(Vec<Condition>);

/// An operator, a key, and values.
#[derive(Debug, Clone)]
pub struct Condition {
    quantifier: Quantifier,
    operator: &'static Operator,
    key: Key,
    values: Values,
}

/// Of which of a call's values under a key the operator must hold (RAM, "Condition operators", set operators).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quantifier {
    /// Nothing is said: an operator must hold of any, and the negation of one of all.
    Unsaid,
    /// `ForAnyValue:` at least one. It does not hold for a key that a call does not have.
    Any,
    /// `ForAllValues:` all. It holds for a key that a call does not have.
    All,
}

impl Quantifier {
    /// The quantifier that an operator's name begins with, and the rest of the name.
    fn split(name: &str) -> (Self, &str) {
        let quantified = [Self::Any, Self::All].into_iter();
        let mut split = quantified.filter_map(|quantifier| Some((quantifier, name.strip_prefix(quantifier.prefix())?)));
        split.next().unwrap_or((Self::Unsaid, name))
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Unsaid => "",
            Self::Any => "ForAnyValue:",
            Self::All => "ForAllValues:",
        }
    }
}

/// What a value is compared as, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Test {
    Text(Comparison),
    Number(Order),
    Time(Order),
    Flag,
    Address,
}

/// How texts are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    EqualIgnoringCase,
    Like,
}

/// How a call's number or time must be to a condition's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Equal,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

#[derive(Debug)]
struct Operator {
    name: &'static str,
    test: Test,
    negated: bool,
}

/// All operators.
const OPERATORS: [Operator; 21] = {
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

/// A condition's values, read as its operator compares them.
#[derive(Debug, Clone)]
enum Values {
    Texts(Comparison, Vec<String>),
    Numbers(Order, Vec<f64>),
    Times(Order, Vec<Timestamp>),
    Flags(Vec<bool>),
    Addresses(Vec<IpNet>),
}

impl Conditions {
    pub fn compile(element: Element<'_>, keys: &Keys) -> Result<Self, DocumentError> {
        let mut conditions = Vec::new();
        for (name, of_operator) in element.some_members()? {
            let (quantifier, name) = Quantifier::split(name);
            let operator = OPERATORS.iter().find(|known| known.name == name).ok_or_else(|| {
                let names = OPERATORS.map(|known| known.name).join(", ");
                of_operator.fault(format_args!(
                    "there is no such operator; known are {names}, each of them with ForAnyValue: or ForAllValues: before it too"
                ))
            })?;
            for (name, values) in of_operator.some_members()? {
                let key = keys.find(name).ok_or_else(|| {
                    values.fault(format_args!("no call to this service has that key; known are {}", keys.names()))
                })?;
                operator.suits(&key, values)?;
                let values = Values::compile(operator.test, values)?;
                conditions.push(Condition { quantifier, operator, key, values });
            }
        }
        Ok(Self(conditions))
    }

    /// The first that does not hold.
    pub fn unmet(&self, context: &Context<'_>) -> Option<&Condition> {
        self.0.iter().find(|condition| !condition.holds(context))
    }
}

impl Operator {
    /// Whether it can be asked about a key.
    fn suits(&self, key: &Key, at: Element<'_>) -> Result<(), DocumentError> {
        let (suits, kind) = match key {
            Key::SourceIp => (self.test == Test::Address, "an address: IpAddress or NotIpAddress"),
            Key::CurrentTime => (matches!(self.test, Test::Time(_)), "a time: an operator of dates"),
            Key::SecureTransport => (self.test == Test::Flag, "a boolean: Bool"),
            Key::PrincipalArn => (matches!(self.test, Test::Text(_)), "a text: an operator of strings"),
            Key::Claim(_) => (true, ""),
        };
        if suits { Ok(()) } else { Err(at.fault(format_args!("{} can't be asked of it; it is {kind}", self.name))) }
    }
}

impl Values {
    fn compile(test: Test, element: Element<'_>) -> Result<Self, DocumentError> {
        fn read<T>(element: Element<'_>, what: &str, of: impl Fn(&Json) -> Option<T>) -> Result<Vec<T>, DocumentError> {
            let read = |entry: Element<'_>| {
                let shown = || match entry.json {
                    Json::Text(text) => format!("{text:?}"),
                    other => other.kind().to_owned(),
                };
                of(entry.json).ok_or_else(|| entry.fault(format_args!("it is {}, not {what}", shown())))
            };
            element.entries()?.map(read).collect()
        }
        fn text<T>(of: impl Fn(&str) -> Option<T>) -> impl Fn(&Json) -> Option<T> {
            move |json| match json {
                Json::Text(text) => of(text),
                _ => None,
            }
        }
        Ok(match test {
            Test::Text(how) => Self::Texts(how, read(element, "a string", text(|text| Some(text.to_owned())))?),
            Test::Number(how) => {
                let of = |json: &Json| match json {
                    Json::Text(text) | Json::Number(text) => number(text),
                    _ => None,
                };
                Self::Numbers(how, read(element, "a number", of)?)
            }
            Test::Time(how) => {
                Self::Times(how, read(element, "a time like 2026-11-25T17:00:00+08:00", text(Timestamp::parse))?)
            }
            Test::Flag => {
                let of = |json: &Json| match json {
                    Json::Bool(value) => Some(*value),
                    Json::Text(text) => flag(text),
                    _ => None,
                };
                Self::Flags(read(element, "true or false", of)?)
            }
            Test::Address => Self::Addresses(read(element, "an address or a network like 10.0.0.0/8", text(network))?),
        })
    }
}

impl Condition {
    fn holds(&self, context: &Context<'_>) -> bool {
        let mut facts = context.facts(&self.key);
        let negated = self.operator.negated;
        match self.quantifier {
            Quantifier::Unsaid => facts.any(|fact| self.values.include(fact)) != negated,
            Quantifier::Any => facts.any(|fact| self.values.include(fact) != negated),
            Quantifier::All => facts.all(|fact| self.values.include(fact) != negated),
        }
    }

    /// What it asks, and what the call has, for somebody who wonders.
    pub fn explain(&self, context: &Context<'_>) -> String {
        let facts = context.facts(&self.key).map(|fact| fact.to_string()).collect::<Vec<_>>();
        match &facts[..] {
            [] => format!("{self} does not hold: it is not known"),
            facts => format!("{self} does not hold: it is {}", facts.join(" and ")),
        }
    }
}

impl Values {
    fn include(&self, fact: Fact<'_>) -> bool {
        match (self, fact) {
            (Self::Texts(how, values), Fact::Text(text)) => values.iter().any(|value| how.holds(text, value)),
            (Self::Numbers(how, values), Fact::Text(text)) => {
                number(text).is_some_and(|number| values.iter().any(|value| how.holds(&number, value)))
            }
            (Self::Times(how, values), Fact::Time(time)) => values.iter().any(|value| how.holds(&time, value)),
            (Self::Times(how, values), Fact::Text(text)) => {
                Timestamp::parse(text).is_some_and(|time| values.iter().any(|value| how.holds(&time, value)))
            }
            (Self::Flags(values), Fact::Flag(flag)) => values.contains(&flag),
            (Self::Flags(values), Fact::Text(text)) => flag(text).is_some_and(|flag| values.contains(&flag)),
            (Self::Addresses(values), Fact::Address(address)) => contain(values, address),
            (Self::Addresses(values), Fact::Text(text)) => {
                IpAddr::from_str(text).is_ok_and(|address| contain(values, address))
            }
            // `suits` has refused these.
            _ => false,
        }
    }
}

impl Comparison {
    fn holds(self, text: &str, value: &str) -> bool {
        match self {
            Self::Equal => text == value,
            Self::EqualIgnoringCase => lower(text).eq(lower(value)),
            Self::Like => matches(value, text, Case::Heeded),
        }
    }
}

fn lower(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

impl Order {
    fn holds<T: PartialOrd>(self, fact: &T, value: &T) -> bool {
        match self {
            Self::Equal => fact == value,
            Self::Less => fact < value,
            Self::AtMost => fact <= value,
            Self::Greater => fact > value,
            Self::AtLeast => fact >= value,
        }
    }
}

/// A decimal number, as a 64-bit float has it: the first 15 digits are exact.
fn number(text: &str) -> Option<f64> {
    let decimal = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    text.parse().ok().filter(|number: &f64| decimal && number.is_finite())
}

fn flag(text: &str) -> Option<bool> {
    let is = |word: &str| text.eq_ignore_ascii_case(word);
    if is("true") {
        Some(true)
    } else if is("false") {
        Some(false)
    } else {
        None
    }
}

/// An address, or a network in CIDR notation. An IPv4 address in IPv6 form is the IPv4 address (RFC 4291, section 2.5.5.2).
fn network(text: &str) -> Option<IpNet> {
    let one = || IpAddr::from_str(text).ok().map(|address| IpNet::from(address.to_canonical()));
    IpNet::from_str(text).ok().or_else(one)
}

fn contain(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition.{}{}.{}", self.quantifier.prefix(), self.operator.name, self.key)
    }
}
