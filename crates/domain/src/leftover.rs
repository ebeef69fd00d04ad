//! Leftovers in a store: files that no copy will finish, and images that never became visible. The listing of the store
//! and its use in the database decide which of them may be removed.

use std::collections::BTreeMap;

use super::{ImageName, Timestamp};

/// An image in the listing of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct StoreEntry {
    pub name: ImageName,
    /// Whether the image is visible.
    pub visible: bool,
    /// Fence of the claim that last prepared the image; `None` if this service did not create the image.
    pub fence: Option<u64>,
    /// Size of its files, in bytes.
    pub bytes: u64,
    /// Time of the last change.
    pub changed: Timestamp,
    /// Unfinished files.
    pub partials: Vec<PartialFile>,
}

/// An unfinished file with a name that only this service gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartialFile {
    /// Path in the store.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Time of the last change.
    pub changed: Timestamp,
}

/// Use of an image in a store according to the database. Must be read after the listing: the fence of a later claim
/// differs from the listed one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageUse {
    /// The image is available or is a source.
    Kept,
    /// A copy is pending or running.
    InFlight,
}

/// Files in a store that may be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// An unfinished file.
    File(PartialFile),
    /// Every file of an image that never became visible.
    Image(StoreEntry),
}

impl Leftover {
    /// Returns the path of the leftover in the store.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::File(file) => &file.path,
            Self::Image(image) => &image.name.0,
        }
    }

    /// Returns the size of the leftover in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File(file) => file.bytes,
            Self::Image(image) => image.bytes,
        }
    }

    /// Returns the time of the leftover's last change.
    #[must_use]
    pub fn changed(&self) -> Timestamp {
        match self {
            Self::File(file) => file.changed,
            Self::Image(image) => image.changed,
        }
    }
}

/// Selects the leftovers of a store that were last changed at or before `until`.
///
/// Selects nothing of an image with a pending or running copy, the unfinished files of a visible image, and every file
/// of an invisible image that this service created and the database does not use.
#[must_use]
pub fn leftovers(entries: Vec<StoreEntry>, uses: &BTreeMap<ImageName, ImageUse>, until: Timestamp) -> Vec<Leftover> {
    let mut leftovers = Vec::new();
    for image in entries {
        let image_use = uses.get(&image.name);
        if image_use == Some(&ImageUse::InFlight) {
            continue;
        }
        if !image.visible && image.fence.is_some() && image_use.is_none() && image.changed <= until {
            leftovers.push(Leftover::Image(image));
        } else {
            leftovers.extend(image.partials.into_iter().filter(|file| file.changed <= until).map(Leftover::File));
        }
    }
    leftovers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{ImageName, ImageUse, Leftover, PartialFile, StoreEntry, Timestamp, leftovers};

    const OLD: Timestamp = Timestamp::from_millis(1_000);
    const UNTIL: Timestamp = Timestamp::from_millis(2_000);
    const YOUNG: Timestamp = Timestamp::from_millis(3_000);

    fn entry(changed: Timestamp) -> StoreEntry {
        StoreEntry {
            name: ImageName("a".to_owned()),
            visible: false,
            fence: Some(7),
            bytes: 50,
            changed,
            partials: vec![PartialFile { path: "a/blobs/sha256/x.7-0.partial".to_owned(), bytes: 20, changed: OLD }],
        }
    }

    fn paths(image: StoreEntry, image_use: Option<ImageUse>) -> Vec<String> {
        let uses = image_use.map(|image_use| (image.name.clone(), image_use)).into_iter().collect::<BTreeMap<_, _>>();
        leftovers(vec![image], &uses, UNTIL).iter().map(|leftover| leftover.path().to_owned()).collect()
    }

    const FILE: &str = "a/blobs/sha256/x.7-0.partial";

    #[test]
    fn an_unused_image_that_never_became_visible_is_a_leftover() {
        assert_eq!(paths(entry(OLD), None), ["a"]);
        assert_eq!(paths(entry(OLD), Some(ImageUse::Kept)), [FILE], "a damaged image is repaired from its blobs");
        assert_eq!(
            paths(StoreEntry { visible: true, ..entry(OLD) }, None),
            [FILE],
            "the bytes of a removed image stay"
        );
    }

    #[test]
    fn files_of_a_copy_in_flight_are_no_leftovers() {
        assert_eq!(paths(entry(OLD), Some(ImageUse::InFlight)), Vec::<String>::new());
        assert_eq!(paths(StoreEntry { visible: true, ..entry(OLD) }, Some(ImageUse::InFlight)), Vec::<String>::new());
    }

    #[test]
    fn recently_changed_files_are_no_leftovers() {
        // One file of the image is old, but another one is being written.
        assert_eq!(paths(entry(YOUNG), None), [FILE]);
        let mut young = entry(YOUNG);
        young.partials[0].changed = YOUNG;
        assert_eq!(paths(young, None), Vec::<String>::new());
    }

    #[test]
    fn files_of_other_programs_are_no_leftovers() {
        let foreign = StoreEntry { fence: None, partials: Vec::new(), ..entry(OLD) };
        assert_eq!(paths(foreign, None), Vec::<String>::new());
    }

    #[test]
    fn a_leftover_has_its_size_and_time() {
        let all = leftovers(vec![entry(OLD)], &BTreeMap::new(), UNTIL);
        let [only @ Leftover::Image(_)] = &all[..] else { panic!("{all:?}") };
        assert_eq!((only.bytes(), only.changed()), (50, OLD));
    }
}
