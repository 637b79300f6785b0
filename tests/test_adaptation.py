"""Embeddings and LoRAs fitted to images, LoRAs mixed along a batch, and what keeps them."""

from __future__ import annotations

import copy
import sys

import accelerate
import peft
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.models.attention_processor import Attention
from exact import central_difference
from models import EXACT, FAST, INVERT, flags, morph, prompted_score_unet, randn, seeded, to_pil
from safetensors.torch import save_file

from riemannian_diffusion import DiffusionScore, TangentNormalMetric, Where
from riemannian_diffusion.adaptation import (
    LORA_TARGETS,
    Adaptation,
    LoraMix,
    adapt,
    denoising_losses,
    fit_embeddings,
    fit_lora,
    interpolated_attention,
)
from riemannian_diffusion.cli import main
from riemannian_diffusion.paths import adain

FIT = {"num_steps": 3, "batch_size": 2, "lr": 0.01}
X, T, PROMPTS = randn(3, 2, 8, 8), torch.tensor(400), randn(3, 4, 6, seed=1)
LATENTS = randn(3, 2, 8, 8, seed=2).float()


def _loras(unet, count=2, rank=3):
    """Random LoRAs of every projection, in peft's names."""
    loras = []
    for i in range(count):
        lora = {}
        for j, (name, module) in enumerate(unet.named_modules()):
            if name.endswith(LORA_TARGETS):
                seeds = {"seed": 100 * i + j}
                lora[f"{name}.lora_A.weight"] = randn(rank, module.in_features, **seeds) / 6
                lora[f"{name}.lora_B.weight"] = randn(module.out_features, rank, **seeds) / 6
        loras.append(lora)
    return loras


def _call(unet, x=X, prompts=PROMPTS, **kwargs):
    return unet(x, T, encoder_hidden_states=prompts, return_dict=False, **kwargs)[0]


