//! The values of a condition, and how they match the values of a call.

use std::{net::IpAddr, str::FromStr as _};

use ipnet::IpNet;

use super::{
    context::ContextValue,
    element::{DocumentError, Element},
    json::Json,
    operator::{Comparison, Order, Test},
};
use crate::Timestamp;

/// The values of a condition, parsed as the type that its operator compares.
#[derive(Debug, Clone)]
pub enum Values {
    Texts(Comparison, Vec<String>),
    Numbers(Order, Vec<f64>),
    Times(Order, Vec<Timestamp>),
    Flags(Vec<bool>),
    Addresses(Vec<IpNet>),
}

impl Values {
    pub fn compile(test: Test, element: Element<'_>) -> Result<Self, DocumentError> {
        fn parse_all<T>(
            element: Element<'_>,
            expected: &str,
            parse: impl Fn(&Json) -> Option<T>,
        ) -> Result<Vec<T>, DocumentError> {
            let parse_one = |entry: Element<'_>| {
                let actual = || match entry.json {
                    Json::Text(text) => format!("{text:?}"),
                    other => other.kind().to_owned(),
                };
                parse(entry.json).ok_or_else(|| entry.error(format_args!("it is {}, not {expected}", actual())))
            };
            element.entries()?.map(parse_one).collect()
        }
        fn text<T>(parse: impl Fn(&str) -> Option<T>) -> impl Fn(&Json) -> Option<T> {
            move |json| match json {
                Json::Text(text) => parse(text),
                _ => None,
            }
        }
        Ok(match test {
            Test::Text(comparison) => {
                Self::Texts(comparison, parse_all(element, "a string", text(|text| Some(text.to_owned())))?)
            }
            Test::Number(comparison) => {
                let parse = |json: &Json| match json {
                    Json::Text(text) | Json::Number(text) => number(text),
                    _ => None,
                };
                Self::Numbers(comparison, parse_all(element, "a number", parse)?)
            }
            Test::Time(comparison) => Self::Times(
                comparison,
                parse_all(element, "a time like 2026-11-25T17:00:00+08:00", text(Timestamp::parse))?,
            ),
            Test::Flag => {
                let parse = |json: &Json| match json {
                    Json::Bool(value) => Some(*value),
                    Json::Text(text) => flag(text),
                    _ => None,
                };
                Self::Flags(parse_all(element, "true or false", parse)?)
            }
            Test::Address => {
                Self::Addresses(parse_all(element, "an address or a network like 10.0.0.0/8", text(network))?)
            }
        })
    }

    /// Whether a value of the call matches any of the condition's values.
    pub fn matches(&self, value: ContextValue<'_>) -> bool {
        match (self, value) {
            (Self::Texts(comparison, values), ContextValue::Text(text)) => {
                values.iter().any(|value| comparison.holds(text, value))
            }
            (Self::Numbers(comparison, values), ContextValue::Text(text)) => {
                number(text).is_some_and(|number| values.iter().any(|value| comparison.holds(&number, value)))
            }
            (Self::Times(comparison, values), ContextValue::Time(time)) => {
                values.iter().any(|value| comparison.holds(&time, value))
            }
            (Self::Times(comparison, values), ContextValue::Text(text)) => {
                Timestamp::parse(text).is_some_and(|time| values.iter().any(|value| comparison.holds(&time, value)))
            }
            (Self::Flags(values), ContextValue::Flag(flag)) => values.contains(&flag),
            (Self::Flags(values), ContextValue::Text(text)) => flag(text).is_some_and(|flag| values.contains(&flag)),
            (Self::Addresses(values), ContextValue::Address(address)) => contains_address(values, address),
            (Self::Addresses(values), ContextValue::Text(text)) => {
                IpAddr::from_str(text).is_ok_and(|address| contains_address(values, address))
            }
            // `check_key` has rejected all other combinations.
            _ => false,
        }
    }
}

/// Parses a decimal number as a 64-bit float, which is exact for up to 15 digits.
fn number(text: &str) -> Option<f64> {
    let is_decimal = text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    text.parse().ok().filter(|number: &f64| is_decimal && number.is_finite())
}

/// Parses `true` or `false`; case is ignored.
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

/// Parses an address, or a network in CIDR notation. IPv4-mapped IPv6 addresses are IPv4 addresses (RFC 4291, section
/// 2.5.5.2).
fn network(text: &str) -> Option<IpNet> {
    let address = || IpAddr::from_str(text).ok().map(|address| IpNet::from(address.to_canonical()));
    IpNet::from_str(text).ok().or_else(address)
}

fn contains_address(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}
