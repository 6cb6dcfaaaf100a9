"""Makes the golden files of models/tests/data/gguf: tiny random FLUX.1 and Stable Diffusion 3.5 pipelines whose transformers
and T5 are GGUF files in the layouts that people publish, and the pictures that the reference makes with them. It loads them
as its users do: diffusers through `from_single_file`, transformers through `gguf_file`. scripts/goldens.py calls this; alone it
writes into a folder:

    python scripts/goldens_gguf.py FOLDER [--random N] [--first I]   # N random configurations instead, for trying things out

diffusers reads a block's scale as f16 and multiplies in f16, so that each weight is rounded to 11 bits before it is cast to the
compute type, whatever that is (`dequantize_gguf_tensor` in quantizers/gguf/utils.py calls its functions without a type). ggml,
gguf-py and easel multiply in f32. The committed pictures are diffusers' with the same functions called for f32; how far the
rounding alone moves them is printed beside them. transformers reads T5's activation from no GGUF file and takes ReLU, where T5 1.1
and llama.cpp compute with GELU; so it is given the model's own configuration.
"""
import functools
import inspect
import json
import math
import random

import gguf
import numpy as np
import torch
from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig, SD3Transformer2DModel
from diffusers.loaders import single_file_model, single_file_utils
from diffusers.quantizers.gguf import utils as reference
from gguf import GGMLQuantizationType as Type
from PIL import Image
from transformers import T5Config, T5EncoderModel

import goldens_flux
import goldens_sd3
import single_files
from goldens_family import finish, run, write_pictures
from goldens_pictures import psnr

# What the rows of a matrix can be stored in, by their length.
SMALL = [Type.Q8_0, Type.Q4_0, Type.Q5_0, Type.Q4_1, Type.Q5_1, Type.IQ4_NL]
LARGE = [Type.Q4_K, Type.Q6_K, Type.Q5_K, Type.Q3_K, Type.Q2_K, Type.IQ4_XS]
# Where the f16 scales of a block are, and how much larger than the first one the second, of the minima, is for values around
# zero. gguf-py does not write these blocks, so they are drawn.
SCALES = {Type.Q2_K: (80, 82, 1.5), Type.Q3_K: (108, None, 0), Type.Q4_K: (0, 2, 7.5), Type.Q5_K: (0, 2, 15.5),
          Type.Q6_K: (208, None, 0), Type.IQ4_NL: (0, None, 0), Type.IQ4_XS: (0, None, 0)}


def drawn(name, shape, rng):
    """Values that all matter: norms are not the identity, biases not zero."""
    values = torch.randn(shape, generator=rng).numpy()
    if len(shape) >= 2 and not name.startswith("token_embd"):
        return values / math.sqrt(np.prod(shape[1:]))
    if len(shape) == 1:
        return 0.2 * values + (0 if name.endswith("bias") else 1)
    return values


def blocks(kind, shape, rng):
    """Random blocks, whose values have the spread of `drawn`."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    count = np.prod(shape) // values
    data = torch.randint(0, 256, (count, size), dtype=torch.uint8, generator=rng).numpy()
    first, second, ratio = SCALES[kind]

    def scale(value):
        data[:, first:first + 2] = value.astype(np.float16).view(np.uint8)
        if second is not None:
            data[:, second:second + 2] = (ratio * value).astype(np.float16).view(np.uint8)

    each = torch.rand((count, 1), generator=rng).numpy() + 0.5
    scale(np.ones((count, 1)))
    spread = gguf.dequantize(data, kind).std() * math.sqrt(np.prod(shape[1:]))
    scale(each / spread)
    return data.reshape(*shape[:-1], -1)


def write(file, architecture, shapes, seed, given=None, values=()):
    """Writes a file of tensors of these shapes, in as many types as there are."""
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for add, key, value in values:
        getattr(writer, f"add_{add}")(key, value)
    rng, turn = torch.Generator().manual_seed(seed), seed
    for name, shape in shapes.items():
        if given and name in given:
            writer.add_tensor(name, given[name].numpy().astype(np.float16))
            continue
        matrix = len(shape) == 2 and "norm" not in name and "attn_rel_b" not in name
        kinds = LARGE if shape[-1] % 256 == 0 else SMALL if shape[-1] % 32 == 0 else [Type.F16]
        kind = ([*kinds, Type.BF16] if kinds != [Type.F16] else kinds)[turn % (len(kinds) + (kinds != [Type.F16]))]
        if len(shape) == 1:
            writer.add_tensor(name, drawn(name, shape, rng).astype(np.float32))
        elif not matrix:
            writer.add_tensor(name, drawn(name, shape, rng).astype(np.float16))
        elif kind in SCALES:
            writer.add_tensor(name, blocks(kind, shape, rng), raw_dtype=kind)
        elif kind == Type.F16:
            writer.add_tensor(name, drawn(name, shape, rng).astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quantize(drawn(name, shape, rng).astype(np.float32), kind), raw_dtype=kind)
        turn += matrix
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def wide():
    """The reference's functions over blocks, in f32."""
    return {kind: functools.partial(function, dtype=torch.float32) for kind, function in reference.dequantize_functions.items()}


