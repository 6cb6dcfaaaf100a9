//! oneDNN's objects, which are given back when they are dropped.

use std::{cell::Cell, ffi::CStr, ffi::c_int, ptr::null_mut, sync::LazyLock};

use candle_core::{Result, bail};

use super::{
    ffi::{self, Argument, Handle, Status},
    pool::{self, Address},
};

/// The processor, as the library's engine; an error message where it could not be made.
static ENGINE: LazyLock<std::result::Result<Address, String>> = LazyLock::new(|| {
    let mut engine = null_mut();
    // SAFETY: the engine is written there, and never given back.
    let status = unsafe { ffi::dnnl_engine_create(&mut engine, ffi::ENGINE_CPU, 0) };
    if status == ffi::SUCCESS { Ok(Address(engine)) } else { Err(format!("oneDNN: no engine (status {status})")) }
});

fn engine() -> Result<Handle> {
    ENGINE.as_ref().map(|engine| engine.get()).map_err(candle_core::Error::msg)
}

fn check(status: Status, what: &str) -> Result<()> {
    if status != ffi::SUCCESS {
        bail!("oneDNN: {what} failed with status {status}");
    }
    Ok(())
}

/// The handle that `make` writes.
fn made(what: &str, make: impl FnOnce(*mut Handle) -> Status) -> Result<Handle> {
    let mut handle = null_mut();
    check(make(&mut handle), what)?;
    Ok(handle)
}

macro_rules! objects {
    ($($name:ident, $destroy:ident: $text:literal;)*) => {$(
        #[doc = $text]
        #[derive(Debug)]
        pub(super) struct $name(Handle);

        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: the handle was made by the library and is given back once. There is nothing to do if that fails.
                unsafe { ffi::$destroy(self.0) };
            }
        }
    )*};
}

objects! {
    Layout, dnnl_memory_desc_destroy: "Sizes, type and arrangement of values in memory.";
    Plan, dnnl_primitive_desc_destroy: "How an operation is to be computed.";
    Primitive, dnnl_primitive_destroy: "An operation, compiled.";
    Attributes, dnnl_primitive_attr_destroy: "What all operations here have in common: memory to work in comes from the caller.";
    Memory, dnnl_memory_destroy: "A layout and the address of its values.";
    Stream, dnnl_stream_destroy: "What computes: here always the program's pool.";
}

// SAFETY: layouts and primitives do not change once they are made, and the library allows their use from any thread, at
// the same time, too, since the memory that a primitive works in comes from the caller.
unsafe impl Send for Layout {}
// SAFETY: as above.
unsafe impl Sync for Layout {}
// SAFETY: as above.
unsafe impl Send for Primitive {}
// SAFETY: as above.
unsafe impl Sync for Primitive {}

impl Layout {
    /// Values of this type, arranged by a tag.
    pub(super) fn new(dims: &[usize], data_type: c_int, tag: c_int) -> Result<Self> {
        let mut sizes = [0_i64; 12];
        for (size, dim) in sizes.iter_mut().zip(dims) {
            *size = i64::try_from(*dim).map_err(candle_core::Error::wrap)?;
        }
        made("a layout", |handle| {
            // SAFETY: there are as many sizes as the rank says.
            unsafe {
                ffi::dnnl_memory_desc_create_with_tag(handle, dims.len() as c_int, sizes.as_ptr(), data_type, tag)
            }
        })
        .map(Self)
    }

    pub(super) fn bytes(&self) -> usize {
        // SAFETY: the layout is there.
        unsafe { ffi::dnnl_memory_desc_get_size(self.0) }
    }
}

impl PartialEq for Layout {
    fn eq(&self, other: &Self) -> bool {
        // SAFETY: both layouts are there.
        unsafe { ffi::dnnl_memory_desc_equal(self.0, other.0) != 0 }
    }
}

/// The sizes of a convolution.
pub(super) struct Window {
    pub(super) strides: [i64; 2],
    /// Zeros above and to the left.
    pub(super) first: [i64; 2],
    /// Zeros below and to the right.
    pub(super) last: [i64; 2],
}

/// The layouts of an operation with weights.
#[derive(Debug)]
pub(super) struct Layouts {
    pub(super) source: Layout,
    pub(super) weights: Layout,
    pub(super) bias: Option<Layout>,
    pub(super) result: Layout,
}

impl Layouts {
    fn bias(&self) -> Handle {
        self.bias.as_ref().map_or(null_mut(), |bias| bias.0)
    }
}

impl Plan {
    pub(super) fn matmul(layouts: &Layouts) -> Result<Self> {
        let (engine, attributes) = (engine()?, attributes()?);
        made("planning a matrix product", |handle| {
            // SAFETY: all handles are there.
            unsafe {
                ffi::dnnl_matmul_primitive_desc_create(
                    handle,
                    engine,
                    layouts.source.0,
                    layouts.weights.0,
                    layouts.bias(),
                    layouts.result.0,
                    attributes.0,
                )
            }
        })
        .map(Self)
    }

