//! Memory for results, written once: no zeros are put there first.

use std::mem::MaybeUninit;

/// Room for `len` values.
pub(crate) fn room<T>(len: usize) -> Vec<MaybeUninit<T>> {
    let mut values = Vec::with_capacity(len);
    // SAFETY: the capacity is there, and `MaybeUninit` needs no initialisation.
    unsafe { values.set_len(len) };
    values
}

/// The values of a filled room.
///
/// # Safety
/// Every element must have been written.
pub(crate) unsafe fn filled<T>(values: Vec<MaybeUninit<T>>) -> Vec<T> {
    let mut values = std::mem::ManuallyDrop::new(values);
    // SAFETY: the layouts are the same, the vector is not dropped twice, and the caller wrote every element.
    unsafe { Vec::from_raw_parts(values.as_mut_ptr().cast(), values.len(), values.capacity()) }
}

/// A pointer into a result that several threads fill, each its own part.
pub(super) struct Target<T = f32>(*mut T);

impl<T> Clone for Target<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Target<T> {}

// SAFETY: it is only a number; whoever writes through it answers for writing a part of their own.
unsafe impl<T> Send for Target<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Target<T> {}

impl<T> Target<T> {
    pub(super) fn new(values: &mut [MaybeUninit<T>]) -> Self {
        Self(values.as_mut_ptr().cast())
    }

    pub(super) fn of(values: *mut T) -> Self {
        Self(values)
    }

    /// The pointer to element `index`.
    ///
    /// # Safety
    /// The element must lie within the result, or just behind it.
    pub(super) unsafe fn at(self, index: usize) -> *mut T {
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
