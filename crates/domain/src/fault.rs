//! Faults of copies. A fault belongs to one region and does not affect other regions.

use std::{fmt, str::FromStr};

use super::ForeignText;

/// Origin of a fault. Each kind corresponds to a row of the original's error table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum FaultKind {
    /// The store of a region.
    Store,
    /// The ECS API.
    Ecs,
    /// Another Alibaba Cloud product.
    Aliyun,
    Database,
    /// The image is no longer in the home region.
    ImageNotFound,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Store, Self::Ecs, Self::Aliyun, Self::Database, Self::ImageNotFound];

    /// Name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "STORE",
            Self::Ecs => "ECS",
            Self::Aliyun => "ALIYUN",
            Self::Database => "DATABASE",
            Self::ImageNotFound => "IMAGE_NOT_FOUND",
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|k| k.as_str() == text).ok_or_else(|| format!("{text:?} is not a kind of fault"))
    }
}

/// A fault as callers see it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Origin of the fault.
    pub kind: FaultKind,
    /// Description of the failure, with the value that caused it.
    pub message: ForeignText,
}

impl Fault {
    /// Creates a fault. Truncates the message to the length that every caller can receive.
    pub fn new(kind: FaultKind, message: impl fmt::Display) -> Self {
        Self { kind, message: ForeignText::message(message) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
