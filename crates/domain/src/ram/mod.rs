//! Authorization by RAM policies, as Alibaba Cloud defines them: principals, policy documents, and decisions. Pure: no
//! I/O, no clock.

mod condition;
mod condition_values;
mod context;
mod decision;
mod document;
mod element;
mod json;
mod operator;
mod pattern;
mod principal;
mod statement;

pub use context::{Claim, Context, Key, Keys};
pub use decision::{AttachedPolicy, Attachment, Decision, Policies, Policy, Reason, StatementRef};
pub use document::{Document, MAX_DOCUMENT_BYTES};
pub use element::DocumentError;
pub use principal::{Principal, PrincipalError};
pub use statement::Effect;

/// The resource of an action that applies to all resources.
pub const ALL_RESOURCES: &str = "*";

/// A call to decide about.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Action, for example `ehpc:SynchronizeApp`.
    pub action: &'a str,
    /// Resource; [`ALL_RESOURCES`] for an action on all resources.
    pub resource: &'a str,
    /// Context that conditions test.
    pub context: &'a Context<'a>,
}
