//! Regions of Alibaba Cloud, whose ECS copies images itself (ECS API 2014-05-26).

mod client;
mod credentials;
mod error;
mod listing;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use url::Url;

pub use client::Product;
pub use credentials::{Credentials, Keys, Profile};
pub use error::Error;

use self::{
    client::{Call, Client},
    credentials::Wallet,
    listing::{Listing, NoAnswer},
};
use crate::{
    domain::{Clock, EcsImage, EcsImageId, EcsStatus, Image, ImageId, RegionId, Timestamp},
    region::{self, Egress, ForwardProxy, guard::Guard},
};

/// What the keys of the tags begin with that an image bears which was made for an app.
const TAG: &str = "appferry:";
/// What is asked for in one page of a list: the most that ECS gives.
const PAGE: &str = "100";
/// Every status that an image can have: without them, ECS lists those that are available.
const ANY_STATUS: &str = "Creating,Waiting,Available,UnAvailable,CreateFailed";

/// How the provider is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who asks.
    pub credentials: Credentials,
    /// Where roles are assumed.
    pub sts: Url,
    /// Whether an endpoint may be this machine.
    pub loopback: bool,
    /// The proxy that it is reached by.
    pub proxy: Option<ForwardProxy>,
    /// How long a request may take.
    pub patience: Duration,
    /// How long it is waited between two looks at a copy.
    pub poll: Duration,
    /// How long an image may not be listed after it was made.
    pub settle: Duration,
}

/// A region of the provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The provider's name for it, for example `cn-shanghai`.
    pub name: String,
    /// Where its ECS is.
    pub endpoint: Url,
}

/// The regions of the provider, by our ids for them.
#[derive(Debug, Clone)]
pub struct Ecs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    client: Client,
    wallet: Wallet,
    places: BTreeMap<RegionId, Place>,
    poll: Duration,
    settle: Duration,
}

/// A copy to be asked for.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    /// The app.
    pub image: &'a Image,
    /// The source.
    pub source: &'a EcsImageId,
    /// Where to.
    pub to: &'a RegionId,
    /// What it is to be called.
    pub name: &'a str,
    /// Which copy it is.
    pub generation: u64,
}

impl Ecs {
    /// The regions at these places.
    pub fn new(
        places: impl IntoIterator<Item = (RegionId, Place)>,
        settings: Settings,
        clock: Clock,
    ) -> region::Result<Self> {
        let egress = Egress::new(Guard::new(settings.loopback).with_shared(true), settings.proxy);
        let client = Client::new(egress, clock, settings.patience)?;
        Ok(Self(Arc::new(Shared {
            client,
            wallet: Wallet::new(settings.credentials, settings.sts),
            places: places.into_iter().collect(),
            poll: settings.poll,
            settle: settings.settle,
        })))
    }

    /// The regions, sorted.
    pub fn regions(&self) -> impl Iterator<Item = &RegionId> {
        self.0.places.keys()
    }

    /// Whether it is one of them.
    #[must_use]
    pub fn has(&self, region: &RegionId) -> bool {
        self.0.places.contains_key(region)
    }

    /// How long it is waited between two looks at a copy.
    #[must_use]
    pub fn poll(&self) -> Duration {
        self.0.poll
    }

    /// How long an image may not be listed after it was made.
    #[must_use]
    pub fn settle(&self) -> Duration {
        self.0.settle
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.client.now()
    }

    /// An image of the account, by its id; nothing if it is not listed.
    pub async fn image(&self, region: &RegionId, id: &EcsImageId) -> Result<Option<EcsImage>, Error> {
        let listed = self.list(region, ("ImageId", id.as_str())).await?;
        Ok(listed.into_iter().find(|image| image.id == *id))
    }

    /// The images of the account that have exactly that name. ECS itself takes it for a pattern.
    pub async fn named(&self, region: &RegionId, name: &str) -> Result<Vec<EcsImage>, Error> {
        let mut listed = self.list(region, ("ImageName", name)).await?;
        listed.retain(|image| image.name == name);
        Ok(listed)
    }

    /// An image that can be copied.
    pub async fn source(&self, region: &RegionId, id: &EcsImageId) -> Result<EcsImage, Error> {
        let image = self.image(region, id).await?.ok_or_else(|| Error::Missing(id.clone()))?;
        let not = |status: &str| Error::NotAvailable { image: id.clone(), status: status.into() };
        match &image.status {
            EcsStatus::Available => Ok(image),
            EcsStatus::Creating => Err(not("Creating")),
            EcsStatus::Unusable(status) => Err(not(status)),
        }
    }

    /// Asks for a copy. However often it is asked for one, it makes one.
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

    /// Gives up a copy that ECS makes. One that it has made, or does not know, is left as it is.
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

    /// Deletes an image.
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
        let keys = self.0.wallet.keys(&self.0.client).await?;
        let call = Call { product: Product::Ecs, base: &place.endpoint, action, parameters };
        self.0.client.call(&keys, call).await
    }
}

fn malformed(what: &str, problem: &str) -> Error {
    Error::NoAnswer { product: Product::Ecs, source: Box::new(region::Error::malformed(what, problem)) }
}

/// The tags of an image that is made for an app.
#[must_use]
pub fn tags(image: &Image) -> Vec<(String, String)> {
    vec![(format!("{TAG}app-id"), image.id.to_string()), (format!("{TAG}source-image-id"), image.source.to_string())]
}

/// What makes ECS take all requests for a copy for one: 64 characters, the most that it takes, of nothing but what the copy is.
fn client_token(app: &ImageId, region: &RegionId, generation: u64) -> String {
    // No id has a line break in it.
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
