//! Whole pictures: prompt in, pixels out, as diffusers makes them.

use std::sync::Arc;

use candle_core::Tensor;
use easel_models::families::{Placement, open};
use easel_models::samplers::SamplingSpec;
use easel_models::{InitImage, Pipeline, Prompt, RenderSpec, RgbImage, Trajectory};
use serde::Deserialize;

use crate::common::{Faults, data, json, relative_error, repository, tensors};

/// What the task asks for. Rounding alone leaves 80 dB and more; the latents are compared more strictly.
const PICTURE_PSNR: f64 = 45.0;

/// The pictures in `manifest.json` or `samplers_pictures.json`.
#[derive(Deserialize)]
struct Pictures {
    pictures: Vec<Picture>,
}

/// One whole picture and everything it depends on.
#[derive(Debug, Clone, Deserialize)]
struct Picture {
    file: String,
    model: String,
    prompt: String,
    negative: Option<String>,
    width: u32,
    height: u32,
    steps: usize,
    guidance: f64,
    guidance_rescale: f64,
    seed: u64,
    sampler: Option<String>,
    schedule: Option<String>,
    eta: Option<f64>,
    clip_skip: usize,
    init: Option<Init>,
    /// The relative error that the finished latents may have: what rounding may grow to on the way.
    latents_error: f64,
}

/// Where image-to-image starts.
#[derive(Debug, Clone, Deserialize)]
struct Init {
    file: String,
    strength: f64,
}

impl Picture {
    /// The row that makes this picture.
    fn begin(&self, pipeline: &dyn Pipeline) -> Trajectory {
        let positive = Prompt { clip_skip: self.clip_skip, ..Prompt::new(&self.prompt) };
        // diffusers leaves no layer out for the negative prompt.
        let negative = Prompt { text: self.negative.clone(), ..Prompt::default() };
        let encode = |prompt: &Prompt| Arc::new(pipeline.encode(prompt).unwrap());
        let init = self.init.as_ref();
        let init = init.map(|init| InitImage { image: picture("pictures", &init.file), strength: init.strength });
        let sampling = SamplingSpec {
            sampler: self.sampler.clone(),
            schedule: self.schedule.clone(),
            eta: self.eta,
            ..SamplingSpec::steps(self.steps)
        };
        let spec = RenderSpec {
            guidance: self.guidance,
            guidance_rescale: self.guidance_rescale,
            init,
            ..RenderSpec::new(self.width, self.height, self.seed, sampling)
        };
        let negative = pipeline.guided(&spec).then(|| encode(&negative));
        pipeline.begin(&spec, encode(&positive), negative).unwrap_or_else(|error| panic!("{}: {error}", self.file))
    }
}

/// A tiny pipeline, or the one inside the program.
fn pipeline(model: &str) -> Arc<dyn Pipeline> {
    open(&repository(model), &Placement::CPU, model).unwrap()
}

/// A picture that was stored as PNG.
fn picture(folder: &str, name: &str) -> RgbImage {
    let file = std::io::BufReader::new(std::fs::File::open(data(format_args!("{folder}/{name}"))).unwrap());
    let mut reader = png::Decoder::new(file).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.color_type, info.bit_depth), (png::ColorType::Rgb, png::BitDepth::Eight), "{name}");
    RgbImage::new(info.width, info.height, pixels).unwrap()
}

/// The peak signal-to-noise ratio of two pictures, in dB.
fn psnr(a: &RgbImage, b: &RgbImage) -> f64 {
    assert_eq!((a.width, a.height), (b.width, b.height));
    let squares: u64 = a.pixels.iter().zip(&b.pixels).map(|(&a, &b)| u64::from(a.abs_diff(b)).pow(2)).sum();
    10.0 * (255.0_f64.powi(2) * a.pixels.len() as f64 / squares as f64).log10()
}

/// Makes all pictures of a model in `manifest.json` and compares them with the reference's.
fn compare(model: &str) {
    compare_with(model, "manifest.json", "latents.safetensors", "pictures");
}

/// Makes all pictures of a model in this list, each alone, and compares them and the latents they are decoded from with
/// the reference's.
fn compare_with(model: &str, list: &str, latents: &str, folder: &str) {
    let pipeline = pipeline(model);
    let latents = tensors(latents);
    let mut faults = Faults::default();
    let Pictures { pictures } = json(list);
    for golden in pictures.iter().filter(|picture| picture.model == model) {
        let mut row = golden.begin(pipeline.as_ref());
        while !row.done() {
            pipeline.denoise(&mut [&mut row]).unwrap();
        }
        let Picture { file, latents_error, .. } = golden;
        faults.error(format_args!("{file} latents"), relative_error(row.latents(), &latents[file]), *latents_error);
        let made = pipeline.decode(&[row.latents().clone()]).unwrap();
        let psnr = psnr(&made[0], &picture(folder, file));
        let names = [&golden.sampler, &golden.schedule].map(|name| name.as_deref().unwrap_or("default"));
        println!("{file} ({}): PSNR {psnr:.1} dB", names.join(" "));
        faults.check(psnr >= PICTURE_PSNR, format_args!("{file}: PSNR {psnr:.1} dB\n  {golden:?}"));
    }
    faults.finish();
}

#[test]
fn the_pictures_of_stable_diffusion_1_5s_layout_are_diffusers() {
    compare("sd15");
}

#[test]
fn the_pictures_of_stable_diffusion_2_1s_layout_are_diffusers() {
    compare("sd21");
}

#[test]
fn the_pictures_of_a_wide_model_that_predicts_the_sample_are_diffusers() {
    compare("wide");
}

#[test]
fn the_pictures_of_a_deep_model_without_quant_convolutions_are_diffusers() {
    compare("deep");
}

#[test]
fn the_pictures_of_the_smallest_model_are_diffusers() {
    compare("small");
}

#[test]
fn the_pictures_of_the_built_in_model_are_diffusers() {
    compare("default");
}

/// Every sampler with every schedule that diffusers has for it.
#[test]
fn the_pictures_of_every_sampler_and_schedule_are_diffusers() {
    for model in ["sd15", "default"] {
        compare_with(model, "samplers_pictures.json", "samplers_pictures.safetensors", "samplers_pictures");
    }
}

/// The finished latents' bits of each row.
fn bits(rows: &[Trajectory]) -> Vec<Vec<u32>> {
    let bits = |latents: &Tensor| -> Vec<u32> {
        latents.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    rows.iter().map(|row| bits(row.latents())).collect()
}

#[test]
fn a_row_does_not_depend_on_its_neighbours() {
    for model in ["sd15", "sd21"] {
        let pipeline = pipeline(model);
        let Pictures { pictures } = json("manifest.json");
        // Other steps, samplers, guidance, prompts, seeds and beginnings; all of one latent shape.
        let together: Vec<Picture> =
            pictures.into_iter().filter(|golden| golden.model == model && golden.width == 64).take(8).collect();
        let run = |rows: &mut Vec<Trajectory>| {
            loop {
                let mut unfinished: Vec<&mut Trajectory> = rows.iter_mut().filter(|row| !row.done()).collect();
                if unfinished.is_empty() {
                    break;
                }
                pipeline.denoise(&mut unfinished).unwrap();
            }
            bits(rows)
        };
        let begin = |golden: &Picture| golden.begin(pipeline.as_ref());
        let company = run(&mut together.iter().map(begin).collect());
        for (golden, in_company) in together.iter().zip(company) {
            let alone = run(&mut vec![begin(golden)]);
            assert_eq!(alone[0], in_company, "{} differs in company", golden.file);
        }
    }
}
