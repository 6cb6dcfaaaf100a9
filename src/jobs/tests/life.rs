//! From acceptance to the end, with keys, limits and callers.

use futures::future::join_all;

use super::*;

#[tokio::test]
async fn a_job_is_rendered_kept_and_told_of() {
    let (_folder, house) = House::prompt().await;
    let job = house.submit(request(u64::MAX, 2)).await;
    assert_eq!((job.status, job.workspace.as_str(), job.key.as_str()), (Status::Queued, "default", "local"));
    let ended = house.wait(&job.id).await;
    assert_eq!((ended.status, ended.progress, ended.error.as_ref()), (Status::Succeeded, 1.0, None));
    // Picture i is made by seed + i, wrapping.
    assert_eq!(ended.outputs.iter().map(|o| (o.index, o.seed)).collect::<Vec<_>>(), [(0, u64::MAX), (1, 0)]);
    let metrics = ended.metrics.clone().unwrap();
    assert_eq!((metrics.steps, metrics.denoise_ms), (8, 7.0));
    assert!(metrics.latency_ms > 0.0);
    assert!(ended.created_at <= ended.started_at.unwrap() && ended.started_at <= ended.finished_at);
    for output in &ended.outputs {
        let file = house.artifacts.open_picture(&job.id, output.index).await.unwrap();
        assert_eq!((file.sha256(), file.bytes.len() as u64), (output.sha256.clone(), output.bytes));
        let decoded = image::load_from_memory(&file.bytes).unwrap().into_rgb8();
        assert_eq!(decoded.into_raw(), picture(output.seed, 16, 16).pixels);
    }
    // What the store has is what was told.
    let stored = house.store.get(&job.id).await.unwrap().unwrap();
    assert_eq!(stored.job, ended);
}

#[tokio::test]
async fn the_engine_is_given_the_request_as_understood() {
    let (_folder, house, mut works) = House::by_hand().await;
    let asked = ResolvedRequest {
        negative_prompt: Some("blue".into()),
        clip_skip: 1,
        schedule: "karras".into(),
        partial_images: 2,
        priority: Priority::High,
        rendered: Size { width: 8, height: 24 },
        ..request(7, 3)
    };
    let job = house.submit(asked).await;
    let work = works.recv().await.unwrap();
    assert_eq!((work.job, work.model.as_str(), work.previews), (job.id, "tiny", 2));
    assert_eq!((work.priority, work.owner.as_str()), (Priority::High, "default"));
    assert_eq!((work.prompt.text.as_deref(), work.prompt.clip_skip), (Some("a red circle"), 1));
    // diffusers applies clip skip to the prompt only.
    assert_eq!((work.negative.text.as_deref(), work.negative.clip_skip), (Some("blue"), 0));
    assert_eq!(work.specs.iter().map(|spec| spec.seed).collect::<Vec<_>>(), [7, 8, 9]);
    assert!(work.specs.iter().all(|spec| (spec.width, spec.height) == (8, 24)));
    assert_eq!(work.specs[0].sampling.schedule.as_deref(), Some("karras"));
}

#[tokio::test]
async fn a_picture_of_another_size_is_delivered_as_asked() {
    let (_folder, house) = House::prompt().await;
    let job = house.submit(ResolvedRequest { width: 48, height: 32, ..request(1, 1) }).await;
    let output = house.wait(&job.id).await.outputs.remove(0);
    assert_eq!((output.width, output.height), (48, 32));
    let file = house.artifacts.open_picture(&job.id, 0).await.unwrap();
    assert_eq!(image::load_from_memory(&file.bytes).unwrap().into_rgb8().dimensions(), (48, 32));
}

#[tokio::test]
async fn simultaneous_submissions_with_one_key_make_one_job() {
    let (_folder, house, mut works) = House::by_hand().await;
    let submissions = (0..20).map(|_| house.try_submit(request(1, 1), key("once", 1)));
    let submitted: Vec<Submitted> = join_all(submissions).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(submitted.iter().filter(|one| !one.replayed).count(), 1);
    assert!(submitted.iter().all(|one| one.job.id == submitted[0].job.id));
    assert_eq!(works.recv().await.unwrap().job, submitted[0].job.id);
    assert!(works.try_recv().is_err());
}

