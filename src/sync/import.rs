//! Putting an image into a store: what `image add` does before it registers it.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{
    destination::{Destination, Meter},
    limits::Limits,
    pass::{Pass, Trouble},
    pump::Waits,
};
use crate::{
    domain::{Descriptor, ImageName, Progress, RegionId, relay::Topology},
    region::{Error, Source, Stage, Store},
};

/// How long nothing at all may move.
const STALL: Duration = Duration::from_secs(60);
/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// Carries the image that `source` knows as `from` into the store of `region`, to `stage`. An image that is there by that name
/// already must be the same one. `progress` is told how far it has come. Returns its root.
pub async fn import(
    source: Arc<dyn Source>,
    from: ImageName,
    region: RegionId,
    store: Arc<dyn Store>,
    stage: Stage,
    progress: impl Fn(Progress),
) -> Result<Descriptor, Trouble> {
    let missing = || Trouble::Source { region: region.clone(), error: Arc::new(Error::ImageMissing(from.to_string())) };
    let root = match source.root(&from).await {
        Ok(root) => root.ok_or_else(missing)?,
        Err(error) => return Err(Trouble::Source { region, error: Arc::new(error) }),
    };
    let destination = |error| Trouble::Destination(Arc::new(error));
    let there = store.root(&stage.name).await.map_err(destination)?;
    if there.is_some_and(|there| there.digest != root.digest) {
        return Err(destination(Error::Occupied(stage.name.to_string())));
    }
    let meter = Arc::<Meter>::default();
    let paces = Limits::new(Topology::default()).paces(&region);
    let destination = Destination {
        region: region.clone(),
        store: Arc::clone(&store),
        stage,
        meter: Arc::clone(&meter),
        lost: CancellationToken::new(),
        paces: Arc::clone(&paces),
        resumed: 0,
        rest: Duration::ZERO,
    };
    let waits = Waits { patience: STALL, stall: STALL };
    let pass = Arc::new(Pass { from: region, source, name: from, root: root.clone(), waits, paces });
    let (ended, mut ends) = mpsc::channel(1);
    let carry = pass.run(vec![(destination, Span::current())], ended).fuse();
    tokio::pin!(carry);
    loop {
        tokio::select! {
            () = &mut carry => {}
            end = ends.recv() => {
                progress(meter.read());
                store.tidy().await;
                let broken = || Err(Trouble::Destination(Arc::new(Error::Interrupted)));
                return end.map_or_else(broken, |(_, result)| result).map(|_| root);
            }
            () = tokio::time::sleep(TICK) => progress(meter.read()),
        }
    }
}
