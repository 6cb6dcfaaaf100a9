//! The part of oneDNN's C interface that is used here, after `oneapi/dnnl/dnnl.h` and `dnnl_types.h` of version 3.

use std::ffi::{c_char, c_int, c_void};

// Links the library that the crate builds.
use onednn_src as _;

pub(super) type Status = c_int;
pub(super) type Handle = *mut c_void;

pub(super) const SUCCESS: Status = 0;
pub(super) const ENGINE_CPU: c_int = 1;
pub(super) const BF16: c_int = 2;
pub(super) const F32: c_int = 3;
/// The library chooses the arrangement.
pub(super) const TAG_ANY: c_int = 1;
pub(super) const TAG_A: c_int = 2;
pub(super) const TAG_AB: c_int = 3;
pub(super) const TAG_BA: c_int = 14;
pub(super) const TAG_ABCD: c_int = 5;
/// Channels last.
pub(super) const TAG_ACDB: c_int = 22;
pub(super) const FORWARD_INFERENCE: c_int = 96;
pub(super) const CONVOLUTION_DIRECT: c_int = 1;
pub(super) const SCRATCHPAD_USER: c_int = 1;
pub(super) const QUERY_IMPLEMENTATION: c_int = 8;
pub(super) const QUERY_WEIGHTS: c_int = 131;
pub(super) const QUERY_SCRATCHPAD: c_int = 136;
pub(super) const ARG_SOURCE: c_int = 1;
pub(super) const ARG_RESULT: c_int = 17;
pub(super) const ARG_WEIGHTS: c_int = 33;
pub(super) const ARG_BIAS: c_int = 41;
pub(super) const ARG_SCRATCHPAD: c_int = 80;
/// The bits of `dnnl_cpu_isa_avx512_core_bf16`, and of `dnnl_cpu_isa_avx512_core_amx`.
pub(super) const ISA_BF16: c_int = 0xe7;
pub(super) const ISA_AMX: c_int = 0xfef;

/// `dnnl_exec_arg_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Argument {
    pub(super) name: c_int,
    pub(super) memory: Handle,
}

unsafe extern "C" {
    pub(super) fn dnnl_get_effective_cpu_isa() -> c_int;
    pub(super) fn dnnl_threadpool_interop_set_max_concurrency(threads: c_int) -> Status;

    pub(super) fn dnnl_engine_create(engine: *mut Handle, kind: c_int, index: usize) -> Status;
    pub(super) fn dnnl_threadpool_interop_stream_create(
        stream: *mut Handle,
        engine: Handle,
        pool: *mut c_void,
    ) -> Status;
    pub(super) fn dnnl_stream_destroy(stream: Handle) -> Status;

    pub(super) fn dnnl_memory_desc_create_with_tag(
        desc: *mut Handle,
        rank: c_int,
        dims: *const i64,
        data_type: c_int,
        tag: c_int,
    ) -> Status;
    pub(super) fn dnnl_memory_desc_clone(desc: *mut Handle, existing: Handle) -> Status;
    pub(super) fn dnnl_memory_desc_destroy(desc: Handle) -> Status;
    pub(super) fn dnnl_memory_desc_equal(left: Handle, right: Handle) -> c_int;
    pub(super) fn dnnl_memory_desc_get_size(desc: Handle) -> usize;

    pub(super) fn dnnl_memory_create(memory: *mut Handle, desc: Handle, engine: Handle, data: *mut c_void) -> Status;
    pub(super) fn dnnl_memory_set_data_handle(memory: Handle, data: *mut c_void) -> Status;
    pub(super) fn dnnl_memory_destroy(memory: Handle) -> Status;

    pub(super) fn dnnl_primitive_attr_create(attributes: *mut Handle) -> Status;
    pub(super) fn dnnl_primitive_attr_set_scratchpad_mode(attributes: Handle, mode: c_int) -> Status;
    pub(super) fn dnnl_primitive_attr_destroy(attributes: Handle) -> Status;

    pub(super) fn dnnl_convolution_forward_primitive_desc_create(
        desc: *mut Handle,
        engine: Handle,
        propagation: c_int,
        algorithm: c_int,
        source: Handle,
        weights: Handle,
        bias: Handle,
        result: Handle,
        strides: *const i64,
        dilations: *const i64,
        padding_first: *const i64,
        padding_last: *const i64,
        attributes: Handle,
    ) -> Status;
    pub(super) fn dnnl_matmul_primitive_desc_create(
        desc: *mut Handle,
        engine: Handle,
        source: Handle,
        weights: Handle,
        bias: Handle,
        result: Handle,
        attributes: Handle,
    ) -> Status;
    pub(super) fn dnnl_reorder_primitive_desc_create(
        desc: *mut Handle,
        source: Handle,
        source_engine: Handle,
        result: Handle,
        result_engine: Handle,
        attributes: Handle,
    ) -> Status;
    pub(super) fn dnnl_primitive_desc_query_md(desc: Handle, what: c_int, index: c_int) -> Handle;
    pub(super) fn dnnl_primitive_desc_query(
        desc: Handle,
        what: c_int,
        index: c_int,
        result: *mut *const c_char,
    ) -> Status;
    pub(super) fn dnnl_primitive_desc_destroy(desc: Handle) -> Status;

    pub(super) fn dnnl_primitive_create(primitive: *mut Handle, desc: Handle) -> Status;
    pub(super) fn dnnl_primitive_execute(
        primitive: Handle,
        stream: Handle,
        count: c_int,
        arguments: *const Argument,
    ) -> Status;
    pub(super) fn dnnl_primitive_destroy(primitive: Handle) -> Status;
}
