//! The database's tables, and how older files are brought up to date.

use rusqlite::Connection;

/// Each entry takes the schema one version further; `user_version` counts those that a file has had.
/// An entry that was released is never changed: a new one is appended.
const MIGRATIONS: &[&str] = &[
    "
-- Times are microseconds since 1970 in UTC. `seq` is the order of acceptance.
CREATE TABLE jobs (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          TEXT NOT NULL UNIQUE,
    workspace   TEXT NOT NULL,
    key         TEXT NOT NULL,
    model       TEXT NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('queued', 'running', 'succeeded', 'failed', 'canceled')),
    created_at  INTEGER NOT NULL,
    started_at  INTEGER,
    finished_at INTEGER,
    request     TEXT NOT NULL,
    outputs     TEXT NOT NULL DEFAULT '[]',
    metrics     TEXT,
    error       TEXT,
    metadata    TEXT NOT NULL,
    warnings    TEXT NOT NULL,
    last_event  INTEGER NOT NULL DEFAULT 0,
    worker      TEXT,
    lease_until INTEGER
) STRICT;
CREATE INDEX jobs_by_workspace ON jobs (workspace, seq);
CREATE INDEX jobs_open ON jobs (status, seq) WHERE status IN ('queued', 'running');
CREATE INDEX jobs_ended ON jobs (finished_at) WHERE finished_at IS NOT NULL;
CREATE TABLE idempotency (
    workspace   TEXT NOT NULL,
    key         TEXT NOT NULL,
    token       TEXT NOT NULL,
    body_sha256 BLOB NOT NULL,
    job         TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (workspace, key, token)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_job ON idempotency (job);
CREATE INDEX idempotency_by_age ON idempotency (created_at);
",
    "
-- Which jobs need which of the pictures that requests brought.
CREATE TABLE inputs (
    sha256      TEXT NOT NULL,
    job         TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    PRIMARY KEY (sha256, job)
) STRICT, WITHOUT ROWID;
CREATE INDEX inputs_by_job ON inputs (job);
",
];

/// The version that this program writes.
pub(super) const VERSION: u32 = MIGRATIONS.len() as u32;

/// Brings a file up to date; gives back the version that it had.
///
/// A file of a later version is left as it is.
pub(super) fn migrate(connection: &mut Connection) -> rusqlite::Result<u32> {
    let had: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (version, sql) in (1_u32..).zip(MIGRATIONS).skip(had as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(had)
}
