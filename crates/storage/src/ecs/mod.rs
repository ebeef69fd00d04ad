//! Alibaba Cloud regions, between which ECS copies images itself (ECS API 2014-05-26).

mod client;
mod credentials;
mod error;
mod listing;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use domain::{Clock, EcsImage, EcsImageId, EcsStatus, Image, ImageId, RegionId, Timestamp};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use url::Url;

pub use client::Product;
pub use credentials::{Credentials, Keys, Profile};
pub use error::Error;

use self::{
    client::{Call, Client},
    credentials::CredentialProvider,
    listing::{Listing, NoAnswer},
};
use crate::{Egress, ForwardProxy, ssrf_guard::Guard};

/// The prefix of the tag keys that mark an image made for an app.
const TAG: &str = "appferry:";
/// The page size of a list request: the maximum that ECS allows.
const PAGE: &str = "100";
/// Every status of an image. Without this filter, ECS lists only available images.
const ANY_STATUS: &str = "Creating,Waiting,Available,UnAvailable,CreateFailed";

/// The settings for requests to Alibaba Cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Settings {
    pub credentials: Credentials,
    /// The endpoint of STS, which assumes roles.
    pub sts: Url,
    /// Whether an endpoint may be a loopback address.
    pub loopback: bool,
    /// The proxy for requests to Alibaba Cloud.
    pub proxy: Option<ForwardProxy>,
    /// The time limit of a request.
    pub patience: Duration,
    /// The interval between two polls of a copy.
    pub poll: Duration,
    /// How long a new image may be missing from lists before it counts as vanished.
    pub settle: Duration,
}

/// A region of Alibaba Cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Alibaba Cloud's name for the region, for example `cn-shanghai`.
    pub name: String,
    /// The region's ECS endpoint.
    pub endpoint: Url,
}

/// The regions of Alibaba Cloud, keyed by this service's region ids. Clones share the client.
#[derive(Debug, Clone)]
pub struct Ecs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    credentials: CredentialProvider,
    places: BTreeMap<RegionId, Place>,
    poll: Duration,
    settle: Duration,
}

/// A copy to request.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Order<'a> {
    /// The app to copy.
    pub image: &'a Image,
    pub source: &'a EcsImageId,
    /// The destination region.
    pub to: &'a RegionId,
    /// The name of the new image.
    pub name: &'a str,
    /// The number of this copy. A new number makes ECS start another copy.
    pub generation: u64,
}

impl Ecs {
    /// Creates the client for these regions.
    pub fn new(
        places: impl IntoIterator<Item = (RegionId, Place)>,
        settings: Settings,
        clock: Clock,
    ) -> crate::Result<Self> {
        let egress = Egress::new(Guard::new(settings.loopback).with_shared(true), settings.proxy);
        let client = Client::new(egress, clock, settings.patience)?;
        Ok(Self(Arc::new(Shared {
            client,
            credentials: CredentialProvider::new(settings.credentials, settings.sts),
            places: places.into_iter().collect(),
            poll: settings.poll,
            settle: settings.settle,
        })))
    }

    /// Returns the regions, sorted by id.
    pub fn regions(&self) -> impl Iterator<Item = &RegionId> {
        self.0.places.keys()
    }

    /// Returns whether the region belongs to Alibaba Cloud.
    #[must_use]
    pub fn has(&self, region: &RegionId) -> bool {
        self.0.places.contains_key(region)
    }

    /// Returns the interval between two polls of a copy.
    #[must_use]
    pub fn poll(&self) -> Duration {
        self.0.poll
    }

    /// Returns how long a new image may be missing from lists before it counts as vanished.
    #[must_use]
    pub fn settle(&self) -> Duration {
        self.0.settle
    }

