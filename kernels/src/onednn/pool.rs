//! oneDNN's work on rayon's pool, so that the program has one pool of threads.

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    sync::LazyLock,
};

use rayon::prelude::*;

type Task = unsafe extern "C" fn(*const c_void, c_int, c_int);

/// As `easel_pool_callbacks` in `onednn/pool.cpp`.
#[repr(C)]
struct Callbacks {
    threads: unsafe extern "C" fn() -> c_int,
    inside: unsafe extern "C" fn() -> c_int,
    share: unsafe extern "C" fn(c_int, Task, *const c_void),
}

unsafe extern "C" {
    fn easel_pool_new(callbacks: Callbacks) -> *mut c_void;
}

thread_local! {
    /// Whether this thread is at work on a task.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// An address that other threads may use.
#[derive(Clone, Copy)]
pub(super) struct Address(pub(super) *mut c_void);

// SAFETY: the address is of a pool or an engine, which any thread may use at any time, or of a task's context, of which
// oneDNN asks the same.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    /// The address; a method, so that closures take all of it and not the pointer alone.
    pub(super) fn get(self) -> *mut c_void {
        self.0
    }
}

/// The bridge to rayon's pool.
static POOL: LazyLock<Address> = LazyLock::new(|| {
    // SAFETY: the callbacks are as the pool's class calls them.
    Address(unsafe { easel_pool_new(Callbacks { threads, inside, share }) })
});

/// The pool, as oneDNN's streams take it.
pub(super) fn pool() -> *mut c_void {
    POOL.get()
}

/// How many tasks oneDNN is to split its work into.
pub(super) extern "C" fn threads() -> c_int {
    c_int::try_from(rayon::current_num_threads()).unwrap_or(1)
}

extern "C" fn inside() -> c_int {
    c_int::from(INSIDE.get())
}

/// Calls `task` for each index below `count`.
extern "C" fn share(count: c_int, task: Task, context: *const c_void) {
    let context = Address(context.cast_mut());
    (0..count).into_par_iter().with_max_len(1).for_each(|index| {
        // While it waits elsewhere a thread may take up a task in the middle of another.
        let before = INSIDE.replace(true);
        // SAFETY: oneDNN's task takes its own context, from any thread, and throws nothing.
        unsafe { task(context.get(), index, count) };
        INSIDE.set(before);
    });
}
