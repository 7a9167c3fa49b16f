"""The student with everything that teaches it: one module whose forward pass is one training step's loss.

    terms = learner(batch, targets)       # {"point": Term, "global": Term, ...}
    total(terms, weights)                 # the loss

`objectives/` holds the equations; here they are only given their inputs: which features, which pairs, which sweeps.

Legend: N points, S scans, P pairs, V cameras, D teacher channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hilda_train.config import FitConfig
from hilda_train.config.objectives import HeadConfig
from hilda_train.config.occupancy import AlsoConfig, BceConfig, DiffusionConfig
from hilda_train.config.student import input_width
from hilda_train.data.batches import Batch
from hilda_train.data.tokens import Targets
from hilda_train.objectives.also import Also, Queries, sample_queries
from hilda_train.objectives.bev import BevGrid, BevHistory, SweepFeatures
from hilda_train.objectives.contrastive import PointContrast
from hilda_train.objectives.global_context import GlobalContext
from hilda_train.objectives.heads import ProjectionHead
from hilda_train.objectives.occupancy_bce import OccupancyBce
from hilda_train.objectives.occupancy_diffusion import OccupancyDiffusion
from hilda_train.objectives.point_distillation import PointDistillation
from hilda_train.objectives.relational import relational_loss, stratified_pairs
from hilda_train.objectives.schedule import NoiseSchedule
from hilda_train.objectives.term import Term
from hilda_train.objectives.unet2d import UNet2d
from hilda_train.students import Level, Student, build_student

OCCUPANCY_FRAMES = 2  # t-1 and t0


def bev_grid(config: DiffusionConfig | BceConfig) -> BevGrid:
    """The bird's-eye grid of an occupancy objective."""
    return BevGrid(config.range_m, config.cell_m, config.z_min_m, config.z_max_m)