#[tokio::test]
async fn a_key_gives_the_same_job_back_when_it_has_ended_and_no_other_body() {
    let (_folder, house) = House::prompt().await;
    let first = house.try_submit(request(1, 1), key("k", 1)).await.unwrap();
    let ended = house.wait(&first.job.id).await;
    let again = house.try_submit(request(1, 1), key("k", 1)).await.unwrap();
    assert_eq!((again.replayed, again.job), (true, ended));
    let other = house.try_submit(request(2, 1), key("k", 2)).await;
    assert_eq!(other, Err(SubmitError::IdempotencyMismatch("k".into())));
    house.ahead.store(24 * 3600 + 1, Ordering::Relaxed);
    assert!(!house.try_submit(request(2, 1), key("k", 2)).await.unwrap().replayed);
}

#[tokio::test]
async fn a_replayed_job_can_be_waited_for_and_watched_at_once() {
    let (_folder, house, mut works) = House::by_hand().await;
    let (first, second) =
        tokio::join!(house.try_submit(request(1, 1), key("k", 1)), house.try_submit(request(1, 1), key("k", 1)),);
    let id = second.unwrap().job.id;
    assert_eq!(first.unwrap().job.id, id);
    let events = house.watch(&id, None).await;
    render(&works.recv().await.unwrap());
    assert_eq!(names(&drain(events).await).last(), Some(&"succeeded"));
}

#[tokio::test]
async fn a_full_queue_takes_no_more_until_a_job_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, mut works) = mpsc::unbounded_channel();
    let house = House::open(folder.path(), Hand(sender), 2).await;
    let first = house.try_submit(request(1, 1), key("k", 1)).await.unwrap().job;
    house.submit(request(2, 1)).await;
    let refused = house.try_submit(request(3, 1), None).await;
    assert_eq!(refused, Err(SubmitError::QueueFull { max_queue: 2, retry_after: Duration::from_secs(5) }));
    // What was taken before is still answered for.
    assert!(house.try_submit(request(1, 1), key("k", 1)).await.unwrap().replayed);
    send(&works.recv().await.unwrap(), EngineEvent::Started);
    until(async || house.store.get(&first.id).await.unwrap().unwrap().job.status != Status::Queued).await;
    house.submit(request(3, 1)).await;
}

#[tokio::test]
async fn two_hundred_jobs_at_once_are_all_taken_and_made_once() {
    let (_folder, house) = House::prompt().await;
    let jobs = join_all((0..200).map(|seed| house.submit(request(seed, 1)))).await;
    let ended = join_all(jobs.iter().map(|job| house.wait(&job.id))).await;
    assert!(ended.iter().all(|job| job.status == Status::Succeeded && job.outputs.len() == 1));
    let endings = house.store.endings.lock().unwrap();
    assert_eq!((endings.len(), endings.values().max()), (200, Some(&1)));
}

