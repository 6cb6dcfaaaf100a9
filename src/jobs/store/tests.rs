//! The store against real files.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use easel_models::Size;
use futures::future::join_all;
use jiff::ToSpan;
use tempfile::TempDir;

use super::*;
use crate::request::{LongPrompt, OutputFormat, Priority, ResolvedRequest};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_700_000_000 + second).unwrap()
}

fn lease(worker: &str, now: i64) -> Lease {
    Lease { worker: worker.into(), now: at(now), until: at(now) + 60.seconds() }
}

fn job(id: &str) -> Job {
    let request = ResolvedRequest {
        model: "tiny".into(),
        prompt: "a red circle — 赤い円".into(),
        negative_prompt: None,
        n: 1,
        width: 64,
        height: 64,
        rendered: Size { width: 64, height: 64 },
        steps: 4,
        guidance: 7.5,
        seed: u64::MAX,
        sampler: "ddim".into(),
        schedule: "leading".into(),
        sampling: Default::default(),
        clip_skip: 0,
        true_guidance: None,
        prompt_weighting: false,
        long_prompt: LongPrompt::Truncate,
        refiner: None,
        images: Vec::new(),
        mask: None,
        strength: None,
        output_format: OutputFormat::Png,
        output_compression: 100,
        partial_images: 0,
        priority: Priority::Normal,
        user: None,
    };
    Job {
        id: id.into(),
        workspace: "w".into(),
        key: "k".into(),
        status: Status::Queued,
        request,
        created_at: at(0),
        started_at: None,
        finished_at: None,
        loading: None,
        progress: 0.0,
        queue_position: None,
        eta_ms: None,
        outputs: Vec::new(),
        metrics: None,
        error: None,
        metadata: BTreeMap::from([("a".into(), "b".into())]),
        warnings: vec!["mind the gap".into()],
    }
}

fn new(id: &str) -> NewJob {
    NewJob { job: job(id), idempotency: None, max_queued: 1000, lease: lease("me", 0) }
}

fn keyed(id: &str, key: &str, body: u8) -> NewJob {
    let idempotency = Some(NewKey { key: key.into(), body_sha256: [body; 32], not_before: at(-3600) });
    NewJob { idempotency, ..new(id) }
}

fn succeeded() -> Ending {
    Ending {
        status: Status::Succeeded,
        started_at: Some(at(1)),
        finished_at: at(2),
        outputs: vec![Output {
            index: 0,
            seed: u64::MAX,
            width: 64,
            height: 64,
            content_type: "image/png".into(),
            sha256: "00".into(),
            bytes: 5,
        }],
        metrics: Some(JobMetrics { queue_ms: 1.5, steps: 4, ..JobMetrics::default() }),
        error: None,
        warnings: Vec::new(),
        last_event: 9,
    }
}

fn open() -> (TempDir, SqliteStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&folder.path().join("jobs.sqlite")).unwrap();
    (folder, store)
}

#[tokio::test]
async fn a_job_comes_back_as_it_was_stored() {
    let (_folder, store) = open();
    assert_eq!(store.insert(new("a")).await.unwrap(), Inserted::New);
    assert_eq!(store.get("a").await.unwrap().unwrap(), Stored { job: job("a"), last_event: 0 });
    store.start("a", at(1)).await.unwrap();
    let running = store.get("a").await.unwrap().unwrap().job;
    assert_eq!((running.status, running.started_at), (Status::Running, Some(at(1))));
    assert!(store.finish("a", succeeded()).await.unwrap());
    let ended = store.get("a").await.unwrap().unwrap();
    assert_eq!(ended.last_event, 9);
    assert_eq!((ended.job.status, ended.job.progress), (Status::Succeeded, 1.0));
    assert_eq!((ended.job.outputs, ended.job.metrics), (succeeded().outputs, succeeded().metrics));
    assert_eq!(store.get("b").await.unwrap(), None);
}

