//! Copies an image from this machine into a store, before `image add` registers it.

use std::{sync::Arc, time::Duration};

use domain::{Descriptor, ImageName, Progress, RegionId, Warnings, relay::Topology};
use storage::{Error, ManifestGraph, Source, Stage, Store};

use super::{
    slots::Limits,
    transfer::{CopyError, CopySummary, Destination, ImageSource, Meter, Transfer, Waits},
};

/// How long the import may make no progress.
const STALL: Duration = Duration::from_secs(60);
/// The interval at which progress is reported.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Copies the image `name` of `source` into the store of `region`, to `stage`. Returns its root, and warnings about
/// attachments that were not copied.
///
/// Fails with [`Error::Occupied`] if the store has another image under that name. Calls `progress` at intervals.
pub async fn import(
    source: Arc<dyn Source>,
    name: ImageName,
    region: RegionId,
    store: Arc<dyn Store>,
    stage: Stage,
    progress: impl Fn(Progress),
) -> Result<(Descriptor, Warnings), CopyError> {
    let unreadable = |error| CopyError::Source { region: region.clone(), error: Arc::new(error), is_remote: false };
    let missing = || unreadable(Error::ImageMissing(name.to_string().into()));
    let root = source.root(&name).await.map_err(unreadable)?.ok_or_else(missing)?;
    let absent = ManifestGraph::measure(&*source, &name, &root).await.map_err(unreadable)?.absent.into();
    let unwritable = |error| CopyError::Destination(Arc::new(error));
    let existing = store.root_as(&stage.name, root.digest).await.map_err(unwritable)?;
    if existing.is_some_and(|existing| existing.digest != root.digest) {
        return Err(unwritable(Error::Occupied(stage.name.to_string().into())));
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
    let source = ImageSource { region, store: source, name, root: root.clone(), absent, paces };
    let transfer = Transfer::start(source, waits);
    let copy = transfer.copy_to(destination, transfer.announce());
    tokio::pin!(copy);
    let result = loop {
        tokio::select! {
            result = &mut copy => break result,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => progress(meter.read()),
        }
    };
    progress(meter.read());
    store.abort_unfinished().await;
    result.map(|CopySummary { warnings, .. }| (root, warnings))
}
