//! The contract: the types generated from `proto`, and the two tables that stand there as options, read back from
//! the descriptors. Nothing in here knows how a call is carried out.

mod authorization;
mod error_row;
mod failure;
mod refusal;

use std::sync::OnceLock;

use prost_reflect::{DescriptorError, DescriptorPool, DynamicMessage, SerializeOptions};

pub use authorization::{Authorization, Authorizations, MethodPath, Resource, Template};
pub use error_row::{Code, ErrorRow, ErrorRows};
pub use failure::{Failure, Violation, any};
pub use refusal::Refusal;

/// The messages, clients and servers of `appferry.v1`.
#[allow(missing_docs, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("appferry.v1");
}

/// Long-running operations as clients know them that know nothing of us.
#[allow(missing_docs, clippy::pedantic)]
pub mod longrunning {
    tonic::include_proto!("google.longrunning");
}

/// The encoded file descriptors of the contract, imports included.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/appferry.v1.bin"));

/// The proto package of the contract.
pub const PACKAGE: &str = "appferry.v1";

/// The packages whose methods are the contract's.
const PACKAGES: [&str; 2] = [PACKAGE, "google.longrunning"];

/// Why the contract can't be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptors don't decode.
    #[error("the descriptors of the contract do not decode")]
    Descriptors(#[from] DescriptorError),
    /// A message is not what it should be.
    #[error("the message does not decode")]
    Message(#[from] prost::DecodeError),
    /// A message has no JSON form.
    #[error("the message can't be written as JSON")]
    Json(#[from] serde_json::Error),
    /// Something that the tables are read from is not in the descriptors.
    #[error("{0} is not in the descriptors of the contract")]
    Missing(&'static str),
    /// A method says nothing about who may call it.
    #[error("the method {0} has no (appferry.v1.authorization) option with an action and a resource")]
    Unauthorized(String),
    /// A method's resource template names a field that its request doesn't have.
    #[error("the resource {template} of the method {method} names no string field of its request")]
    Template {
        /// The method's full name.
        method: String,
        /// The template as it stands in the option.
        template: String,
    },
    /// An error code has no row, or one that makes no sense.
    #[error("the enum value {0} has no usable (appferry.v1.error) option")]
    Row(String),
}

/// What is made once in the life of a process, unless that fails.
fn once<T, E>(made: &'static OnceLock<T>, make: impl FnOnce() -> Result<T, E>) -> Result<&'static T, E> {
    match made.get() {
        Some(made) => Ok(made),
        None => make().map(|new| made.get_or_init(|| new)),
    }
}

/// The descriptors, decoded once.
fn pool() -> Result<&'static DescriptorPool, DescriptorError> {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    once(&POOL, || DescriptorPool::decode(DESCRIPTORS))
}

/// A message of the contract in the JSON form that protobuf prescribes for it, by its name and as it is encoded.
pub fn json(name: &str, message: &[u8]) -> Result<serde_json::Value, Error> {
    let descriptor = pool()?.get_message_by_name(&format!("{PACKAGE}.{name}")).ok_or(Error::Missing("the message"))?;
    let message = DynamicMessage::decode(descriptor, message)?;
    let options = SerializeOptions::new().skip_default_fields(false);
    Ok(message.serialize_with_options(serde_json::value::Serializer, &options)?)
}

/// The contract's two tables.
#[derive(Debug)]
pub struct Contract {
    /// What each method asks for.
    pub authorizations: Authorizations,
    /// How each error looks.
    pub errors: ErrorRows,
}

impl Contract {
    /// The tables of the descriptors that were compiled in, read once in the life of a process.
    pub fn load() -> Result<&'static Self, Error> {
        static CONTRACT: OnceLock<Contract> = OnceLock::new();
        once(&CONTRACT, || Self::from_pool(pool()?))
    }

    /// Reads the tables from `pool`.
    pub fn from_pool(pool: &DescriptorPool) -> Result<Self, Error> {
        Ok(Self { authorizations: Authorizations::read(pool)?, errors: ErrorRows::read(pool)? })
    }
}
