//! The decision: an explicit Deny wins, then an Allow, else it is denied (RAM, "How RAM evaluates policies").

use std::{fmt, sync::Arc};

use super::{
    Document, Request,
    statement::{Effect, Verdict},
};

/// A named policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// What it says.
    pub document: Document,
}

/// What a policy is attached to, of a principal that it is a policy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// The principal itself.
    Principal,
    /// A group that it is in.
    Group(Arc<str>),
}

/// A policy, and why a principal has it.
#[derive(Debug, Clone)]
pub struct Attached {
    /// The policy.
    pub policy: Arc<Policy>,
    /// What it is attached to.
    pub to: Attachment,
}

/// The statement that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementRef {
    /// The policy's name.
    pub policy: Arc<str>,
    /// What the policy is attached to.
    pub attached: Attachment,
    /// The statement's place in it.
    pub statement: usize,
}

/// Whether a call is allowed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// A statement allows it and none denies it.
    Allowed(StatementRef),
    /// A statement denies it.
    Denied(StatementRef),
    /// No statement applies.
    NotAllowed,
}

impl Decision {
    /// Whether the call is allowed.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }

    /// The statement that decided.
    #[must_use]
    pub fn statement(&self) -> Option<&StatementRef> {
        match self {
            Self::Allowed(statement) | Self::Denied(statement) => Some(statement),
            Self::NotAllowed => None,
        }
    }
}

impl fmt::Display for StatementRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Statement[{}] of {}", self.statement, self.policy)?;
        match &self.attached {
            Attachment::Principal => Ok(()),
            Attachment::Group(group) => write!(f, " (group {group})"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed(by) => write!(f, "{by} allows it"),
            Self::Denied(by) => write!(f, "{by} denies it"),
            Self::NotAllowed => f.write_str("no statement allows it"),
        }
    }
}

/// What a statement says about a call, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The statement.
    pub statement: StatementRef,
    /// What it does where it applies.
    pub effect: Effect,
    /// Why it does not apply; nothing if it does.
    pub unless: Option<String>,
}

/// The policies of a principal.
#[derive(Debug, Clone, Default)]
pub struct Policies(pub Vec<Attached>);

impl Policies {
    /// Decides about a call. Needs no memory.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let mut allowed = None;
        for attached in &self.0 {
            for (place, statement) in attached.policy.document.statements.iter().enumerate() {
                // An Allow after the first changes nothing.
                if statement.effect == Effect::Allow && allowed.is_some() {
                    continue;
                }
                if let Verdict::Applies = statement.judge(request) {
                    match statement.effect {
                        Effect::Deny => return Decision::Denied(attached.statement(place)),
                        Effect::Allow => allowed = Some((attached, place)),
                    }
                }
            }
        }
        allowed.map_or(Decision::NotAllowed, |(attached, place)| Decision::Allowed(attached.statement(place)))
    }

    /// What each statement says about a call.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Vec<Reason> {
        let reasons = self.0.iter().flat_map(|attached| {
            attached.policy.document.statements.iter().enumerate().map(|(place, statement)| Reason {
                statement: attached.statement(place),
                effect: statement.effect,
                unless: match statement.judge(request) {
                    Verdict::Applies => None,
                    Verdict::OtherAction => Some(format!("it is not about {}", request.action)),
                    Verdict::OtherResource => Some(format!("its Resource does not cover {}", request.resource)),
                    Verdict::Unmet(condition) => Some(condition.explain(request.context)),
                },
            })
        });
        reasons.collect()
    }
}

impl Attached {
    fn statement(&self, place: usize) -> StatementRef {
        StatementRef { policy: Arc::clone(&self.policy.name), attached: self.to.clone(), statement: place }
    }
}
