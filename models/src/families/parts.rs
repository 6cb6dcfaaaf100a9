//! The weights of a model's parts, which come and go while the model stays open.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::weights::listening;
use crate::{Loading, Part, Result};

/// How the parts of one model share the memory: all of them at once, or in turn.
///
/// In turn, a part is loaded when it is called and the one before it is dropped first, so that the peak is the largest
/// part instead of the sum. Calls wait for each other then, in the order they came.
pub(super) struct Turns {
    together: bool,
    resident: Mutex<Option<Arc<dyn Unload>>>,
}

impl Turns {
    /// All parts at once if they fit into `memory` bytes, or when there is no bound; else in turn.
    pub(super) fn new(parts: &[&Part], memory: Option<u64>) -> Arc<Self> {
        let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
        let together = memory.is_none_or(|memory| bytes <= memory);
        Arc::new(Self { together, resident: Mutex::new(None) })
    }

    /// Bytes that parts of these sizes take at once.
    pub(super) fn bytes(&self, parts: &[Part]) -> u64 {
        let bytes = parts.iter().map(|part| part.bytes);
        if self.together { bytes.sum() } else { bytes.max().unwrap_or(0) }
    }
}

/// What can be dropped to make room.
trait Unload: Send + Sync {
    fn unload(&self);
}

/// Where a loaded part is.
struct Slot<T>(RwLock<Option<Arc<T>>>);

impl<T: Send + Sync> Unload for Slot<T> {
    fn unload(&self) {
        *self.0.write() = None;
    }
}

/// One part of a model, built from its weights when it is needed.
pub(super) struct Lazy<T> {
    part: Part,
    build: Box<dyn Fn() -> Result<T> + Send + Sync>,
    slot: Arc<Slot<T>>,
    turns: Arc<Turns>,
}

impl<T: Send + Sync + 'static> Lazy<T> {
    /// A part that `build` makes from the model's files.
    pub(super) fn new(part: Part, turns: &Arc<Turns>, build: impl Fn() -> Result<T> + Send + Sync + 'static) -> Self {
        Self { part, build: Box::new(build), slot: Arc::new(Slot(RwLock::new(None))), turns: Arc::clone(turns) }
    }

    /// Calls `f` with the part, which is loaded if it is not there.
    ///
    /// # Errors
    /// When the part cannot be built from its files, or `f` fails.
    pub(super) fn with<R>(&self, f: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        if self.turns.together {
            return f(&*self.get()?);
        }
        let mut resident = self.turns.resident.lock();
        let mine: Arc<dyn Unload> = Arc::clone(&self.slot) as Arc<dyn Unload>;
        if let Some(other) = resident.take().filter(|other| !Arc::ptr_eq(other, &mine)) {
            other.unload();
        }
        *resident = Some(mine);
        let result = self.get().and_then(|value| f(&value));
        // The step loop takes this lock again at once; the decoder, who waits for it, comes first.
        MutexGuard::unlock_fair(resident);
        result
    }

    /// The part, built if it is not there. Who calls while it is being built waits for that.
    fn get(&self) -> Result<Arc<T>> {
        if let Some(value) = &*self.slot.0.read() {
            return Ok(Arc::clone(value));
        }
        let mut slot = self.slot.0.write();
        if let Some(value) = &*slot {
            return Ok(Arc::clone(value));
        }
        let value = Arc::new((self.build)()?);
        *slot = Some(Arc::clone(&value));
        Ok(value)
    }
}

/// A part, whatever it is: what [`load`] and its like go over.
pub(super) trait AnyPart: Sync {
    /// What it is made of.
    fn info(&self) -> &Part;
    /// Loads it.
    ///
    /// # Errors
    /// When it cannot be built from its files.
    fn load(&self) -> Result<()>;
    /// Drops it, as soon as no call uses it.
    fn unload(&self);
    /// Whether it is there.
    fn loaded(&self) -> bool;
    /// Whether the parts of its model are in memory together.
    fn together(&self) -> bool;
}

impl<T: Send + Sync + 'static> AnyPart for Lazy<T> {
    fn info(&self) -> &Part {
        &self.part
    }

    fn load(&self) -> Result<()> {
        self.get().map(drop)
    }

    fn unload(&self) {
        self.slot.unload();
    }

    fn loaded(&self) -> bool {
        self.slot.0.read().is_some()
    }

    fn together(&self) -> bool {
        self.turns.together
    }
}

