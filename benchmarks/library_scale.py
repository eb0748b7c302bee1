"""A library of ten thousand skills: publish, list, search, load, find copies, survive kills, move to a new base.

The base is an actor of the walker's shape (24 observations, 6 actions, two layers of 256), skills have rank 8. Kills
are SIGKILL at random moments of publishing and of moving skills to another base; after each the library is opened and
every skill it lists is read and held against what the killed writer had acknowledged. Moving is judged by the return
of eight point-mass skills (benchmarks/merging.py) on a base of another seed, three times with worlds, bases and skills
of their own.

    python benchmarks/library_scale.py [--quick] [--json]
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import Claim, arguments, report, table
from merging import TASKS, Study, acting, trained_base

from policies.actor import StackedGaussianActor
from policies.adapter import Adapter, Factors, Header
from policies.hashing import content_digest
from policies.library import NEAR, SAME, Library
from policies.lora import base_digest, layer_shape, linear_layers, merge_into
from policies.networks import generators
from policies.rebase import procrustes_rebase, rebase

RANK = 8


def walker_base(seed: int = 0) -> StackedGaussianActor:
    return StackedGaussianActor(24, 6, generators(seed, 1)).requires_grad_(False)


def header_of(actor: StackedGaussianActor) -> Header:
    return Header(base_digest(actor), "walker", actor.normalizer.digest)


def shapes_of(actor: torch.nn.Module) -> dict[str, tuple[int, int]]:
    return {name: layer_shape(layer) for name, _, _, layer in linear_layers(actor)}


def random_skill(shapes: dict[str, tuple[int, int]], header: Header, seed: int, rank: int = RANK) -> Adapter:
    rng, layers = torch.Generator().manual_seed(seed), {}
    for name, (d_out, d_in) in shapes.items():
        down = torch.randn(rank, d_in, generator=rng) / d_in**0.5
        layers[name] = Factors(down, torch.randn(d_out, rank, generator=rng) * 0.05)
    return Adapter(layers, header)


def rewritten(skill: Adapter, seed: int) -> Adapter:
    """The same change from other factors, with an empty rank added."""
    rng, layers = torch.Generator().manual_seed(seed), {}
    for name, (down, up) in skill.layers.items():
        turn = torch.randn(len(down), len(down), generator=rng, dtype=torch.float64) + 4 * torch.eye(len(down))
        new_down = torch.cat([(turn @ down.double()).float(), torch.randn(1, down.shape[1], generator=rng)])
        new_up = torch.cat([(up.double() @ turn.inverse()).float(), torch.zeros(len(up), 1)], 1)
        layers[name] = Factors(new_down, new_up)
    return Adapter(layers, skill.header)


def resident() -> float:
    """MB of memory of this process that is its own (no shared or file-backed pages)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return float(line.split()[1]) / 1024
    return float("nan")


def milliseconds(call: Callable[[int], object], count: int) -> list[float]:
    times = []
    for i in range(count):
        start = time.perf_counter()
        call(i)
        times.append((time.perf_counter() - start) * 1e3)
    return sorted(times)


def scale(root: Path, count: int) -> tuple[dict[str, float], Library]:
    """Times of a library of `count` skills."""
    actor = walker_base()
    header, shapes = header_of(actor), shapes_of(actor)
    bulk = Library.create(root, header, shapes, durable=False)
    start = time.perf_counter()
    for i in range(count):
        bulk.publish(f"skill-{i:05d}", random_skill(shapes, header, i))
    found = {"publish one, no fsync (ms)": (time.perf_counter() - start) / count * 1e3}
    durable = Library(bulk.folder)
    found["publish one, fsync (ms, median)"] = statistics.median(milliseconds(
        lambda i: durable.publish(f"safe-{i}", random_skill(shapes, header, 10**6 + i)), 50))  # fmt: skip
    start = time.perf_counter()
    durable.pack()
    found["pack all (s)"] = time.perf_counter() - start
    before = resident()
    start = time.perf_counter()
    library = Library(bulk.folder)
    found["open packed (s)"] = time.perf_counter() - start
    found["memory of the open library (MB)"] = resident() - before
    found["list names (ms, median)"] = statistics.median(milliseconds(lambda i: library.names(), 20))
    rng = random.Random(0)
    names = [f"skill-{rng.randrange(count):05d}" for _ in range(300)]
    probes = [random_skill(shapes, header, 2 * 10**6 + i) for i in range(100)]
    searches = milliseconds(lambda i: library.search(probes[i], 5), 100)
    loads = milliseconds(lambda i: library.adapter(names[i]), 300)
    whole = milliseconds(lambda i: library.load(names[i]), 300)
    library._pack = None
    found |= {
        "search (ms, median)": statistics.median(searches),
        "search (ms, 95 %)": searches[94],
        "load weights, packed (ms, median)": statistics.median(loads),
        "load weights, packed (ms, 95 %)": loads[284],
        "load weights and card, packed (ms, median)": statistics.median(whole),
        "load from its own file, verified (ms, median)": statistics.median(
            milliseconds(lambda i: library.adapter(names[i]), 300)
        ),
    }
    files = [p for p in bulk.folder.rglob("*") if p.is_file()]
    found["bytes per skill, file"] = bulk.path("skill-00000").stat().st_size
    found["disk, all (MB)"] = sum(p.stat().st_size for p in files) / 2**20
    return found, Library(bulk.folder)


