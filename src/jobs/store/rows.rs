//! A job as a row of the database.

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Row, ToSql};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Stored;
use crate::jobs::{Job, Status};

/// The columns that [`stored`] reads, in its order.
pub(super) const COLUMNS: &str = "id, workspace, key, status, created_at, started_at, finished_at, request, outputs, \
                                  metrics, error, metadata, warnings, last_event, seq";

/// Reads a row of [`COLUMNS`].
pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let status = status(row, 3)?;
    let job = Job {
        id: row.get(0)?,
        workspace: row.get(1)?,
        key: row.get(2)?,
        status,
        created_at: timestamp(row, 4)?.unwrap_or(Timestamp::UNIX_EPOCH),
        started_at: timestamp(row, 5)?,
        finished_at: timestamp(row, 6)?,
        request: json(row, 7)?,
        loading: None,
        progress: if status == Status::Succeeded { 1.0 } else { 0.0 },
        queue_position: None,
        eta_ms: None,
        outputs: json(row, 8)?,
        metrics: optional_json(row, 9)?,
        error: optional_json(row, 10)?,
        metadata: json(row, 11)?,
        warnings: json(row, 12)?,
    };
    Ok(Stored { job, last_event: row.get::<_, i64>(13)?.unsigned_abs() })
}

/// A time as the database keeps it.
pub(super) fn micros(time: Timestamp) -> i64 {
    time.as_microsecond()
}

/// A count or a limit as the database takes it.
pub(super) fn count(value: impl TryInto<i64>) -> i64 {
    value.try_into().unwrap_or(i64::MAX)
}

/// A value as the JSON text of a column.
pub(super) fn to_json<T: Serialize + ?Sized>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// An optional value as the JSON text of a column, or NULL.
pub(super) fn to_optional_json<T: Serialize>(value: Option<&T>) -> rusqlite::Result<impl ToSql + use<T>> {
    value.map(to_json).transpose()
}

fn status(row: &Row<'_>, column: usize) -> rusqlite::Result<Status> {
    let name: String = row.get(column)?;
    let known = Status::ALL.into_iter().find(|status| status.name() == name);
    known.ok_or_else(|| invalid(column, Type::Text, format!("unknown status {name:?}")))
}

fn timestamp(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    let micros: Option<i64> = row.get(column)?;
    let read = |micros| Timestamp::from_microsecond(micros).map_err(|error| invalid(column, Type::Integer, error));
    micros.map(read).transpose()
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    parse(row.get_ref(column)?.as_str()?, column)
}

fn optional_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    row.get_ref(column)?.as_str_or_null()?.map(|text| parse(text, column)).transpose()
}

fn parse<T: DeserializeOwned>(text: &str, column: usize) -> rusqlite::Result<T> {
    serde_json::from_str(text).map_err(|error| invalid(column, Type::Text, error))
}

fn invalid(column: usize, kind: Type, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, error.into())
}
