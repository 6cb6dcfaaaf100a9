//! Image prompts: the denoisers with adapters that `scripts/goldens_image_prompts.py` drew.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use easel_kernels::Linear;
use easel_models::denoisers::{
    Adapters, Context, Flux, FluxCondition, FluxConfig, FluxContext, FluxHooks, FluxResiduals, Hooks, ImageProjection,
    ImagePrompt, ImagePrompts, ImageTokens, Sd3, Sd3Condition, Sd3Config, Sd3Hooks, Sd3ImageAdapter,
    Sd3ImageAdapterConfig, Sd3ImagePrompt, UNet, UNetConfig,
};
use easel_models::weights::{MemorySource, Repository, Tensors};

use crate::common::{Faults, MODULE_ERROR, data, relative_error, tensors};

/// What the reference drew, and what it made of it.
struct Golden(HashMap<String, Tensor>);

impl Golden {
    fn read(file: &str) -> Self {
        Self(tensors(file))
    }

    fn get(&self, name: &str) -> Tensor {
        self.0[name].clone()
    }

    fn row(&self, name: &str, row: usize) -> Tensor {
        self.get(name).narrow(0, row, 1).unwrap()
    }

    fn numbers(&self, name: &str) -> Vec<f64> {
        self.get(name).flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
    }

    /// The tensors as a file's.
    fn weights(&self) -> Tensors {
        Tensors::new(Arc::new(MemorySource::new("golden", self.0.clone())), DType::F32, &Device::Cpu)
    }

    /// What a row looks at: both adapters' pictures.
    fn prompts(&self, row: usize) -> Vec<ImagePrompt> {
        let adapter = |at: usize| {
            let linear = |name: String| {
                let bias = self.0.get(&format!("{name}.bias")).cloned();
                Linear::new(self.get(&format!("{name}.weight")), bias).unwrap()
            };
            let places = (0..).take_while(|place| self.0.contains_key(&format!("{at}.{place}.scale")));
            let (layers, scales): (Vec<_>, Vec<_>) = places
                .map(|place| {
                    let [to_k, to_v] = ["to_k_ip", "to_v_ip"].map(|name| linear(format!("{at}.{place}.{name}")));
                    (ImageProjection { to_k, to_v }, self.numbers(&format!("{at}.{place}.scale"))[0])
                })
                .unzip();
            let embeddings = self.row(&format!("{at}.embeds"), row).squeeze(0).unwrap(); // (k, embed)
            let width = layers[0].to_k.in_features();
            let count = self.get(&format!("{at}.tokens.image_embeds.weight")).dim(0).unwrap() / width;
            let weights = self.weights().pp(at).pp("tokens");
            let tokens = ImageTokens::new(&weights, embeddings.dim(1).unwrap(), width, count).unwrap();
            ImagePrompt::new(&tokens.forward(&embeddings).unwrap(), &layers, &scales).unwrap()
        };
        vec![adapter(0), adapter(1)]
    }

    /// Compares `draw` with the reference's `with` and `without`: both rows with their pictures, none, and one of both.
    fn compare<P: Clone>(
        &self,
        what: &str,
        prompts: impl Fn(usize) -> Vec<P>,
        draw: impl Fn(ImagePrompts<P>) -> Tensor,
        faults: &mut Faults,
    ) {
        let cut = |all: &Tensor, row| all.narrow(0, row, 1).unwrap();
        let (with, without) = (self.get("with"), self.get("without"));
        assert!(relative_error(&with, &without) > 0.05, "{what}: the pictures count for next to nothing");
        for (mask, name) in ["neither", "the first", "the second", "both"].into_iter().enumerate() {
            let seen = |row: usize| mask & (1 << row) != 0;
            let rows = (0..2).map(|row| if seen(row) { prompts(row) } else { Vec::new() }).collect();
            let found = draw(ImagePrompts::by_row(rows));
            for row in 0..2 {
                let wanted = cut(if seen(row) { &with } else { &without }, row);
                let error = relative_error(&cut(&found, row), &wanted);
                faults.error(format_args!("{what}, {name} of two rows, row {row}"), error, MODULE_ERROR);
            }
        }
    }
}

