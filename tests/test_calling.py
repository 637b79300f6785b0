"""`DiffusionScore` with every class of denoisers that it calls, against direct calls."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from models import prompted_score_unet, prompted_xl_unet, randn, score_unet
from torch import nn

from riemannian_diffusion import Condition, DiffusionScore, Where
from riemannian_diffusion.score.calling import CALLED, REFUSED

VP, FLOW = DDIMScheduler(), FlowMatchEulerDiscreteScheduler()
PROMPT = 2 * randn(1, 5, 16, seed=7)
MASK = torch.tensor([[1, 1, 1, 0, 0]])
IMAGE = (2, 4, 8, 8)


def places(height: int, width: int, axes: int = 3, tokens: int = 5) -> dict[str, torch.Tensor]:
    """The places of tokens of an image and of a prompt, as Flux takes them."""
    img = torch.zeros(height, width, axes, dtype=torch.float64)
    img[..., 1] += torch.arange(height)[:, None]
    img[..., 2] += torch.arange(width)[None]
    return {"img_ids": img.flatten(0, 1), "txt_ids": torch.zeros(tokens, axes).double()}


@dataclass(frozen=True)
class Case:
    """A tiny network, and how its pipeline calls it."""

    config: dict[str, Any]
    conditions: dict[str, torch.Tensor]
    shape: tuple[int, ...] = IMAGE
    time: Callable[[torch.Tensor], torch.Tensor] = lambda t: t
    sign: int = 1
    scheduler: Any = FLOW
    direct: dict[str, Any] = field(default_factory=dict)  # arguments in place of some conditions
    unbatched: tuple[str, ...] = ("img_ids", "txt_ids")


def fraction(t):
    return t / 1000


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
TWO = {"num_layers": 1, "num_single_layers": 1}
TOKENS = (2, 16, 8)
TEXT = {"encoder_hidden_states": PROMPT}
POOLED = randn(1, 6, seed=8)
SIZES = {
    "target_size": torch.tensor([[16.0, 16.0]]).double(),
    "crop_coords": torch.tensor([[0.0, 0.0]]).double(),
}

CASES = {
    "AuraFlowTransformer2DModel": Case(
        {
            "sample_size": 8,
            "num_mmdit_layers": 1,
            "num_single_dit_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pos_embed_max_size": 16,
        },
        TEXT,
        time=fraction,
    ),
    "BriaFibo2Transformer2DModel": Case(
        {
            **{"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2},
            **{"cap_feat_dim": 16, "injection_layer_ids": (0,), "perceiver_num_layers": 1},
            **{"min_num_gist_tokens": 4, "max_num_gist_tokens": 8, "gist_step": 2},
            **{"gist_min_text_len": 4, "gist_max_text_len": 8},
            **{"axes_dims": (4, 4, 8), "axes_lens": (64, 32, 32)},
        },
        {
            "encoder_hidden_states": randn(1, 2, 5, 16, seed=9),
            "encoder_attention_mask": MASK.bool(),
        },
        time=fraction,
    ),
    "BriaTransformer2DModel": Case(
        {"in_channels": 8, **TWO, **HEADS, "joint_attention_dim": 16, "axes_dims_rope": [4, 4, 8]},
        TEXT | places(4, 4),
        TOKENS,
    ),
    "ChromaTransformer2DModel": Case(
        {
            **{"in_channels": 8, **TWO, **HEADS, "joint_attention_dim": 16},
            "axes_dims_rope": (4, 4, 8),
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        TEXT | places(4, 4) | {"attention_mask": torch.ones(1, 21).bool()},
        TOKENS,
        fraction,
    ),
    "CogView3PlusTransformer2DModel": Case(
        {
            **{"in_channels": 4, "out_channels": 4, "num_layers": 1, **HEADS},
            **{"text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4, "sample_size": 8},
            "pos_embed_max_size": 8,
        },
        TEXT | SIZES | {"original_size": SIZES["target_size"]},
        scheduler=VP,
    ),
    "CogView4Transformer2DModel": Case(
        {
            **{"in_channels": 4, "out_channels": 4, "num_layers": 1, **HEADS},
            **{"text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4, "sample_size": 8},
            "rope_axes_dim": (8, 8),
        },
        TEXT | SIZES | {"original_size": SIZES["target_size"]},
    ),
    "DiTTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 1, "sample_size": 8}
        | {"num_embeds_ada_norm": 6},
        {"class_labels": torch.tensor([3])},
        scheduler=VP,
    ),
    "ErnieImageTransformer2DModel": Case(
        {
            **{"hidden_size": 32, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 16},
            **{"in_channels": 4, "out_channels": 4, "text_in_dim": 16, "rope_axes_dim": (4, 4, 8)},
        },
        {"text_bth": PROMPT, "text_lens": torch.tensor([4])},
    ),
    "Flux2Transformer2DModel": Case(
        {
            **{"in_channels": 8, **TWO, **HEADS, "joint_attention_dim": 16},
            **{"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 8},
        },
        TEXT | places(4, 4, 4) | {"guidance": torch.tensor([4.0]).double()},
        TOKENS,
        fraction,
    ),
    "Flux3Transformer2DModel": Case(
        {
            **{"in_channels": 8, "cond_in_channels": 8, **TWO, **HEADS, "joint_attention_dim": 16},
            **{"axes_dims_rope": (4, 4, 4, 4), "timestep_channels": 8},
        },
        TEXT | places(4, 4, 4),
        TOKENS,
        fraction,
    ),
    "FluxTransformer2DModel": Case(
        {
            **{"in_channels": 8, **TWO, **HEADS, "joint_attention_dim": 16},
            **{"axes_dims_rope": (4, 4, 8), "pooled_projection_dim": 6},
        },
        TEXT | places(4, 4) | {"pooled_projections": POOLED},
        TOKENS,
        fraction,
    ),
    "GlmImageTransformer2DModel": Case(
        {
            **{"in_channels": 4, "out_channels": 4, "num_layers": 1, **HEADS},
            **{"text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4},
            "prior_vq_quantizer_codebook_size": 8,
        },
        TEXT
        | SIZES
        | {
            "prior_token_id": torch.arange(16)[None] % 8,
            "prior_token_drop": torch.zeros(1, 16).bool(),
        },
        time=lambda t: t - 1,
    ),
    "HunyuanImageTransformer2DModel": Case(
        {
            **{"in_channels": 4, "out_channels": 4, **TWO, **HEADS, "num_refiner_layers": 1},
            **{"text_embed_dim": 16, "rope_axes_dim": (8, 8)},
        },
        TEXT | {"encoder_attention_mask": MASK},
        time=lambda t: t.double(),
    ),
    "Kandinsky3UNet": Case(
        {
            **{"time_embedding_dim": 8, "groups": 2, "attention_head_dim": 4},
            **{"layers_per_block": 2, "block_out_channels": (8, 8, 8, 8)},
            **{"cross_attention_dim": 8, "encoder_hid_dim": 16},
        },
        TEXT | {"encoder_attention_mask": MASK},
        scheduler=VP,
    ),
    "Krea2Transformer2DModel": Case(
        {
            **{"in_channels": 8, "num_layers": 1, **HEADS, "num_key_value_heads": 1},
            **{"intermediate_size": 16, "timestep_embed_dim": 8, "text_hidden_dim": 16},
            **{"num_text_layers": 2, "text_num_attention_heads": 2, "axes_dims_rope": (4, 4, 8)},
            **{"text_num_key_value_heads": 2, "text_intermediate_size": 16},
            **{"num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1},
        },
        {
            "encoder_hidden_states": randn(1, 5, 2, 16, seed=9),
            "encoder_attention_mask": MASK.bool(),
            "position_ids": torch.cat(list(places(4, 4).values())[::-1]),
        },
        TOKENS,
        fraction,
        unbatched=("position_ids",),
    ),
    "LongCatImageTransformer2DModel": Case(
        {
            **{"in_channels": 8, **TWO, **HEADS, "joint_attention_dim": 16},
            **{"axes_dims_rope": [4, 4, 8], "pooled_projection_dim": 16},
        },
        TEXT | places(4, 4),
        TOKENS,
        fraction,
    ),
    "Lumina2Transformer2DModel": Case(
        {
            **{"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 1},
            **{"num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1},
            **{"multiple_of": 8, "axes_dim_rope": (4, 4, 8), "axes_lens": (32, 32, 32)},
            "cap_feat_dim": 16,
        },
        TEXT | {"encoder_attention_mask": MASK},
        time=lambda t: 1 - t / 1000,
        sign=-1,
    ),
    "OvisImageTransformer2DModel": Case(
        {
            **{"in_channels": 8, "out_channels": 8, **TWO, **HEADS, "joint_attention_dim": 16},
            "axes_dims_rope": (4, 4, 8),
        },
        TEXT | places(4, 4),
        TOKENS,
        fraction,
    ),
    "PRXTransformer2DModel": Case(
        {
            **{"in_channels": 4, "context_in_dim": 16, "hidden_size": 32, "num_heads": 2},
            **{"depth": 1, "axes_dim": [8, 8]},
        },
        TEXT | {"attention_mask": MASK.bool()},
        time=fraction,
    ),
    "PixArtTransformer2DModel": Case(
        {
            **{"in_channels": 4, "out_channels": 8, "num_layers": 1, "num_attention_heads": 2},
            **{"attention_head_dim": 12, "cross_attention_dim": 24, "caption_channels": 16},
            "sample_size": 128,
        },
        TEXT
        | {
            "encoder_attention_mask": MASK,
            "resolution": torch.tensor([[64.0, 64.0]]).double(),
            "aspect_ratio": torch.tensor([[1.0]]).double(),
        },
        scheduler=VP,
        direct={
            "added_cond_kwargs": {
                "resolution": torch.tensor([[64.0, 64.0]] * 2).double(),
                "aspect_ratio": torch.ones(2, 1).double(),
            }
        },
    ),
    "PriorTransformer": Case(
        {
            **{"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1},
            **{"embedding_dim": 16, "num_embeddings": 5},
        },
        TEXT | {"proj_embedding": randn(1, 16, seed=10), "attention_mask": MASK.bool()},
        (2, 16),
        scheduler=DDIMScheduler(prediction_type="sample"),
    ),
    "SD3Transformer2DModel": Case(
        {
            **{"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 1},
            **{"attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 16},
            **{"caption_projection_dim": 16, "pooled_projection_dim": 6, "pos_embed_max_size": 8},
        },
        TEXT | {"pooled_projections": POOLED},
    ),
    "SanaTransformer2DModel": Case(
        {
            **{"in_channels": 4, "out_channels": 4, "num_layers": 1, **HEADS},
            **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 16},
            **{"cross_attention_dim": 32, "caption_channels": 16, "sample_size": 8},
            "timestep_scale": 0.001,
        },
        TEXT | {"encoder_attention_mask": MASK},
        time=fraction,
    ),
    "Transformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 1, "sample_size": 8}
        | {"patch_size": 2, "norm_type": "ada_norm_zero", "num_embeds_ada_norm": 6},
        {"class_labels": torch.tensor([3])},
        scheduler=VP,
    ),
    "UNet1DModel": Case(
        {
            **{"in_channels": 2, "out_channels": 2, "extra_in_channels": 16},
            **{"time_embedding_type": "positional", "block_out_channels": (16, 32)},
            "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D"),
            "up_block_types": ("UpBlock1D", "UpBlock1DNoSkip"),
        },
        {},
        (2, 2, 32),
        scheduler=VP,
    ),
    "UNet2DConditionModel": Case(
        {"made": lambda: prompted_xl_unet(width=16, pooled=6, dtype=torch.float64)},
        TEXT | {"text_embeds": POOLED, "time_ids": randn(1, 6).abs()},
        scheduler=VP,
        direct={
            "added_cond_kwargs": {
                "text_embeds": POOLED.expand(2, -1),
                "time_ids": randn(1, 6).abs().expand(2, -1),
            }
        },
    ),
    "UNet2DModel": Case({"made": score_unet}, {}, (2, 2, 8, 8), scheduler=VP),
}


def network_of(name: str) -> nn.Module:
    """The network of a case, float64."""
    config = CASES[name].config
    torch.manual_seed(0)
    made = config["made"]() if "made" in config else getattr(diffusers, name)(**config)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():  # layers that start at zero would hide the others
                parameter.copy_(0.2 * torch.randn_like(parameter))
    return nn.Module.to(made, torch.float64).eval()


def score_of(name: str, network: nn.Module, **options) -> DiffusionScore:
    """The score of a case at timestep 400."""
    case = CASES[name]
    conditions = dict(case.conditions)
    hidden = conditions.get("encoder_hidden_states")
    if hidden is not None and hidden.ndim == 3:
        options["encoder_hidden_states"] = conditions.pop("encoder_hidden_states")
    return DiffusionScore(network, case.scheduler, 400, conditions=conditions, **options)


@pytest.mark.parametrize("name", CASES)
def test_a_score_is_a_direct_call(name):
    if not hasattr(diffusers, name):
        pytest.skip(f"this version of diffusers has no {name}")
    case, network = CASES[name], network_of(name)
    score, x = score_of(name, network), randn(*case.shape)
    given = {
        key: value if key in case.unbatched else value.expand(2, *value.shape[1:])
        for key, value in case.conditions.items()
        if key not in case.direct.get("added_cond_kwargs", {})
    }
    time = case.time(torch.tensor(400)).expand(2)
    with torch.no_grad():
        output = network(x, timestep=time, return_dict=False, **given, **case.direct)[0]
        output = case.sign * output[:, : x.shape[1]]
        noise = {
            "epsilon": lambda: output,
            "sample": lambda: (x - score.alpha * output) / score.sigma,
        }.get(case.scheduler.config.get("prediction_type"), lambda: x + score.alpha * output)()
        torch.testing.assert_close(score(x), -noise / score.sigma)
        assert not torch.equal(output[0], output[1])


@pytest.mark.parametrize("name", CASES)
def test_products_are_finite_differences(name):
    if not hasattr(diffusers, name):
        pytest.skip(f"this version of diffusers has no {name}")
    case, network = CASES[name], network_of(name)
    score = score_of(name, network, max_batch_size=1)
    x, v, w = (randn(*case.shape, seed=seed) for seed in range(3))
    step = 1e-3
    with torch.no_grad():
        forward, reverse = score.jvp(x, v), score.vjp(x, w)
        expected = (score(x + step * v) - score(x - step * v)) / (2 * step)
    torch.testing.assert_close(forward, expected, atol=1e-3, rtol=1e-3)  # some parts are float32
    torch.testing.assert_close((forward * w).sum(), (reverse * v).sum(), atol=1e-3, rtol=1e-3)


def test_every_denoiser_of_diffusers_is_called_or_refused():
    refused = [name for names in REFUSED.values() for name in names]
    assert not set(refused) & set(CALLED) and len(refused) == len(set(refused))
    assert set(CASES) == set(CALLED)
    for name in dir(diffusers):
        kind = getattr(diffusers, name, None)
        if not inspect.isclass(kind) or not issubclass(kind, nn.Module) or "ControlNet" in name:
            continue
        names = list(inspect.signature(kind.forward).parameters)
        if any("time" in one or one == "t" for one in names):
            assert name in CALLED or name in refused, f"decide about {name}"
        if name in CALLED:
            assert names[1] in ("sample", "hidden_states") and "timestep" in names
            assert set(CALLED[name].needs + CALLED[name].unbatched) <= set(names)


@pytest.mark.parametrize("reason", REFUSED)
def test_other_classes_are_refused_in_a_sentence(reason):
    name = next(name for name in REFUSED[reason] if hasattr(diffusers, name))
    kind = getattr(diffusers, name)
    network = kind.__new__(kind)
    nn.Module.__init__(network)
    with pytest.raises(ValueError, match=f"cannot call a {name}: it {reason}"):
        DiffusionScore(network, FLOW, 400)


def test_the_guide_names_the_classes():
    text = (Path(__file__).parent.parent / "examples" / "README.md").read_text()
    (sentence,) = re.findall(
        r"`DiffusionScore` calls (\d+) classes of diffusers: (.*?)\.", text, re.S
    )
    assert int(sentence[0]) == len(CALLED)
    assert re.findall(r"`(\w+)`", sentence[1]) == sorted(CALLED)


# --------------------------------------------------------------------------------------- conditions

FLUX = "FluxTransformer2DModel"


def test_conditions_follow_the_path():
    """Embeddings are interpolated, masks and lengths are combined, places of tokens are shared."""
    network, seen = network_of("SanaTransformer2DModel"), []
    network.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    masks = torch.tensor([[1, 1, 0, 0, 0], [1, 0, 1, 1, 0]])
    score = DiffusionScore(
        *(network, FLOW, 400),
        encoder_hidden_states=torch.cat([PROMPT, 3 * PROMPT]),
        conditions={"encoder_attention_mask": masks},
    )
    score(randn(3, 4, 8, 8), Where([0.0, 0.25, 1.0]))
    mask, hidden = seen[0]["encoder_attention_mask"], seen[0]["encoder_hidden_states"]
    assert mask.tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0], [1, 0, 1, 1, 0]]
    torch.testing.assert_close(hidden, torch.tensor([1.0, 1.5, 3.0]).view(3, 1, 1) * PROMPT)


def test_guidance_shares_the_places_of_tokens():
    network, case = network_of(FLUX), CASES[FLUX]
    x, pooled = randn(*TOKENS), randn(1, 6, seed=12)
    options = {
        "encoder_hidden_states": PROMPT,
        "conditions": places(4, 4) | {"pooled_projections": POOLED},
    }
    negative = {
        "negative_hidden_states": -PROMPT,
        "negative_conditions": {"pooled_projections": pooled},
    }
    guided = DiffusionScore(
        *(network, case.scheduler, 400), **options, **negative, mode="guided", guidance_scale=3.0
    )
    one = DiffusionScore(network, case.scheduler, 400, **options)
    other = DiffusionScore(
        *(network, case.scheduler, 400),
        encoder_hidden_states=-PROMPT,
        conditions=places(4, 4) | {"pooled_projections": pooled},
    )
    with torch.no_grad():
        torch.testing.assert_close(guided(x), other(x) + 3 * (one(x) - other(x)))
    with pytest.raises(ValueError, match="needs both .*negative_conditions. with the names"):
        DiffusionScore(
            *(network, case.scheduler, 400),
            **options,
            negative_hidden_states=-PROMPT,
            mode="guided",
        )


def test_classes_as_numbers_and_as_weights():
    network, x = network_of("DiTTransformer2DModel"), randn(*IMAGE)

    def score(labels, **options):
        return DiffusionScore(network, VP, 400, conditions={"class_labels": labels}, **options)

    weights = nn.functional.one_hot(torch.tensor([3, 5]), 7).double()
    with torch.no_grad():
        number = score(torch.tensor([3]))(x)
        mixed = score(weights)(x, Where([0.0, 0.5]))
        alone = score(weights.mean(0, keepdim=True))(x)
        paths = Condition(weights[:, None])  # one class for each of two paths
        several = score(paths)(x, Where([0.0, 0.0], [0, 1]))
    torch.testing.assert_close(mixed[0], number[0])
    torch.testing.assert_close(mixed[1], alone[1])
    torch.testing.assert_close(several[0], number[0])
    null = {"class_labels": torch.tensor([6])}
    guided = score(torch.tensor([3]), negative_conditions=null, mode="guided", guidance_scale=2.0)
    with torch.no_grad():
        torch.testing.assert_close(guided(x), 2 * number - score(torch.tensor([6]))(x))
    with pytest.raises(ValueError, match="whole numbers, which cannot be interpolated"):
        score(torch.tensor([3, 5]))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (FLUX, {}, r"needs further `conditions`: \['encoder_hidden_states', 'img_ids', 'pooled"),
        ("UNet2DModel", {"encoder_hidden_states": PROMPT}, "takes no conditions .'encoder_hidden"),
        ("UNet2DModel", {"conditions": {"sample": PROMPT}}, r"takes no conditions \['sample'\]"),
        ("UNet2DModel", {"conditions": 3}, "`conditions` must be a Mapping, but got int"),
        ("UNet2DModel", {"conditions": {"a": 3}}, r"`conditions\['a'\]` must be a Tensor"),
        (
            "UNet2DModel",
            {"conditions": {"a": torch.tensor(3.0)}},
            r"must be \(1, ...\) or \(P, ...\)",
        ),
        ("SanaTransformer2DModel", {}, r"needs further `conditions`: \['encoder_hidden_states'\]"),
    ],
)
def test_conditions_that_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        DiffusionScore(network_of(name), FLOW, 400, **options)


def test_other_modules_are_called_by_position_or_by_name():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = prompted_score_unet()

    class ByPosition(Mine):
        def forward(self, x, t, encoder_hidden_states, return_dict=True):
            return self.network(x, t, encoder_hidden_states, return_dict=return_dict)

    class ByName(Mine):
        def forward(self, x, encoder_hidden_states, timestep, return_dict=True):
            return self.network(x, timestep, encoder_hidden_states, return_dict=return_dict)

    prompt, x = randn(1, 5, 6), randn(2, 2, 8, 8)
    networks = (prompted_score_unet(), ByPosition(), ByName())
    found = [DiffusionScore(one, VP, 400, encoder_hidden_states=prompt)(x) for one in networks]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
