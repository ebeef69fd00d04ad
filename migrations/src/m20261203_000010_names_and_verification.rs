//! What this service has made visible by which name, to which image a name belongs, and how it is known that an image is whole.
//!
//! Every part of it may be repeated: where a database can't take the whole step as one transaction, it resumes where it was interrupted.

use std::collections::BTreeMap;

use sea_orm_migration::{
    prelude::*,
    sea_orm::{DbBackend, FromQueryResult, Statement},
};

use crate::{idempotent, name};

#[derive(DeriveMigrationName)]
pub struct Migration;

/// The longest name of an image in a store that is remembered: a repository has at most 255 characters, and a tag 128.
const NAME_LENGTH: u32 = 400;

/// How many rows one statement inserts.
const ROWS: usize = 100;

/// The columns that tables which are there gain.
const COLUMNS: [(&str, &str); 4] = [
    ("image", "superseded_by"),
    ("replica", "verification"),
    ("synchronization_target", "verification"),
    ("synchronization", "overwrite"),
];

const TABLES: [&str; 4] = ["image_reference", "published", "written_blob", "read_blob"];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for (table, column) in COLUMNS {
            let mut definition = ColumnDef::new(Alias::new(column));
            let definition = match column {
                "overwrite" => definition.big_integer().null(),
                _ => definition.string_len(128).null(),
            };
            idempotent::add_column(manager, table, definition.take()).await?;
        }
        let backend = manager.get_database_backend();
        for table in tables(backend) {
            idempotent::create_table(manager, name::table(backend, table)).await?;
        }
        // MySQL takes the beginning of a text alone: this one tells digests from each other.
        let length = if backend == DbBackend::MySql { "(80)" } else { "" };
        let index = format!("CREATE INDEX image_of_root ON image (root_digest{length})");
        idempotent::create_index(manager, "image", "image_of_root", index).await?;
        name_images(manager).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        idempotent::drop_index(manager, "image", "image_of_root").await?;
        for table in TABLES {
            idempotent::drop_table(manager, table).await?;
        }
        for (table, column) in COLUMNS {
            idempotent::drop_column(manager, table, column).await?;
        }
        Ok(())
    }
}

/// A column of names in stores.
fn long_name(backend: DbBackend, column: &'static str) -> ColumnDef {
    name::column(backend, column).string_len(NAME_LENGTH).take()
}

fn maybe_digest(column: &'static str) -> ColumnDef {
    ColumnDef::new(Alias::new(column)).string_len(128).null().take()
}

fn table(name: &'static str, key: &[&'static str], columns: Vec<ColumnDef>) -> TableCreateStatement {
    let mut table = Table::create().table(Alias::new(name)).if_not_exists().take();
    for mut column in columns {
        table.col(&mut column);
    }
    let mut primary = Index::create().take();
    for column in key {
        primary.col(Alias::new(*column));
    }
    table.primary_key(&mut primary).take()
}

fn tables(backend: DbBackend) -> [TableCreateStatement; 4] {
    [
        table(
            "image_reference",
            &["name"],
            vec![long_name(backend, "name"), name::column(backend, "root_digest"), name::column(backend, "image_id")],
        ),
        table(
            "published",
            &["region_id", "name"],
            vec![
                name::column(backend, "region_id"),
                long_name(backend, "name"),
                maybe_digest("root_digest"),
                maybe_digest("begun_digest"),
                name::column(backend, "image_id"),
                maybe_digest("verification"),
                ColumnDef::new(Alias::new("location")).text().null().take(),
                ColumnDef::new(Alias::new("changed_at")).big_integer().not_null().default(0).take(),
            ],
        ),
        table(
            "written_blob",
            &["image_id", "region_id", "blob"],
            vec![name::column(backend, "image_id"), name::column(backend, "region_id"), name::column(backend, "blob")],
        ),
        table(
            "read_blob",
            &["region_id", "location", "blob"],
            vec![
                name::column(backend, "region_id"),
                long_name(backend, "location"),
                name::column(backend, "blob"),
                ColumnDef::new(Alias::new("witness")).text().null().take(),
            ],
        ),
    ]
}

#[derive(FromQueryResult)]
struct Image {
    id: String,
    kind: String,
    source: String,
    root_digest: String,
}

#[derive(FromQueryResult)]
struct Replica {
    image_id: String,
    region_id: String,
}

/// Notes the names of the images that there are, and what was published of them. A name that several have with different contents belongs
/// to the one that was registered last, which has superseded the others. How whole each copy was, is not known.
async fn name_images(manager: &SchemaManager<'_>) -> Result<(), DbErr> {
    let db = manager.get_connection();
    let backend = manager.get_database_backend();
    for table in ["image_reference", "published"] {
        idempotent::execute(manager, format!("DELETE FROM {table}")).await?;
    }
    let read = "SELECT id, kind, source, root_digest FROM image WHERE root_digest <> '' ORDER BY created_at, id";
    let images = Image::find_by_statement(Statement::from_string(backend, read)).all(db).await?;
    let mut names: BTreeMap<String, [String; 3]> = BTreeMap::new();
    let mut known: BTreeMap<&str, (String, &str)> = BTreeMap::new();
    for image in &images {
        let named = image.kind == "CONTAINER" && image.source.contains(':');
        let name = if named { image.source.clone() } else { format!("images:{}", image.id) };
        names.insert(name.clone(), [name.clone(), image.root_digest.clone(), image.id.clone()]);
        known.insert(&image.id, (name, &image.root_digest));
    }
    for image in &images {
        let holder = known.get(image.id.as_str()).and_then(|(name, _)| names.get(name));
        if let Some([_, root, by]) = holder
            && *root != image.root_digest
        {
            let update = Query::update()
                .table(Alias::new("image"))
                .value(Alias::new("superseded_by"), by.as_str())
                .and_where(Expr::col(Alias::new("id")).eq(image.id.as_str()))
                .take();
            db.execute_raw(backend.build(&update)).await?;
        }
    }
    let columns = ["name", "root_digest", "image_id"];
    insert(db, backend, "image_reference", columns, names.into_values().collect()).await?;

    let read = "SELECT image_id, region_id FROM replica WHERE state = 'AVAILABLE' ORDER BY finished_at, image_id";
    let replicas = Replica::find_by_statement(Statement::from_string(backend, read)).all(db).await?;
    let mut published: BTreeMap<(String, String), [String; 5]> = BTreeMap::new();
    for Replica { image_id, region_id } in replicas {
        let Some((name, root)) = known.get(image_id.as_str()) else { continue };
        // The region's kind of store is the configuration's: the name that is not used there is never asked for.
        for name in [name.clone(), image_id.clone()] {
            let row = [region_id.clone(), name.clone(), (*root).to_owned(), image_id.clone(), "TRUSTED".to_owned()];
            published.insert((region_id.clone(), name), row);
        }
    }
    let columns = ["region_id", "name", "root_digest", "image_id", "verification"];
    insert(db, backend, "published", columns, published.into_values().collect()).await
}

async fn insert<const N: usize>(
    db: &SchemaManagerConnection<'_>,
    backend: DbBackend,
    table: &'static str,
    columns: [&'static str; N],
    rows: Vec<[String; N]>,
) -> Result<(), DbErr> {
    for rows in rows.chunks(ROWS) {
        let mut insert = Query::insert().into_table(Alias::new(table)).columns(columns.map(Alias::new)).take();
        for row in rows {
            insert.values(row.clone().map(Into::into)).map_err(|error| DbErr::Custom(error.to_string()))?;
        }
        db.execute_raw(backend.build(&insert)).await?;
    }
    Ok(())
}
