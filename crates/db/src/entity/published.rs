//! The table `published`: images that this service has made visible. Rows outlive the images, as the stores keep their
//! content.

use domain::Published;
use sea_orm::entity::prelude::*;

use super::parse;

/// A name in a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "published")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// Root of the last completed publication.
    pub root_digest: Option<String>,
    /// Root of an announced publication.
    pub pending_digest: Option<String>,
    /// Image of the last publication.
    pub image_id: String,
    /// How the published image was verified; NULL if entries of its indexes were absent when it was published.
    pub verification: Option<String>,
    /// Location in the region's store at that time, if it was recorded.
    pub location: Option<String>,
    /// Milliseconds since the Unix epoch.
    pub changed_at: i64,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// Parses the publication for a store that has the image at `location`. A record of another location verifies
    /// nothing there.
    pub fn published(self, location: Option<&str>) -> Result<Published, DbErr> {
        let is_relocated = self.location.as_deref().is_some_and(|recorded| location != Some(recorded));
        let published = Published::try_from(self)?;
        Ok(if is_relocated { published.relocated() } else { published })
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
        let pending = row.pending_digest.map(|digest| parse("published.pending_digest", &digest)).transpose()?;
        Ok(Self { root, pending, unproven })
    }
}
