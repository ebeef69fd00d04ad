//! Columns whose values have types of the domain.

use std::{
    fmt::{self, Debug, Display},
    marker::PhantomData,
    str::FromStr,
};

use domain::{Digest, ForeignText, RegionId, Timestamp};
use sea_orm::{
    ColIdx, ColumnType, DbErr, EntityName, QueryResult, TryFromU64, TryGetError, TryGetable, Value,
    sea_query::{ArrayType, Nullable, ValueType, ValueTypeErr},
};

use crate::sql::Cell;

/// A value in a text column of the table whose entity is `E`.
pub struct Text<E, T>(pub T, PhantomData<E>);

/// A value in a number column. The databases store signed 64-bit numbers, because not all of them have unsigned ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Number<T>(pub T);

/// A value that is stored as a number.
pub trait AsNumber: Copy {
    /// Converts a stored number. This service stores no number outside the type's range.
    fn from_number(number: i64) -> Self;

    /// Converts the value for storage. No count reaches the limit of `i64`.
    fn to_number(self) -> i64;
}

impl AsNumber for u64 {
    fn from_number(number: i64) -> Self {
        number.try_into().unwrap_or(0)
    }

    fn to_number(self) -> i64 {
        self.try_into().unwrap_or(i64::MAX)
    }
}

impl AsNumber for u32 {
    fn from_number(number: i64) -> Self {
        number.try_into().unwrap_or(0)
    }

    fn to_number(self) -> i64 {
        self.into()
    }
}

/// Stored in milliseconds since the Unix epoch.
impl AsNumber for Timestamp {
    fn from_number(number: i64) -> Self {
        Self::from_millis(number)
    }

    fn to_number(self) -> i64 {
        self.as_millis()
    }
}

impl<T> From<T> for Number<T> {
    fn from(value: T) -> Self {
        Self(value)
    }
}

impl<T: AsNumber> From<Number<T>> for Value {
    fn from(number: Number<T>) -> Self {
        number.0.to_number().into()
    }
}

impl<T: AsNumber> From<Number<T>> for Cell {
    fn from(number: Number<T>) -> Self {
        number.0.to_number().into()
    }
}

impl<T: AsNumber> TryGetable for Number<T> {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        i64::try_get_by(row, index).map(|number| Self(T::from_number(number)))
    }
}

impl<T: AsNumber> ValueType for Number<T> {
    fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
        <i64 as ValueType>::try_from(value).map(|number| Self(T::from_number(number)))
    }

    fn type_name() -> String {
        i64::type_name()
    }

    fn array_type() -> ArrayType {
        i64::array_type()
    }

    fn column_type() -> ColumnType {
        i64::column_type()
    }
}

impl<T: AsNumber> Nullable for Number<T> {
    fn null() -> Value {
        i64::null()
    }
}

impl<E, T> From<T> for Text<E, T> {
    fn from(value: T) -> Self {
        Self(value, PhantomData)
    }
}

impl<E, T: Clone> Clone for Text<E, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<E, T: Debug> Debug for Text<E, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<E, T: PartialEq> PartialEq for Text<E, T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<E, T: Eq> Eq for Text<E, T> {}

impl<E, T: Display> From<Text<E, T>> for Value {
    fn from(text: Text<E, T>) -> Self {
        text.0.to_string().into()
    }
}

/// Returns [`DbErr::Type`] with the column's name for a value that this service does not write.
impl<E: EntityName, T: FromStr<Err: Display>> TryGetable for Text<E, T> {
    fn try_get_by<I: ColIdx>(row: &QueryResult, index: I) -> Result<Self, TryGetError> {
        let text = String::try_get_by(row, index)?;
        text.parse::<T>().map(|value| Self(value, PhantomData)).map_err(|error| {
            let name = index.as_str().map(str::to_owned);
            let column = name.or_else(|| row.column_names().into_iter().nth(*index.as_usize()?));
            let column = format!("{}.{}", E::default().table_name(), column.unwrap_or_default());
            invalid(&column, &text, &error).into()
        })
    }
}

