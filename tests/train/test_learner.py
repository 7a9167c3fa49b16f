"""One step's loss, from the equations: what the cache holds and the student says, in loops and in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hilda_schema.errors import UsageError
from hilda_schema.testing import tiny_parts, tiny_recipe
from hilda_schema.writer import finish_store, start_store, write_part
from hilda_train.config import apply_set
from hilda_train.data.augment import draw
from hilda_train.data.batches import join
from hilda_train.data.tokens import read_scan_tokens, sample_targets
from hilda_train.learner import generator_of, history_sweeps, stack_tokens, total
from hilda_train.objectives.bev import FREE, OCCUPIED, UNOBSERVED
from hilda_train.prepare import build_learner, prepare
from hilda_train.recipes import load_recipe

CPU = torch.device("cpu")
STUDENT = "student={arch: minkunet, depth: 14, width: 0.125, voxels: {size: [0.5, 0.5, 0.5]}}"
DATA = "data={batch_size: 2, gap_s: 0.1, intensity: {toy: {mean: 0.5, std: 0.3}, other: {mean: 0.4, std: 0.2}}}"
HEADS = ("objectives.point.head={hidden: 12}", "objectives.global_context.head={hidden: 12}")
BEV = (
    "objectives.occupancy={range_m: 16.0, cell_m: 2.0, history_channels: 4, base: 8, multipliers: [1, 2], blocks: 1, "
    "steps: 20, lambda_x0: 0.3, occupied_weight: 3.0, weight: 0.7}"
)
WEIGHTS = ("objectives.point.weight=1.3", "objectives.global_context.weight=0.4")
HILDA = (STUDENT, DATA, *HEADS, BEV, *WEIGHTS, "train.seed=3", "schedule={kind: constant}", "train={max_steps: 1}")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products this small take longer to share out than to compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """Two caches on disk, the second with teacher "vit" alone and another dataset's name."""
    urls = []
    for name, teachers in (("toy", 2), ("other", 1)):
        recipe = tiny_recipe()
        info = recipe.dataset.model_copy(update={"name": name})
        recipe = recipe.model_copy(update={"dataset": info, "teachers": recipe.teachers[:teachers]})
        path = tmp_path_factory.mktemp("caches") / name
        parts = tiny_parts(recipe, scenes=2, frames=4, points=60, seed=teachers)
        start_store(path, recipe, planned_parts=len(parts))
        finish_store(path, recipe, [write_part(path, recipe, part) for part in parts])
        urls.append(str(path))
    return urls


def step_of(urls, numbers, *assignments, recipe="hilda"):
    """Everything that a step is made of, with the learner's and the batch's numbers in float64."""
    prepared = prepare(apply_set(load_recipe(recipe), [*assignments]), urls, CPU)
    batch = join([prepared.dataset[0, k, number] for k, number in enumerate(numbers)], 16)
    rows = torch.split(batch.pair_row, list(batch.pair_counts))
    tokens = [
        read_scan_tokens(
            prepared.caches[cache], row, kept.numpy(), prepared.tokens.layers, prepared.tokens.global_teacher
        )
        for (cache, row), kept in zip(batch.sources, rows, strict=True)
    ]
    targets = sample_targets(batch, tokens, prepared.widths, CPU)
    learner = build_learner(prepared).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in learner.parameters():  # the denoiser starts as zero, which would hide most mistakes
        if not parameter.any():
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    widened = replace(
        batch,
        points=batch.points._map(lambda x: x.double() if x.is_floating_point() else x),
        uv01=batch.uv01.double(),
        t0_SE3_scan=batch.t0_SE3_scan.double(),
    )
    targets = replace(targets, layers=tuple(layer.double() for layer in targets.layers))
    return SimpleNamespace(prepared=prepared, batch=widened, targets=targets, learner=learner, numbers=numbers)


def value_of(loss):
    return float(loss.detach())


def head_of(head, rows):
    """A projection head in plain products: linear layers with GELU between them."""
    values = rows.detach()
    for layer in head:
        if isinstance(layer, torch.nn.Linear):
            values = values @ layer.weight.detach().T + layer.bias.detach()
        else:
            values = 0.5 * values * (1 + torch.erf(values / math.sqrt(2)))
    return values


def pairs_of(step):
    """(scan, camera, point of the batch, frame, row of the frame's pairs), one by one."""
    batch, k = step.batch, 0
    for scan, ((cache, row), count) in enumerate(zip(batch.sources, batch.pair_counts, strict=True)):
        frame = step.prepared.caches[cache][row]
        for _ in range(count):
            camera = int(batch.pair_group[k]) - batch.group_starts[scan]
            yield scan, camera, int(batch.pair_point[k]), frame, int(batch.pair_row[k])
            k += 1


def naive_point(step, levels):
    """1 - cos, mean over a camera's pairs, then over the cameras that have any, then over the layers."""
    heads, layers = step.learner.point.heads, step.prepared.tokens.layers
    losses = []
    for head, layer, level in zip(heads, layers, levels, strict=True):
        groups, features = {}, {}
        projected = head_of(head, level).numpy()
        for scan, camera, point, frame, row in pairs_of(step):
            if layer.teacher not in frame.cache.teachers:
                continue
            if scan not in features:
                features[scan] = frame.point_features(layer.teacher, layer.layer).astype(np.float64)
            q = features[scan][row]
            k = projected[point]
            groups.setdefault((scan, camera), []).append(1 - k @ q / (np.linalg.norm(k) * np.linalg.norm(q)))
        losses.append(np.mean([np.mean(each) for each in groups.values()]) if groups else 0.0)
    return np.mean(losses)


def naive_global(step, last):
    """Squared distance of the largest projections over all points to the largest token over all cameras."""
    squares = []
    for scan, (cache, row) in enumerate(step.batch.sources):
        frame = step.prepared.caches[cache][row]
        here = (step.batch.points.batch_index == scan).nonzero()[:, 0]
        tokens = frame.global_tokens("vit").astype(np.float64)[frame.present]
        if len(here) and len(tokens):
            student = head_of(step.learner.global_context.head, last[here]).numpy().max(axis=0)
            squares.append(np.mean((student - tokens.max(axis=0)) ** 2))
    return np.mean(squares)


def naive_history(step, last):
    """Mean, maximum and a one for every cell that points of t-1 and of t0 fall in, each mixed by its own matrix."""
    batch, history = step.batch, step.learner.occupancy.history
    maps = []
    for sample, number in enumerate(step.numbers):
        if sample not in [int(batch.scan_sample[now]) for _, now in batch.histories]:
            continue
        clip = step.prepared.clips[number]
        cache = step.prepared.caches[clip.cache]
        rng = np.random.default_rng([step.prepared.config.train.seed, 0, sample])
        matrix = draw(step.prepared.dataset.options.augment, rng).matrix
        scans = [scan for scan in range(len(batch.sources)) if int(batch.scan_sample[scan]) == sample]
        cells = np.tile(history.bias.detach().numpy()[:, None, None], (1, 16, 16))
        for mix, scan, row in zip(history.mix, scans, (clip.previous, clip.current), strict=True):
            here = (batch.points.batch_index == scan).nonzero()[:, 0]
            t0_SE3_scan = np.linalg.inv(cache[clip.current].world_SE3_lidar) @ cache[row].world_SE3_lidar
            found = {}
            for point in here.tolist():
                recorded = np.linalg.inv(matrix) @ batch.points.xyz_m[point].numpy()
                x, y, _ = matrix @ (t0_SE3_scan[:3, :3] @ recorded + t0_SE3_scan[:3, 3])
                cell = (math.floor((x + 16) / 2), math.floor((y + 16) / 2))
                if 0 <= cell[0] < 16 and 0 <= cell[1] < 16:
                    found.setdefault(cell, []).append(last[point].detach().numpy())
            for (i, j), rows in found.items():
                collapsed = np.concatenate([np.mean(rows, axis=0), np.max(rows, axis=0), [1.0]])
                cells[:, i, j] += mix.weight.detach().numpy() @ collapsed
        maps.append(cells)
    return torch.from_numpy(np.stack(maps))


