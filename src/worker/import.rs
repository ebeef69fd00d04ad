//! Putting an image into a store: what `image add` does before it registers it.

use std::{sync::Arc, time::Duration};

use super::{
    slots::Limits,
    transfer::{Copied, CopyError, Destination, ImageSource, Meter, Transfer, Waits},
};
use crate::{
    domain::{Descriptor, ImageName, Progress, RegionId, Warnings, relay::Topology},
    region::{Error, Source, Stage, Store, Tree},
};

/// How long nothing at all may move.
const STALL: Duration = Duration::from_secs(60);
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(100);

/// Copies the image that `source` knows as `from` into the store of `region`, to `stage`. An image that is there by that name
/// already must be the same one. `progress` is called with how far it has come. Returns its root, and what it arrived without.
pub async fn import(
    source: Arc<dyn Source>,
    from: ImageName,
    region: RegionId,
    store: Arc<dyn Store>,
    stage: Stage,
    progress: impl Fn(Progress),
) -> Result<(Descriptor, Warnings), CopyError> {
    let unreadable = |error| CopyError::Source { region: region.clone(), error: Arc::new(error), is_remote: false };
    let missing = || unreadable(Error::ImageMissing(from.to_string().into()));
    let root = source.root(&from).await.map_err(unreadable)?.ok_or_else(missing)?;
    let absent = Tree::measure(&*source, &from, &root).await.map_err(unreadable)?.absent.into();
    let destination = |error| CopyError::Destination(Arc::new(error));
    let there = store.root_as(&stage.name, root.digest).await.map_err(destination)?;
    if there.is_some_and(|there| there.digest != root.digest) {
        return Err(destination(Error::Occupied(stage.name.to_string().into())));
    }
    let meter = Arc::<Meter>::default();
    let paces = Limits::new(Topology::default()).paces(&region);
    let destination = Destination {
        region: region.clone(),
        store: Arc::clone(&store),
        stage,
        meter: Arc::clone(&meter),
        paces: Arc::clone(&paces),
        stall: STALL,
        resumed: 0,
    };
    let waits = Waits { patience: STALL, stall: STALL };
    let source = ImageSource { region, store: source, name: from, root: root.clone(), absent, paces };
    let transfer = Transfer::start(source, waits);
    let copy = transfer.copy_to(destination, transfer.board());
    tokio::pin!(copy);
    let copied = loop {
        tokio::select! {
            copied = &mut copy => break copied,
            () = tokio::time::sleep(TICK) => progress(meter.read()),
        }
    };
    progress(meter.read());
    store.tidy().await;
    copied.map(|Copied { warnings, .. }| (root, warnings))
}