#[tokio::test]
async fn a_job_is_seen_in_its_workspace_only() {
    let (_folder, house, _works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    let stranger = Caller { workspace: "elsewhere".into(), ..Caller::local() };
    let jobs = &house.jobs;
    assert!(matches!(jobs.get(&stranger, &id).await, Err(JobsError::NotFound(_))));
    assert!(matches!(jobs.cancel(&stranger, &id).await, Err(JobsError::NotFound(_))));
    assert!(matches!(jobs.delete(&stranger, &id).await, Err(JobsError::NotFound(_))));
    assert!(matches!(jobs.wait(&stranger, &id, LONG).await, Err(JobsError::NotFound(_))));
    assert!(jobs.watch(&stranger, &id, None).await.is_err());
    assert!(jobs.list(&stranger, ListQuery { limit: 10, ..ListQuery::default() }).await.unwrap().jobs.is_empty());
    assert_eq!(house.get(&id).await.status, Status::Queued);
    assert!(matches!(jobs.get(&Caller::local(), "job_unknown").await, Err(JobsError::NotFound(_))));
}

#[tokio::test]
async fn the_list_shows_jobs_as_they_are_now() {
    let (_folder, house, mut works) = House::by_hand().await;
    let old = house.submit(request(1, 1)).await.id;
    let new = house.submit(request(2, 1)).await.id;
    let work = works.recv().await.unwrap();
    send(&work, EngineEvent::Started);
    send(&work, EngineEvent::Progress { image: 0, step: 1, steps: 4, eta: None });
    until(async || house.get(&old).await.progress > 0.0).await;
    let list = async |query| house.jobs.list(&Caller::local(), query).await;
    let page = list(ListQuery { limit: 10, ..ListQuery::default() }).await.unwrap();
    let seen: Vec<_> = page.jobs.iter().map(|job| (job.id.as_str(), job.status, job.progress)).collect();
    assert_eq!(seen, [(new.as_str(), Status::Queued, 0.0), (old.as_str(), Status::Running, 0.25)]);
    let after = list(ListQuery { limit: 10, after: Some(new), ..ListQuery::default() }).await.unwrap();
    assert_eq!(after.jobs.len(), 1);
    let unknown = list(ListQuery { limit: 10, after: Some("job_x".into()), ..ListQuery::default() }).await;
    assert!(matches!(unknown, Err(JobsError::NotFound(id)) if id == "job_x"));
}

#[tokio::test]
async fn a_wait_ends_with_the_job_or_with_its_time() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    let early = house.jobs.wait(&Caller::local(), &id, Duration::from_millis(10)).await.unwrap();
    assert_eq!(early.status, Status::Queued);
    let work = works.recv().await.unwrap();
    let (ended, ()) = tokio::join!(house.wait(&id), async { render(&work) });
    assert_eq!(ended.status, Status::Succeeded);
}

#[tokio::test]
async fn a_canceled_job_is_dropped_by_the_engine_and_leaves_no_files() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 2)).await.id;
    let events = house.watch(&id, None).await;
    let work = works.recv().await.unwrap();
    send(&work, EngineEvent::Started);
    render_image(&work, 0);
    until(async || house.get(&id).await.outputs.len() == 1).await;
    let job = house.jobs.cancel(&Caller::local(), &id).await.unwrap();
    assert_eq!((job.status, job.outputs.len()), (Status::Canceled, 0));
    assert!(work.events.is_closed());
    assert_eq!(names(&drain(events).await), ["queued", "started", "output", "canceled"]);
    assert!(house.artifacts.open_picture(&id, 0).await.is_err());
    // A second call changes nothing.
    assert_eq!(house.jobs.cancel(&Caller::local(), &id).await.unwrap(), job);
}

#[tokio::test]
async fn an_ended_job_cannot_be_canceled() {
    let (_folder, house) = House::prompt().await;
    let id = house.submit(request(1, 1)).await.id;
    let ended = house.wait(&id).await;
    assert_eq!(house.jobs.cancel(&Caller::local(), &id).await.unwrap(), ended);
}

#[tokio::test]
async fn a_deleted_job_is_gone_with_its_files() {
    let (_folder, house, mut works) = House::by_hand().await;
    let ended = house.submit(request(1, 1)).await.id;
    render(&works.recv().await.unwrap());
    house.wait(&ended).await;
    let running = house.submit(request(2, 2)).await.id;
    let work = works.recv().await.unwrap();
    send(&work, EngineEvent::Started);
    render_image(&work, 0);
    for id in [ended, running] {
        house.jobs.delete(&Caller::local(), &id).await.unwrap();
        assert!(matches!(house.jobs.get(&Caller::local(), &id).await, Err(JobsError::NotFound(_))));
        assert!(matches!(house.jobs.delete(&Caller::local(), &id).await, Err(JobsError::NotFound(_))));
        assert!(house.artifacts.open_picture(&id, 0).await.is_err());
    }
    assert!(work.events.is_closed());
}

