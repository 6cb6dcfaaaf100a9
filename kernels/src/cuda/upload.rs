//! Large tensors from the host's memory to the GPU's, through pinned memory.
//!
//! The driver copies from ordinary memory through a small buffer of its own and lets the host wait. Weights are gigabytes,
//! so they go through two larger pinned buffers in turn: while the GPU fetches one, the host fills the other.

use candle_core::Result;

/// Two buffers that a device copies from, while the host does something else.
trait Stages {
    /// The bytes that each holds.
    const BYTES: usize;

    /// Waits until what was last sent from a buffer has arrived.
    fn wait(&mut self, turn: usize) -> Result<()>;

    /// Writes to the beginning of a buffer.
    fn write(&mut self, turn: usize, part: &[u8]) -> Result<()>;

    /// Sends a buffer's first `length` bytes to an address, and does not wait for it.
    fn send(&mut self, turn: usize, length: usize, to: u64) -> Result<()>;
}

/// Copies `bytes` to an address of the device's. They may be still on their way when this returns.
fn copy<S: Stages>(stages: &mut S, bytes: &[u8], mut to: u64) -> Result<()> {
    for (part, turn) in bytes.chunks(S::BYTES).zip([0, 1].into_iter().cycle()) {
        stages.wait(turn)?;
        stages.write(turn, part)?;
        stages.send(turn, part.len(), to)?;
        to += part.len() as u64;
    }
    Ok(())
}

#[cfg(feature = "cuda")]
mod pinned {
    use std::{
        collections::{HashMap, hash_map::Entry},
        slice,
        sync::{Arc, LazyLock, Mutex, PoisonError},
    };

    use candle_core::{
        CpuStorage, CudaDevice, Device, Result, Storage, Tensor, bail,
        cuda_backend::{
            DeviceId, WrapErr,
            cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice, result},
        },
    };

    use super::{
        super::launch::{address, empty},
        Stages, copy,
    };

    /// Smaller tensors are left to the driver.
    const WORTH: usize = 1 << 20;

    /// A pinned buffer, and the end of the copy that last read it.
    struct Stage {
        buffer: PinnedHostSlice<u8>,
        read: CudaEvent,
    }

    impl Stage {
        fn new(context: &Arc<CudaContext>) -> Result<Self> {
            // SAFETY: what is copied from the buffer was written there before.
            let buffer = unsafe { context.alloc_pinned(Pinned::BYTES) }.w()?;
            Ok(Self { buffer, read: context.new_event(None).w()? })
        }
    }

    /// A device's buffers, kept for the next tensor, and its stream.
    struct Pinned {
        stages: [Stage; 2],
        stream: Arc<CudaStream>,
    }

    impl Pinned {
        fn new(device: &CudaDevice) -> Result<Self> {
            let stream = device.cuda_stream();
            let context = stream.context();
            Ok(Self { stages: [Stage::new(context)?, Stage::new(context)?], stream })
        }
    }

    impl Stages for Pinned {
        /// Enough that what a copy costs besides its bytes vanishes.
        const BYTES: usize = 32 << 20;

        fn wait(&mut self, turn: usize) -> Result<()> {
            // An event that was never recorded is over.
            self.stages[turn].read.synchronize().w()
        }

        fn write(&mut self, turn: usize, part: &[u8]) -> Result<()> {
            self.stages[turn].buffer.as_mut_slice().w()?[..part.len()].copy_from_slice(part);
            Ok(())
        }

        fn send(&mut self, turn: usize, length: usize, to: u64) -> Result<()> {
            let Stage { buffer, read } = &mut self.stages[turn];
            let part = &buffer.as_slice().w()?[..length];
            self.stream.context().bind_to_thread().w()?;
            // SAFETY: `upload` gives addresses with room for all that it sends; the buffer is not written again before the
            // event is over, and lives as long as the program.
            unsafe { result::memcpy_htod_async(to, part, self.stream.cu_stream()) }.w()?;
            read.record(&self.stream).w()
        }
    }

    /// What is known of a device's way through pinned memory.
    enum Way {
        /// Nothing was copied yet: the first tensor is read back and compared.
        New(Pinned),
        /// The first tensor arrived.
        Proven(Pinned),
        /// There is no pinned memory, or the first tensor did not arrive as it was sent: candle copies all.
        Closed,
    }

    static WAYS: LazyLock<Mutex<HashMap<DeviceId, Way>>> = LazyLock::new(Mutex::default);

    /// The tensor on `device`, in its stored type; `None` if it is small or unusual, and better moved by candle.
    pub(crate) fn upload(tensor: &Tensor, device: &Device) -> Result<Option<Tensor>> {
        let cuda = device.as_cuda_device()?;
        if !tensor.device().is_cpu() || !tensor.is_contiguous() {
            return Ok(None);
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { return Ok(None) };
        let size = tensor.dtype().size_in_bytes();
        let Some(bytes) = bytes(storage) else { return Ok(None) };
        let start = layout.start_offset() * size;
        let Some(bytes) = bytes.get(start..start + tensor.elem_count() * size) else {
            bail!("a tensor reaches beyond its memory")
        };
        if bytes.len() < WORTH {
            return Ok(None);
        }
        let mut ways = WAYS.lock().unwrap_or_else(PoisonError::into_inner);
        let way = match ways.entry(cuda.id()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Pinned::new(cuda).map_or(Way::Closed, Way::New)),
        };
        let (Way::New(pinned) | Way::Proven(pinned)) = way else { return Ok(None) };
        // SAFETY: all of it is written below, in the stream of all that reads it.
        let moved = unsafe { empty(tensor.shape(), tensor.dtype(), device)? };
        copy(pinned, bytes, address(&moved, cuda)?)?;
        if matches!(way, Way::Proven(_)) {
            return Ok(Some(moved));
        }
        let arrived = arrived(&moved, bytes)?;
        *way = match std::mem::replace(way, Way::Closed) {
            Way::New(pinned) if arrived => Way::Proven(pinned),
            _ => Way::Closed,
        };
        Ok(arrived.then_some(moved))
    }

    /// Whether a tensor on a device has these bytes.
    fn arrived(moved: &Tensor, sent: &[u8]) -> Result<bool> {
        let back = moved.to_device(&Device::Cpu)?;
        let (storage, _) = back.storage_and_layout();
        let Storage::Cpu(storage) = &*storage else { return Ok(false) };
        Ok(bytes(storage) == Some(sent))
    }

    /// The memory of a tensor on the host, of the types that weights are stored in.
    fn bytes(storage: &CpuStorage) -> Option<&[u8]> {
        /// The bytes of numbers.
        fn of<T>(values: &[T]) -> &[u8] {
            // SAFETY: the types below are numbers without gaps, and a byte has no alignment.
            unsafe { slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
        }
        match storage {
            CpuStorage::U8(values) => Some(of(values)),
            CpuStorage::BF16(values) => Some(of(values)),
            CpuStorage::F16(values) => Some(of(values)),
            CpuStorage::F32(values) => Some(of(values)),
            _ => None,
        }
    }
}