class Learner(nn.Module):
    """Student, heads and objectives.

    Args:
        config: resolved.
        widths: D of each target, in the order of the student's levels.
        global_width: D of the global token; 0 where no objective uses it.
    """

    def __init__(self, config: FitConfig, widths: Sequence[int], global_width: int) -> None:
        super().__init__()
        objectives = config.objectives
        self.config = objectives
        self.student: Student = build_student(config.student.options())
        channels = self.student.channels
        heads = [_head(objectives.point.head, c, d) for c, d in zip(channels, widths, strict=True)]
        uses_heads = objectives.point.weight + objectives.relational.cross_weight + objectives.relational.intra_weight
        self.point = PointDistillation(heads, objectives.point.distance) if uses_heads else None
        self.global_context: GlobalContext | None = None
        if objectives.global_context.weight:
            head = _head(objectives.global_context.head, channels[-1], global_width)
            self.global_context = GlobalContext(head, channels[-1], objectives.global_context.pooling)
        self.contrast: PointContrast | None = None
        if objectives.contrastive.weight:
            common = objectives.contrastive.channels
            self.contrast = PointContrast(
                nn.Linear(channels[-1], common),
                nn.Linear(widths[-1], common),
                pairs=objectives.contrastive.pairs,
                temperature=objectives.contrastive.temperature,
            )
        self.occupancy = _occupancy(config, channels[-1])
        # ALSO asks for the intensity; a student that is not given it may only give that part no weight.
        inputs = config.student.channels
        self.intensity_column = input_width(inputs[: inputs.index("intensity")]) if "intensity" in inputs else 0

    def forward(self, batch: Batch, targets: Targets) -> dict[str, Term]:
        """One step's terms, unweighted, by name.

        Args:
            batch: on the learner's device.
            targets: its teacher features.
        """
        levels = self.student.encode(batch.points)
        rows = [level.point_row[batch.pair_point] for level in levels]
        terms: dict[str, Term] = {}
        projected: list[Tensor] = []
        if self.point is not None:
            projected = self.point.project([level.feats for level in levels], rows)
        if self.point is not None and self.config.point.weight:
            terms["point"] = self._point(projected, batch, targets)
        if self.config.relational.cross_weight or self.config.relational.intra_weight:
            terms["relational"] = self._relational(projected[-1], batch, targets)
        if self.contrast is not None:
            taught = targets.taught[-1]
            teacher, generator = targets.layers[-1][taught], generator_of(batch.seeds, taught.device)
            terms["contrastive"] = self.contrast(levels[-1].feats, rows[-1][taught], teacher, generator)
        if self.global_context is not None:
            terms["global"] = self._global(levels[-1], batch, targets)
        if self.occupancy is not None:
            terms["occupancy"] = self._occupancy(levels[-1].at_points(), batch)
        return terms

    def _point(self, projected: Sequence[Tensor], batch: Batch, targets: Targets) -> Term:
        assert self.point is not None
        groups = batch.group_starts[-1]
        camera = batch.pair_group
        if self.config.point.mean_over == "pairs":
            camera, groups = torch.zeros_like(camera), 1
        if targets.whole:
            return self.point.compare(projected, targets.layers, camera, groups)
        terms = [
            self.point.compare([k[taught]], [q[taught]], camera[taught], groups)
            for k, q, taught in zip(projected, targets.layers, targets.taught, strict=True)
        ]
        # The same names as above: ranks log together, and on another rank all may be taught.
        logs = {f"layer_{index}": term.loss.detach() for index, term in enumerate(terms)}
        logs["cameras"] = terms[-1].logs["cameras"]
        return Term(torch.stack([term.loss for term in terms]).mean(), logs)

    def _relational(self, projected: Tensor, batch: Batch, targets: Targets) -> Term:
        options, taught = self.config.relational, targets.taught[-1].nonzero()[:, 0]
        generator = generator_of(batch.seeds, projected.device)
        drawn = taught[stratified_pairs(batch.uv01[taught], batch.pair_group[taught], options.pairs, generator)]
        return relational_loss(
            projected[drawn],
            targets.layers[-1][drawn],
            batch.pair_group[drawn],
            cross_weight=options.cross_weight,
            intra_weight=options.intra_weight,
            diagonal=not self.config.point.weight,
        )

    def _global(self, level: Level, batch: Batch, targets: Targets) -> Term:
        assert self.global_context is not None
        device = level.feats.device
        tokens, views = stack_tokens(targets.global_tokens, device)
        starts = torch.tensor(batch.group_starts[:-1], device=device)
        counts = torch.tensor(batch.pair_counts, device=device)
        scan = torch.arange(len(counts), device=device).repeat_interleave(counts)
        camera = batch.pair_group - starts[scan] + scan * views
        if self.global_context.pooling == "attention":  # the one that counts points, however many share a row
            level = Level.of_points(level.at_points(), batch.points)
        rows = level.point_row[batch.pair_point]
        term: Term = self.global_context(level.feats, level.item, tokens, rows, camera)
        return term

    def _occupancy(self, features: Tensor, batch: Batch) -> Term:
        if isinstance(self.occupancy, Also):
            return self._also(features, batch)
        sweeps = history_sweeps(features, batch)
        if isinstance(self.occupancy, OccupancyDiffusion):
            generators = [generator_of([seed], features.device) for seed in batch.target_seeds]
            term: Term = self.occupancy(sweeps, batch.target, generators)
        else:
            assert isinstance(self.occupancy, OccupancyBce)
            term = self.occupancy(sweeps, batch.target)
        return term

    def _also(self, features: Tensor, batch: Batch) -> Term:
        """Queries of every scan, in its own frame: the sensor is at the origin there."""
        assert isinstance(self.occupancy, Also)
        assert isinstance(self.config.occupancy, AlsoConfig)
        points, generator = batch.points, generator_of(batch.seeds, features.device)
        drawn, scans, intensity = [], [], []
        for scan in range(points.batch_size):
            rows = (points.batch_index == scan).nonzero()[:, 0]
            origin = points.xyz_m.new_zeros(3)
            queries = sample_queries(
                points.xyz_m[rows], origin, self.config.occupancy.queries, self.config.occupancy.margin_m, generator
            )
            drawn.append(queries)
            scans.append(torch.full((len(queries.xyz_m),), scan, device=features.device))
            intensity.append(points.feats[rows, self.intensity_column][queries.source])
        joined = Queries(*(torch.cat(column) for column in zip(*drawn, strict=True)))
        term: Term = self.occupancy(
            features, points.xyz_m, points.batch_index, joined, torch.cat(scans), torch.cat(intensity), generator
        )
        return term

    def weights(self) -> dict[str, float]:
        """The weight of each term; the relational term carries its two inside."""
        occupancy = self.config.occupancy
        return {
            "point": self.config.point.weight,
            "relational": 1.0,
            "contrastive": self.config.contrastive.weight,
            "global": self.config.global_context.weight,
            "occupancy": 0.0 if occupancy.kind == "none" else occupancy.weight,
        }


