"""Saved keyframes and paths give bit-identical frames after loading."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from fractions import Fraction

import accelerate
import numpy as np
import pytest
import torch
from models import INVERT, KINDS, PROMPTED, SOLVE, make, seeded, waves, with_ip_adapter, with_lora
from safetensors import safe_open
from safetensors.torch import save_file

from riemannian_diffusion.adaptation import adapt
from riemannian_diffusion.files import save
from riemannian_diffusion.pipelines import Keyframes, MorphPath


def _two_prompts(pipe, images):
    texts = ["a", "b"] if hasattr(pipe, "encode_prompt") else ""
    return pipe.invert(images, texts, **INVERT)


def _clean(pipe, images):
    return pipe.invert(images, space="clean", generator=seeded(), **INVERT)


def _guided(pipe, images):
    return pipe.invert(images, ["a", "b"], "c", guidance_scale=2.0, **INVERT)


def _damped(pipe, images):
    options = {"guidance_scale": 2.0, "guidance_damping": 0.5}
    return pipe.invert(images, ["a", "b"], "c", **options, **INVERT)


def _placed(pipe, images):
    return pipe.invert(images, frame_numbers=[0, 2], fixed_point_iterations=2, **INVERT)


def _adapted(pipe, images):
    steps = {"embedding_steps": 1, "lora_steps": 1, "rank": 2, "batch_size": 1, "lora_lr": 0.1}
    fitted = adapt(pipe, images, ["a", "b"], **steps)
    conditions = pipe.condition(adaptation=fitted)
    return pipe.invert(images, conditions=conditions, guidance_scale=2.0, **INVERT)


def _shown_images(pipe, images):
    embeds = torch.randn(4, 1, 6, generator=seeded())  # the first two are negative
    conditions = pipe.condition(["a", "b"], ip_adapter_image_embeds=[embeds])
    return pipe.invert(images, conditions=conditions, guidance_scale=2.0, **INVERT)


def _scaled_loras(pipe, images):
    conditions = pipe.condition("a", cross_attention_kwargs={"scale": 0.5})
    return pipe.invert(images, conditions=conditions, **INVERT)


CASES = [
    *((kind, _two_prompts) for kind in KINDS),
    *((kind, _clean) for kind in KINDS),
    *((kind, _guided) for kind in PROMPTED),
    *(("sd", _damped), ("sd", _placed), ("sd", _adapted), ("sd3", _placed)),
    *((kind, case) for kind in ("sd", "xl") for case in (_shown_images, _scaled_loras)),
]


def prepared(kind, case):
    """A new pipeline. Its weights are the same in each call."""
    pipe = make(kind)
    pipe = with_ip_adapter(pipe) if case is _shown_images else pipe
    return with_lora(pipe) if case is _scaled_loras else pipe


def frames(pipe, path):
    return pipe.render(pipe.sample(path), output_type="pt").frames


@pytest.mark.parametrize(
    ("kind", "case"), CASES, ids=[f"{kind}{case.__name__}" for kind, case in CASES]
)
def test_loaded_morphs_give_the_same_frames(kind, case, keyframes, tmp_path):
    pipe = prepared(kind, case)
    keys = case(pipe, keyframes[:2])
    path = pipe.solve(keys, **SOLVE)
    sampled = pipe.sample(path)
    expected = pipe.render(sampled, output_type="pt")
    keys.save(tmp_path / "keys.safetensors")
    path.save(tmp_path / "path.safetensors")
    sampled.save(tmp_path / "sampled.safetensors")

    other = prepared(kind, case)  # this pipeline shares nothing with the first one
    loaded = Keyframes.load(tmp_path / "keys.safetensors")
    assert loaded.frame_numbers == keys.frame_numbers
    again = other.solve(loaded, **SOLVE)
    assert torch.equal(frames(other, again), expected.frames)
    solved = MorphPath.load(tmp_path / "path.safetensors")
    assert torch.equal(frames(other, solved), expected.frames)
    done = MorphPath.load(tmp_path / "sampled.safetensors")
    found = other.render(done, output_type="pt")
    assert torch.equal(found.frames, expected.frames)
    assert found.reconstruction_error == expected.reconstruction_error
    assert torch.equal(done.times, path.times) and done.metric == path.metric
    for one, before in zip(done.geodesics, path.geodesics, strict=True):
        for field in dataclasses.fields(before):
            mine, theirs = getattr(one, field.name), getattr(before, field.name)
            same = torch.equal if isinstance(mine, torch.Tensor) else lambda a, b: a == b
            assert same(mine, theirs), field.name
    other.connect(loaded).save(tmp_path / "twice.safetensors")
    once, twice = (_contents(tmp_path / f"{name}.safetensors") for name in ("keys", "twice"))
    assert once == twice


def _contents(file):
    with safe_open(file, "pt") as opened:
        tensors = {n: opened.get_tensor(n).numpy().tobytes() for n in opened.keys()}  # noqa: SIM118
        return tensors, opened.metadata()


def test_results_of_further_stages_are_saved(tiny_pipe, keyframes, tmp_path):
    keys = tiny_pipe.invert(keyframes[:2], "a", space="clean", generator=seeded(), **INVERT)
    path = tiny_pipe.sample(tiny_pipe.solve(keys, "lerp", num_frames=4), callback_on_step_end=None)
    made = [
        tiny_pipe.retime(path, "rmse"),
        tiny_pipe.extend(path, 0.5),
        tiny_pipe.transport(path, keyframes[2]),
        dataclasses.replace(path, attention_interpolation=0.5),
    ]
    for one in made:
        one.save(tmp_path / "path.safetensors")
        loaded = MorphPath.load(tmp_path / "path.safetensors")
        assert torch.equal(loaded.shown, one.shown) and torch.equal(loaded.times, one.times)
        assert loaded.attention_interpolation == one.attention_interpolation
        found, expected = (tiny_pipe.render(p, output_type="pt") for p in (loaded, one))
        assert torch.equal(found.frames, expected.frames)
        assert found.reconstruction_error == expected.reconstruction_error


def test_a_file_has_tensors_and_plain_text(tiny_pipe, keyframes, tmp_path):
    keys = tiny_pipe.invert(keyframes[:2], ["a", "b"], **INVERT)
    keys.save(tmp_path / "keys.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["keys.safetensors"]
    with safe_open(tmp_path / "keys.safetensors", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["kind"] == "Keyframes" and {"pixels", "clean", "points"} <= names
    assert json.loads(metadata["settings"])["space"] == "noise"
    size = sum(t.nbytes for t in (keys.pixels, keys.clean, keys.points))
    assert (tmp_path / "keys.safetensors").stat().st_size < size + 50_000  # the file has no weights


def test_a_loaded_path_has_no_model_until_it_is_connected(tiny_pipe, keyframes, tmp_path):
    keys = tiny_pipe.invert(keyframes[:2], **INVERT)
    keys.save(tmp_path / "keys.safetensors")
    loaded = Keyframes.load(tmp_path / "keys.safetensors")
    with pytest.raises(ValueError, match="come from a file and have no model yet.*pipe.connect"):
        loaded.levels(loaded.levels.schedule.timesteps[0])
    connected = tiny_pipe.connect(loaded)
    timestep = keys.levels.schedule.timesteps[0]
    with torch.no_grad():
        found, expected = (one.levels(timestep)(one.points) for one in (connected, keys))
    assert torch.equal(found, expected)
    assert tiny_pipe.connect(connected) is connected
    with pytest.raises(ValueError, match="`keys` must be a Keyframes, but got int"):
        tiny_pipe.connect(3)


# ------------------------------------------------------------------------- files that are refused


@pytest.fixture
def files(tiny_pipe, keyframes, tmp_path):
    keys = tiny_pipe.invert(keyframes[:2], **INVERT)
    keys.save(tmp_path / "keys.safetensors")
    path = tiny_pipe.sample(tiny_pipe.solve(keys, "lerp", num_frames=3))
    path.save(tmp_path / "path.safetensors")
    return tmp_path


def _cut(file):
    file.write_bytes(file.read_bytes()[:-10])


def _text(file):
    file.write_text("no tensors")


def _bare(file):
    save_file({"pixels": torch.zeros(2)}, file)


def _without(name):
    def spoil(file):
        with safe_open(file, "pt") as whole:
            tensors = {n: whole.get_tensor(n) for n in whole.keys()}  # noqa: SIM118
            metadata = whole.metadata()
        tensors.pop(name, None)
        metadata.pop(name, None)
        save_file(tensors, file, metadata)

    return spoil


def _rewritten(file, change):
    """Rewrite a file after `change(tensors, settings)`, and as if this library had written it."""
    with safe_open(file, "pt") as whole:
        tensors = {n: whole.get_tensor(n) for n in whole.keys()}  # noqa: SIM118
        metadata = whole.metadata()
    settings = json.loads(metadata["settings"])
    changed = change(tensors, settings)
    save(file, metadata["kind"], tensors, settings if changed is None else changed[0])


def _half_the_settings(file):
    with safe_open(file, "pt") as whole:
        tensors = {n: whole.get_tensor(n) for n in whole.keys()}  # noqa: SIM118
        metadata = whole.metadata()
    metadata["settings"] = metadata["settings"][:20]
    save_file(tensors, file, metadata)


def _flipped(file):
    content = bytearray(file.read_bytes())
    content[-400] ^= 1
    file.write_bytes(content)


def _other_setting(file):
    content = file.read_bytes()
    file.write_bytes(content.replace(b'max_batch_size\\": 8', b'max_batch_size\\": 7'))
    assert file.read_bytes() != content


def _newer(file):
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"version":"0.', b'"version":"9.'))
    assert file.read_bytes() != content


def _swapped(file):
    other = {"keys": "path", "path": "keys"}[file.stem]
    file.write_bytes(file.with_stem(other).read_bytes())


REFUSED = [
    (_cut, "is damaged, or no safetensors file"),
    (_text, "is damaged, or no safetensors file"),
    (_bare, "holds something else, not {kind}: it was not written by {kind}.save"),
    (_swapped, "holds {other}, not {kind}"),
    (_without("settings"), "is damaged: it lacks 'settings'"),
    (_without("points"), "is damaged: it lacks 'points'"),
    (_half_the_settings, "is damaged: its settings cannot be read"),
    (_without("digest"), "is damaged: it lacks 'digest'"),
    (_flipped, "is damaged or something else: its contents have changed since it was written"),
    (_other_setting, "is damaged or something else: its contents have changed"),
    (_newer, r"was written by riemannian-diffusion 9\..* is installed: install the newer one"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
@pytest.mark.parametrize("kind", [Keyframes, MorphPath])
def test_files_that_are_refused(files, kind, spoil, message):
    file = files / {Keyframes: "keys.safetensors", MorphPath: "path.safetensors"}[kind]
    spoil(file)
    other = {Keyframes: "MorphPath", MorphPath: "Keyframes"}[kind]
    expected = message.format(kind=kind.__name__, other=other)
    with pytest.raises(ValueError, match=rf"{file.name} {expected}"):
        kind.load(file)


def _tensor(name, change):
    return lambda tensors, settings: tensors.update({name: change(tensors[name]).clone()})


def _setting(value, *names):
    def change(tensors, settings):
        for name in names[:-1]:
            settings = settings[name]
        settings[names[-1]] = value

    return change


def _all_settings(value):
    return lambda tensors, settings: (value,)


def first(values):
    return values[:1]


def lost(values):
    return values * torch.nan


UNREADABLE = "its settings cannot be read"
MISFITS = [
    *((_all_settings(value), UNREADABLE) for value in ([], None, "text", 3)),
    *((_setting(value, "levels"), UNREADABLE) for value in ([], None, "text")),
    *((_setting(value, "levels", "levels"), UNREADABLE) for value in (None, [[]], [3])),
    (_setting(None, "levels", "options"), UNREADABLE),
    (_setting("2", "levels", "num_loras"), UNREADABLE),
    (_setting(1, "levels", "num_loras"), "`loras` must be LoRAs"),
    (_setting([], "levels", "levels"), "`levels` must be one or more"),
    (_setting([[1, 0.5, 0.5, "guess"]], "levels", "levels"), "`prediction_type` must be one of"),
    (_setting([[1, 0.0, 1.0, "epsilon"]], "levels", "levels"), "`alpha` must be in"),
    (_setting([[1, 1.0, -1.0, "epsilon"]], "levels", "levels"), "`sigma` must be above 0"),
    (_setting([[1, 0.5, 0.5, "epsilon"]] * 2, "levels", "levels"), "timesteps must fall"),
    (_setting(2.0, "levels", "final_abar"), "`final_abar` must be in"),
    (_setting("2", "levels", "guidance_scale"), "`guidance_scale` must be a finite number"),
    (_setting("foo", "space"), "`space` must be one of"),
    (_setting("clean", "space"), "`noise` belongs to keyframes in clean space"),
    (_setting([3, 1], "frame_numbers"), "`frame_numbers` must be 2 rising numbers"),
    (_setting(0.5, "fixed_point_iterations"), "`fixed_point_iterations` must be a whole number"),
    (_setting(None, "model"), "`model` must be a str"),
    (_tensor("pixels", first), "there must be at least 2 keyframes"),
    (_tensor("clean", first), "`clean` must be"),
    (_tensor("points", first), "`points` must be"),
    (_tensor("points", lambda values: values[:, :2]), "`points` must be"),
    (_tensor("points", lambda values: values.half()), "`points` must be"),
    (_tensor("points", lost), "`points` must be"),
    (_tensor("autoencoder_error", first), "`autoencoder_error` must be"),
    (
        _tensor("positive.encoder_hidden_states", lambda values: values.repeat(1, 3, 1, 1)),
        "`encoder_hidden_states` must be given for 1 or 2 keyframes",
    ),
]
MISFITS_OF_PATHS = [
    (_setting("foo", "keys", "space"), "`space` must be one of"),
    (_setting(None, "geodesics"), UNREADABLE),
    (_setting([{}], "geodesics"), UNREADABLE),
    (_setting([], "geodesics"), "`geodesics` must be one for each of 1 gaps"),
    (_setting(2.0, "attention_interpolation"), "`attention_interpolation` must be in"),
    (_setting(3, "metric"), "`metric` must be a str"),
    (_tensor("times", lambda values: values[:2]), "`times` must be"),
    (_tensor("times", lost), "`times` must be"),
    (_tensor("times", lambda values: values.flip(0)), "`times` must rise from 0 to 1"),
    (_tensor("latents", lambda values: values[:2]), "`latents` must be"),
    (_tensor("points", lambda values: values[..., :2]), "`points` must be"),
    (_tensor("geodesic.0.path", lambda values: values[..., :2]), "must be"),
    (
        lambda tensors, settings: tensors.update({"beyond": tensors.pop("latents")}),
        "`beyond` and `transported` belong to a path that was sampled",
    ),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of keyframes and of a path with a geodesic."""
    pipe, folder = make("sd"), tmp_path_factory.mktemp("whole")
    keys = pipe.invert(waves(2), ["a", "b"], **INVERT)
    keys.save(folder / "Keyframes")
    pipe.sample(pipe.solve(keys, **SOLVE)).save(folder / "MorphPath")
    return folder


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        *((Keyframes, *case) for case in MISFITS),
        *((MorphPath, *case) for case in MISFITS_OF_PATHS),
    ],
)
def test_parts_that_do_not_fit_are_refused(whole, tmp_path, kind, change, message):
    file = tmp_path / "damaged.safetensors"
    shutil.copy(whole / kind.__name__, file)
    kind.load(file)
    _rewritten(file, change)
    with pytest.raises(ValueError, match=f"damaged.safetensors is damaged.*{message}"):
        kind.load(file)


