//! Evaluates policies: an explicit Deny takes precedence over an Allow, and without either, the call is denied (RAM,
//! "How RAM evaluates policies").

use std::{fmt, sync::Arc};

use super::{
    Document, Request,
    statement::{Applicability, Effect},
};

/// A named policy.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Name in the configuration.
    pub name: Arc<str>,
    /// Statements of the policy.
    pub document: Document,
}

/// How a policy is attached to a principal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attachment {
    /// The policy is attached to the principal itself.
    Principal,
    /// The policy is attached to this group of the principal.
    Group(Arc<str>),
}

/// A policy of a principal.
#[derive(Debug, Clone)]
pub struct AttachedPolicy {
    /// The policy, shared by all principals that have it.
    pub policy: Arc<Policy>,
    /// How the policy is attached to the principal.
    pub to: Attachment,
}

/// A reference to a statement of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementRef {
    /// Name of the policy.
    pub policy: Arc<str>,
    /// How the policy is attached to the principal.
    pub attached: Attachment,
    /// Index of the statement in the policy.
    pub statement: usize,
}

/// The decision about a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This statement allows the call, and none denies it.
    Allowed(StatementRef),
    /// This statement denies the call.
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

    /// Returns the statement that decided the call, or `None` if no statement applies.
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

/// The evaluation of one statement for a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// The evaluated statement.
    pub statement: StatementRef,
    /// Effect of the statement where it applies.
    pub effect: Effect,
    /// Why the statement does not apply; `None` if it does.
    pub mismatch: Option<String>,
}

/// The policies of a principal.
#[derive(Debug, Clone, Default)]
pub struct Policies(pub Vec<AttachedPolicy>);

impl Policies {
    /// Decides about a call. Does not allocate.
    #[must_use]
    pub fn decide(&self, request: &Request<'_>) -> Decision {
        let mut allowed = None;
        for attached in &self.0 {
            for (index, statement) in attached.policy.document.statements.iter().enumerate() {
                // Further Allow statements don't change the decision.
                if statement.effect == Effect::Allow && allowed.is_some() {
                    continue;
                }
                if let Applicability::Applies = statement.applicability(request) {
                    match statement.effect {
                        Effect::Deny => return Decision::Denied(attached.statement(index)),
                        Effect::Allow => allowed = Some((attached, index)),
                    }
                }
            }
        }
        allowed.map_or(Decision::NotAllowed, |(attached, index)| Decision::Allowed(attached.statement(index)))
    }

    /// Evaluates each statement for a call.
    #[must_use]
    pub fn explain(&self, request: &Request<'_>) -> Vec<Reason> {
        let reasons = self.0.iter().flat_map(|attached| {
            attached.policy.document.statements.iter().enumerate().map(|(index, statement)| Reason {
                statement: attached.statement(index),
                effect: statement.effect,
                mismatch: match statement.applicability(request) {
                    Applicability::Applies => None,
                    Applicability::OtherAction => Some(format!("it is not about {}", request.action)),
                    Applicability::OtherResource => Some(format!("its Resource does not cover {}", request.resource)),
                    Applicability::Unmet(condition) => Some(condition.explain(request.context)),
                },
            })
        });
        reasons.collect()
    }
}

impl AttachedPolicy {
    fn statement(&self, index: usize) -> StatementRef {
        StatementRef { policy: Arc::clone(&self.policy.name), attached: self.to.clone(), statement: index }
    }
}
