//! The state of the emulated provider: images, keys, and the progress of copies.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Call, InjectedFault, KEY, PlannedFault, Refused};

/// Maximum number of concurrent copies per region. Further copies are queued.
const AT_ONCE: usize = 5;

/// The status of an image, as `DescribeImages` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Waiting,
    Creating,
    Available,
    CreateFailed,
}

/// An image in a region.
#[derive(Debug, Clone)]
pub struct EcsImage {
    pub id: String,
    pub name: String,
    pub status: Status,
    pub gibibytes: u64,
    pub tags: Vec<(String, String)>,
    /// When the copy of the image started; `None` if it has not started, or if the image is not a copy.
    since: Option<Instant>,
    /// The time from which lists include the image.
    listed: Instant,
}

/// An access key that the provider accepts.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: String,
    pub secret: String,
    /// The security token that requests must present, and its expiry as a time since the start of the provider.
    pub token: Option<(String, Duration)>,
}

/// The state of the emulated provider.
#[derive(Debug)]
pub struct Provider {
    pub started: Instant,
    pub keys: Vec<Key>,
    pub nonces: BTreeSet<String>,
    pub calls: Vec<Call>,
    pub planned_faults: Vec<PlannedFault>,
    /// How long a copy takes.
    pub takes: Duration,
    /// Delay until lists include a new image.
    pub lag: Duration,
    /// Number of future copies that will fail, by region.
    pub failing: BTreeMap<String, usize>,
    /// Regions whose image quota is exhausted.
    pub full: BTreeSet<String>,
    /// Lifetime of the temporary keys of a role.
    pub role: Duration,
    regions: BTreeMap<String, Vec<EcsImage>>,
    /// By client token: the parameters of the first request with this token, and the id of the resulting image.
    tokens: HashMap<String, (Vec<(String, String)>, String)>,
    /// Number of image ids ever assigned, by region.
    counts: BTreeMap<String, u64>,
    roles: u64,
}

impl Provider {
    pub fn new(regions: &[&str], takes: Duration) -> Self {
        let key = Key { id: KEY[0].to_owned(), secret: KEY[1].to_owned(), token: None };
        Self {
            started: Instant::now(),
            keys: vec![key],
            nonces: BTreeSet::new(),
            calls: Vec::new(),
            planned_faults: Vec::new(),
            takes,
            lag: Duration::ZERO,
            failing: BTreeMap::new(),
            full: BTreeSet::new(),
            role: Duration::from_secs(3_600),
            regions: regions.iter().map(|region| ((*region).to_owned(), Vec::new())).collect(),
            tokens: HashMap::new(),
            counts: BTreeMap::new(),
            roles: 0,
        }
    }

    /// Adds an available image, and returns its id.
    pub fn put(&mut self, region: &str, name: &str, tags: &[(&str, &str)]) -> String {
        let tags = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let id = self.id(region);
        let image = EcsImage {
            id: id.clone(),
            name: name.to_owned(),
            status: Status::Available,
            gibibytes: 40,
            tags,
            since: None,
            listed: Instant::now(),
        };
        self.regions.get_mut(region).expect("a region").push(image);
        id
    }

    /// Returns the current images of a region.
    pub fn images(&mut self, region: &str) -> Vec<EcsImage> {
        self.advance();
        self.regions.get(region).expect("a region").clone()
    }

    /// Modifies the images of a region, as another client of the provider would.
    pub fn change(&mut self, region: &str, change: impl FnOnce(&mut Vec<EcsImage>)) {
        change(self.regions.get_mut(region).expect("a region"));
    }

    /// Returns the number of copies ever started.
    pub fn copies_started(&self) -> usize {
        self.tokens.len()
    }

    /// Returns a new image id, which depends only on the region and on the number of ids assigned there before.
    fn id(&mut self, region: &str) -> String {
        let count = self.counts.entry(region.to_owned()).or_default();
        *count += 1;
        format!("m-bp1{}", &hex::encode(Sha256::digest(format!("{region} {count}")))[..15])
    }

    /// Returns the fault to inject into a request, if any.
    pub fn fault(&mut self, action: &str, region: &str) -> Option<InjectedFault> {
        let planned = self.planned_faults.iter_mut().find(|planned| {
            planned.action == action && planned.times > 0 && (planned.region == region || planned.region == "*")
        })?;
        planned.times -= 1;
        Some(planned.fault.clone())
    }

