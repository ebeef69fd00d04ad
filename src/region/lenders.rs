//! Where blobs of an image may be taken from without carrying them. That is found out when it is first asked for: most images that are small,
//! or whose blobs are all there, never do.

use std::{fmt, sync::Arc};

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};

use super::Place;

/// Where blobs may be taken from, once that was found out. Clones share it.
#[derive(Clone, Default)]
pub struct Lenders(Option<Shared<BoxFuture<'static, Arc<[Place]>>>>);

impl Lenders {
    /// Places that `find` finds out, once, when they are first asked for.
    pub fn new(find: impl Future<Output = Vec<Place>> + Send + 'static) -> Self {
        Self(Some(find.map(Arc::from).boxed().shared()))
    }

    /// The places.
    pub async fn places(&self) -> Arc<[Place]> {
        match &self.0 {
            Some(find) => find.clone().await,
            None => Arc::default(),
        }
    }
}

impl fmt::Debug for Lenders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = self.0.as_ref().and_then(Shared::peek);
        f.debug_tuple("Lenders").field(&known).finish()
    }
}