#[tokio::test]
async fn the_first_ending_stands() {
    let (_folder, store) = open();
    store.insert(new("a")).await.unwrap();
    assert!(store.finish("a", succeeded()).await.unwrap());
    let canceled = Ending { status: Status::Canceled, outputs: Vec::new(), ..succeeded() };
    assert!(!store.finish("a", canceled).await.unwrap());
    store.start("a", at(3)).await.unwrap();
    store.release("a").await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().job.status, Status::Succeeded);
    assert!(!store.finish("gone", succeeded()).await.unwrap());
}

#[tokio::test]
async fn an_idempotency_key_stands_for_one_body_within_one_key_and_workspace() {
    let (_folder, store) = open();
    assert_eq!(store.insert(keyed("a", "key", 1)).await.unwrap(), Inserted::New);
    assert_eq!(store.insert(keyed("b", "key", 1)).await.unwrap(), Inserted::Replayed(Box::new(job("a"))));
    assert_eq!(store.insert(keyed("b", "key", 2)).await.unwrap(), Inserted::Mismatch);
    assert_eq!(store.insert(keyed("c", "other", 2)).await.unwrap(), Inserted::New);
    let mut elsewhere = keyed("d", "key", 2);
    elsewhere.job.workspace = "x".into();
    assert_eq!(store.insert(elsewhere).await.unwrap(), Inserted::New);
    let mut other_caller = keyed("e", "key", 2);
    other_caller.job.key = "k2".into();
    assert_eq!(store.insert(other_caller).await.unwrap(), Inserted::New);
    assert_eq!(store.get("b").await.unwrap(), None);
}

#[tokio::test]
async fn a_key_is_forgotten_with_its_job_and_with_time() {
    let (_folder, store) = open();
    store.insert(keyed("a", "key", 1)).await.unwrap();
    assert!(store.remove("a").await.unwrap());
    assert!(!store.remove("a").await.unwrap());
    assert_eq!(store.insert(keyed("b", "key", 2)).await.unwrap(), Inserted::New);
    // The job was made at second 0: for a caller who comes later than the key lives, it is a new key.
    let mut later = keyed("c", "key", 3);
    later.idempotency.as_mut().unwrap().not_before = at(1);
    assert_eq!(store.insert(later).await.unwrap(), Inserted::New);
    assert_eq!(store.forget_keys(at(0)).await.unwrap(), 0);
    assert_eq!(store.forget_keys(at(1)).await.unwrap(), 1);
}

#[tokio::test]
async fn a_full_queue_takes_no_job_but_still_answers_for_earlier_ones() {
    let (_folder, store) = open();
    let limited = |new: NewJob| NewJob { max_queued: 2, ..new };
    store.insert(limited(keyed("a", "key", 1))).await.unwrap();
    store.insert(limited(new("b"))).await.unwrap();
    assert_eq!(store.insert(limited(new("c"))).await.unwrap(), Inserted::QueueFull);
    assert!(matches!(store.insert(limited(keyed("d", "key", 1))).await.unwrap(), Inserted::Replayed(_)));
    store.start("a", at(1)).await.unwrap();
    assert_eq!(store.insert(limited(new("c"))).await.unwrap(), Inserted::New);
}

