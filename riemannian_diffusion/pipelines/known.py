"""Every pipeline class of diffusers: which of this library loads its models, or why none does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

OURS = "GeodesicInterpolation{}Pipeline".format
SD, XL, SD3, FLUX, CHROMA = map(OURS, ("", "XL", "SD3", "Flux", "Chroma"))
FLUX_2, KLEIN = OURS("Flux2"), OURS("Flux2Klein")
AURA, QWEN, Z = OURS("AuraFlow"), OURS("QwenImage"), OURS("ZImage")
ALPHA, SIGMA, SANA = OURS("PixArtAlpha"), OURS("PixArtSigma"), OURS("Sana")
LUMINA, DIT, PIXELS = OURS("Lumina2"), OURS("DiT"), OURS("Unconditional")


def _tasks(name: str, *tasks: str) -> tuple[str, ...]:
    """The pipelines of a family for text to image and for other tasks, of the same network."""
    return tuple(f"{name}{task}Pipeline" for task in ("", *tasks))


PAINT = ("Img2Img", "Inpaint")
GUIDED = (*PAINT, "PAG", "PAGImg2Img", "PAGInpaint")

# This library's pipeline -> classes of diffusers whose models it loads. A family is one line.
WORKS: Mapping[str, tuple[str, ...]] = {
    SD: _tasks("StableDiffusion", *GUIDED),
    XL: _tasks("StableDiffusionXL", *GUIDED),
    SD3: _tasks("StableDiffusion3", *PAINT, "PAG", "PAGImg2Img"),
    FLUX: _tasks("Flux", *PAINT),
    FLUX_2: _tasks("Flux2"),
    KLEIN: _tasks("Flux2Klein", "Inpaint"),
    CHROMA: _tasks("Chroma", *PAINT),
    AURA: _tasks("AuraFlow"),
    QWEN: _tasks("QwenImage", *PAINT),
    Z: _tasks("ZImage", *PAINT),
    ALPHA: _tasks("PixArtAlpha"),
    SIGMA: _tasks("PixArtSigma", "PAG"),
    SANA: _tasks("Sana", "PAG"),
    DIT: _tasks("DiT"),
    PIXELS: ("DDPMPipeline", "DDIMPipeline"),
    LUMINA: _tasks("Lumina2"),
}
OTHERS = {  # names that models have, but the installed diffusers need not
    "Lumina2Text2ImgPipeline": LUMINA,  # the name in diffusers 0.33
}

# A reason -> names without "Pipeline" at their end; `*` stands for any text. The first that fits
# counts, so exact names stand before patterns.
REFUSED: Mapping[str, str] = {
    "its network was distilled to a few steps, so it is not a score; load the model from which it "
    "was distilled": """
        LatentConsistencyModel LatentConsistencyModelImg2Img ConsistencyModel SanaSprint
        SanaSprintImg2Img DreamLiteMobile Flux2KleinKV""",
    "it is a modular pipeline; load the same model with its ordinary pipeline": "*Modular",
    "its networks run in ONNX, without the derivatives that metrics need": """
        Onnx* StableDiffusionOnnx OnnxStableDiffusionInpaintPipelineLegacy""",
    "it makes sound": """
        AceStep AudioDiffusion AudioLDM AudioLDM2 DanceDiffusion MusicLDM SpectrogramDiffusion
        StableAudio StableAudio3 StableAudio3AudioToAudio StableAudio3Inpaint LongCatAudioDiT""",
    "it makes 3-D shapes, not images": "ShapE ShapEImg2Img",
    "it makes proteins, not images": "RFD4Proteina",
    "it makes text or image tokens, which are discrete and have no score": """
        Amused AmusedImg2Img AmusedInpaint VQDiffusion DiffusionGemma LLaDA2 GlmImage
        UniDiffuser""",
    "it makes videos": """
        Allegro AnimateDiff* AnyFlow AnyFlowFAR ChronoEdit CogVideoX* ConsisID Cosmos2VideoToWorld
        Cosmos2_5_* Cosmos3Omni CosmosTextToWorld CosmosVideoToWorld EasyAnimate* Helios*
        HunyuanSkyreels* HunyuanVideo* I2VGenXL Kandinsky5I2V Kandinsky5T2V Kandinsky6* LTX* Latte
        LucyEdit Mochi MotifVideo* PIA SanaImageToVideo SanaVideo SanaWM SkyReelsV2*
        StableVideoDiffusion TextToVideo* VideoToVideoSD Wan*""",
    "it enlarges images, and its network takes the small image as an input": """
        StableDiffusionUpscale StableDiffusionLatentUpscale LDMSuperResolution IFSuperResolution
        IFImg2ImgSuperResolution IFInpaintingSuperResolution HunyuanImageRefiner""",
    "it predicts depth, normals or materials of an image": "Marigold*",
    "its network takes a depth map as an input, or makes one": """
        StableDiffusionDepth2Img StableDiffusionLDM3D""",
    "it needs a control image; load the base model with its own pipeline": """
        *ControlNet* *Controlnet* *Control *ControlImg2Img *ControlInpaint *Adapter
        StableDiffusionGLIGEN StableDiffusionGLIGENTextImage""",
    "its network takes a mask or an image beside the latents": """
        FluxFill PaintByExample StableDiffusionInstructPix2Pix StableDiffusionXLInstructPix2Pix
        StableDiffusionImageVariation FluxPriorRedux VisualCloze VisualClozeGeneration""",
    "it edits an image that its network reads as context": """
        BriaFiboEdit DreamLite FluxKontext FluxKontextInpaint JoyImageEdit JoyImageEditPlus
        LongCatImageEdit OmniGen QwenImageEdit QwenImageEditInpaint QwenImageEditPlus
        QwenImageLayered ZImageOmni Kandinsky5I2I""",
    "it has several stages with a network each": """
        IF IFImg2Img IFInpainting Kandinsky Kandinsky*Prior* Kandinsky*Combined KandinskyImg2Img
        KandinskyInpaint KandinskyV22 KandinskyV22Img2Img KandinskyV22Inpaint StableCascade*
        Wuerstchen* UnCLIP UnCLIPImageVariation StableUnCLIP StableUnCLIPImg2Img BlipDiffusion
        VersatileDiffusion*""",
    "its noise grows without bound (variance-exploding)": "KarrasVe ScoreSdeVe",
    "it is a way to edit or sample with an ordinary model; load that model with the model's own "
    "pipeline": """
        CycleDiffusion LEditsPPPipelineStableDiffusion LEditsPPPipelineStableDiffusionXL RePaint
        SemanticStableDiffusion StableDiffusionAttendAndExcite StableDiffusionDiffEdit
        StableDiffusionInpaintPipelineLegacy StableDiffusionModelEditing StableDiffusionPanorama
        StableDiffusionParadigms StableDiffusionPix2PixZero StableDiffusionPipelineSafe
        StableDiffusionSAG""",
    "this version has no pipeline for its network": """
        AltDiffusion AltDiffusionImg2Img Bria BriaFibo BriaFibo2 CogView3Plus CogView4
        Cosmos2TextToImage ErnieImage HiDreamImage HunyuanDiT HunyuanDiTPAG HunyuanImage Ideogram4
        Kandinsky3 Kandinsky3Img2Img Kandinsky5T2I Kolors KolorsImg2Img KolorsPAG Krea2 LDM
        LDMTextToImage LongCatImage Lumina NucleusMoEImage OvisImage PNDM PRX PRXPixel
        QwenImage21""",
}
UNKNOWN = "it is not known to this version"


@dataclass(frozen=True)
class Support:
    """Whether models of a class of diffusers can be loaded.

    Attributes:
        name: The class.
        pipeline: This library's pipeline that loads them, or None.
        reason: Why none does; None where one does.
    """

    name: str
    pipeline: str | None
    reason: str | None

    def __str__(self) -> str:
        """One line."""
        works = self.reason is None
        return f"{self.name}: {'works' if works else f'refused, because {self.reason}'}"


def support(name: str) -> Support:
    """Whether models of a class of diffusers can be loaded.

    Args:
        name: The class, as `_class_name` in a model's model_index.json has it.
    """
    for pipeline, names in WORKS.items():
        # without "Pipeline" at its end: a class of examples/community
        if name in (*names, pipeline, pipeline.removesuffix("Pipeline")):
            return Support(name, pipeline, None)
    if name in OTHERS:
        return Support(name, OTHERS[name], None)
    short = name.removesuffix("Pipeline")
    patterns = [(one, reason) for reason, text in REFUSED.items() for one in text.split()]
    for is_exact in (True, False):
        for one, reason in patterns:
            if one == short if is_exact else fnmatchcase(short, one):
                return Support(name, None, reason)
    return Support(name, None, UNKNOWN)


def installed_classes() -> list[str]:
    """The names of all pipeline classes of the installed diffusers, sorted.

    Classes are not imported: an optional dependency of theirs may be missing.
    """
    import diffusers

    parts = ("Output", "Blocks", "Mixin", "Config")
    bases = ("DiffusionPipeline", "ModularPipeline")
    return sorted(
        name
        for name in dir(diffusers)
        if "Pipeline" in name
        and not name.startswith(("_", "AutoPipeline", "pipeline"))
        and not name.endswith(parts)
        and name not in bases
    )
