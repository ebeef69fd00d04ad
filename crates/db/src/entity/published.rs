//! The table `published`: images that this service has made visible. Rows outlive the images, because the stores keep
//! the images' content.

use domain::{Digest, ImageId, Published, RegionId, Timestamp, Verification};
use sea_orm::entity::prelude::*;

use super::columns::{self, Number};

/// A value in a text column of this table.
pub type Text<T> = columns::Text<Entity, T>;

/// A name in a region.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "published")]
#[allow(missing_docs, reason = "the names say it")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub region_id: Text<RegionId>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub name: String,
    /// Root of the last completed publication.
    pub root_digest: Option<Text<Digest>>,
    /// Root of an announced publication.
    pub pending_digest: Option<Text<Digest>>,
    /// Image of the last publication.
    pub image_id: Text<ImageId>,
    /// How the published image was verified; NULL if entries of its indexes were absent when it was published.
    pub verification: Option<Text<Verification>>,
    /// Location in the region's store at the time of the publication, if it was recorded.
    pub location: Option<String>,
    pub changed_at: Number<Timestamp>,
}

/// No relation is declared: related rows are read by their own queries.
#[derive(Copy, Clone, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

impl ActiveModelBehavior for ActiveModel {}

impl Model {
    /// Returns the publication for a store that has the image at `location`. A record of another location verifies
    /// nothing at this one.
    pub fn published(self, location: Option<&str>) -> Published {
        let is_relocated = self.location.as_deref().is_some_and(|recorded| location != Some(recorded));
        let published = Published::from(self);
        if is_relocated { published.relocated() } else { published }
    }
}

impl From<Model> for Published {
    fn from(row: Model) -> Self {
        let published = row.root_digest.map(|root| root.0);
        let verification = row.verification.map(|verification| verification.0);
        let root = published.zip(verification);
        let unproven = published.filter(|_| root.is_none());
        Self { root, pending: row.pending_digest.map(|digest| digest.0), unproven }
    }
}