def naive_occupancy(step, last):
    """|eps - eps_theta|^2 + lambda |x - xhat|^2, cell by cell, with the noise that each sample's seed gives."""
    batch, occupancy = step.batch, step.learner.occupancy
    history = naive_history(step, last)
    betas = np.linspace(1e-4, 0.02, 20)
    noise_error, x0_error, cells, weights = 0.0, 0.0, 0.0, 0.0
    value = {FREE: -1.0, OCCUPIED: 1.0, UNOBSERVED: 0.0}
    for sample, seed in enumerate(batch.target_seeds):
        generator = torch.Generator().manual_seed(seed % 2**63)
        tau = int(torch.randint(20, (1,), generator=generator))
        eps = torch.randn((1, 16, 16), generator=generator).double()
        abar = float(np.prod(1 - betas[: tau + 1]))
        clean = torch.tensor([[value[int(cell)] for cell in row] for row in batch.target[sample]], dtype=torch.float64)
        noised = math.sqrt(abar) * clean + math.sqrt(1 - abar) * eps[0]
        stacked = torch.cat([noised[None, None], history[sample : sample + 1]], dim=1)
        velocity = occupancy.denoiser(stacked, torch.tensor([tau])).detach()[0, 0]
        predicted = math.sqrt(1 - abar) * noised + math.sqrt(abar) * velocity
        for i in range(16):
            for j in range(16):
                kind = int(batch.target[sample, i, j])
                if kind == UNOBSERVED:
                    continue
                cells += 1
                noise_error += float(eps[0, i, j] - predicted[i, j]) ** 2
                weight = 3.0 if kind == OCCUPIED else 1.0
                weights += weight
                estimate = (float(noised[i, j]) - math.sqrt(1 - abar) * float(predicted[i, j])) / math.sqrt(abar)
                x0_error += weight * (estimate - value[kind]) ** 2
    return noise_error / max(cells, 1.0) + 0.3 * x0_error / max(weights, 1.0)


@pytest.mark.parametrize("numbers", [(1, 2), (0, 5, 2), (4, 7, 6)])
def test_hildas_loss_is_the_papers(caches, numbers):
    """Whole clips, clips at a scene's border, sweeps without pairs (row 4), without points (row 7), and before one."""
    step = step_of(caches[:1], numbers, *HILDA)
    terms = step.learner(step.batch, step.targets)
    levels = step.learner.student(step.batch.points)  # batch normalisation sees the same batch again
    expected = {
        "point": naive_point(step, levels),
        "global": naive_global(step, levels[-1]),
        "occupancy": naive_occupancy(step, levels[-1]),
    }
    for name, term in terms.items():
        # The noise schedule's table is float32, and so are the cache's features and poses.
        assert value_of(term.loss) == pytest.approx(expected[name], rel=2e-6), name
    assert terms.keys() == expected.keys()
    weighted = 1.3 * expected["point"] + 0.4 * expected["global"] + 0.7 * expected["occupancy"]
    assert value_of(total(terms, step.learner.weights())) == pytest.approx(weighted, rel=2e-6)


def test_pairs_of_a_cache_without_the_teacher_are_left_out(caches):
    """The second cache lacks "cnn": its pairs count for the first target and not for the second."""
    targets = "targets=[{teacher: vit, layer: 4}, {teacher: cnn, layer: stage2}]"
    step = step_of(caches, (1, 10, 9), *HILDA, targets, "objectives.global_context.teacher=vit")
    assert {cache for cache, _ in step.batch.sources} == {0, 1}
    terms = step.learner(step.batch, step.targets)
    levels = step.learner.student(step.batch.points)
    assert value_of(terms["point"].loss) == pytest.approx(naive_point(step, levels), rel=2e-6)
    assert value_of(terms["global"].loss) == pytest.approx(naive_global(step, levels[-1]), rel=2e-6)

    alone = step_of(caches, (10, 9), *HILDA, targets, "objectives.global_context.teacher=vit")
    terms = alone.learner(alone.batch, alone.targets)
    levels = alone.learner.student(alone.batch.points)
    assert value_of(terms["point"].loss) == pytest.approx(naive_point(alone, levels), rel=2e-6)
    assert float(terms["point"].logs["layer_1"]) == 0

    # Processes add up what they log, so a batch with gaps must log what a whole one does.
    whole = step_of(caches[:1], (1,), *HILDA)
    assert not alone.targets.whole
    assert whole.targets.whole
    assert whole.learner(whole.batch, whole.targets)["point"].logs.keys() == terms["point"].logs.keys()