def copies(library: Library, count: int, planted: int) -> dict[str, float]:
    """Re-parameterised copies and slight variations among strangers: what publishing would say to each."""
    rng = random.Random(1)
    picks = [rng.randrange(count) for _ in range(planted)]
    originals = {i: library.adapter(f"skill-{i:05d}") for i in set(picks)}
    same = [library.search(rewritten(originals[i], i), 1)[0] for i in picks]
    close = [library.search(originals[i].scaled(1.02), 1)[0] for i in picks]
    strangers = [random_skill(library.shapes, library.header, 3 * 10**6 + i) for i in range(planted)]
    strange = [library.search(stranger, 1)[0] for stranger in strangers]
    right = sum(d < SAME and name == f"skill-{i:05d}" for (name, d), i in zip(same, picks, strict=True))
    wrong = sum(d < SAME for _, d in [*close, *strange])
    return {
        "copies found (recall)": right / planted,
        "of those called copies, copies (precision)": right / max(1, right + wrong),
        "slight variations announced as near": sum(SAME <= d < NEAR for _, d in close) / planted,
        "strangers announced as near": sum(d < NEAR for _, d in strange) / planted,
    }


def kills(root: Path, count: int, seed: int) -> dict[str, int]:
    """Kill a writer `count` times while it publishes, replaces, removes, or moves skills to another base."""
    old, new = walker_base(0), walker_base(1)
    shapes = shapes_of(old)
    source = Library.create(root / "old", header_of(old), shapes, durable=False)
    target = Library.create(root / "new", header_of(new), shapes, durable=False)
    obs = torch.randn(64, 24, generator=torch.Generator().manual_seed(0))
    for i in range(4):
        source.publish(f"skill-{i}", random_skill(shapes, source.header, i))
    sources = [source.adapter(f"skill-{i}") for i in range(4)]

    def move(i: int) -> Adapter:
        return procrustes_rebase(sources[i], old, new, obs).with_header(target.header)

    versions = {i: random_skill(shapes, target.header, 100 + i) for i in range(64)}
    contents = {content_digest(adapter) for adapter in [*versions.values(), *(move(i) for i in range(4))]}
    rng, failures, acknowledged = random.Random(seed), 0, 0
    for _ in range(count):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            os.close(reader)
            endless(target.folder, versions, move, writer, rng.randrange(10**9))
        os.close(writer)
        time.sleep(rng.uniform(0.002, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = b""
        while chunk := os.read(reader, 65536):
            said += chunk
        os.close(reader)
        last = [line.split() for line in said.decode().split("\n")[:-1]]
        acknowledged += sum(line[0] == "done" for line in last)
        failures += not survived(target.folder, last, contents)
    shutil.rmtree(root)
    return {"kills": count, "acknowledged writes": acknowledged, "libraries not as acknowledged": failures}


def endless(folder: Path, versions: dict[int, Adapter], move: Callable[[int], Adapter], pipe: int, seed: int) -> None:
    """Write until killed, announcing each write before ("try") and after ("done") it."""
    rng, library = random.Random(seed), Library(folder, durable=False)
    while True:
        name, what = f"skill-{rng.randrange(4)}", rng.random()
        adapter = move(int(name[-1])) if what < 0.3 else rng.choice(list(versions.values()))
        remove = what > 0.85 and name in library.names()
        content = "-" if remove else content_digest(adapter)
        os.write(pipe, f"try {name} {content}\n".encode())
        try:
            library.remove(name) if remove else library.publish(name, adapter, replace=True)
        except ValueError:  # the same skill under another name: refused, nothing written
            os.write(pipe, f"refused {name} {content}\n".encode())
            continue
        os.write(pipe, f"done {name} {content}\n".encode())


def survived(folder: Path, said: list[list[str]], contents: set[str]) -> bool:
    """Whether every skill reads back, and each is what was last acknowledged or tried."""
    library = Library(folder, durable=False)
    if library.check():
        return False
    state = {name: library.card(name).content for name in library.names()}
    if any(content not in contents for content in state.values()):
        return False
    allowed: dict[str, set[str]] = {}
    for word, name, content in said:
        if word == "done":
            allowed[name] = {content}
        elif word == "try":
            allowed.setdefault(name, {state.get(name, "-")}).add(content)
    return all(state.get(name, "-") in options for name, options in allowed.items())


def moving(quick: bool) -> dict[str, float]:
    """Share of eight skills that keep 95 % of their gain on a base of another seed, mean and worst of the seeds."""
    runs = [moved_once(seed, quick) for seed in range(1 if quick else 3)]
    found = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
    return found | {f"{name}, worst seed": min(run[name] for run in runs) for name in runs[0] if "95" in name}


def moved_once(seed: int, quick: bool) -> dict[str, float]:
    study = Study(seed, 600 if quick else 1500, 32 if quick else 100)
    new = trained_base(study.world, seed + 5, 600 if quick else 1500)
    header = Header(base_digest(new), "pointmass", new.normalizer.digest)
    shares: dict[str, list[float]] = {"naive copy": [], "Procrustes": [], "distillation": []}
    accepted = 0
    for k, skill in enumerate(study.skills.values()):
        with_skill = merge_into(copy.deepcopy(study.base), skill)
        obs = rollout(study, acting(with_skill), k)
        rng, steps = torch.Generator().manual_seed(k), 400 if quick else 1500
        learned, verdict = rebase(skill, study.base, new, obs, header, rng, gate=0.0, steps=steps)  # always distils
        aligned = procrustes_rebase(skill, study.base, new, obs)
        accepted += verdict.final < 0.1
        for name, adapter in (("naive copy", skill), ("Procrustes", aligned), ("distillation", learned)):
            own = study.world.episodes(acting(merge_into(copy.deepcopy(new), adapter)), k, study.count, 77)
            shares[name].append((own - study.low[k]) / (study.high[k] - study.low[k]))
    found = {f"{name}: skills keeping 95 %": sum(s >= 0.95 for s in v) / TASKS for name, v in shares.items()}
    found |= {f"{name}: mean share kept": statistics.mean(v) for name, v in shares.items()}
    return found | {"distilled skills that pass the gate of 0.1": accepted / TASKS}


def rollout(study: Study, policy: Callable[[torch.Tensor], torch.Tensor], task: int) -> torch.Tensor:
    """Observations of the old policy's own episodes."""
    tasks, rng = torch.full((60,), task), torch.Generator().manual_seed(900 + task)
    state, cue = study.world.start(tasks, rng)
    rows = []
    for _ in range(40):
        rows.append(torch.cat([state, cue], 1))
        state = study.world.step(state, policy(rows[-1]))
    obs = torch.cat(rows)
    return obs[torch.randperm(len(obs), generator=rng)]


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    count, planted, times_killed = (1000, 50, 60) if options.quick else (10_000, 200, 200)
    root = Path(tempfile.mkdtemp(prefix="robot-cl-library-"))
    try:
        sizes, library = scale(root / "many", count)
        found = copies(library, count, planted)
        struck = kills(root / "struck", times_killed, 0)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    moved = moving(options.quick)
    for title, part in ((f"{count} skills", sizes), ("copies", found), ("kills", struck), ("new base", moved)):
        print(table((title, "measured"), [(k, float(v)) for k, v in part.items()]) + "\n")
    damaged = struck["libraries not as acknowledged"]
    weights, recall = sizes["load weights, packed (ms, median)"], found["copies found (recall)"]
    report("library_scale", [
        Claim(f"search among {count} skills (ms, median)", sizes["search (ms, median)"], 5.0, at_least=False),
        Claim("load one skill's weights (ms, median)", weights, 1.0, at_least=False),
        Claim("copies in other factors found (recall)", recall, 1.0),
        Claim("precision", found["of those called copies, copies (precision)"], 1.0),
        Claim(f"libraries damaged by {times_killed} kills", damaged, 0.0, at_least=False),
        Claim("writes acknowledged before the kills", struck["acknowledged writes"], times_killed),
        Claim("distilled skills keeping 95 % on a new base, above the naive copy",
              moved["distillation: skills keeping 95 %"] - moved["naive copy: skills keeping 95 %"], 0.0),
    ], options.json, {**sizes, **found, **struck, **moved})  # fmt: skip


if __name__ == "__main__":
    main()
