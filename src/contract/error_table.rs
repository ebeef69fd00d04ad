//! The error table, read from the `(appferry.v1.error)` options of the two enums.

use std::collections::HashMap;

use prost_reflect::DescriptorPool;

use super::{
    Error,
    v1::{CommonErrorCode, ErrorCode},
};

/// An error code of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApiErrorCode {
    /// A code of the original's table for `SynchronizeApp`.
    SynchronizeApp(ErrorCode),
    /// A code that is common to all operations.
    Common(CommonErrorCode),
}

impl From<ErrorCode> for ApiErrorCode {
    fn from(code: ErrorCode) -> Self {
        Self::SynchronizeApp(code)
    }
}

impl From<CommonErrorCode> for ApiErrorCode {
    fn from(code: CommonErrorCode) -> Self {
        Self::Common(code)
    }
}

/// A row of the table: how an error code is represented in responses.
#[derive(Debug, Clone)]
pub struct ErrorRow {
    /// The code in the original's spelling.
    pub code: String,
    /// HTTP status of the original API.
    pub http_status: i32,
    /// The message template; `%s` is replaced by the cause.
    pub message: String,
    /// Status of the gRPC response.
    pub grpc_status: tonic::Code,
}

impl ErrorRow {
    /// Returns the message with `cause`, which is appended if the template has no `%s`.
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

/// The error table: a row for each code.
#[derive(Debug)]
pub struct ErrorTable {
    rows: HashMap<ApiErrorCode, ErrorRow>,
    internal: ErrorRow,
}

impl ErrorTable {
    pub(super) fn read(pool: &DescriptorPool) -> Result<Self, Error> {
        let mut rows = HashMap::new();
        read_enum(pool, "appferry.v1.ErrorCode", &mut rows, |n| {
            ErrorCode::try_from(n).ok().map(ApiErrorCode::SynchronizeApp)
        })?;
        read_enum(pool, "appferry.v1.CommonErrorCode", &mut rows, |n| {
            CommonErrorCode::try_from(n).ok().map(ApiErrorCode::Common)
        })?;
        let internal = rows
            .get(&ApiErrorCode::Common(CommonErrorCode::InternalError))
            .cloned()
            .ok_or(Error::Missing("COMMON_ERROR_CODE_INTERNAL_ERROR"))?;
        Ok(Self { rows, internal })
    }

    /// Returns the row of a code. Unspecified codes have the row of `InternalError`.
    #[must_use]
    pub fn row(&self, code: ApiErrorCode) -> &ErrorRow {
        self.rows.get(&code).unwrap_or(&self.internal)
    }
}

fn read_enum(
    pool: &DescriptorPool,
    name: &'static str,
    rows: &mut HashMap<ApiErrorCode, ErrorRow>,
    code: impl Fn(i32) -> Option<ApiErrorCode>,
) -> Result<(), Error> {
    let option = pool.get_extension_by_name("appferry.v1.error").ok_or(Error::Missing("(appferry.v1.error)"))?;
    let values = pool.get_enum_by_name(name).ok_or(Error::Missing(name))?;
    for value in values.values().filter(|v| v.number() != 0) {
        let incomplete = || Error::Row(value.full_name().to_owned());
        let code = code(value.number()).ok_or_else(incomplete)?;
        let options = value.options();
        let row = options.get_extension(&option);
        let row = row.as_message().ok_or_else(incomplete)?;
        let text = |field| {
            let value = row.get_field_by_name(field)?;
            value.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
        };
        let number = |field| row.get_field_by_name(field)?.as_i32().filter(|n| *n > 0);
        rows.insert(
            code,
            ErrorRow {
                code: text("code").ok_or_else(incomplete)?,
                http_status: number("http_status").ok_or_else(incomplete)?,
                message: text("message").ok_or_else(incomplete)?,
                grpc_status: number("grpc_status").map(tonic::Code::from_i32).ok_or_else(incomplete)?,
            },
        );
    }
    Ok(())
}
