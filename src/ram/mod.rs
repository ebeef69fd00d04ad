//! Who may do what, after Alibaba Cloud's RAM: principals, policy documents, and the decision. Pure.

mod condition;
mod context;
mod decision;
mod document;
mod element;
mod json;
mod pattern;
mod principal;
mod statement;

pub use context::{Claim, Context, Key, Keys};
pub use decision::{Attached, Attachment, Decision, Policies, Policy, Reason, StatementRef};
pub use document::{Document, MAX_DOCUMENT_BYTES};
pub use element::DocumentError;
pub use principal::{Principal, PrincipalError};
pub use statement::Effect;

/// The resource of an action that is performed on all resources.
pub const ALL_RESOURCES: &str = "*";

/// What a call asks to do, and under which circumstances.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The action, for example `ehpc:SynchronizeApp`.
    pub action: &'a str,
    /// The resource, [`ALL_RESOURCES`] for an action on all of them.
    pub resource: &'a str,
    /// The circumstances.
    pub context: &'a Context<'a>,
}
