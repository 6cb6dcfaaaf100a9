//! Recording a stream: CUDA's graphs, for [`crate::Replay`].
//!
//! While a thread captures, what it puts into the stream becomes nodes of a graph. Memory that is allocated meanwhile is the
//! graph's, at addresses that it keeps, and must be freed meanwhile, too; so all tensors of a recorded call are temporary, and
//! its result is copied to one that was there before. Graphs of one stream share the memory behind those addresses.

use std::sync::Arc;

use candle_core::{
    CudaDevice, Result, Tensor, bail,
    cuda_backend::{
        WrapErr,
        cudarc::driver::{
            CudaGraph, CudaStream,
            sys::{self, CUgraphInstantiate_flags, CUstreamCaptureMode},
        },
    },
};

use crate::replay::{Recorder, alone};

/// A recording of a device's stream.
pub(crate) struct Graph {
    graph: Option<CudaGraph>,
    stream: Arc<CudaStream>,
}

// SAFETY: a graph belongs to no thread; it is used by one at a time, since only `&mut Records` gives it out.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // It may still be running. An error here is an earlier call's, and comes up again at the next one.
        _ = self.stream.synchronize();
        drop(self.graph.take());
        // What the graphs leave unused goes back to where tensors are allocated.
        // SAFETY: the context is alive, so its device is there.
        unsafe {
            _ = sys::cuDeviceGraphMemTrim(self.stream.context().cu_device());
        }
    }
}

/// Ends a capture that nothing else has ended, be it by a panic: a stream that is left capturing runs nothing any more.
struct Capture<'a>(Option<&'a Arc<CudaStream>>);

impl<'a> Capture<'a> {
    fn begin(stream: &'a Arc<CudaStream>) -> Result<Self> {
        // Other threads may go on with what only a capture forbids, such as waiting for other streams.
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        Ok(Self(Some(stream)))
    }

    fn end(mut self) -> Result<Option<CudaGraph>> {
        match self.0.take() {
            Some(stream) => stream.end_capture(CUgraphInstantiate_flags(0)).w(),
            None => Ok(None),
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            _ = stream.end_capture(CUgraphInstantiate_flags(0));
        }
    }
}

/// Records the one stream of a device.
pub(crate) struct StreamRecorder(CudaDevice);

impl StreamRecorder {
    pub(crate) fn new(device: CudaDevice) -> Self {
        Self(device)
    }
}

impl Recorder for StreamRecorder {
    type Graph = Graph;

    fn rehearse<T>(&self, body: impl FnOnce() -> T) -> T {
        // The sizes and strides that candle's kernels read from the device stay there for the recording.
        let _kept = self.0.enable_cuda_graph_htod_cache();
        body()
    }

    fn record(&self, body: impl FnOnce() -> Result<()>) -> Result<Option<Graph>> {
        let stream = self.0.cuda_stream();
        let captured = alone(|| -> Result<Option<CudaGraph>> {
            let capture = Capture::begin(&stream)?;
            let result = self.rehearse(body);
            let graph = capture.end();
            result.and(graph)
        });
        match captured {
            None => Ok(None),
            Some(Ok(Some(graph))) => {
                graph.upload().w()?;
                Ok(Some(Graph { graph: Some(graph), stream }))
            }
            Some(failed) => {
                // Tensors that were freed while a capture failed left their errors behind, for a later call to find.
                _ = stream.context().check_err();
                failed?;
                bail!("the driver captured nothing")
            }
        }
    }

    fn launch(&self, graph: &Graph) -> Result<()> {
        match &graph.graph {
            Some(graph) => graph.launch().w(),
            None => bail!("a recording is gone"),
        }
    }

    fn copy(&self, from: &Tensor, to: &Tensor) -> Result<()> {
        to.slice_set(from, 0, 0)
    }
}
