//! The store of one machine: a SQLite database in the data folder.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::rows::{COLUMNS, count, micros, stored, to_json, to_optional_json};
use super::writer::{Writer, failed};
use super::{Ending, Inserted, Lease, ListQuery, NewJob, NewKey, Page, Reply, Store, StoreError, Stored, schema};
use crate::jobs::{Job, Status};

/// Read connections that are kept open.
const READERS: usize = 4;

/// Jobs in a SQLite database, written by one thread and read by any.
///
/// The journal is a write-ahead log, so that readers never wait for the writer, with `synchronous=FULL`: each
/// commit is forced to the disk before it is answered. With `NORMAL`, what SQLite advises for such journals, a
/// commit survives the process, but the last ones not a power cut, and an acknowledged job could be lost.
pub struct SqliteStore {
    // Dropped in this order: the lock is given back when the database is closed.
    writer: Writer,
    readers: Arc<Readers>,
    _lock: File,
}

impl SqliteStore {
    /// Opens or creates the database `file`, whose folder exists, and brings its tables up to date.
    ///
    /// # Errors
    /// When another process has it open, when a later version of easel has written it, or when it cannot be
    /// read and written.
    pub fn open(file: &Path) -> Result<Self, StoreError> {
        let lock = lock(file)?;
        let mut connection = connect(file).map_err(|e| named(file, &e))?;
        let version = schema::migrate(&mut connection).map_err(|e| named(file, &e))?;
        if version > schema::VERSION {
            let file = file.display().to_string();
            return Err(StoreError::Newer { file, found: version, known: schema::VERSION });
        }
        // The lock proves that nobody else works here, so whoever held a lease is dead.
        connection
            .execute("UPDATE jobs SET worker = NULL, lease_until = NULL WHERE status IN ('queued', 'running')", [])
            .map_err(|e| named(file, &e))?;
        sync_folder(file)?;
        let writer = Writer::start(connection).map_err(|e| StoreError::Failed(e.to_string()))?;
        Ok(Self { writer, readers: Arc::new(Readers { file: file.into(), idle: Mutex::default() }), _lock: lock })
    }

    fn write<T, F>(&self, f: F) -> Reply<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.writer.write(f).boxed()
    }

    fn read<T, F>(&self, f: F) -> Reply<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let readers = self.readers.clone();
        async move {
            let read = tokio::task::spawn_blocking(move || readers.read(f)).await;
            read.unwrap_or(Err(StoreError::Closed))
        }
        .boxed()
    }

    /// Transactions committed since the store was opened: under load, far fewer than calls.
    pub fn commits(&self) -> u64 {
        self.writer.commits()
    }

    /// Runs `f` on the writer's connection.
    #[cfg(test)]
    pub(super) fn run<T, F>(&self, f: F) -> Reply<'_, T>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.write(f)
    }
}

