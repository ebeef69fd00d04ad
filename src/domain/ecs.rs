//! A copy that ECS makes: what is remembered of it, and what is to be done about it next.
//!
//! ECS answers `CopyImage` at once and copies for as long as it takes; nothing tells when the image is usable but asking. What it
//! has accepted is remembered as a generation: all that ask for the copy within one, however often and from wherever, ask with
//! the same client token and so for one and the same image. A new generation begins only when the image of the one before is
//! known to be of no use.

use std::{fmt, str::FromStr, time::Duration};

use super::{ForeignText, Timestamp};

/// The id of an image of ECS: `m-` and up to 64 letters and digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EcsImageId(String);

impl EcsImageId {
    /// The id as text.
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
        let own = text.strip_prefix("m-").filter(|own| (1..=64).contains(&own.len()));
        if own.is_some_and(|own| own.bytes().all(|b| b.is_ascii_alphanumeric())) {
            return Ok(Self(text.to_owned()));
        }
        let shown = ForeignText::value(text);
        Err(format!("{shown:?} is no image of ECS; expected m- and letters and digits, for example m-bp1h46wfpjsjastc"))
    }
}

/// How an image of ECS stands (ECS API 2014-05-26, `DescribeImages`, `Status`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EcsStatus {
    /// `Creating` or `Waiting`: it is being made, or is in the queue for that.
    Coming,
    /// `Available`.
    Available,
    /// `CreateFailed`, `UnAvailable` and whatever else: it will be of no use.
    Lost(ForeignText),
}

/// An image as ECS lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcsImage {
    /// Its id.
    pub id: EcsImageId,
    /// Its name, which no other image of the account has in that region.
    pub name: String,
    /// How it stands.
    pub status: EcsStatus,
    /// How much of it there is, in per cent.
    pub percent: u8,
    /// Its size in GiB.
    pub gibibytes: u64,
    /// Its tags.
    pub tags: Vec<(String, String)>,
}

impl EcsImage {
    /// Whether it bears all of some tags.
    #[must_use]
    pub fn bears(&self, tags: &[(String, String)]) -> bool {
        tags.iter().all(|tag| self.tags.contains(tag))
    }
}

/// What is remembered of the copy of an image into a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcsCopy {
    /// Which copy it is; greater than any before.
    pub generation: u64,
    /// When this generation began, or, once its image is known, when that was.
    pub since: Timestamp,
    /// The image that ECS makes, once it has said so.
    pub image: Option<EcsImageId>,
    /// Whether ECS has said that the image is available.
    pub finished: bool,
    /// An image of a generation before that is to be given up and may not have been yet.
    pub discarded: Option<EcsImageId>,
}

/// What is to be done about a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EcsStep {
    /// Ask ECS for the copy.
    Copy,
    /// Look again later; so much of it is there, in per cent.
    Wait(u8),
    /// Take this image for the copy's: it was made for it.
    Adopt(EcsImageId),
    /// It is there.
    Finish,
    /// Give up this image, which was being made for the copy, and look again later.
    Cancel(EcsImageId),
    /// Delete this image, which was made for the copy and is of no use, and look again later.
    Delete(EcsImageId),
    /// Begin anew: what there was is of no use. It says so itself, unless it has vanished.
    Renew(Option<ForeignText>),
    /// Leave it: an image of the same name is there that was not made for the copy.
    Refuse(EcsImageId),
}

impl EcsCopy {
    /// The first generation. No two are the same, of images that were removed and added again either.
    #[must_use]
    pub fn first(now: Timestamp) -> Self {
        let generation = now.as_millis().unsigned_abs();
        Self { generation, since: now, image: None, finished: false, discarded: None }
    }

    /// The same generation, whose image is known now.
    #[must_use]
    pub fn made(&self, image: EcsImageId, now: Timestamp) -> Self {
        Self { image: Some(image), since: now, ..self.clone() }
    }

    /// The generation after this one, whose image is to be given up.
    #[must_use]
    pub fn next(&self, now: Timestamp) -> Self {
        let first = Self::first(now);
        let discarded = self.image.clone().or_else(|| self.discarded.clone());
        Self { generation: first.generation.max(self.generation + 1), discarded, ..first }
    }

    /// What is to be done when ECS, asked for the copy's image by its id, shows this. For `settle` after it was known, an image
    /// that isn't listed is only not listed yet.
    #[must_use]
    pub fn watch(&self, shown: Option<&EcsImage>, now: Timestamp, settle: Duration) -> EcsStep {
        match shown {
            Some(EcsImage { status: EcsStatus::Available, .. }) => EcsStep::Finish,
            Some(EcsImage { status: EcsStatus::Coming, percent, .. }) => EcsStep::Wait(*percent),
            Some(EcsImage { status: EcsStatus::Lost(status), .. }) => EcsStep::Renew(Some(status.clone())),
            None if !self.finished && now < self.since.after(settle) => EcsStep::Wait(0),
            None => EcsStep::Renew(None),
        }
    }

