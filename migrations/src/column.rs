//! Column and table builders that the steps share.
//!
//! Names compare byte by byte in every database and under every server locale, because ids may differ only in case.

use sea_orm_migration::{prelude::*, sea_orm::DbBackend};

/// Maximum length of an id, in characters.
const ID_LENGTH: u32 = 128;

/// Length of the longest digest, `sha512:` and 128 hexadecimal digits (OCI image specification 1.1, "Digests").
const DIGEST_LENGTH: u32 = 135;

/// Maximum length of a recorded name or location of an image in a store, in characters. A repository has at most 255
/// characters and a tag 128 (OCI distribution specification 1.1).
const NAME_LENGTH: u32 = 400;

fn binary(backend: DbBackend, name: &'static str, length: u32) -> ColumnDef {
    let mut column = ColumnDef::new(Alias::new(name)).string_len(length).take();
    if backend == DbBackend::Postgres {
        column.extra("COLLATE \"C\"");
    }
    column
}

/// A required column for an id.
pub fn id(backend: DbBackend, name: &'static str) -> ColumnDef {
    binary(backend, name, ID_LENGTH).not_null().take()
}

/// A nullable column for an id.
pub fn nullable_id(backend: DbBackend, name: &'static str) -> ColumnDef {
    binary(backend, name, ID_LENGTH).null().take()
}

/// A required column for the name or the location of an image in a store.
pub fn store_name(backend: DbBackend, name: &'static str) -> ColumnDef {
    binary(backend, name, NAME_LENGTH).not_null().take()
}

/// A required column for a digest of any algorithm that OCI registers.
pub fn digest(backend: DbBackend, name: &'static str) -> ColumnDef {
    binary(backend, name, DIGEST_LENGTH).not_null().take()
}

/// A nullable column for a digest.
pub fn nullable_digest(backend: DbBackend, name: &'static str) -> ColumnDef {
    binary(backend, name, DIGEST_LENGTH).null().take()
}

/// A required column for one word of a fixed set, such as a state.
pub fn word(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name)).string_len(16).not_null().take()
}

/// A nullable column for one word of a fixed set.
pub fn nullable_word(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name)).string_len(16).null().take()
}

/// A required text column without a length limit.
pub fn text(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name)).text().not_null().take()
}

/// A nullable text column without a length limit.
pub fn nullable_text(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name)).text().null().take()
}

/// A signed 64-bit column that defaults to 0.
pub fn number(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name)).big_integer().not_null().default(0).take()
}

/// A nullable signed 64-bit column.
pub fn nullable_number(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name)).big_integer().null().take()
}

/// A boolean column that defaults to false.
pub fn boolean(name: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(name)).boolean().not_null().default(false).take()
}

/// A table with the given columns and primary key.
pub fn table(name: &'static str, key: &[&'static str], columns: Vec<ColumnDef>) -> TableCreateStatement {
    let mut table = Table::create().table(Alias::new(name)).take();
    for mut column in columns {
        table.col(&mut column);
    }
    let mut primary = Index::create().take();
    for column in key {
        primary.col(Alias::new(*column));
    }
    table.primary_key(&mut primary).take()
}
