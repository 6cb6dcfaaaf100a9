//! Each operation's CPU form against its plain form, at the shapes of models.
//!
//! `cargo bench -p easel-kernels --bench ops [FILTER]`; each pair ends in a line with the ratio, and the speed of the fast form.
#![expect(clippy::expect_used, reason = "a bench that cannot run has nothing else to do than to stop")]

use std::{
    alloc::System,
    cell::Cell,
    time::{Duration, Instant},
};

use candle_core::{DType, Device, Result, Tensor};
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};
use easel_kernels::{
    Conv2d, Conv2dConfig, GroupNorm, KeepingAllocator, LayerNorm, Linear, Padding, attention, geglu, silu,
    upsample_nearest, with_direct_convolutions, with_plain_forms,
};

/// As in the program, for large tensors are allocated at every operation.
#[global_allocator]
static ALLOCATOR: KeepingAllocator<System> = KeepingAllocator::new(System);

type Operation = Box<dyn Fn() -> Result<Tensor>>;

thread_local! {
    /// Whether weights and inputs are bf16.
    static IN_BF16: Cell<bool> = const { Cell::new(false) };
}

fn noise(shape: &[usize]) -> Result<Tensor> {
    let dtype = if IN_BF16.get() { DType::BF16 } else { DType::F32 };
    Tensor::randn(0f32, 1.0, shape, &Device::Cpu)?.to_dtype(dtype)
}

/// Seconds of a call, by the wall's clock and of all processors together.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    processors: f64,
}

/// The processor seconds that this process has used; where the system does not tell, the wall's since `start`.
///
/// On a machine with other work this is what can be compared.
fn processor_seconds(start: Instant) -> f64 {
    let of_task = |task: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let line = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1e-9)
    };
    match std::fs::read_dir("/proc/self/task") {
        Ok(tasks) => tasks.filter_map(of_task).sum(),
        Err(_) => start.elapsed().as_secs_f64(),
    }
}

/// Measures one form.
fn measure(group: &mut BenchmarkGroup<WallTime>, name: &str, operation: &Operation) -> Cost {
    // The processor's seconds are counted at ticks, so only their sum over all calls means something.
    let (best, used, calls) = (Cell::new(f64::INFINITY), Cell::new(0.0), Cell::new(0));
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let start = Instant::now();
            let before = processor_seconds(start);
            for _ in 0..iterations {
                std::hint::black_box(operation()).expect("the operation computes");
            }
            let elapsed = start.elapsed();
            used.set(used.get() + processor_seconds(start) - before);
            calls.set(calls.get() + iterations);
            best.set(best.get().min(elapsed.as_secs_f64() / iterations as f64));
            elapsed
        });
    });
    Cost { wall: best.get(), processors: used.get() / calls.get() as f64 }
}

/// Measures Winograd's form of a convolution and the direct one in turn, so that both meet the same other work.
fn winograd(criterion: &mut Criterion, x: [usize; 4], out: usize) {
    let [b, h, w, channels] = x;
    let work = (b * h * w * channels * out * 9) as f64;
    let name = format!("winograd {x:?} to {out}");
    let make = || -> Result<Operation> {
        let config = Conv2dConfig { stride: 1, padding: Padding::same(1) };
        let conv = Conv2d::new(noise(&[out, channels, 3, 3])?, Some(noise(&[out])?), config)?;
        let x = noise(&x)?;
        Ok(Box::new(move || conv.forward(&x)))
    };
    let made = Cell::new(None);
    let used = [Cell::new(0.0), Cell::new(0.0)];
    let calls = Cell::new(0);
    let mut group = criterion.benchmark_group("in turn");
    group.sample_size(10).warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(400));
    group.bench_function(&name, |bencher| {
        let forms = made.take().unwrap_or_else(|| [make(), with_direct_convolutions(make)]);
        bencher.iter_custom(|iterations| {
            let start = Instant::now();
            for _ in 0..iterations {
                for (form, used) in forms.iter().zip(&used) {
                    let before = processor_seconds(start);
                    let form = form.as_ref().expect("the operation can be made");
                    std::hint::black_box(form()).expect("the operation computes");
                    used.set(used.get() + processor_seconds(start) - before);
                }
            }
            calls.set(calls.get() + iterations);
            start.elapsed()
        });
        made.set(Some(forms));
    });
    group.finish();
    if calls.get() > 0 {
        let [form, direct] = used.each_ref().map(|used| used.get() / calls.get() as f64);
        let speed = |seconds: f64| 2e-9 * work / seconds;
        println!(
            "RATIO {name}: {:.2}x by processor time; {:.0} GFLOP/s a core, as the direct form counts, and {:.0}",
            direct / form,
            speed(form),
            speed(direct)
        );
    }
}

