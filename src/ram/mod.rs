//! Who may do what, after Alibaba Cloud's RAM: principals, policy documents, and the decision. Pure.

mod pattern;
mod policy;
mod principal;

pub use policy::{Decision, Document, DocumentError, Effect, Policies, Policy, StatementRef};
pub use principal::{Principal, PrincipalError};

/// The resource of an action that is performed on all resources.
pub const ALL_RESOURCES: &str = "*";