@pytest.mark.parametrize("kind", [Keyframes, MorphPath])
def test_no_changed_byte_is_accepted(whole, tmp_path, kind):
    content = (whole / kind.__name__).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for place in [*range(8, header, 7), *range(header, len(content), 211)]:
        changed = bytearray(content)
        changed[place] ^= 1
        (tmp_path / "changed").write_bytes(changed)
        with contextlib.suppress(ValueError):
            kind.load(tmp_path / "changed")
            assert json.loads(changed[8:header]) == json.loads(content[8:header])
            assert place < header  # spaces between the parts of the header


def test_numbers_of_any_class_are_saved(tmp_path):
    pipe, file = make("sd"), tmp_path / "path.safetensors"
    conditions = pipe.condition(["a", "b"], "c", cross_attention_kwargs={"scale": np.float32(0.5)})
    options = {
        "num_inference_steps": np.int64(8),
        "strength": Fraction(1, 2),
        "frame_numbers": np.array([0, 3]),
        "max_batch_size": np.int64(2),
        "guidance_damping": np.float32(0.5),
        "fixed_point_iterations": np.int64(1),
    }
    for scale in (np.float32(2), torch.tensor(2.0), Fraction(2)):
        keys = pipe.invert(waves(2), conditions=conditions, guidance_scale=scale, **options)
        path = pipe.solve(keys, max_evals=np.int64(2), rtol=np.float32(0.1))
        pipe.sample(path, attention_interpolation=np.float32(0.5)).save(file)
        loaded = MorphPath.load(file)
        assert loaded.keys.frame_numbers == (0, 3) and loaded.keys.fixed_point_iterations == 1
        levels = loaded.keys.levels
        assert (levels.guidance_scale, levels.guidance_damping) == (2, 0.5)
        assert levels.max_batch_size == 2 and loaded.attention_interpolation == 0.5
        assert levels.conditions.options == {"scale": 0.5}


