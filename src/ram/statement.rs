//! Statements: what they are about, and whether that includes a call.

use super::{
    ALL_RESOURCES, Request,
    condition::{Condition, Conditions},
    element::{DocumentError, Element},
    pattern::{Case, matches},
};

/// What a statement does where it applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It allows.
    Allow,
    /// It denies, whatever allows.
    Deny,
}

/// A statement, compiled.
#[derive(Debug, Clone)]
pub struct Statement {
    pub effect: Effect,
    pub actions: Actions,
    pub resources: Resources,
    pub conditions: Conditions,
}

/// Whether a statement applies to a call, or what it fails for first.
#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    Applies,
    OtherAction,
    OtherResource,
    Unmet(&'a Condition),
}

impl Statement {
    /// Judges a call. Needs no memory.
    pub fn judge(&self, request: &Request<'_>) -> Verdict<'_> {
        if !self.actions.include(request.action) {
            return Verdict::OtherAction;
        }
        if !self.resources.cover(request.resource) {
            return Verdict::OtherResource;
        }
        self.conditions.unmet(request.context).map_or(Verdict::Applies, Verdict::Unmet)
    }
}

/// `Action` or `NotAction`: patterns of `SERVICE:NAME`, whose case RAM takes no notice of.
#[derive(Debug, Clone)]
pub struct Actions {
    patterns: Vec<String>,
    /// Whether these are the ones that are not meant.
    inverted: bool,
}

impl Actions {
    pub fn compile(element: Element<'_>, inverted: bool) -> Result<Self, DocumentError> {
        let read = |entry: Element<'_>| {
            let text = entry.text()?;
            let parts = text.split_once(':').filter(|(service, name)| !service.is_empty() && !name.is_empty());
            if is_all(text) || parts.is_some_and(|(_, name)| !name.contains(':')) {
                return Ok(text.to_owned());
            }
            Err(entry.fault(format_args!("{text:?} is neither * nor of the form SERVICE:ACTION, as in ehpc:GetImage")))
        };
        Ok(Self { patterns: element.entries()?.map(read).collect::<Result<_, _>>()?, inverted })
    }

    fn include(&self, action: &str) -> bool {
        self.patterns.iter().any(|pattern| matches(pattern, action, Case::Ignored)) != self.inverted
    }
}

/// `Resource`: all, or patterns of `acs:SERVICE:REGION:ACCOUNT:RESOURCE`, whose case matters.
#[derive(Debug, Clone)]
pub struct Resources(Vec<Resource>);

#[derive(Debug, Clone)]
enum Resource {
    All,
    /// The part after `acs:`, in its four parts. No `*` reaches beyond its own.
    Named([String; 4]),
}

/// What stands before the four parts.
const PREFIX: &str = "acs:";

fn parts(text: &str) -> Option<[&str; 4]> {
    let mut parts = text.strip_prefix(PREFIX)?.splitn(4, ':');
    let mut next = || parts.next();
    Some([next()?, next()?, next()?, next()?])
}

impl Resources {
    pub fn compile(element: Element<'_>) -> Result<Self, DocumentError> {
        let read = |entry: Element<'_>| {
            let text = entry.text()?;
            if is_all(text) {
                return Ok(Resource::All);
            }
            let named = parts(text).filter(|[service, .., resource]| !service.is_empty() && !resource.is_empty());
            named.map(|parts| Resource::Named(parts.map(str::to_owned))).ok_or_else(|| {
                entry.fault(format_args!("{text:?} is neither * nor of the form acs:ehpc:REGION:ACCOUNT:app/ID"))
            })
        };
        Ok(Self(element.entries()?.map(read).collect::<Result<_, _>>()?))
    }

    /// An action on all resources is covered by `*` alone: a narrower pattern neither grants nor denies it.
    fn cover(&self, resource: &str) -> bool {
        let asked = if resource == ALL_RESOURCES { None } else { parts(resource) };
        self.0.iter().any(|known| match (known, &asked) {
            (Resource::All, _) => true,
            (Resource::Named(patterns), Some(asked)) => {
                patterns.iter().zip(asked).all(|(pattern, part)| matches(pattern, part, Case::Heeded))
            }
            (Resource::Named(_), None) => false,
        })
    }
}

/// Whether a pattern is `*`, however often that is written.
fn is_all(pattern: &str) -> bool {
    !pattern.is_empty() && pattern.bytes().all(|b| b == b'*')
}
