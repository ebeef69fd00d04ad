//! Statements of policy documents, and whether they apply to a call.

use super::{
    ALL_RESOURCES, Request,
    condition::{Condition, Conditions},
    element::{DocumentError, Element},
    pattern::{Case, matches},
};

/// Effect of a statement on the calls that it applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Allows the call, unless another statement denies it.
    Allow,
    /// Denies the call.
    Deny,
}

/// A compiled statement.
#[derive(Debug, Clone)]
pub struct Statement {
    pub effect: Effect,
    pub actions: Actions,
    pub resources: Resources,
    pub conditions: Conditions,
}

/// Whether a statement applies to a call, or the first element that does not match.
#[derive(Debug, Clone, Copy)]
pub enum Applicability<'a> {
    Applies,
    OtherAction,
    OtherResource,
    Unmet(&'a Condition),
}

impl Statement {
    /// Returns whether the statement applies to a call. Does not allocate.
    pub fn applicability(&self, request: &Request<'_>) -> Applicability<'_> {
        if !self.actions.include(request.action) {
            return Applicability::OtherAction;
        }
        if !self.resources.cover(request.resource) {
            return Applicability::OtherResource;
        }
        self.conditions.unmet(request.context).map_or(Applicability::Applies, Applicability::Unmet)
    }
}

/// `Action` or `NotAction`: patterns of `SERVICE:NAME`; RAM ignores their case.
#[derive(Debug, Clone)]
pub struct Actions {
    patterns: Vec<String>,
    /// Whether the element is `NotAction`.
    inverted: bool,
}

impl Actions {
    pub fn compile(element: Element<'_>, inverted: bool) -> Result<Self, DocumentError> {
        let parse = |entry: Element<'_>| {
            let text = entry.text()?;
            let parts = text.split_once(':').filter(|(service, name)| !service.is_empty() && !name.is_empty());
            if is_all(text) || parts.is_some_and(|(_, name)| !name.contains(':')) {
                return Ok(text.to_owned());
            }
            Err(entry.error(format_args!("{text:?} is neither * nor of the form SERVICE:ACTION, as in ehpc:GetImage")))
        };
        Ok(Self { patterns: element.entries()?.map(parse).collect::<Result<_, _>>()?, inverted })
    }

    fn include(&self, action: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, action, Case::Insensitive)) != self.inverted
    }
}

/// `Resource`: `*`, or patterns of `acs:SERVICE:REGION:ACCOUNT:RESOURCE`, which are case-sensitive.
#[derive(Debug, Clone)]
pub struct Resources(Vec<Resource>);

#[derive(Debug, Clone)]
enum Resource {
    All,
    /// The four parts after `acs:`. A `*` matches within its part only.
    Named([String; 4]),
}

/// Prefix of resource names.
const PREFIX: &str = "acs:";

fn parts(text: &str) -> Option<[&str; 4]> {
    let mut parts = text.strip_prefix(PREFIX)?.splitn(4, ':');
    let mut next = || parts.next();
    Some([next()?, next()?, next()?, next()?])
}

impl Resources {
    pub fn compile(element: Element<'_>) -> Result<Self, DocumentError> {
        let parse = |entry: Element<'_>| {
            let text = entry.text()?;
            if is_all(text) {
                return Ok(Resource::All);
            }
            let named = parts(text).filter(|[service, .., resource]| !service.is_empty() && !resource.is_empty());
            named.map(|parts| Resource::Named(parts.map(str::to_owned))).ok_or_else(|| {
                entry.error(format_args!("{text:?} is neither * nor of the form acs:ehpc:REGION:ACCOUNT:app/ID"))
            })
        };
        Ok(Self(element.entries()?.map(parse).collect::<Result<_, _>>()?))
    }

    /// Whether a resource matches. An action on all resources matches only `*`; a narrower pattern has no effect on it.
    fn cover(&self, resource: &str) -> bool {
        let requested = if resource == ALL_RESOURCES { None } else { parts(resource) };
        self.0.iter().any(|pattern| match (pattern, &requested) {
            (Resource::All, _) => true,
            (Resource::Named(patterns), Some(requested)) => {
                patterns.iter().zip(requested).all(|(pattern, part)| matches(pattern, part, Case::Sensitive))
            }
            (Resource::Named(_), None) => false,
        })
    }
}

/// Whether a pattern consists of one or more `*`.
fn is_all(pattern: &str) -> bool {
    !pattern.is_empty() && pattern.bytes().all(|b| b == b'*')
}
