"""Chapter 05: models in the folder layout of Hugging Face's diffusers, read and written without that library.

A folder holds JSON texts and one safetensors file: in the subfolders unet and scheduler, as diffusers writes today,
or side by side, as in google/ddpm-cifar10-32, whose network has exactly the 35,746,307 weights of our `PAPER`.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from .checkpoint import Trained
from .diffusion import DDPM, cosine_betas, linear_betas
from .unet import UNet, UNetConfig

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

# What every UNet is, in the words of a UNet2DModel's config.json. For a key that is not there, diffusers takes ...
_MUST_SAY = {  # ... something else: other frequencies, cosines first, padding on all sides, several heads
    "norm_eps": 1e-6, "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "attention_head_dim": None,
}  # fmt: skip
_MAY_SAY = {  # ... the same
    "act_fn": "silu", "time_embedding_type": "positional", "time_embedding_dim": None, "center_input_sample": False,
    "resnet_time_scale_shift": "default", "mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 1,
    "add_attention": True, "attn_norm_num_groups": None, "downsample_type": "conv", "upsample_type": "conv",
    "class_embed_type": None, "num_class_embeds": None,
}  # fmt: skip

_PARTS = {"res": "resnets", "attention": "attentions"}
_LAYERS = {  # what a layer is called there, where it is not called the same
    "0": ["linear_1"], "2": ["linear_2"], "norm_out": ["conv_norm_out"], "emb_proj": ["time_emb_proj"],
    "shortcut": ["conv_shortcut"], "norm": ["group_norm"], "qkv": ["to_q", "to_k", "to_v"], "out": ["to_out.0"],
}  # fmt: skip
_OLD_LAYERS = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # until 2023


def load_diffusers(folder: str | Path, device: torch.device | str = "cpu") -> Trained:
    """The U-Net of a folder in diffusers' layout, in evaluation mode, with the DDPM of its noise schedule.

    It must be a UNet2DModel that predicts eps and is built like google/ddpm-cifar10-32; widths, levels, blocks and
    the size of its images may differ. class_names is empty. Raises FileNotFoundError for what is missing; ValueError
    for another architecture, a damaged file, or weights kept only as a pickle: it can hold code, and is never loaded.
    """
    folder = Path(folder)
    unet, scheduler = (folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler"))
    model = UNet(_read_config(unet / "config.json"))
    ddpm = _read_ddpm(scheduler / "scheduler_config.json")
    tensors = _read_tensors(unet / WEIGHTS_FILE)
    try:
        names = {ours: _their_names(ours, model.config) for ours in model.state_dict()}
        model.load_state_dict({ours: torch.cat([tensors.pop(name) for name in names[ours]]) for ours in names})
        if tensors:
            raise KeyError(*tensors)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{unet / WEIGHTS_FILE} does not fit the config.json beside it ({error}).") from error
    return Trained(model.eval().requires_grad_(False).to(device), ddpm, (), {"source": str(folder)})


def save_diffusers(trained: Trained, folder: str | Path, label: int | None = None) -> None:
    """Write a folder that diffusers' DDPMPipeline.from_pretrained loads. Files of the same names are replaced.

    label: that pipeline gives no labels, so a model with classes is written as what it is for one label, or for "no
    label" (None). The steps are those of sample_ddpm with posterior_variances: right for long and short chains.
    Raises ValueError for a label that the model does not know, OSError where the folder can't be written.
    """
    folder, config = Path(folder), trained.model.config
    if label is not None and not 0 <= label < config.num_classes:
        raise ValueError(
            f"label must be None or below the model's number of classes, {config.num_classes}: not {label}."
        )
    weights = {name: tensor.detach().float().cpu() for name, tensor in trained.model.state_dict().items()}
    if config.num_classes:  # a label adds one vector to the embedded time: for one label, that is a bias
        vector = weights.pop("label_emb.weight")[config.num_classes if label is None else label]
        weights["time_mlp.2.bias"] = weights["time_mlp.2.bias"] + vector
    tensors = {}
    for ours, tensor in weights.items():
        names = _their_names(ours, config)
        tensors |= zip(names, (part.contiguous().clone() for part in tensor.chunk(len(names))), strict=True)
    scheduler = {"num_train_timesteps": trained.ddpm.T, "trained_betas": trained.ddpm.betas.tolist()}
    scheduler |= {"variance_type": "fixed_small", "clip_sample": True, "timestep_spacing": "linspace"}
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    for path, content in {
        "unet/config.json": _their_config(config),
        "scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler", "prediction_type": "epsilon", **scheduler},
        "model_index.json": {"_class_name": "DDPMPipeline", **parts},
    }.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / "unet" / WEIGHTS_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))


def _their_names(ours: str, config: UNetConfig) -> list[str]:
    """What a tensor of UNet is called in UNet2DModel: one name, or three where q, k and v are kept apart."""
    match ours.split("."):
        case [layer, kind]:  # conv_in, norm_out, conv_out
            place = ""
        case ["time_mlp", layer, kind]:
            place = "time_embedding."
        case ["mid1" | "mid2" as mid, part, layer, kind]:
            place = f"mid_block.{_PARTS[part]}.{'12'.index(mid[-1])}."
        case [side, k, *part, layer, kind]:  # a level is a number of blocks, then a layer that resamples
            level, j = divmod(int(k), config.blocks + {"down": 1, "up": 2}[side])
            place = f"{side}_blocks.{level}." + (f"{_PARTS[part[0]]}.{j}." if part else f"{side}samplers.0.")
    return [f"{place}{name}.{kind}" for name in _LAYERS.get(layer, [layer])]


def _their_config(config: UNetConfig) -> dict:
    kinds = ["Attn{}Block2D" if attention else "{}Block2D" for attention in config.attention]
    return {
        "_class_name": "UNet2DModel", **_MUST_SAY, **_MAY_SAY, "dropout": config.dropout, "sample_size": 32,
        "in_channels": config.image_channels, "out_channels": config.image_channels, "norm_num_groups": config.groups,
        "block_out_channels": [config.channels * m for m in config.multipliers], "layers_per_block": config.blocks,
        "down_block_types": [kind.format("Down") for kind in kinds],
        "up_block_types": [kind.format("Up") for kind in reversed(kinds)],
    }  # fmt: skip


def _read_config(path: Path) -> UNetConfig:
    told = _read_json(path)
    try:
        first, *_ = widths = told["block_out_channels"]
        config = UNetConfig(
            channels=first,
            multipliers=tuple(width // first for width in widths),
            blocks=told["layers_per_block"],
            attention=tuple(kind.startswith("Attn") for kind in told["down_block_types"]),
            groups=told["norm_num_groups"],
            dropout=told.get("dropout", 0.0),
            image_channels=told["in_channels"],
        )
    except (KeyError, ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{path} does not describe a U-Net as in this series ({error!r}).") from error
    for key, ours in _their_config(config).items():  # what it would say of our U-Net, it must say
        theirs = told.get(key, ours if key in _MAY_SAY else "not said")
        if theirs != ours and key not in ("dropout", "sample_size"):
            raise ValueError(f"{path} describes another architecture: {key} is {theirs}, and would have to be {ours}.")
    return config


def _read_ddpm(path: Path) -> DDPM:
    told = _read_json(path)
    T, schedule = told.get("num_train_timesteps", 1000), told.get("beta_schedule", "linear")
    try:
        if told.get("prediction_type", "epsilon") != "epsilon" or told.get("rescale_betas_zero_snr"):
            raise ValueError("the model predicts something other than eps, or its betas are rescaled")
        if told.get("trained_betas"):
            return DDPM(torch.tensor(told["trained_betas"], dtype=torch.float64))
        if schedule == "linear":
            return DDPM(linear_betas(T, told.get("beta_start", 1e-4), told.get("beta_end", 0.02)))
        if schedule == "squaredcos_cap_v2":
            return DDPM(cosine_betas(T))
        raise ValueError(f"it is called {schedule}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no noise schedule that serves here: {error}.") from error


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: no folder in diffusers' layout.")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not a JSON object ({error}).") from error


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        if pickles := [file.name for file in path.parent.iterdir() if file.suffix in (".bin", ".ckpt", ".pt", ".pth")]:
            raise ValueError(f"{path} is missing. {pickles[0]} is a pickle: it can hold code, and is not loaded.")
        raise FileNotFoundError(f"{path} is missing.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}).") from error
    for old, new in _OLD_LAYERS.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors
