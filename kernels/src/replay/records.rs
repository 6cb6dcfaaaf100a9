//! When a call is recorded, replayed, checked and given up: all of [`Replay`](super::Replay) but the driver's calls.

use std::{
    fmt::Display,
    thread::{self, ThreadId},
};

use candle_core::{DType, Error, Tensor, TensorId, bail};

use super::{Parts, count_replay, refused};

/// Recordings that a network keeps: each has its own inputs and result, and takes up work space of the device's.
const MOST: usize = 8;

/// How a device records what is put into its stream.
pub(crate) trait Recorder {
    /// A recording.
    type Graph;

    /// Runs `body` as it will be when it is recorded: what must be in place before that (sizes on the device, kernels,
    /// plans) is put there.
    fn rehearse<T>(&self, body: impl FnOnce() -> T) -> T;

    /// Records what `body` puts into the stream, of which nothing is run; `None` if the device cannot be recorded just now.
    ///
    /// # Errors
    /// Those of `body`, and what the driver has against the recording.
    fn record(&self, body: impl FnOnce() -> candle_core::Result<()>) -> candle_core::Result<Option<Self::Graph>>;

    /// Puts a recording into the stream.
    ///
    /// # Errors
    /// The driver's.
    fn launch(&self, graph: &Self::Graph) -> candle_core::Result<()>;

    /// Puts a copy of `from` to where `to` is into the stream; both are contiguous, and of one shape and type.
    ///
    /// # Errors
    /// The driver's.
    fn copy(&self, from: &Tensor, to: &Tensor) -> candle_core::Result<()>;
}

/// What a recording is found by: its inputs' shapes and types.
type Key = Vec<(Vec<usize>, DType)>;

/// The calls that were seen, the last one first, and those that are not replayed.
pub(crate) struct Records<G> {
    calls: Vec<(Key, State<G>)>,
    refused: Vec<Key>,
}

impl<G> Default for Records<G> {
    fn default() -> Self {
        Self { calls: Vec::new(), refused: Vec::new() }
    }
}

/// What became of the calls of one key.
enum State<G> {
    /// They are made plainly so far.
    Seen,
    Recorded(Record<G>),
}

/// A recording, which is dropped before the tensors whose addresses it has.
struct Record<G> {
    graph: G,
    inputs: Vec<Tensor>,
    output: Tensor,
    /// The tensors that were copied to the inputs last.
    copied: Vec<TensorId>,
    /// Whether a replay with other inputs gave the same bits as the plain call.
    proven: bool,
    /// Who recorded: candle keeps small tensors that a call made from the host's numbers for this thread alone.
    thread: ThreadId,
}

impl<G> Records<G> {
    /// As [`Replay::call`](super::Replay::call).
    pub(super) fn call<P: Parts, E: From<Error> + Display>(
        &mut self,
        recorder: &impl Recorder<Graph = G>,
        inputs: &P,
        body: impl Fn(&P) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let tensors = flat(inputs);
        let key: Key = tensors.iter().map(|tensor| (tensor.dims().to_vec(), tensor.dtype())).collect();
        if self.refused.contains(&key) {
            return body(inputs);
        }
        let Some(at) = self.calls.iter().position(|(known, _)| *known == key) else {
            self.calls.insert(0, (key, State::Seen));
            self.calls.truncate(MOST);
            return body(inputs);
        };
        // Candle's errors are what a recording deals in.
        let body_of = |inputs: &P| body(inputs).map_err(|error| Error::Msg(error.to_string()));
        let (key, state) = self.calls.remove(at);
        let next = match state {
            State::Recorded(record) if record.thread == thread::current().id() => {
                record.replay(recorder, inputs, &tensors, body_of)
            }
            // There is no recording, or none that this thread can use.
            _ => record(recorder, inputs, &tensors, body_of),
        };
        match next {
            Ok((output, state)) => {
                self.calls.insert(0, (key, state));
                Ok(output)
            }
            Err(why) => {
                refused(&format!("calls with a first input of {:?} are not replayed: {why}", key.first()));
                self.refused.push(key);
                body(inputs)
            }
        }
    }
}

/// Makes the call with inputs of its own, and records it with them.
fn record<P: Parts, G>(
    recorder: &impl Recorder<Graph = G>,
    inputs: &P,
    tensors: &[Tensor],
    body: impl Fn(&P) -> candle_core::Result<Tensor>,
) -> candle_core::Result<(Tensor, State<G>)> {
    let own = tensors.iter().map(Tensor::force_contiguous).collect::<candle_core::Result<Vec<_>>>()?;
    let mut parts = own.iter();
    let fixed =
        inputs.rebuild(&mut |_| parts.next().cloned().ok_or_else(|| Error::Msg("an input is missing".into())))?;
    let result = recorder.rehearse(|| body(&fixed))?;
    let output = result.force_contiguous()?;
    let Some(graph) = recorder.record(|| recorder.copy(&body(&fixed)?.contiguous()?, &output))? else {
        return Ok((result, State::Seen));
    };
    let copied = tensors.iter().map(Tensor::id).collect();
    let record = Record { graph, inputs: own, output, copied, proven: false, thread: thread::current().id() };
    Ok((result, State::Recorded(record)))
}

impl<G> Record<G> {
    /// Gives what the call gives, and the recording back.
    fn replay<P>(
        mut self,
        recorder: &impl Recorder<Graph = G>,
        inputs: &P,
        tensors: &[Tensor],
        body: impl Fn(&P) -> candle_core::Result<Tensor>,
    ) -> candle_core::Result<(Tensor, State<G>)> {
        let mut changed = false;
        for ((tensor, own), copied) in tensors.iter().zip(&self.inputs).zip(&mut self.copied) {
            if tensor.id() != *copied {
                recorder.copy(&tensor.contiguous()?, own)?;
                *copied = tensor.id();
                changed = true;
            }
        }
        recorder.launch(&self.graph)?;
        let output = self.output.force_contiguous()?;
        if self.proven {
            count_replay();
            return Ok((output, State::Recorded(self)));
        }
        let plain = body(inputs)?;
        if bits(&plain)? != bits(&output)? {
            bail!("a replay gave other bits than the call itself");
        }
        self.proven = changed;
        Ok((plain, State::Recorded(self)))
    }
}

/// The tensors of a structure.
fn flat(inputs: &impl Parts) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    _ = inputs.rebuild::<()>(&mut |tensor| {
        tensors.push(tensor.clone());
        Ok(tensor.clone())
    });
    tensors
}

/// A tensor's values to the last bit.
fn bits(tensor: &Tensor) -> candle_core::Result<Vec<u32>> {
    // To f32 no value of the types that networks compute in is rounded.
    let values = tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}
