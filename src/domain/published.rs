//! What this service has made visible in a region, and what that allows.
//!
//! A store is shared: people push tags and put layouts there by other means. What this service remembers of its own writing
//! decides two things: whether an image that is there already has to be looked at part by part, and whether a name may be
//! moved from one image to another.

use std::{fmt, str::FromStr};

use super::Digest;

/// How it is known that a region has what it should.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verification {
    /// It was there before, written by others or by an earlier copy, and has the right size. Its bytes were not read.
    Trusted,
    /// This copy wrote it and the store checked its digest, or it was read and has its digest.
    #[default]
    Verified,
}

impl Verification {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Trusted, Self::Verified];

    /// The name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "TRUSTED",
            Self::Verified => "VERIFIED",
        }
    }

    /// How a whole is known whose parts are known as `self` and as `other`: by the weaker of the two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.min(other)
    }
}

impl FromStr for Verification {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| format!("{text:?} is no verification"))
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is done about parts of an image that a region has already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VerifyExisting {
    /// They are looked for, and trusted.
    #[default]
    Never,
    /// They are read once, and what was found is remembered.
    Once,
}

/// What this service remembers to have published by one name in one region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// The root that was published last; nothing if the first publication was begun and not confirmed.
    pub root: Option<(Digest, Verification)>,
    /// The root of a publication that was begun and not confirmed: the store may show it or the one before.
    pub begun: Option<Digest>,
    /// The root that was published and is not known to be whole: where the region's store was before, or without entries of its indexes that
    /// no store had then. It is this service's own all the same.
    pub unproven: Option<Digest>,
}

impl Published {
    /// The roots that this service made the name show.
    pub fn roots(&self) -> impl Iterator<Item = Digest> {
        self.root.map(|(root, _)| root).into_iter().chain(self.begun).chain(self.unproven)
    }

    /// Whether this service made the name show `root`.
    #[must_use]
    pub fn wrote(&self, root: Digest) -> bool {
        self.roots().any(|own| own == root)
    }

    /// The same for a store that is somewhere else by now.
    #[must_use]
    pub fn elsewhere(self) -> Self {
        Self { root: None, unproven: self.root.map(|(root, _)| root).or(self.unproven), begun: self.begun }
    }

    /// How it is known that everything below `root` is there, from this record alone; nothing if it has to be looked at.
    #[must_use]
    pub fn vouches(&self, root: Digest, existing: VerifyExisting) -> Option<Verification> {
        let (_, verification) = self.root.filter(|(published, _)| *published == root)?;
        match existing {
            VerifyExisting::Never => Some(verification),
            VerifyExisting::Once => (verification == Verification::Verified).then_some(verification),
        }
    }
}

/// What a store shows by a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// An image, by its root.
    Root(Digest),
    /// What can't be read as one image: it is damaged, or something else.
    Unreadable,
}

/// Whether a name that shows `shown` may be made to show `wanted`: the name is free, what it shows is this service's own,
/// or the caller has asked for it to be replaced.
#[must_use]
pub fn may_publish(wanted: Digest, shown: &Shown, published: &Published, overwrite: bool) -> bool {
    overwrite
        || match shown {
            Shown::Nothing => true,
            Shown::Root(there) => *there == wanted || published.wrote(*there),
            // Of a name that this service published, it is what has become of its own.
            Shown::Unreadable => published.root.is_some() || published.begun.is_some() || published.unproven.is_some(),
        }
}

#[cfg(test)]
mod tests {
    use super::{Published, Shown, Verification as V, VerifyExisting as E, may_publish};
    use crate::domain::Digest;

    const OURS: Digest = Digest::Sha256([1; 32]);
    const OTHER: Digest = Digest::Sha256([2; 32]);

    fn published(verification: V) -> Published {
        Published { root: Some((OURS, verification)), ..Published::default() }
    }

    #[test]
    fn a_whole_is_known_as_its_weakest_part_is() {
        assert_eq!(V::Verified.and(V::Verified), V::Verified);
        assert_eq!(V::Verified.and(V::Trusted), V::Trusted);
        assert_eq!(V::Trusted.and(V::Verified), V::Trusted);
        for verification in V::ALL {
            assert_eq!(verification.as_str().parse(), Ok(verification));
        }
    }

    #[test]
    fn a_record_vouches_for_its_own_root_alone() {
        assert_eq!(published(V::Trusted).vouches(OURS, E::Never), Some(V::Trusted));
        assert_eq!(published(V::Trusted).vouches(OURS, E::Once), None, "it has to be read once");
        assert_eq!(published(V::Verified).vouches(OURS, E::Once), Some(V::Verified));
        assert_eq!(published(V::Verified).vouches(OTHER, E::Never), None);
        let begun = Published { begun: Some(OURS), ..Published::default() };
        assert_eq!(begun.vouches(OURS, E::Never), None, "nothing says that it was whole");
        let moved = published(V::Verified).elsewhere();
        assert_eq!((moved.vouches(OURS, E::Never), moved.wrote(OURS)), (None, true), "the store is another one");
    }

    #[test]
    fn a_name_of_others_is_replaced_on_demand_alone() {
        let nothing = Published::default();
        assert!(may_publish(OURS, &Shown::Nothing, &nothing, false));
        assert!(may_publish(OURS, &Shown::Root(OURS), &nothing, false));
        for foreign in [Shown::Root(OTHER), Shown::Unreadable] {
            assert!(!may_publish(OURS, &foreign, &nothing, false));
            assert!(may_publish(OURS, &foreign, &nothing, true));
        }
        assert!(may_publish(OTHER, &Shown::Root(OURS), &published(V::Trusted), false));
        assert!(may_publish(OTHER, &Shown::Unreadable, &published(V::Trusted), false));
        let begun = Published { begun: Some(OURS), ..published(V::Verified) };
        let begun = Published { root: Some((Digest::Sha256([3; 32]), V::Verified)), ..begun };
        assert!(may_publish(OTHER, &Shown::Root(OURS), &begun, false), "a publication that was begun is ours as well");
    }
}