/// Measures both forms of what `make` makes; `work` is in multiplications.
fn compare(criterion: &mut Criterion, name: &str, work: usize, make: impl Fn() -> Result<Operation>) {
    let name = &if IN_BF16.get() { format!("{name} in bf16") } else { name.to_owned() };
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(50)).measurement_time(Duration::from_millis(200));
    let operation = make().expect("the operation can be made");
    let fast = measure(&mut group, "fast", &operation);
    let plain = with_plain_forms(|| {
        let operation = make().expect("the operation can be made");
        measure(&mut group, "plain", &operation)
    });
    group.finish();
    if fast.wall.is_finite() && plain.wall.is_finite() {
        let (wall, processors) = (plain.wall / fast.wall, plain.processors / fast.processors);
        let (micros, speed) = (fast.wall * 1e6, 2e-9 * work as f64 / fast.processors);
        println!(
            "RATIO {name}: {wall:.2}x faster, {processors:.2}x by processor time; {micros:.1} us, {speed:.0} GFLOP/s a core"
        );
    }
}

fn conv(criterion: &mut Criterion, x: [usize; 4], out: usize, size: usize, stride: usize) {
    let [b, h, w, channels] = x;
    let work = b * h * w * channels * out * size * size / (stride * stride);
    compare(criterion, &format!("conv{size}x{size}/{stride} {x:?} to {out}"), work, || {
        let config = Conv2dConfig { stride, padding: Padding::same(size / 2) };
        let conv = Conv2d::new(noise(&[out, channels, size, size])?, Some(noise(&[out])?), config)?;
        let x = noise(&x)?;
        Ok(Box::new(move || conv.forward(&x)))
    });
}

fn linear(criterion: &mut Criterion, x: [usize; 3], out: usize) {
    compare(criterion, &format!("linear {x:?} to {out}"), x.iter().product::<usize>() * out, || {
        let linear = Linear::new(noise(&[out, x[2]])?, Some(noise(&[out])?))?;
        let x = noise(&x)?;
        Ok(Box::new(move || linear.forward(&x)))
    });
}

fn attend(criterion: &mut Criterion, [b, n, m]: [usize; 3], heads: usize, d: usize) {
    let work = 2 * b * n * m * heads * d;
    compare(criterion, &format!("attention ({b}, {n}, {m}) {heads} of {d}"), work, || {
        let (q, kv) = (noise(&[b, n, heads * d])?, noise(&[b, m, heads * d])?);
        Ok(Box::new(move || attention(&q, &kv, &kv, heads, None)))
    });
}

fn norm(criterion: &mut Criterion, x: [usize; 4]) {
    compare(criterion, &format!("group_norm_silu {x:?}"), x.iter().product(), || {
        let norm = GroupNorm::new(noise(&[x[3]])?, noise(&[x[3]])?, 32, 1e-5)?;
        let x = noise(&x)?;
        Ok(Box::new(move || norm.forward_silu(&x)))
    });
}

fn elementwise(criterion: &mut Criterion, [b, n, c]: [usize; 3]) {
    let work = b * n * c;
    compare(criterion, &format!("layer_norm ({b}, {n}, {c})"), work, || {
        let norm = LayerNorm::new(Some(noise(&[c])?), Some(noise(&[c])?), 1e-5)?;
        let x = noise(&[b, n, c])?;
        Ok(Box::new(move || norm.forward(&x)))
    });
    compare(criterion, &format!("silu ({b}, {n}, {c})"), work, || {
        let x = noise(&[b, n, c])?;
        Ok(Box::new(move || silu(&x)))
    });
    compare(criterion, &format!("geglu ({b}, {n}, {})", 8 * c), 4 * work, || {
        let x = noise(&[b, n, 8 * c])?;
        Ok(Box::new(move || geglu(&x)))
    });
}

