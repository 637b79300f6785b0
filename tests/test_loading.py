from __future__ import annotations

import json
import pickle
import shutil
import warnings
from pathlib import Path

import diffusers
import pytest
import torch
import transformers
from accelerate import init_empty_weights
from models import KINDS, make, prompted_unet, silent, stable_diffusion, stable_diffusion_xl
from original_layout import original, parts_of_version_1
from packaging.version import Version
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from riemannian_diffusion import demo, pipelines
from riemannian_diffusion.pipelines import AutoGeodesicInterpolationPipeline as Auto
from riemannian_diffusion.pipelines import GeodesicInterpolationPipeline, single_file
from riemannian_diffusion.pipelines.known import REFUSED, UNKNOWN, WORKS, installed_classes, support

KIND_OF = {KINDS[kind][0].__name__: kind for kind in KINDS}
CLASSES = [(name, pipeline) for pipeline, names in WORKS.items() for name in names]
CLASSES = [one for one in CLASSES if one[0] in dir(diffusers)]  # a few are of some versions alone


def same(first, second) -> bool:
    """Whether two modules have the same weights under the same names."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(ours[n].equal(theirs[n]) for n in ours)


# -------------------------------------------------------------------------------- classes by name


def test_every_class_of_diffusers_works_or_is_refused_for_a_reason():
    assert support("SomeNewPipeline").reason == UNKNOWN
    names = installed_classes()
    assert {"StableDiffusionPipeline", "WanPipeline", "LEditsPPPipelineStableDiffusion"} < {*names}
    assert not {"DiffusionPipeline", "AutoPipelineForText2Image", "ImagePipelineOutput"} & {*names}
    if Version(diffusers.__version__) <= Version("0.42.1"):  # later ones may have new classes
        assert [name for name in names if support(name).reason == UNKNOWN] == []
    for name, reason in (
        ("WanPipeline", "videos"),
        ("LatentConsistencyModelPipeline", "distilled"),
        ("StableDiffusionXLControlNetPipeline", "control image"),
        ("FluxModularPipeline", "modular"),
        ("KandinskyV22PriorPipeline", "several stages"),
        ("AmusedPipeline", "discrete"),
    ):
        assert reason in str(support(name)) and name in str(support(name))
    every = [one for text in REFUSED.values() for one in text.split()]
    assert len(every) == len(set(every))


@pytest.mark.parametrize(("name", "pipeline"), CLASSES)
def test_a_class_that_works_is_loaded_and_taken_over(name, pipeline, tmp_path):
    kind = KIND_OF[pipeline]
    theirs = getattr(diffusers, name)(**KINDS[kind][2]())
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == name
    loaded, taken = Auto.from_pretrained(tmp_path), Auto.from_pipe(theirs)
    assert type(loaded).__name__ == type(taken).__name__ == pipeline
    network = theirs.unet if hasattr(theirs, "unet") else theirs.transformer
    assert same(loaded.network, network) and taken.network is network


# ------------------------------------------------------------------------------------------ folders


@pytest.fixture
def folder(tmp_path):
    """A saved tiny model of Stable Diffusion."""
    make("sd").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def move(old: Path, new: str) -> None:
    old.rename(old.with_name(new))


def _without(folder: Path, name: str) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: [None, None]}))


WEIGHTS = "diffusion_pytorch_model.safetensors"
BROKEN = {
    "no tokenizer": (lambda f: shutil.rmtree(f / "tokenizer"), "lacks the folder tokenizer"),
    "no vocabulary": (
        lambda f: [one.unlink() for one in (f / "tokenizer").iterdir()],
        "tokenizer holds no vocabulary",
    ),
    "no weights": (lambda f: (f / "unet" / WEIGHTS).unlink(), "unet holds no weights"),
    "pickle": (
        lambda f: move(f / "unet" / WEIGHTS, "diffusion_pytorch_model.bin"),
        "is a pickle, which can run code",
    ),
    "variant": (
        lambda f: move(f / "unet" / WEIGHTS, WEIGHTS.replace(".s", ".fp16.s")),
        "variant 'fp16' alone: give `variant`",
    ),
    "sharded variant": (
        lambda f: move(
            f / "unet" / WEIGHTS, "diffusion_pytorch_model.bf16-00001-of-00002.safetensors"
        ),
        "variant 'bf16' alone",
    ),
    "shard": (
        lambda f: (
            move(f / "unet" / WEIGHTS, "diffusion_pytorch_model-00001-of-00002.safetensors"),
            (f / "unet" / f"{WEIGHTS}.index.json").write_text(
                '{"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}'
            ),
        ),
        "lacks the weight file diffusion_pytorch_model-00002-of-00002.safetensors",
    ),
    "index": (lambda f: (f / "model_index.json").unlink(), "no model_index.json"),
    "damaged": (lambda f: (f / "vae" / "config.json").write_text("{"), "config.json is damaged"),
    "no config": (lambda f: (f / "text_encoder" / "config.json").unlink(), "holds no config.json"),
    "cut weights": (
        lambda f: (f / "unet" / WEIGHTS).write_bytes((f / "unet" / WEIGHTS).read_bytes()[:-9]),
        f"{WEIGHTS} is damaged",
    ),
    "no text encoder": (lambda f: _without(f, "text_encoder"), "has no text_encoder"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_folder_is_told_before_weights_are_read(folder, case, monkeypatch):
    breaks, message = BROKEN[case]
    breaks(folder)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", None)  # nothing may be loaded
    for load in (Auto.from_pretrained, GeodesicInterpolationPipeline.from_pretrained):
        with pytest.raises(OSError, match=message):
            load(folder)


@pytest.mark.parametrize(
    "file", [f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"]
)
def test_weights_that_files_lack_are_told(folder, file):
    state = load_file(folder / file)
    name = sorted(name for name in state if name.endswith("weight"))[0]
    del state[name]
    save_file(state, folder / file, {"format": "pt"})
    with pytest.raises(OSError, match=f"{Path(file).parent} lacks 1 weights .* such as .*weight: "):
        Auto.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_encoder_that_lacks_a_weight_is_refused(kind, tmp_path):
    """transformers draws the missing weight at random, and renames weights of some encoders."""
    pipe = make(kind)
    pipe.save_pretrained(tmp_path)
    encoders = [n for n, one in pipe.components.items() if isinstance(one, PreTrainedModel)]
    type(pipe).from_pretrained(tmp_path)
    for name in encoders:
        file = tmp_path / name / "model.safetensors"
        state = load_file(file)
        lost = sorted(one for one in state if "layer" in one or "block" in one)[-1]
        save_file({n: v for n, v in state.items() if n != lost}, file, {"format": "pt"})
        with pytest.raises(OSError, match=f"{name} lacks 1 weights .*{lost.split('.')[-2]}"):
            type(pipe).from_pretrained(tmp_path)
        save_file(state, file, {"format": "pt"})
    assert encoders or kind in ("dit", "pixels")


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_lacking_weights_are_told_whatever_the_options_of_loading(part, tmp_path):
    """With `low_cpu_mem_usage=False`, diffusers draws missing weights at random, too."""
    make("sd").save_pretrained(tmp_path, variant="fp16")
    options = {"variant": "fp16", "low_cpu_mem_usage": False}
    Auto.from_pretrained(tmp_path, **options)
    (file,) = (tmp_path / part).glob("*.safetensors")
    state = load_file(file)
    state.pop(sorted(name for name in state if name.endswith("weight"))[0])
    save_file(state, file, {"format": "pt"})
    with pytest.raises(OSError, match=f"{part} lacks 1 weights"):
        Auto.from_pretrained(tmp_path, **options)


def test_a_scheduler_of_another_class_than_the_index_names_is_told(folder):
    """diffusers takes the class of model_index.json, and the values that this class knows."""
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text()) | {"_class_name": "EulerDiscreteScheduler"}
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="names the scheduler DDIMScheduler, but .* by Euler"):
        pipe = Auto.from_pretrained(folder)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    assert type(pipe.scheduler) is type(theirs.scheduler) is diffusers.DDIMScheduler
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Auto.from_pretrained(folder, scheduler=diffusers.EulerDiscreteScheduler())


def test_statistics_of_another_number_of_channels_are_refused():
    pipe = make("xl")
    pipe.vae.register_to_config(latents_mean=[0.0] * 3, latents_std=[1.0] * 3)
    with pytest.raises(ValueError, match="3 numbers as `latents_mean`, but 4 channels"):
        pipe.condition("a")


def test_an_index_without_a_class_is_told(folder):
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(ValueError, match="has no _class_name"):
        Auto.from_pretrained(folder)


def test_a_component_and_a_missing_variant_are_told(folder):
    with pytest.raises(OSError, match="one component of a model: give the folder above"):
        Auto.from_pretrained(folder / "unet")
    with pytest.raises(OSError, match="no variant 'fp16' of its weights; it has none"):
        Auto.from_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match="is a file: load it with `from_single_file`"):
        Auto.from_pretrained(folder / "model_index.json")


def test_a_variant_is_loaded(folder):
    expected = Auto.from_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        if file.parent.name != "vae":  # a variant need not cover all components
            move(file, file.name.replace(".safetensors", ".fp16.safetensors"))
    loaded = Auto.from_pretrained(folder, variant="fp16")
    assert same(loaded.unet, expected.unet) and same(loaded.vae, expected.vae)


def test_a_given_component_need_not_be_in_the_folder(folder):
    shutil.rmtree(folder / "vae")
    vae = make("sd").vae
    assert Auto.from_pretrained(folder, vae=vae).vae is vae


def test_inpainting_networks_and_the_refiner_are_refused(tmp_path):
    parts = stable_diffusion()
    names = {"in_channels": 9, "out_channels": 4}
    config = {k: v for k, v in parts["unet"].config.items() if not k.startswith("_")} | names
    parts["unet"] = diffusers.UNet2DConditionModel(**config)
    painting = diffusers.StableDiffusionInpaintPipeline(**parts)
    painting.save_pretrained(tmp_path / "inpainting")
    with pytest.raises(ValueError, match="takes 9 channels and not the 4 of the latents"):
        Auto.from_pretrained(tmp_path / "inpainting")
    parts = stable_diffusion_xl() | {"text_encoder": None, "tokenizer": None}
    refiner = diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)
    refiner.save_pretrained(tmp_path / "refiner")
    for load, what in ((Auto.from_pretrained, tmp_path / "refiner"), (Auto.from_pipe, refiner)):
        with pytest.raises(ValueError, match="is a refiner of Stable Diffusion XL"):
            load(what)


# ------------------------------------------------------------------------------------- single files


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(5)
    return parts_of_version_1()


@pytest.fixture
def file(parts, tmp_path):
    save_file(original(parts), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_a_file_with_a_config_gives_the_weights_of_its_source(parts, file, tmp_path):
    diffusers.StableDiffusionPipeline(**parts).save_pretrained(tmp_path / "config")
    for weights in (tmp_path / "config").rglob("*.safetensors"):
        weights.unlink()
    for kind in (Auto, GeodesicInterpolationPipeline):
        pipe = kind.from_single_file(file, config=tmp_path / "config")
        assert type(pipe) is GeodesicInterpolationPipeline
        for name in ("unet", "vae", "text_encoder"):
            assert same(getattr(pipe, name), parts[name])
        assert len(pipe.tokenizer) == len(parts["tokenizer"])


def test_a_file_alone_loads_offline_with_the_tokenizer(parts, file, monkeypatch, keyframes):
    """The shipped configs have the full size, so this test puts tiny ones in their place."""
    data = json.loads((single_file.DATA / "configs.json").read_text())
    for name, component in (("unet v1", "unet"), ("vae sd", "vae"), ("clip l", "text_encoder")):
        config = parts[component].config
        data["parts"][name] = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    monkeypatch.setattr(single_file, "_data", lambda: data)
    pipe = silent(Auto.from_single_file(file))
    for name in ("unet", "vae", "text_encoder"):
        assert same(getattr(pipe, name), parts[name])
    # ids that CLIP's own documentation gives for this text
    ids = pipe.tokenizer("a photo of a cat").input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    images = torch.nn.functional.interpolate(keyframes[:2], scale_factor=4)
    out = pipe(images, "a cat", num_frames=3, num_inference_steps=3, metric="slerp")
    assert len(out.frames) == 3


# published numbers of parameters of these models' parts
PARAMETERS = {
    "v1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "v2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "xl_base": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "sd3": {"transformer": 2_028_328_000, "text_encoder_2": 694_659_840},
    "sd35_large": {"transformer": 8_056_627_520},
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_shipped_configs_are_those_of_the_published_models(kind, tmp_path):
    single_file.write_configs(kind, tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert support(index["_class_name"]).pipeline == single_file.FAMILIES[kind]
    for name, expected in PARAMETERS[kind].items():
        library, cls = index[name]
        cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], cls)
        with init_empty_weights():
            if library == "diffusers":
                module = cls.from_config(cls.load_config(tmp_path / name))
            else:
                module = cls(cls.config_class.from_pretrained(tmp_path / name))
        assert sum(p.numel() for p in module.parameters()) == expected


def test_files_that_are_no_model_are_told_apart(file, tmp_path):
    def saved(name: str, state: dict) -> Path:
        save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / name)
        return tmp_path / name

    state = original(parts_of_version_1())
    vae = {n.removeprefix("first_stage_model."): v for n, v in state.items() if "first_stage" in n}
    without_text = {n: v for n, v in state.items() if "cond_stage" not in n}
    nine = dict(state)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    nine[first] = torch.zeros(4, 9, 3, 3)
    lora = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(1, 4)}
    flux = {
        "double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(1),
        "img_in.weight": torch.zeros(1, 64),
    }
    pixart = {"anything.weight": torch.zeros(1)}
    told = {
        saved("unet.safetensors", prompted_unet().state_dict()): "give the folder above",
        saved("vae.safetensors", vae): "holds an autoencoder",
        saved("lora.safetensors", lora): "holds a LoRA",
        saved("no_text.safetensors", without_text): "lacks the text_encoder",
        saved("nine.safetensors", nine): "takes 9 channels",
        saved("flux.safetensors", flux): "flux-schnell.*give `config`",
        saved("other.safetensors", pixart): "no model of a known family",
    }
    for path, message in told.items():
        with pytest.raises(ValueError, match=message):
            Auto.from_single_file(path)
    make("xl").save_pretrained(tmp_path / "xl")
    with pytest.raises(
        ValueError, match="`config` .* belongs to a GeodesicInterpolationXLPipeline"
    ):
        Auto.from_single_file(file, config=tmp_path / "xl")
    with pytest.raises(ValueError, match="was given to GeodesicInterpolationXLPipeline"):
        pipelines.GeodesicInterpolationXLPipeline.from_single_file(file)
    with pytest.raises(OSError, match="there is no file"):
        Auto.from_single_file(tmp_path / "none.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"abc")
    with pytest.raises(OSError, match="damaged"):
        Auto.from_single_file(tmp_path / "damaged.safetensors")


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth"])
def test_pickles_are_refused_and_not_read(suffix, tmp_path):
    file, trap = tmp_path / f"model{suffix}", tmp_path / "sprung"
    file.write_bytes(pickle.dumps(Trap(trap)))
    for kind in (Auto, *(KINDS[kind][0] for kind in KINDS)):
        with pytest.raises(ValueError, match="must be a .safetensors file"):
            kind.from_single_file(file)
    assert not trap.exists()


def test_the_shipped_model_loads():
    assert type(Auto.from_pretrained(demo.model_path())) is GeodesicInterpolationPipeline


@pytest.mark.parametrize("part", ["model.diffusion_model", "first_stage_model", "cond_stage"])
def test_a_file_that_lacks_a_weight_is_refused(parts, part, tmp_path):
    diffusers.StableDiffusionPipeline(**parts).save_pretrained(tmp_path / "config")
    state = original(parts)
    lost = [name for name in state if name.startswith(part) and name.endswith("norm2.bias")][-1]
    save_file({n: v for n, v in state.items() if n != lost}, tmp_path / "model.safetensors")
    with pytest.raises(OSError, match="model.safetensors lacks .*weights"):
        Auto.from_single_file(tmp_path / "model.safetensors", config=tmp_path / "config")


@pytest.mark.parametrize("pipeline", [Auto, GeodesicInterpolationPipeline])
def test_a_hub_out_of_reach_is_named(pipeline, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="someone/something is no folder here .* the Hub cannot be"):
        pipeline.from_pretrained("someone/something")


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_both_names_of_the_dtype_are_taken_without_a_warning(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        loaded = Auto.from_pretrained(demo.model_path(), **{name: torch.float16})
    assert loaded.unet.dtype == torch.float16
    with pytest.raises(ValueError, match="give `dtype` alone"):
        Auto.from_pretrained(demo.model_path(), dtype=torch.float16, torch_dtype=torch.float16)
