//! Publications of this service in a region, and the decisions that depend on them.
//!
//! Stores are shared with other programs, which push tags and write layouts. The record of this service's own
//! publications decides whether an existing image must be verified part by part, and whether a name may be moved from
//! one image to another.

use std::{fmt, str::FromStr};

use super::Digest;

/// How the content of a region was verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verification {
    /// The content existed before the copy, written by another program or an earlier copy, and has the right size. Its
    /// bytes were not read.
    Trusted,
    /// The copy wrote the content and the store checked its digest, or the content was read and matches its digest.
    #[default]
    Verified,
}

impl Verification {
    /// Every value.
    pub const ALL: [Self; 2] = [Self::Trusted, Self::Verified];

    /// Name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trusted => "TRUSTED",
            Self::Verified => "VERIFIED",
        }
    }

    /// Combines the verifications of two parts: the whole has the weaker one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        self.min(other)
    }
}

impl FromStr for Verification {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|v| v.as_str() == text).ok_or_else(|| format!("{text:?} is not a verification"))
    }
}

impl fmt::Display for Verification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Policy for the existing parts of an image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum VerifyExisting {
    /// Existing parts are trusted.
    #[default]
    Never,
    /// Existing parts are read once, and the result is recorded.
    Once,
}

/// Record of this service's publications under a name in a region.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Root of the last completed publication and its verification; `None` before the first one is completed.
    pub root: Option<(Digest, Verification)>,
    /// Root of an announced publication. The store may show it or the previous one.
    pub pending: Option<Digest>,
    /// Root that this service published and that is not known to be complete. It was published at a former location of
    /// the region's store, or without index entries that no store had at that time.
    pub unproven: Option<Digest>,
}

impl Published {
    /// Iterates over the roots that this service has published under the name.
    pub fn roots(&self) -> impl Iterator<Item = Digest> {
        self.root.map(|(root, _)| root).into_iter().chain(self.pending).chain(self.unproven)
    }

    /// Whether this service has published `root` under the name.
    #[must_use]
    pub fn wrote(&self, root: Digest) -> bool {
        self.roots().any(|published| published == root)
    }

    /// Returns the record for a store that has moved to another location.
    #[must_use]
    pub fn relocated(self) -> Self {
        Self { root: None, unproven: self.root.map(|(root, _)| root).or(self.unproven), pending: self.pending }
    }

    /// Returns how everything below `root` was verified according to this record, or `None` if it must be verified
    /// again.
    #[must_use]
    pub fn verification_of(&self, root: Digest, existing: VerifyExisting) -> Option<Verification> {
        let (_, verification) = self.root.filter(|(published, _)| *published == root)?;
        match existing {
            VerifyExisting::Never => Some(verification),
            VerifyExisting::Once => (verification == Verification::Verified).then_some(verification),
        }
    }
}

/// Content that a store has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameContent {
    /// The name does not exist.
    Nothing,
    /// An image with this root.
    Root(Digest),
    /// Content that cannot be read as an image.
    Unreadable,
}

/// Whether `root` may be published under a name with this content: the name is free, its content was published by this
/// service, or the caller allows overwriting.
#[must_use]
pub fn may_publish(root: Digest, content: &NameContent, published: &Published, overwrite: bool) -> bool {
    overwrite
        || match content {
            NameContent::Nothing => true,
            NameContent::Root(current) => *current == root || published.wrote(*current),
            // If this service published under the name, the unreadable content is its own and damaged.
            NameContent::Unreadable => published.roots().next().is_some(),
        }
}

#[cfg(test)]
mod tests {
    use super::{NameContent, Published, Verification as V, VerifyExisting as E, may_publish};
    use crate::Digest;

    const OURS: Digest = Digest::Sha256([1; 32]);
    const OTHER: Digest = Digest::Sha256([2; 32]);

    fn published(verification: V) -> Published {
        Published { root: Some((OURS, verification)), ..Published::default() }
    }

    #[test]
    fn a_whole_has_the_verification_of_its_weakest_part() {
        assert_eq!(V::Verified.and(V::Verified), V::Verified);
        assert_eq!(V::Verified.and(V::Trusted), V::Trusted);
        assert_eq!(V::Trusted.and(V::Verified), V::Trusted);
        for verification in V::ALL {
            assert_eq!(verification.as_str().parse(), Ok(verification));
        }
    }

    #[test]
    fn a_record_verifies_its_own_root_alone() {
        assert_eq!(published(V::Trusted).verification_of(OURS, E::Never), Some(V::Trusted));
        assert_eq!(published(V::Trusted).verification_of(OURS, E::Once), None, "it must be read once");
        assert_eq!(published(V::Verified).verification_of(OURS, E::Once), Some(V::Verified));
        assert_eq!(published(V::Verified).verification_of(OTHER, E::Never), None);
        let pending = Published { pending: Some(OURS), ..Published::default() };
        assert_eq!(pending.verification_of(OURS, E::Never), None, "it was not completed");
        let relocated = published(V::Verified).relocated();
        assert_eq!((relocated.verification_of(OURS, E::Never), relocated.wrote(OURS)), (None, true), "another store");
    }

    #[test]
    fn a_name_of_another_program_is_replaced_with_permission_alone() {
        let nothing = Published::default();
        assert!(may_publish(OURS, &NameContent::Nothing, &nothing, false));
        assert!(may_publish(OURS, &NameContent::Root(OURS), &nothing, false));
        for foreign in [NameContent::Root(OTHER), NameContent::Unreadable] {
            assert!(!may_publish(OURS, &foreign, &nothing, false));
            assert!(may_publish(OURS, &foreign, &nothing, true));
        }
        assert!(may_publish(OTHER, &NameContent::Root(OURS), &published(V::Trusted), false));
        assert!(may_publish(OTHER, &NameContent::Unreadable, &published(V::Trusted), false));
        let pending = Published { pending: Some(OURS), ..published(V::Verified) };
        let pending = Published { root: Some((Digest::Sha256([3; 32]), V::Verified)), ..pending };
        assert!(may_publish(OTHER, &NameContent::Root(OURS), &pending, false), "an announced publication is our own");
    }
}
