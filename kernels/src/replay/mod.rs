//! Calls that a GPU is told of once: what a call puts into the device's stream is recorded, and replayed at the next call of
//! the same shapes.
//!
//! A small network's step is hundreds of short kernels, which the host starts more slowly than the GPU runs them; a recording
//! (CUDA's graphs) is started at once. It has fixed addresses: inputs are copied to where the recorded call read them, and the
//! result out of where it wrote it. So a replayed call is given *all* that changes from call to call as tensors, and
//! everything else it uses (weights) must stay where it is for as long as the [`Replay`] lives.
//!
//! Off unless `EASEL_CUDA_GRAPHS=1` is in the environment; devices other than CUDA's call plainly.

#[cfg(any(test, feature = "cuda"))]
mod records;
#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    sync::{LazyLock, OnceLock, PoisonError, RwLock},
};

use candle_core::{Error, Tensor};
#[cfg(feature = "cuda")]
pub(crate) use records::Recorder;

/// Tensors in a structure of the caller's.
pub trait Parts: Sized {
    /// The same structure, with what `each` makes of each tensor, which are gone through in an order that the structure alone
    /// decides.
    ///
    /// # Errors
    /// Those of `each`.
    fn rebuild<E>(&self, each: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E>;
}

impl Parts for Tensor {
    fn rebuild<E>(&self, each: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        each(self)
    }
}

impl<P: Parts> Parts for Option<P> {
    fn rebuild<E>(&self, each: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        self.as_ref().map(|part| part.rebuild(each)).transpose()
    }
}

impl<P: Parts> Parts for Vec<P> {
    fn rebuild<E>(&self, each: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        self.iter().map(|part| part.rebuild(each)).collect()
    }
}

impl<P: Parts, Q: Parts> Parts for (P, Q) {
    fn rebuild<E>(&self, each: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok((self.0.rebuild(each)?, self.1.rebuild(each)?))
    }
}

impl<P: Parts, Q: Parts, R: Parts> Parts for (P, Q, R) {
    fn rebuild<E>(&self, each: &mut impl FnMut(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        Ok((self.0.rebuild(each)?, self.1.rebuild(each)?, self.2.rebuild(each)?))
    }
}

/// The recordings of one function of tensors: one for each combination of the inputs' shapes and types.
#[derive(Default)]
pub struct Replay {
    #[cfg(feature = "cuda")]
    records: std::sync::Mutex<records::Records<crate::cuda::Graph>>,
}

impl Replay {
    /// Gives `body(inputs)`, from a recording where there is one.
    ///
    /// The second call of its shapes is recorded, so that what is called once costs nothing. The first replay with other
    /// inputs is checked: the call is made plainly, too, and if a bit differs, or if anything at all fails on the way, these
    /// shapes are called plainly from then on, and the listener of [`on_refused_replay`] is told.
    ///
    /// `body` must depend on nothing that changes but its inputs, and give a tensor whose shape theirs decide.
    ///
    /// # Errors
    /// Those of `body`.
    pub fn call<P: Parts, E: From<Error> + std::fmt::Display>(
        &self,
        inputs: &P,
        body: impl Fn(&P) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        #[cfg(feature = "cuda")]
        if replays()
            && let Some(device) = device(inputs)
            // Two calls at once share no recording; the second is made plainly.
            && let Ok(mut records) = self.records.try_lock()
        {
            return records.call(&crate::cuda::StreamRecorder::new(device), inputs, body);
        }
        body(inputs)
    }
}

/// The device of the inputs' first tensor, if it is CUDA's.
#[cfg(feature = "cuda")]
fn device<P: Parts>(inputs: &P) -> Option<candle_core::CudaDevice> {
    let mut device = None;
    _ = inputs.rebuild::<()>(&mut |tensor| {
        device = tensor.device().as_cuda_device().ok().cloned();
        Err(())
    });
    device
}

static ASKED: LazyLock<bool> =
    LazyLock::new(|| std::env::var("EASEL_CUDA_GRAPHS").is_ok_and(|value| !value.is_empty() && value != "0"));

thread_local! {
    static ASKED_HERE: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Whether calls are recorded and replayed on this thread.
#[must_use]
pub fn replays() -> bool {
    ASKED_HERE.get().unwrap_or(*ASKED)
}

/// Runs `body` with calls recorded and replayed on this thread, or not, whatever the environment says.
pub fn with_replays<T>(on: bool, body: impl FnOnce() -> T) -> T {
    /// Puts the former choice back, also when `body` panics.
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ASKED_HERE.set(self.0);
        }
    }
    let _restore = Restore(ASKED_HERE.replace(Some(on)));
    body()
}

thread_local! {
    static REPLAYED: Cell<u64> = const { Cell::new(0) };
}

/// Runs `body`, and says how many of its calls on this thread a recording answered.
pub fn replayed<T>(body: impl FnOnce() -> T) -> (T, u64) {
    let before = REPLAYED.get();
    let result = body();
    (result, REPLAYED.get().wrapping_sub(before))
}

/// Who is told that shapes are not replayed.
static LISTENER: OnceLock<fn(&str)> = OnceLock::new();

/// Has `tell` told why calls are not replayed: once for each network and combination of shapes. Only the first listener is.
pub fn on_refused_replay(tell: fn(&str)) {
    _ = LISTENER.set(tell);
}

/// Counts a call that a recording answered.
#[cfg(any(test, feature = "cuda"))]
fn count_replay() {
    REPLAYED.set(REPLAYED.get().wrapping_add(1));
}

/// Tells the listener, if there is one.
#[cfg(any(test, feature = "cuda"))]
fn refused(why: &str) {
    if let Some(tell) = LISTENER.get() {
        tell(why);
    }
}

/// Held by a recording alone, and by all that uses a device beside it together.
static DEVICES: RwLock<()> = RwLock::new(());

/// Runs what uses a device on another thread than the one that calls networks: loading, encoding prompts, decoding, and dropping
/// tensors.
///
/// A device has one stream for all threads, and a recording takes up whatever comes into it. So nothing is recorded while
/// `body` runs, and `body` waits until a recording is over, which takes about as long as a call.
pub fn beside<T>(body: impl FnOnce() -> T) -> T {
    let _beside = DEVICES.read().unwrap_or_else(PoisonError::into_inner);
    body()
}

/// Runs `body` if nothing runs [`beside`] it, and keeps it so.
#[cfg(any(test, feature = "cuda"))]
pub(crate) fn alone<T>(body: impl FnOnce() -> T) -> Option<T> {
    use std::sync::TryLockError;

    let _alone = match DEVICES.try_write() {
        Ok(alone) => alone,
        Err(TryLockError::Poisoned(alone)) => alone.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    Some(body())
}