def test_scalrs_loss_is_one_mean_over_all_pairs_of_the_length_of_a_difference(caches):
    options = ("objectives.point={distance: norm, mean_over: pairs, head: {layers: 1}}", "student.levels=[block8]")
    step = step_of(caches[:1], (1, 6), STUDENT, DATA, *options, "schedule={kind: constant}", recipe="base")
    terms = step.learner(step.batch, step.targets)
    (level,) = step.learner.student(step.batch.points)
    lengths, projected = [], head_of(step.learner.point.heads[0], level).numpy()
    for _, _, point, frame, row in pairs_of(step):
        k, q = projected[point], frame.point_features("vit", "4").astype(np.float64)[row]
        lengths.append(np.linalg.norm(k / np.linalg.norm(k) - q / np.linalg.norm(q)))
    assert value_of(terms["point"].loss) == pytest.approx(np.mean(lengths), rel=2e-6)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("hilda", (BEV, "objectives.point.head={hidden: 12}", "objectives.global_context.head={hidden: 12}")),
        ("relational", ("objectives.point.head={hidden: 12}", "objectives.relational.pairs=20")),
        ("ppkt", ("objectives.contrastive={pairs: 30, channels: 8}",)),
        ("hilda_also", (*HEADS, "objectives.occupancy={queries: 60, hidden: 16}")),
        ("hilda_bce", (*HEADS, BEV.partition(" steps:")[0].rstrip(", ") + "}")),
    ],
)
def test_the_gradient_is_the_losss_slope(caches, recipe, options):
    """Along a random direction of all parameters, from the heads down to the student's first kernel."""
    step = step_of(caches[:1], (1, 5), STUDENT, DATA, *options, "schedule={kind: constant}", recipe=recipe)
    learner, weights = step.learner, step.learner.weights()
    total(learner(step.batch, step.targets), weights).backward()
    parameters = [parameter for parameter in learner.parameters() if parameter.grad is not None]
    assert learner.student.conv0p1s1.kernel.grad.any()
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, directions, strict=True))

    def loss_at(length):
        with torch.no_grad():
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter += length * direction
            value = float(total(learner(step.batch, step.targets), weights))
            for parameter, direction in zip(parameters, directions, strict=True):
                parameter -= length * direction
        return value

    # The maxima and rectifiers have kinks; steps this short cross few of them.
    length = 1e-7
    assert (loss_at(length) - loss_at(-length)) / (2 * length) == pytest.approx(slope, rel=1e-4)


@pytest.mark.parametrize("term", ["point", "global", "occupancy"])
def test_each_objective_reaches_the_student_by_itself(caches, term):
    step = step_of(caches[:1], (1, 2), *HILDA)
    step.learner(step.batch, step.targets)[term].loss.backward()
    assert step.learner.student.conv0p1s1.kernel.grad.any()


@pytest.mark.parametrize(
    "options",
    [
        ("objectives.point.weight=0", "objectives.global_context.weight=0"),
        ("objectives.point.weight=0", "objectives.occupancy={kind: none}"),
        ("objectives.global_context.weight=0", "objectives.occupancy={kind: none}"),
    ],
)
def test_each_objective_stands_alone(caches, options):
    """Without a term that compares pixels no layer is read, and the step works nevertheless."""
    base = [each for each in HILDA if not each.startswith(("objectives.occupancy", *("objectives.point.w",)))]
    kept = (BEV,) if "objectives.occupancy={kind: none}" not in options else ()
    step = step_of(caches[:1], (1, 2), *base, *kept, *options)
    terms = step.learner(step.batch, step.targets)
    assert len(terms) == 1
    assert all(value_of(each.loss) > 0 for each in terms.values())


