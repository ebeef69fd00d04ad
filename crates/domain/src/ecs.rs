//! A copy by ECS: its record, and the decision about the next step.
//!
//! ECS replies to `CopyImage` at once and copies in the background; only polling shows when the image is usable. An
//! accepted copy is recorded as a generation. Every request of a generation has the same client token and therefore
//! leads to the same image, regardless of how often and from which process it is sent. A new generation begins only
//! when the image of the previous one is known to be unusable.

use std::{fmt, str::FromStr, time::Duration};

use super::{ForeignText, Timestamp};

/// Id of an ECS image: `m-` and 1 to 64 letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EcsImageId(String);

impl EcsImageId {
    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EcsImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EcsImageId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let suffix = text.strip_prefix("m-").filter(|suffix| (1..=64).contains(&suffix.len()));
        if suffix.is_some_and(|suffix| suffix.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return Ok(Self(text.to_owned()));
        }
        let shown = ForeignText::value(text);
        Err(format!(
            "{shown:?} is not the id of an ECS image; expected m- followed by letters and digits, for example m-bp1h46wfpjsjastc"
        ))
    }
}

/// Status of an ECS image (ECS API 2014-05-26, `DescribeImages`, `Status`).
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum EcsStatus {
    /// `Creating` or `Waiting`: the image is being created or queued.
    Creating,
    Available,
    /// `CreateFailed`, `UnAvailable` and any other status: the image will never be usable.
    Unusable(ForeignText),
}

/// An image in a listing of ECS.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct EcsImage {
    pub id: EcsImageId,
    /// Name, unique in the account and region.
    pub name: String,
    /// Current status.
    pub status: EcsStatus,
    /// Progress in percent.
    pub percent: u8,
    /// Size in GiB.
    pub gibibytes: u64,
    /// Tags as pairs of key and value.
    pub tags: Vec<(String, String)>,
}

impl EcsImage {
    /// Whether it has all of the given tags.
    #[must_use]
    pub fn has_tags(&self, tags: &[(String, String)]) -> bool {
        tags.iter().all(|tag| self.tags.contains(tag))
    }
}

/// Record of the copy of an image to a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcsCopy {
    /// Number of the generation, greater than every earlier one.
    pub generation: u64,
    /// Time at which the generation started or its image became known.
    pub since: Timestamp,
    /// The image, once ECS has reported its id.
    pub image: Option<EcsImageId>,
    /// Whether ECS has reported the image as available.
    pub finished: bool,
    /// Image of an earlier generation that is to be aborted, and may already have been.
    pub discarded: Option<EcsImageId>,
}

/// Next step of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EcsStep {
    /// Request the copy from ECS.
    Copy,
    /// Poll again later. Holds the progress in percent.
    Wait(u8),
    /// Adopt this image, which was created for the copy.
    Adopt(EcsImageId),
    /// Finish: the image is available.
    Finish,
    /// Cancel the creation of this image, which was requested for the copy, and poll again later.
    Cancel(EcsImageId),
    /// Delete this image, which was created for the copy and is unusable, and poll again later.
    Delete(EcsImageId),
    /// Begin a new generation: the image is unusable. Holds its status unless it has vanished.
    Renew(Option<ForeignText>),
    /// Fail: an image with the same name was not created for the copy.
    Refuse(EcsImageId),
}

impl EcsCopy {
    /// Creates the first generation. Its number is the current time, so that an image that was removed and added again
    /// gets a new number.
    #[must_use]
    pub fn first(now: Timestamp) -> Self {
        let generation = now.as_millis().unsigned_abs();
        Self { generation, since: now, image: None, finished: false, discarded: None }
    }

    /// Returns this generation with the image that was created for it.
    #[must_use]
    pub fn with_image(&self, image: EcsImageId, now: Timestamp) -> Self {
        Self { image: Some(image), since: now, ..self.clone() }
    }

    /// Returns the next generation, which discards the image of this one.
    #[must_use]
    pub fn next(&self, now: Timestamp) -> Self {
        let first = Self::first(now);
        let discarded = self.image.clone().or_else(|| self.discarded.clone());
        Self { generation: first.generation.max(self.generation + 1), discarded, ..first }
    }

    /// Whether the duration `settle` has passed since `since`. Also true if `since` lies that far in the future,
    /// because the clock was set back.
    #[must_use]
    pub fn is_settled(&self, now: Timestamp, settle: Duration) -> bool {
        self.since.until(now).max(now.until(self.since)) >= settle
    }

    /// Decides the next step from ECS's listing of the copy's image. Until `settle` has passed since the image became
    /// known, an unlisted image counts as not listed yet.
    #[must_use]
    pub fn watch(&self, listed: Option<&EcsImage>, now: Timestamp, settle: Duration) -> EcsStep {
        match listed {
            Some(EcsImage { status: EcsStatus::Available, .. }) => EcsStep::Finish,
            Some(EcsImage { status: EcsStatus::Creating, percent, .. }) => EcsStep::Wait(*percent),
            Some(EcsImage { status: EcsStatus::Unusable(status), .. }) => EcsStep::Renew(Some(status.clone())),
            None if !self.finished && !self.is_settled(now, settle) => EcsStep::Wait(0),
            None => EcsStep::Renew(None),
        }
    }

