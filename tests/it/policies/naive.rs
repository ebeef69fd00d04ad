//! A reference implementation of RAM's rules, written from their description. It is as simple as possible, interprets
//! the JSON for every call, and shares no code with the service's evaluator.

use std::net::IpAddr;

use serde_json::Value;

/// The decision on a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Allowed,
    Denied,
    NotAllowed,
}

/// A call whose values are all text.
#[derive(Debug, Clone)]
pub struct Call {
    pub action: String,
    pub resource: String,
    /// Pairs of a condition key and a value. A key with several values occurs repeatedly.
    pub context: Vec<(String, String)>,
}

pub fn decide(documents: &[Value], call: &Call) -> Outcome {
    let statements: Vec<&Value> = documents.iter().flat_map(|d| list(&d["Statement"])).collect();
    let applies = |effect: &str| statements.iter().any(|s| s["Effect"] == effect && matches_call(s, call));
    if applies("Deny") {
        Outcome::Denied
    } else if applies("Allow") {
        Outcome::Allowed
    } else {
        Outcome::NotAllowed
    }
}

fn list(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(values) => values.iter().collect(),
        one => vec![one],
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn matches_call(statement: &Value, call: &Call) -> bool {
    let named =
        |patterns: &Value| list(patterns).iter().any(|p| glob(&text(p).to_lowercase(), &call.action.to_lowercase()));
    let action = match (&statement["Action"], &statement["NotAction"]) {
        (these, Value::Null) => named(these),
        (_, others) => !named(others),
    };
    action
        && list(&statement["Resource"]).iter().any(|pattern| covers(&text(pattern), &call.resource))
        && conditions(&statement["Condition"], call)
}

fn covers(pattern: &str, resource: &str) -> bool {
    if pattern.chars().all(|c| c == '*') {
        return true;
    }
    // A pattern for specific resources does not match an action on all resources.
    if resource == "*" {
        return false;
    }
    let parts = |text: &str| text.splitn(5, ':').map(str::to_owned).collect::<Vec<_>>();
    let (pattern, resource) = (parts(pattern), parts(resource));
    pattern.len() == resource.len() && pattern.iter().zip(&resource).all(|(p, r)| glob(p, r))
}

fn conditions(conditions: &Value, call: &Call) -> bool {
    let Value::Object(operators) = conditions else { return true };
    operators.iter().all(|(operator, keys)| {
        let keys = keys.as_object().expect("an object of keys");
        keys.iter().all(|(key, values)| {
            let facts = call.context.iter().filter(|(name, _)| name.to_lowercase() == key.to_lowercase());
            let (set, operator) = operator.split_once(':').unwrap_or(("", operator));
            let negated = operator.contains("Not");
            let positive = operator.replace("Not", "");
            let mut each = facts.map(|(_, fact)| list(values).iter().any(|v| holds(&positive, fact, &text(v))));
            match set {
                "" => each.any(|holds| holds) != negated,
                "ForAnyValue" => each.any(|holds| holds != negated),
                "ForAllValues" => each.all(|holds| holds != negated),
                other => panic!("{other}"),
            }
        })
    })
}

fn holds(operator: &str, fact: &str, value: &str) -> bool {
    let (family, how) = match operator {
        "StringEquals" => return fact == value,
        "StringEqualsIgnoreCase" => return fact.to_lowercase() == value.to_lowercase(),
        "StringLike" => return glob(value, fact),
        "Bool" => return fact.eq_ignore_ascii_case(value) && ["true", "false"].contains(&fact.to_lowercase().as_str()),
        "IpAddress" => return in_network(fact, value),
        other if other.starts_with("Numeric") => other.split_at("Numeric".len()),
        other => other.split_at("Date".len()),
    };
    let (fact, value) = if family == "Numeric" {
        match (fact.parse::<f64>(), value.parse::<f64>()) {
            (Ok(fact), Ok(value)) => (fact, value),
            _ => return false,
        }
    } else {
        match (seconds(fact), seconds(value)) {
            (Some(fact), Some(value)) => (fact, value),
            _ => return false,
        }
    };
    match how {
        "Equals" => fact.total_cmp(&value).is_eq() || (fact - value).abs() <= 0.0,
        "LessThan" => fact < value,
        "LessThanEquals" => fact <= value,
        "GreaterThan" => fact > value,
        "GreaterThanEquals" => fact >= value,
        other => panic!("{other}"),
    }
}

/// Returns whether a pattern matches a text. `*` matches any sequence of characters, and `?` matches any single
/// character.
fn glob(pattern: &str, text: &str) -> bool {
    fn go(pattern: &[char], text: &[char]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some(('*', rest)) => (0..=text.len()).any(|n| go(rest, &text[n..])),
            Some(('?', rest)) => !text.is_empty() && go(rest, &text[1..]),
            Some((c, rest)) => text.first() == Some(c) && go(rest, &text[1..]),
        }
    }
    go(&pattern.chars().collect::<Vec<_>>(), &text.chars().collect::<Vec<_>>())
}

/// Returns whether an address is in a network, comparing bit by bit.
fn in_network(address: &str, network: &str) -> bool {
    let bits = |text: &str| {
        let address: IpAddr = text.parse().ok()?;
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or_else(|| v6.octets().to_vec(), |v4| v4.octets().to_vec()),
        };
        Some(bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect::<Vec<u8>>())
    };
    let (base, length) = match network.split_once('/') {
        Some((base, length)) => (bits(base), length.parse().ok()),
        None => (bits(network), None),
    };
    match (bits(address), base) {
        (Some(address), Some(base)) if address.len() == base.len() => {
            let length = length.unwrap_or(base.len());
            address[..length] == base[..length]
        }
        _ => false,
    }
}

/// Converts `YYYY-MM-DDTHH:MM:SS` with `Z` or an offset to seconds since the epoch, counting day by day.
fn seconds(text: &str) -> Option<f64> {
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of = |month: i64| match month {
        2 => 28 + i64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let years: i64 = (1970..year).map(|year| 365 + i64::from(leap(year))).sum();
    let days = years + (1..month).map(days_of).sum::<i64>() + day - 1;
    let offset = match text.get(19..)? {
        "Z" => 0,
        offset => {
            let sign = if offset.starts_with('-') { -1 } else { 1 };
            sign * (offset.get(1..3)?.parse::<i64>().ok()? * 60 + offset.get(4..6)?.parse::<i64>().ok()?)
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "these are small")]
    Some((((days * 24 + hour) * 60 + minute - offset) * 60 + second) as f64)
}
