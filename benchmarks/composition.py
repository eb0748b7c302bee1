"""How much K skills on one base cost per forward: the mixture kernel against a loop over adapters and against merging.

The base is the noise network of the diffusion actor (1.6 million parameters), skills have rank 8 on every linear layer.
The loop is peft's own (installed into .bench-venv/ by this script, apart from everything else), on torch.nn.Linear,
the only layers it knows; a plain loop of ours is printed beside it. The kernel mixes the same weights in this
package's own layers. peft mixes with one coefficient per adapter for the whole batch, the kernel with one per row. All
variants take turns in one process on one thread, in processor time of that thread (other programs' turns do not count);
a ratio is the median over rounds. "base" is the bare network in the package's layers, "torch base" in torch's; the
kernel is held against the faster one.

    python benchmarks/composition.py [--quick] [--json]
"""

from __future__ import annotations

import copy
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from pathlib import Path

import torch
from common import ROOT, Claim, arguments, report, table
from torch import Tensor, nn

from policies.adapter import Adapter, Factors
from policies.lora import layer_shape, linear_layers
from policies.mixture import Mixture
from policies.networks import StackedLinear, generators

PEFT = "peft==0.21.2"
OBS, ACT, WIDTH, RANK = 24, 6, 256, 8


class Network(nn.Module):
    """The diffusion actor's network; `linear(d_in, d_out)` makes its layers."""

    def __init__(self, linear: Callable[[int, int], nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(1, 32) * 0.2)
        self.time1, self.time2 = linear(64, 128), linear(128, 128)
        self.enter, self.leave = linear(ACT + OBS + 128, WIDTH), linear(WIDTH, ACT)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.widen = nn.ModuleList(linear(WIDTH, 4 * WIDTH) for _ in range(3))
        self.narrow = nn.ModuleList(linear(4 * WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, obs: Tensor, t: Tensor) -> Tensor:
        angle = 6.2832 * t * self.frequencies
        code = self.time2(nn.functional.silu(self.time1(torch.cat([angle.cos(), angle.sin()], -1))))
        h = self.enter(torch.cat([x, obs, code], -1))
        for norm, widen, narrow in zip(self.norms, self.widen, self.narrow, strict=True):
            h = h + narrow(nn.functional.silu(widen(norm(h))))
        return self.leave(nn.functional.silu(h))


@torch.no_grad()
def in_own_layers(net: Network) -> Network:
    """The same network in the package's layers, which carry a population axis (here of one)."""
    own = Network(lambda d_in, d_out: StackedLinear(d_in, d_out, generators(0, 1)))
    state = own.state_dict()
    for name, value in net.state_dict().items():
        state[name].copy_(value.view_as(state[name]))
    own.load_state_dict(state)
    return own.eval().requires_grad_(False)


class LoopLinear(nn.Module):
    """A linear layer whose adapters are visited one after the other."""

    def __init__(self, base: nn.Linear, factors: list[Factors], weights: list[float]):
        super().__init__()
        self.base, self.factors, self.weights = base, factors, weights

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for (down, up), weight in zip(self.factors, self.weights, strict=True):
            y = y + nn.functional.linear(nn.functional.linear(x, down), up) * weight
        return y


def random_skill(net: nn.Module, seed: int) -> Adapter:
    rng, layers = torch.Generator().manual_seed(seed), {}
    for name, _, _, layer in linear_layers(net):
        d_out, d_in = layer_shape(layer)
        down = torch.randn(RANK, d_in, generator=rng) / d_in**0.5
        layers[name] = Factors(down, torch.randn(d_out, RANK, generator=rng) * 0.02)
    return Adapter(layers)


def loop_over(net: nn.Module, skills: list[Adapter], weights: list[float]) -> nn.Module:
    net = copy.deepcopy(net)
    for name, parent, attribute, layer in list(linear_layers(net)):
        assert isinstance(layer, nn.Linear)
        setattr(parent, attribute, LoopLinear(layer, [s.layers[name] for s in skills], weights))
    return net


def peft_folder() -> Path | None:
    """Where peft lives, installing it on first use; None (and why, on stderr) if it cannot be had."""
    home = ROOT / ".bench-venv" / "peft"
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if not (site / "peft").exists():
        venv.create(home, with_pip=False)
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        (site / "robot_cl.pth").write_text(ours)  # torch and its pins are shared, not installed again
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt")]
        done = subprocess.run([*pip, PEFT], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"peft cannot be installed, its rows are left out: {done.stderr.strip()[-300:]}", file=sys.stderr)
            return None
    return site


def peft_model(net: nn.Module, skills: list[Adapter], weights: list[float]) -> nn.Module:
    """The same skills as adapters of peft, all active, coefficients as their scalings."""
    import peft

    names = [name for name, *_ in linear_layers(net)]
    model = None
    for k, _ in enumerate(skills):
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=names)
        if model is None:
            model = peft.get_peft_model(copy.deepcopy(net), config, adapter_name=f"s{k}")
        else:
            model.add_adapter(f"s{k}", config)
    assert model is not None
    model.base_model.set_adapter([f"s{k}" for k in range(len(skills))])
    with torch.no_grad():
        for name in names:
            layer = model.base_model.model.get_submodule(name)
            for k, skill in enumerate(skills):
                layer.lora_A[f"s{k}"].weight.copy_(skill.layers[name].down)
                layer.lora_B[f"s{k}"].weight.copy_(skill.layers[name].up)
                layer.scaling[f"s{k}"] = weights[k]
    return model.eval().base_model.model


def merging_forward(net: nn.Module, skills: list[Adapter], weights: list[float]) -> Callable[..., Tensor]:
    """Forward that adds Σ w ΔW to every weight first: what new coefficients cost when weights are merged."""
    layers = {name: layer for name, _, _, layer in linear_layers(net)}
    stacked = {
        name: (
            torch.cat([s.layers[name].down for s in skills]),
            torch.cat([s.layers[name].up * w for s, w in zip(skills, weights, strict=True)], 1),
        )
        for name in layers
    }
    merged = copy.deepcopy(net)
    targets = {name: layer for name, _, _, layer in linear_layers(merged)}

    def forward(*inputs: Tensor) -> Tensor:
        for name, (down, up) in stacked.items():
            torch.addmm(layers[name].weight, up, down, out=targets[name].weight.data)
        return merged(*inputs)

    return forward


def variants(net: Network, count: int, batch: int, with_peft: bool) -> tuple[dict[str, Callable[[], Tensor]], Tensor]:
    """name -> one forward, and the largest difference between what they compute."""
    rng = torch.Generator().manual_seed(count)
    skills = [random_skill(net, k) for k in range(count)]
    weights = torch.rand(count, generator=rng).tolist()
    inputs = tuple(torch.randn(batch, d, generator=rng) for d in (ACT, OBS, 1))
    own, stacked = in_own_layers(net), tuple(x.unsqueeze(0) for x in inputs)
    mixture = Mixture(own, {f"s{k}": s for k, s in enumerate(skills)})
    rows = torch.tensor(weights).expand(batch, -1).contiguous()
    loop, merge = loop_over(net, skills, weights), merging_forward(net, skills, weights)

    def kernel() -> Tensor:
        with mixture.using(rows) as mixed:
            return mixed(*stacked)[0]

    forwards = {"base": lambda: own(*stacked), "torch base": lambda: net(*inputs), "kernel": kernel}
    forwards |= {"loop": lambda: loop(*inputs), "merge first": lambda: merge(*inputs)}
    if with_peft:
        model = peft_model(net, skills, weights)
        forwards["peft"] = lambda: model(*inputs)
    outputs = [f() for name, f in forwards.items() if "base" not in name]
    return forwards, torch.stack([(out - outputs[0]).abs().max() for out in outputs]).max()


def measure(forwards: dict[str, Callable[[], Tensor]], rounds: int, budget: float) -> dict[str, list[float]]:
    """Microseconds per forward, one number per round, all variants taking turns within a round."""
    repeats = {}
    for name, forward in forwards.items():
        forward()
        start = time.thread_time()
        forward()
        repeats[name] = max(1, int(budget / (time.thread_time() - start)))
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for _ in range(rounds):
        for name, forward in forwards.items():
            start = time.thread_time()
            for _ in range(repeats[name]):
                forward()
            times[name].append((time.thread_time() - start) / repeats[name] * 1e6)
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    return statistics.median(a / b for a, b in zip(times[over], times[under], strict=True))


def over_base(times: dict[str, list[float]]) -> float:
    """The kernel against the faster of the two bare bases."""
    return max(ratio(times, "kernel", "base"), ratio(times, "kernel", "torch base"))


def main() -> None:
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    site = peft_folder()
    if site:
        sys.path.append(str(site))
    peer = "peft" if site else "loop"
    net = Network().eval().requires_grad_(False)
    rounds = 15 if options.quick else 41
    results, worst, rows = {}, 0.0, []
    for batch in (1, 256):
        for count in (1, 4, 8, 16, 64):
            with torch.inference_mode():
                forwards, difference = variants(net, count, batch, site is not None)
                times = measure(forwards, rounds, 0.02)
            results[batch, count] = times
            worst = max(worst, float(difference))
            middle = {name: statistics.median(values) for name, values in times.items()}
            rows.append((batch, count, *(round(middle[n], 1) if n in middle else "-" for n in COLUMNS),
                         over_base(times), ratio(times, peer, "torch base"),
                         ratio(times, peer, "kernel")))  # fmt: skip
    parameters = sum(p.numel() for p in net.parameters())
    print(f"one forward in µs, base of {parameters / 1e6:.2f} million parameters, rank {RANK}, one thread\n")
    print(table(("batch", "K", *COLUMNS, "kernel / base", f"{peer} / torch base", f"{peer} / kernel"), rows))
    report("composition", claims(results, worst, peer), options.json, [list(row) for row in rows])


COLUMNS = ("base", "torch base", "kernel", "peft", "loop", "merge first")


def claims(results: dict[tuple[int, int], dict[str, list[float]]], worst: float, peer: str) -> list[Claim]:
    found = [Claim("largest difference between the variants' outputs", worst, 1e-4, at_least=False)]
    for batch in (1, 256):
        slowest = max(over_base(results[batch, k]) for k in (1, 4, 8))
        found.append(Claim(f"batch {batch}: kernel over bare base, worst of K ≤ 8", slowest, 1.6, at_least=False))
        for count, target in ((4, 2.5), (16, 4.0)):
            faster = ratio(results[batch, count], peer, "kernel")
            found.append(Claim(f"batch {batch}: times faster than {peer}'s loop at K = {count}", faster, target))
    return found


if __name__ == "__main__":
    main()
