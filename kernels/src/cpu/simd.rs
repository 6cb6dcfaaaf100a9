//! Loads and stores of whole and broken vectors, and the choice of instructions.

use std::sync::LazyLock;

use pulp::{Scalar, Simd, WithSimd};

/// The vectors that are used, the widest ones of the processor.
///
/// `EASEL_VECTORS` in the environment (`avx2` or `none`, read once) asks for narrower ones: to find out whether a
/// wrong picture comes from them, and to test their forms on a newer processor. `avx512` asks for these, and for no
/// tiles of AMX (see [`super::product_bf16`]).
static VECTORS: LazyLock<Vectors> = LazyLock::new(|| {
    let asked = std::env::var("EASEL_VECTORS").unwrap_or_default();
    if asked == "none" { Vectors::None } else { Vectors::detect(asked == "avx2") }
});

#[derive(Clone, Copy)]
enum Vectors {
    None,
    #[cfg(target_arch = "x86_64")]
    Avx2(pulp::x86::V3),
    #[cfg(target_arch = "x86_64")]
    Avx512(pulp::x86::V4),
    #[cfg(target_arch = "aarch64")]
    Neon(pulp::aarch64::Neon),
}

impl Vectors {
    #[cfg(target_arch = "x86_64")]
    fn detect(narrow: bool) -> Self {
        match (pulp::x86::V4::try_new(), pulp::x86::V3::try_new()) {
            (Some(simd), _) if !narrow => Self::Avx512(simd),
            (_, Some(simd)) => Self::Avx2(simd),
            _ => Self::None,
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn detect(_narrow: bool) -> Self {
        pulp::aarch64::Neon::try_new().map_or(Self::None, Self::Neon)
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn detect(_narrow: bool) -> Self {
        Self::None
    }
}

/// Runs `op` with the vectors of this processor.
#[inline]
pub(super) fn dispatch<Op: WithSimd>(op: Op) -> Op::Output {
    match *VECTORS {
        Vectors::None => Scalar::vectorize(Scalar::new(), op),
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx2(simd) => Simd::vectorize(simd, op),
        #[cfg(target_arch = "x86_64")]
        Vectors::Avx512(simd) => Simd::vectorize(simd, op),
        #[cfg(target_arch = "aarch64")]
        Vectors::Neon(simd) => Simd::vectorize(simd, op),
    }
}

/// The number of f32 in this processor's vectors.
pub(super) fn lanes() -> usize {
    /// Answers with the vectors' width.
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            S::F32_LANES
        }
    }
    dispatch(Lanes)
}

/// Loads `count` values, or a whole vector if that is less; the other lanes are 0.
///
/// # Safety
/// That many values must be readable at `from`.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(simd: S, from: *const f32, count: usize) -> S::f32s {
    if count >= S::F32_LANES {
        // SAFETY: the caller's promise; a vector is plain data and needs no alignment here.
        unsafe { from.cast::<S::f32s>().read_unaligned() }
    } else {
        // SAFETY: the mask covers what the caller promised.
        unsafe { simd.mask_load_ptr_f32s(simd.mask_between_m32s(0, count as u32), from) }
    }
}

/// Stores the first `count` lanes, or the whole vector if it has fewer.
///
/// # Safety
/// That many values must be writable at `to`.
#[inline(always)]
pub(super) unsafe fn store<S: Simd>(simd: S, to: *mut f32, count: usize, values: S::f32s) {
    if count >= S::F32_LANES {
        // SAFETY: the caller's promise; a vector is plain data and needs no alignment here.
        unsafe { to.cast::<S::f32s>().write_unaligned(values) }
    } else {
        // SAFETY: the mask covers what the caller promised.
        unsafe { simd.mask_store_ptr_f32s(simd.mask_between_m32s(0, count as u32), to, values) }
    }
}
