//! FLUX.2's transformer: text and picture in two streams, then in one, with the blocks' modulation in common.
//!
//! Black Forest Labs, "FLUX.2", 2025; the reference is `Flux2Transformer2DModel` of diffusers
//! (`models/transformers/transformer_flux2.py`).

use candle_core::{DType, Tensor};
use easel_kernels::{Linear, Replay, ada_layer_norm, silu, timestep_embedding};

use super::adapters::AdapterPoints;
use super::axes::Rotation;
use super::flux::FluxHooks;
use super::flux2_blocks::{DoubleBlock, SingleBlock, Step};
use super::flux2_config::Flux2Config;
use super::image_prompt::ImagePrompt;
use crate::weights::{Tensors, linear_no_bias};
use crate::{Error, Result};

/// The longest wavelength of the sinusoids, which no configuration names.
const MAX_PERIOD: f64 = 10_000.0;

/// How far apart pictures stand on the axis of their numbers; the one that is made stands at 0.
const BETWEEN_PICTURES: usize = 10;

/// Modulation of a double block's stream: shift, scale and gate, before attention and before the feed-forward layer.
const DOUBLE: usize = 6;

/// Modulation of a single block.
const SINGLE: usize = 3;

/// FLUX.2's transformer.
pub struct Flux2 {
    config: Flux2Config,
    time: TimeEmbedding,
    picture_modulation: Linear,
    text_modulation: Linear,
    single_modulation: Linear,
    picture_in: Linear,
    text_in: Linear,
    double: Vec<DoubleBlock>,
    single: Vec<SingleBlock>,
    last_modulation: Linear,
    out: Linear,
    points: AdapterPoints,
    replay: Replay,
}

/// What changes from call to call: the latents (b, c, h, w), the activated time embedding (b, width) and the text's tokens;
/// those of the pictures that are looked at; and the positions of all.
type Inputs = ((Tensor, Tensor, Tensor), Option<Tensor>, Rotation);

/// What does not depend on the step, for pictures of one size.
#[derive(Debug, Clone)]
pub struct Flux2Condition {
    /// The projected text, (1, l, width).
    text: Tensor,
    /// The projected tokens of the pictures that are looked at, (1, m, width).
    references: Option<Tensor>,
    /// The positions of text, picture and references.
    rotation: Rotation,
}

impl Flux2 {
    /// Builds the network; the weights have diffusers' names.
    ///
    /// # Errors
    /// Names the file and the key when a weight is missing or of another shape than the configuration asks for.
    pub fn new(config: &Flux2Config, weights: &Tensors) -> Result<Self> {
        let width = config.width();
        let mut points = AdapterPoints::default();
        let modulation = |name: &str, parts: usize| linear_no_bias(&weights.pp(name), width, parts * width);
        let (double, single) = (weights.pp("transformer_blocks"), weights.pp("single_transformer_blocks"));
        Ok(Self {
            time: TimeEmbedding::new(&weights.pp("time_guidance_embed.timestep_embedder"), config)?,
            picture_modulation: modulation("double_stream_modulation_img.linear", DOUBLE)?,
            text_modulation: modulation("double_stream_modulation_txt.linear", DOUBLE)?,
            single_modulation: modulation("single_stream_modulation.linear", SINGLE)?,
            picture_in: linear_no_bias(&weights.pp("x_embedder"), config.in_channels, width)?,
            text_in: linear_no_bias(&weights.pp("context_embedder"), config.joint_attention_dim, width)?,
            double: (0..config.num_layers)
                .map(|at| DoubleBlock::new(&double.pp(at), config, &mut points))
                .collect::<Result<_>>()?,
            single: (0..config.num_single_layers)
                .map(|at| SingleBlock::new(&single.pp(at), config, &mut points))
                .collect::<Result<_>>()?,
            last_modulation: modulation("norm_out.linear", 2)?,
            out: linear_no_bias(&weights.pp("proj_out"), width, config.outputs())?,
            config: config.clone(),
            points,
            replay: Replay::default(),
        })
    }

    /// The projections that adapters can hang on.
    pub fn adapter_points(&self) -> &AdapterPoints {
        &self.points
    }