    /// Returns the current time, by the clock that also dates the requests.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.client.now()
    }

    /// Finds an image of the account by its id. Returns `None` if ECS does not list it.
    pub async fn image(&self, region: &RegionId, id: &EcsImageId) -> Result<Option<EcsImage>, Error> {
        let listed = self.list(region, ("ImageId", id.as_str())).await?;
        Ok(listed.into_iter().find(|image| image.id == *id))
    }

    /// Returns the images of the account with exactly this name. ECS itself matches the name as a pattern.
    pub async fn named(&self, region: &RegionId, name: &str) -> Result<Vec<EcsImage>, Error> {
        let mut listed = self.list(region, ("ImageName", name)).await?;
        listed.retain(|image| image.name == name);
        Ok(listed)
    }

    /// Finds an image of the account that can be copied. Fails if it is missing or not available.
    pub async fn source(&self, region: &RegionId, id: &EcsImageId) -> Result<EcsImage, Error> {
        let image = self.image(region, id).await?.ok_or_else(|| Error::Missing(id.clone()))?;
        let not = |status: &str| Error::NotAvailable { image: id.clone(), status: status.into() };
        match &image.status {
            EcsStatus::Available => Ok(image),
            EcsStatus::Creating => Err(not("Creating")),
            EcsStatus::Unusable(status) => Err(not(status)),
        }
    }

    /// Requests a copy. The request is idempotent: repeats of the same order return the same image.
    pub async fn copy(&self, home: &RegionId, order: &Order<'_>) -> Result<EcsImageId, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            image_id: String,
        }
        let to = self.place(order.to)?;
        let mut parameters = vec![
            ("ImageId".to_owned(), order.source.to_string()),
            ("DestinationRegionId".to_owned(), to.name.clone()),
            ("DestinationImageName".to_owned(), order.name.to_owned()),
            ("DestinationDescription".to_owned(), format!("{} by appferry", order.image.id)),
            ("ClientToken".to_owned(), client_token(&order.image.id, order.to, order.generation)),
        ];
        for (number, (key, value)) in tags(order.image).into_iter().enumerate() {
            parameters.push((format!("Tag.{}.Key", number + 1), key));
            parameters.push((format!("Tag.{}.Value", number + 1), value));
        }
        let Answer { image_id } = self.call(home, "CopyImage", parameters).await?;
        image_id.parse().map_err(|problem: String| malformed("CopyImage", &problem))
    }

    /// Cancels a running copy. Succeeds without effect if the copy is complete or unknown to ECS.
    pub async fn cancel(&self, region: &RegionId, id: &EcsImageId) -> Result<(), Error> {
        let parameters = vec![("ImageId".to_owned(), id.to_string())];
        match self.call::<NoAnswer>(region, "CancelCopyImage", parameters).await {
            Err(error)
                if !(error.is("IncorrectImageStatus")
                    || error.is("ImageCreatedNotFromCopy")
                    || error.is("InvalidImageId.NotFound")) =>
            {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    /// Deletes an image. Succeeds if ECS does not know it.
    pub async fn delete(&self, region: &RegionId, id: &EcsImageId) -> Result<(), Error> {
        let parameters = vec![("ImageId".to_owned(), id.to_string())];
        match self.call::<NoAnswer>(region, "DeleteImage", parameters).await {
            Err(error) if !error.is("InvalidImageId.NotFound") => Err(error),
            _ => Ok(()),
        }
    }

    async fn list(&self, region: &RegionId, (filter, value): (&str, &str)) -> Result<Vec<EcsImage>, Error> {
        let mut images = Vec::new();
        for page in 1_u32.. {
            let parameters = [
                (filter, value),
                ("ImageOwnerAlias", "self"),
                ("Status", ANY_STATUS),
                ("PageSize", PAGE),
                ("PageNumber", &page.to_string()),
            ];
            let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
            let listing: Listing = self.call(region, "DescribeImages", parameters).await?;
            let (total, found) = listing.read().map_err(|problem| malformed("DescribeImages", &problem))?;
            let last = found.is_empty();
            images.extend(found);
            if last || images.len() as u64 >= total {
                break;
            }
        }
        Ok(images)
    }

    fn place(&self, region: &RegionId) -> Result<&Place, Error> {
        self.0
            .places
            .get(region)
            .ok_or_else(|| malformed("the region", &format!("{region} is not configured to be one of the provider's")))
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        region: &RegionId,
        action: &'static str,
        mut parameters: Vec<(String, String)>,
    ) -> Result<T, Error> {
        let place = self.place(region)?;
        parameters.push(("RegionId".to_owned(), place.name.clone()));
        let keys = self.0.credentials.keys(&self.0.client).await?;
        let call = Call { product: Product::Ecs, base: &place.endpoint, action, parameters };
        self.0.client.call(&keys, call).await
    }
}

fn malformed(what: &str, problem: &str) -> Error {
    Error::NoAnswer { product: Product::Ecs, source: Box::new(crate::Error::malformed(what, problem)) }
}

/// Returns the tags of an image that is made for an app.
#[must_use]
pub fn tags(image: &Image) -> Vec<(String, String)> {
    vec![(format!("{TAG}app-id"), image.id.to_string()), (format!("{TAG}source-image-id"), image.source.to_string())]
}

/// Returns the token by which ECS recognizes repeats of a copy request: 64 characters, the maximum, derived only from
/// the order of the copy.
fn client_token(app: &ImageId, region: &RegionId, generation: u64) -> String {
    // Ids contain no line break, so the fields stay distinct.
    hex::encode(Sha256::digest(format!("{app}\n{region}\n{generation}")))
}

#[cfg(test)]
mod tests {
    use super::client_token;

    #[test]
    fn a_token_is_of_one_copy_and_has_64_characters() {
        let app = |text: &str| text.parse().expect("an id");
        let region = |text: &str| text.parse().expect("an id");
        let token = client_token(&app("a"), &region("b"), 1);
        assert_eq!(token, client_token(&app("a"), &region("b"), 1));
        assert_eq!(token.len(), 64);
        let others = [client_token(&app("a"), &region("b"), 2), client_token(&app("a"), &region("c"), 1)];
        assert!(!others.contains(&token));
    }
}
