//! How cuDNN is to compute a convolution, chosen without a look at the number of rows.
//!
//! cuDNN's advice depends on the whole problem, and another engine or tile sums in another order. So an engine and its
//! knobs are chosen once for each layer and image size, as if there were [`PLANNED_ROWS`] rows, and kept for any number of
//! them. Engines that sum out between blocks, transform their input or are not deterministic are passed over; in f32 those on tensor
//! cores are, too, since they round the input to tf32. As with cublasLt, that an engine's order is the same for every number of
//! rows is not promised, and `scripts/gpu-bench` checks it.

use candle_core::{DType, Result, bail};
use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Kind, cudnnBackendHeurMode_t,
    cudnnConvolutionMode_t, cudnnDataType_t, cudnnHandle_t, cudnnPointwiseMode_t,
};

use super::descriptor::{Descriptor, KnobType, NumericalNote};
use crate::Padding;

/// How many rows an engine is chosen for: two requests with guidance.
const PLANNED_ROWS: usize = 4;

/// How many knobs and notes an engine has at most; there are 46 and 10 kinds.
const MOST_KNOBS: usize = 64;

/// The numbers by which the tensors are named in a variant pack.
pub(super) const X: i64 = 1;
pub(super) const W: i64 = 2;
pub(super) const B: i64 = 3;
pub(super) const Y: i64 = 4;

/// One convolution, for any number of rows. Sizes are in pixels and channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) image: (usize, usize),
    pub(super) window: (usize, usize),
    pub(super) channels: (usize, usize),
    pub(super) output: (usize, usize),
    pub(super) stride: usize,
    pub(super) padding: Padding,
    pub(super) dtype: DType,
    pub(super) bias: bool,
}

/// What the plans are for.
#[derive(Debug)]
pub(super) enum Target {
    /// The GPU of a handle.
    Handle(cudnnHandle_t),
    /// A GPU that need not be here, by its properties.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "plans are made for an absent GPU only to test how they are made")
    )]
    Described(Descriptor),
}

/// An engine and how its knobs are turned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    engine: i64,
    knobs: Vec<(KnobType, i64)>,
}

/// A plan for one number of rows, and the bytes that it needs besides its tensors.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) plan: Descriptor,
    pub(super) workspace: usize,
}

impl Shape {
    /// The engine for this convolution, whatever the number of rows: the first that cuDNN advises for the planned number, is
    /// admissible, and can do one row as well.
    pub(super) fn choose(&self, target: &Target) -> Result<Choice> {
        let graph = self.graph(PLANNED_ROWS)?;
        for mode in [cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A, cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_FALLBACK] {
            for advised in advice(&graph, mode, target)? {
                let Some(choice) = self.admit(&advised)? else { continue };
                if self.plan(&choice, PLANNED_ROWS, target).is_ok() && self.plan(&choice, 1, target).is_ok() {
                    return Ok(choice);
                }
            }
        }
        bail!("cuDNN has no engine for the convolution {self:?}")
    }

    /// The plan of an engine for `rows` rows.
    pub(super) fn plan(&self, choice: &Choice, rows: usize, target: &Target) -> Result<Plan> {
        let graph = self.graph(rows)?;
        let mut engine = Descriptor::new(Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR)?
            .set_descriptors(Name::CUDNN_ATTR_ENGINE_OPERATION_GRAPH, &[&graph])?
            .set(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, &[choice.engine])?;
        if let Target::Described(properties) = target {
            engine = engine.set_descriptors(Name::CUDNN_ATTR_ENGINE_DEVICEPROP, &[properties])?;
        }
        let engine = engine.finalize()?;
        let knobs = choice.knobs.iter().map(|(kind, value)| {
            Descriptor::new(Kind::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR)?
                .set(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE, &[*kind])?
                .set(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE, &[*value])?
                .finalize()
        });
        let knobs = knobs.collect::<Result<Vec<_>>>()?;
        let config = Descriptor::new(Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR)?
            .set_descriptors(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &[&engine])?
            .set_descriptors(Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, &knobs.iter().collect::<Vec<_>>())?
            .finalize()?;
        let plan = Descriptor::new(Kind::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?;
        let plan = match target {
            Target::Handle(handle) => plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &[*handle])?,
            Target::Described(properties) => {
                plan.set_descriptors(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, &[properties])?
            }
        };
        let plan = plan.set_descriptors(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[&config])?.finalize()?;
        let workspace: i64 = plan.get_one(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE)?;
        Ok(Plan { plan, workspace: usize::try_from(workspace).unwrap_or(0) })
    }

    /// The engine and knobs of a configuration; `None` if its arithmetic is not wanted.
    fn admit(&self, advised: &Descriptor) -> Result<Option<Choice>> {
        /// Numerical notes: tensor cores; then inputs in fewer bits, sums in fewer bits, Fourier, not deterministic, Winograd.
        const TENSOR_CORES: NumericalNote = NumericalNote(0);
        const UNWANTED: std::ops::RangeInclusive<u32> = 1..=8;
        /// Knobs that say in how many parts the depth is summed, and whether blocks share it as they come.
        const SPLIT: [KnobType; 2] = [KnobType(0), KnobType(17)];
        const STREAMED: KnobType = KnobType(38);

        let kind = Kind::CUDNN_BACKEND_ENGINE_DESCRIPTOR;
        let engines = advised.get_descriptors(Name::CUDNN_ATTR_ENGINECFG_ENGINE, kind, 1)?;
        let Some(engine) = engines.first() else { return Ok(None) };
        let mut notes = [NumericalNote::default(); MOST_KNOBS];
        let count = engine.get(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, &mut notes)?;
        let exact = self.dtype == DType::F32;
        if notes[..count].iter().any(|note| UNWANTED.contains(&note.0) || (exact && *note == TENSOR_CORES)) {
            return Ok(None);
        }
        let kind = Kind::CUDNN_BACKEND_KNOB_CHOICE_DESCRIPTOR;
        let turned = advised.get_descriptors(Name::CUDNN_ATTR_ENGINECFG_KNOB_CHOICES, kind, MOST_KNOBS)?;
        let knobs = turned.iter().map(|knob| {
            let kind = knob.get_one::<KnobType>(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_TYPE)?;
            Ok((kind, knob.get_one::<i64>(Name::CUDNN_ATTR_KNOB_CHOICE_KNOB_VALUE)?))
        });
        let knobs = knobs.collect::<Result<Vec<_>>>()?;
        let splits = |(kind, value): &(KnobType, i64)| {
            (SPLIT.contains(kind) && *value > 1) || (*kind == STREAMED && *value != 0)
        };
        if knobs.iter().any(splits) {
            return Ok(None);
        }
        Ok(Some(Choice { engine: engine.get_one(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX)?, knobs }))
    }