impl Store for SqliteStore {
    fn insert(&self, new: NewJob) -> Reply<'_, Inserted> {
        self.write(move |connection| {
            let NewJob { job, idempotency, max_queued, lease } = new;
            if let Some(key) = &idempotency {
                forget(connection, &job, key)?;
                if let Some(earlier) = replay(connection, &job.workspace, &job.key, key)? {
                    return Ok(earlier);
                }
            }
            let queued: i64 = connection
                .prepare_cached("SELECT count(*) FROM jobs WHERE status = 'queued'")?
                .query_row([], |row| row.get(0))?;
            if queued >= count(max_queued) {
                return Ok(Inserted::QueueFull);
            }
            insert(connection, &job, &lease)?;
            if let Some(key) = &idempotency {
                let sql = "INSERT INTO idempotency (workspace, key, token, body_sha256, job, created_at) \
                           VALUES (?, ?, ?, ?, ?, ?)";
                let created = micros(job.created_at);
                connection.prepare_cached(sql)?.execute(params![
                    job.workspace,
                    job.key,
                    key.key,
                    key.body_sha256,
                    job.id,
                    created
                ])?;
            }
            Ok(Inserted::New)
        })
    }

    fn replay(&self, workspace: &str, api_key: &str, key: NewKey) -> Reply<'_, Option<Inserted>> {
        let (workspace, api_key) = (workspace.to_owned(), api_key.to_owned());
        self.read(move |connection| replay(connection, &workspace, &api_key, &key))
    }

    fn unused_inputs(&self, hashes: Vec<String>) -> Reply<'_, Vec<String>> {
        self.read(move |connection| {
            let mut used = connection.prepare_cached("SELECT 1 FROM inputs WHERE sha256 = ?")?;
            let mut unused = Vec::new();
            for hash in hashes {
                if !used.exists([&hash])? {
                    unused.push(hash);
                }
            }
            Ok(unused)
        })
    }

    fn claim(&self, lease: Lease, limit: usize) -> Reply<'_, Vec<Job>> {
        self.write(move |connection| {
            let sql = format!(
                "UPDATE jobs SET status = 'queued', started_at = NULL, worker = ?1, lease_until = ?2 \
                 WHERE seq IN (SELECT seq FROM jobs WHERE status IN ('queued', 'running') \
                               AND (worker IS NULL OR lease_until < ?3) ORDER BY seq LIMIT ?4) RETURNING {COLUMNS}"
            );
            let mut statement = connection.prepare_cached(&sql)?;
            let values = params![lease.worker, micros(lease.until), micros(lease.now), count(limit)];
            let rows = statement.query_map(values, |row| Ok((row.get("seq")?, stored(row)?.job)))?;
            let mut jobs: Vec<(i64, Job)> = rows.collect::<rusqlite::Result<_>>()?;
            // The order of RETURNING is not defined.
            jobs.sort_by_key(|(seq, _)| *seq);
            Ok(jobs.into_iter().map(|(_, job)| job).collect())
        })
    }

    fn renew(&self, lease: Lease) -> Reply<'_, usize> {
        self.write(move |connection| {
            connection
                .prepare_cached("UPDATE jobs SET lease_until = ? WHERE status IN ('queued', 'running') AND worker = ?")?
                .execute(params![micros(lease.until), lease.worker])
        })
    }

    fn start(&self, id: &str, at: Timestamp) -> Reply<'_, ()> {
        let id = id.to_owned();
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "UPDATE jobs SET status = 'running', started_at = ? WHERE id = ? AND status = 'queued'",
                )?
                .execute(params![micros(at), id])?;
            Ok(())
        })
    }

    fn release(&self, id: &str) -> Reply<'_, ()> {
        let id = id.to_owned();
        self.write(move |connection| {
            let sql = "UPDATE jobs SET status = 'queued', started_at = NULL, worker = NULL, lease_until = NULL \
                       WHERE id = ? AND status IN ('queued', 'running')";
            connection.prepare_cached(sql)?.execute([id])?;
            Ok(())
        })
    }

    fn finish(&self, id: &str, ending: Ending) -> Reply<'_, bool> {
        let id = id.to_owned();
        self.write(move |connection| {
            let sql = "UPDATE jobs SET status = ?, started_at = ?, finished_at = ?, outputs = ?, metrics = ?, \
                       error = ?, warnings = ?, last_event = ?, worker = NULL, lease_until = NULL \
                       WHERE id = ? AND status IN ('queued', 'running')";
            let ended = connection.prepare_cached(sql)?.execute(params![
                ending.status.name(),
                ending.started_at.map(micros),
                micros(ending.finished_at),
                to_json(&ending.outputs)?,
                to_optional_json(ending.metrics.as_ref())?,
                to_optional_json(ending.error.as_ref())?,
                to_json(&ending.warnings)?,
                count(ending.last_event),
                id,
            ])?;
            Ok(ended > 0)
        })
    }

    fn get(&self, id: &str) -> Reply<'_, Option<Stored>> {
        let id = id.to_owned();
        self.read(move |connection| get(connection, &id))
    }

    fn list(&self, workspace: &str, query: ListQuery) -> Reply<'_, Option<Page>> {
        let workspace = workspace.to_owned();
        self.read(move |connection| list(connection, &workspace, &query))
    }

    fn remove(&self, id: &str) -> Reply<'_, bool> {
        let id = id.to_owned();
        self.write(move |connection| Ok(connection.prepare_cached("DELETE FROM jobs WHERE id = ?")?.execute([id])? > 0))
    }

    fn ended_before(&self, time: Timestamp, limit: usize) -> Reply<'_, Vec<String>> {
        self.read(move |connection| {
            let sql = "SELECT id FROM jobs WHERE finished_at < ? ORDER BY finished_at LIMIT ?";
            let mut statement = connection.prepare_cached(sql)?;
            let ids = statement.query_map(params![micros(time), count(limit)], |row| row.get(0))?;
            ids.collect()
        })
    }

    fn forget_keys(&self, time: Timestamp) -> Reply<'_, usize> {
        self.write(move |connection| {
            connection.prepare_cached("DELETE FROM idempotency WHERE created_at < ?")?.execute([micros(time)])
        })
    }
}

/// Forgets an idempotency key whose time is over, so that it can stand for something else.
fn forget(connection: &Connection, job: &Job, key: &NewKey) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM idempotency WHERE workspace = ? AND key = ? AND token = ? AND created_at < ?")?
        .execute(params![job.workspace, job.key, key.key, micros(key.not_before)])?;
    Ok(())
}