#[tokio::test]
async fn a_lease_keeps_others_away_until_it_runs_out() {
    let (_folder, store) = open();
    store.insert(new("a")).await.unwrap();
    store.insert(new("b")).await.unwrap();
    store.insert(new("c")).await.unwrap();
    store.start("a", at(1)).await.unwrap();
    store.finish("c", succeeded()).await.unwrap();
    assert!(store.claim(lease("you", 59), 10).await.unwrap().is_empty());
    assert_eq!(store.renew(lease("me", 59)).await.unwrap(), 2);
    assert!(store.claim(lease("you", 100), 10).await.unwrap().is_empty());
    let claimed = store.claim(lease("you", 200), 10).await.unwrap();
    assert_eq!(claimed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert!(claimed.iter().all(|job| job.status == Status::Queued && job.started_at.is_none()));
    assert_eq!(store.renew(lease("me", 200)).await.unwrap(), 0);
    store.release("b").await.unwrap();
    assert_eq!(store.claim(lease("me", 200), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_claim_takes_the_oldest_first_and_no_more_than_asked() {
    let (_folder, store) = open();
    for i in 0..5 {
        store.insert(new(&format!("j{i}"))).await.unwrap();
    }
    let first = store.claim(lease("you", 100), 2).await.unwrap();
    assert_eq!(first.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["j0", "j1"]);
    assert_eq!(store.claim(lease("you", 100), 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn what_was_not_ended_is_free_when_the_store_is_opened_again() {
    let (folder, store) = open();
    store.insert(new("waiting")).await.unwrap();
    store.insert(new("running")).await.unwrap();
    store.insert(new("ended")).await.unwrap();
    store.start("running", at(1)).await.unwrap();
    store.finish("ended", succeeded()).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&folder.path().join("jobs.sqlite")).unwrap();
    let claimed = store.claim(lease("next", 1), 10).await.unwrap();
    assert_eq!(claimed.iter().map(|job| job.id.as_str()).collect::<Vec<_>>(), ["waiting", "running"]);
}

#[tokio::test]
async fn the_list_is_newest_first_in_pages() {
    let (_folder, store) = open();
    for i in 0..5 {
        store.insert(new(&format!("j{i}"))).await.unwrap();
    }
    let mut elsewhere = new("other");
    elsewhere.job.workspace = "x".into();
    store.insert(elsewhere).await.unwrap();
    store.start("j1", at(1)).await.unwrap();
    let ids = |page: &Page| page.jobs.iter().map(|job| job.id.clone()).collect::<Vec<_>>();
    let query = |limit, after: Option<&str>| ListQuery { limit, after: after.map(Into::into), ..ListQuery::default() };
    let first = store.list("w", query(2, None)).await.unwrap().unwrap();
    assert_eq!((ids(&first), first.has_more), (vec!["j4".into(), "j3".into()], true));
    let rest = store.list("w", query(3, Some("j3"))).await.unwrap().unwrap();
    assert_eq!((ids(&rest), rest.has_more), (vec!["j2".into(), "j1".into(), "j0".into()], false));
    assert_eq!(store.list("w", query(2, Some("other"))).await.unwrap(), None);
    let running = ListQuery { status: Some(Status::Running), ..query(10, None) };
    assert_eq!(ids(&store.list("w", running).await.unwrap().unwrap()), ["j1"]);
    let model = ListQuery { model: Some("big".into()), ..query(10, None) };
    assert_eq!(store.list("w", model).await.unwrap().unwrap(), Page::default());
}

#[tokio::test]
async fn old_ended_jobs_are_found() {
    let (_folder, store) = open();
    store.insert(new("a")).await.unwrap();
    store.insert(new("b")).await.unwrap();
    store.finish("a", succeeded()).await.unwrap();
    assert!(store.ended_before(at(2), 10).await.unwrap().is_empty());
    assert_eq!(store.ended_before(at(3), 10).await.unwrap(), ["a"]);
}

/// Keeps the writer busy until the sender is dropped, so that what is asked meanwhile waits together.
fn hold(store: &SqliteStore) -> (mpsc::Sender<()>, Reply<'_, ()>) {
    let (release, released) = mpsc::channel::<()>();
    let (held, holds) = mpsc::channel();
    let holding = store.run(move |_| {
        held.send(()).unwrap();
        released.recv().unwrap_err();
        Ok(())
    });
    holds.recv().unwrap();
    (release, holding)
}

#[tokio::test]
async fn two_hundred_submissions_at_once_are_one_commit() {
    let (_folder, store) = open();
    let before = store.commits();
    let (release, holding) = hold(&store);
    let ids: Vec<String> = (0..200).map(|i| format!("j{i}")).collect();
    let inserts: Vec<_> = ids.iter().map(|id| store.insert(new(id))).collect();
    drop(release);
    holding.await.unwrap();
    assert!(join_all(inserts).await.into_iter().all(|inserted| inserted.unwrap() == Inserted::New));
    // They join the transaction of the command that held them up.
    assert_eq!(store.commits() - before, 1);
}

#[tokio::test]
async fn a_command_that_fails_takes_none_of_its_group_with_it() {
    let (_folder, store) = open();
    let (release, holding) = hold(&store);
    let good = store.insert(new("a"));
    let bad = store.insert(new("a"));
    let half = store.run(|connection| {
        connection.execute("UPDATE jobs SET workspace = 'half'", [])?;
        connection.execute("no SQL", [])
    });
    let other = store.insert(new("b"));
    drop(release);
    holding.await.unwrap();
    assert_eq!(good.await.unwrap(), Inserted::New);
    assert!(matches!(bad.await, Err(StoreError::Failed(_))));
    half.await.unwrap_err();
    assert_eq!(other.await.unwrap(), Inserted::New);
    assert_eq!(store.get("a").await.unwrap().unwrap().job.workspace, "w");
}

#[tokio::test]
async fn nothing_is_taken_on_a_full_disk_and_all_is_well_once_there_is_room() {
    let (_folder, store) = open();
    // SQLite's own limit gives the same error as the file system's.
    let pages: u32 = store.run(|c| c.query_row("PRAGMA page_count", [], |row| row.get(0))).await.unwrap();
    let limit = move |pages: u32| {
        move |c: &rusqlite::Connection| c.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
    };
    store.run(limit(pages)).await.unwrap();
    let large = |id: &str| {
        let mut new = new(id);
        new.job.request.prompt = "long ".repeat(20_000);
        new
    };
    assert_eq!(store.insert(large("a")).await, Err(StoreError::Full));
    assert_eq!(store.get("a").await.unwrap(), None);
    store.run(limit(1 << 20)).await.unwrap();
    assert_eq!(store.insert(large("a")).await.unwrap(), Inserted::New);
    assert_eq!(store.get("a").await.unwrap().unwrap().job, large("a").job);
}

#[tokio::test]
async fn a_data_folder_belongs_to_one_process() {
    let (folder, store) = open();
    let file = folder.path().join("jobs.sqlite");
    assert!(matches!(SqliteStore::open(&file), Err(StoreError::InUse(_))));
    drop(store);
    SqliteStore::open(&file).unwrap();
}

#[tokio::test]
async fn a_database_of_a_later_version_is_left_alone() {
    let (folder, store) = open();
    store.run(|connection| connection.pragma_update(None, "user_version", 1000)).await.unwrap();
    drop(store);
    let Err(error) = SqliteStore::open(&folder.path().join("jobs.sqlite")) else { panic!("it was opened") };
    assert!(error.to_string().contains("schema 1000"), "{error}");
}

/// Set in the process that [`an_acknowledged_job_survives_kill_9`] starts and kills.
const VICTIM: &str = "EASEL_TEST_STORE_VICTIM";

#[tokio::test]
async fn an_acknowledged_job_survives_kill_9() {
    if let Ok(file) = std::env::var(VICTIM) {
        let store = SqliteStore::open(file.as_ref()).unwrap();
        for i in 0..100_000 {
            let id = format!("j{i}");
            store.insert(NewJob { max_queued: usize::MAX, ..new(&id) }).await.unwrap();
            println!("stored {id}");
        }
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jobs.sqlite");
    let name = "jobs::store::tests::an_acknowledged_job_survives_kill_9";
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(VICTIM, &file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = Vec::new();
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        if let Some(id) = line.unwrap().strip_prefix("stored ") {
            told.push(id.to_owned());
        }
        if told.len() == 50 {
            // SIGKILL, in the middle of writing.
            victim.kill().unwrap();
        }
    }
    victim.wait().unwrap();
    assert!((50..100_000).contains(&told.len()), "the process was to be killed while it wrote");
    let store = SqliteStore::open(&file).unwrap();
    for id in &told {
        assert_eq!(store.get(id).await.unwrap().unwrap().job, job(id));
    }
    let claimed = store.claim(lease("next", 0), usize::MAX).await.unwrap();
    assert!(claimed.len() >= told.len());
}
