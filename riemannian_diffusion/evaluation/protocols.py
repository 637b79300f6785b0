"""Protocols of published numbers, so that new numbers can be compared with them."""

from __future__ import annotations

from dataclasses import dataclass

from riemannian_diffusion.evaluation.definitions import MEASURES
from riemannian_diffusion.measures.networks import LPIPS_NETWORKS


@dataclass(frozen=True)
class Protocol:
    """All choices on which a measure depends besides the frames.

    Use `dataclasses.replace` to make a variant. FID and KID compare frames with end points: the
    input images if the sequences have them, otherwise the first and last frames.

    Attributes:
        name: Name of the protocol, which every result repeats.
        source: The publication, and the choices of this library where the publication leaves
            something open.
        measures: Names of measures, keys of `MEASURES`.
        num_frames: Number of frames of every sequence, including the first and the last. None
            allows any number that all sequences share.
        resolution: Height and width of the frames. None allows any size that all frames share.
        lpips_network: "alex", "vgg" or "squeeze".
        set_frames: Frames that FID and KID use: "interior" or "all".
        num_sampled: Number of frames that FID and KID draw at random from each sequence, among
            `set_frames`. None uses all of these frames.
        num_draws: Number of random draws; FID and KID are means over draws.
        note: How published numbers differ from these measures, or an empty text.

    Raises:
        ValueError: If a measure or a network does not exist, or a number is out of range.

    Examples:
        >>> from riemannian_diffusion.evaluation import PROTOCOLS
        >>> PROTOCOLS['diffmorpher17'].name
        'diffmorpher17'
    """

    name: str
    source: str
    measures: tuple[str, ...]
    num_frames: int | None = None
    resolution: tuple[int, int] | None = None
    lpips_network: str = "alex"
    set_frames: str = "interior"
    num_sampled: int | None = None
    num_draws: int = 1
    note: str = ""

    def __post_init__(self):
        unknown = [name for name in self.measures if name not in MEASURES]
        if unknown or not self.measures:
            raise ValueError(
                f"`measures` must be among {', '.join(MEASURES)}, but got {self.measures}."
            )
        if self.lpips_network not in LPIPS_NETWORKS:
            raise ValueError(
                f"`lpips_network` must be one of {', '.join(LPIPS_NETWORKS)}, but got "
                f"{self.lpips_network!r}."
            )
        if self.set_frames not in ("interior", "all"):
            raise ValueError(
                f"`set_frames` must be 'interior' or 'all', but got {self.set_frames!r}."
            )
        for name, value, least in (
            ("num_frames", self.num_frames, 3),
            ("num_sampled", self.num_sampled, 1),
            ("num_draws", self.num_draws, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"`{name}` must be at least {least}, but got {value}.")

    def check(self, name: str, num_frames: int, resolution: tuple[int, int]) -> None:
        """Check that a sequence fits this protocol.

        Args:
            name: Name of the sequence in error messages.
            num_frames: Number of frames of the sequence.
            resolution: Height and width of the frames.

        Raises:
            ValueError: If the sequence has another number of frames or another size than the
                protocol demands.
        """
        if self.num_frames is not None and num_frames != self.num_frames:
            raise ValueError(
                f"Protocol {self.name} needs {self.num_frames} frames, including the first and the "
                f"last, but {name} has {num_frames}."
            )
        if num_frames < 3:
            raise ValueError(
                f"Protocol {self.name} needs at least 3 frames, but {name} has {num_frames}."
            )
        if self.resolution is not None and resolution != self.resolution:
            raise ValueError(
                f"Protocol {self.name} needs {self.resolution[0]} x {self.resolution[1]} pixels "
                f"(height x width), but {name} has {resolution[0]} x {resolution[1]}."
            )
        candidates = num_frames if self.set_frames == "all" else num_frames - 2
        if self.num_sampled is not None and self.num_sampled > candidates:
            raise ValueError(
                f"Protocol {self.name} draws {self.num_sampled} frames from each sequence, but "
                f"{name} has only {candidates} that it may draw."
            )


_SAITO = (
    "Saito and Matsubara, arXiv 2510.05509: 9 interior points, LPIPS between 10 pairs of adjacent "
    "frames, FID of all interior frames against all end points. The paper does not state the LPIPS "
    "network; this protocol uses "
)
_SAITO_MEASURES = ("fid", "kid", "ppl", "pdv_std", "re", "largest_step")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="diffmorpher17",
            source="DiffMorpher, CVPR 2024: 17 frames, LPIPS of AlexNet, FID of 2 random frames "
            "from each sequence against the inputs, mean of 10 draws. This protocol draws from all "
            "17 frames without replacement, uses the size of DiffMorpher's model, and computes KID "
            "from the same draws.",
            measures=("fid", "kid", "ppl", "pdv_variance", "re", "largest_step"),
            num_frames=17,
            resolution=(512, 512),
            set_frames="all",
            num_sampled=2,
            num_draws=10,
            note="DiffMorpher's published PPL and PDV are not the raw sum and variance of LPIPS. "
            "256 LPIPS per step, that is LPIPS over the squared step 1 / 16, fits them: PPL as its "
            "mean, PDV as its variance. To compare, multiply ppl by 16 and pdv_variance by 65536. "
            "These factors are inferred from the size of the published values.",
        ),
        Protocol(
            name="saito11",
            source=_SAITO + "AlexNet.",
            measures=_SAITO_MEASURES,
            num_frames=11,
            resolution=(512, 512),
        ),
        Protocol(
            name="saito11_vgg",
            source=_SAITO + "VGG, as an independent reproduction did.",
            measures=_SAITO_MEASURES,
            num_frames=11,
            resolution=(512, 512),
            lpips_network="vgg",
        ),
        Protocol(
            name="saito_video3",
            source="Saito and Matsubara, arXiv 2510.05509: three frames of a video, where the "
            "middle one is made from the other two; MSE and LPIPS to the true one. The paper does "
            "not state the LPIPS network and the size; this protocol uses AlexNet and 512 pixels, "
            "and it adds PSNR and SSIM.",
            measures=("mse", "lpips", "psnr", "ssim"),
            num_frames=3,
            resolution=(512, 512),
        ),
        Protocol(
            name="aid",
            source="AID, NeurIPS 2024: smoothness, consistency, and fidelity, which is FID. "
            "This protocol leaves the number of frames open and chooses AlexNet for LPIPS, and "
            "interior frames against end points for FID.",
            measures=("smoothness", "consistency", "fid", "kid"),
        ),
        Protocol(
            name="any",
            source="This library: every measure, for sequences of any length and size. Compare "
            "values only between sequences of the same length and size.",
            measures=tuple(MEASURES),
        ),
    )
}
