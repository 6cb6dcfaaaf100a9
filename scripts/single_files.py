"""Makes the golden files of models/tests/data/single_files: what diffusers makes of models that are kept in one file.

    pip install -r scripts/goldens-requirements.txt
    python scripts/single_files.py             # writes the files anew
    python scripts/single_files.py --check     # fails where a file is not what it should be

NAME.keys lists the tensors of a file in its own layout, as scripts/true_configs.py lists them. They are those of a
diffusers model, renamed and fused here; that diffusers' conversion gives the model's own keys back is what proves the names.
Full-size models (in the folder full) have lists alone. For the small ones, NAME.converted has a line for every tensor that
the conversion gives: the part, the key, the shape, and a digest of the values. The values that the conversion starts from
are made by the same rule here and in the test (`values`).
"""
import argparse
import json
import sys
from pathlib import Path

import torch

import true_configs
from true_configs import DATA as TRUE, build, listing, tensors
from diffusers.loaders import single_file_utils as reference

DATA = TRUE.parent / "single_files"
MASK = (1 << 64) - 1


def fnv(data):
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def values(key, shape):
    """Whole numbers below 2^16, which f32 holds."""
    start = fnv(key.encode()) & 0xFFFF
    count = torch.Size(shape).numel()
    return ((torch.arange(count) * 40503 + start) & 0xFFFF).float().reshape(shape)


def digest(tensor):
    """FNV-1a over the values in order, each as four bytes, the lowest first."""
    value = 0xCBF29CE484222325
    for number in tensor.flatten().long().tolist():
        value = (value ^ number) * 0x100000001B3 & MASK
    return f"{value:016x}"


# The layouts: each gives the stored name of a tensor, or a fused tensor and its place in it.

RESNET = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
          ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")]


def replaced(name, table):
    for old, new in table:
        if name == old or name.startswith(old + "."):
            return new + name[len(old):]
    return name


def ldm_unet(shapes, config):
    period = config["layers_per_block"] + 1
    out = {}
    for key, shape in shapes.items():
        words = key.split(".")
        if words[0] == "down_blocks":
            level, kind, at, rest = int(words[1]), words[2], int(words[3]), ".".join(words[4:])
            number = 1 + level * period + at
            name = {"resnets": f"input_blocks.{number}.0.{replaced(rest, RESNET)}",
                    "attentions": f"input_blocks.{number}.1.{rest}",
                    "downsamplers": f"input_blocks.{(level + 1) * period}.0.op.{words[-1]}"}[kind]
        elif words[0] == "up_blocks":
            level, kind, at, rest = int(words[1]), words[2], int(words[3]), ".".join(words[4:])
            number = level * period + at
            place = 2 if any(other.startswith(f"up_blocks.{level}.attentions.") for other in shapes) else 1
            name = {"resnets": f"output_blocks.{number}.0.{replaced(rest, RESNET)}",
                    "attentions": f"output_blocks.{number}.1.{rest}",
                    "upsamplers": f"output_blocks.{level * period + period - 1}.{place}.conv.{words[-1]}"}[kind]
        elif words[0] == "mid_block":
            at, rest = int(words[2]), ".".join(words[3:])
            name = f"middle_block.1.{rest}" if words[1] == "attentions" else f"middle_block.{2 * at}.{replaced(rest, RESNET)}"
        else:
            name = replaced(key, [("time_embedding.linear_1", "time_embed.0"), ("time_embedding.linear_2", "time_embed.2"),
                                  ("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"),
                                  ("conv_in", "input_blocks.0.0"), ("conv_norm_out", "out.0"), ("conv_out", "out.2")])
        out["model.diffusion_model." + name] = shape
    return out


