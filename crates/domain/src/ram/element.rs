//! An element of a policy document: a JSON value with its path, which errors name.

use std::fmt;

use super::json::Json;

/// An error of a policy document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}{}{problem}", if path.is_empty() { "" } else { ": " })]
pub struct DocumentError {
    /// Path of the element, for example `Statement[1].Condition.IpAddress`; empty for the whole document.
    pub path: String,
    /// The problem with the element.
    pub problem: String,
}

/// The path of an element, as a linked list from the element to the document.
#[derive(Debug, Clone, Copy)]
enum Path<'a> {
    Document,
    Member(&'a Path<'a>, &'a str),
    Entry(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Document => Ok(()),
            Self::Member(Self::Document, name) => f.write_str(name),
            Self::Member(object, name) => write!(f, "{object}.{name}"),
            Self::Entry(list, index) => write!(f, "{list}[{index}]"),
        }
    }
}

/// A JSON value with its path.
#[derive(Debug, Clone, Copy)]
pub struct Element<'a> {
    /// The value.
    pub json: &'a Json,
    path: Path<'a>,
}

impl<'a> Element<'a> {
    /// Returns the root element of a document.
    pub fn document(json: &'a Json) -> Self {
        Self { json, path: Path::Document }
    }

    /// Creates an error of this element.
    pub fn error(&self, problem: impl fmt::Display) -> DocumentError {
        DocumentError { path: self.path.to_string(), problem: problem.to_string() }
    }

    /// Returns the members of an object; an error for other values.
    fn members(&self) -> Result<impl Iterator<Item = (&'a str, Element<'_>)>, DocumentError> {
        match self.json {
            Json::Object(members) => Ok(members.iter().map(|(name, json)| {
                let member = Element { json, path: Path::Member(&self.path, name) };
                (name.as_str(), member)
            })),
            other => Err(self.error(format_args!("it is {}, not an object", other.kind()))),
        }
    }

    /// Returns the members of an object; an error for an empty object.
    pub fn some_members(&self) -> Result<impl Iterator<Item = (&'a str, Element<'_>)>, DocumentError> {
        let mut members = self.members()?.peekable();
        if members.peek().is_none() { Err(self.error("it is empty")) } else { Ok(members) }
    }

    /// Returns the members with these names; an error if there are others.
    pub fn members_named<const N: usize>(&self, names: [&str; N]) -> Result<[Option<Element<'_>>; N], DocumentError> {
        let mut members_by_name = [None; N];
        for (name, member) in self.members()? {
            match names.iter().position(|allowed| *allowed == name) {
                Some(index) => members_by_name[index] = Some(member),
                None => {
                    return Err(
                        member.error(format_args!("there is no such element; supported are {}", names.join(", ")))
                    );
                }
            }
        }
        Ok(members_by_name)
    }

    /// Returns a required member.
    pub fn require<'m>(&self, name: &str, member: Option<Element<'m>>) -> Result<Element<'m>, DocumentError> {
        member.ok_or_else(|| self.error(format_args!("it has no {name}")))
    }

    /// Returns the entries of a list; an error for an empty list. A single value counts as a list of one entry.
    pub fn entries(&self) -> Result<impl Iterator<Item = Element<'_>>, DocumentError> {
        let (list, one): (&[Json], _) = match self.json {
            Json::List(list) if list.is_empty() => return Err(self.error("it is empty")),
            Json::List(list) => (list, None),
            _ => (&[], Some(*self)),
        };
        let entry = |(index, json)| Element { json, path: Path::Entry(&self.path, index) };
        Ok(list.iter().enumerate().map(entry).chain(one))
    }

    /// Returns a string; an error for other values.
    pub fn text(&self) -> Result<&'a str, DocumentError> {
        match self.json {
            Json::Text(text) => Ok(text),
            other => Err(self.error(format_args!("it is {}, not a string", other.kind()))),
        }
    }
}
