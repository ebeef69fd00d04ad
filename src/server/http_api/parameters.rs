//! Parameters of an RPC-style request: in the query, in a form, or in both.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    str::FromStr,
};

use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::{
    contract::{ApiError, v1::ErrorCode},
    domain::ForeignText,
};

/// Maximum number of parameters of a request.
const MAX_PARAMETERS: usize = 512;

/// Parameters of the protocol, allowed in every request.
const COMMON: [&str; 11] = [
    "AccessKeyId",
    "Action",
    "Format",
    "RegionId",
    "SecurityToken",
    "Signature",
    "SignatureMethod",
    "SignatureNonce",
    "SignatureVersion",
    "Timestamp",
    "Version",
];

/// Parameters that have not been taken yet, by name.
#[derive(Debug, Default)]
pub struct Parameters(BTreeMap<String, String>);

/// Returns `InvalidParams` for a parameter.
pub fn invalid(name: &str, problem: &str) -> ApiError {
    ApiError::new(ErrorCode::InvalidParams, format!("{}: {problem}", ForeignText::value(name)))
}

impl Parameters {
    /// Parses the query and the form.
    pub fn parse(encoded: [&[u8]; 2]) -> Result<Self, ApiError> {
        let mut parameters = BTreeMap::new();
        for (name, value) in encoded.into_iter().flat_map(form_urlencoded::parse) {
            if parameters.len() == MAX_PARAMETERS {
                return Err(invalid("the request", &format!("it has more than {MAX_PARAMETERS} parameters")));
            }
            match parameters.entry(name.into_owned()) {
                Entry::Vacant(entry) => entry.insert(value.into_owned()),
                Entry::Occupied(entry) => return Err(invalid(entry.key(), "it is given twice")),
            };
        }
        Ok(Self(parameters))
    }

    /// Takes a parameter.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// Takes a string, which is empty if the parameter is missing.
    pub fn text(&mut self, name: &str) -> String {
        self.take(name).unwrap_or_default()
    }

    /// Takes a number, which is `default` if the parameter is missing.
    pub fn number(&mut self, name: &str, default: i32) -> Result<i32, ApiError> {
        match self.take(name) {
            None => Ok(default),
            Some(text) => i32::from_str(&text)
                .map_err(|_| invalid(name, &format!("{:?} is not a number", ForeignText::value(text)))),
        }
    }

    /// Takes a list of strings: a JSON array in one parameter, or `NAME.1`, `NAME.2` and so on.
    pub fn list(&mut self, name: &str) -> Result<Vec<String>, ApiError> {
        let mut numbered = Vec::new();
        for (key, value) in self.take_children(name) {
            let index = key.parse::<u32>();
            let index = index.map_err(|_| invalid(&format!("{name}.{key}"), "the index is not a number"))?;
            numbered.push((index, value));
        }
        numbered.sort_unstable();
        let Some(text) = self.take(name) else { return Ok(numbered.into_iter().map(|(_, value)| value).collect()) };
        if !numbered.is_empty() {
            return Err(invalid(name, &format!("it conflicts with {name}.N; give one of them")));
        }
        serde_json::from_str(&text).map_err(|_| {
            let text = ForeignText::value(text);
            let expected = format!("expected one such as [\"cn-shanghai\"], or {name}.1");
            invalid(name, &format!("{text:?} is not a JSON array of strings; {expected}"))
        })
    }

    /// Takes an object: as JSON in one parameter, or `NAME.KEY` for each of its keys.
    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ApiError> {
        let dotted: Map<String, Value> =
            self.take_children(name).into_iter().map(|(k, v)| (k, Value::String(v))).collect();
        match self.take(name) {
            None => Ok(Some(dotted).filter(|dotted| !dotted.is_empty())),
            Some(_) if !dotted.is_empty() => {
                Err(invalid(name, &format!("it conflicts with {name}.KEY; give one of them")))
            }
            Some(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|_| invalid(name, &format!("{:?} is not a JSON object", ForeignText::value(text)))),
        }
    }

    /// Rejects parameters that the action has not taken.
    pub fn finish(mut self, action: &str) -> Result<(), ApiError> {
        if let Some(format) = self.take("Format").filter(|format| !format.eq_ignore_ascii_case("json")) {
            return Err(invalid("Format", &format!("{:?} is not supported; use JSON", ForeignText::value(format))));
        }
        match self.0.keys().find(|name| !COMMON.contains(&name.as_str())) {
            Some(name) => Err(invalid(name, &format!("{action} has no such parameter"))),
            None => Ok(()),
        }
    }

    /// Whether a parameter is left.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Takes all parameters whose name begins with `name` and a dot.
    fn take_children(&mut self, name: &str) -> Vec<(String, String)> {
        let child = |key: &str| key.strip_prefix(name)?.strip_prefix('.').map(str::to_owned);
        let taken = self.0.extract_if(.., |key, _| child(key).is_some());
        taken.filter_map(|(key, value)| Some((child(&key)?, value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Parameters;

    fn parse(query: &str) -> Parameters {
        Parameters::parse([query.as_bytes(), b""]).expect("parameters")
    }

    #[test]
    fn lists_are_parsed_in_both_forms_and_in_order() {
        for query in ["L=%5B%22a%22,%22b+c%22%5D", "L.2=b%20c&L.1=a", "L.10=b+c&L.9=a"] {
            assert_eq!(parse(query).list("L").expect("a list"), ["a", "b c"], "{query}");
        }
        assert_eq!(parse("").list("L").expect("a list"), Vec::<String>::new());
        for bad in ["L=a", "L=%7B%7D", "L=%5B1%5D", "L.x=a", "L=%5B%5D&L.1=a"] {
            assert!(parse(bad).list("L").is_err(), "{bad}");
        }
    }

    #[test]
    fn objects_are_parsed_in_both_forms() {
        for query in ["O=%7B%22K%22:%22v%22%7D", "O.K=v"] {
            let object = parse(query).object("O").expect("an object").expect("one");
            assert_eq!(object["K"], "v", "{query}");
        }
        assert!(parse("").object("O").expect("none").is_none());
        for bad in ["O=v", "O=%5B%5D", "O=%7B%7D&O.K=v"] {
            assert!(parse(bad).object("O").is_err(), "{bad}");
        }
    }

    #[test]
    fn unknown_parameters_are_rejected() {
        assert!(parse("Action=X&Version=1&Format=JSON&Timestamp=t").finish("X").is_ok());
        assert!(parse("Format=XML").finish("X").is_err());
        assert!(parse("Colour=red").finish("X").is_err());
        assert!(Parameters::parse([b"A=1", b"A=2"]).is_err());
        assert!(parse("N=x").number("N", 1).is_err());
    }
}
