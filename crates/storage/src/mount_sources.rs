//! The mount sources of an image: places from which its blobs can be mounted instead of sent. They are determined on
//! first use, because a copy of a small or a complete image needs none.

use std::{fmt, sync::Arc};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};

use super::Place;

/// The mount sources of an image, which are determined on first use. Clones share them.
#[derive(Clone, Default)]
pub struct MountSources(Option<Shared<BoxFuture<'static, Arc<[Place]>>>>);

impl MountSources {
    /// Creates mount sources that `find` determines once, on first use.
    pub fn new(find: impl Future<Output = Vec<Place>> + Send + 'static) -> Self {
        Self(Some(find.map(Arc::from).boxed().shared()))
    }

    /// Returns the mount sources, and determines them on the first call.
    pub async fn places(&self) -> Arc<[Place]> {
        match &self.0 {
            Some(find) => find.clone().await,
            None => Arc::default(),
        }
    }
}

impl fmt::Debug for MountSources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.as_ref().and_then(Shared::peek);
        f.debug_tuple("MountSources").field(&known).finish()
    }
}
