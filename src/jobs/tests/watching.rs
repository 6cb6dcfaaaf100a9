//! What listeners are told, early, late, slow and many.

use super::*;

const WHOLE: [&str; 8] = ["queued", "started", "progress", "progress", "progress", "progress", "output", "succeeded"];

#[tokio::test]
async fn every_listener_hears_the_same_whenever_it_comes() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    let early = [house.watch(&id, None).await, house.watch(&id, None).await];
    render(&works.recv().await.unwrap());
    house.wait(&id).await;
    let late = house.watch(&id, None).await;
    let told = drain(late).await;
    assert_eq!(names(&told), WHOLE);
    assert_eq!(told.iter().map(|event| event.id).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    for events in early {
        let heard = drain(events).await;
        assert_eq!(
            heard.iter().map(|e| (e.id, &e.kind)).collect::<Vec<_>>(),
            told.iter().map(|e| (e.id, &e.kind)).collect::<Vec<_>>()
        );
    }
    // Each event shows the job as it was then.
    let seen: Vec<_> = told.iter().map(|e| (e.job.status, e.job.progress, e.job.outputs.len())).collect();
    assert_eq!(seen[0], (Status::Queued, 0.0, 0));
    assert_eq!(seen[3], (Status::Running, 0.5, 0));
    assert_eq!(seen[6], (Status::Running, 1.0, 1));
    assert_eq!(seen[7], (Status::Succeeded, 1.0, 1));
}

#[tokio::test]
async fn a_listener_who_comes_back_hears_only_what_is_new() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    render(&works.recv().await.unwrap());
    house.wait(&id).await;
    let told = drain(house.watch(&id, Some(5)).await).await;
    assert_eq!(told.iter().map(|event| event.id).collect::<Vec<_>>(), [6, 7, 8]);
    assert!(drain(house.watch(&id, Some(8)).await).await.is_empty());
    // An id that the job never had comes from before a restart.
    assert_eq!(names(&drain(house.watch(&id, Some(99)).await).await), WHOLE);
}

#[tokio::test]
async fn of_a_job_that_ended_in_an_earlier_life_the_end_is_known() {
    let (folder, house) = House::prompt().await;
    let id = house.submit(request(1, 1)).await.id;
    house.wait(&id).await;
    assert!(house.jobs.close(LONG).await);
    drop(house);
    // The tasks of the first house let go of the folder a moment later.
    let mut house = None;
    until(async || {
        if SqliteStore::open(&folder.path().join("jobs.sqlite")).is_ok() {
            house = Some(House::open(folder.path(), Prompt::default(), 10).await);
        }
        house.is_some()
    })
    .await;
    let house = house.unwrap();
    for after in [None, Some(3), Some(99)] {
        let told = drain(house.watch(&id, after).await).await;
        assert_eq!((told.len(), told[0].id, told[0].kind.name(), told[0].job.outputs.len()), (1, 8, "succeeded", 1));
    }
    assert!(drain(house.watch(&id, Some(8)).await).await.is_empty());
}

#[tokio::test]
async fn a_slow_listener_holds_up_nobody_and_misses_neither_output_nor_end() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    let mut slow = house.watch(&id, None).await;
    assert_eq!(slow.next().await.unwrap().kind, JobEventKind::Queued);
    let work = works.recv().await.unwrap();
    send(&work, EngineEvent::Started);
    for step in 1..=5000 {
        send(&work, EngineEvent::Progress { image: 0, step, steps: 5000, eta: None });
    }
    render_image(&work, 0);
    send(&work, EngineEvent::Finished(WorkMetrics::default()));
    assert_eq!(house.wait(&id).await.status, Status::Succeeded);
    let told = drain(slow).await;
    assert!(told.len() < 1000, "the history is bounded");
    assert_eq!(told[0].kind, JobEventKind::Started);
    assert_eq!(names(&told[told.len() - 3..]), ["progress", "output", "succeeded"]);
    assert!(told.windows(2).all(|pair| pair[0].id < pair[1].id));
}

#[tokio::test]
async fn a_job_tells_its_place_and_its_time() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    let mut events = house.watch(&id, Some(1)).await;
    let work = works.recv().await.unwrap();
    let eta = Some(Duration::from_millis(1500));
    for position in [3, 3, 1] {
        send(&work, EngineEvent::Queued { position, eta });
    }
    for expected in [3, 1] {
        let event = events.next().await.unwrap();
        assert_eq!(
            (event.kind, event.job.queue_position, event.job.eta_ms),
            (JobEventKind::Queued, Some(expected), Some(1500))
        );
    }
    send(&work, EngineEvent::Started);
    assert_eq!(events.next().await.unwrap().job.queue_position, None);
    // A closed event stream is a caller who hung up; this one stays until the end.
    render(&work);
    assert!(drain(events).await.iter().all(|event| event.job.queue_position.is_none()));
}

fn preview(work: &Work, index: u32) {
    send(work, EngineEvent::Preview { image: 0, index, picture: picture(u64::from(index), 2, 2) });
}

#[tokio::test]
async fn previews_that_were_asked_for_come_before_their_picture() {
    let (_folder, house, mut works) = House::by_hand().await;
    let asked = ResolvedRequest { partial_images: 2, width: 1024, height: 512, ..request(1, 1) };
    let id = house.submit(asked).await.id;
    let work = works.recv().await.unwrap();
    assert_eq!(work.previews, 2);
    preview(&work, 0);
    preview(&work, 1);
    render_image(&work, 0);
    send(&work, EngineEvent::Finished(WorkMetrics::default()));
    house.wait(&id).await;
    let told = drain(house.watch(&id, None).await).await;
    assert_eq!(names(&told), ["queued", "preview", "preview", "output", "succeeded"]);
    let JobEventKind::Preview { image: 0, index: 0, png } = &told[1].kind else { panic!("{:?}", told[1].kind) };
    assert_eq!(image::load_from_memory(png).unwrap().into_rgb8().dimensions(), (512, 256));
}

#[tokio::test]
async fn other_previews_are_made_while_somebody_watches() {
    let (_folder, house, mut works) = House::by_hand().await;
    let id = house.submit(request(1, 1)).await.id;
    let work = works.recv().await.unwrap();
    assert!(work.previews > 0);
    preview(&work, 0);
    send(&work, EngineEvent::Started);
    until(async || house.get(&id).await.status == Status::Running).await;
    let mut watching = house.watch(&id, None).await;
    assert_eq!(watching.next().await.unwrap().kind, JobEventKind::Queued);
    assert_eq!(watching.next().await.unwrap().kind, JobEventKind::Started);
    preview(&work, 1);
    assert!(matches!(watching.next().await.unwrap().kind, JobEventKind::Preview { index: 1, .. }));
    drop(watching);
    preview(&work, 2);
    render(&work);
    house.wait(&id).await;
    let previews = drain(house.watch(&id, None).await).await.into_iter().filter(|e| e.kind.name() == "preview");
    assert_eq!(previews.count(), 1);
}
