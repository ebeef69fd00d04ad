//! Rows that are passed to a statement as a derived table, in the form that each database decodes fastest.

use sea_orm::{DbBackend, EntityTrait, IdenStatic as _, Iterable as _, ModelTrait, Value};
use serde_json::Value as Json;

use super::cell::{Cell, ColumnKind};

/// Stands for NULL in an array of texts on PostgreSQL, because arrays are passed without nulls. The service has no such
/// text.
const NULL_TEXT: &str = "\u{1}";
/// Stands for NULL in an array of numbers.
const NULL_NUMBER: i64 = i64::MIN;

/// Maximum number of values that are passed to SQLite as parameters, not counting padding. A statement has at most
/// 32,766 parameters (<https://sqlite.org/limits.html>).
const MAX_PARAMETERS: usize = 16_384;

/// Rows that are passed to a statement as a derived table.
#[derive(Debug, Clone)]
pub struct Rows {
    columns: Vec<(&'static str, ColumnKind)>,
    /// The values of all rows, one row after the other.
    cells: Vec<Cell>,
}

impl Rows {
    /// Creates rows of some columns.
    pub fn new<const N: usize>(
        columns: [(&'static str, ColumnKind); N],
        rows: impl IntoIterator<Item = [Cell; N]>,
    ) -> Self {
        Self { columns: columns.to_vec(), cells: rows.into_iter().flatten().collect() }
    }

    /// Creates rows of every column of an entity.
    pub fn from_models<M: ModelTrait>(models: impl IntoIterator<Item = M>) -> Self {
        let columns = || <M::Entity as EntityTrait>::Column::iter();
        let values = |model: M| columns().map(move |column| model.get(column).into());
        Self {
            columns: columns().map(|column| (column.as_str(), ColumnKind::of_column(&column))).collect(),
            cells: models.into_iter().flat_map(values).collect(),
        }
    }

    /// Returns the names of the columns.
    pub fn columns(&self) -> Vec<&'static str> {
        self.columns.iter().map(|(name, _)| *name).collect()
    }

    fn len(&self) -> usize {
        self.cells.len() / self.columns.len()
    }

    /// Returns the rows as a derived table `w`, and the values of its parameters. `first` is the number of the first
    /// parameter.
    pub fn table(self, backend: DbBackend, first: usize) -> (String, Vec<Value>) {
        match backend {
            DbBackend::Postgres => self.into_arrays(first),
            DbBackend::Sqlite if self.cells.len() <= MAX_PARAMETERS => self.into_values(),
            DbBackend::Sqlite => self.into_json_each(),
            _ => self.into_json_table(),
        }
    }

    /// PostgreSQL: one array for each column, and none for a column without values. The arrays are unnested side by
    /// side in the select list, which streams the rows. A table function would store every column before the first row
    /// is read.
    fn into_arrays(self, first: usize) -> (String, Vec<Value>) {
        let mut parameter = first;
        let mut unnested = Vec::with_capacity(self.columns.len());
        let null = self.null_columns();
        let selected = self.columns.iter().zip(&null).map(|((name, kind), is_null)| {
            let of = kind.postgres_type();
            if *is_null {
                return format!("NULL::{of} AS {name}");
            }
            unnested.push(format!("UNNEST(${parameter}::{of}[]) AS {name}"));
            parameter += 1;
            match kind {
                ColumnKind::NullableText => format!("NULLIF({name}, E'\\x01') AS {name}"),
                ColumnKind::NullableNumber => format!("NULLIF({name}, {NULL_NUMBER}) AS {name}"),
                ColumnKind::Boolean => format!("({name} <> 0) AS {name}"),
                _ => (*name).to_owned(),
            }
        });
        let (selected, unnested) = (selected.collect::<Vec<_>>().join(", "), unnested.join(", "));
        (format!("(SELECT {selected} FROM (SELECT {unnested}) AS u) AS w"), self.arrays(&null))
    }

    /// SQLite: a list of values, which SQLite decodes faster than JSON. The text depends only on the padded number of
    /// rows and on the columns without values. Padding rows are filtered out.
    fn into_values(self) -> (String, Vec<Value>) {
        let count = padded(self.len());
        let named = |(index, name)| format!("column{} AS {name}", index + 1);
        let selected = self.columns().into_iter().enumerate().map(named).collect::<Vec<_>>().join(", ");
        let null = self.null_columns();
        let parameters: Vec<&str> = null.iter().map(|is_null| if *is_null { "NULL" } else { "?" }).collect();
        let row = format!("({})", parameters.join(","));
        let listed = vec![row.as_str(); count].join(",");
        let bound = null.iter().filter(|is_null| !**is_null).count();
        let padding = std::iter::repeat_n(Value::BigInt(None), (count - self.len()) * bound);
        let value = |cell| match cell {
            Cell::Text(text) => Value::from(text),
            Cell::Number(number) => number.into(),
            Cell::Uuid(id) => id.into(),
        };
        let cells = self.cells.into_iter().zip(null.iter().cycle()).filter(|(_, is_null)| !**is_null);
        let values = cells.map(|(cell, _)| value(cell)).chain(padding).collect();
        (format!("(SELECT {selected} FROM (VALUES {listed}) WHERE column1 IS NOT NULL) AS w"), values)
    }

    /// SQLite, for more values than a statement has parameters: JSON.
    fn into_json_each(self) -> (String, Vec<Value>) {
        let column = |(index, (name, kind)): (usize, &(&str, ColumnKind))| match kind {
            ColumnKind::Uuid => format!("unhex(value ->> {index}) AS {name}"),
            _ => format!("value ->> {index} AS {name}"),
        };
        let selected = self.columns.iter().enumerate().map(column).collect::<Vec<_>>().join(", ");
        (format!("(SELECT {selected} FROM json_each(?)) AS w"), vec![self.json().into()])
    }

    /// MySQL and MariaDB: JSON.
    fn into_json_table(self) -> (String, Vec<Value>) {
        let column = |(index, (name, kind)): (usize, &(&str, ColumnKind))| {
            format!("{name} {} PATH '$[{index}]'", kind.mysql_type())
        };
        let columns = self.columns.iter().enumerate().map(column).collect::<Vec<_>>().join(", ");
        let selected = self.columns.iter().map(|(name, kind)| match kind {
            ColumnKind::Uuid => format!("UNHEX({name}) AS {name}"),
            _ => (*name).to_owned(),
        });
        let selected = selected.collect::<Vec<_>>().join(", ");
        (
            format!("(SELECT {selected} FROM JSON_TABLE(?, '$[*]' COLUMNS ({columns})) AS j) AS w"),
            vec![self.json().into()],
        )
    }

    /// Returns the rows as one JSON array of arrays.
    fn json(self) -> String {
        let width = self.columns.len();
        let value = |cell: &Cell| match cell {
            Cell::Text(text) => text.clone().map_or(Json::Null, Json::String),
            Cell::Number(number) => number.map_or(Json::Null, Json::from),
            Cell::Uuid(id) => Json::String(id.simple().to_string()),
        };
        let rows = self.cells.chunks(width).map(|row| Json::Array(row.iter().map(value).collect()));
        Json::Array(rows.collect()).to_string()
    }

    /// Returns, for each column, whether it is nullable and has no values.
    fn null_columns(&self) -> Vec<bool> {
        let is_nullable = |kind| matches!(kind, ColumnKind::NullableText | ColumnKind::NullableNumber);
        let mut null: Vec<bool> = self.columns.iter().map(|(_, kind)| is_nullable(*kind)).collect();
        for row in self.cells.chunks(self.columns.len()) {
            for (is_null, cell) in null.iter_mut().zip(row) {
                *is_null &= cell.is_null();
            }
        }
        null
    }

    /// Returns one array for each column that has values.
    fn arrays(self, null: &[bool]) -> Vec<Value> {
        let width = self.columns.len();
        let rows = self.len();
        let mut arrays: Vec<Vec<Value>> = self.columns.iter().map(|_| Vec::with_capacity(rows)).collect();
        for (index, cell) in self.cells.into_iter().enumerate() {
            let column = index % width;
            if null[column] {
                continue;
            }
            arrays[column].push(match cell {
                // A store's message may contain a zero byte, which PostgreSQL does not accept in a text.
                Cell::Text(Some(text)) if text.contains('\0') => text.replace('\0', "\u{fffd}").into(),
                Cell::Text(text) => text.unwrap_or_else(|| NULL_TEXT.to_owned()).into(),
                Cell::Number(number) => number.unwrap_or(NULL_NUMBER).into(),
                Cell::Uuid(id) => id.into(),
            });
        }
        let filled = self.columns.iter().zip(arrays).zip(null).filter(|(_, is_null)| !**is_null);
        filled.map(|(((_, kind), values), _)| Value::Array(kind.array_type(), Some(Box::new(values)))).collect()
    }
}

/// Rounds up the number of rows in a list of values, so that few statements have to be prepared and little is padded.
fn padded(rows: usize) -> usize {
    rows.next_power_of_two().min(rows.next_multiple_of(32)).max(1)
}

#[cfg(test)]
mod tests {
    use sea_orm::{DbBackend, Value};

    use super::{ColumnKind, Rows, padded};

    #[test]
    fn a_column_without_values_is_not_passed() {
        let columns = [
            ("a", ColumnKind::Text),
            ("b", ColumnKind::NullableText),
            ("c", ColumnKind::NullableNumber),
            ("d", ColumnKind::NullableText),
        ];
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

        // A column that cannot be NULL is passed even without rows.
        let (text, values) = Rows::new([("a", ColumnKind::Text)], []).table(DbBackend::Postgres, 1);
        assert_eq!((text.as_str(), values.len()), ("(SELECT a FROM (SELECT UNNEST($1::text[]) AS a) AS u) AS w", 1));
    }

    #[test]
    fn lists_are_padded_to_few_lengths() {
        for rows in 0..2_000 {
            assert!(padded(rows) >= rows.max(1));
            assert!(rows < 32 || padded(rows) < rows + 32, "{rows}");
        }
        let lengths: std::collections::BTreeSet<_> = (0..=512).map(padded).collect();
        assert!(lengths.len() < 24, "{lengths:?}");
    }
}