/// The built-in model: latents of 16 by 16, 64 to 128 channels, heads of 32; its autoencoder at 128 by 128.
fn tiny(criterion: &mut Criterion) {
    for rows in [2, 16] {
        conv(criterion, [rows, 16, 16, 4], 64, 3, 1);
        conv(criterion, [rows, 16, 16, 64], 64, 3, 1);
        conv(criterion, [rows, 8, 8, 96], 128, 3, 1);
        linear(criterion, [rows, 256, 64], 64);
        linear(criterion, [rows, 64, 128], 1024);
        linear(criterion, [rows, 1, 256], 256);
        attend(criterion, [rows, 256, 256], 2, 32);
        attend(criterion, [rows, 64, 77], 4, 32);
        norm(criterion, [rows, 16, 16, 64]);
        elementwise(criterion, [rows, 256, 64]);
    }
    conv(criterion, [1, 128, 128, 32], 32, 3, 1);
    conv(criterion, [1, 64, 64, 96], 96, 3, 1);
    conv(criterion, [1, 128, 128, 32], 3, 3, 1);
    norm(criterion, [1, 128, 128, 32]);
    compare(criterion, "upsample_nearest [1, 64, 64, 64]", 128 * 128 * 64, || {
        let x = noise(&[1, 64, 64, 64])?;
        Ok(Box::new(move || upsample_nearest(&x, 128, 128)))
    });
}

/// Attention, a convolution and a linear layer of Stable Diffusion 1.5 in bf16.
fn sd15_bf16(criterion: &mut Criterion) {
    IN_BF16.set(true);
    conv(criterion, [1, 64, 64, 320], 320, 3, 1);
    conv(criterion, [1, 32, 32, 640], 640, 3, 1);
    conv(criterion, [1, 8, 8, 1280], 1280, 3, 1);
    linear(criterion, [1, 4096, 320], 2560);
    linear(criterion, [1, 1024, 640], 640);
    attend(criterion, [1, 4096, 4096], 8, 40);
    attend(criterion, [1, 1024, 1024], 8, 80);
    attend(criterion, [1, 4096, 77], 8, 40);
    norm(criterion, [1, 64, 64, 320]);
    elementwise(criterion, [1, 4096, 320]);
    IN_BF16.set(false);
}

/// Stable Diffusion 1.5 at 512 by 512 with guidance, so two rows.
fn sd15(criterion: &mut Criterion) {
    conv(criterion, [2, 64, 64, 4], 320, 3, 1);
    conv(criterion, [2, 64, 64, 320], 320, 3, 1);
    conv(criterion, [2, 32, 32, 640], 640, 3, 1);
    conv(criterion, [2, 16, 16, 1280], 1280, 3, 1);
    conv(criterion, [2, 8, 8, 1280], 1280, 3, 1);
    conv(criterion, [2, 64, 64, 320], 320, 3, 2);
    conv(criterion, [2, 64, 64, 320], 4, 3, 1);
    conv(criterion, [2, 64, 64, 640], 320, 1, 1);
    conv(criterion, [1, 256, 256, 128], 128, 3, 1);
    linear(criterion, [2, 4096, 320], 2560);
    linear(criterion, [2, 1024, 640], 640);
    linear(criterion, [2, 1, 1280], 1280);
    attend(criterion, [2, 4096, 4096], 8, 40);
    attend(criterion, [2, 4096, 77], 8, 40);
    attend(criterion, [2, 256, 256], 8, 160);
    norm(criterion, [2, 64, 64, 320]);
    norm(criterion, [2, 8, 8, 1280]);
    elementwise(criterion, [2, 4096, 320]);
}

/// Convolutions of Stable Diffusion 1.5, its autoencoder and the built-in model, in both forms.
fn both_forms(criterion: &mut Criterion) {
    winograd(criterion, [2, 64, 64, 320], 320);
    winograd(criterion, [2, 64, 64, 960], 320);
    winograd(criterion, [2, 32, 32, 640], 640);
    winograd(criterion, [1, 256, 256, 128], 128);
    winograd(criterion, [1, 128, 128, 256], 256);
    winograd(criterion, [1, 64, 64, 512], 512);
    winograd(criterion, [2, 16, 16, 1280], 1280);
    winograd(criterion, [2, 8, 8, 1280], 1280);
    winograd(criterion, [2, 16, 16, 64], 64);
    winograd(criterion, [1, 64, 64, 32], 32);
}

criterion_group!(benches, both_forms, tiny, sd15, sd15_bf16);
criterion_main!(benches);
