//! Crashes, full disks, an engine that goes away, and callers who hang up.

use std::collections::BTreeSet;

use tokio::runtime::Runtime;

use super::*;

/// Opens a house in a process of its own, so to say: dropping the runtime stops every task where it is.
pub(super) fn life<T>(folder: &Path, renderer: impl Renderer, f: impl AsyncFnOnce(&House) -> T) -> T {
    let runtime = Runtime::new().unwrap();
    let (house, result) = runtime.block_on(async {
        let house = House::open(folder, renderer, 1000).await;
        let result = f(&house).await;
        (house, result)
    });
    // No task runs its last lines.
    runtime.shutdown_timeout(LONG);
    drop(house);
    result
}

#[test]
fn after_a_crash_every_job_is_finished_and_none_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, mut works) = mpsc::unbounded_channel();
    // The first life ends with one job done, one half done, one started and one waiting.
    let (ids, _engine) = life(folder.path(), Hand(sender), async |house| {
        let mut ids = Vec::new();
        for seed in 0..4 {
            ids.push(house.submit(request(10 * seed, 2)).await.id);
        }
        render(&works.recv().await.unwrap());
        house.wait(&ids[0]).await;
        let half = works.recv().await.unwrap();
        send(&half, EngineEvent::Started);
        render_image(&half, 0);
        until(async || house.get(&ids[1]).await.outputs.len() == 1).await;
        let begun = works.recv().await.unwrap();
        send(&begun, EngineEvent::Started);
        until(async || house.get(&ids[2]).await.status == Status::Running).await;
        // What the engine holds is held until the life is over.
        (ids, [half, begun])
    });
    let (sender, mut works) = mpsc::unbounded_channel();
    let first = life(folder.path(), Hand(sender), async |house| {
        // Those that were left are handed over again, in their order, and nothing else.
        let mut again = Vec::new();
        for _ in 1..ids.len() {
            let work = works.recv().await.unwrap();
            render(&work);
            again.push(work.job);
        }
        assert_eq!(again, ids[1..]);
        assert!(works.try_recv().is_err());
        let mut files = Vec::new();
        for (seed, id) in ids.iter().enumerate() {
            let job = house.wait(id).await;
            assert_eq!(job.status, Status::Succeeded);
            assert_eq!(
                job.outputs.iter().map(|o| o.seed).collect::<Vec<_>>(),
                [10 * seed as u64, 10 * seed as u64 + 1]
            );
            for output in &job.outputs {
                let file = house.artifacts.open_picture(id, output.index).await.unwrap();
                assert_eq!(file.sha256(), output.sha256);
                files.push(file);
            }
        }
        let endings = house.store.endings.lock().unwrap().clone();
        assert_eq!(endings, ids[1..].iter().map(|id| (id.clone(), 1)).collect());
        files
    });
    // The third life has nothing to do, and finds everything as it was.
    let (sender, mut works) = mpsc::unbounded_channel();
    life(folder.path(), Hand(sender), async |house| {
        assert!(works.try_recv().is_err());
        let mut files = Vec::new();
        for id in &ids {
            for index in 0..2 {
                files.push(house.artifacts.open_picture(id, index).await.unwrap());
            }
        }
        assert_eq!(files, first);
    });
}

#[test]
fn crashes_under_load_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut accepted = BTreeSet::new();
    let mut endings: BTreeMap<String, u32> = BTreeMap::new();
    for round in 0..4 {
        life(folder.path(), Prompt::default(), async |house| {
            let mut first = None;
            for seed in 0..30 {
                let id = house.submit(request(seed, 1)).await.id;
                accepted.insert(id.clone());
                first.get_or_insert(id);
            }
            if round == 3 {
                for id in &accepted {
                    assert_eq!(house.wait(id).await.status, Status::Succeeded);
                }
            } else {
                house.wait(&first.unwrap()).await;
            }
            for (id, count) in &*house.store.endings.lock().unwrap() {
                *endings.entry(id.clone()).or_default() += count;
            }
        });
    }
    // An ending may have been stored just as the counter was read, so some are not seen here; none is seen twice.
    assert!(endings.values().all(|count| *count == 1));
    assert_eq!(accepted.len(), 120);
}

#[tokio::test]
async fn an_engine_that_shuts_down_puts_its_jobs_back() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 2)).await.id;
    let events = house.watch(&id, None).await;
    let work = works.recv().await.unwrap();
    send(&work, EngineEvent::Started);
    render_image(&work, 0);
    until(async || house.get(&id).await.outputs.len() == 1).await;
    house.jobs.refuse();
    assert_eq!(house.try_submit(request(2, 1), None).await, Err(SubmitError::ShuttingDown));
    send(&work, EngineEvent::Failed(WorkError::ShuttingDown));
    assert!(house.jobs.close(LONG).await);
    // Listeners are told nothing final.
    assert_eq!(names(&drain(events).await), ["queued", "started", "output"]);
    let job = house.get(&id).await;
    assert_eq!((job.status, job.started_at, job.outputs.len()), (Status::Queued, None, 0));
    // Who waits is not kept waiting.
    assert_eq!(house.wait(&id).await.status, Status::Queued);
    assert_eq!(house.store.claim(house.jobs.inner.lease(), 10).await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_job_that_only_an_open_connection_waits_for_is_canceled_when_the_engine_shuts_down() {
    let (_folder, house, mut works) = House::by_hand().await;
    let ids = [house.submit(request(1, 1)).await.id, house.submit(request(2, 1)).await.id];
    for id in &ids {
        house.jobs.tie(id, true);
    }
    house.jobs.tie(&ids[1], false);
    house.jobs.refuse();
    for _ in &ids {
        send(&works.recv().await.unwrap(), EngineEvent::Failed(WorkError::ShuttingDown));
    }
    assert!(house.jobs.close(LONG).await);
    let stored = house.store.get(&ids[0]).await.unwrap().unwrap().job;
    assert_eq!((stored.status, stored.error.unwrap().code.as_str()), (Status::Canceled, "shutting_down"));
    let left = house.store.claim(house.jobs.inner.lease(), 10).await.unwrap();
    assert_eq!(left.iter().map(|job| &job.id).collect::<Vec<_>>(), [&ids[1]]);
}

#[tokio::test]
async fn a_listener_from_before_a_restart_hears_everything_of_the_new_run() {
    let (_folder, house, mut works) = House::by_hand().await;
    let mut job = house.submit(request(1, 1)).await;
    render(&works.recv().await.unwrap());
    house.wait(&job.id).await;
    let seen = drain(house.watch(&job.id, None).await).await.last().unwrap().id;
    job.status = Status::Queued;
    let mut before = seen;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        let live = Arc::new(super::super::live::Live::resumed(job.clone(), Timestamp::now()));
        live.started(Timestamp::now());
        live.close();
        let told = drain(live.watch(Some(before))).await;
        assert_eq!(names(&told), ["queued", "started"]);
        before = told[1].id;
        assert!(before < 1 << 53);
    }
}

