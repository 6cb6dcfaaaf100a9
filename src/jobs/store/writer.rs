//! The one thread that writes to the database.
//!
//! A commit that must survive a power cut waits for the disk, so the thread puts every command that is
//! waiting into one transaction: two hundred submissions at once cost a few commits, not two hundred.
//! A command that fails is undone alone, by its savepoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::StoreError;

/// Most commands in one transaction, so that the first of them is not kept waiting for long.
const GROUP: usize = 256;

/// Tells a command's caller what became of it, once the transaction has been committed or has failed.
type Tell = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// A command that has been run, and is not yet committed.
struct Ran {
    tell: Tell,
    error: Option<StoreError>,
}

/// A command: run on the connection inside a transaction, or told why there is none.
type Command = Box<dyn FnOnce(Result<&Connection, StoreError>) -> Ran + Send>;

/// A handle on the thread. Dropping it runs what waits, closes the database and joins the thread.
pub(super) struct Writer {
    commands: Option<mpsc::Sender<Command>>,
    commits: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread, which owns the connection from here on.
    pub(super) fn start(connection: Connection) -> std::io::Result<Self> {
        let (commands, waiting) = mpsc::channel();
        let commits = Arc::new(AtomicU64::new(0));
        let counter = commits.clone();
        let thread =
            thread::Builder::new().name("easel-store".into()).spawn(move || work(&connection, &waiting, &counter))?;
        Ok(Self { commands: Some(commands), commits, thread: Some(thread) })
    }

    /// Transactions committed so far.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Runs `f` in a transaction; answered when that is on the disk.
    ///
    /// The command is handed over at once: it happens even if the answer is not awaited.
    pub(super) fn write<T, F>(&self, f: F) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let command: Command = Box::new(move |connection| {
            let result = connection.and_then(|connection| savepoint(connection, f).map_err(|e| failed(&e)));
            let error = result.as_ref().err().cloned();
            // The caller may have gone; the command stands all the same.
            let tell =
                move |committed: Result<(), StoreError>| drop(answer.send(result.and_then(|t| committed.map(|()| t))));
            Ran { tell: Box::new(tell), error }
        });
        let handed_over = self.commands.as_ref().is_some_and(|commands| commands.send(command).is_ok());
        async move {
            if !handed_over {
                return Err(StoreError::Closed);
            }
            answered.await.unwrap_or(Err(StoreError::Closed))
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.commands.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the job store's thread has panicked");
        }
    }
}

fn work(connection: &Connection, waiting: &mpsc::Receiver<Command>, commits: &AtomicU64) {
    while let Ok(first) = waiting.recv() {
        let mut ran = Vec::new();
        let committed = group(connection, first, waiting, &mut ran);
        if committed.is_ok() {
            commits.fetch_add(1, Ordering::Relaxed);
        } else if !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            // The next transaction cannot begin then, and its callers are told so.
            tracing::error!(%error, "cannot roll the job store back");
        }
        for Ran { tell, .. } in ran {
            tell(committed.clone());
        }
    }
}

/// Runs `first` and everything else that waits in one transaction.
fn group(
    connection: &Connection,
    first: Command,
    waiting: &mpsc::Receiver<Command>,
    ran: &mut Vec<Ran>,
) -> Result<(), StoreError> {
    if let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
        let error = failed(&error);
        ran.push(first(Err(error.clone())));
        return Err(error);
    }
    let mut next = Some(first);
    while let Some(command) = next {
        ran.push(command(Ok(connection)));
        if connection.is_autocommit() {
            // SQLite has rolled the whole transaction back, as it may do when the disk is full.
            let cause = ran.last().and_then(|ran| ran.error.clone());
            return Err(cause.unwrap_or_else(|| StoreError::Failed("the transaction was rolled back".into())));
        }
        next = if ran.len() < GROUP { waiting.try_recv().ok() } else { None };
    }
    connection.execute_batch("COMMIT").map_err(|e| failed(&e))
}

fn savepoint<T>(connection: &Connection, f: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    connection.execute_batch("SAVEPOINT command")?;
    let result = f(connection);
    if result.is_ok() {
        connection.execute_batch("RELEASE command")?;
    } else if !connection.is_autocommit() {
        connection.execute_batch("ROLLBACK TO command; RELEASE command")?;
    }
    result
}

/// What a caller is told of a database error.
pub(super) fn failed(error: &rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full,
        _ => StoreError::Failed(error.to_string()),
    }
}