    /// Projects the text and the pictures that are looked at, for latents of `height` by `width` pixels; once a picture.
    ///
    /// `states` is (1, l, `joint_attention_dim`), each of the references (1, c, h, w).
    ///
    /// # Errors
    /// When a tensor operation fails.
    pub fn condition(
        &self,
        states: &Tensor,
        references: &[Tensor],
        (height, width): (usize, usize),
    ) -> Result<Flux2Condition> {
        let grid = |picture: usize, height: usize, width: usize| {
            (0..height).flat_map(move |row| (0..width).map(move |column| [picture, row, column, 0]))
        };
        let mut places: Vec<[usize; 4]> = (0..states.dim(1)?).map(|place| [0, 0, 0, place]).collect();
        places.extend(grid(0, height, width));
        let mut tokens = Vec::with_capacity(references.len());
        for (at, reference) in references.iter().enumerate() {
            let (_, _, h, w) = reference.dims4()?;
            places.extend(grid(BETWEEN_PICTURES * (at + 1), h, w));
            tokens.push(pack(reference)?);
        }
        let references = match tokens.as_slice() {
            [] => None,
            tokens => {
                let tokens = Tensor::cat(tokens, 1)?.to_dtype(states.dtype())?;
                Some(self.picture_in.forward(&tokens)?) // (1, m, width)
            }
        };
        Ok(Flux2Condition {
            text: self.text_in.forward(states)?,
            references,
            rotation: self.config.axes().rotation(&places, states.device())?,
        })
    }

    /// Predicts the velocity of each row.
    ///
    /// `latents` is (b, c, h, w), `timesteps` has one a row in 0..=1000; the conditions are one a row, made for this size
    /// and of equally many tokens. Gives (b, c, h, w).
    ///
    /// # Errors
    /// When the conditions do not fit, or a tensor operation fails.
    pub fn forward(
        &self,
        latents: &Tensor,
        timesteps: &[f64],
        conditions: &[&Flux2Condition],
        hooks: &FluxHooks,
    ) -> Result<Tensor> {
        let b = latents.dim(0)?;
        hooks.pictures.check(b, self.double.len(), ImagePrompt::places)?;
        let ([first, ..], true) = (conditions, conditions.len() == b && timesteps.len() == b) else {
            let found = conditions.len();
            let message = format!("{b} rows of latents need as many timesteps and conditions; {found} are there");
            return Err(Error::Unsupported(message));
        };
        let stack = |part: &dyn Fn(&Flux2Condition) -> Option<Tensor>| -> Result<Option<Tensor>> {
            let parts: Vec<Tensor> = conditions.iter().filter_map(|condition| part(condition)).collect();
            if parts.is_empty() { Ok(None) } else { Ok(Some(Tensor::cat(&parts, 0)?)) }
        };
        let dtype = first.text.dtype();
        let time = silu(&self.time.forward(timesteps, latents)?)?.to_dtype(dtype)?; // (b, width)
        let texts = conditions.iter().map(|condition| &condition.text).collect::<Vec<_>>();
        let text = Tensor::cat(&texts, 0)?; // (b, l, width)
        let references = stack(&|condition| condition.references.clone())?; // (b, m, width)
        let inputs = ((latents.clone(), time, text), references, first.rotation.clone());
        match hooks.is_empty() {
            true => self.replay.call(&inputs, |inputs| self.predict(inputs, &FluxHooks::default())),
            false => self.predict(&inputs, hooks),
        }
    }