#[tokio::test]
async fn old_jobs_go_with_their_files_and_others_stay() {
    let (_folder, house) = House::prompt().await;
    let old = house.submit(request(1, 1)).await.id;
    house.wait(&old).await;
    house.ahead.store(29 * 24 * 3600, Ordering::Relaxed);
    let young = house.submit(request(2, 1)).await.id;
    house.wait(&young).await;
    assert_eq!(house.jobs.inner.sweep().await.unwrap(), 0);
    house.ahead.store(31 * 24 * 3600, Ordering::Relaxed);
    assert_eq!(house.jobs.inner.sweep().await.unwrap(), 1);
    assert!(matches!(house.jobs.get(&Caller::local(), &old).await, Err(JobsError::NotFound(_))));
    assert!(house.artifacts.open_picture(&old, 0).await.is_err());
    assert!(house.artifacts.open_picture(&young, 0).await.is_ok());
}

#[tokio::test]
async fn an_old_job_that_cannot_be_removed_does_not_keep_the_others() {
    let (_folder, house) = House::prompt().await;
    let mut ids = Vec::new();
    for seed in 0..3 {
        ids.push(house.submit(request(seed, 1)).await.id);
        house.wait(&ids[seed as usize]).await;
    }
    house.stuck.lock().unwrap().clone_from(&ids[0]);
    house.ahead.store(31 * 24 * 3600, Ordering::Relaxed);
    assert_eq!(house.jobs.inner.sweep().await.unwrap(), 2);
    assert_eq!(house.get(&ids[0]).await.status, Status::Succeeded);
    house.stuck.lock().unwrap().clear();
    assert_eq!(house.jobs.inner.sweep().await.unwrap(), 1);
}

#[tokio::test]
async fn what_the_engine_refuses_is_told_with_its_field() {
    let (_folder, house, mut works) = House::by_hand().await;
    let cases = [
        (WorkError::OutOfMemory("2 GiB".into()), "out_of_memory", "out of memory: 2 GiB", None),
        (
            WorkError::Request { param: "steps", message: "too many".into() },
            "invalid_request",
            "too many",
            Some("steps"),
        ),
        (WorkError::Internal("oh".into()), "internal", "oh", None),
    ];
    for (error, code, message, param) in cases {
        let id = house.submit(request(1, 1)).await.id;
        send(&works.recv().await.unwrap(), EngineEvent::Failed(error));
        let job = house.wait(&id).await;
        let told = job.error.unwrap();
        assert_eq!(job.status, Status::Failed);
        assert_eq!((told.code.as_str(), told.message.as_str(), told.param.as_deref()), (code, message, param));
    }
}

#[tokio::test]
async fn a_prompt_that_did_not_fit_is_warned_of() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    let work = works.recv().await.unwrap();
    render_image(&work, 0);
    send(&work, EngineEvent::Finished(WorkMetrics { truncated: true, ..WorkMetrics::default() }));
    assert!(house.wait(&id).await.warnings[0].contains("`prompt`"));
}

#[tokio::test]
async fn jobs_are_counted_by_what_becomes_of_them() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let numbers = recorder.handle();
    // Of this thread, on which all tasks of the test run.
    let _recording = metrics::set_default_local_recorder(&recorder);
    let (_folder, house, mut works) = House::by_hand().await;
    let has = |line: &str| assert!(numbers.render().lines().any(|l| l == line), "{line}\n{}", numbers.render());
    has("easel_jobs_total{status=\"failed\"} 0");
    let done = house.submit(request(1, 1)).await.id;
    house.submit(request(2, 1)).await;
    let called_off = house.submit(request(3, 1)).await.id;
    has("easel_jobs{status=\"queued\"} 3");
    render(&works.recv().await.unwrap());
    house.wait(&done).await;
    house.jobs.cancel(&Caller::local(), &called_off).await.unwrap();
    let running = works.recv().await.unwrap();
    send(&running, EngineEvent::Started);
    until(async || numbers.render().contains("easel_jobs{status=\"running\"} 1")).await;
    has("easel_jobs{status=\"queued\"} 0");
    has("easel_jobs_total{status=\"succeeded\"} 1");
    has("easel_jobs_total{status=\"canceled\"} 1");
    assert!(numbers.render().contains("easel_job_latency_seconds_count{status=\"succeeded\"} 1"));
}
