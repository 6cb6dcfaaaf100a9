"""Makes the golden files of image prompts (IP-Adapter): what the denoisers of tiny random pipelines, which exist already,
predict with random adapters in their attentions. The scripts of the families call it; alone it writes into their folders:

    python scripts/goldens_image_prompts.py DATA
"""
import argparse
from pathlib import Path

import diffusers
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0, SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection, IPAdapterTimeImageProjection, MultiIPAdapterImageProjection
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from safetensors.torch import save_file

from goldens_family import strong

# Of two adapters: the embeddings' size, tokens of a picture, pictures, and how much they count in each place, by turns.
ADAPTERS = [dict(embed=10, tokens=4, pictures=2, scales=(0.7, 0.2)), dict(embed=6, tokens=3, pictures=1, scales=(0.4, -0.9))]


def randn(rng, *shape):
    """What f16 holds exactly."""
    return torch.randn(shape, generator=rng).half().float()


def save(tensors, file):
    """What f16 holds exactly as f16."""
    def pack(t):
        t = t.detach().contiguous().clone()
        return t.half() if t.dtype == torch.float32 and torch.equal(t.half().float(), t) else t
    save_file({k: pack(v) for k, v in tensors.items()}, file)


def projections(width, rng, out):
    """The adapters' projections of embeddings to tokens of this width, and embeddings for two rows."""
    layers = [strong(ImageProjection(a["embed"], width, a["tokens"]), at) for at, a in enumerate(ADAPTERS)]
    embeds = [randn(rng, 2, a["pictures"], a["embed"]) for a in ADAPTERS]
    for at, (layer, embed) in enumerate(zip(layers, embeds)):
        out |= {f"{at}.tokens.{name}": p for name, p in layer.state_dict().items()} | {f"{at}.embeds": embed}
    return MultiIPAdapterImageProjection(layers), embeds


def processor(kind, width, inputs, place, out):
    """Two adapters in one attention."""
    made = strong(kind(width, inputs, num_tokens=tuple(a["tokens"] for a in ADAPTERS)), 100 + place)
    made.scale = [a["scales"][place % 2] for a in ADAPTERS]
    for at in range(len(ADAPTERS)):
        out[f"{at}.{place}.scale"] = torch.tensor(made.scale[at])
        for name in ("to_k_ip", "to_v_ip"):
            out |= {f"{at}.{place}.{name}.{key}": p for key, p in getattr(made, name)[at].state_dict().items()}
    return made