#[tokio::test]
async fn closing_takes_no_longer_than_allowed() {
    let (_folder, house, _works) = House::by_hand().await;
    house.submit(request(1, 1)).await;
    assert!(!house.jobs.close(Duration::from_millis(20)).await);
}

#[tokio::test]
async fn an_engine_that_drops_a_job_fails_it() {
    let (_folder, house, mut works) = House::by_hand().await;
    let dropped = house.submit(request(1, 1)).await.id;
    drop(works.recv().await.unwrap());
    assert_eq!(house.wait(&dropped).await.error.unwrap().code, "internal");
    let short = house.submit(request(1, 2)).await.id;
    let work = works.recv().await.unwrap();
    render_image(&work, 1);
    send(&work, EngineEvent::Finished(WorkMetrics::default()));
    let job = house.wait(&short).await;
    assert_eq!((job.status, job.error.unwrap().message.as_str()), (Status::Failed, "the engine made 1 of 2 pictures"));
    assert!(house.artifacts.open_picture(&short, 1).await.is_err());
}

#[tokio::test]
async fn a_picture_that_cannot_be_encoded_fails_its_job() {
    let (_folder, house, mut works) = House::by_hand().await;
    // Longer than WebP's 16383 pixels a side.
    let asked = ResolvedRequest { output_format: OutputFormat::Webp, width: 20_000, height: 1, ..request(1, 1) };
    let id = house.submit(asked).await.id;
    render(&works.recv().await.unwrap());
    let job = house.wait(&id).await;
    let error = job.error.unwrap();
    assert_eq!((job.status, error.code.as_str()), (Status::Failed, "internal"));
    assert!(error.message.contains("WebP"), "{}", error.message);
}

#[tokio::test]
async fn a_job_waits_for_room_for_its_pictures() {
    let (_folder, house, mut works) = House::by_hand().await;
    house.disk_full.store(true, Ordering::Relaxed);
    let id = house.submit(request(1, 1)).await.id;
    render(&works.recv().await.unwrap());
    let waiting = house.jobs.wait(&Caller::local(), &id, Duration::from_millis(300)).await.unwrap();
    assert_eq!((waiting.status, waiting.outputs.len()), (Status::Running, 0));
    house.disk_full.store(false, Ordering::Relaxed);
    assert_eq!(house.wait(&id).await.status, Status::Succeeded);
}

#[tokio::test]
async fn a_job_that_waits_for_room_can_be_canceled() {
    let (_folder, house, mut works) = House::by_hand().await;
    house.disk_full.store(true, Ordering::Relaxed);
    let id = house.submit(request(1, 1)).await.id;
    render(&works.recv().await.unwrap());
    until(async || house.get(&id).await.progress == 1.0).await;
    assert_eq!(house.jobs.cancel(&Caller::local(), &id).await.unwrap().status, Status::Canceled);
}

#[tokio::test]
async fn a_full_store_takes_no_job_and_keeps_those_it_has() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    house.store_full.store(true, Ordering::Relaxed);
    assert_eq!(house.try_submit(request(2, 1), None).await, Err(SubmitError::Unavailable(StoreError::Full)));
    let work = works.recv().await.unwrap();
    assert!(works.try_recv().is_err());
    render(&work);
    let waiting = house.jobs.wait(&Caller::local(), &id, Duration::from_millis(300)).await.unwrap();
    assert_eq!((waiting.status, waiting.outputs.len()), (Status::Running, 1));
    house.store_full.store(false, Ordering::Relaxed);
    assert_eq!(house.wait(&id).await.status, Status::Succeeded);
    let page = house.jobs.list(&Caller::local(), ListQuery { limit: 10, ..ListQuery::default() }).await.unwrap();
    assert_eq!(page.jobs.len(), 1);
}

#[tokio::test]
async fn a_caller_who_hangs_up_while_submitting_calls_the_job_off_unless_it_has_a_key() {
    let (_folder, house, mut works) = House::by_hand().await;
    for (idempotency, expected) in [(None, Status::Canceled), (key("k", 1), Status::Queued)] {
        let mut call = Box::pin(house.try_submit(request(1, 1), idempotency));
        // The first poll hands the job over; nobody is there for the answer.
        assert!(futures::poll!(&mut call).is_pending());
        drop(call);
        let work = works.recv().await.unwrap();
        let id = work.job.clone();
        if expected == Status::Canceled {
            until(async || house.get(&id).await.status == expected).await;
        } else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert_eq!(house.get(&id).await.status, expected);
        }
    }
}