@pytest.mark.parametrize("recipe", ["hilda", "relational", "ppkt", "hilda_also", "hilda_bce"])
def test_a_batch_without_any_point_or_pair_has_a_loss_of_zero(caches, recipe):
    """Row 7 has no points, row 4 no pairs; every gradient is zero or absent, none is NaN."""
    options = (STUDENT, DATA, "schedule={kind: constant}")
    if recipe in {"hilda", "hilda_bce"}:
        options += (BEV if recipe == "hilda" else BEV.partition(" steps:")[0].rstrip(", ") + "}",)
    step = step_of(caches[:1], (7,), *options, recipe=recipe)
    batch = join([replace(step.prepared.dataset[0, 0, 7], previous=None, target=None)], 16)
    tokens = [read_scan_tokens(step.prepared.caches[0], 7, batch.pair_row.numpy(), step.prepared.tokens.layers, None)]
    targets = sample_targets(batch, tokens, step.prepared.widths, CPU)
    learner = build_learner(step.prepared)
    terms = learner(batch, targets)
    loss = total(terms, learner.weights())
    assert value_of(loss) == 0
    loss.backward()
    for parameter in learner.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_poses_keep_their_metres_under_autocast(caches):
    """bfloat16 has a step of a quarter of a metre at 50 m; cells are 0.4 m wide."""
    step = step_of(caches[:1], (1, 2), *HILDA)
    batch = replace(step.batch, points=replace(step.batch.points, xyz_m=(40 * step.batch.points.xyz_m).float()))
    batch = replace(batch, t0_SE3_scan=batch.t0_SE3_scan.float())
    features = torch.zeros(len(batch.points.xyz_m), 2)
    exact = history_sweeps(features, batch)
    with torch.autocast("cpu", torch.bfloat16):
        found = history_sweeps(features, batch)
    for a, b in zip(found, exact, strict=True):
        assert a.xyz_m.abs().max() > 500
        torch.testing.assert_close(a.xyz_m, b.xyz_m, atol=1e-3, rtol=0)


def test_also_learns_the_intensity_wherever_the_input_has_it(caches):
    """The order of the input channels changes which column it is, not what the objective asks for."""
    seen = []
    for channels in ("[intensity, xyz]", "[xyz, intensity]"):
        options = (STUDENT, DATA, f"student.channels={channels}", "objectives.occupancy={queries: 90}")
        step = step_of(caches[:1], (1,), *options, recipe="hilda_also")
        known = []
        step.learner.occupancy.forward = lambda *given, known=known: known.append(given[5])
        step.learner._also(torch.zeros(len(step.batch.points.xyz_m), 1), step.batch)
        seen.append(known[0])
    assert torch.equal(*seen)
    options = (STUDENT, DATA, "student.channels=[xyz]")
    with pytest.raises(UsageError, match=r"intensity_weight = 1 asks for the intensity, which student.channels leaves"):
        step_of(caches[:1], (1,), *options, recipe="hilda_also")
    step = step_of(caches[:1], (1,), *options, "objectives.occupancy.intensity_weight=0", recipe="hilda_also")
    assert value_of(step.learner(step.batch, step.targets)["occupancy"].loss) > 0


def test_noise_follows_from_a_samples_seed_whatever_its_batch(caches):
    alone = step_of(caches[:1], (1,), *HILDA)
    sample = alone.prepared.dataset[0, 0, 1]
    assert alone.batch.target_seeds == (sample.seed,)
    draws = [torch.randn(3, generator=generator_of([seed], CPU)) for seed in (sample.seed, sample.seed, 5)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(
        torch.randn(3, generator=generator_of([1, 2], CPU)), torch.randn(3, generator=generator_of([3], CPU))
    )


def test_tokens_of_scans_with_other_cameras_are_padded_with_absent_ones():
    tokens, views = stack_tokens([torch.ones(2, 3), None, torch.full((4, 3), 2.0)], CPU)
    assert (tuple(tokens.shape), views) == ((3, 4, 3), 4)
    assert tokens.isnan().all(dim=2).tolist() == [[False, False, True, True], [True] * 4, [False] * 4]
    none, views = stack_tokens([None, None], CPU)
    assert (tuple(none.shape), views) == ((2, 1, 1), 1)
    assert none.isnan().all()
