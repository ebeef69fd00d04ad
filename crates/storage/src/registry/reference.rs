//! References of images in a registry: `REPOSITORY:TAG` below the namespace.

use domain::{ForeignText, ImageName, UNNAMED};

use crate::{
    ImageSpec, Located,
    digest_reference::split_digest,
    location::{RegistryLocation, is_repository, is_tag},
};

/// An image's repository and tag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// The repository, including the namespace.
    pub repository: String,
    pub tag: String,
}

impl Reference {
    /// Returns the reference of the named image.
    pub fn of(location: &RegistryLocation, name: &ImageName) -> Self {
        let (repository, tag) = name.0.rsplit_once(':').unwrap_or((UNNAMED, &name.0));
        let namespace = &location.namespace;
        let repository = if namespace.is_empty() { repository.to_owned() } else { format!("{namespace}/{repository}") };
        Self { repository, tag: tag.to_owned() }
    }
}

/// Resolves an image that a caller describes.
pub fn locate(location: &RegistryLocation, spec: &ImageSpec) -> Result<Located, String> {
    let unnamed = |tag: &str| {
        let fits = is_tag(tag);
        fits.then(|| ImageName(format!("{UNNAMED}:{tag}")))
            .ok_or_else(|| format!("{:?} is no tag", ForeignText::value(tag)))
    };
    let (url, digest) = match spec {
        ImageSpec::Vm(name) => (name.as_str(), None),
        ImageSpec::Container(url) => split_digest(url).map_err(|error| error.to_string())?,
    };
    let name = match (spec, url.strip_prefix("oci:").filter(|name| !name.starts_with("//"))) {
        (ImageSpec::Vm(_), _) => unnamed(url)?,
        (_, Some(name)) => unnamed(name)?,
        (_, None) => named(location, url)?,
    };
    Ok(Located { name, digest })
}

/// Returns the name of the image that a URL refers to.
fn named(location: &RegistryLocation, url: &str) -> Result<ImageName, String> {
    let schemes = ["docker://", "oci://", "https://", "http://"];
    let plain = schemes.iter().find_map(|scheme| url.strip_prefix(scheme)).unwrap_or(url);
    let namespace = &location.namespace;
    let repositories = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
    let elsewhere = || {
        let prefix = format!("{}/{repositories}", location.authority());
        format!("{:?} is not in the home region's registry; its images begin with {prefix}", ForeignText::value(url))
    };
    let (_, path) = plain.split_once('/').filter(|(host, _)| location.is_at(host)).ok_or_else(elsewhere)?;
    let below = path.strip_prefix(&repositories).ok_or_else(elsewhere)?;
    match below.rsplit_once(':') {
        Some((repository, tag)) if is_repository(repository) && is_tag(tag) => Ok(ImageName(below.to_owned())),
        _ => {
            let url = ForeignText::value(url);
            Err(format!(
                "{url:?} does not end with REPOSITORY:TAG or REPOSITORY:TAG@DIGEST, by which every region has it"
            ))
        }
    }
}

/// Returns the reference by which clients pull an image.
pub fn url(location: &RegistryLocation, name: &ImageName) -> String {
    let Reference { repository, tag } = Reference::of(location, name);
    format!("{}/{repository}:{tag}", location.authority())
}

#[cfg(test)]
mod tests {
    use domain::{Digest, ImageName};

    use super::{Reference, locate, url};
    use crate::{ImageSpec, Located, Location, location::RegistryLocation};

    fn location(text: &str) -> RegistryLocation {
        match text.parse() {
            Ok(Location::Registry(location)) => location,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_image_keeps_its_name_below_the_namespace() {
        let home = location("registry+https://reg.example:5000/apps");
        let container = |url: &str| locate(&home, &ImageSpec::Container(url.into()));
        for good in [
            "reg.example:5000/apps/bio/gromacs:2026.1",
            "docker://reg.example:5000/apps/bio/gromacs:2026.1",
            "REG.Example:5000/apps/bio/gromacs:2026.1",
        ] {
            let Located { name, digest } = container(good).expect(good);
            assert_eq!(digest, None, "{good}");
            assert_eq!(name.0, "bio/gromacs:2026.1");
            assert_eq!(url(&home, &name), "reg.example:5000/apps/bio/gromacs:2026.1");
            let there = location("registry+https://other.example");
            let expected = Reference { repository: "bio/gromacs".into(), tag: "2026.1".into() };
            assert_eq!(Reference::of(&there, &name), expected);
        }
        // The digest selects the content, and the tag only names it.
        let digest = Digest::Sha256([7; 32]);
        for (url, name) in [("reg.example:5000/apps/gromacs:1", "gromacs:1"), ("oci:ci-vm-Ab1", "images:ci-vm-Ab1")] {
            let expected = Located { name: ImageName(name.into()), digest: Some(digest) };
            assert_eq!(container(&format!("{url}@{digest}")), Ok(expected), "{url}");
        }
        let unnamed = container(&format!("reg.example:5000/apps/gromacs@{digest}")).expect_err("it has no tag");
        assert!(unnamed.contains("REPOSITORY:TAG@DIGEST"), "{unnamed}");
        for bad in [
            "other.example/apps/gromacs:1",
            "reg.example:5000/other/gromacs:1",
            "reg.example:5000/apps/gromacs",
            "reg.example:5000/apps/gromacs:1@sha256:00",
            "reg.example:5000/apps/../x:1",
            "reg.example:5000/apps/:1",
        ] {
            assert!(container(bad).is_err(), "{bad}");
        }
        let usual = location("registry+https://reg.example/apps");
        for (url, good) in
            [("reg.example:443/apps/x:1", true), ("reg.example/apps/x:1", true), ("reg.example:80/apps/x:1", false)]
        {
            assert_eq!(locate(&usual, &ImageSpec::Container(url.into())).is_ok(), good, "{url}");
        }
        assert_eq!(container("oci:ci-vm-Ab1").expect("a tag").name.0, "images:ci-vm-Ab1");
        assert_eq!(locate(&home, &ImageSpec::Vm("ci-vm-Ab1".into())).expect("a tag").name.0, "images:ci-vm-Ab1");
        assert!(locate(&home, &ImageSpec::Vm("a/b".into())).is_err());
    }
}
