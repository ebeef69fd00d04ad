//! Builder of hand-written statements for all databases.
//!
//! The statements that run thousands of times a second are written by hand. The databases differ in how rows are
//! passed, how rows are locked, and how the clock is read. The text of a statement is the same for any number of passed
//! rows and any values, except for columns without values. Few statements therefore have to be prepared.

mod cell;
mod rows;

use domain::Timestamp;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult, Statement, Value};

pub use cell::{Cell, ColumnKind};
pub use rows::Rows;

use super::connections::Session;

/// A statement in the dialect of one database.
#[derive(Debug, Clone)]
pub struct Sql {
    backend: DbBackend,
    /// The process's time; `None` where the server's clock is used.
    now: Option<Timestamp>,
    /// Earlier statements that are executed with this one, on PostgreSQL.
    with: String,
    text: String,
    values: Vec<Value>,
    /// Whether the statement refers to parameters by number on SQLite.
    numbered: bool,
}

impl Sql {
    /// Creates an empty statement.
    pub fn new(session: &Session<impl ConnectionTrait + Send>) -> Self {
        Self {
            backend: session.get_database_backend(),
            now: session.now(),
            with: String::new(),
            text: String::with_capacity(256),
            values: Vec::new(),
            numbered: false,
        }
    }

    /// Appends SQL that every database accepts.
    pub fn text(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    /// Appends a parameter with its value.
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        let number = self.values.len();
        match self.backend {
            DbBackend::Postgres => self.text(&format!("${number}")),
            _ if self.numbered => self.text(&format!("?{number}")),
            _ => self.text("?"),
        }
    }

    /// Appends SQL that refers to its parameters by number, from 1.
    pub fn numbered(mut self, text: &str, values: impl IntoIterator<Item = String>) -> Self {
        self.values.extend(values.into_iter().map(Value::from));
        self.numbered = true;
        self.text(text)
    }

    /// Appends rows as the derived table `w`.
    pub fn rows(mut self, rows: Rows) -> Self {
        let (table, values) = rows.table(self.backend, self.values.len() + 1);
        self.values.extend(values);
        self.text(&table)
    }

    /// Appends a join whose left side is read first: rows are found and locked in the order in which they are passed.
    pub fn join(self) -> Self {
        let join = match self.backend {
            DbBackend::Postgres => " JOIN ",
            DbBackend::Sqlite => " CROSS JOIN ",
            _ => " STRAIGHT_JOIN ",
        };
        self.text(join)
    }

    /// Appends the current time in milliseconds since the Unix epoch: the time of the database's clock or, on SQLite,
    /// of the process's clock. The time is constant within a statement, so that a comparison with it can use an index.
    pub fn now(self) -> Self {
        match self.now {
            Some(now) => self.value(now.as_millis()),
            None => {
                let expression = server_time(self.backend);
                self.text(expression)
            }
        }
    }

    /// Locks the rows of a table for update, waiting for other locks.
    pub fn lock(self, table: &str) -> Self {
        match self.backend {
            DbBackend::Postgres => self.text(" FOR UPDATE OF ").text(table),
            DbBackend::Sqlite => self,
            _ => self.text(" FOR UPDATE"),
        }
    }

    /// Locks the rows of a table for update, skipping locked ones.
    pub fn lock_skip_locked(self, table: &str) -> Self {
        match self.backend {
            DbBackend::Sqlite => self,
            _ => self.lock(table).text(" SKIP LOCKED"),
        }
    }

    /// Locks the rows of a table against updates; several transactions can hold the lock.
    pub fn lock_share(self, table: &str) -> Self {
        match self.backend {
            DbBackend::Postgres => self.text(" FOR SHARE OF ").text(table),
            DbBackend::Sqlite => self,
            _ => self.text(" LOCK IN SHARE MODE"),
        }
    }

    /// Appends `UPDATE table AS t SET assignments FROM rows AS w WHERE on` in the dialect of the database. Assignments
    /// are pairs of a column and its new value.
    pub fn update(self, table: &str, assignments: &[(&str, &str)], rows: Rows, on: &str) -> Self {
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

    /// Appends the insertion of rows into a table. `constants` are columns with the same value in every row.
    pub fn insert<const N: usize>(self, table: &str, rows: Rows, constants: [(&str, Value); N]) -> Self {
        let columns = rows.columns().join(", ");
        let named = constants.iter().fold(String::new(), |named, (name, _)| named + ", " + name);
        let insert = self.text(&format!("INSERT INTO {table} ({columns}{named}) SELECT {columns}"));
        let selected = constants.into_iter().fold(insert, |sql, (_, value)| sql.text(", ").value(value));
        selected.text(" FROM ").rows(rows)
    }

    /// Appends a further statement that is executed in the same round trip and must not depend on this one. Not
    /// supported on MySQL.
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

    /// Executes the statement. Returns the number of changed rows.
    pub async fn execute(self, session: &impl ConnectionTrait) -> Result<u64, DbErr> {
        Ok(session.execute_raw(self.statement()).await?.rows_affected())
    }

    /// Executes the statement and returns its rows.
    pub async fn all<T: FromQueryResult>(self, session: &impl ConnectionTrait) -> Result<Vec<T>, DbErr> {
        T::find_by_statement(self.statement()).all(session).await
    }
}

/// Reads the database's clock or, on SQLite, the process's clock.
pub async fn database_time(session: &Session<impl ConnectionTrait + Send>) -> Result<Timestamp, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        now_millis: i64,
    }
    let rows: Vec<Row> = Sql::new(session).text("SELECT ").now().text(" AS now_millis").all(session).await?;
    let row = rows.first().ok_or_else(|| DbErr::RecordNotFound("the database's time".to_owned()))?;
    Ok(Timestamp::from_millis(row.now_millis))
}

/// Returns the SQL expression for the time of a server's clock.
fn server_time(backend: DbBackend) -> &'static str {
    match backend {
        DbBackend::Postgres => "CAST(extract(epoch FROM statement_timestamp()) * 1000 AS bigint)",
        _ => "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)",
    }
}
