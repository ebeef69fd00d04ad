//! The error tables, read from the `(appferry.v1.error)` options of the two enums.

use std::collections::HashMap;

use prost_reflect::DescriptorPool;

use super::{
    Error,
    v1::{CommonErrorCode, ErrorCode},
};

/// An error code: of `SynchronizeApp`'s own table, or one of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// A code of `SynchronizeApp`'s own table.
    Own(ErrorCode),
    /// A code outside of it.
    Common(CommonErrorCode),
}

impl From<ErrorCode> for Code {
    fn from(code: ErrorCode) -> Self {
        Self::Own(code)
    }
}

impl From<CommonErrorCode> for Code {
    fn from(code: CommonErrorCode) -> Self {
        Self::Common(code)
    }
}

/// One row: how a code looks to a caller.
#[derive(Debug, Clone)]
pub struct ErrorRow {
    /// The code as the original spells it.
    pub code: String,
    /// The HTTP status.
    pub http_status: i32,
    /// The message; `%s` stands for the cause.
    pub message: String,
    /// The gRPC status.
    pub grpc_status: tonic::Code,
}

impl ErrorRow {
    /// The message with `cause` in its place; a row without a place for it is followed by the cause.
    #[must_use]
    pub fn message(&self, cause: &str) -> String {
        if self.message.contains("%s") {
            self.message.replacen("%s", cause.trim_end_matches('.'), 1)
        } else if cause.is_empty() {
            self.message.clone()
        } else {
            format!("{} {cause}", self.message)
        }
    }
}

/// The error tables.
#[derive(Debug)]
pub struct ErrorRows {
    rows: HashMap<Code, ErrorRow>,
    internal: ErrorRow,
}

impl ErrorRows {
    pub(super) fn read(pool: &DescriptorPool) -> Result<Self, Error> {
        let mut rows = HashMap::new();
        read_enum(pool, "appferry.v1.ErrorCode", &mut rows, |n| ErrorCode::try_from(n).ok().map(Code::Own))?;
        read_enum(pool, "appferry.v1.CommonErrorCode", &mut rows, |n| {
            CommonErrorCode::try_from(n).ok().map(Code::Common)
        })?;
        let internal = rows
            .get(&Code::Common(CommonErrorCode::InternalError))
            .cloned()
            .ok_or(Error::Missing("COMMON_ERROR_CODE_INTERNAL_ERROR"))?;
        Ok(Self { rows, internal })
    }

    /// The row of a code; a code that is never sent has that of `InternalError`.
    #[must_use]
    pub fn row(&self, code: Code) -> &ErrorRow {
        self.rows.get(&code).unwrap_or(&self.internal)
    }
}

fn read_enum(
    pool: &DescriptorPool,
    name: &'static str,
    rows: &mut HashMap<Code, ErrorRow>,
    code: impl Fn(i32) -> Option<Code>,
) -> Result<(), Error> {
    let option = pool.get_extension_by_name("appferry.v1.error").ok_or(Error::Missing("(appferry.v1.error)"))?;
    let values = pool.get_enum_by_name(name).ok_or(Error::Missing(name))?;
    for value in values.values().filter(|v| v.number() != 0) {
        let unusable = || Error::Row(value.full_name().to_owned());
        let code = code(value.number()).ok_or_else(unusable)?;
        let options = value.options();
        let row = options.get_extension(&option);
        let row = row.as_message().ok_or_else(unusable)?;
        let text = |field| {
            let value = row.get_field_by_name(field)?;
            value.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
        };
        let number = |field| row.get_field_by_name(field)?.as_i32().filter(|n| *n > 0);
        rows.insert(
            code,
            ErrorRow {
                code: text("code").ok_or_else(unusable)?,
                http_status: number("http_status").ok_or_else(unusable)?,
                message: text("message").ok_or_else(unusable)?,
                grpc_status: number("grpc_status").map(tonic::Code::from_i32).ok_or_else(unusable)?,
            },
        );
    }
    Ok(())
}
