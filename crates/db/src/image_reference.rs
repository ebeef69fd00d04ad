//! Names of images: within a region, a name belongs to the content of one image.

use domain::{Digest, Event, Image, ImageId, RegionId};
use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel as _, QueryFilter, QuerySelect as _, Set};

use super::{
    Error, Result,
    connections::Transaction,
    entity,
    replica::{self, Lock},
};

/// Policy for a new image whose name belongs to another image.
#[derive(Debug, Clone, Copy)]
pub enum NameConflictPolicy<'a> {
    /// Rejects the new image.
    Reject,
    /// Gives the name to the new image in these regions, whose stores have names for images.
    Supersede(&'a [RegionId]),
}

/// Claims the name of an image that is being registered.
pub(super) async fn claim(txn: &Transaction, image: &Image, policy: NameConflictPolicy<'_>) -> Result<()> {
    let Some(root) = image.root() else { return Ok(()) };
    let name = image.reference().0;
    let holder = find(txn, &name).await?;
    let Some(holder) = holder else {
        let row = entity::image_reference::Model { name, root_digest: root.into(), image_id: image.id.clone().into() };
        entity::image_reference::Entity::insert(row.into_active_model()).exec_without_returning(txn).await?;
        return Ok(());
    };
    if holder.root_digest.0 == root {
        return Ok(());
    }
    match policy {
        NameConflictPolicy::Reject => {
            Err(Error::NameTaken { name: name.clone(), by: holder.image_id.0, root: holder.root_digest.0 })
        }
        NameConflictPolicy::Supersede(regions) => {
            for older in of_content(txn, &name, holder.root_digest.0).await? {
                supersede(txn, &older, &image.id, regions).await?;
            }
            let row = entity::image_reference::ActiveModel {
                name: Set(name),
                root_digest: Set(root.into()),
                image_id: Set(image.id.clone().into()),
            };
            entity::image_reference::Entity::update(row).exec(txn).await?;
            Ok(())
        }
    }
}

/// Releases the name of an image that is being removed. Another image with the same name and content inherits it.
pub(super) async fn release(txn: &Transaction, image: &Image) -> Result<()> {
    let Some(root) = image.root() else { return Ok(()) };
    let name = image.reference().0;
    let Some(holder) = find(txn, &name).await? else { return Ok(()) };
    if holder.root_digest.0 != root {
        return Ok(());
    }
    let heir = of_content(txn, &name, holder.root_digest.0).await?.into_iter().find(|other| other.id != image.id);
    match heir {
        Some(heir) => {
            let mut row = holder.into_active_model();
            row.image_id = Set(heir.id.into());
            entity::image_reference::Entity::update(row).exec(txn).await?;
        }
        None => {
            entity::image_reference::Entity::delete_by_id(name).exec(txn).await?;
        }
    }
    Ok(())
}

/// Reads and locks the owner of a name.
async fn find(txn: &Transaction, name: &str) -> Result<Option<entity::image_reference::Model>> {
    Ok(entity::image_reference::Entity::find_by_id(name).lock_exclusive().one(txn).await?)
}

/// Returns the images with a name and a root.
async fn of_content(txn: &Transaction, name: &str, root: Digest) -> Result<Vec<Image>> {
    use entity::image::{Column, Entity};
    let rows = Entity::find().filter(Column::RootDigest.eq(root.to_string())).all(txn).await?;
    let images = rows.into_iter().map(Image::from);
    Ok(images.filter(|image| image.reference().0 == name).collect())
}

/// Supersedes `older` in some regions. Returns [`Error::ImageInUse`] while a copy of `older` is in flight.
async fn supersede(txn: &Transaction, older: &Image, by: &ImageId, regions: &[RegionId]) -> Result<()> {
    use entity::{image, replica as replicas};
    let rows = replicas::Entity::find().filter(replicas::Column::ImageId.eq(older.id.as_str())).all(txn).await?;
    let keys = rows.iter().map(replicas::Model::key).collect();
    let locked = replica::lock(txn, keys, Lock::Update).await?;
    let mut changed = Vec::new();
    let mut in_flight = Vec::new();
    for ((image, region), row) in &locked.rows {
        let before = row.replica()?;
        if before.outcome().is_none() {
            in_flight.push(region.clone());
        } else if regions.contains(region)
            && let Ok(after) = before.apply(Event::Supersede, locked.now)
        {
            changed.push(row.successor(image, region, &after));
        }
    }
    if !in_flight.is_empty() {
        return Err(Error::ImageInUse { image: older.id.clone(), regions: in_flight });
    }
    replica::save(txn, changed).await?;
    let superseded = image::ActiveModel { superseded_by: Set(Some(by.clone().into())), ..Default::default() };
    image::Entity::update_many().set(superseded).filter(image::Column::Id.eq(older.id.as_str())).exec(txn).await?;
    Ok(())
}