#[cfg(feature = "cuda")]
pub(crate) use pinned::upload;

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that copies as late as it may: when the buffer is waited for, or in the end.
    #[derive(Default)]
    struct Late {
        buffers: [[u8; 4]; 2],
        /// The buffer, how much of it, and where to.
        sent: Vec<(usize, usize, u64)>,
        memory: Vec<u8>,
    }

    impl Late {
        fn copy_until(&mut self, turn: Option<usize>) {
            let last = turn.map_or(Some(self.sent.len()), |turn| {
                self.sent.iter().rposition(|(sent, ..)| *sent == turn).map(|at| at + 1)
            });
            for (turn, length, to) in self.sent.drain(..last.unwrap_or(0)) {
                let to = to as usize;
                self.memory[to..to + length].copy_from_slice(&self.buffers[turn][..length]);
            }
        }
    }

    impl Stages for Late {
        const BYTES: usize = 4;

        fn wait(&mut self, turn: usize) -> Result<()> {
            self.copy_until(Some(turn));
            Ok(())
        }

        fn write(&mut self, turn: usize, part: &[u8]) -> Result<()> {
            self.buffers[turn][..part.len()].copy_from_slice(part);
            Ok(())
        }

        fn send(&mut self, turn: usize, length: usize, to: u64) -> Result<()> {
            self.sent.push((turn, length, to));
            Ok(())
        }
    }

    #[test]
    fn what_was_sent_arrives_however_late_the_device_copies() -> Result<()> {
        let mut stages = Late { memory: vec![0; 64], ..Late::default() };
        // Lengths that end within a buffer, at its end, and in the first; one after the other, without a pause.
        let mut expected = vec![0; 64];
        let mut at = 1;
        for length in [1, 3, 4, 8, 13, 0, 22] {
            let bytes: Vec<u8> = (0..length).map(|value| (at + value) as u8 ^ 0xa5).collect();
            copy(&mut stages, &bytes, at as u64)?;
            expected[at..at + length].copy_from_slice(&bytes);
            at += length;
        }
        assert!(stages.sent.len() <= 2, "no more is on its way than the buffers hold");
        stages.copy_until(None);
        assert_eq!(stages.memory, expected);
        Ok(())
    }
}
