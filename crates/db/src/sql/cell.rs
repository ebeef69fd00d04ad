//! Columns and values of rows that are passed to a statement.

use sea_orm::{
    ColumnTrait, Value,
    sea_query::{ArrayType, ColumnType},
};
use uuid::Uuid;

/// Type of a column of passed rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// A text of up to 128 characters.
    Name,
    /// A text of any length.
    Text,
    /// A text of any length or NULL.
    NullableText,
    /// A signed 64-bit number.
    Number,
    /// A signed 64-bit number or NULL.
    NullableNumber,
    /// A boolean, passed as 0 or 1.
    Boolean,
    /// A UUID of 16 bytes.
    Uuid,
}

impl ColumnKind {
    /// Returns the kind of an entity's column. Required strings are names unless they are declared as `Text`.
    pub(super) fn of_column(column: &impl ColumnTrait) -> Self {
        let definition = column.def();
        match (definition.get_column_type(), definition.is_null()) {
            (ColumnType::Boolean, _) => Self::Boolean,
            (ColumnType::Uuid, _) => Self::Uuid,
            (ColumnType::BigInteger, false) => Self::Number,
            (ColumnType::BigInteger, true) => Self::NullableNumber,
            (ColumnType::Text, false) => Self::Text,
            (_, false) => Self::Name,
            (_, true) => Self::NullableText,
        }
    }

    /// Returns the type's name on PostgreSQL.
    pub(super) fn postgres_type(self) -> &'static str {
        match self {
            Self::Name | Self::Text | Self::NullableText => "text",
            Self::Number | Self::NullableNumber | Self::Boolean => "bigint",
            Self::Uuid => "uuid",
        }
    }

    pub(super) fn array_type(self) -> ArrayType {
        match self {
            Self::Name | Self::Text | Self::NullableText => ArrayType::String,
            Self::Number | Self::NullableNumber | Self::Boolean => ArrayType::BigInt,
            Self::Uuid => ArrayType::Uuid,
        }
    }

    /// Returns the type's name in `JSON_TABLE` on MySQL and MariaDB.
    pub(super) fn mysql_type(self) -> &'static str {
        match self {
            Self::Name => "VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            Self::Text | Self::NullableText => "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            Self::Number | Self::NullableNumber | Self::Boolean => "BIGINT",
            Self::Uuid => "CHAR(32)",
        }
    }
}

/// A value of a passed row.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Cell {
    /// A text or NULL.
    Text(Option<String>),
    /// A number or NULL.
    Number(Option<i64>),
    Uuid(Uuid),
}

impl Cell {
    pub(super) fn is_null(&self) -> bool {
        matches!(self, Self::Text(None) | Self::Number(None))
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<Option<String>> for Cell {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Number(Some(number))
    }
}

impl From<Option<i64>> for Cell {
    fn from(number: Option<i64>) -> Self {
        Self::Number(number)
    }
}

impl From<Uuid> for Cell {
    fn from(id: Uuid) -> Self {
        Self::Uuid(id)
    }
}

/// Converts the value of an entity's column. The entities have only columns of these types. Any other value becomes
/// NULL, which the column's constraint rejects.
impl From<Value> for Cell {
    fn from(value: Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text),
            Value::BigInt(number) => Self::Number(number),
            Value::Bool(truth) => Self::Number(truth.map(i64::from)),
            Value::Uuid(Some(id)) => Self::Uuid(id),
            _ => Self::Text(None),
        }
    }
}