/// What an idempotency key stands for, unless its time is over.
fn replay(connection: &Connection, workspace: &str, api_key: &str, key: &NewKey) -> rusqlite::Result<Option<Inserted>> {
    let sql =
        "SELECT body_sha256, job FROM idempotency WHERE workspace = ? AND key = ? AND token = ? AND created_at >= ?";
    let earlier: Option<([u8; 32], String)> = connection
        .prepare_cached(sql)?
        .query_row(params![workspace, api_key, key.key, micros(key.not_before)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((body_sha256, id)) = earlier else { return Ok(None) };
    if body_sha256 != key.body_sha256 {
        return Ok(Some(Inserted::Mismatch));
    }
    Ok(get(connection, &id)?.map(|stored| Inserted::Replayed(Box::new(stored.job))))
}

fn insert(connection: &Connection, job: &Job, lease: &Lease) -> rusqlite::Result<()> {
    let sql = "INSERT INTO jobs (id, workspace, key, model, status, created_at, request, metadata, warnings, worker, \
               lease_until) VALUES (?, ?, ?, ?, 'queued', ?, ?, ?, ?, ?, ?)";
    connection.prepare_cached(sql)?.execute(params![
        job.id,
        job.workspace,
        job.key,
        job.request.model,
        micros(job.created_at),
        to_json(&job.request)?,
        to_json(&job.metadata)?,
        to_json(&job.warnings)?,
        lease.worker,
        micros(lease.until),
    ])?;
    for input in job.request.inputs() {
        // One picture may be there twice, as picture and as mask.
        let sql = "INSERT OR IGNORE INTO inputs (sha256, job) VALUES (?, ?)";
        connection.prepare_cached(sql)?.execute(params![input.sha256, job.id])?;
    }
    Ok(())
}

fn get(connection: &Connection, id: &str) -> rusqlite::Result<Option<Stored>> {
    connection.prepare_cached(&format!("SELECT {COLUMNS} FROM jobs WHERE id = ?"))?.query_row([id], stored).optional()
}

fn list(connection: &Connection, workspace: &str, query: &ListQuery) -> rusqlite::Result<Option<Page>> {
    let before: i64 = match &query.after {
        None => i64::MAX,
        Some(id) => {
            let sql = "SELECT seq FROM jobs WHERE id = ? AND workspace = ?";
            let found = connection.prepare_cached(sql)?.query_row([id, workspace], |row| row.get(0)).optional()?;
            let Some(seq) = found else { return Ok(None) };
            seq
        }
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM jobs WHERE workspace = ?1 AND seq < ?2 AND (?3 IS NULL OR status = ?3) \
         AND (?4 IS NULL OR model = ?4) ORDER BY seq DESC LIMIT ?5"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    // One more than asked tells whether there are more.
    let values =
        params![workspace, before, query.status.map(Status::name), query.model, count(query.limit).saturating_add(1)];
    let mut jobs: Vec<Job> =
        statement.query_map(values, |row| Ok(stored(row)?.job))?.collect::<rusqlite::Result<_>>()?;
    let has_more = jobs.len() > query.limit;
    jobs.truncate(query.limit);
    Ok(Some(Page { jobs, has_more }))
}

/// Connections that only read.
struct Readers {
    file: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    fn read<T>(&self, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => open_reader(&self.file).map_err(|e| failed(&e))?,
        };
        let result = f(&connection).map_err(|e| failed(&e));
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < READERS {
            idle.push(connection);
        }
        result
    }
}

fn open_reader(file: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(file)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

fn connect(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // A burst must not leave a large log file behind.
    connection.pragma_update(None, "journal_size_limit", 16 << 20)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Holds the file `NAME.lock` for as long as the process lives: two servers on one database would both render
/// every job that a crash has left.
fn lock(file: &Path) -> Result<File, StoreError> {
    let path = file.with_extension("lock");
    let error = |error: &dyn std::fmt::Display| StoreError::Failed(format!("{}: {error}", path.display()));
    let lock = File::options().create(true).truncate(false).write(true).open(&path).map_err(|e| error(&e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(file.display().to_string())),
        Err(TryLockError::Error(e)) => Err(error(&e)),
    }
}

/// Makes sure that a database just created is found again after a power cut.
fn sync_folder(file: &Path) -> Result<(), StoreError> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|e| StoreError::Failed(format!("{}: {e}", folder.display())))
}

fn named(file: &Path, error: &rusqlite::Error) -> StoreError {
    match failed(error) {
        StoreError::Failed(message) => StoreError::Failed(format!("{}: {message}", file.display())),
        other => other,
    }
}
