//! What a claim remembers beyond its worker, in the database.

use async_trait::async_trait;

use crate::{
    domain::{Digest, ImageId, RegionId},
    region::{Error, Journal, Result},
    state::{self, State},
};

/// The journal of one claim.
#[derive(Debug)]
pub struct ReplicaJournal {
    state: State,
    image: ImageId,
    region: RegionId,
    fence: u64,
}

impl ReplicaJournal {
    /// The journal of the claim with that fence.
    pub fn new(state: State, image: ImageId, region: RegionId, fence: u64) -> Self {
        Self { state, image, region, fence }
    }
}

#[allow(clippy::needless_pass_by_value)]
fn failed(error: state::Error) -> Error {
    Error::Journal(error.to_string())
}

#[async_trait]
impl Journal for ReplicaJournal {
    async fn hold(&self) -> Result<()> {
        let holds = self.state.replica_holds(&self.image, &self.region, self.fence).await.map_err(failed)?;
        if holds { Ok(()) } else { Err(Error::Overtaken) }
    }

    async fn upload(&self, blob: Digest) -> Result<Option<String>> {
        self.state.upload_get(&self.image, &self.region, blob).await.map_err(failed)
    }

    async fn note(&self, blob: Digest, session: &str) -> Result<()> {
        let noted = self.state.upload_note(&self.image, &self.region, self.fence, blob, session).await;
        noted.map_err(failed)?.map_err(|_| Error::Overtaken)
    }

    async fn forget(&self, blob: Digest) -> Result<()> {
        self.state.upload_forget(&self.image, &self.region, blob).await.map_err(failed)
    }
}