    /// Updates the statuses of copies: ends those whose time has passed, and starts queued ones, up to [`AT_ONCE`] per
    /// region.
    fn advance(&mut self) {
        for (region, images) in &mut self.regions {
            for image in images.iter_mut().filter(|image| image.status == Status::Creating) {
                if image.since.is_none_or(|since| since.elapsed() < self.takes) {
                    continue;
                }
                let failing = self.failing.get_mut(region).filter(|times| **times > 0);
                image.status = if let Some(times) = failing {
                    *times -= 1;
                    Status::CreateFailed
                } else {
                    Status::Available
                };
            }
            let busy = images.iter().filter(|image| image.status == Status::Creating).count();
            let waiting = images.iter_mut().filter(|image| image.status == Status::Waiting);
            for image in waiting.take(AT_ONCE.saturating_sub(busy)) {
                image.status = Status::Creating;
                image.since = Some(Instant::now());
            }
        }
    }

    /// Executes an action, or rejects it with the documented error.
    pub fn execute(&mut self, action: &str, parameters: &[(String, String)]) -> Result<Value, Refused> {
        self.advance();
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let need = |name: &str| {
            let missing = || Refused::new(400, "MissingParameter", &format!("{name} is mandatory for this action."));
            get(name).ok_or_else(missing)
        };
        if action == "AssumeRole" {
            return self.assume(need("RoleArn")?);
        }
        let region = need("RegionId")?;
        if !self.regions.contains_key(region) {
            return Err(Refused::new(404, "InvalidRegionId.NotFound", "The specified RegionId does not exist."));
        }
        match action {
            "CopyImage" => self.copy(region, need("ImageId")?, parameters),
            "DescribeImages" => Ok(self.describe(region, parameters)),
            "CancelCopyImage" => self.cancel(region, need("ImageId")?),
            "DeleteImage" => self.delete(region, need("ImageId")?),
            _ => Err(Refused::new(404, "InvalidAction.NotFound", "Specified api is not found.")),
        }
    }

