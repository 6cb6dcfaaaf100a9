//! Pictures that requests bring: kept with their job before it is acknowledged, and gone with the last that needs them.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::faults::life;
use super::*;
use crate::request::{Input, MaskInput, Painted};

/// A file of one colour.
fn file(colour: [u8; 3]) -> Bytes {
    let mut png = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_pixel(16, 8, image::Rgb(colour)).write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner().into()
}

fn input(file: &Bytes) -> Input {
    let sha256 = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
    Input { sha256, width: 16, height: 8, bytes: file.len() as u64 }
}

/// A request that starts from a picture of this colour, with a white mask.
fn starting_from(colour: [u8; 3]) -> (ResolvedRequest, InputFiles) {
    let (image, mask) = (file(colour), file([255; 3]));
    let mask_input = MaskInput { file: input(&mask), painted: Painted::White };
    let request =
        ResolvedRequest { images: vec![input(&image)], mask: Some(mask_input), strength: Some(0.5), ..request(1, 1) };
    let files = [image, mask].into_iter().map(|file| (input(&file).sha256, file)).collect();
    (request, files)
}

impl House {
    async fn start_from(&self, colour: [u8; 3]) -> Result<Submitted, SubmitError> {
        let (request, files) = starting_from(colour);
        self.jobs.submit(&Caller::local(), request, files, BTreeMap::new(), Vec::new(), None).await
    }

    /// How many pictures are kept.
    async fn kept(&self) -> usize {
        self.artifacts.kept_inputs().await.unwrap().len()
    }
}

#[test]
fn a_job_starts_from_the_same_pictures_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let (sender, mut works) = mpsc::unbounded_channel();
    let (id, first) = life(folder.path(), Hand(sender), async |house| {
        let id = house.start_from([10, 20, 30]).await.unwrap().job.id;
        (id, works.recv().await.unwrap())
    });
    let rendered = request(1, 1).rendered;
    let init = first.pictures.init.as_ref().unwrap();
    assert_eq!((init.strength, init.image.width, init.image.height), (0.5, rendered.width, rendered.height));
    assert!(init.image.pixels.chunks(3).all(|pixel| pixel == [10, 20, 30]));
    assert!(first.pictures.mask.as_ref().unwrap().pixels.iter().all(|value| *value == 255));
    let (sender, mut works) = mpsc::unbounded_channel();
    life(folder.path(), Hand(sender), async |house| {
        let again = works.recv().await.unwrap();
        assert_eq!(again.job, id);
        assert_eq!(again.pictures.init.as_ref().unwrap().image, init.image);
        assert_eq!(again.pictures.mask, first.pictures.mask);
        render(&again);
        assert_eq!(house.wait(&id).await.status, Status::Succeeded);
        assert_eq!(house.kept().await, 2);
    });
}

#[tokio::test]
async fn a_picture_is_kept_once_and_goes_with_the_last_job_that_needs_it() {
    let (_folder, house) = House::prompt().await;
    let jobs = [[1; 3], [1; 3], [2; 3]];
    let mut ids = Vec::new();
    for colour in jobs {
        let id = house.start_from(colour).await.unwrap().job.id;
        house.wait(&id).await;
        ids.push(id);
    }
    // Two colours, and the mask that all of them have.
    assert_eq!(house.kept().await, 3);
    for (id, left) in ids.iter().zip([3, 2, 0]) {
        house.jobs.delete(&Caller::local(), id).await.unwrap();
        assert_eq!(house.kept().await, left);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_before_the_job_is_acknowledged() {
    let (_folder, house) = House::prompt().await;
    house.disk_full.store(true, Ordering::Relaxed);
    assert_eq!(house.start_from([1; 3]).await.unwrap_err(), SubmitError::Unavailable(StoreError::Full));
    house.disk_full.store(false, Ordering::Relaxed);
    house.store_full.store(true, Ordering::Relaxed);
    assert_eq!(house.start_from([1; 3]).await.unwrap_err(), SubmitError::Unavailable(StoreError::Full));
    assert_eq!(house.kept().await, 0);
    house.store_full.store(false, Ordering::Relaxed);
    let page = house.jobs.list(&Caller::local(), ListQuery { limit: 10, ..ListQuery::default() }).await.unwrap();
    assert!(page.jobs.is_empty());
    assert!(house.start_from([1; 3]).await.is_ok());
}

#[tokio::test]
async fn pictures_of_a_job_that_was_never_stored_are_gone_after_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let house = House::open(folder.path(), Prompt::default(), 1000).await;
    let id = house.start_from([1; 3]).await.unwrap().job.id;
    house.wait(&id).await;
    let orphan = file([9; 3]);
    house.artifacts.keep_input(&input(&orphan).sha256, orphan.clone()).await.unwrap();
    assert_eq!(house.kept().await, 3);
    drop(house);
    until(async || SqliteStore::open(&folder.path().join("jobs.sqlite")).is_ok()).await;
    let house = House::open(folder.path(), Prompt::default(), 1000).await;
    assert_eq!(house.kept().await, 2);
}

#[tokio::test]
async fn simultaneous_jobs_with_one_picture_keep_it_whole() {
    let (_folder, house) = House::prompt().await;
    let jobs = futures::future::join_all((0..32).map(|_| house.start_from([7; 3]))).await;
    for job in jobs {
        assert_eq!(house.wait(&job.unwrap().job.id).await.status, Status::Succeeded);
    }
    assert_eq!(house.kept().await, 2);
}

#[tokio::test]
async fn what_a_mask_keeps_comes_from_the_file() {
    let (_folder, house) = House::prompt().await;
    let (image, mask) = (file([10, 20, 30]), file([0; 3]));
    let black = MaskInput { file: input(&mask), painted: Painted::White };
    let asked =
        ResolvedRequest { images: vec![input(&image)], mask: Some(black), strength: Some(1.0), ..request(1, 1) };
    let files = [image, mask].into_iter().map(|file| (input(&file).sha256, file)).collect();
    let taken = house.jobs.submit(&Caller::local(), asked, files, BTreeMap::new(), Vec::new(), None).await.unwrap();
    house.wait(&taken.job.id).await;
    let picture = house.artifacts.open_picture(&taken.job.id, 0).await.unwrap();
    let pixels = image::load_from_memory(&picture.bytes).unwrap().into_rgb8();
    assert!(pixels.pixels().all(|pixel| pixel.0 == [10, 20, 30]));
}