def ldm_vae(shapes, prefix):
    levels = 1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("decoder.up_blocks."))
    out = {}
    for key, shape in shapes.items():
        half, _, rest = key.partition(".")
        words = rest.split(".")
        if words[0] in ("down_blocks", "up_blocks"):
            level = int(words[1]) if words[0] == "down_blocks" else levels - 1 - int(words[1])
            way = words[0].split("_")[0]
            tail = ".".join(words[4:]).replace("conv_shortcut", "nin_shortcut")
            inner = f"block.{words[3]}.{tail}" if words[2] == "resnets" else f"{way}sample.{tail}"
            rest = f"{way}.{level}.{inner}"
        elif words[:2] == ["mid_block", "resnets"]:
            rest = f"mid.block_{int(words[2]) + 1}." + ".".join(words[3:])
        elif words[:2] == ["mid_block", "attentions"]:
            rest = "mid.attn_1." + replaced(".".join(words[3:]), [
                ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")])
            shape = (*shape, 1, 1) if len(shape) == 2 else shape
        else:
            rest = replaced(rest, [("conv_norm_out", "norm_out")])
        out[f"{prefix}{half}.{rest}"] = shape
    return out


def fused(out, name, shape, parts):
    """A tensor whose rows are those of several."""
    rows, *rest = shape
    out[name] = (parts * rows, *rest)


def open_clip(shapes, prefix, last=False):
    out = {}
    for key, shape in shapes.items():
        words = key.split(".")
        if words[1] == "encoder":
            at, rest = words[3], ".".join(words[4:])
            if rest.startswith("self_attn.q_proj."):
                fused(out, f"{prefix}transformer.resblocks.{at}.attn.in_proj_{words[-1]}", shape, 3)
            elif not rest.startswith(("self_attn.k_proj.", "self_attn.v_proj.")):
                rest = replaced(rest, [("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
                                       ("mlp.fc2", "mlp.c_proj"), ("self_attn.out_proj", "attn.out_proj")])
                out[f"{prefix}transformer.resblocks.{at}.{rest}"] = shape
        else:
            name = replaced(key, [("text_model.embeddings.token_embedding", "token_embedding"),
                                  ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
                                  ("text_model.final_layer_norm", "ln_final"), ("text_projection.weight", "text_projection")])
            out[prefix + name] = tuple(reversed(shape)) if name == "text_projection" else shape
    width = out[f"{prefix}ln_final.weight"][0]
    out.setdefault(f"{prefix}text_projection", (width, width))
    out[f"{prefix}logit_scale"] = ()
    if last:
        # Stable Diffusion 2 has the layer that it leaves out.
        layers = {key for key in out if ".resblocks.0." in key}
        count = len({key.split(".resblocks.")[1].split(".")[0] for key in out if ".resblocks." in key})
        for key in layers:
            out[key.replace(".resblocks.0.", f".resblocks.{count}.")] = out[key]
    return out


def prefixed(shapes, prefix):
    return {prefix + key: shape for key, shape in shapes.items()}


def sd3(shapes, prefix):
    last = max(int(key.split(".")[1]) for key in shapes if key.startswith("transformer_blocks."))
    out = {}
    for key, shape in shapes.items():
        if key.startswith("transformer_blocks."):
            _, at, rest = key.split(".", 2)
            end = rest.rsplit(".", 1)[-1]
            at = f"{prefix}joint_blocks.{at}"
            if rest.startswith(("attn.to_q.", "attn2.to_q.")):
                fused(out, f"{at}.x_block.{rest.split('.')[0]}.qkv.{end}", shape, 3)
            elif rest.startswith("attn.add_q_proj."):
                fused(out, f"{at}.context_block.attn.qkv.{end}", shape, 3)
            elif not rest.startswith(("attn.to_k.", "attn.to_v.", "attn2.to_k.", "attn2.to_v.", "attn.add_k_", "attn.add_v_")):
                out[f"{at}." + replaced(rest, [
                    ("attn.norm_q", "x_block.attn.ln_q"), ("attn.norm_k", "x_block.attn.ln_k"),
                    ("attn.norm_added_q", "context_block.attn.ln_q"), ("attn.norm_added_k", "context_block.attn.ln_k"),
                    ("attn2.norm_q", "x_block.attn2.ln_q"), ("attn2.norm_k", "x_block.attn2.ln_k"),
                    ("attn.to_out.0", "x_block.attn.proj"), ("attn.to_add_out", "context_block.attn.proj"),
                    ("attn2.to_out.0", "x_block.attn2.proj"), ("norm1.linear", "x_block.adaLN_modulation.1"),
                    ("norm1_context.linear", "context_block.adaLN_modulation.1"),
                    ("ff.net.0.proj", "x_block.mlp.fc1"), ("ff.net.2", "x_block.mlp.fc2"),
                    ("ff_context.net.0.proj", "context_block.mlp.fc1"), ("ff_context.net.2", "context_block.mlp.fc2")])] = shape
        else:
            out[prefix + replaced(key, [
                ("pos_embed.pos_embed", "pos_embed"), ("pos_embed.proj", "x_embedder.proj"),
                ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
                ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
                ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
                ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
                ("norm_out.linear", "final_layer.adaLN_modulation.1"), ("proj_out", "final_layer.linear")])] = shape
    assert f"{prefix}joint_blocks.{last}.context_block.adaLN_modulation.1.weight" in out
    return out


def flux(shapes, prefix):
    out = {}
    for key, shape in shapes.items():
        if key.startswith("transformer_blocks."):
            _, at, rest = key.split(".", 2)
            end = rest.rsplit(".", 1)[-1]
            at = f"{prefix}double_blocks.{at}"
            if rest.startswith("attn.to_q."):
                fused(out, f"{at}.img_attn.qkv.{end}", shape, 3)
            elif rest.startswith("attn.add_q_proj."):
                fused(out, f"{at}.txt_attn.qkv.{end}", shape, 3)
            elif not rest.startswith(("attn.to_k.", "attn.to_v.", "attn.add_k_", "attn.add_v_")):
                out[f"{at}." + replaced(rest, [
                    ("norm1.linear", "img_mod.lin"), ("norm1_context.linear", "txt_mod.lin"),
                    ("attn.norm_q.weight", "img_attn.norm.query_norm.scale"), ("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
                    ("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
                    ("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
                    ("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj"),
                    ("ff.net.0.proj", "img_mlp.0"), ("ff.net.2", "img_mlp.2"), ("ff.linear_in", "img_mlp.0"), ("ff.linear_out", "img_mlp.2"),
                    ("ff_context.net.0.proj", "txt_mlp.0"), ("ff_context.net.2", "txt_mlp.2"),
                    ("ff_context.linear_in", "txt_mlp.0"), ("ff_context.linear_out", "txt_mlp.2")])] = shape
        elif key.startswith("single_transformer_blocks."):
            _, at, rest = key.split(".", 2)
            end = rest.rsplit(".", 1)[-1]
            at = f"{prefix}single_blocks.{at}"
            if rest.startswith("attn.to_q."):
                mlp = shapes[key.replace("attn.to_q", "proj_mlp")][0]
                out[f"{at}.linear1.{end}"] = (3 * shape[0] + mlp, *shape[1:])
            elif not rest.startswith(("attn.to_k.", "attn.to_v.", "proj_mlp.")):
                out[f"{at}." + replaced(rest, [
                    ("norm.linear", "modulation.lin"), ("attn.norm_q.weight", "norm.query_norm.scale"),
                    ("attn.norm_k.weight", "norm.key_norm.scale"), ("proj_out", "linear2"),
                    ("attn.to_qkv_mlp_proj", "linear1"), ("attn.to_out", "linear2")])] = shape
        else:
            out[prefix + replaced(key, [
                ("x_embedder", "img_in"), ("context_embedder", "txt_in"),
                *((f"{embed}.{ours}_embedder.linear_{at}", f"{theirs}_in.{'in' if at == 1 else 'out'}_layer")
                  for embed in ("time_text_embed", "time_guidance_embed")
                  for ours, theirs in [("timestep", "time"), ("text", "vector"), ("guidance", "guidance")] for at in (1, 2)),
                *((f"{name}.linear", f"{name}.lin") for name in
                  ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")),
                ("norm_out.linear", "final_layer.adaLN_modulation.1"), ("proj_out", "final_layer.linear")])] = shape
    return out


def z_image(shapes, prefix):
    out = {}
    for key, shape in shapes.items():
        key = key.replace("all_x_embedder.2-1.", "x_embedder.").replace("all_final_layer.2-1.", "final_layer.")
        if ".attention.to_q." in key:
            fused(out, prefix + key.replace(".attention.to_q.", ".attention.qkv."), shape, 3)
        elif ".attention.to_k." not in key and ".attention.to_v." not in key:
            out[prefix + key.replace(".attention.to_out.0.", ".attention.out.").replace(".norm_q.", ".q_norm.")
                .replace(".norm_k.", ".k_norm.")] = shape
    return out


class Text:
    """What the reference's conversion asks of a text encoder."""

    def __init__(self, width):
        self.config = type("Config", (), {"hidden_size": width})


def convert(part, kind, stored, config):
    """What the reference makes of a part."""
    if kind == "ldm_unet":
        return reference.convert_ldm_unet_checkpoint(dict(stored), config)
    if kind == "ldm_vae":
        return reference.convert_ldm_vae_checkpoint(dict(stored), config)
    if kind == "clip":
        return reference.convert_ldm_clip_checkpoint(dict(stored), "text_encoders.clip_l.transformer.")
    if kind == "clip_g":
        return reference.convert_ldm_clip_checkpoint(dict(stored), "text_encoders.clip_g.transformer.")
    if kind.startswith("open_clip "):
        return reference.convert_open_clip_checkpoint(Text(config["hidden_size"]), dict(stored), prefix=kind.split(" ")[1])
    if kind == "t5":
        return reference.convert_sd3_t5_checkpoint_to_diffusers(dict(stored))
    if kind in OWN:
        # The reference does not know these in one file.
        wanted = tensors(build(config))
        return {key: value.reshape(wanted[key]) for key, value in zip(wanted, stored.values(), strict=True)}
    strip = {key.removeprefix("model.diffusion_model."): value for key, value in stored.items()}
    return {"sd3": reference.convert_sd3_transformer_checkpoint_to_diffusers,
            "flux": reference.convert_flux_transformer_checkpoint_to_diffusers,
            "flux2": reference.convert_flux2_transformer_checkpoint_to_diffusers,
            "z_image": reference.convert_z_image_transformer_checkpoint_to_diffusers}[kind](strip)


OPEN_G, OPEN_R, OPEN_H = ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.", "cond_stage_model.model.")
OWN = ("qwen3", "flux2_vae")
PREFIX = {"qwen3": "text_encoders.qwen3_4b.transformer.", "clip": "text_encoders.clip_l.transformer.", "clip_g": "text_encoders.clip_g.transformer.",
          "t5": "text_encoders.t5xxl.transformer."}


def stored(kind, shapes, config, prefix):
    """The tensors of a part as the file has them."""
    if kind == "ldm_unet":
        return ldm_unet(shapes, config)
    if kind == "ldm_vae":
        return ldm_vae(shapes, prefix)
    if kind == "flux2_vae":
        moved = {"quant_conv": "encoder.quant_conv", "post_quant_conv": "decoder.post_quant_conv"}
        names = ldm_vae(shapes, "")
        return {prefix + replaced(key.removesuffix("."), moved.items()): shape for key, shape in names.items()}
    if kind.startswith("open_clip "):
        return open_clip(shapes, prefix, last=prefix == OPEN_H)
    layout = {"sd3": sd3, "flux": flux, "flux2": flux, "z_image": z_image}.get(kind, prefixed)
    return layout(shapes, prefix)


def clip_config(width, layers, projection, act="quick_gelu"):
    return {"architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"], "hidden_size": width,
            "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 1, "projection_dim": projection or width,
            "vocab_size": 12, "max_position_embeddings": 6, "hidden_act": act}


def unet_config(**keys):
    return {"_class_name": "UNet2DConditionModel", "block_out_channels": [8, 16], "layers_per_block": 2, "norm_num_groups": 4,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "cross_attention_dim": 8, "attention_head_dim": 2, **keys}


def vae_config(**keys):
    return {"_class_name": "AutoencoderKL", "block_out_channels": [4, 8, 8], "layers_per_block": 1, "norm_num_groups": 4,
            "down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3, **keys}


T5 = {"architectures": ["T5EncoderModel"], "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 2, "num_heads": 2, "vocab_size": 10,
      "feed_forward_proj": "gated-gelu"}
SDXL_UNET = unet_config(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
                        transformer_layers_per_block=[1, 3], use_linear_projection=True, cross_attention_dim=20,
                        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=36)
SIXTEEN = vae_config(latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
SD3 = {"_class_name": "SD3Transformer2DModel", "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 4, "joint_attention_dim": 10,
       "caption_projection_dim": 8, "pooled_projection_dim": 6, "pos_embed_max_size": 4, "sample_size": 8, "in_channels": 16, "out_channels": 16}
# The reference splits FLUX's fused matrices at 3072 rows, whatever their size, so only what is not split is small.
FLUX = {"_class_name": "FluxTransformer2DModel", "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 3, "pooled_projection_dim": 2, "in_channels": 4}

QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6, "vocab_size": 10, "tie_word_embeddings": True}
KLEIN = {"_class_name": "Flux2Transformer2DModel", "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2,
         "attention_head_dim": 8, "axes_dims_rope": [2, 2, 2, 2], "in_channels": 12, "joint_attention_dim": 24,
         "timestep_guidance_channels": 6, "guidance_embeds": False}
KLEIN_VAE = {**vae_config(latent_channels=3), "_class_name": "AutoencoderKLFlux2"}
Z_IMAGE = {"_class_name": "ZImageTransformer2DModel", "dim": 16, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
           "cap_feat_dim": 8, "axes_dims": [2, 2, 4], "axes_lens": [16, 8, 8]}

SMALL = {
    "sd1": [("unet", "ldm_unet", unet_config(), ""), ("vae", "ldm_vae", vae_config(), "first_stage_model."),
            ("text_encoder", "clip", clip_config(8, 2, 0), "cond_stage_model.transformer.")],
    "sd1-inpainting": [("unet", "ldm_unet", unet_config(in_channels=9, layers_per_block=1), ""),
                       ("vae", "ldm_vae", vae_config(), "first_stage_model."),
                       ("text_encoder", "clip", clip_config(8, 2, 0), "cond_stage_model.transformer.")],
    "sd2": [("unet", "ldm_unet", unet_config(use_linear_projection=True), ""), ("vae", "ldm_vae", vae_config(), "first_stage_model."),
            ("text_encoder", "open_clip " + OPEN_H, clip_config(8, 23, 0, "gelu"), OPEN_H)],
    "sdxl": [("unet", "ldm_unet", SDXL_UNET, ""), ("vae", "ldm_vae", vae_config(), "first_stage_model."),
             ("text_encoder", "clip", clip_config(8, 2, 0), "conditioner.embedders.0.transformer."),
             ("text_encoder_2", "open_clip " + OPEN_G, clip_config(12, 2, 12, "gelu"), OPEN_G)],
    "sdxl-refiner": [("unet", "ldm_unet", {**SDXL_UNET, "cross_attention_dim": 12}, ""), ("vae", "ldm_vae", vae_config(), "first_stage_model."),
                     ("text_encoder_2", "open_clip " + OPEN_R, clip_config(12, 2, 12, "gelu"), OPEN_R)],
    "sd3": [("transformer", "sd3", {**SD3, "dual_attention_layers": [0, 1], "qk_norm": "rms_norm"}, "model.diffusion_model."),
            ("vae", "ldm_vae", SIXTEEN, "first_stage_model."),
            ("text_encoder", "clip", clip_config(8, 2, 8), PREFIX["clip"]), ("text_encoder_2", "clip_g", clip_config(12, 2, 12, "gelu"), PREFIX["clip_g"]),
            ("text_encoder_3", "t5", T5, PREFIX["t5"])],
    "flux": [("transformer", "flux", {**FLUX, "guidance_embeds": True}, "model.diffusion_model."), ("vae", "ldm_vae", SIXTEEN, "vae."),
             ("text_encoder", "clip", clip_config(8, 2, 0), PREFIX["clip"]), ("text_encoder_2", "t5", T5, PREFIX["t5"])],
    "klein": [("transformer", "flux2", KLEIN, "model.diffusion_model."), ("vae", "flux2_vae", KLEIN_VAE, "vae."),
              ("text_encoder", "qwen3", QWEN3, PREFIX["qwen3"])],
    "z-image": [("transformer", "z_image", Z_IMAGE, "model.diffusion_model."), ("vae", "ldm_vae", SIXTEEN, "vae."),
                ("text_encoder", "qwen3", QWEN3, PREFIX["qwen3"])],
}

U, V, L = ("ldm_unet", ""), ("ldm_vae", "first_stage_model."), ("clip", "cond_stage_model.transformer.")
FULL = {
    "sd1": [("sd15/unet", *U), ("sd15/vae", *V), ("sd15/text_encoder", *L)],
    "sd1-inpainting": [("sd15-inpainting/unet", *U), ("sd15/vae", *V), ("sd15/text_encoder", *L)],
    "sd2": [("sd21/unet", *U), ("sd15/vae", *V), ("sd21/text_encoder", "open_clip " + OPEN_H, OPEN_H)],
    "sdxl": [("sdxl/unet", *U), ("sdxl/vae", *V), ("sd15/text_encoder", "clip", "conditioner.embedders.0.transformer."),
             ("sdxl/text_encoder_2", "open_clip " + OPEN_G, OPEN_G)],
    "z-image-turbo": [("z-image-turbo/transformer", "z_image", "model.diffusion_model."), ("z-image-turbo/vae", "ldm_vae", "vae."),
                      ("z-image-turbo/text_encoder", "qwen3", PREFIX["qwen3"])],
    "flux2-klein-4b": [("flux2-klein-4b/transformer", "flux2", "model.diffusion_model."), ("flux2-klein-4b/vae", "flux2_vae", "vae."),
                       ("z-image-turbo/text_encoder", "qwen3", PREFIX["qwen3"])],
    **{name: [(f"{name}/transformer", "flux", "model.diffusion_model."), ("flux-schnell/vae", "ldm_vae", "vae."),
              ("sd15/text_encoder", "clip", PREFIX["clip"]), ("sd3-medium/text_encoder_3", "t5", PREFIX["t5"])]
       for name in ("flux-dev", "flux-schnell", "flux-fill")},
    **{name: [(f"{name}/transformer", "sd3", "model.diffusion_model."), ("sd3-medium/vae", *V),
              ("sd3-medium/text_encoder", "clip", PREFIX["clip"]), ("sd3-medium/text_encoder_2", "clip_g", PREFIX["clip_g"]),
              ("sd3-medium/text_encoder_3", "t5", PREFIX["t5"])] for name in ("sd3-medium", "sd35-medium", "sd35-large")},
    "sdxl-refiner": [("sdxl-refiner/unet", *U), ("sdxl/vae", *V), ("sdxl/text_encoder_2", "open_clip " + OPEN_R, OPEN_R)],
}


def thinned(shapes, kind):
    """The shapes of a small model; FLUX's matrices keep their rows and have two columns."""
    if kind != "flux":
        return shapes
    return {key: (shape[0], min(shape[1], 2)) if len(shape) == 2 else shape for key, shape in shapes.items()}


def small(name):
    shapes, lines = {}, []
    for part, kind, config, prefix in SMALL[name]:
        wanted = thinned(tensors(build(config)), kind)
        mine = stored(kind, wanted, config, prefix)
        shapes.update(mine)
        made = convert(part, kind, {key: values(key, shape) for key, shape in mine.items()}, config)
        if part == "text_encoder" and name == "sd3":
            # The reference puts the identity there.
            made["text_projection.weight"] = torch.eye(config["hidden_size"])
        if part == "text_encoder" and name in ("sdxl", "sd2"):
            made.pop("text_projection.weight", None)
        found = {key: tuple(value.shape) for key, value in made.items()}
        assert found == wanted, (name, part, set(found.items()) ^ set(wanted.items()))
        lines += [f"{part} {key} {'x'.join(map(str, value.shape))} {digest(value)}" for key, value in made.items()]
    return listing(shapes), "\n".join(sorted(lines)) + "\n"


def full(name):
    shapes = {}
    for path, kind, prefix in FULL[name]:
        config = json.loads((TRUE / f"{path}.json").read_text())
        wanted = tensors(build(config))
        mine = stored(kind, wanted, config, prefix)
        made = convert(path, kind, {key: torch.empty(shape, device="meta") for key, shape in mine.items()}, config)
        if path == "sd3-medium/text_encoder":
            # The reference puts the identity there.
            mine.pop(PREFIX["clip"] + "text_projection.weight")
            made["text_projection.weight"] = torch.eye(config["hidden_size"])
        found = {key: tuple(value.shape) for key, value in made.items() if key != "text_projection.weight" or key in wanted}
        assert found == wanted, (name, path, set(found.items()) ^ set(wanted.items()))
        shapes.update(mine)
    return listing(shapes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    args = parser.parse_args()
    files = {DATA / "full" / f"{name}.keys": full(name) for name in FULL}
    for name in SMALL:
        files[DATA / f"{name}.keys"], files[DATA / f"{name}.converted"] = small(name)
    (DATA / "full").mkdir(parents=True, exist_ok=True)
    wrong = []
    for path, text in files.items():
        if not args.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            wrong.append(str(path.relative_to(DATA)))
    if wrong:
        sys.exit("these files are not what the reference gives: " + ", ".join(wrong))


if __name__ == "__main__":
    main()