    /// The network behind its time embedding.
    fn predict(&self, inputs: &Inputs, hooks: &FluxHooks) -> Result<Tensor> {
        let ((latents, time, text), references, rotation) = inputs;
        let FluxHooks { residuals, pictures, adapters } = hooks;
        let (b, _, h, w) = latents.dims4()?;
        let mut picture = self.picture_in.forward(&pack(latents)?.to_dtype(text.dtype())?)?; // (b, n, width)
        if let Some(references) = references {
            picture = Tensor::cat(&[&picture, references], 1)?; // (b, n + m, width)
        }
        let mut text = text.clone();

        let step = Step { rotation, pictures, adapters };
        let picture_by = parts(&self.picture_modulation.forward(time)?, DOUBLE)?;
        let text_by = parts(&self.text_modulation.forward(time)?, DOUBLE)?;
        for (at, block) in self.double.iter().enumerate() {
            (picture, text) = block.forward(&picture, &text, [&picture_by, &text_by], at, &step)?;
            picture = residuals.after_double(picture, at, self.double.len())?;
        }

        let length = text.dim(1)?;
        let mut all = Tensor::cat(&[text, picture], 1)?; // (b, l + n + m, width)
        let by = parts(&self.single_modulation.forward(time)?, SINGLE)?;
        for (at, block) in self.single.iter().enumerate() {
            all = residuals.after_single(block.forward(&all, &by, &step)?, length, at, self.single.len())?;
        }

        let picture = all.narrow(1, length, h * w)?.contiguous()?; // (b, n, width)
        let by = parts(&self.last_modulation.forward(time)?, 2)?;
        let [scale, shift] = by.as_slice() else { return Err(Error::Unsupported("norm_out has two parts".to_owned())) };
        let tokens = self.out.forward(&ada_layer_norm(&picture, scale, shift, self.config.eps)?)?; // (b, n, c)
        let output = tokens.transpose(1, 2)?.contiguous()?.reshape((b, self.config.outputs(), h, w))?;
        Ok(output.to_dtype(latents.dtype())?)
    }
}

/// (b, c, h, w) to tokens (b, h·w, c).
fn pack(latents: &Tensor) -> Result<Tensor> {
    Ok(latents.flatten_from(2)?.transpose(1, 2)?.contiguous()?)
}

/// (b, count·c) to as many of (b, c).
fn parts(modulation: &Tensor, count: usize) -> Result<Vec<Tensor>> {
    modulation.chunk(count, 1)?.iter().map(|part| Ok(part.contiguous()?)).collect()
}

/// Sinusoids and two linear layers, in f32 whatever the network's type: few values that every block depends on.
struct TimeEmbedding {
    first: Linear,
    second: Linear,
    sinusoids: usize,
}

impl TimeEmbedding {
    fn new(weights: &Tensors, config: &Flux2Config) -> Result<Self> {
        let (weights, width) = (weights.to_dtype(DType::F32), config.width());
        let sinusoids = config.timestep_guidance_channels;
        Ok(Self {
            first: linear_no_bias(&weights.pp("linear_1"), sinusoids, width)?,
            second: linear_no_bias(&weights.pp("linear_2"), width, width)?,
            sinusoids,
        })
    }

