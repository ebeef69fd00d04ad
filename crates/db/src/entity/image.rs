//! The table `image`: registered images.

use domain::{Content, Descriptor, Image, ImageName, Timestamp};
use sea_orm::entity::prelude::*;

use super::{parse, signed, unsigned};

/// A registered image.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "image")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: String,
    pub name: String,
    pub version: String,
    pub description: String,
    pub kind: String,
    pub source: String,
    pub home_region: String,
    /// Descriptor of the root with the next two columns; empty for images that ECS stores.
    pub root_media_type: String,
    pub root_digest: String,
    pub root_size: i64,
    pub size: i64,
    pub created_at: i64,
    /// The image that has taken over its name.
    pub superseded_by: Option<String>,
    /// Digests of index entries that were missing at registration, separated by spaces.
    pub absent: Option<String>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&Image> for Model {
    fn from(image: &Image) -> Self {
        let root = match &image.content {
            Content::Blobs(root) => (root.media_type.clone(), root.digest.to_string(), root.size),
            Content::Ecs => (String::new(), String::new(), 0),
        };
        Self {
            id: image.id.to_string(),
            name: image.name.clone(),
            version: image.version.clone(),
            description: image.description.clone(),
            kind: image.kind.as_str().to_owned(),
            source: image.source.0.clone(),
            home_region: image.home.to_string(),
            root_media_type: root.0,
            root_digest: root.1,
            root_size: signed(root.2),
            size: signed(image.size),
            created_at: image.created_at.as_millis(),
            superseded_by: image.superseded_by.as_ref().map(ToString::to_string),
            absent: (!image.absent.is_empty())
                .then(|| image.absent.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
        }
    }
}

impl TryFrom<Model> for Image {
    type Error = DbErr;

    fn try_from(row: Model) -> Result<Self, DbErr> {
        Ok(Self {
            id: parse("image.id", &row.id)?,
            name: row.name,
            version: row.version,
            description: row.description,
            kind: parse("image.kind", &row.kind)?,
            source: ImageName(row.source),
            home: parse("image.home_region", &row.home_region)?,
            content: if row.root_digest.is_empty() {
                Content::Ecs
            } else {
                Content::Blobs(Descriptor {
                    media_type: row.root_media_type,
                    digest: parse("image.root_digest", &row.root_digest)?,
                    size: unsigned(row.root_size),
                })
            },
            size: unsigned(row.size),
            created_at: Timestamp::from_millis(row.created_at),
            superseded_by: row.superseded_by.map(|by| parse("image.superseded_by", &by)).transpose()?,
            absent: row
                .absent
                .iter()
                .flat_map(|absent| absent.split_whitespace())
                .map(|digest| parse("image.absent", digest))
                .collect::<Result<_, _>>()?,
        })
    }
}