    fn copy(&mut self, region: &str, image: &str, parameters: &[(String, String)]) -> Result<Value, Refused> {
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let token = get("ClientToken").filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| token.len() > 64) {
            return Err(Refused::new(400, "InvalidClientToken.Malformed", "The ClientToken is too long."));
        }
        let mut request_parameters = parameters.to_vec();
        request_parameters.sort_unstable();
        if let Some((before, image)) = token.as_ref().and_then(|token| self.tokens.get(token)) {
            return if *before == request_parameters {
                Ok(json!({ "ImageId": image }))
            } else {
                Err(Refused::new(400, "IdempotentParameterMismatch", "The parameters differ from those before."))
            };
        }
        let source = self.regions[region].iter().find(|candidate| candidate.id == image).cloned();
        let source = source
            .ok_or_else(|| Refused::new(404, "InvalidImageId.NotFound", "The specified ImageId does not exist."))?;
        if source.status != Status::Available {
            return Err(Refused::new(400, "IncorrectImageStatus", "The specified image is not available."));
        }
        let to = get("DestinationRegionId").unwrap_or_default();
        let name = get("DestinationImageName").unwrap_or_else(|| source.name.clone());
        if !(2..=128).contains(&name.chars().count()) || !name.starts_with(char::is_alphabetic) {
            return Err(Refused::new(400, "InvalidImageName.Malformed", "The specified Image name is wrongly formed."));
        }
        let description = get("DestinationDescription").unwrap_or_default();
        if description.starts_with("http") || description.chars().count() == 1 || description.chars().count() > 256 {
            return Err(Refused::new(400, "InvalidDescription.Malformed", "The description is wrongly formed."));
        }
        let id = self.id(&to);
        let (lag, gibibytes) = (self.lag, source.gibibytes);
        let Some(images) = self.regions.get_mut(&to) else {
            return Err(Refused::new(404, "DestinationRegion.NotFound", "The specified region does not exist."));
        };
        if images.iter().any(|image| image.name == name) {
            return Err(Refused::new(400, "InvalidImageName.Duplicated", "The destination image is exist."));
        }
        if self.full.contains(&to) {
            return Err(Refused::new(400, "QuotaExceed.Image", "The Image Quota exceeds."));
        }
        let tag = |number: usize| Some((get(&format!("Tag.{number}.Key"))?, get(&format!("Tag.{number}.Value"))?));
        images.push(EcsImage {
            id: id.clone(),
            name,
            status: Status::Waiting,
            gibibytes,
            tags: (1..=20).filter_map(tag).collect(),
            since: None,
            listed: Instant::now() + lag,
        });
        if let Some(token) = token {
            self.tokens.insert(token, (request_parameters, id.clone()));
        }
        Ok(json!({ "ImageId": id }))
    }

    fn describe(&self, region: &str, parameters: &[(String, String)]) -> Value {
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let number = |name: &str, default: usize| get(name).and_then(|text| text.parse().ok()).unwrap_or(default);
        let statuses: Vec<&str> = get("Status").unwrap_or("Available").split(',').collect();
        let shown = |image: &&EcsImage| {
            let status = format!("{:?}", image.status);
            image.listed <= Instant::now()
                && statuses.contains(&status.as_str())
                && get("ImageId").is_none_or(|id| image.id == id)
                && get("ImageName").is_none_or(|name| image.name.contains(name))
        };
        let all: Vec<&EcsImage> = self.regions[region].iter().filter(shown).collect();
        let (size, page) = (number("PageSize", 10).min(100), number("PageNumber", 1));
        let percent = |image: &EcsImage| match (image.status, image.since) {
            (Status::Available, _) => 100,
            (Status::Creating, Some(since)) => {
                (since.elapsed().as_millis() * 100 / self.takes.as_millis().max(1)).min(99)
            }
            _ => 0,
        };
        let image = |image: &&EcsImage| {
            let tags: Vec<_> =
                image.tags.iter().map(|(key, value)| json!({"TagKey": key, "TagValue": value})).collect();
            json!({
                "ImageId": image.id, "ImageName": image.name, "Status": format!("{:?}", image.status),
                "Progress": format!("{}%", percent(image)), "Size": image.gibibytes, "ImageOwnerAlias": "self",
                "Tags": {"Tag": tags}, "OSType": "linux", "Architecture": "x86_64",
            })
        };
        let images: Vec<_> = all.iter().skip((page - 1) * size).take(size).map(image).collect();
        json!({
            "TotalCount": all.len(), "PageNumber": page, "PageSize": size, "RegionId": region,
            "Images": {"Image": images},
        })
    }

    fn cancel(&mut self, region: &str, image: &str) -> Result<Value, Refused> {
        let images = self.regions.get_mut(region).expect("a region");
        let Some(index) = images.iter().position(|candidate| candidate.id == image) else {
            return Err(Refused::new(404, "InvalidImageId.NotFound", "The specified ImageId does not exist."));
        };
        match images[index].status {
            Status::Waiting | Status::Creating => {
                images.remove(index);
                Ok(json!({}))
            }
            Status::Available => Err(Refused::new(400, "IncorrectImageStatus", "The image is copied finished.")),
            Status::CreateFailed => Err(Refused::new(
                400,
                "ImageCreatedNotFromCopy",
                "The specified image is not the target image of a copy action.",
            )),
        }
    }

    fn delete(&mut self, region: &str, image: &str) -> Result<Value, Refused> {
        let images = self.regions.get_mut(region).expect("a region");
        let Some(index) = images.iter().position(|candidate| candidate.id == image) else {
            return Err(Refused::new(404, "InvalidImageId.NotFound", "The specified ImageId does not exist."));
        };
        if matches!(images[index].status, Status::Waiting | Status::Creating) {
            return Err(Refused::new(403, "IncorrectImageStatus", "The image is being copied."));
        }
        images.remove(index);
        Ok(json!({}))
    }

    fn assume(&mut self, role: &str) -> Result<Value, Refused> {
        if !role.starts_with("acs:ram::") {
            return Err(Refused::new(404, "EntityNotExist.Role", "The role does not exist."));
        }
        self.roles += 1;
        let token = format!("CAIS+/={}", self.roles);
        let key = Key {
            id: format!("STS.{}", self.roles),
            secret: format!("temporary-{}", self.roles),
            token: Some((token.clone(), self.started.elapsed() + self.role)),
        };
        self.keys.push(key.clone());
        let until = appferry::system_clock().now().after(self.role);
        Ok(json!({"Credentials": {
            "AccessKeyId": key.id, "AccessKeySecret": key.secret, "SecurityToken": token,
            "Expiration": appferry::domain::Timestamp::from_millis(until.as_millis() / 1_000 * 1_000).to_string(),
        }}))
    }
}