    /// (b, width) in f32.
    fn forward(&self, timesteps: &[f64], like: &Tensor) -> Result<Tensor> {
        // diffusers divides by 1000 and multiplies again, in f32.
        let timesteps: Vec<f64> = timesteps.iter().map(|&t| f64::from(t as f32 / 1000.0 * 1000.0)).collect();
        let sinusoids = timestep_embedding(&timesteps, self.sinusoids, true, 0.0, MAX_PERIOD, like.device())?;
        Ok(self.second.forward(&silu(&self.first.forward(&sinusoids)?)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::denoisers::FluxResiduals;
    use crate::denoisers::testing::{each_row_sees_its_own, image_prompt, noise, numbers, view, weights_for};

    const FILE: &str = "transformer/config.json";

    fn tiny() -> Flux2 {
        let json = r#"{"num_layers": 2, "num_single_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
            "axes_dims_rope": [2, 2, 2, 2], "in_channels": 3, "joint_attention_dim": 5, "timestep_guidance_channels": 8}"#;
        let config = Flux2Config::from_json(FILE, json).unwrap();
        let weights = weights_for(|weights| Flux2::new(&config, weights));
        Flux2::new(&config, &view(weights)).unwrap()
    }

    #[test]
    fn a_row_shares_a_call_with_others_and_nothing_else() {
        let (network, none) = (tiny(), FluxHooks::default());
        let condition =
            |seed: u32, looked_at: &[Tensor]| network.condition(&noise(&[1, 4, 5], seed), looked_at, (2, 3));
        let pictures = [noise(&[1, 3, 2, 2], 3), noise(&[1, 3, 1, 4], 4)];
        let (a, b) = (condition(1, &pictures).unwrap(), condition(2, &pictures).unwrap());
        let latents = noise(&[2, 3, 2, 3], 7);
        let both = network.forward(&latents, &[900.0, 20.5], &[&a, &b], &none).unwrap();
        let row = latents.narrow(0, 1, 1).unwrap();
        let alone = network.forward(&row, &[20.5], &[&b], &none).unwrap();
        assert_eq!(both.dims(), latents.dims());
        assert_eq!(numbers(&both.narrow(0, 1, 1).unwrap()), numbers(&alone));
        // What is looked at counts, and in which order.
        let [first, second] = pictures;
        let swapped = condition(2, &[second, first]).unwrap();
        assert_ne!(numbers(&network.forward(&row, &[20.5], &[&swapped], &none).unwrap()), numbers(&alone));
        let unseen = condition(2, &[]).unwrap();
        assert_ne!(numbers(&network.forward(&row, &[20.5], &[&unseen], &none).unwrap()), numbers(&alone));
    }

    #[test]
    fn each_row_looks_at_its_own_pictures() {
        let network = tiny();
        let rows: Vec<_> =
            (0..3).map(|row| network.condition(&noise(&[1, 4, 5], 10 + row), &[], (2, 3)).unwrap()).collect();
        each_row_sees_its_own(
            |seed, scale| image_prompt(2, 16, seed, scale),
            |first, count, pictures| {
                let latents = noise(&[3, 3, 2, 3], 7).narrow(0, first, count).unwrap();
                let conditions: Vec<_> = rows[first..first + count].iter().collect();
                let hooks = FluxHooks { pictures, ..FluxHooks::default() };
                network.forward(&latents, &vec![600.0; count], &conditions, &hooks)
            },
        );
    }

    #[test]
    fn a_controlnets_residuals_are_added_to_the_picture_behind_every_block() {
        let (network, latents) = (tiny(), noise(&[1, 3, 2, 3], 7));
        let condition = network.condition(&noise(&[1, 4, 5], 10), &[], (2, 3)).unwrap();
        let draw = |double: &[&Tensor], single: &[&Tensor]| {
            let [double, single] = [double, single].map(|all| all.iter().copied().cloned().collect());
            let residuals = FluxResiduals { double, single, repeat: false };
            let hooks = FluxHooks { residuals, ..FluxHooks::default() };
            numbers(&network.forward(&latents, &[600.0], &[&condition], &hooks).unwrap())
        };
        let (residual, plain) = (noise(&[1, 6, 16], 3), draw(&[], &[]));
        let zeros = residual.zeros_like().unwrap();
        assert_eq!(draw(&[&zeros], &[&zeros]), plain);
        assert_ne!(draw(&[], &[&residual]), plain);
        // One for both blocks, for the first and for the second.
        let all = [&residual, &zeros].map(|last| draw(&[&residual, last], &[]));
        let second = draw(&[&zeros, &residual], &[]);
        assert_eq!(draw(&[&residual], &[]), all[0]);
        assert!(all[1] != plain && second != plain && all[1] != second && all[0] != all[1]);
    }

    #[test]
    fn what_is_not_supported_is_told_with_file_and_key() {
        let cases = [
            (r#"{"_class_name": "FluxTransformer2DModel"}"#, "_class_name is"),
            (r#"{"patch_size": 2}"#, "patch_size is 2"),
            (r#"{"axes_dims_rope": [16, 56, 56]}"#, "axes_dims_rope: [16, 56, 56] are not four even numbers"),
            (r#"{"num_attention_heads": 0}"#, "num_attention_heads: is 0"),
            (r#"{"mlp_ratio": 0}"#, "mlp_ratio: 0 is not above 0"),
            (r#"{"timestep_guidance_channels": 1}"#, "timestep_guidance_channels: is 1"),
        ];
        for (json, message) in cases {
            let error = Flux2Config::from_json(FILE, json).unwrap_err().to_string();
            assert!(error.starts_with(FILE) && error.contains(message), "{error}");
        }
    }
}
