//! cuDNN's backend descriptors: objects of attributes, which are filled, finalised, and then only read.

use std::{ffi::c_void, ptr::null_mut};

use candle_core::{Error, Result};
use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendAttributeType_t as Type, cudnnBackendDescriptor_t,
    cudnnBackendDescriptorType_t as Kind, cudnnDataType_t, cudnnHandle_t, cudnnStatus_t,
};

/// A value that an attribute can hold.
///
/// # Safety
/// The type's layout must be what cuDNN documents for [`Value::TYPE`].
pub(super) unsafe trait Value: Copy {
    /// cuDNN's name for the type.
    const TYPE: Type;
}

macro_rules! values {
    ($($type:ty => $name:ident),* $(,)?) => {
        // SAFETY: cuDNN documents each name for values of this type.
        $(unsafe impl Value for $type { const TYPE: Type = Type::$name; })*
    };
}

values! {
    i64 => CUDNN_TYPE_INT64,
    f32 => CUDNN_TYPE_FLOAT,
    bool => CUDNN_TYPE_BOOLEAN,
    u8 => CUDNN_TYPE_CHAR,
    *mut c_void => CUDNN_TYPE_VOID_PTR,
    cudnnHandle_t => CUDNN_TYPE_HANDLE,
    cudnnDataType_t => CUDNN_TYPE_DATA_TYPE,
    sys::cudnnConvolutionMode_t => CUDNN_TYPE_CONVOLUTION_MODE,
    sys::cudnnPointwiseMode_t => CUDNN_TYPE_POINTWISE_MODE,
    sys::cudnnBackendHeurMode_t => CUDNN_TYPE_HEUR_MODE,
    KnobType => CUDNN_TYPE_KNOB_TYPE,
    NumericalNote => CUDNN_TYPE_NUMERICAL_NOTE,
    Raw => CUDNN_TYPE_BACKEND_DESCRIPTOR,
}

/// What a knob turns, by its number: a newer cuDNN has knobs that the bindings' enumeration lacks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct KnobType(pub(super) u32);

/// A property of an engine's arithmetic, by its number, for the same reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct NumericalNote(pub(super) u32);

/// A descriptor inside another's attribute.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Raw(cudnnBackendDescriptor_t);

/// A descriptor of cuDNN's.
#[derive(Debug)]
pub(super) struct Descriptor(cudnnBackendDescriptor_t);

// SAFETY: a descriptor is memory of its own; those kept are only reached through a mutex.
unsafe impl Send for Descriptor {}

impl Descriptor {
    /// An empty one.
    pub(super) fn new(kind: Kind) -> Result<Self> {
        let mut descriptor = null_mut();
        // SAFETY: the library writes a descriptor, or fails.
        check(unsafe { sys::cudnnBackendCreateDescriptor(kind, &raw mut descriptor) })?;
        Ok(Self(descriptor))
    }

    pub(super) fn raw(&self) -> Raw {
        Raw(self.0)
    }

    /// Sets an attribute; an empty one is left alone.
    pub(super) fn set<T: Value>(self, name: Name, values: &[T]) -> Result<Self> {
        if !values.is_empty() {
            // SAFETY: the descriptor is alive, and there are as many values of the named type as are said.
            let status = unsafe {
                sys::cudnnBackendSetAttribute(self.0, name, T::TYPE, values.len() as i64, values.as_ptr().cast())
            };
            check(status)?;
        }
        Ok(self)
    }

    /// Sets an attribute to other descriptors, which cuDNN copies or shares.
    pub(super) fn set_descriptors(self, name: Name, descriptors: &[&Self]) -> Result<Self> {
        let raw: Vec<_> = descriptors.iter().map(|descriptor| descriptor.raw()).collect();
        self.set(name, &raw)
    }

    /// Completes the descriptor.
    pub(super) fn finalize(self) -> Result<Self> {
        // SAFETY: the descriptor is alive.
        check(unsafe { sys::cudnnBackendFinalize(self.0) })?;
        Ok(self)
    }

    /// Reads up to `values.len()` values of an attribute; says how many there were.
    pub(super) fn get<T: Value>(&self, name: Name, values: &mut [T]) -> Result<usize> {
        let mut count = 0;
        // SAFETY: the descriptor is alive, and there is room for as many values of the named type as are said.
        let status = unsafe {
            sys::cudnnBackendGetAttribute(
                self.0,
                name,
                T::TYPE,
                values.len() as i64,
                &raw mut count,
                values.as_mut_ptr().cast(),
            )
        };
        check(status)?;
        Ok(usize::try_from(count).unwrap_or(0).min(values.len()))
    }

    /// Reads an attribute that is one value.
    pub(super) fn get_one<T: Value + Default>(&self, name: Name) -> Result<T> {
        let mut value = [T::default()];
        self.get(name, &mut value)?;
        Ok(value[0])
    }

    /// Reads an attribute that is up to `most` descriptors of one kind.
    pub(super) fn get_descriptors(&self, name: Name, kind: Kind, most: usize) -> Result<Vec<Self>> {
        let mut found = (0..most).map(|_| Self::new(kind)).collect::<Result<Vec<_>>>()?;
        let mut raw: Vec<_> = found.iter().map(Self::raw).collect();
        let count = self.get(name, &mut raw)?;
        found.truncate(count);
        Ok(found)
    }

    /// Runs this plan.
    ///
    /// # Safety
    /// The variant pack's addresses must be of memory that is as large as the plan's tensors, and its outputs nobody else's.
    pub(super) unsafe fn execute(&self, handle: cudnnHandle_t, pack: &Self) -> Result<()> {
        // SAFETY: the caller's promise; all descriptors are alive.
        check(unsafe { sys::cudnnBackendExecute(handle, self.0, pack.0) })
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: the library made it, and it is not used again; others that refer to it hold what they need.
        _ = unsafe { sys::cudnnBackendDestroyDescriptor(self.0) };
    }
}

/// Turns a status into an error that says what the library says.
pub(super) fn check(status: cudnnStatus_t) -> Result<()> {
    if status == cudnnStatus_t::CUDNN_STATUS_SUCCESS {
        return Ok(());
    }
    let mut text = [0_u8; 256];
    // SAFETY: the library writes a text with its end into the room that is said.
    unsafe { sys::cudnnGetLastErrorString(text.as_mut_ptr().cast(), text.len()) };
    let text: Vec<u8> = text.into_iter().take_while(|byte| *byte != 0).collect();
    Err(Error::Msg(format!("cuDNN: {status:?}: {}", String::from_utf8_lossy(&text))))
}