def test_files_that_are_not_there(tmp_path):
    for kind in (Keyframes, MorphPath):
        with pytest.raises(ValueError, match="is a folder: give the name of a file"):
            kind.load(tmp_path)
    for kind in (Keyframes, MorphPath):
        with pytest.raises(FileNotFoundError, match="none.safetensors does not exist"):
            kind.load(tmp_path / "none.safetensors")
    with pytest.raises(FileNotFoundError, match="the folder .*none does not exist"):
        save(tmp_path / "none" / "x.safetensors", "Keyframes", {}, {})
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        save(tmp_path, "Keyframes", {}, {})


def _other_weights(pipe):
    with torch.no_grad():
        pipe.unet.conv_in.bias += 0.1


def _other_autoencoder(pipe):
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias += 0.1


def _other_levels(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.02)


@pytest.mark.parametrize("change", [_other_weights, _other_autoencoder, _other_levels])
def test_files_of_another_model_are_refused(tiny_pipe, files, change):
    keys = Keyframes.load(files / "keys.safetensors")
    path = MorphPath.load(files / "path.safetensors")
    change(tiny_pipe)
    uses = (
        lambda: tiny_pipe.solve(keys, **SOLVE),
        lambda: tiny_pipe.sample(path),
        lambda: tiny_pipe.retime(path, "rmse"),
        lambda: tiny_pipe.extend(path, 0.1),
        lambda: tiny_pipe.render(path),
    )
    for use in uses:
        with pytest.raises(ValueError, match="were made with another model, or with a scheduler"):
            use()


def test_a_model_is_the_same_while_its_weights_are_offloaded(tiny_pipe, files):
    loaded = Keyframes.load(files / "keys.safetensors")
    expected = tiny_pipe.solve(loaded, "lerp", num_frames=3).points
    for module in (tiny_pipe.unet, tiny_pipe.vae):
        accelerate.cpu_offload(module, torch.device("cpu"))
    assert next(tiny_pipe.unet.parameters()).is_meta
    assert torch.equal(tiny_pipe.solve(loaded, "lerp", num_frames=3).points, expected)


def test_settings_that_json_cannot_hold(tiny_pipe, keyframes, tmp_path):
    conditions = tiny_pipe.condition(cross_attention_kwargs={"scale": torch.ones(1)})
    conditions = dataclasses.replace(conditions, options={"thing": object()})
    keys = tiny_pipe.invert(keyframes[:2], **INVERT)
    levels = dataclasses.replace(keys.levels, conditions=conditions)
    with pytest.raises(ValueError, match="Keyframes cannot be saved"):
        dataclasses.replace(keys, levels=levels).save(tmp_path / "keys.safetensors")
    assert not list(tmp_path.iterdir())
