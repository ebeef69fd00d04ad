//! To which content a name belongs: one name in a region is one image's.

use sea_orm::{ColumnTrait, EntityTrait, IntoActiveModel as _, QueryFilter, Set};

use super::{
    Error, Result,
    database::Transaction,
    entity,
    replica::{self, Lock},
    sql::Sql,
};
use crate::domain::{Event, Image, ImageId, RegionId};

/// What becomes of another image that has a new image's name.
#[derive(Debug, Clone, Copy)]
pub enum NameTaken<'a> {
    /// The new image is refused.
    Refuse,
    /// The new image takes the name over, in these regions: those that give images names of their own.
    Supersede(&'a [RegionId]),
}

/// Gives the name of an image that is being registered to it.
pub(super) async fn claim(txn: &Transaction, image: &Image, taken: NameTaken<'_>) -> Result<()> {
    let Some(root) = image.root() else { return Ok(()) };
    let name = image.reference().0;
    let (root, id) = (root.to_string(), image.id.to_string());
    let holder = find(txn, &name).await?;
    let Some(holder) = holder else {
        let row = entity::image_reference::Model { name, root_digest: root, image_id: id };
        entity::image_reference::Entity::insert(row.into_active_model()).exec_without_returning(txn).await?;
        return Ok(());
    };
    if holder.root_digest == root {
        return Ok(());
    }
    match taken {
        NameTaken::Refuse => Err(Error::NameTaken {
            name: name.clone(),
            by: entity::parse("image_reference.image_id", &holder.image_id)?,
            root: entity::parse("image_reference.root_digest", &holder.root_digest)?,
        }),
        NameTaken::Supersede(regions) => {
            for older in of_content(txn, &name, &holder.root_digest).await? {
                supersede(txn, &older, &image.id, regions).await?;
            }
            let row =
                entity::image_reference::ActiveModel { name: Set(name), root_digest: Set(root), image_id: Set(id) };
            entity::image_reference::Entity::update(row).exec(txn).await?;
            Ok(())
        }
    }
}

/// Gives up the name of an image that is being removed; another one of the same name and content keeps it.
pub(super) async fn release(txn: &Transaction, image: &Image) -> Result<()> {
    let Some(root) = image.root() else { return Ok(()) };
    let name = image.reference().0;
    let Some(holder) = find(txn, &name).await? else { return Ok(()) };
    if holder.root_digest != root.to_string() {
        return Ok(());
    }
    let heir = of_content(txn, &name, &holder.root_digest).await?.into_iter().find(|other| other.id != image.id);
    match heir {
        Some(heir) => {
            let mut row = holder.into_active_model();
            row.image_id = Set(heir.id.to_string());
            entity::image_reference::Entity::update(row).exec(txn).await?;
        }
        None => {
            entity::image_reference::Entity::delete_by_id(name).exec(txn).await?;
        }
    }
    Ok(())
}

/// Who has a name, locked.
async fn find(txn: &Transaction, name: &str) -> Result<Option<entity::image_reference::Model>> {
    let sql = Sql::on(txn)
        .text("SELECT f.name, f.root_digest, f.image_id FROM image_reference AS f WHERE f.name = ")
        .value(name)
        .lock("f");
    Ok(sql.all(txn).await?.pop())
}

/// The images that are registered by a name and have a root.
async fn of_content(txn: &Transaction, name: &str, root: &str) -> Result<Vec<Image>> {
    use entity::image::{Column, Entity};
    let rows = Entity::find().filter(Column::RootDigest.eq(root)).all(txn).await?;
    let images = rows.into_iter().map(Image::try_from).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(images.into_iter().filter(|image| image.reference().0 == name).collect())
}

/// Takes the name of `older` away, in some regions. Refused while it is being copied to any.
async fn supersede(txn: &Transaction, older: &Image, by: &ImageId, regions: &[RegionId]) -> Result<()> {
    use entity::{image, replica as replicas};
    let rows = replicas::Entity::find().filter(replicas::Column::ImageId.eq(older.id.as_str())).all(txn).await?;
    let keys = rows.iter().map(replicas::Model::key).collect::<Result<Vec<_>>>()?;
    let locked = replica::lock(txn, keys, Lock::Change).await?;
    let mut saved = Vec::new();
    let mut busy = Vec::new();
    for ((image, region), row) in &locked.rows {
        let before = row.replica()?;
        if before.outcome().is_none() {
            busy.push(region.clone());
        } else if regions.contains(region)
            && let Ok(after) = before.apply(Event::Supersede, locked.now)
        {
            saved.push(row.followed_by(image, region, &after));
        }
    }
    if !busy.is_empty() {
        return Err(Error::ImageInUse { image: older.id.clone(), regions: busy });
    }
    replica::save(txn, saved).await?;
    let mark = image::ActiveModel { superseded_by: Set(Some(by.to_string())), ..Default::default() };
    image::Entity::update_many().set(mark).filter(image::Column::Id.eq(older.id.as_str())).exec(txn).await?;
    Ok(())
}
