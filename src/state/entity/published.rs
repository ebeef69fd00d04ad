//! The table `published`: what this service has made visible by a name in a region. Its rows outlive images: bytes stay where they are.

use sea_orm::entity::prelude::*;

use super::parse;
use crate::domain::Published;

/// One name in one region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "published")]
#[allow(missing_docs)]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// The root that was published last.
    pub root_digest: Option<String>,
    /// The root of a publication that was begun and not confirmed.
    pub begun_digest: Option<String>,
    /// The image that was published or begun last.
    pub image_id: String,
    /// How it is known that all of the published root is there; nothing if entries of its indexes were not there when it was published.
    pub verification: Option<String>,
    /// Where the region's store had it then; nothing if that was not recorded.
    pub location: Option<String>,
    pub changed_at: i64,
}

/// None is declared: what belongs together is read together by hand.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// What the row says of a store that has the image at `location`. Of another place, it vouches for nothing that is there.
    pub fn published(self, location: Option<&str>) -> Result<Published, DbErr> {
        let moved = self.location.as_deref().is_some_and(|then| location != Some(then));
        let published = Published::try_from(self)?;
        Ok(if moved { published.elsewhere() } else { published })
    }
}

impl TryFrom<Model> for Published {
    type Error = DbErr;

    fn try_from(row: Model) -> Result<Self, DbErr> {
        let published = row.root_digest.map(|root| parse("published.root_digest", &root)).transpose()?;
        let verification =
            row.verification.map(|verification| parse("published.verification", &verification)).transpose()?;
        let root = published.zip(verification);
        let unproven = published.filter(|_| root.is_none());
        let begun = row.begun_digest.map(|begun| parse("published.begun_digest", &begun)).transpose()?;
        Ok(Self { root, begun, unproven })
    }
}