def total(terms: Mapping[str, Term], weights: Mapping[str, float]) -> Tensor:
    """() weighted sum of the terms."""
    return torch.stack([weights[name] * term.loss for name, term in terms.items()]).sum()


def generator_of(seeds: Sequence[int], device: torch.device) -> torch.Generator:
    """A generator for some samples; it follows from their seeds alone, whoever computes them."""
    return torch.Generator(device).manual_seed(sum(seeds) % 2**63)


def history_sweeps(features: Tensor, batch: Batch) -> list[SweepFeatures]:
    """The sweeps t-1 and t0 of every sample with a target, with coordinates in the augmented frame of t0.

    Args:
        features: (N, C) of the batch's points.
        batch: N points of S scans.
    """
    sample_of = torch.full((OCCUPANCY_FRAMES, len(batch.pair_counts)), -1, device=features.device)
    for sample, scans in enumerate(batch.histories):
        for frame, scan in enumerate(scans):
            sample_of[frame, scan] = sample
    xyz_m = batch.points.xyz_m
    sweeps = []
    for frame in range(OCCUPANCY_FRAMES):
        samples = sample_of[frame][batch.points.batch_index]
        rows = (samples >= 0).nonzero()[:, 0]
        pose = batch.t0_SE3_scan[batch.points.batch_index[rows]]
        # A sum and not a matrix product: autocast would round the metres to bfloat16, a quarter of one at 50.
        moved = (pose[:, :3, :3] * xyz_m[rows, None]).sum(2) + pose[:, :3, 3]
        sweeps.append(SweepFeatures(features[rows], moved, samples[rows]))
    return sweeps


def stack_tokens(tokens: Sequence[Tensor | None], device: torch.device) -> tuple[Tensor, int]:
    """Global tokens of scans with different numbers of cameras: (S, V, D) padded with NaN, and V."""
    known = [token for token in tokens if token is not None]
    views = max((len(token) for token in known), default=1)
    width = known[0].shape[1] if known else 1
    stacked = torch.full((len(tokens), views, width), torch.nan, device=device)
    for scan, token in enumerate(tokens):
        if token is not None:
            stacked[scan, : len(token)] = token
    return stacked, views


def _head(config: HeadConfig, in_channels: int, out_channels: int) -> ProjectionHead:
    return ProjectionHead(
        in_channels, out_channels, hidden=config.hidden, layers=config.layers, activation=config.activation
    )


def _occupancy(config: FitConfig, channels: int) -> OccupancyDiffusion | OccupancyBce | Also | None:
    occupancy = config.objectives.occupancy
    if isinstance(occupancy, AlsoConfig):
        return Also(
            channels,
            hidden=occupancy.hidden,
            radius_m=occupancy.radius_m,
            supports=occupancy.supports,
            intensity_weight=occupancy.intensity_weight,
        )
    if not isinstance(occupancy, DiffusionConfig | BceConfig):
        return None
    history = BevHistory(channels, occupancy.history_channels, bev_grid(occupancy), OCCUPANCY_FRAMES)
    noised = int(isinstance(occupancy, DiffusionConfig))  # the denoiser also sees the noised map
    network = UNet2d(
        noised + occupancy.history_channels,
        base=occupancy.base,
        multipliers=occupancy.multipliers,
        blocks=occupancy.blocks,
    )
    if isinstance(occupancy, BceConfig):
        return OccupancyBce(history, network, occupancy.occupied_weight)
    return OccupancyDiffusion(
        history,
        network,
        NoiseSchedule(occupancy.noise, occupancy.steps),
        lambda_x0=occupancy.lambda_x0,
        occupied_weight=occupancy.occupied_weight,
        draws=occupancy.draws,
    )