    pub(super) fn convolution(layouts: &Layouts, window: &Window) -> Result<Self> {
        let (engine, attributes) = (engine()?, attributes()?);
        made("planning a convolution", |handle| {
            // SAFETY: all handles are there, and a window has as many numbers as an image has sides.
            unsafe {
                ffi::dnnl_convolution_forward_primitive_desc_create(
                    handle,
                    engine,
                    ffi::FORWARD_INFERENCE,
                    ffi::CONVOLUTION_DIRECT,
                    layouts.source.0,
                    layouts.weights.0,
                    layouts.bias(),
                    layouts.result.0,
                    window.strides.as_ptr(),
                    [0, 0].as_ptr(),
                    window.first.as_ptr(),
                    window.last.as_ptr(),
                    attributes.0,
                )
            }
        })
        .map(Self)
    }

    pub(super) fn reorder(from: &Layout, to: &Layout) -> Result<Self> {
        let (engine, attributes) = (engine()?, attributes()?);
        made("planning a copy", |handle| {
            // SAFETY: all handles are there.
            unsafe { ffi::dnnl_reorder_primitive_desc_create(handle, from.0, engine, to.0, engine, attributes.0) }
        })
        .map(Self)
    }

    /// The layout that the plan has chosen for the weights, or wants to work in.
    pub(super) fn layout(&self, which: c_int) -> Result<Layout> {
        // SAFETY: the plan is there, and keeps what it answers with, which is copied.
        made("a copy of a layout", |handle| unsafe {
            ffi::dnnl_memory_desc_clone(handle, ffi::dnnl_primitive_desc_query_md(self.0, which, 0))
        })
        .map(Layout)
    }

    /// The name of the library's form that computes the plan.
    pub(super) fn implementation(&self) -> String {
        let mut name = std::ptr::null();
        // SAFETY: the plan is there, and keeps the name, which ends in a zero.
        unsafe {
            match ffi::dnnl_primitive_desc_query(self.0, ffi::QUERY_IMPLEMENTATION, 0, &mut name) {
                ffi::SUCCESS if !name.is_null() => CStr::from_ptr(name).to_string_lossy().into_owned(),
                _ => String::new(),
            }
        }
    }

    pub(super) fn compile(&self) -> Result<Primitive> {
        // SAFETY: the plan is there.
        made("compiling an operation", |handle| unsafe { ffi::dnnl_primitive_create(handle, self.0) }).map(Primitive)
    }
}

/// Memory to work in comes from the caller, so that a primitive can compute for several threads at once.
fn attributes() -> Result<Attributes> {
    // A plan is made for as many threads as will share its work.
    // SAFETY: the number is this thread's alone.
    check(unsafe { ffi::dnnl_threadpool_interop_set_max_concurrency(pool::threads()) }, "setting the threads")?;
    // SAFETY: the attributes are written there.
    let attributes = Attributes(made("attributes", |handle| unsafe { ffi::dnnl_primitive_attr_create(handle) })?);
    // SAFETY: the attributes are there.
    let status = unsafe { ffi::dnnl_primitive_attr_set_scratchpad_mode(attributes.0, ffi::SCRATCHPAD_USER) };
    check(status, "setting attributes")?;
    Ok(attributes)
}

impl Memory {
    /// # Safety
    /// The values must be there, in this layout, for as long as the memory is used.
    pub(super) unsafe fn new(layout: &Layout, values: *mut u8) -> Result<Self> {
        let engine = engine()?;
        made("a memory", |handle| {
            // SAFETY: the handles are there; the values are used by no call before the next.
            unsafe { ffi::dnnl_memory_create(handle, layout.0, engine, values.cast()) }
        })
        .map(Self)
    }

    /// # Safety
    /// As [`Memory::new`].
    pub(super) unsafe fn move_to(&self, values: *mut u8) -> Result<()> {
        // SAFETY: the memory is there.
        check(unsafe { ffi::dnnl_memory_set_data_handle(self.0, values.cast()) }, "moving a memory")
    }

    pub(super) fn argument(&self, name: c_int) -> Argument {
        Argument { name, memory: self.0 }
    }
}

impl Stream {
    pub(super) fn new() -> Result<Self> {
        let engine = engine()?;
        made("a stream", |handle| {
            // SAFETY: the engine and the pool are there for ever.
            unsafe { ffi::dnnl_threadpool_interop_stream_create(handle, engine, pool::pool()) }
        })
        .map(Self)
    }

    /// # Safety
    /// The arguments' memories must be there with the layouts that the primitive was planned for, and nobody else may write to
    /// any of them, nor read the result.
    pub(super) unsafe fn execute(&self, primitive: &Primitive, arguments: &[Argument]) -> Result<()> {
        // SAFETY: the caller's promises; the pool does all work before the call returns.
        let status =
            unsafe { ffi::dnnl_primitive_execute(primitive.0, self.0, arguments.len() as c_int, arguments.as_ptr()) };
        check(status, "an operation")
    }
}

/// A cache line, for the alignment that the library likes best.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line([u8; 64]);

/// Room for that many bytes.
pub(super) fn lines(bytes: usize) -> Vec<Line> {
    vec![Line([0; 64]); bytes.div_ceil(64)]
}

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Gives `f` this thread's memory to work in, of so many bytes at least.
pub(super) fn with_scratch<T>(bytes: usize, f: impl FnOnce(*mut u8) -> T) -> T {
    // Whoever comes in between, on this thread, makes do with a new one.
    let mut scratch = SCRATCH.take();
    if scratch.len() * 64 < bytes {
        scratch = lines(bytes);
    }
    let result = f(scratch.as_mut_ptr().cast());
    SCRATCH.set(scratch);
    result
}
