//! An element of a policy document: its JSON, and where it stands, so that a fault can be told with its path.

use std::fmt;

use super::json::Json;

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}{}{problem}", if path.is_empty() { "" } else { ": " })]
pub struct DocumentError {
    /// Where the fault is, for example `Statement[1].Condition.IpAddress`; empty for the document as a whole.
    pub path: String,
    /// What is wrong there.
    pub problem: String,
}

/// A place in a document.
#[derive(Debug, Clone, Copy)]
enum At<'a> {
    Document,
    Member(&'a At<'a>, &'a str),
    Entry(&'a At<'a>, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => Ok(()),
            Self::Member(Self::Document, name) => f.write_str(name),
            Self::Member(object, name) => write!(f, "{object}.{name}"),
            Self::Entry(list, place) => write!(f, "{list}[{place}]"),
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    /// What it is.
    pub json: &'a Json,
    at: At<'a>,
}

impl<'a> Element<'a> {
    /// The document itself.
    pub fn document(json: &'a Json) -> Self {
        Self { json, at: At::Document }
    }

    /// What is wrong with it.
    pub fn fault(&self, problem: impl fmt::Display) -> DocumentError {
        DocumentError { path: self.at.to_string(), problem: problem.to_string() }
    }

    /// Its members; a fault if it is no object.
    fn members(&self) -> Result<impl Iterator<Item = (&'a str, Element<'_>)>, DocumentError> {
        match self.json {
            Json::Object(members) => Ok(members.iter().map(|(name, json)| {
                let member = Element { json, at: At::Member(&self.at, name) };
                (name.as_str(), member)
            })),
            other => Err(self.fault(format_args!("it is {}, not an object", other.kind()))),
        }
    }

    /// Its members; a fault if it has none.
    pub fn some_members(&self) -> Result<impl Iterator<Item = (&'a str, Element<'_>)>, DocumentError> {
        let mut members = self.members()?.peekable();
        if members.peek().is_none() { Err(self.fault("it is empty")) } else { Ok(members) }
    }

    /// Its members by these names, of which it has no others.
    pub fn members_named<const N: usize>(&self, names: [&str; N]) -> Result<[Option<Element<'_>>; N], DocumentError> {
        let mut found = [None; N];
        for (name, member) in self.members()? {
            match names.iter().position(|known| *known == name) {
                Some(place) => found[place] = Some(member),
                None => {
                    return Err(member.fault(format_args!("there is no such element; known are {}", names.join(", "))));
                }
            }
        }
        Ok(found)
    }

    /// A member that it needs.
    pub fn need<'m>(&self, name: &str, member: Option<Element<'m>>) -> Result<Element<'m>, DocumentError> {
        member.ok_or_else(|| self.fault(format_args!("it has no {name}")))
    }

    /// Its entries, if it is a list; itself, if it is one value. None is a fault.
    pub fn entries(&self) -> Result<impl Iterator<Item = Element<'_>>, DocumentError> {
        let (list, one): (&[Json], _) = match self.json {
            Json::List(list) if list.is_empty() => return Err(self.fault("it is empty")),
            Json::List(list) => (list, None),
            _ => (&[], Some(*self)),
        };
        let entry = |(place, json)| Element { json, at: At::Entry(&self.at, place) };
        Ok(list.iter().enumerate().map(entry).chain(one))
    }

    /// Its text.
    pub fn text(&self) -> Result<&'a str, DocumentError> {
        match self.json {
            Json::Text(text) => Ok(text),
            other => Err(self.fault(format_args!("it is {}, not a string", other.kind()))),
        }
    }
}