    /// Decides the next step of a generation without an image. `named` are the images with the name of the copy; those
    /// with all of `tags` were created for the copy.
    #[must_use]
    pub fn begin(&self, named: &[EcsImage], tags: &[(String, String)]) -> EcsStep {
        let Some(image) = named.first() else { return EcsStep::Copy };
        let id = image.id.clone();
        match &image.status {
            _ if !image.has_tags(tags) => EcsStep::Refuse(id),
            EcsStatus::Creating if self.discarded.as_ref() == Some(&id) => EcsStep::Cancel(id),
            EcsStatus::Creating | EcsStatus::Available => EcsStep::Adopt(id),
            EcsStatus::Unusable(_) => EcsStep::Delete(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{EcsCopy, EcsImage, EcsImageId, EcsStatus, EcsStep};
    use crate::Timestamp;

    const SETTLE: Duration = Duration::from_secs(60);

    fn id(text: &str) -> EcsImageId {
        text.parse().expect("an id")
    }

    fn tags() -> Vec<(String, String)> {
        vec![("a".into(), "1".into()), ("b".into(), "2".into())]
    }

    fn image(status: EcsStatus, tags: Vec<(String, String)>) -> EcsImage {
        EcsImage { id: id("m-1"), name: "gromacs".into(), status, percent: 40, gibibytes: 40, tags }
    }

    #[test]
    fn ids_are_parsed_and_rejected() {
        assert_eq!(id("m-bp1h46wfpjsjastc").as_str(), "m-bp1h46wfpjsjastc");
        for bad in ["", "m-", "bp1", "m-a/b", "m-a b", "M-a", "m-\u{e9}", &format!("m-{}", "a".repeat(65))] {
            assert!(bad.parse::<EcsImageId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_copy_is_watched_to_its_end() {
        let now = Timestamp::from_millis(1_000_000);
        let copy = EcsCopy { image: Some(id("m-1")), ..EcsCopy::first(now) };
        let step = |status: Option<EcsStatus>, finished, after| {
            let listed = status.map(|status| image(status, tags()));
            EcsCopy { finished, ..copy.clone() }.watch(listed.as_ref(), now.after(after), SETTLE)
        };
        let unusable = EcsStatus::Unusable("CreateFailed".into());
        assert_eq!(step(Some(EcsStatus::Creating), false, SETTLE * 9), EcsStep::Wait(40));
        assert_eq!(step(Some(EcsStatus::Available), false, SETTLE), EcsStep::Finish);
        assert_eq!(step(Some(unusable), false, Duration::ZERO), EcsStep::Renew(Some("CreateFailed".into())));
        assert_eq!(step(None, false, SETTLE / 2), EcsStep::Wait(0), "it may not be listed yet");
        assert_eq!(step(None, false, SETTLE), EcsStep::Renew(None));
        assert_eq!(step(None, true, SETTLE / 2), EcsStep::Renew(None), "it was listed before");
    }

    #[test]
    fn only_images_created_for_the_copy_are_changed() {
        let copy = EcsCopy::first(Timestamp::from_millis(1));
        let begin = |copy: &EcsCopy, status, tags: Vec<_>| copy.begin(&[image(status, tags)], &self::tags());
        let unusable = || EcsStatus::Unusable("CreateFailed".into());
        assert_eq!(copy.begin(&[], &tags()), EcsStep::Copy);
        for status in [EcsStatus::Creating, EcsStatus::Available] {
            assert_eq!(begin(&copy, status.clone(), tags()), EcsStep::Adopt(id("m-1")));
            assert_eq!(begin(&copy, status, tags()[..1].to_vec()), EcsStep::Refuse(id("m-1")));
        }
        assert_eq!(begin(&copy, unusable(), tags()), EcsStep::Delete(id("m-1")));
        assert_eq!(begin(&copy, unusable(), Vec::new()), EcsStep::Refuse(id("m-1")));
        let canceled = EcsCopy { discarded: Some(id("m-1")), ..copy };
        assert_eq!(begin(&canceled, EcsStatus::Creating, tags()), EcsStep::Cancel(id("m-1")));
        assert_eq!(begin(&canceled, EcsStatus::Available, tags()), EcsStep::Adopt(id("m-1")), "it was too late");
    }

    #[test]
    fn generations_grow_and_keep_the_discarded_image() {
        let first = EcsCopy::first(Timestamp::from_millis(7));
        let created = EcsCopy { image: Some(id("m-1")), finished: true, ..first };
        let next = created.next(Timestamp::from_millis(3));
        assert_eq!((next.generation, next.image.clone(), next.finished), (8, None, false));
        assert_eq!(next.discarded, Some(id("m-1")));
        assert_eq!(next.next(Timestamp::from_millis(20)).discarded, Some(id("m-1")));
        assert_eq!(next.next(Timestamp::from_millis(20)).generation, 20);
    }
}
