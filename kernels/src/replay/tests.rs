//! A device that is told what to do as a GPU is: what it records are operations on fixed places, and it runs none of them
//! while it records.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use candle_core::{Device, Result, Tensor, bail};

use super::{
    alone, beside,
    records::{Recorder, Records},
    replayed, replays, with_replays,
};

/// An operation that was put into the stream.
type Operation = Rc<dyn Fn() -> Result<()>>;

#[derive(Default)]
struct Fake {
    recording: RefCell<Option<Vec<Operation>>>,
    /// What comes next is refused, or cannot be done just now.
    refuses: Cell<bool>,
    busy: Cell<bool>,
    bodies: Cell<usize>,
    copies: Cell<usize>,
    recordings: Cell<usize>,
    launches: Cell<usize>,
}

fn count(counter: &Cell<usize>) {
    counter.set(counter.get() + 1);
}

impl Fake {
    /// Has an operation run now, or recorded.
    fn put(&self, operation: Operation) -> Result<()> {
        match &mut *self.recording.borrow_mut() {
            Some(operations) => {
                operations.push(operation);
                Ok(())
            }
            None => operation(),
        }
    }

    /// 2x + t, as a device computes it: into a tensor that holds anything before.
    fn network(&self, (x, t): &(Tensor, Tensor), beside: f64) -> Result<Tensor> {
        count(&self.bodies);
        let y = Tensor::full(f32::NAN, x.shape(), x.device())?;
        let (x, t, to) = (x.clone(), t.clone(), y.clone());
        self.put(Rc::new(move || to.slice_set(&((&x * 2.0)?.broadcast_add(&t)? + beside)?, 0, 0)))?;
        Ok(y)
    }
}

impl Recorder for Fake {
    type Graph = Vec<Operation>;

    fn rehearse<T>(&self, body: impl FnOnce() -> T) -> T {
        body()
    }

    fn record(&self, body: impl FnOnce() -> Result<()>) -> Result<Option<Self::Graph>> {
        if self.busy.get() {
            return Ok(None);
        }
        if self.refuses.get() {
            bail!("not recorded");
        }
        count(&self.recordings);
        *self.recording.borrow_mut() = Some(Vec::new());
        let result = body();
        let operations = self.recording.borrow_mut().take();
        result.map(|()| operations)
    }

    fn launch(&self, graph: &Self::Graph) -> Result<()> {
        if self.refuses.get() {
            bail!("not launched");
        }
        count(&self.launches);
        graph.iter().try_for_each(|operation| operation())
    }

    fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        count(&self.copies);
        let (from, to) = (from.clone(), to.clone());
        self.put(Rc::new(move || to.slice_set(&from, 0, 0)))
    }
}

/// The inputs of call number `at`, of so many rows.
fn inputs(rows: usize, at: usize) -> Result<(Tensor, Tensor)> {
    let x = (Tensor::arange(0_f32, (rows * 3) as f32, &Device::Cpu)?.reshape((rows, 3))? + at as f64)?;
    Ok((x, Tensor::full(at as f32 * 0.5, (rows, 1), &Device::Cpu)?))
}

/// Makes a call through the records and checks what it gives.
fn check(records: &mut Records<Vec<Operation>>, fake: &Fake, inputs: &(Tensor, Tensor)) -> Result<()> {
    let (x, t) = inputs;
    let given = records.call(fake, inputs, |inputs| fake.network(inputs, 0.0))?;
    let wanted = (x * 2.0)?.broadcast_add(t)?;
    assert_eq!(given.to_vec2::<f32>()?, wanted.to_vec2::<f32>()?);
    Ok(())
}

#[test]
fn a_call_is_recorded_at_the_second_time_checked_at_the_third_and_then_replayed() -> Result<()> {
    let (fake, mut records) = (Fake::default(), Records::default());
    let mut bodies = Vec::new();
    let (result, answered): (Result<()>, _) = replayed(|| {
        (0..6).try_for_each(|at| {
            check(&mut records, &fake, &inputs(2, at)?)?;
            bodies.push(fake.bodies.get());
            Ok(())
        })
    });
    result?;
    // Plainly; with inputs of its own, and to record; to check.
    assert_eq!((bodies, answered), (vec![1, 3, 4, 4, 4, 4], 3));
    assert_eq!((fake.recordings.get(), fake.launches.get()), (1, 4));
    Ok(())
}

#[test]
fn a_result_is_not_written_over_by_the_next_replay() -> Result<()> {
    let (fake, mut records) = (Fake::default(), Records::default());
    let mut given = Vec::new();
    for at in 0..6 {
        given.push(records.call(&fake, &inputs(1, at)?, |inputs| fake.network(inputs, 0.0))?);
    }
    for (at, given) in given.iter().enumerate() {
        assert_eq!(given.to_vec2::<f32>()?[0][0], 2.0 * at as f32 + at as f32 * 0.5);
    }
    Ok(())
}

