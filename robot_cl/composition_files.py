"""Compositions and merges on disk: a run folder like any other, whose checkpoint says what it was made of.

A composition is kept apart: base/ is its base, a policy like any other; policy.safetensors holds the skills' factors
and the composer. What has constant coefficients is one plain actor. Nothing in it can run code.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policies.adapter import Adapter, Factors
from policies.composed import ComposedActor
from policies.composers import COMPOSERS, CompositionShape
from policies.lora import base_digest
from policies.mixture import Mixture
from robot_cl.checkpoint import (
    ADAPTER,
    BASE,
    CARD,
    CHECKPOINTS,
    FORMAT,
    LAST,
    POLICY,
    load_actor,
    load_tensors,
    save_tensors,
    write_policy,
)
from robot_cl.data.atomic import whole_folder, write_json
from robot_cl.plain_files import write_whole
from robot_cl.routes import NEW, Known, Route
from sim.spec import Interface

COMPOSED = "composed"
FILE = "composition.json"  # of a run: what was chosen, and why


def write_route(folder: Path, route: Route, known: Known, card: dict[str, Any]) -> None:
    """A route's policy in a folder that exists; `card` holds step, task, interface and the like. With a new adapter,
    what it was trained on lies in base/ beside it, so that it can be added to a library."""
    made_of = {"base": base_digest(known.base), "weights": {n: w for n, w in (route.weights or {}).items() if w}}
    if isinstance(route.module, ComposedActor):
        new = {} if route.adapter is None else {NEW: route.adapter}
        write_composed(folder, route.module, known.base, {**known.skills, **new}, card | {"composition": made_of})
        return
    write_policy(folder, route.module, card | {"composition": made_of})
    if route.adapter is not None:
        tensors = {}
        for name, (down, up) in route.adapter.layers.items():
            tensors[f"{name}.down"], tensors[f"{name}.up"] = down.unsqueeze(0), up.unsqueeze(0)
        save_tensors(folder / ADAPTER, tensors)
        (folder / BASE).mkdir()
        write_policy(folder / BASE, route.below, card)


def write_composed(
    folder: Path, composed: ComposedActor, base: Any, skills: Mapping[str, Adapter], card: dict[str, Any]
) -> None:
    composer, names = composed.composer, composed.mixture.names
    tensors = {f"composer.{name}": value for name, value in composer.state_dict().items()}
    for k, name in enumerate(names):
        for layer, (down, up) in skills[name].layers.items():
            tensors[f"skill.{k}.{layer}.down"], tensors[f"skill.{k}.{layer}.up"] = down, up
    kind = next(name for name, cls in COMPOSERS.items() if type(composer) is cls)
    built = {"name": kind, "settings": composer.settings(), "shape": asdict(composer.shape)}
    about = card["composition"] | {"skills": list(names), "composer": built, "level": composed.level}
    (folder / BASE).mkdir()
    write_policy(folder / BASE, base, {k: v for k, v in card.items() if k != "composition"})
    save_tensors(folder / POLICY, tensors)
    head = {"format": FORMAT, "kind": COMPOSED, "actor": base.spec()}
    write_json(folder / CARD, head | card | {"composition": about})


def load_composed(folder: Path, card: dict[str, Any]) -> ComposedActor:
    """Inverse of `write_composed`. Raises ValueError, naming the file, for anything but a whole, finite composition."""
    base, tensors = load_actor(folder / BASE), load_tensors(folder / POLICY)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{folder / POLICY} has NaN or infinite numbers in {name!r}")
    try:
        about = card["composition"]
        skills = {str(name): _skill(tensors, k) for k, name in enumerate(about["skills"])}
        built = about["composer"]
        if built["name"] not in COMPOSERS:
            raise ValueError(f"{folder / CARD} names the composer {built['name']!r}; known: {', '.join(COMPOSERS)}")
        if about["base"] != base_digest(base):
            raise ValueError(
                f"{folder / BASE} is base {base_digest(base)[:12]}, the composition needs {about['base'][:12]}"
            )
        mixture = Mixture(base, skills)
        shape = CompositionShape(**built["shape"])
        if shape != CompositionShape.of(mixture, shape.obs_dim):
            raise ValueError(f"{folder / CARD} describes a composer for other skills than {', '.join(skills)}")
        _refuse_giants(built["settings"], folder / POLICY)
        composer = COMPOSERS[built["name"]](shape, **built["settings"])
        state = {n.removeprefix("composer."): t for n, t in tensors.items() if n.startswith("composer.")}
        composer.load_state_dict(state)
        return ComposedActor(mixture, composer, str(about["level"])).eval().requires_grad_(False)
    except (KeyError, TypeError, AttributeError, RuntimeError) as problem:
        text = " ".join(str(problem).split())[:160]
        raise ValueError(f"{folder / CARD} and {POLICY} do not describe a composition ({text})") from None


def _refuse_giants(settings: Mapping[str, Any], path: Path) -> None:
    """Sizes that the composer's tensors on disk cannot have are refused before memory is taken for them."""
    for name in ("hidden", "features", "anchors"):
        value = settings.get(name, 0)
        widths = [int(width) for width in value] if isinstance(value, list) else [int(value)]
        if max([*widths, *(a * b for a, b in itertools.pairwise(widths))], default=0) > path.stat().st_size:
            raise ValueError(f"{path.with_name(CARD)} describes a composer of {name} {value}, larger than {path.name}")


def _skill(tensors: Mapping[str, Tensor], k: int) -> Adapter:
    prefix = f"skill.{k}."
    names = dict.fromkeys(n.removeprefix(prefix).rpartition(".")[0] for n in tensors if n.startswith(prefix))
    return Adapter({n: Factors(tensors[f"{prefix}{n}.down"], tensors[f"{prefix}{n}.up"]) for n in names})


def write_run(
    folder: Path, interface: Interface, record: dict[str, Any], config: str, write: Callable[[Path], None]
) -> None:
    """What makes a folder a run: interface, provenance, config.yaml and one checkpoint, written by `write(folder)`."""
    write_json(folder / "interface.json", interface.to_dict())
    write_json(folder / "provenance.json", record)
    root = folder / CHECKPOINTS
    with whole_folder(root, root / "0") as checkpoint:
        write(checkpoint)
    write_whole(root / LAST, "0\n")
    write_whole(folder / "config.yaml", config)