NARROW, WIDE = reference.dequantize_functions, wide()


def check_wide(file):
    """In f32, diffusers' functions give gguf-py's values."""
    for tensor in gguf.GGUFReader(file).tensors:
        if tensor.tensor_type in WIDE:
            found = reference.dequantize_gguf_tensor(
                reference.GGUFParameter(torch.from_numpy(tensor.data.copy()), quant_type=tensor.tensor_type)).numpy()
            wanted = gguf.dequantize(tensor.data, tensor.tensor_type)
            error = np.abs(found - wanted).max() / np.abs(wanted).max()
            assert error < 1e-6, (tensor.name, tensor.tensor_type, error)


def flux_conversion(width):
    """diffusers' conversion of FLUX's names, which splits fused matrices at 3072 rows, for another width."""
    name = "convert_flux_transformer_checkpoint_to_diffusers"
    source = inspect.getsource(getattr(single_file_utils, name))
    assert source.count("3072") == 1
    scope = dict(vars(single_file_utils))
    exec(source.replace("3072", str(width)), scope)
    return scope[name]


def transformer(model, file, folder):
    """The transformer of a GGUF file, as its users load it."""
    if model is FluxTransformer2DModel:
        config = json.loads((folder / "transformer" / "config.json").read_text())
        width = config["attention_head_dim"] * config["num_attention_heads"]
        single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]["checkpoint_mapping_fn"] = flux_conversion(width)
    return model.from_single_file(str(file), config=str(folder), subfolder="transformer", dtype=torch.float32,
                                  quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32))


T5_BLOCK = [("layer.0.SelfAttention.q", "attn_q"), ("layer.0.SelfAttention.k", "attn_k"), ("layer.0.SelfAttention.v", "attn_v"),
            ("layer.0.SelfAttention.o", "attn_o"), ("layer.0.SelfAttention.relative_attention_bias", "attn_rel_b"),
            ("layer.0.layer_norm", "attn_norm"), ("layer.1.DenseReluDense.wi_0", "ffn_gate"),
            ("layer.1.DenseReluDense.wi_1", "ffn_up"), ("layer.1.DenseReluDense.wo", "ffn_down"), ("layer.1.layer_norm", "ffn_norm")]


def t5_names(shapes):
    """llama.cpp's names of T5's tensors."""
    out = {}
    for key, shape in shapes.items():
        if key.startswith("encoder.block."):
            _, _, at, rest = key.split(".", 3)
            out[f"enc.blk.{at}.{single_files.replaced(rest, T5_BLOCK)}"] = shape
        elif key != "encoder.embed_tokens.weight":
            out[single_files.replaced(key, [("shared", "token_embd"), ("encoder.final_layer_norm", "enc.output_norm")])] = shape
    return out


def write_t5(file, encoder, seed):
    """T5's file, with what transformers reads its configuration from."""
    config = encoder.config
    number = lambda key, value: ("uint32", f"t5encoder.{key}", value)
    shapes = {key: tuple(value.shape) for key, value in encoder.state_dict().items()}
    write(file, "t5encoder", t5_names(shapes), seed, values=[
        ("string", "general.name", "t5-v1_1-tiny"), number("context_length", 512), number("vocab_size", config.vocab_size),
        number("embedding_length", config.d_model), number("feed_forward_length", config.d_ff),
        number("block_count", config.num_layers), number("attention.head_count", config.num_heads),
        number("attention.key_length", config.d_kv), number("attention.value_length", config.d_kv),
        ("float32", "t5encoder.attention.layer_norm_epsilon", config.layer_norm_epsilon),
        number("attention.relative_buckets_count", config.relative_attention_num_buckets)])


