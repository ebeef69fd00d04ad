//! What is left over in a store: files that no copy will finish, and images that never became visible. What may be removed is
//! decided here, from what lies in the store and from what the database knows of it.

use std::collections::BTreeMap;

use super::{ImageName, Timestamp};

/// One image's place in a store, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// The store's name for the image.
    pub name: ImageName,
    /// Whether the image is visible.
    pub visible: bool,
    /// The fence of the claim that prepared the place last; nothing if this service never has: then nothing there is its own.
    pub fence: Option<u64>,
    /// The bytes of the image's files.
    pub bytes: u64,
    /// When anything there was changed last.
    pub changed: Timestamp,
    /// Its unfinished files.
    pub partials: Vec<FoundFile>,
}

/// An unfinished file that bears a name that only this service gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundFile {
    /// Its path in the store.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// When it was changed last.
    pub changed: Timestamp,
}

/// What an image's place in a store is for, as the database knows it. Read after the place was looked at: a claim that came since
/// has a fence that was not found there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageUse {
    /// The image is there, or is read from there.
    Kept,
    /// A copy waits or runs.
    InFlight,
}

/// Something that is left over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// An unfinished file.
    File(FoundFile),
    /// All that there is of an image that never became visible.
    Image(FoundImage),
}

impl Leftover {
    /// What it is, as its path in the store.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::File(file) => &file.path,
            Self::Image(image) => &image.name.0,
        }
    }

    /// Its size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.bytes,
            Self::Image(image) => image.bytes,
        }
    }

    /// When it was changed last.
    #[must_use]
    pub fn changed(&self) -> Timestamp {
        match self {
            Self::File(file) => file.changed,
            Self::Image(image) => image.changed,
        }
    }
}

/// What of a store is left over, and was changed last at `until` or before.
///
/// Nothing of an image whose copy waits or runs, whatever its age. Nothing of a visible image but unfinished files. Of an
/// invisible image everything, if this service has prepared its place and the database does not count on it.
#[must_use]
pub fn leftovers(found: Vec<FoundImage>, uses: &BTreeMap<ImageName, ImageUse>, until: Timestamp) -> Vec<Leftover> {
    let mut left = Vec::new();
    for image in found {
        let used = uses.get(&image.name);
        if used == Some(&ImageUse::InFlight) {
            continue;
        }
        if !image.visible && image.fence.is_some() && used.is_none() && image.changed <= until {
            left.push(Leftover::Image(image));
        } else {
            left.extend(image.partials.into_iter().filter(|file| file.changed <= until).map(Leftover::File));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{FoundFile, FoundImage, ImageName, ImageUse, Leftover, Timestamp, leftovers};

    const OLD: Timestamp = Timestamp::from_millis(1_000);
    const UNTIL: Timestamp = Timestamp::from_millis(2_000);
    const YOUNG: Timestamp = Timestamp::from_millis(3_000);

    fn found(changed: Timestamp) -> FoundImage {
        FoundImage {
            name: ImageName("a".to_owned()),
            visible: false,
            fence: Some(7),
            bytes: 50,
            changed,
            partials: vec![FoundFile { path: "a/blobs/sha256/x.7-0.partial".to_owned(), bytes: 20, changed: OLD }],
        }
    }

    fn left(image: FoundImage, used: Option<ImageUse>) -> Vec<String> {
        let uses = used.map(|used| (image.name.clone(), used)).into_iter().collect::<BTreeMap<_, _>>();
        leftovers(vec![image], &uses, UNTIL).iter().map(|left| left.path().to_owned()).collect()
    }

    const FILE: &str = "a/blobs/sha256/x.7-0.partial";

    #[test]
    fn an_image_that_never_became_visible_is_left_over_when_nothing_counts_on_it() {
        assert_eq!(left(found(OLD), None), ["a"]);
        assert_eq!(left(found(OLD), Some(ImageUse::Kept)), [FILE], "a damaged image is repaired from what there is");
        assert_eq!(left(FoundImage { visible: true, ..found(OLD) }, None), [FILE], "the bytes of a removed image stay");
    }

    #[test]
    fn nothing_of_a_copy_that_waits_or_runs_is_left_over() {
        assert_eq!(left(found(OLD), Some(ImageUse::InFlight)), Vec::<String>::new());
        assert_eq!(left(FoundImage { visible: true, ..found(OLD) }, Some(ImageUse::InFlight)), Vec::<String>::new());
    }

    #[test]
    fn nothing_young_is_left_over() {
        // A file of the image is old, but another one is being written.
        assert_eq!(left(found(YOUNG), None), [FILE]);
        let mut young = found(YOUNG);
        young.partials[0].changed = YOUNG;
        assert_eq!(left(young, None), Vec::<String>::new());
    }

    #[test]
    fn nothing_is_left_over_that_the_service_did_not_write() {
        let foreign = FoundImage { fence: None, partials: Vec::new(), ..found(OLD) };
        assert_eq!(left(foreign, None), Vec::<String>::new());
    }

    #[test]
    fn what_is_left_over_says_how_much_it_is() {
        let left = leftovers(vec![found(OLD)], &BTreeMap::new(), UNTIL);
        let [only @ Leftover::Image(_)] = &left[..] else { panic!("{left:?}") };
        assert_eq!((only.bytes(), only.changed()), (50, OLD));
    }
}
