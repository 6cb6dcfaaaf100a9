//! Pages from the system.

/// What huge pages are a multiple of, on x86-64 and most others.
#[cfg(unix)]
const HUGE: usize = 2 << 20;

/// Whether pages can be had here.
pub(super) const AVAILABLE: bool = cfg!(unix);

/// Maps `size` bytes of zeros, at a multiple of a huge page if it is that large; null if there is no memory.
#[cfg(unix)]
pub(super) fn map(size: usize) -> *mut u8 {
    let surplus = if size >= HUGE { HUGE } else { 0 };
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
    let Some(length) = size.checked_add(surplus) else { return std::ptr::null_mut() };
    // SAFETY: a new mapping, wherever there is room.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return std::ptr::null_mut();
    }
    let start = start.cast::<u8>();
    if surplus == 0 {
        return start;
    }
    let before = start.align_offset(HUGE);
    // SAFETY: what lies before and behind the aligned part is within the mapping, and used by nobody.
    unsafe {
        let aligned = start.add(before);
        for (part, length) in [(start, before), (aligned.add(size), surplus - before)] {
            if length > 0 {
                libc::munmap(part.cast(), length);
            }
        }
        // Where it is refused, the pages are small ones.
        #[cfg(target_os = "linux")]
        libc::madvise(aligned.cast(), size, libc::MADV_HUGEPAGE);
        aligned
    }
}

/// Never called, because no block is large here.
#[cfg(not(unix))]
pub(super) fn map(_: usize) -> *mut u8 {
    std::ptr::null_mut()
}

/// Gives `size` bytes at `start` back.
///
/// # Safety
/// [`map`] must have mapped them, and nobody may use them any more.
#[cfg(unix)]
pub(super) unsafe fn unmap(start: *mut u8, size: usize) {
    // SAFETY: the caller's promise.
    unsafe { libc::munmap(start.cast(), size) };
}

/// Never called, because no block is large here.
#[cfg(not(unix))]
pub(super) unsafe fn unmap(_: *mut u8, _: usize) {}
