//! The parameters of a request in the RPC style: in the query, in a form, or in both.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    str::FromStr,
};

use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::{
    contract::{Failure, v1::ErrorCode},
    domain::ForeignText,
};

/// The most parameters that a request may have.
const MAX_PARAMETERS: usize = 512;

/// Parameters that say how a request is made, and not what it asks for.
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

/// Parameters that have not been read yet, by their names.
#[derive(Debug, Default)]
pub struct Parameters(BTreeMap<String, String>);

/// `InvalidParams` about a parameter.
pub fn invalid(name: &str, problem: &str) -> Failure {
    Failure::new(ErrorCode::InvalidParams, format!("{}: {problem}", ForeignText::value(name)))
}

impl Parameters {
    /// Reads them all.
    pub fn read(encoded: [&[u8]; 2]) -> Result<Self, Failure> {
        let mut read = BTreeMap::new();
        for (name, value) in encoded.into_iter().flat_map(form_urlencoded::parse) {
            if read.len() == MAX_PARAMETERS {
                return Err(invalid("the request", &format!("it has more than {MAX_PARAMETERS} parameters")));
            }
            match read.entry(name.into_owned()) {
                Entry::Vacant(place) => place.insert(value.into_owned()),
                Entry::Occupied(there) => return Err(invalid(there.key(), "it is there twice")),
            };
        }
        Ok(Self(read))
    }

    /// The value of one; nothing if it is not there.
    pub fn maybe(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    /// The value of one; empty if it is not there.
    pub fn text(&mut self, name: &str) -> String {
        self.maybe(name).unwrap_or_default()
    }

    /// A number, or what it is if it is not there.
    pub fn number(&mut self, name: &str, otherwise: i32) -> Result<i32, Failure> {
        match self.maybe(name) {
            None => Ok(otherwise),
            Some(text) => {
                i32::from_str(&text).map_err(|_| invalid(name, &format!("{:?} is no number", ForeignText::value(text))))
            }
        }
    }

    /// A list: a JSON array of texts in one parameter, or `NAME.1`, `NAME.2` and so on.
    pub fn list(&mut self, name: &str) -> Result<Vec<String>, Failure> {
        let mut numbered = Vec::new();
        for (key, value) in self.below(name) {
            let place =
                key.parse::<u32>().map_err(|_| invalid(&format!("{name}.{key}"), "it is no place in a list"))?;
            numbered.push((place, value));
        }
        numbered.sort_unstable();
        let Some(text) = self.maybe(name) else { return Ok(numbered.into_iter().map(|(_, value)| value).collect()) };
        if !numbered.is_empty() {
            return Err(invalid(name, &format!("it is there as {name}.N as well")));
        }
        serde_json::from_str(&text).map_err(|_| {
            invalid(
                name,
                &format!(
                    "{:?} is no JSON array of texts, as [\"cn-shanghai\"] is; or give {name}.1",
                    ForeignText::value(text)
                ),
            )
        })
    }

    /// An object: in JSON in one parameter, or `NAME.KEY` for each of its keys.
    pub fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, Failure> {
        let dotted: Map<String, Value> = self.below(name).into_iter().map(|(k, v)| (k, Value::String(v))).collect();
        match self.maybe(name) {
            None => Ok(Some(dotted).filter(|dotted| !dotted.is_empty())),
            Some(_) if !dotted.is_empty() => Err(invalid(name, &format!("it is there as {name}.KEY as well"))),
            Some(text) => serde_json::from_str(&text)
                .map(Some)
                .map_err(|_| invalid(name, &format!("{:?} is no JSON object", ForeignText::value(text)))),
        }
    }

    /// Refuses what nobody has read.
    pub fn finish(mut self, action: &str) -> Result<(), Failure> {
        if let Some(format) = self.maybe("Format").filter(|format| !format.eq_ignore_ascii_case("json")) {
            return Err(invalid("Format", &format!("{:?} is not supported, only JSON is", ForeignText::value(format))));
        }
        match self.0.keys().find(|name| !COMMON.contains(&name.as_str())) {
            Some(name) => Err(invalid(name, &format!("it is no parameter of {action}"))),
            None => Ok(()),
        }
    }

    /// Whether it is there.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Takes what begins with a name and a dot.
    fn below(&mut self, name: &str) -> Vec<(String, String)> {
        let part = |key: &str| key.strip_prefix(name)?.strip_prefix('.').map(str::to_owned);
        let taken = self.0.extract_if(.., |key, _| part(key).is_some());
        taken.filter_map(|(key, value)| Some((part(&key)?, value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Parameters;

    fn read(query: &str) -> Parameters {
        Parameters::read([query.as_bytes(), b""]).expect("parameters")
    }

    #[test]
    fn lists_are_read_in_both_forms_and_in_order() {
        for query in ["L=%5B%22a%22,%22b+c%22%5D", "L.2=b%20c&L.1=a", "L.10=b+c&L.9=a"] {
            assert_eq!(read(query).list("L").expect("a list"), ["a", "b c"], "{query}");
        }
        assert_eq!(read("").list("L").expect("a list"), Vec::<String>::new());
        for bad in ["L=a", "L=%7B%7D", "L=%5B1%5D", "L.x=a", "L=%5B%5D&L.1=a"] {
            assert!(read(bad).list("L").is_err(), "{bad}");
        }
    }

    #[test]
    fn objects_are_read_in_both_forms() {
        for query in ["O=%7B%22K%22:%22v%22%7D", "O.K=v"] {
            let object = read(query).object("O").expect("an object").expect("one");
            assert_eq!(object["K"], "v", "{query}");
        }
        assert!(read("").object("O").expect("none").is_none());
        for bad in ["O=v", "O=%5B%5D", "O=%7B%7D&O.K=v"] {
            assert!(read(bad).object("O").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_nobody_reads_is_refused_and_how_it_is_made_is_not() {
        assert!(read("Action=X&Version=1&Format=JSON&Timestamp=t").finish("X").is_ok());
        assert!(read("Format=XML").finish("X").is_err());
        assert!(read("Colour=red").finish("X").is_err());
        assert!(Parameters::read([b"A=1", b"A=2"]).is_err());
        assert!(read("N=x").number("N", 1).is_err());
    }
}