@torch.no_grad()
def flux(folder, file):
    """FLUX.1's transformer with and without two adapters, and a ControlNet's residuals beside them."""
    model = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    rng, out = torch.Generator().manual_seed(11), {}
    config, (h, w), length = model.config, (4, 6), 5
    width, tokens, channels = config.num_attention_heads * config.attention_head_dim, h // 2 * (w // 2), config.in_channels // 4
    out |= dict(latents=randn(rng, 2, channels, h, w), states=randn(rng, 2, length, config.joint_attention_dim),
                pooled=randn(rng, 2, config.pooled_projection_dim), timesteps=torch.tensor([731.0625, 20.0]),
                guidance=torch.tensor([3.5, 1.25]), residual=randn(rng, 2, tokens, width))
    ids = FluxPipeline._prepare_latent_image_ids(2, h // 2, w // 2, "cpu", torch.float32)
    pack = FluxPipeline._pack_latents(out["latents"], 2, channels, h, w)

    def run(**more):
        velocity = model(pack, out["states"], out["pooled"], out["timesteps"] / 1000, ids, torch.zeros(length, 3),
                         guidance=out["guidance"], **more).sample
        return FluxPipeline._unpack_latents(velocity, h, w, 1)

    out["without"] = run()
    model.encoder_hid_proj, embeds = projections(config.joint_attention_dim, rng, out)
    # As the loader does it: only the blocks with two streams have adapters.
    double = [name for name in model.attn_processors if not name.startswith("single")]
    made = {name: processor(FluxIPAdapterAttnProcessor, width, config.joint_attention_dim, at, out)
            for at, name in enumerate(double)}
    model.set_attn_processor(model.attn_processors | made)
    out["with"] = run(joint_attention_kwargs=dict(ip_adapter_image_embeds=embeds))
    out["beside"] = run(joint_attention_kwargs=dict(ip_adapter_image_embeds=embeds),
                        controlnet_block_samples=[out["residual"]])
    save(out, file)


@torch.no_grad()
def sd3(folder, file, variant):
    """SD3's transformer with and without an adapter, and a ControlNet's residuals beside it."""
    model = SD3Transformer2DModel.from_pretrained(folder, torch_dtype=torch.float32, variant=variant)
    rng, out, config = torch.Generator().manual_seed(12), {}, model.config
    width, (h, w) = config.num_attention_heads * config.attention_head_dim, (6, 4)
    sizes = dict(embed_dim=9, hidden_dim=12, depth=2, heads=1, num_queries=3, timestep_in_dim=6)
    tokens = h * w // config.patch_size ** 2
    out |= dict(latents=randn(rng, 2, config.in_channels, h, w), states=randn(rng, 2, 5, config.joint_attention_dim),
                pooled=randn(rng, 2, config.pooled_projection_dim), timesteps=torch.tensor([731.0625, 20.0]),
                features=randn(rng, 2, 7, sizes["embed_dim"]), residual=randn(rng, 2, tokens, width),
                other=randn(rng, 2, tokens, width), sizes=torch.tensor(list(sizes.values())), scale=torch.tensor(0.625))
    run = lambda **more: model(out["latents"], out["states"], out["pooled"], out["timesteps"], **more).sample
    residuals = dict(block_controlnet_hidden_states=[out["residual"], out["other"]])
    out["without"], out["residuals"] = run(), run(**residuals)
    model.image_proj = strong(IPAdapterTimeImageProjection(output_dim=width, **sizes), 0)
    out |= {f"image_proj.{name}": p for name, p in model.image_proj.state_dict().items()}
    made = {}
    for at, name in enumerate(model.attn_processors):
        joint = SD3IPAdapterJointAttnProcessor2_0(width, width, config.attention_head_dim, sizes["hidden_dim"],
                                                  scale=out["scale"].item())
        made[name] = strong(joint, 100 + at)
        out |= {f"ip_adapter.{at}.{key}": p for key, p in made[name].state_dict().items()}
    model.set_attn_processor(made)
    prompt = dict(joint_attention_kwargs=dict(ip_adapter_image_embeds=out["features"]))
    out["with"], out["beside"] = run(**prompt), run(**prompt, **residuals)
    save(out, file)


@torch.no_grad()
def unet(folder, file):
    """A UNet with and without two adapters; the places are numbered on the way through: down, middle, up."""
    model = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    rng, out = torch.Generator().manual_seed(13), {}
    inputs = model.config.cross_attention_dim
    out |= dict(x=randn(rng, 2, model.config.in_channels, 8, 12), t=torch.tensor([731.0625, 20.0]),
                states=randn(rng, 2, 5, inputs))
    out["without"] = model(out["x"], out["t"], out["states"]).sample
    model.encoder_hid_proj, embeds = projections(inputs, rng, out)
    model.config.encoder_hid_dim_type = "ip_image_proj"
    cross = [name for name in model.attn_processors if ".attn2." in name]
    cross.sort(key=lambda name: ("down", "mid_", "up_b").index(name[:4]))
    made = {name: processor(IPAdapterAttnProcessor2_0, model.get_submodule(name.removesuffix(".processor")).inner_dim, inputs,
                            at, out) for at, name in enumerate(cross)}
    model.set_attn_processor(model.attn_processors | made)
    out["with"] = model(out["x"], out["t"], out["states"], added_cond_kwargs=dict(image_embeds=embeds)).sample
    save(out, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    flux(data / "flux/dev/transformer", data / "flux/image_prompts.safetensors")
    sd3(data / "sd3/sd3/transformer", data / "sd3/image_prompts_sd3.safetensors", None)
    sd3(data / "sd3/sd35/transformer", data / "sd3/image_prompts_sd35.safetensors", "fp16")
    unet(data / "pipelines/sd15/unet", data / "modules/image_prompts.safetensors")


if __name__ == "__main__":
    main()