    /// What is to be done when no image is known of this generation, and these have the name that it is to have. Those that bear
    /// all of `tags` were made for the copy.
    #[must_use]
    pub fn begin(&self, named: &[EcsImage], tags: &[(String, String)]) -> EcsStep {
        let Some(there) = named.first() else { return EcsStep::Copy };
        let id = there.id.clone();
        match &there.status {
            _ if !there.bears(tags) => EcsStep::Refuse(id),
            EcsStatus::Coming if self.discarded.as_ref() == Some(&id) => EcsStep::Cancel(id),
            EcsStatus::Coming | EcsStatus::Available => EcsStep::Adopt(id),
            EcsStatus::Lost(_) => EcsStep::Delete(id),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{EcsCopy, EcsImage, EcsImageId, EcsStatus, EcsStep};
    use crate::domain::Timestamp;

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
    fn ids_are_read_and_refused() {
        assert_eq!(id("m-bp1h46wfpjsjastc").as_str(), "m-bp1h46wfpjsjastc");
        for bad in ["", "m-", "bp1", "m-a/b", "m-a b", "M-a", "m-\u{e9}", &format!("m-{}", "a".repeat(65))] {
            assert!(bad.parse::<EcsImageId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_copy_is_watched_to_its_end() {
        let now = Timestamp::from_millis(1_000_000);
        let copy = EcsCopy { image: Some(id("m-1")), ..EcsCopy::first(now) };
        let step = |shown: Option<EcsStatus>, finished, after| {
            let shown = shown.map(|status| image(status, tags()));
            EcsCopy { finished, ..copy.clone() }.watch(shown.as_ref(), now.after(after), SETTLE)
        };
        let lost = EcsStatus::Lost("CreateFailed".into());
        assert_eq!(step(Some(EcsStatus::Coming), false, SETTLE * 9), EcsStep::Wait(40));
        assert_eq!(step(Some(EcsStatus::Available), false, SETTLE), EcsStep::Finish);
        assert_eq!(step(Some(lost), false, Duration::ZERO), EcsStep::Renew(Some("CreateFailed".into())));
        assert_eq!(step(None, false, SETTLE / 2), EcsStep::Wait(0), "it may not be listed yet");
        assert_eq!(step(None, false, SETTLE), EcsStep::Renew(None));
        assert_eq!(step(None, true, SETTLE / 2), EcsStep::Renew(None), "it was listed before");
    }

    #[test]
    fn only_what_was_made_for_the_copy_is_touched() {
        let copy = EcsCopy::first(Timestamp::from_millis(1));
        let begin = |copy: &EcsCopy, status, tags: Vec<_>| copy.begin(&[image(status, tags)], &self::tags());
        let lost = || EcsStatus::Lost("CreateFailed".into());
        assert_eq!(copy.begin(&[], &tags()), EcsStep::Copy);
        for status in [EcsStatus::Coming, EcsStatus::Available] {
            assert_eq!(begin(&copy, status.clone(), tags()), EcsStep::Adopt(id("m-1")));
            assert_eq!(begin(&copy, status, tags()[..1].to_vec()), EcsStep::Refuse(id("m-1")));
        }
        assert_eq!(begin(&copy, lost(), tags()), EcsStep::Delete(id("m-1")));
        assert_eq!(begin(&copy, lost(), Vec::new()), EcsStep::Refuse(id("m-1")));
        let canceled = EcsCopy { discarded: Some(id("m-1")), ..copy };
        assert_eq!(begin(&canceled, EcsStatus::Coming, tags()), EcsStep::Cancel(id("m-1")));
        assert_eq!(begin(&canceled, EcsStatus::Available, tags()), EcsStep::Adopt(id("m-1")), "it was too late");
    }

    #[test]
    fn generations_grow_and_remember_what_is_to_be_given_up() {
        let first = EcsCopy::first(Timestamp::from_millis(7));
        let known = EcsCopy { image: Some(id("m-1")), finished: true, ..first };
        let next = known.next(Timestamp::from_millis(3));
        assert_eq!((next.generation, next.image.clone(), next.finished), (8, None, false));
        assert_eq!(next.discarded, Some(id("m-1")));
        assert_eq!(next.next(Timestamp::from_millis(20)).discarded, Some(id("m-1")));
        assert_eq!(next.next(Timestamp::from_millis(20)).generation, 20);
    }
}
