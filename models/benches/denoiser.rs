//! A step of a real denoiser at its true size, in f32 and bf16, in one run.
//!
//! `cargo bench -p easel-models --bench denoiser [-- MODEL [HEIGHT WIDTH]] [f32] [bf16] [direct] [decoder]`, where MODEL is a
//! folder of `tests/data/true_configs` with a UNet (`sd15` when none is named), the sides are those of the latents, and a type
//! asks for that one alone. `direct` asks for each type a second time without Winograd's form of convolutions, `decoder` for the
//! model's autoencoder, which decodes one picture, instead of the denoiser. The weights have the real shapes and no meaning, so
//! no file is needed; nothing here takes less time for that. Processor seconds are what can be compared on a machine with other work.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a bench prints its table and may stop at any fault"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use easel_kernels::with_direct_convolutions;
use easel_models::autoencoders::{AutoencoderKl, AutoencoderKlConfig};
use easel_models::denoisers::{Adapters, Context, Hooks, UNet, UNetConfig};
use easel_models::weights::Tensors;

#[path = "../tests/true_configs/listing.rs"]
#[allow(dead_code, reason = "the bench does not ask what was left over")]
mod listing;

/// As in the program, for large tensors are allocated at every operation.
#[global_allocator]
static ALLOCATOR: easel_models::KeepingAllocator<mimalloc::MiMalloc> =
    easel_models::KeepingAllocator::new(mimalloc::MiMalloc);

/// Forwards of each type, taken in turn.
const ROUNDS: usize = 3;

fn main() {
    // `cargo test --benches` runs benches too, and wants nothing measured.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return;
    }
    let words = arguments.iter().map(String::as_str).filter(|word| !word.starts_with('-'));
    let (asked, words): (Vec<&str>, Vec<&str>) =
        words.partition(|word| word.parse::<DType>().is_ok() || ["direct", "decoder"].contains(word));
    let model = words.first().copied().unwrap_or("sd15");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/true_configs").join(model);
    let json = std::fs::read_to_string(folder.join("unet.json")).unwrap();
    let config = UNetConfig::from_json("unet.json", &json).unwrap();
    let (native, _) = config.sample_size.unwrap().sides();
    let side = |at: usize| words.get(at).map_or(native, |side| side.parse().unwrap());
    let (height, width) = (side(1), side(2));

    let types = [DType::F32, DType::BF16];
    let all = !types.iter().any(|dtype| asked.contains(&dtype.as_str()));
    let mut steps: Vec<(String, Box<dyn Fn()>)> = Vec::new();
    for dtype in types.into_iter().filter(|dtype| all || asked.contains(&dtype.as_str())) {
        let make = || -> Box<dyn Fn()> {
            if asked.contains(&"decoder") {
                Box::new(decoding(&folder, dtype, (height, width)))
            } else {
                Box::new(step(&config, &folder, dtype, (height, width)))
            }
        };
        steps.push((dtype.as_str().to_owned(), make()));
        if asked.contains(&"direct") {
            steps.push((format!("{} direct", dtype.as_str()), with_direct_convolutions(make)));
        }
    }
    let mut costs = vec![Vec::new(); steps.len()];
    for _ in 0..ROUNDS {
        for ((_, step), costs) in steps.iter().zip(&mut costs) {
            let (start, before, faults) = (Instant::now(), processor_seconds(), page_faults());
            step();
            costs.push((processor_seconds() - before, start.elapsed().as_secs_f64(), page_faults() - faults));
        }
    }
    println!("{model}, latents {height}x{width}, one row, {} threads", std::thread::available_parallelism().unwrap());
    let median = |costs: &mut Vec<(f64, f64, u64)>| {
        costs.sort_by(|a, b| a.0.total_cmp(&b.0));
        costs[costs.len() / 2]
    };
    let medians: Vec<_> = costs.iter_mut().map(median).collect();
    for ((name, _), (processor, wall, faults)) in steps.iter().zip(&medians) {
        let (first, ratio) = (&steps[0].0, medians[0].0 / processor);
        println!("{name:<11} {processor:>8.2} processor s {wall:>8.2} s  {ratio:>5.2}x {first}, {faults} fresh pages");
    }
}

/// A step of the network with weights of this type.
fn step(config: &UNetConfig, folder: &Path, dtype: DType, (height, width): (usize, usize)) -> impl Fn() {
    let source = Arc::new(listing::Listing::new(listing::read(&folder.join("unet.keys"))));
    let unet = UNet::new(config, &Tensors::new(source, dtype, &Device::Cpu)).unwrap();
    let noise = |shape: &[usize]| Tensor::randn(0_f32, 1.0, shape, &Device::Cpu).unwrap();
    let latents = noise(&[1, config.in_channels, height, width]);
    let states = noise(&[1, 77, config.context_channels().unwrap()]);
    move || {
        let context = Context { states: &states, added: None, guidance: None };
        let condition = unet.condition(&context, &Adapters::default()).unwrap();
        unet.forward(&latents, &[500.0], &condition, &Hooks::default()).unwrap();
    }
}

/// The decoding of a picture by the model's autoencoder with weights of this type.
fn decoding(folder: &Path, dtype: DType, (height, width): (usize, usize)) -> impl Fn() {
    let source = Arc::new(listing::Listing::new(listing::read(&folder.join("vae.keys"))));
    let json = std::fs::read_to_string(folder.join("vae.json")).unwrap();
    let config = AutoencoderKlConfig::from_json("vae.json", &json).unwrap();
    let vae = AutoencoderKl::new(&config, &Tensors::new(source, dtype, &Device::Cpu)).unwrap();
    let latents = Tensor::randn(0_f32, 1.0, (1, config.latent_channels, height, width), &Device::Cpu).unwrap();
    move || {
        vae.decode(&latents, None).unwrap();
    }
}

/// The processor seconds that this process has used.
fn processor_seconds() -> f64 {
    let of_task = |task: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let line = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        Some(line.split_whitespace().next()?.parse::<f64>().ok()? * 1e-9)
    };
    std::fs::read_dir("/proc/self/task").into_iter().flatten().filter_map(of_task).sum()
}

/// The pages that this process has been given so far; 0 where the system does not tell.
fn page_faults() -> u64 {
    let line = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold spaces, come the state, six numbers, and the faults.
    let fields = line.rsplit(')').next().unwrap_or_default();
    fields.split_whitespace().nth(7).and_then(|faults| faults.parse().ok()).unwrap_or(0)
}