#[test]
fn inputs_that_are_still_the_same_are_not_copied_again() -> Result<()> {
    let (fake, mut records) = (Fake::default(), Records::default());
    let (_, t) = inputs(2, 0)?;
    for at in 0..3 {
        check(&mut records, &fake, &(inputs(2, at)?.0, t.clone()))?;
    }
    let before = fake.copies.get();
    check(&mut records, &fake, &(inputs(2, 7)?.0, t.clone()))?;
    // The result's copy belongs to the recording.
    assert_eq!(fake.copies.get() - before, 1);
    Ok(())
}

#[test]
fn a_replay_is_believed_only_after_one_with_other_inputs_gave_the_same_bits() -> Result<()> {
    let (fake, mut records) = (Fake::default(), Records::default());
    let same = inputs(2, 0)?;
    for _ in 0..4 {
        check(&mut records, &fake, &same)?;
    }
    assert_eq!((fake.bodies.get(), fake.launches.get()), (1 + 2 + 2, 2));
    for at in 1..4 {
        check(&mut records, &fake, &inputs(2, at)?)?;
    }
    assert_eq!(fake.bodies.get(), 6);
    Ok(())
}

#[test]
fn a_call_that_depends_on_more_than_its_inputs_is_found_out_and_made_plainly() -> Result<()> {
    let (fake, mut records) = (Fake::default(), Records::default());
    for at in 0..5 {
        // A timestep from the host, which a recording would keep as it was.
        let beside = at as f64;
        let given = records.call(&fake, &inputs(1, 0)?, |inputs| fake.network(inputs, beside))?;
        assert_eq!(given.to_vec2::<f32>()?[0][0], beside as f32);
    }
    assert_eq!((fake.recordings.get(), fake.launches.get()), (1, 1));
    Ok(())
}

#[test]
fn shapes_that_cannot_be_recorded_or_replayed_are_called_plainly_for_ever() -> Result<()> {
    for good_calls in [1, 2, 4] {
        let (fake, mut records) = (Fake::default(), Records::default());
        for at in 0..good_calls {
            check(&mut records, &fake, &inputs(2, at)?)?;
        }
        let recordings = fake.recordings.get();
        fake.refuses.set(true);
        check(&mut records, &fake, &inputs(2, 8)?)?;
        fake.refuses.set(false);
        let launches = fake.launches.get();
        for at in 0..4 {
            check(&mut records, &fake, &inputs(2, at)?)?;
        }
        assert_eq!((fake.recordings.get(), fake.launches.get()), (recordings, launches));
        // Other shapes are replayed all the same.
        for at in 0..4 {
            check(&mut records, &fake, &inputs(3, at)?)?;
        }
        assert_eq!(fake.recordings.get(), recordings + 1);
    }
    Ok(())
}

#[test]
fn a_device_that_others_use_is_recorded_later() -> Result<()> {
    let (fake, mut records) = (Fake::default(), Records::default());
    fake.busy.set(true);
    for at in 0..3 {
        check(&mut records, &fake, &inputs(2, at)?)?;
    }
    fake.busy.set(false);
    for at in 0..3 {
        check(&mut records, &fake, &inputs(2, at)?)?;
    }
    assert_eq!((fake.recordings.get(), fake.launches.get()), (1, 2));
    Ok(())
}

#[test]
fn the_shapes_that_were_not_called_for_longest_are_forgotten() -> Result<()> {
    let (fake, mut records) = (Fake::default(), Records::default());
    for rows in 1..=9 {
        for at in 0..2 {
            check(&mut records, &fake, &inputs(rows, at)?)?;
        }
    }
    assert_eq!(fake.recordings.get(), 9);
    check(&mut records, &fake, &inputs(9, 5)?)?;
    assert_eq!((fake.recordings.get(), fake.launches.get()), (9, 1));
    // The first has to be seen and recorded anew.
    for at in 0..2 {
        check(&mut records, &fake, &inputs(1, at)?)?;
    }
    assert_eq!((fake.recordings.get(), fake.launches.get()), (10, 1));
    Ok(())
}

#[test]
fn nothing_is_recorded_beside_other_work() {
    // Another test may be at it.
    let recorded = beside(|| alone(|| ()));
    assert!(recorded.is_none());
    while alone(|| ()).is_none() {
        std::thread::yield_now();
    }
}

#[test]
fn the_choice_on_a_thread_ends_with_its_closure() {
    let before = replays();
    assert!(with_replays(true, || !with_replays(false, replays) && replays()));
    assert_eq!(replays(), before);
}