/// Loads all parts that can be in memory together; of parts placed in turn the first, which a picture needs first.
///
/// # Errors
/// When a part cannot be built from its files.
pub(super) fn load(parts: &[&dyn AnyPart], progress: &dyn Fn(Loading)) -> Result<()> {
    let count = if parts.iter().all(|part| part.together()) { parts.len() } else { 1 };
    let total = parts[..count].iter().map(|part| part.info().bytes).sum();
    let mut done = 0;
    for part in &parts[..count] {
        progress(Loading { done, total, fetching: false });
        listening(progress, || part.load())?;
        done += part.info().bytes;
    }
    progress(Loading { done, total, fetching: false });
    Ok(())
}

/// Whether nothing is left for [`load`] to do.
pub(super) fn loaded(parts: &[&dyn AnyPart]) -> bool {
    if parts.iter().all(|part| part.together()) {
        parts.iter().all(|part| part.loaded())
    } else {
        // Whichever of them is there, the others come in their turn.
        parts.iter().any(|part| part.loaded())
    }
}

/// What each part is made of.
pub(super) fn infos(parts: &[&dyn AnyPart]) -> Vec<Part> {
    parts.iter().map(|part| part.info().clone()).collect()
}

/// What [`crate::Pipeline`] says of a model's parts, by the model's `all()` and `turns`: alike in every family.
macro_rules! parts_come_and_go {
    () => {
        fn parts(&self) -> Vec<$crate::Part> {
            $crate::families::parts::infos(&self.all())
        }

        fn load(&self, progress: &dyn Fn($crate::Loading)) -> $crate::Result<()> {
            $crate::families::parts::load(&self.all(), progress)
        }

        fn unload(&self) {
            self.all().iter().for_each(|part| $crate::families::parts::AnyPart::unload(*part));
        }

        fn loaded(&self) -> bool {
            $crate::families::parts::loaded(&self.all())
        }

        fn weight_bytes(&self) -> u64 {
            self.turns.bytes(&self.parts())
        }
    };
}
pub(super) use parts_come_and_go;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn part(bytes: u64) -> Part {
        Part { name: "part".into(), parameters: bytes, stored: Vec::new(), bytes }
    }

    /// Two parts of 10 and 20 bytes in this much memory, and how often each was built.
    fn two(memory: Option<u64>) -> ([Lazy<u32>; 2], [Arc<AtomicUsize>; 2]) {
        let infos = [part(10), part(20)];
        let turns = Turns::new(&infos.iter().collect::<Vec<_>>(), memory);
        let counts = [Arc::default(), Arc::default()];
        let build = |count: &Arc<AtomicUsize>| {
            let count = Arc::clone(count);
            move || Ok(count.fetch_add(1, Ordering::Relaxed) as u32)
        };
        let [first, second] = infos;
        ([Lazy::new(first, &turns, build(&counts[0])), Lazy::new(second, &turns, build(&counts[1]))], counts)
    }

    fn built(counts: &[Arc<AtomicUsize>; 2]) -> [usize; 2] {
        counts.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    #[test]
    fn parts_that_fit_together_are_built_once_until_they_are_unloaded() {
        let (parts, counts) = two(Some(30));
        let all: [&dyn AnyPart; 2] = [&parts[0], &parts[1]];
        assert!(!loaded(&all));
        load(&all, &|_| {}).unwrap();
        for _ in 0..2 {
            assert_eq!(parts[0].with(|value| Ok(*value)).unwrap(), 0);
            assert_eq!(parts[1].with(|value| Ok(*value)).unwrap(), 0);
        }
        assert_eq!((built(&counts), loaded(&all)), ([1, 1], true));
        all.iter().for_each(|part| part.unload());
        assert!(!loaded(&all));
        assert_eq!(parts[0].with(|value| Ok(*value)).unwrap(), 1);
    }

    #[test]
    fn parts_that_do_not_fit_together_take_turns() {
        let (parts, counts) = two(Some(29));
        let all: [&dyn AnyPart; 2] = [&parts[0], &parts[1]];
        load(&all, &|_| {}).unwrap();
        assert_eq!(built(&counts), [1, 0]);
        assert!(!parts[0].with(|_| Ok(all[1].loaded())).unwrap());
        assert!(!parts[1].with(|_| Ok(all[0].loaded())).unwrap());
        parts[1].with(|_| Ok(())).unwrap();
        assert_eq!(built(&counts), [1, 1]);
        assert!(!parts[0].with(|_| Ok(all[1].loaded())).unwrap());
        assert_eq!((built(&counts), loaded(&all)), ([2, 1], true));
    }

    #[test]
    fn progress_counts_the_bytes_of_the_parts() {
        let (parts, _) = two(None);
        let seen = Mutex::new(Vec::new());
        load(&[&parts[0], &parts[1]], &|loading| seen.lock().push((loading.done, loading.total))).unwrap();
        assert_eq!(*seen.lock(), [(0, 30), (10, 30), (30, 30)]);
    }
}