    /// The convolution of `rows` images, and the bias added to it, as a graph of operations. The sum goes from one to the
    /// other in f32, and is rounded once.
    fn graph(&self, rows: usize) -> Result<Descriptor> {
        let dtype = data_type(self.dtype)?;
        let float = cudnnDataType_t::CUDNN_DATA_FLOAT;
        let (input, output) = self.channels;
        let x = tensor(X, dtype, [rows, input, self.image.0, self.image.1], false)?;
        let w = tensor(W, dtype, [output, input, self.window.0, self.window.1], false)?;
        let result = [rows, output, self.output.0, self.output.1];
        let sum = match self.bias {
            true => tensor(Y + 1, float, result, true)?,
            false => tensor(Y, dtype, result, false)?,
        };
        let pair = |(first, second): (usize, usize)| [first as i64, second as i64];
        let window = Descriptor::new(Kind::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR)?
            .set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, &[float])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, &[cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2_i64])?
            .set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &pair((self.padding.top, self.padding.left)))?
            .set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &pair((self.padding.bottom, self.padding.right)))?
            .set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &pair((self.stride, self.stride)))?
            .set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1_i64, 1])?
            .finalize()?;
        let convolve = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)?
            .set_descriptors(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, &[&x])?
            .set_descriptors(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, &[&w])?
            .set_descriptors(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, &[&sum])?
            .set_descriptors(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, &[&window])?
            .set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, &[1_f32])?
            .set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, &[0_f32])?
            .finalize()?;
        let mut operations = vec![convolve];
        if self.bias {
            let bias = tensor(B, dtype, [1, output, 1, 1], false)?;
            let y = tensor(Y, dtype, result, false)?;
            let add = Descriptor::new(Kind::CUDNN_BACKEND_POINTWISE_DESCRIPTOR)?
                .set(Name::CUDNN_ATTR_POINTWISE_MODE, &[cudnnPointwiseMode_t::CUDNN_POINTWISE_ADD])?
                .set(Name::CUDNN_ATTR_POINTWISE_MATH_PREC, &[float])?
                .finalize()?;
            let add = Descriptor::new(Kind::CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR)?
                .set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, &[&add])?
                .set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_XDESC, &[&sum])?
                .set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_BDESC, &[&bias])?
                .set_descriptors(Name::CUDNN_ATTR_OPERATION_POINTWISE_YDESC, &[&y])?
                .finalize()?;
            operations.push(add);
        }
        Descriptor::new(Kind::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?
            .set_descriptors(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &operations.iter().collect::<Vec<_>>())?
            .finalize()
    }
}

/// The configurations that cuDNN advises for a graph, the best first.
fn advice(graph: &Descriptor, mode: cudnnBackendHeurMode_t, target: &Target) -> Result<Vec<Descriptor>> {
    const MOST: usize = 64;
    let mut heuristic = Descriptor::new(Kind::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
        .set_descriptors(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[graph])?
        .set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &[mode])?;
    if let Target::Described(properties) = target {
        heuristic = heuristic.set_descriptors(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, &[properties])?;
    }
    let kind = Kind::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR;
    heuristic.finalize()?.get_descriptors(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, kind, MOST)
}

/// A channels-last tensor (n, c, h, w), as cuDNN orders its dimensions whatever lies next to what. A virtual one is never stored.
fn tensor(name: i64, dtype: cudnnDataType_t, dims: [usize; 4], is_virtual: bool) -> Result<Descriptor> {
    let [n, c, h, w] = dims.map(|dim| dim as i64);
    // Every tensor of ours begins where an allocation does or at a row's multiple; so much the values alone grant.
    let bytes: i64 = if dtype == cudnnDataType_t::CUDNN_DATA_FLOAT { 4 } else { 2 };
    let alignment = 1_i64 << (c * bytes).trailing_zeros().min(4);
    Descriptor::new(Kind::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
        .set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[name])?
        .set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &[dtype])?
        .set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[alignment])?
        .set(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &[n, c, h, w])?
        .set(Name::CUDNN_ATTR_TENSOR_STRIDES, &[h * w * c, 1, w * c, c])?
        .set(Name::CUDNN_ATTR_TENSOR_IS_VIRTUAL, &[is_virtual])?
        .finalize()
}

fn data_type(dtype: DType) -> Result<cudnnDataType_t> {
    Ok(match dtype {
        DType::F32 => cudnnDataType_t::CUDNN_DATA_FLOAT,
        DType::F16 => cudnnDataType_t::CUDNN_DATA_HALF,
        DType::BF16 => cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        other => bail!("cuDNN is not asked to convolve values of type {other:?}"),
    })
}
