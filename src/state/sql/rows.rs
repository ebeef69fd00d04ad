//! Rows that are handed to a statement as a table, in the way that each database takes most easily.

use sea_orm::{DbBackend, Value, sea_query::ArrayType};
use serde_json::Value as Json;
use uuid::Uuid;

/// What stands in a PostgreSQL array for no text: arrays are handed over without nulls. No text of the service has it.
const NO_TEXT: &str = "\u{1}";
/// The same for numbers.
const NO_NUMBER: i64 = i64::MIN;

/// Values that are handed to SQLite as such, a filling not counted: a statement takes 32,766
/// (<https://sqlite.org/limits.html>).
const MOST_VALUES: usize = 16_384;

/// What a column of handed rows holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A name, up to 128 characters.
    Name,
    /// A text of any length.
    Text,
    /// A text, or none.
    MaybeText,
    /// A number.
    Number,
    /// A number, or none.
    MaybeNumber,
    /// An id of 16 bytes.
    Uuid,
}

/// A value of a handed row.
#[derive(Debug, Clone)]
pub enum Cell {
    /// A text, or none.
    Text(Option<String>),
    /// A number, or none.
    Number(Option<i64>),
    /// An id.
    Uuid(Uuid),
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<Option<String>> for Cell {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Cell {
    fn from(number: i64) -> Self {
        Self::Number(Some(number))
    }
}

impl From<Option<i64>> for Cell {
    fn from(number: Option<i64>) -> Self {
        Self::Number(number)
    }
}

impl From<Uuid> for Cell {
    fn from(id: Uuid) -> Self {
        Self::Uuid(id)
    }
}

/// Rows that are handed to a statement, as a table.
#[derive(Debug, Clone)]
pub struct Rows<const N: usize> {
    columns: [(&'static str, Kind); N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Rows<N> {
    /// Rows of some columns.
    pub fn new(columns: [(&'static str, Kind); N], rows: impl IntoIterator<Item = [Cell; N]>) -> Self {
        Self { columns, rows: rows.into_iter().collect() }
    }

    /// The names of the columns.
    pub fn columns(&self) -> [&'static str; N] {
        self.columns.map(|(name, _)| name)
    }

    /// The rows as the table `w` in the words of a database, with the values of its parameters, of which the first has the number
    /// `first`.
    pub fn table(self, backend: DbBackend, first: usize) -> (String, Vec<Value>) {
        match backend {
            DbBackend::Postgres => self.of_arrays(first),
            DbBackend::Sqlite if self.rows.len() <= MOST_VALUES / N => self.of_values(),
            DbBackend::Sqlite => self.of_json(),
            _ => self.of_json_table(),
        }
    }

    /// PostgreSQL: an array a column, and none for one without any value. They are unnested side by side in the list of what is selected,
    /// where each value is handed on as it is read; as a table function, every column would be stored before the first row is looked at.
    fn of_arrays(self, first: usize) -> (String, Vec<Value>) {
        let mut place = first;
        let mut unnested = Vec::with_capacity(N);
        let empty = self.empty();
        let selected = self.columns.iter().zip(empty).map(|((name, kind), empty)| {
            let of = match kind {
                Kind::Name | Kind::Text | Kind::MaybeText => "text",
                Kind::Number | Kind::MaybeNumber => "bigint",
                Kind::Uuid => "uuid",
            };
            if empty {
                return format!("NULL::{of} AS {name}");
            }
            unnested.push(format!("UNNEST(${place}::{of}[]) AS {name}"));
            place += 1;
            match kind {
                Kind::MaybeText => format!("NULLIF({name}, E'\\x01') AS {name}"),
                Kind::MaybeNumber => format!("NULLIF({name}, {NO_NUMBER}) AS {name}"),
                _ => (*name).to_owned(),
            }
        });
        let (selected, unnested) = (selected.collect::<Vec<_>>().join(", "), unnested.join(", "));
        (format!("(SELECT {selected} FROM (SELECT {unnested}) AS u) AS w"), self.arrays(empty))
    }

    /// SQLite: a list of values, which costs it less than JSON that it has to take apart. The text knows of the rows' number only
    /// about how many they are, and which columns have no values; the rest is filled up with rows that it leaves out.
    fn of_values(self) -> (String, Vec<Value>) {
        let count = padded(self.rows.len());
        let named = |(place, name)| format!("column{} AS {name}", place + 1);
        let selected = self.columns().into_iter().enumerate().map(named).collect::<Vec<_>>().join(", ");
        let empty = self.empty();
        let row = format!("({})", empty.map(|empty| if empty { "NULL" } else { "?" }).join(","));
        let listed = vec![row.as_str(); count].join(",");
        let bound = empty.iter().filter(|empty| !**empty).count();
        let filling = std::iter::repeat_n(Value::BigInt(None), (count - self.rows.len()) * bound);
        let value = |cell| match cell {
            Cell::Text(text) => Value::from(text),
            Cell::Number(number) => number.into(),
            Cell::Uuid(id) => id.into(),
        };
        let rows = self.rows.into_iter().flat_map(|row| row.into_iter().zip(empty));
        let cells = rows.filter(|(_, empty)| !empty).map(|(cell, _)| cell);
        let values = cells.map(value).chain(filling).collect();
        (format!("(SELECT {selected} FROM (VALUES {listed}) WHERE column1 IS NOT NULL) AS w"), values)
    }

    /// SQLite, for more than it takes as values: JSON.
    fn of_json(self) -> (String, Vec<Value>) {
        let column = |(place, (name, kind)): (usize, (&str, Kind))| match kind {
            Kind::Uuid => format!("unhex(value ->> {place}) AS {name}"),
            _ => format!("value ->> {place} AS {name}"),
        };
        let selected = self.columns.into_iter().enumerate().map(column).collect::<Vec<_>>().join(", ");
        (format!("(SELECT {selected} FROM json_each(?)) AS w"), vec![self.json().into()])
    }

    /// MySQL and MariaDB: JSON.
    fn of_json_table(self) -> (String, Vec<Value>) {
        let column = |(place, (name, kind)): (usize, (&str, Kind))| {
            let of = match kind {
                Kind::Name => "VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                Kind::Text | Kind::MaybeText => "LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
                Kind::Number | Kind::MaybeNumber => "BIGINT",
                Kind::Uuid => "CHAR(32)",
            };
            format!("{name} {of} PATH '$[{place}]'")
        };
        let read = self.columns.into_iter().enumerate().map(column).collect::<Vec<_>>().join(", ");
        let selected = self.columns.map(|(name, kind)| match kind {
            Kind::Uuid => format!("UNHEX({name}) AS {name}"),
            _ => name.to_owned(),
        });
        let selected = selected.join(", ");
        (format!("(SELECT {selected} FROM JSON_TABLE(?, '$[*]' COLUMNS ({read})) AS j) AS w"), vec![self.json().into()])
    }

    /// As one JSON array of arrays.
    fn json(self) -> String {
        let cell = |cell| match cell {
            Cell::Text(text) => text.map_or(Json::Null, Json::String),
            Cell::Number(number) => number.map_or(Json::Null, Json::from),
            Cell::Uuid(id) => Json::String(id.simple().to_string()),
        };
        Json::Array(self.rows.into_iter().map(|row| Json::Array(row.into_iter().map(cell).collect())).collect())
            .to_string()
    }

    /// Which columns may be without values, and are.
    fn empty(&self) -> [bool; N] {
        let mut empty = self.columns.map(|(_, kind)| matches!(kind, Kind::MaybeText | Kind::MaybeNumber));
        for row in &self.rows {
            for (empty, cell) in empty.iter_mut().zip(row) {
                *empty &= matches!(cell, Cell::Text(None) | Cell::Number(None));
            }
        }
        empty
    }

    /// As an array a column that is not empty.
    fn arrays(self, empty: [bool; N]) -> Vec<Value> {
        let mut columns: Vec<Vec<Value>> = self.columns.iter().map(|_| Vec::with_capacity(self.rows.len())).collect();
        for row in self.rows {
            for ((column, cell), _) in columns.iter_mut().zip(row).zip(empty).filter(|(_, empty)| !empty) {
                column.push(match cell {
                    // PostgreSQL has no text with a zero byte, which a foreign store's message could have.
                    Cell::Text(Some(text)) if text.contains('\0') => text.replace('\0', "\u{fffd}").into(),
                    Cell::Text(text) => text.unwrap_or_else(|| NO_TEXT.to_owned()).into(),
                    Cell::Number(number) => number.unwrap_or(NO_NUMBER).into(),
                    Cell::Uuid(id) => id.into(),
                });
            }
        }
        let filled = self.columns.iter().zip(columns).zip(empty).filter(|(_, empty)| !empty);
        let typed = filled.map(|(((_, kind), values), _)| {
            let kind = match kind {
                Kind::Name | Kind::Text | Kind::MaybeText => ArrayType::String,
                Kind::Number | Kind::MaybeNumber => ArrayType::BigInt,
                Kind::Uuid => ArrayType::Uuid,
            };
            Value::Array(kind, Some(Box::new(values)))
        });
        typed.collect()
    }
}

/// How many rows a list of values has room for, if it is to take so many: few enough lengths that statements are prepared once, and
/// not much more than is needed.
fn padded(rows: usize) -> usize {
    rows.next_power_of_two().min(rows.next_multiple_of(32)).max(1)
}

#[cfg(test)]
mod tests {
    use sea_orm::{DbBackend, Value};

    use super::{Kind, Rows, padded};

    #[test]
    fn a_column_without_any_value_is_not_handed() {
        let columns = [("a", Kind::Text), ("b", Kind::MaybeText), ("c", Kind::MaybeNumber), ("d", Kind::MaybeText)];
        let row =
            |d: Option<&str>| ["x".into(), None::<String>.into(), None::<i64>.into(), d.map(str::to_owned).into()];
        let rows = || Rows::new(columns, [row(None), row(Some("y"))]);

        let (text, values) = rows().table(DbBackend::Postgres, 3);
        let table = "(SELECT a, NULL::text AS b, NULL::bigint AS c, NULLIF(d, E'\\x01') AS d FROM \
                     (SELECT UNNEST($3::text[]) AS a, UNNEST($4::text[]) AS d) AS u) AS w";
        assert_eq!((text.as_str(), values.len()), (table, 2));

        let (text, values) = rows().table(DbBackend::Sqlite, 1);
        assert!(text.contains("(VALUES (?,NULL,NULL,?),(?,NULL,NULL,?))"), "{text}");
        assert_eq!(values, ["x".into(), None::<String>.into(), "x".into(), Value::from("y")]);

        // A column that has to have values is handed even where there is no row.
        let (text, values) = Rows::new([("a", Kind::Text)], []).table(DbBackend::Postgres, 1);
        assert_eq!((text.as_str(), values.len()), ("(SELECT a FROM (SELECT UNNEST($1::text[]) AS a) AS u) AS w", 1));
    }

    #[test]
    fn a_list_has_room_and_there_are_few_lengths() {
        for rows in 0..2_000 {
            assert!(padded(rows) >= rows.max(1));
            assert!(rows < 32 || padded(rows) < rows + 32, "{rows}");
        }
        let lengths: std::collections::BTreeSet<_> = (0..=512).map(padded).collect();
        assert!(lengths.len() < 24, "{lengths:?}");
    }
}
