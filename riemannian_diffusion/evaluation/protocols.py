"""Protocols: what a number of a paper was taken of, so that another can be taken of the same."""

from __future__ import annotations

from dataclasses import dataclass

from riemannian_diffusion.evaluation.definitions import MEASURES
from riemannian_diffusion.measures.networks import LPIPS_NETWORKS


@dataclass(frozen=True)
class Protocol:
    """Everything that a number depends on besides the frames; `dataclasses.replace` varies it.

    FID and KID compare frames with end points: the input images where the sequences bring them,
    else the first and last frames.

    Attributes:
        name: Its name in every result.
        source: Where it comes from, and what was not stated there and is chosen here.
        measures: Names of `MEASURES`.
        num_frames: Frames of every sequence, the first and last included; None for any number that
            all of them share.
        resolution: Height and width; None for any that all frames share.
        lpips_network: "alex", "vgg" or "squeeze".
        set_frames: Frames that FID and KID draw on: "interior" ones or "all".
        num_sampled: Random frames of each sequence among those; None takes all of them.
        num_draws: Times they are drawn; FID and KID are the mean.

    Raises:
        ValueError: If a measure or a network does not exist, or a number is out of range.
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
        """Refuse a sequence that this protocol is not about.

        Args:
            name: Of the sequence, for the error.
            num_frames: Its frames.
            resolution: Their height and width.

        Raises:
            ValueError: If one of them is not the protocol's.
        """
        if self.num_frames is not None and num_frames != self.num_frames:
            raise ValueError(
                f"Protocol {self.name} is of {self.num_frames} frames, first and last included, "
                f"but {name} has {num_frames}."
            )
        if num_frames < 3:
            raise ValueError(
                f"Protocol {self.name} needs at least 3 frames, but {name} has {num_frames}."
            )
        if self.resolution is not None and resolution != self.resolution:
            raise ValueError(
                f"Protocol {self.name} is of {self.resolution[0]} x {self.resolution[1]} pixels "
                f"(height x width), but {name} has {resolution[0]} x {resolution[1]}."
            )
        candidates = num_frames if self.set_frames == "all" else num_frames - 2
        if self.num_sampled is not None and self.num_sampled > candidates:
            raise ValueError(
                f"Protocol {self.name} draws {self.num_sampled} frames of each sequence, but "
                f"{name} has {candidates} to draw from."
            )


_SAITO = (
    "Saito and Matsubara, arXiv 2510.05509: 9 interior points, LPIPS over 10 gaps, FID of all "
    "interior frames against all end points. The LPIPS network is not stated: "
)
_SAITO_MEASURES = ("fid", "kid", "ppl", "pdv_std", "re", "largest_step")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="diffmorpher17",
            source="DiffMorpher, CVPR 2024: 17 frames, AlexNet's LPIPS, FID of 2 random frames of "
            "each sequence against the inputs, mean of 10 draws. Drawn from all 17 here, without "
            "replacement; the size is its model's; KID takes the same draws.",
            measures=("fid", "kid", "ppl", "pdv_variance", "re", "largest_step"),
            num_frames=17,
            resolution=(512, 512),
            set_frames="all",
            num_sampled=2,
            num_draws=10,
        ),
        Protocol(
            name="saito11",
            source=_SAITO + "AlexNet's here.",
            measures=_SAITO_MEASURES,
            num_frames=11,
            resolution=(512, 512),
        ),
        Protocol(
            name="saito11_vgg",
            source=_SAITO + "VGG's here, as in an independent re-run.",
            measures=_SAITO_MEASURES,
            num_frames=11,
            resolution=(512, 512),
            lpips_network="vgg",
        ),
        Protocol(
            name="saito_video3",
            source="Saito and Matsubara, arXiv 2510.05509: three frames of a video, the middle one "
            "made from the other two; MSE and LPIPS to the true one. The LPIPS network and the "
            "size are not stated: AlexNet's and 512 pixels here; PSNR and SSIM are added.",
            measures=("mse", "lpips", "psnr", "ssim"),
            num_frames=3,
            resolution=(512, 512),
        ),
        Protocol(
            name="aid",
            source="AID, NeurIPS 2024: smoothness, consistency, and fidelity, which is FID. The "
            "number of frames, the LPIPS network and FID's sets are left open or chosen here: "
            "AlexNet's, interior frames against end points.",
            measures=("smoothness", "consistency", "fid", "kid"),
        ),
        Protocol(
            name="any",
            source="This library: every measure, of sequences of any length and size; compare it "
            "only among sequences of one length and one size.",
            measures=tuple(MEASURES),
        ),
    )
}