VAE = dict(block_out_channels=(4, 8, 8), norm_num_groups=2)
FLUX_T5 = dict(d_model=256, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
MODELS = {
    "flux": dict(
        seed=401, kind="draw", scheduler=goldens_flux.DEV, vae=VAE | dict(latent_channels=16), t5=FLUX_T5,
        transformer=dict(num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=4,
                         axes_dims_rope=(4, 6, 6), guidance_embeds=True),
        cases=[goldens_flux.case(size=(32, 32)), goldens_flux.case(goldens_flux.WORLD, (64, 40), seed=1, steps=6),
               goldens_flux.case("tree", (32, 48), seed=2, true_guidance=3.0, negative="blurry, text")]),
    "sd3": dict(
        seed=402, transformer=dict(num_layers=2, attention_head_dim=16, num_attention_heads=4, sample_size=8, pos_embed_max_size=12,
                                   joint_attention_dim=256, dual_attention_layers=(0,), qk_norm="rms_norm"),
        scheduler=dict(shift=3.0), vae=goldens_sd3.VAE | VAE, t5=None, half=True,
        clips=[dict(hidden_size=16, projection_dim=16, num_hidden_layers=2), dict(hidden_size=16, projection_dim=16,
                                                                                 num_hidden_layers=2)],
        cases=[goldens_sd3.case(size=(32, 32)), goldens_sd3.case(goldens_sd3.WORLD, (32, 48), seed=1, steps=6, negative="blurry"),
               goldens_sd3.case("tree", (48, 32), seed=2, steps=5, strength=0.7)]),
}


def quantise(folder, spec, pipe):
    """Puts GGUF files in the place of the safetensors files, and the reference's view of them into the pipeline."""
    flux = "kind" in spec
    model, layout = (FluxTransformer2DModel, single_files.flux) if flux else (SD3Transformer2DModel, single_files.sd3)
    shapes = {key: tuple(value.shape) for key, value in pipe.transformer.state_dict().items()}
    given = {} if flux else {"pos_embed": pipe.transformer.pos_embed.pos_embed}
    file = folder / "transformer" / ("flux1-tiny-Q4_K_S.gguf" if flux else "sd3.5_tiny-Q5_1.gguf")
    write(file, "flux" if flux else "sd3", layout(shapes, ""), spec["seed"] + 10, given)
    for weights in (folder / "transformer").glob("*.safetensors*"):
        weights.unlink()
    part = "text_encoder_2" if flux else "text_encoder_3"
    if spec.get("t5"):
        t5 = folder / part / "t5-v1_1-xxl-encoder-Q4_K_S.gguf"
        write_t5(t5, getattr(pipe, part), spec["seed"] + 20)
        (folder / part / "model.safetensors").unlink()
        config = T5Config.from_pretrained(folder / part)
        setattr(pipe, part, T5EncoderModel.from_pretrained(folder / part, gguf_file=t5.name, config=config, dtype=torch.float32).eval())
    reference.dequantize_functions = WIDE
    check_wide(file)
    pipe.transformer = transformer(model, file, folder)


def picture(pipe, what):
    """The case, its picture and its latents, (c, h, w)."""
    if isinstance(pipe.transformer, FluxTransformer2DModel):
        return goldens_flux.picture(pipe, what)
    image, latents = goldens_sd3.picture(pipe, what)
    return what, Image.fromarray(image), latents


def random_spec(seed):
    """A configuration that nobody chose; rows that no blocks fill stay in f16, as in published files."""
    r = random.Random(seed)
    gated = dict(feed_forward_proj="gated-gelu")
    if r.random() < 0.5:
        spec = goldens_flux.random_spec(seed)
        spec["t5"] |= gated | dict(d_model=r.choice([32, 64, 256]))
        axes = r.choice([(4, 6, 6), (8, 12, 12), (16, 56, 56)])
        spec["transformer"] |= dict(num_layers=r.randint(1, 2), num_single_layers=r.randint(1, 2), axes_dims_rope=axes,
                                    attention_head_dim=sum(axes), num_attention_heads=r.randint(1, 3))
        return spec
    spec = goldens_sd3.random_spec(seed)
    if spec["t5"]:
        spec["t5"] |= gated | dict(d_model=r.choice([96, 256]))
    # diffusers' conversion does not know the biases of the other normalisation.
    spec["transformer"] |= dict(attention_head_dim=r.choice([16, 32]), num_attention_heads=r.choice([1, 2, 4]),
                                qk_norm=r.choice([None, "rms_norm"]), in_channels=spec["vae"]["latent_channels"])
    # Both families' pictures share a folder, but not the mask.
    spec["cases"] = [what | dict(mask=False) for what in spec["cases"]]
    return spec


def generate(folder, models=MODELS):
    """Writes everything under `folder`."""
    cases, latents = [], {}
    for name, spec in models.items():
        pipe = (goldens_flux if "kind" in spec else goldens_sd3).make(folder / name, spec)
        quantise(folder / name, spec, pipe)
        rows = [picture(pipe, what) for what in spec["cases"]]
        reference.dequantize_functions = NARROW
        for at, (what, image, _) in enumerate(rows):
            rounded = np.asarray(picture(pipe, what)[1])
            print(f"  {name}-{at:02}.png: {psnr(np.asarray(image), rounded):.1f} dB with weights rounded to f16", flush=True)
        rows, finished = write_pictures(folder, name, rows)
        cases += rows
        latents |= finished
    finish(folder, cases, latents)


if __name__ == "__main__":
    run(__doc__, generate, random_spec)
