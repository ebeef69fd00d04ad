//! Statements of several databases, written once.
//!
//! What is asked for thousands of times a second is written by hand, and the three databases differ there in a few words alone:
//! how a list of rows is handed over, how rows are locked, what the time is. A statement's text does not depend on how many rows
//! it is handed, nor on what is in them but for columns without any value, so that few have to be prepared.

mod rows;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult, Statement, Value};

pub use rows::{Cell, Kind, Rows};

use super::database::Session;
use crate::domain::Timestamp;

/// A statement in the words of one database.
#[derive(Debug, Clone)]
pub struct Sql {
    backend: DbBackend,
    /// The time, where it is the process's own.
    now: Option<Timestamp>,
    /// The statements that are carried out with this one, on PostgreSQL.
    with: String,
    text: String,
    values: Vec<Value>,
    /// Whether SQLite is to find the values by their numbers.
    numbered: bool,
}

impl Sql {
    /// An empty statement for a database.
    pub fn on(db: &Session<impl ConnectionTrait + Send>) -> Self {
        Self {
            backend: db.get_database_backend(),
            now: db.now(),
            with: String::new(),
            text: String::with_capacity(256),
            values: Vec::new(),
            numbered: false,
        }
    }

    /// Goes on with a text that all understand.
    pub fn text(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    /// Goes on with a value.
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        let place = self.values.len();
        match self.backend {
            DbBackend::Postgres => self.text(&format!("${place}")),
            _ if self.numbered => self.text(&format!("?{place}")),
            _ => self.text("?"),
        }
    }

    /// Begins with a text that names its values by their numbers, from 1.
    pub fn numbered(mut self, text: &str, values: impl IntoIterator<Item = String>) -> Self {
        self.values.extend(values.into_iter().map(Value::from));
        self.numbered = true;
        self.text(text)
    }

    /// Goes on with rows as the table `w`.
    pub fn rows<const N: usize>(mut self, rows: Rows<N>) -> Self {
        let (table, values) = rows.table(self.backend, self.values.len() + 1);
        self.values.extend(values);
        self.text(&table)
    }

    /// Goes on with a join whose left side is read first: rows are found, and locked, in the order in which they are handed.
    pub fn join(self) -> Self {
        let join = match self.backend {
            DbBackend::Postgres => " JOIN ",
            DbBackend::Sqlite => " CROSS JOIN ",
            _ => " STRAIGHT_JOIN ",
        };
        self.text(join)
    }

    /// Appends the time by the database's clock, or on SQLite by the process's, in milliseconds since the Unix epoch. It stands
    /// still for as long as the statement runs, so that an index can be asked for what is due.
    pub fn now(self) -> Self {
        match self.now {
            Some(now) => self.value(now.as_millis()),
            None => {
                let now = now(self.backend);
                self.text(now)
            }
        }
    }

    /// The time, to be written into a text. For statements that are rare: each time makes another text.
    pub fn now_as_text(&self) -> String {
        self.now.map_or_else(|| now(self.backend).to_owned(), |now| now.as_millis().to_string())
    }

    /// Locks the rows of a table, after whoever has locked them.
    pub fn lock(self, table: &str) -> Self {
        match self.backend {
            DbBackend::Postgres => self.text(" FOR UPDATE OF ").text(table),
            DbBackend::Sqlite => self,
            _ => self.text(" FOR UPDATE"),
        }
    }

    /// Locks those rows of a table that nobody else has locked, and leaves out the others.
    pub fn lock_free(self, table: &str) -> Self {
        match self.backend {
            DbBackend::Sqlite => self,
            _ => self.lock(table).text(" SKIP LOCKED"),
        }
    }

    /// Locks the rows of a table against being changed; others may do so too.
    pub fn share(self, table: &str) -> Self {
        match self.backend {
            DbBackend::Postgres => self.text(" FOR SHARE OF ").text(table),
            DbBackend::Sqlite => self,
            _ => self.text(" LOCK IN SHARE MODE"),
        }
    }

    /// Goes on with `UPDATE table AS t SET assignments FROM rows AS w WHERE condition`, in the words of the database.
    /// Assignments are pairs of a column of the table and what it becomes.
    pub fn update<const N: usize>(self, table: &str, assignments: &[(&str, &str)], rows: Rows<N>, on: &str) -> Self {
        let set = |prefix: &str| {
            let one = |(column, value): &(&str, &str)| format!("{prefix}{column} = {value}");
            assignments.iter().map(one).collect::<Vec<_>>().join(", ")
        };
        match self.backend {
            DbBackend::MySql => {
                self.text("UPDATE ").rows(rows).text(&format!(" STRAIGHT_JOIN {table} AS t ON {on} SET {}", set("t.")))
            }
            _ => self
                .text(&format!("UPDATE {table} AS t SET {} FROM ", set("")))
                .rows(rows)
                .text(&format!(" WHERE {on}")),
        }
    }

    /// Goes on with the insertion of rows into a table, column by column. What is the same in all of them is handed once.
    pub fn insert<const N: usize, const M: usize>(
        self,
        table: &str,
        rows: Rows<N>,
        constants: [(&str, Value); M],
    ) -> Self {
        let columns = rows.columns().join(", ");
        let named = constants.iter().fold(String::new(), |named, (name, _)| named + ", " + name);
        let insert = self.text(&format!("INSERT INTO {table} ({columns}{named}) SELECT {columns}"));
        let selected = constants.into_iter().fold(insert, |sql, (_, value)| sql.text(", ").value(value));
        selected.text(" FROM ").rows(rows)
    }

    /// Goes on with a further statement that is carried out with this one, which MySQL can't do: what comes next must not depend on
    /// it.
    pub fn and(mut self, name: &str, next: impl FnOnce(Self) -> Self) -> Self {
        let text = std::mem::take(&mut self.text);
        match self.backend {
            DbBackend::Postgres => {
                self.with.push_str(if self.with.is_empty() { "WITH " } else { ", " });
                self.with.extend([name, " AS (", &text, ")"]);
            }
            _ => self.text = text + "; ",
        }
        next(self)
    }

    fn statement(self) -> Statement {
        let text = if self.with.is_empty() { self.text } else { format!("{} {}", self.with, self.text) };
        Statement::from_sql_and_values(self.backend, text, self.values)
    }

    /// Runs it. Returns how many rows it changed.
    pub async fn execute(self, db: &impl ConnectionTrait) -> Result<u64, DbErr> {
        Ok(db.execute_raw(self.statement()).await?.rows_affected())
    }

    /// Runs it and reads what it returns.
    pub async fn all<T: FromQueryResult>(self, db: &impl ConnectionTrait) -> Result<Vec<T>, DbErr> {
        T::find_by_statement(self.statement()).all(db).await
    }
}

/// The time by a server's clock, as an expression.
fn now(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "CAST(extract(epoch FROM statement_timestamp()) * 1000 AS bigint)",
        _ => "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    }
}
