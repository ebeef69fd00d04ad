//! The table `image`: registered images.

use domain::{Content, Descriptor, Image, ImageId, ImageKind, ImageName, RegionId, Timestamp};
use sea_orm::entity::prelude::*;

use super::columns::{self, DigestList, Number, RootDigest};

/// A value in a text column of this table.
pub type Text<T> = columns::Text<Entity, T>;

/// A registered image.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "image")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Text<ImageId>,
    pub name: String,
    pub version: String,
    pub description: String,
    pub kind: Text<ImageKind>,
    pub source: String,
    pub home_region: Text<RegionId>,
    /// Descriptor of the root, together with the next two columns; empty for images that ECS stores.
    pub root_media_type: String,
    pub root_digest: Text<RootDigest>,
    pub root_size: Number<u64>,
    pub size: Number<u64>,
    pub created_at: Number<Timestamp>,
    /// The image that has taken over its name.
    pub superseded_by: Option<Text<ImageId>>,
    /// Digests of index entries that were missing at registration, separated by spaces.
    pub absent: Option<Text<DigestList>>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl From<&Image> for Model {
    fn from(image: &Image) -> Self {
        let root = match &image.content {
            Content::Blobs(root) => (root.media_type.clone(), Some(root.digest), root.size),
            Content::Ecs => (String::new(), None, 0),
        };
        Self {
            id: image.id.clone().into(),
            name: image.name.clone(),
            version: image.version.clone(),
            description: image.description.clone(),
            kind: image.kind.into(),
            source: image.source.0.clone(),
            home_region: image.home.clone().into(),
            root_media_type: root.0,
            root_digest: RootDigest(root.1).into(),
            root_size: root.2.into(),
            size: image.size.into(),
            created_at: image.created_at.into(),
            superseded_by: image.superseded_by.clone().map(Text::from),
            absent: (!image.absent.is_empty()).then(|| DigestList(image.absent.clone()).into()),
        }
    }
}

impl From<Model> for Image {
    fn from(row: Model) -> Self {
        Self {
            id: row.id.0,
            name: row.name,
            version: row.version,
            description: row.description,
            kind: row.kind.0,
            source: ImageName(row.source),
            home: row.home_region.0,
            content: match row.root_digest.0.0 {
                None => Content::Ecs,
                Some(digest) => {
                    Content::Blobs(Descriptor { media_type: row.root_media_type, digest, size: row.root_size.0 })
                }
            },
            size: row.size.0,
            created_at: row.created_at.0,
            superseded_by: row.superseded_by.map(|by| by.0),
            absent: row.absent.map(|absent| absent.0.0).unwrap_or_default(),
        }
    }
}