def _state(unet):
    """Everything of a network that fitting might touch."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules()]
    return (
        [(name, id(module), module.training) for name, module in unet.named_modules()],
        [
            (name, id(p), p.requires_grad, p.detach().numpy().tobytes())
            for name, p in unet.named_parameters()
        ],
        {k: v for k, v in unet.__dict__.items() if not isinstance(v, dict)},
        hooks,
    )


class Remembered(torch.nn.Module):
    """A denoiser that takes its embedding for the clean latent."""

    def __init__(self, scheduler):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.scheduler = scheduler

    def forward(self, x, t, encoder_hidden_states, return_dict):
        abar = self.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
        clean = encoder_hidden_states.view_as(x)
        noise = (x - alpha * clean) / sigma
        kinds = {"epsilon": noise, "sample": clean, "v_prediction": alpha * noise - sigma * clean}
        return (kinds[self.scheduler.config.prediction_type],)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_the_embedding_found_is_the_one_known_to_be_right(prediction):
    scheduler = DDIMScheduler(
        num_train_timesteps=10, beta_start=0.3, beta_end=0.5, prediction_type=prediction
    )
    model, latents = Remembered(scheduler), randn(2, 2, 4, 4).float()
    options = {"num_steps": 150, "lr": 0.1, "batch_size": 4, "generator": seeded()}
    found = fit_embeddings(model, scheduler, latents, torch.zeros(1, 4, 8), **options)
    torch.testing.assert_close(found.view_as(latents), latents, atol=0.02, rtol=0)
    assert model.unused.requires_grad and model.unused.grad is None


@pytest.mark.parametrize("fit", [fit_embeddings, fit_lora])
def test_images_do_not_depend_on_each_other(fit):
    unet, scheduler, losses = prompted_score_unet(), DDIMScheduler(), []
    told = {"callback": lambda *args: losses.append(args)}
    state = torch.get_rng_state()
    together = fit(unet, scheduler, LATENTS, PROMPTS, generator=seeded(), **FIT, **told)
    assert torch.equal(torch.get_rng_state(), state)
    assert [loss[:2] for loss in losses] == [(i, step) for i in range(3) for step in range(3)]
    for i in (0, 2):
        one = slice(i, i + 1)
        (alone,) = fit(unet, scheduler, LATENTS[one], PROMPTS[one], generator=seeded(), **FIT)
        other = fit(unet, scheduler, LATENTS[one], PROMPTS[one], generator=seeded(1), **FIT)
        if fit is fit_lora:
            assert all(torch.equal(alone[name], together[i][name]) for name in alone)
            assert not any(torch.equal(alone[name], other[0][name]) for name in alone)
        else:
            assert torch.equal(alone, together[i]) and not torch.equal(alone, other[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_both_lower_the_loss_on_noises_they_have_not_seen(dtype):
    unet, scheduler = prompted_score_unet().to(dtype), DDIMScheduler()
    latents, prompts = LATENTS[:1], PROMPTS[:1].to(dtype)
    draws = torch.arange(20, 1000, 40), randn(25, 2, 8, 8, seed=9).float()

    def loss(model, embedding):
        with torch.no_grad():
            return float(denoising_losses(model, scheduler, latents, embedding, *draws).mean())

    class Mixed(torch.nn.Module):
        def __init__(self, mix):
            super().__init__()
            self.mix = mix

        def forward(self, *args, **kwargs):
            return self.mix(*args, **kwargs, weights=torch.ones(1, 1))

    options = {"num_steps": 30, "batch_size": 4, "lr": 0.05, "generator": seeded()}
    embeddings = fit_embeddings(unet, scheduler, latents, prompts, **options)
    loras = fit_lora(unet, scheduler, latents, prompts, **options)
    assert embeddings.dtype == torch.float32 and embeddings.shape == (1, 4, 6)
    assert {value.dtype for value in loras[0].values()} == {torch.float32}
    before = loss(unet, prompts)
    assert loss(unet, embeddings) < before - 0.002
    assert loss(Mixed(LoraMix(unet, loras)), prompts) < before - 0.02


@pytest.mark.parametrize("fit", [fit_embeddings, fit_lora])
@pytest.mark.parametrize("fails", [False, True])
def test_the_network_is_left_as_it_was(fit, fails):
    unet = prompted_score_unet()
    next(unet.parameters()).requires_grad_(False)
    before = _state(unet)

    def stop(image, step, loss):
        if fails and step == 1:
            raise KeyboardInterrupt

    try:
        fit(unet, DDIMScheduler(), LATENTS, PROMPTS, callback=stop, **FIT)
    except KeyboardInterrupt:
        assert fails
    assert _state(unet) == before and all(p.grad is None for p in unet.parameters())


def _with_peft(unet, lora):
    unet = copy.deepcopy(unet)
    rank = len(lora[next(name for name in lora if ".lora_A." in name)])
    unet.add_adapter(
        peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LORA_TARGETS)), "reference"
    )
    found = peft.set_peft_model_state_dict(unet, lora, adapter_name="reference")
    assert not found.unexpected_keys
    return unet.double()


def test_one_lora_alone_is_that_of_peft_and_none_the_bare_network():
    unet = prompted_score_unet()
    loras, before = _loras(unet), _state(unet)
    mix = LoraMix(unet, loras)
    for i in range(2):
        found = mix(X, T, PROMPTS, torch.eye(2)[i : i + 1].double())[0]
        expected = _call(_with_peft(unet, loras[i]))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)  # peft's are float32
        assert (expected - _call(unet)).abs().max() > 1e-3
    assert torch.equal(mix(X, T, PROMPTS, torch.zeros(3, 2))[0], _call(unet))
    assert mix(X, T, PROMPTS, torch.zeros(3, 2), return_dict=True).sample.shape == X.shape
    assert _state(unet) == before


def _merged(unet, loras, weights):
    """The network with the mixture in its weights."""
    unet = copy.deepcopy(unet)
    for name in {key.rsplit(".lora_", 1)[0] for key in loras[0]}:
        for lora, weight in zip(loras, weights, strict=True):
            change = lora[f"{name}.lora_B.weight"] @ lora[f"{name}.lora_A.weight"]
            unet.get_submodule(name).weight.data += weight * change
    return unet


WEIGHTS = torch.tensor([[1.0, 0.0], [0.3, 0.7], [-0.5, 2.0]]).double()


def test_each_point_has_a_mixture_of_its_own():
    unet = prompted_score_unet()
    loras = _loras(unet)
    found = LoraMix(unet, loras)(X, T, PROMPTS, WEIGHTS)[0]
    for k in range(3):
        one = slice(k, k + 1)
        expected = _call(_merged(unet, loras, WEIGHTS[k]), X[one], PROMPTS[one])
        torch.testing.assert_close(found[one], expected)


def test_a_mixture_in_half_precision():
    unet = prompted_score_unet()
    expected = LoraMix(unet, _loras(unet))(X, T, PROMPTS, WEIGHTS)[0]
    loras = _loras(unet)
    mix = LoraMix(unet.half(), loras)
    found = mix(X.half(), T, PROMPTS.half(), WEIGHTS)[0]
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)


def test_derivatives_of_a_mixture():
    unet, where = prompted_score_unet(), Where.even(3)

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = LoraMix(unet, _loras(unet))

        def forward(self, x, t, encoder_hidden_states, return_dict):
            return self.mix(x, t, encoder_hidden_states, WEIGHTS)

    score = DiffusionScore(Mixed(), DDIMScheduler(), 400, encoder_hidden_states=PROMPTS)
    v, w = randn(3, 2, 8, 8, seed=3), randn(3, 2, 8, 8, seed=4)
    expected = central_difference(lambda x: score(x, where), X, v, 1e-3)
    torch.testing.assert_close(score.jvp(X, v, where), expected, atol=1e-7, rtol=1e-5)
    product = (w * expected).sum()
    torch.testing.assert_close((score.vjp(X, w, where) * v).sum(), product, atol=1e-7, rtol=1e-5)
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(x, where), x, w)
    torch.testing.assert_close(gradient, score.vjp(X, w, where))


def test_checkpoints_remember_the_weights_of_their_call():
    def gradients(unet):
        mix, x = LoraMix(unet, _loras(unet)), X.clone().requires_grad_()
        weights = WEIGHTS.clone().requires_grad_()
        first = mix(x, T, PROMPTS, weights)[0]
        second = mix(x, T, PROMPTS, 1 - weights)[0]
        return torch.autograd.grad((first * second.square()).sum(), (x, weights))

    unet = prompted_score_unet().train()
    expected = gradients(unet)
    unet.enable_gradient_checkpointing()
    before = _state(unet)
    for found, wanted in zip(gradients(unet), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert _state(unet) == before


def test_a_call_that_fails_leaves_no_lora():
    unet = prompted_score_unet()
    before = _state(unet)
    mix = LoraMix(unet, _loras(unet))
    with pytest.raises(RuntimeError):
        mix(X, T, PROMPTS[..., :5], WEIGHTS)
    assert _state(unet) == before
    torch.testing.assert_close(mix(X, T, PROMPTS, 0 * WEIGHTS)[0], _call(unet))


def test_interpolated_attention_keeps_the_ends_and_equal_points():
    unet, before = prompted_score_unet(), _state(prompted_score_unet())[3]
    plain, equal = (
        _call(unet),
        _call(unet, X[:1].expand(3, -1, -1, -1), PROMPTS[:1].expand(3, 4, 6)),
    )
    with interpolated_attention(unet, torch.tensor([0.0, 0.4, 1.0])):
        found = _call(unet)
        again = _call(unet, X[:1].expand(3, -1, -1, -1), PROMPTS[:1].expand(3, 4, 6))
    assert torch.equal(found[[0, 2]], plain[[0, 2]]) and torch.equal(again, equal)
    assert (found[1] - plain[1]).abs().max() > 1e-4
    assert torch.equal(_call(unet), plain) and _state(unet)[3] == before


@pytest.mark.parametrize("mixed", [False, True])
def test_interpolated_keys_and_values_are_those_of_interpolated_states(mixed):
    unet, weights = prompted_score_unet(), torch.tensor([0.0, 0.4, 1.0]).double()
    alike, seen = torch.tensor([[0.3, 0.7]]), []
    mix = LoraMix(unet, _loras(unet))
    reference = _merged(unet, _loras(unet), alike[0].double()) if mixed else copy.deepcopy(unet)

    def look(module, args, kwargs, output):
        seen.append((args[0], output))

    name = next(
        name
        for name, module in unet.named_modules()
        if name.startswith("up_blocks") and isinstance(module, Attention)
    )
    handle = unet.get_submodule(name).register_forward_hook(look, with_kwargs=True)
    with interpolated_attention(unet, weights):
        mix(X, T, PROMPTS, alike) if mixed else _call(unet)
    handle.remove()
    hidden, output = seen[0]
    between = torch.lerp(hidden[:1], hidden[2:], weights[:, None, None])  # projections are linear
    expected = reference.get_submodule(name)(hidden, encoder_hidden_states=between)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-6)


def test_attention_is_put_back_after_an_exception():
    unet = prompted_score_unet()
    before = _state(unet)
    with pytest.raises(ValueError, match="for 2 points, .* batch of 3: .* whole path"):
        with interpolated_attention(unet, torch.tensor([0.0, 1.0])):
            _call(unet)
    assert _state(unet) == before
    with pytest.raises(ValueError, match="no self-attention below blocks='nowhere'"):
        with interpolated_attention(unet, torch.tensor([0.0, 1.0]), blocks="nowhere"):
            pass
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        with interpolated_attention(unet, torch.tensor([0.0, 1.0])):
            pass


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_adain_does_not_depend_on_the_scale(scale):
    path = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adain(scale * path), scale * adain(path))
    flat = scale * torch.ones(4, 1, 2, 2) * torch.tensor([1.0, 5.0, 2.0, 3.0]).view(4, 1, 1, 1)
    assert adain(flat).flatten(1).std(1).max() == 0  # constant channels stay constant
    assert adain(flat[:, :, :1, :1]).isfinite().all()


@pytest.mark.parametrize(
    "path", [torch.zeros(1, 4, 2, 2), torch.zeros(3, 4), torch.ones(3, 4).int()]
)
def test_adain_refuses_what_is_no_path_of_latents(path):
    with pytest.raises(ValueError, match="`path` must be"):
        adain(path)


def test_adain_interpolates_means_and_spreads():
    path = randn(5, 2, 4, 4) * torch.tensor([1.0, 2, 3, 4, 0.5]).view(-1, 1, 1, 1) + 1
    path[2, 1] = 7.0  # a constant channel has no spread to change
    found = adain(path)
    assert torch.equal(found[[0, 4]], path[[0, 4]])
    for k, channel in ((1, 0), (2, 0), (3, 1), (2, 1)):
        ends, u = path[[0, 4], channel].flatten(1), k / 4
        mean = (1 - u) * ends[0].mean() + u * ends[1].mean()
        std = (1 - u) * ends[0].std() + u * ends[1].std()
        before = path[k, channel]
        expected = torch.full_like(before, mean.item())
        if (k, channel) != (2, 1):
            expected = expected + std * (before - before.mean()) / before.std()
        torch.testing.assert_close(found[k, channel], expected)


@pytest.mark.parametrize("parts", [("embeddings",), ("loras",), ("embeddings", "loras")])
def test_saved_and_loaded(tmp_path, parts):
    given = {"embeddings": PROMPTS[:2].float(), "loras": _loras(prompted_score_unet())}
    before = Adaptation(**{part: given[part] for part in parts})
    before.save(tmp_path / "a.safetensors")
    after = Adaptation.load(tmp_path / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
    for part in parts:
        torch.testing.assert_close(getattr(after, part), given[part], atol=0, rtol=0)
    assert (after.embeddings is None, after.loras is None) == tuple(
        part not in parts for part in ("embeddings", "loras")
    )


def test_files_that_are_none(tmp_path):
    file = tmp_path / "a.safetensors"
    Adaptation(PROMPTS).save(file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"a\.safetensors is damaged"):
        Adaptation.load(file)
    file.write_text("no tensors")
    with pytest.raises(ValueError, match=r"a\.safetensors .*damaged"):
        Adaptation.load(file)
    save_file({"embeddings": PROMPTS}, file)
    with pytest.raises(ValueError, match=r"a\.safetensors holds .*not written by Adaptation\.save"):
        Adaptation.load(file)
    with pytest.raises(FileNotFoundError):
        Adaptation.load(tmp_path / "b.safetensors")


QUICK = {"embedding_steps": 2, "lora_steps": 2, "rank": 2, "batch_size": 1}


def test_adapt_is_both_fits_one_after_the_other(tiny_pipe, keyframes):
    before, steps = _state(tiny_pipe.unet), []
    told = {"callback": lambda *args: steps.append(args[:3])}
    found = adapt(tiny_pipe, keyframes, ["a", "b", "c"], seed=5, **QUICK, **told)
    assert _state(tiny_pipe.unet) == before
    expected = [("embeddings", i, s) for i in range(3) for s in range(2)]
    assert steps == expected + [("loras", i, s) for i in range(3) for s in range(2)]
    with torch.no_grad():
        latents = tiny_pipe.encode(keyframes)
        prompts = tiny_pipe.encode_prompt(["a", "b", "c"], "cpu", 1, False)[0]
    given, options = (tiny_pipe.unet, tiny_pipe.scheduler, latents), {"num_steps": 2}
    options["batch_size"] = 1
    embeddings = fit_embeddings(*given, prompts, generator=seeded(5), **options)
    assert torch.equal(found.embeddings, embeddings)
    loras = fit_lora(*given, embeddings, rank=2, generator=seeded(5), **options)
    torch.testing.assert_close(found.loras, loras, atol=0, rtol=0)
    alone = adapt(tiny_pipe, keyframes, "a", **QUICK | {"embedding_steps": 0})
    assert alone.embeddings is None and len(alone.loras) == 3


def test_what_was_fitted_is_found_again(tiny_pipe, keyframes, tmp_path):
    images, calls = keyframes[:2], []

    def run(images=images, prompts="a", **options):
        calls.clear()
        kept = {"cache_dir": tmp_path / "new", "callback": lambda *args: calls.append(args)}
        return adapt(tiny_pipe, images, prompts, **QUICK | kept | options)

    first = run()
    assert len(calls) == 8
    again = run()
    assert not calls and torch.equal(again.embeddings, first.embeddings)
    torch.testing.assert_close(again.loras, first.loras, atol=0, rtol=0)
    for other in ({"images": images.flip(0)}, {"prompts": "b"}, {"seed": 1}, {"rank": 3}):
        run(**other)
        assert len(calls) == 8, other
    with torch.no_grad():
        tiny_pipe.unet.conv_in.bias += 0.1
    run()
    assert len(calls) == 8
    for file in (tmp_path / "new").iterdir():
        file.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="Fitting again: .*damaged"):
        run()
    assert len(calls) == 8
    run()
    assert not calls


def test_without_peft_only_loras_are_missing(tiny_pipe, keyframes, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"riemannian-diffusion\[adapt\].*lora_steps=0"):
        adapt(tiny_pipe, keyframes[:2], **QUICK)
    assert adapt(tiny_pipe, keyframes[:2], **QUICK | {"lora_steps": 0}).loras is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": PROMPTS[:2]}, r"\(P, L, C\).* but got \(3, 2, 8, 8\) and \(2, 4, 6\)"),
        ({"latents": LATENTS[0]}, r"\(P, C, h, w\).* but got \(2, 8, 8\)"),
        ({"num_steps": 0}, "`num_steps` must be at least 1 .* 0 and"),
        ({"lr": -1.0}, "`lr` positive, but got 1 and -1.0"),
        ({"batch_size": 0}, "`batch_size` must be at least 1, but got 0"),
        ({"latents": LATENTS / 0}, "loss of image 0 is nan at step 0, with lr=0.1: lower `lr`"),
        ({"scheduler": DDIMScheduler(prediction_type="flow")}, "prediction_type.*'flow'"),
    ],
)
@pytest.mark.parametrize("fit", [fit_embeddings, fit_lora])
def test_bad_fits(fit, change, message):
    arguments = {
        "scheduler": DDIMScheduler(),
        "latents": LATENTS,
        "embeddings": PROMPTS,
        "num_steps": 1,
        "lr": 0.1,
        "batch_size": 1,
    }
    with pytest.raises(ValueError, match=message):
        fit(prompted_score_unet(), **arguments | change)


def test_bad_loras():
    unet = prompted_score_unet()
    with pytest.raises(ValueError, match="`rank` must be at least 1, but got 0"):
        fit_lora(unet, DDIMScheduler(), LATENTS, PROMPTS, rank=0)
    with pytest.raises(ValueError, match="one or more LoRAs .* but got 0"):
        LoraMix(unet, [])
    with pytest.raises(ValueError, match="no module 'nowhere.to_q'"):
        LoraMix(unet, [{"nowhere.to_q.lora_A.weight": X, "nowhere.to_q.lora_B.weight": X}])
    with pytest.raises(ValueError, match=r"must be \(3, 2\), .* but got \(2, 2\)"):
        LoraMix(unet, _loras(unet))(X, T, PROMPTS, WEIGHTS[:2])
    with pytest.raises(ValueError, match="for the same images"):
        Adaptation(PROMPTS, _loras(unet))
    with pytest.raises(ValueError, match="embeddings, LoRAs or both"):
        Adaptation()
    unet.add_adapter(peft.LoraConfig(target_modules=["to_q"]), "mine")
    with pytest.raises(ValueError, match=r"adapters \['mine'\] already.*fuse_lora"):
        fit_lora(unet, DDIMScheduler(), LATENTS, PROMPTS)
    assert unet.active_adapters() == ["mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_steps": 0, "lora_steps": 0}, "above 0, but got 0 and 0"),
        ({"prompts": ["a", "b"]}, "2 prompts for 3 images"),
    ],
)
def test_bad_adaptations(tiny_pipe, keyframes, options, message):
    with pytest.raises(ValueError, match=message):
        adapt(tiny_pipe, keyframes, **options)


@pytest.fixture
def fitted(tiny_pipe, keyframes):
    steps = {"embedding_steps": 2, "lora_steps": 2, "rank": 2, "lora_lr": 0.1}
    return adapt(tiny_pipe, keyframes, ["a", "b", "c"], **steps)


def test_the_pipeline_mixes_along_the_path(tiny_pipe, keyframes, fitted):
    """Every point of a level has its own prompt and its own LoRAs."""
    seen = []

    def metric(score):
        seen.append(score)
        return TangentNormalMetric(score)

    out = morph(tiny_pipe, keyframes, adaptation=fitted, metric=metric, **EXACT)
    assert len(out.frames) == 7 and max(out.reconstruction_error) < 1e-6
    (score,) = seen  # both gaps at once
    x, shares = out.latents[3:], torch.linspace(0, 1, 4)
    weights = torch.stack([0 * shares, 1 - shares, shares], 1)
    mix = LoraMix(tiny_pipe.unet, fitted.loras)
    hidden = torch.lerp(*fitted.embeddings[1:, None], shares.view(4, 1, 1))
    with torch.no_grad():
        noise = mix(x, torch.tensor(score.level.timestep), hidden, weights)[0]
        found = score(x, Where(shares, 1))
    torch.testing.assert_close(found, -noise / score.sigma, atol=1e-4, rtol=1e-4)
    bare = morph(tiny_pipe, keyframes, ["a", "b", "c"], **EXACT)
    assert not torch.allclose(out.latents, bare.latents, atol=1e-3)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_each_morph_has_its_own(tiny_pipe, keyframes, fitted, guidance):
    a, b, c = keyframes
    pairs = [[a, b], [c, a]]
    one = Adaptation(fitted.embeddings[:2], fitted.loras[:2])
    other = Adaptation(None, fitted.loras[1:])
    options = FAST | {"guidance_scale": guidance, "output_type": "latent"}
    conditions = [
        tiny_pipe.condition(text, adaptation=own)
        for text, own in zip("ab", (one, other), strict=True)
    ]
    batch = tiny_pipe(pairs, conditions=conditions, **options)
    for i, (pair, mine) in enumerate(zip(pairs, conditions, strict=True)):
        single = tiny_pipe(pair, conditions=mine, **options)
        torch.testing.assert_close(batch.frames[i], single.frames, atol=1e-4, rtol=0)


def test_the_pipeline_matches_noise_and_shares_attention(tiny_pipe, keyframes):
    options = EXACT | {"metric": "lerp", "max_batch_size": 2}
    given = (tiny_pipe, keyframes, ["a", "b", "c"])
    plain = morph(*given, **options)
    matched = morph(*given, adain=True, **options)
    for i in (0, 3):
        gap = slice(i, i + 4)
        torch.testing.assert_close(matched.latents[gap], adain(plain.latents[gap]))
    shared = morph(*given, attention_interpolation=0.5, **options)
    assert torch.equal(shared.latents, plain.latents)
    torch.testing.assert_close(shared.frames[::3], plain.frames[::3], atol=1e-4, rtol=0)
    assert not torch.allclose(shared.frames, plain.frames, atol=1e-4)


def test_an_adaptation_of_other_images_is_refused(tiny_pipe, keyframes, fitted):
    with pytest.raises(ValueError, match="there are 3 for 2 keyframes"):
        morph(tiny_pipe, keyframes[:2], adaptation=fitted, **FAST)
    with pytest.raises(ValueError, match="there are some for 2 and some for 3"):
        tiny_pipe.condition(["a", "b"], adaptation=Adaptation(None, fitted.loras))


def test_from_the_command_line(tiny_pipe, keyframes, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "model")
    for i, image in enumerate(to_pil(keyframes[:2])):
        image.save(tmp_path / f"{i}.png")
    command = ["interpolate", str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    command += flags(**FAST, metric="lerp", device="cpu")
    command += ["--model", str(tmp_path / "model"), "--adapt", "embeddings", "--adain"]
    command += ["--attention-interpolation", "0.5", "--adapt-cache", str(tmp_path / "cache")]
    assert main([*command, "-o", str(tmp_path / "one.png")]) == 0
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 1
    assert main([*command, "-o", str(tmp_path / "two.png")]) == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_loras_under_sequential_offload(tiny_pipe, keyframes, fitted):
    options = FAST | {"metric": "lerp", "adaptation": fitted}
    expected = morph(tiny_pipe, keyframes, **options).frames
    accelerate.cpu_offload(tiny_pipe.unet, torch.device("cpu"))
    found = morph(tiny_pipe, keyframes, **options).frames
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert next(tiny_pipe.unet.parameters()).device.type == "meta"


def test_a_third_image_has_its_part_of_an_adaptation(tiny_pipe, keyframes, fitted):
    a, b, c = keyframes
    conditions = tiny_pipe.condition(adaptation=fitted)
    keys = tiny_pipe.invert([a, b], conditions=conditions.at_knots([0, 1]), **INVERT)
    path = tiny_pipe.sample(tiny_pipe.solve(keys, "lerp", num_frames=4))
    found = tiny_pipe.transport(path, c, conditions=conditions.at_knots([2]))
    turned = conditions.at_knots([1, 0, 2])
    expected = tiny_pipe.invert([b, a, c], conditions=turned, **INVERT)
    torch.testing.assert_close(found.keys.points, expected.points, atol=1e-4, rtol=1e-4)
    out = tiny_pipe.solve(expected, "lerp", num_frames=4)
    torch.testing.assert_close(found.points, out.points, atol=1e-4, rtol=1e-4)
