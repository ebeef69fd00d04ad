//! The fields of a `DescribeImages` response that the service reads (ECS API 2014-05-26).

use domain::{EcsImage, EcsStatus, ForeignText};
use serde::Deserialize;

/// A response whose body is ignored.
#[derive(Debug, Deserialize)]
pub struct NoAnswer {}

/// A page of images.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Listing {
    #[serde(default)]
    total_count: u64,
    images: Images,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Images {
    #[serde(default)]
    image: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    image_id: String,
    #[serde(default)]
    image_name: String,
    status: String,
    #[serde(default)]
    progress: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    tags: Tags,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tags {
    #[serde(default)]
    tag: Vec<Tag>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tag {
    tag_key: String,
    #[serde(default)]
    tag_value: String,
}

impl Listing {
    /// Returns the number of images on all pages, and the images of this page.
    pub fn read(self) -> Result<(u64, Vec<EcsImage>), String> {
        let images = self.images.image.into_iter().map(Entry::read).collect::<Result<_, _>>()?;
        Ok((self.total_count, images))
    }
}

impl Entry {
    fn read(self) -> Result<EcsImage, String> {
        let status = match self.status.as_str() {
            "Creating" | "Waiting" => EcsStatus::Creating,
            "Available" => EcsStatus::Available,
            other => EcsStatus::Unusable(ForeignText::value(other)),
        };
        Ok(EcsImage {
            id: self.image_id.parse()?,
            name: self.image_name,
            status,
            // Formatted like `45%`. Anything else counts as 0.
            percent: self.progress.trim_end_matches('%').parse().map_or(0, |percent: u8| percent.min(100)),
            gibibytes: self.size,
            tags: self.tags.tag.into_iter().map(|tag| (tag.tag_key, tag.tag_value)).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use domain::EcsStatus;

    use super::Listing;

    #[test]
    fn a_page_is_read() {
        let text = r#"{"TotalCount": 2, "PageSize": 100, "Images": {"Image": [
            {"ImageId": "m-1", "ImageName": "gromacs", "Status": "Creating", "Progress": "45%", "Size": 40,
             "Tags": {"Tag": [{"TagKey": "a", "TagValue": "1"}, {"TagKey": "b"}]}, "OSType": "linux"},
            {"ImageId": "m-2", "Status": "CreateFailed", "Progress": "?"}
        ]}}"#;
        let listing: Listing = serde_json::from_str(text).expect("it is one");
        let (total, images) = listing.read().expect("ids");
        assert_eq!((total, images.len()), (2, 2));
        assert_eq!((&images[0].status, images[0].percent, images[0].gibibytes), (&EcsStatus::Creating, 45, 40));
        assert_eq!(images[0].tags, [("a".into(), "1".into()), ("b".into(), String::new())]);
        assert_eq!((&images[1].status, images[1].percent), (&EcsStatus::Unusable("CreateFailed".into()), 0));
    }
}