impl<E, T: FromStr> ValueType for Text<E, T> {
    fn try_from(value: Value) -> Result<Self, ValueTypeErr> {
        let text = <String as ValueType>::try_from(value)?;
        text.parse::<T>().map(|value| Self(value, PhantomData)).map_err(|_| ValueTypeErr)
    }

    fn type_name() -> String {
        String::type_name()
    }

    fn array_type() -> ArrayType {
        String::array_type()
    }

    fn column_type() -> ColumnType {
        String::column_type()
    }
}

impl<E, T> Nullable for Text<E, T> {
    fn null() -> Value {
        String::null()
    }
}

/// Primary keys require this trait. The service generates its keys itself.
impl<E, T> TryFromU64 for Text<E, T> {
    fn try_from_u64(_: u64) -> Result<Self, DbErr> {
        Err(DbErr::ConvertFromU64("a key of text"))
    }
}

/// Parses the text of a column. Returns [`DbErr::Type`] with the column's name for a value that this service does not
/// write.
pub fn parse<T: FromStr<Err: Display>>(column: &'static str, text: &str) -> Result<T, DbErr> {
    text.parse().map_err(|error| invalid(column, text, &error))
}

fn invalid(column: &str, text: &str, error: &impl Display) -> DbErr {
    DbErr::Type(format!("the column {column} holds {:?}: {error}", ForeignText::value(text)))
}

/// The digest of an image's root, stored as an empty text for images that ECS stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootDigest(pub Option<Digest>);

impl FromStr for RootDigest {
    type Err = <Digest as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digest = (!text.is_empty()).then(|| text.parse()).transpose()?;
        Ok(Self(digest))
    }
}

impl Display for RootDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |digest| Display::fmt(&digest, f))
    }
}

/// Digests, separated by spaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestList(pub Vec<Digest>);

impl FromStr for DigestList {
    type Err = <Digest as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_whitespace().map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Display for DigestList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
    }
}

/// Regions, separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionList(pub Vec<RegionId>);

impl FromStr for RegionList {
    type Err = <RegionId as FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split(',').filter(|name| !name.is_empty()).map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}

impl Display for RegionList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(RegionId::as_str).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use domain::RegionStatus;
    use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

    use super::{super::replica, DigestList, RegionList, RootDigest};
    use crate::{connections::Reader, testing::TestDb};

    const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[tokio::test]
    async fn an_invalid_text_is_reported_with_its_table_and_column() {
        type State = replica::Text<RegionStatus>;
        let fixture = TestDb::open(["there"], |settings| settings).await;
        let read = async |reader: Reader| {
            let select = Statement::from_string(DbBackend::Sqlite, "SELECT 'ASLEEP' AS state, NULL AS status");
            let row = reader.query_one_raw(select).await?.expect("a row");
            let errors = [row.try_get::<State>("", "state"), row.try_get_by_index::<State>(0)];
            Ok((
                errors.map(|error| error.expect_err("an error").to_string()),
                row.try_get::<Option<State>>("", "status")?,
            ))
        };
        let (errors, null) = fixture.db.0.connections.read(read).await.expect("a row");
        for error in errors {
            let expected = "the column replica.state holds \"ASLEEP\": \"ASLEEP\" is not a state of a region";
            assert!(error.ends_with(expected), "{error}");
        }
        assert_eq!(null, None);
        fixture.end().await;
    }

    #[test]
    fn lists_and_the_root_of_an_image_keep_their_form() {
        for root in ["", DIGEST] {
            assert_eq!(root.parse::<RootDigest>().expect("a root").to_string(), root);
        }
        for digests in [DIGEST.to_owned(), format!("{DIGEST} {DIGEST}")] {
            assert_eq!(digests.parse::<DigestList>().expect("digests").to_string(), digests);
        }
        for regions in ["", "here", "here,there"] {
            assert_eq!(regions.parse::<RegionList>().expect("regions").to_string(), regions);
        }
        assert!("here,-".parse::<RegionList>().is_err());
    }
}
