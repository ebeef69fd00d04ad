//! The contract: the types generated from `proto`, and the authorization and error tables. The tables are options in
//! `proto`, and are read from the descriptors.

mod api_error;
mod api_error_response;
mod authorization;
mod error_table;

use std::sync::OnceLock;

use prost_reflect::{DescriptorError, DescriptorPool, DynamicMessage, SerializeOptions};

pub use api_error::{ApiError, Violation, pack_any};
pub use api_error_response::ApiErrorResponse;
pub use authorization::{Authorization, AuthorizationTable, MethodPath, Resource, Template};
pub use error_table::{ApiErrorCode, ErrorRow, ErrorTable};

/// The messages, clients and servers of `appferry.v1`.
#[allow(missing_docs, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("appferry.v1");
}

/// The messages, clients and servers of long-running operations, for clients that do not know the contract.
#[allow(missing_docs, clippy::pedantic)]
pub mod longrunning {
    tonic::include_proto!("google.longrunning");
}

/// The encoded file descriptors of the contract, imports included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/appferry.v1.bin"));

/// The proto package of the contract.
pub const PACKAGE: &str = "appferry.v1";

/// The packages whose methods have authorization rows.
const PACKAGES: [&str; 2] = [PACKAGE, "google.longrunning"];

/// An error of the descriptors, or of a message that they describe.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors can't be decoded.
    #[error("the descriptors of the contract can't be decoded")]
    Descriptors(#[from] DescriptorError),
    /// A message does not match its descriptor.
    #[error("the message can't be decoded")]
    Message(#[from] prost::DecodeError),
    /// A message has no JSON form.
    #[error("the message can't be written as JSON")]
    Json(#[from] serde_json::Error),
    /// An extension or a message is missing from the descriptors.
    #[error("{0} is not in the descriptors of the contract")]
    Missing(&'static str),
    /// A method has no authorization row.
    #[error("the method {0} has no (appferry.v1.authorization) option with an action and a resource")]
    Unauthorized(String),
    /// A method's resource template names a field that its request does not have.
    #[error("the resource {template} of the method {method} names no string field of its request")]
    #[allow(missing_docs, reason = "the fields are named")]
    Template { method: String, template: String },
    /// An error code has no row, or an incomplete one.
    #[error("the enum value {0} has no usable (appferry.v1.error) option")]
    Row(String),
}

/// Initializes a static value on first use. If the initialization fails, the next use repeats it.
fn get_or_try_init<T, E>(cell: &'static OnceLock<T>, init: impl FnOnce() -> Result<T, E>) -> Result<&'static T, E> {
    match cell.get() {
        Some(value) => Ok(value),
        None => init().map(|value| cell.get_or_init(|| value)),
    }
}

/// Returns the decoded descriptors.
fn pool() -> Result<&'static DescriptorPool, DescriptorError> {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    get_or_try_init(&POOL, || DescriptorPool::decode(DESCRIPTORS))
}

/// Converts an encoded message of the contract to JSON, by the protobuf JSON mapping. `name` is the message's name
/// without its package.
///
/// # Errors
///
/// Fails if there is no such message, or `message` can't be decoded.
pub fn json(name: &str, message: &[u8]) -> Result<serde_json::Value, Error> {
    let descriptor = pool()?.get_message_by_name(&format!("{PACKAGE}.{name}")).ok_or(Error::Missing("the message"))?;
    let message = DynamicMessage::decode(descriptor, message)?;
    let options = SerializeOptions::new().skip_default_fields(false);
    Ok(message.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// The tables of the contract.
#[derive(Debug)]
pub struct Contract {
    /// The permission that each method requires of its caller.
    pub authorizations: AuthorizationTable,
    /// How each error code is represented in responses.
    pub errors: ErrorTable,
}

impl Contract {
    /// Returns the tables of the embedded descriptors, read on first use.
    ///
    /// # Errors
    ///
    /// Fails if a method or an error code has no usable row.
    pub fn load() -> Result<&'static Self, Error> {
        static CONTRACT: OnceLock<Contract> = OnceLock::new();
        get_or_try_init(&CONTRACT, || Self::from_pool(pool()?))
    }

    /// Reads the tables from other descriptors.
    ///
    /// # Errors
    ///
    /// Fails in the same cases as [`load`](Self::load).
    pub fn from_pool(pool: &DescriptorPool) -> Result<Self, Error> {
        Ok(Self { authorizations: AuthorizationTable::read(pool)?, errors: ErrorTable::read(pool)? })
    }
}
