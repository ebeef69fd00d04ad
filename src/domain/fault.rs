//! What goes wrong with a copy. It belongs to one region, and never touches another.

use std::{fmt, str::FromStr};

use super::ForeignText;

/// Who answered with the error: each kind is one row of the original's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The store of a region.
    Store,
    /// The ECS API.
    Ecs,
    /// Another Alibaba Cloud product.
    Aliyun,
    /// The database.
    Database,
    /// The image has gone from the home region.
    ImageNotFound,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Store, Self::Ecs, Self::Aliyun, Self::Database, Self::ImageNotFound];

    /// The kind's name in the database.
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

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|k| k.as_str() == text).ok_or_else(|| format!("{text:?} is no kind of fault"))
    }
}

/// Why a copy failed, as its region shows it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Who answered with it.
    pub kind: FaultKind,
    /// What was wrong, and with what.
    pub message: ForeignText,
}

impl Fault {
    /// A fault of a kind. Of its message, no more is kept than every caller can be sent.
    pub fn new(kind: FaultKind, message: impl fmt::Display) -> Self {
        Self { kind, message: ForeignText::message(message) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error and its causes, in one line. A cause that the text before it has repeated is left out.
#[must_use]
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