#[test]
fn flux_looks_at_the_pictures_of_several_adapters_as_diffusers_does() {
    let (golden, mut faults) = (Golden::read("flux/image_prompts.safetensors"), Faults::default());
    let repository = Repository::folder(data("flux/dev")).unwrap();
    let config = FluxConfig::from_json("config.json", &repository.text("transformer/config.json").unwrap()).unwrap();
    let flux = Flux::new(&config, &repository.tensors("transformer", DType::F32, &Device::Cpu).unwrap()).unwrap();
    let rows: Vec<FluxCondition> = (0..2)
        .map(|row| {
            let (states, pooled) = (golden.row("states", row), golden.row("pooled", row));
            let (guidance, size) = (golden.numbers("guidance")[row], (4, 6));
            let context =
                FluxContext { states: &states, pooled: &pooled, guidance, size, channels: None, reference: None };
            flux.condition(&context, &Adapters::default()).unwrap()
        })
        .collect();
    let condition = FluxCondition::stack(&rows.iter().collect::<Vec<_>>()).unwrap();
    let draw = |hooks: &FluxHooks| {
        flux.forward(&golden.get("latents"), &golden.numbers("timesteps"), &condition, hooks).unwrap()
    };
    let prompts = |row| golden.prompts(row);
    golden.compare("flux", prompts, |pictures| draw(&FluxHooks { pictures, ..FluxHooks::default() }), &mut faults);
    let residuals = FluxResiduals { double: vec![golden.get("residual")], ..FluxResiduals::default() };
    let pictures = ImagePrompts::by_row(vec![prompts(0), prompts(1)]);
    let beside = draw(&FluxHooks { residuals, pictures, ..FluxHooks::default() });
    faults.error("beside a ControlNet", relative_error(&beside, &golden.get("beside")), MODULE_ERROR);
    faults.finish();
}

#[test]
fn stable_diffusion_3_looks_at_pictures_as_diffusers_does() {
    let mut faults = Faults::default();
    for model in ["sd3", "sd35"] {
        let golden = Golden::read(&format!("sd3/image_prompts_{model}.safetensors"));
        let repository = Repository::folder(data(format_args!("sd3/{model}"))).unwrap();
        let config = Sd3Config::from_json("config.json", &repository.text("transformer/config.json").unwrap()).unwrap();
        let weights = repository.tensors("transformer", DType::F32, &Device::Cpu).unwrap();
        let network = Sd3::new(&config, &weights).unwrap();
        let [features, width, layers, heads, tokens, sinusoids] = golden.get("sizes").to_vec1::<i64>().unwrap()[..]
        else {
            panic!("there are other sizes");
        };
        let [features, width, layers] = [features, width, layers].map(|size| size as usize);
        let [heads, tokens, sinusoids] = [heads, tokens, sinusoids].map(|size| size as usize);
        let sizes = Sd3ImageAdapterConfig { features, width, layers, heads, tokens, sinusoids };
        let adapter = Arc::new(Sd3ImageAdapter::new(&sizes, &config, &golden.weights()).unwrap());
        let scale = golden.numbers("scale")[0];
        let prompts =
            |row| vec![Sd3ImagePrompt::new(Arc::clone(&adapter), &golden.row("features", row), scale).unwrap()];
        let condition: Sd3Condition = network.condition(&golden.get("states"), &golden.get("pooled")).unwrap();
        let draw = |hooks: &Sd3Hooks| {
            network.forward(&golden.get("latents"), &golden.numbers("timesteps"), &condition, hooks).unwrap()
        };
        golden.compare(model, prompts, |pictures| draw(&Sd3Hooks { pictures, ..Sd3Hooks::default() }), &mut faults);
        let residuals = vec![golden.get("residual"), golden.get("other")];
        let alone = draw(&Sd3Hooks { residuals: residuals.clone(), ..Sd3Hooks::default() });
        let error = relative_error(&alone, &golden.get("residuals"));
        faults.error(format_args!("{model}, a ControlNet"), error, MODULE_ERROR);
        let pictures = ImagePrompts::by_row(vec![prompts(0), prompts(1)]);
        let beside = draw(&Sd3Hooks { residuals, pictures, ..Sd3Hooks::default() });
        let error = relative_error(&beside, &golden.get("beside"));
        faults.error(format_args!("{model}, beside a ControlNet"), error, MODULE_ERROR);
    }
    faults.finish();
}

#[test]
fn a_unet_looks_at_the_pictures_of_several_adapters_as_diffusers_does() {
    let (golden, mut faults) = (Golden::read("modules/image_prompts.safetensors"), Faults::default());
    let repository = Repository::folder(data("pipelines/sd15")).unwrap();
    let config = UNetConfig::from_json("config.json", &repository.text("unet/config.json").unwrap()).unwrap();
    let unet = UNet::new(&config, &repository.tensors("unet", DType::F32, &Device::Cpu).unwrap()).unwrap();
    let context = Context { states: &golden.get("states"), added: None, guidance: None };
    let condition = unet.condition(&context, &Adapters::default()).unwrap();
    let draw = |pictures| {
        let hooks = Hooks { pictures, ..Hooks::default() };
        unet.forward(&golden.get("x"), &golden.numbers("t"), &condition, &hooks).unwrap()
    };
    golden.compare("unet", |row| golden.prompts(row), draw, &mut faults);
    faults.finish();
}
