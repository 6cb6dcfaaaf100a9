//! Memory for results, written once: no zeros are put there first.

use std::mem::MaybeUninit;

/// Room for `len` values.
pub(super) fn room(len: usize) -> Vec<MaybeUninit<f32>> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is there, and `MaybeUninit` needs no initialisation.
    unsafe { values.set_len(len) };
    values
}

/// The values of a filled room.
///
/// # Safety
/// Every element must have been written.
pub(super) unsafe fn filled(values: Vec<MaybeUninit<f32>>) -> Vec<f32> {
    let mut values = std::mem::ManuallyDrop::new(values);
    // SAFETY: the layouts are the same, the vector is not dropped twice, and the caller wrote every element.
    unsafe { Vec::from_raw_parts(values.as_mut_ptr().cast(), values.len(), values.capacity()) }
}

/// A pointer into a result that several threads fill, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Target(*mut f32);

// SAFETY: it is only a number; whoever writes through it answers for writing a part of their own.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    pub(super) fn new(values: &mut [MaybeUninit<f32>]) -> Self {
        Self(values.as_mut_ptr().cast())
    }

    pub(super) fn of(values: *mut f32) -> Self {
        Self(values)
    }

    /// The pointer to element `index`.
    ///
    /// # Safety
    /// The element must lie within the result, or just behind it.
    pub(super) unsafe fn at(self, index: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(index) }
    }

    /// The part of the result from element `index` on.
    ///
    /// # Safety
    /// As [`Target::at`].
    pub(super) unsafe fn from(self, index: usize) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { self.at(index) })
    }
}
