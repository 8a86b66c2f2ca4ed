"""What a training step costs when only parts of a model train: SLAM beside full tuning and LoRA.

    python benchmarks/selective_cost.py [--platform tpu|cpu] [--only slam,full] [--json benchmarks/results/FILE.json]
    python benchmarks/selective_cost.py --measure --json benchmarks/results/selective_cost_measured.json

First form: the training step of Llama-3.1-8B is compiled for a virtual slice and read, nothing is allocated or run.
`--platform=tpu` uses the TPU compiler (`gramjax[plan]`; no TPU is needed) for a v5e 4x4 topology, `cpu` as many
simulated devices. bfloat16, one sequence of 2,048 tokens per device, parameters over `fsdp`. Per device, from
`memory_analysis`: arguments (parameters and optimiser), temporaries, peak. FLOPs: products counted over the traced step
(`core.flops`, loops as often as they run), and with `--unrolled` the compiler's own count of a step without loops.

Second form: steps of a small model on this machine, all sides in one process, in turn; medians of ratios.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import measure

SIZES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_layers": 32,
                     "num_heads": 32, "num_kv_heads": 8, "head_dim": 128},
    "llama-2-7b": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32,
                   "num_heads": 32, "num_kv_heads": 32, "head_dim": 128},
    "small": {"vocab_size": 512, "hidden_size": 256, "intermediate_size": 896, "num_layers": 32, "num_heads": 8,
              "num_kv_heads": 2, "head_dim": 32},
}  # fmt: skip
LOWEST, UPPERMOST = tuple(range(6)), tuple(range(26, 32))
RANK = 16


@dataclasses.dataclass(frozen=True)
class Side:
    """What trains, and what the backward pass computes again."""

    layers: tuple[int, ...] = ()
    targets: tuple[str, ...] = ("mlp/up", "mlp/down")
    rank: int = 0
    remat: str = "full"
    scan: bool = True


SIDES = {
    "full": Side(),
    "slam": Side(LOWEST),
    "slam_gate": Side(LOWEST, ("mlp",)),
    "attention": Side(LOWEST, ("attn",)),
    "upper": Side(UPPERMOST),
    "lora": Side(rank=RANK),
    "full_projections": Side(remat="projections"),
    "slam_projections": Side(LOWEST, remat="projections"),
    "full_unscanned": Side(scan=False),
    "slam_unscanned": Side(LOWEST, scan=False),
}
"""Compared. `unscanned`: a piece of program per layer, so that no stack of weights is made."""

MEASURED = {
    name + ("" if remat == "full" else f"_{remat}"): dataclasses.replace(SIDES[name], remat=remat)
    for remat in ("full", "none")
    for name in ("full", "slam", "slam_gate", "upper", "lora")
}


@dataclasses.dataclass(frozen=True)
class Built:
    """A training step: what `gramjax plan` compiles and counts, and the program of a run that it is."""

    model: Any
    plan: Any
    program: Any


def build(args: argparse.Namespace, side: Side, devices: Any, dtype: str, rows: int) -> Built:
    """The step that `gramjax train` jits for these settings, without data."""
    from gramjax.core import presets
    from gramjax.models import decoder
    from gramjax.objectives import cross_entropy
    from gramjax.training import planning, setup

    config = presets.preset(decoder.Config(tie_word_embeddings=False, **SIZES[args.size]))
    config = planning.changed(planning.without_data(config), {
        "model.compute_dtype": dtype, "data.max_length": args.length, "train.batch_size": rows,
        "train.remat": side.remat, "train.scan_layers": side.scan, "train.logit_chunk": args.logit_chunk,
        "lora.rank": side.rank, "select.layers": side.layers,
    } | ({"select.targets": side.targets} if side.layers else {}))  # fmt: skip
    plan = planning.training_step(config, devices)
    program = setup.build_program(config, plan.network, cross_entropy, cross_entropy.Config(), 1000)
    return Built(plan.network.model, plan, program)


def counts(built: Built) -> dict[str, Any]:
    """Parameters, how many train, and bytes at rest of all devices."""
    import jax

    from gramjax.core import tree

    state = built.program.abstract_state
    flat = tree.flatten(state["params"])
    trained = sum(leaf.size for path, leaf in flat.items() if built.program.labels[path] == tree.TRAIN)
    total = sum(leaf.size for leaf in flat.values())
    weigh = lambda part: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part))  # noqa: E731
    return {
        "parameters": total,
        "trained": trained,
        "trained_share": round(trained / total, 5),
        "parameter_bytes": weigh(state["params"]),
        "optimizer_bytes": weigh(state["opt_state"]),
    }


def devices_of(platform: str, count: int, topology: str) -> Any:
    """Devices to compile for: of a TPU topology that need not exist, or simulated ones of this CPU."""
    import jax

    if platform == "cpu":
        return jax.devices()
    from gramjax.core import chips

    found = chips.devices(chips.parse(topology))
    if len(found) != count:
        raise SystemExit(f"selective_cost: {topology} has {len(found)} devices, not {count}")
    return found


def compiled(args: argparse.Namespace, name: str, devices: Any) -> dict[str, Any]:
    """One side: FLOPs of the traced step, memory of the compiled one."""
    side, rows = SIDES[name], len(devices)
    built = build(args, side, devices, "bfloat16", rows)
    products = built.plan.flops()
    out = {
        "side": dataclasses.asdict(side),
        **counts(built),
        "product_tflop_per_device": round(products / rows / 1e12, 3),
        "product_flop_per_token_and_parameter": round(products / rows / args.length / counts(built)["parameters"], 3),
    }
    start = time.perf_counter()
    program = built.plan.lower().compile()
    out["compile_s"] = round(time.perf_counter() - start, 1)
    memory = program.memory_analysis()
    kept = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    mib = lambda size: round(size / 2**20, 1)  # noqa: E731
    out["mib_per_device"] = {
        "arguments": mib(memory.argument_size_in_bytes),
        "not_donated": mib(memory.output_size_in_bytes - memory.alias_size_in_bytes),
        "temporaries": mib(memory.temp_size_in_bytes),
        "peak": mib(kept + memory.temp_size_in_bytes),
    }
    if not side.scan:
        out["compiler_tflop_per_device"] = round(program.cost_analysis()["flops"] / 1e12, 3)
    return out


def by_remat(args: argparse.Namespace, devices: Any) -> dict[str, dict[str, float]]:
    """Products of a step as a share of full tuning's with the same remat, from the traced steps."""
    out, rows = {}, len(devices)
    for remat in ("none", "projections", "full"):
        sides = {name: dataclasses.replace(SIDES[name], remat=remat) for name in
                 ("full", "slam", "slam_gate", "attention", "upper", "lora")}  # fmt: skip
        found = {name: build(args, side, devices, "bfloat16", rows).plan.flops() for name, side in sides.items()}
        out[remat] = {name: round(count / found["full"], 4) for name, count in found.items()}
    return out


def bounds(size: str) -> dict[str, float]:
    """Time of a step with up and down of six layers as a share of full tuning, by the rule of thumb.

    Per token and parameter: 2 forward, 2 for activation gradients, 2 for weight gradients, 2 more where the forward
    pass is computed again; f is the trained share.
    """
    s = SIZES[size]
    D, F, L = s["hidden_size"], s["intermediate_size"], s["num_layers"]
    attention = 2 * D * s["head_dim"] * (s["num_heads"] + s["num_kv_heads"])
    total = L * (attention + 3 * D * F) + s["vocab_size"] * D
    f = 6 * 2 * D * F / total
    return {"trained_share_of_products": round(f, 4), "saved_activations": round((4 + 2 * f) / 6, 4),
            "everything_again": round((6 + 2 * f) / 8, 4)}  # fmt: skip


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per step of the small model, sides in turn."""
    import jax
    import numpy as np

    from gramjax.core import spec
    from gramjax.training import setup

    rng = np.random.default_rng(0)
    rows, length, vocab = args.rows, args.length, SIZES[args.size]["vocab_size"]
    tokens = rng.integers(0, vocab, (rows, length)).astype(np.int32)
    batch = {
        "tokens": tokens, "labels": np.roll(tokens, -1, 1), "segment_ids": np.ones_like(tokens),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "loss_mask": np.ones((rows, length), np.float32),
    }  # fmt: skip
    batch = {name: jax.device_put(x) for name, x in batch.items()}
    steps, states, out = {}, {}, {}
    names = [name for name in MEASURED if not args.only or name in args.only.split(",")]
    for name in names:
        built = build(args, MEASURED[name], jax.devices()[:1], "float32", rows)
        program = built.program
        steps[name] = built.plan.lower().compile()
        memory = steps[name].memory_analysis()
        dtypes = setup.param_dtypes(built.model, program.labels)
        params = spec.init_params(built.model.specs(), jax.random.key(0), dtypes)
        states[name] = {"params": params, "opt_state": jax.jit(program.tx.init)(params),
                        "step": jax.numpy.zeros((), jax.numpy.int32)}  # fmt: skip
        states[name] = jax.device_put(states[name], jax.tree.map(lambda x: x.sharding, program.abstract_state))
        out[name] = {**counts(built), "product_gflop": round(built.plan.flops() / 1e9, 2),
                     "mib": {"arguments": round(memory.argument_size_in_bytes / 2**20, 1),
                             "temporaries": round(memory.temp_size_in_bytes / 2**20, 1)},
                     "seconds": [], "cpu": []}  # fmt: skip
    for turn in range(args.rounds + 1):
        for name in names:
            begin, cpu = time.perf_counter(), time.process_time()
            states[name], metrics = steps[name](states[name], batch)
            jax.block_until_ready((states[name], metrics))
            if turn:  # the first warms up
                out[name]["seconds"].append(round(time.perf_counter() - begin, 4))
                out[name]["cpu"].append(round(time.process_time() - cpu, 4))
    for name in names:
        base = "full" + ("_none" if name.endswith("_none") else "")
        one, whole = out[name], out.get(base)
        one["median_s"] = statistics.median(one["seconds"])
        if whole:
            one["ratio_of_products"] = round(one["product_gflop"] / whole["product_gflop"], 3)
            for kind, key in (("seconds", "ratio"), ("cpu", "ratio_cpu")):
                ratios = sorted(x / y for x, y in zip(one[kind], whole[kind]))
                one[key] = round(statistics.median(ratios), 3)
                one[f"{key}_10_90"] = [round(ratios[int(q * (len(ratios) - 1))], 3) for q in (0.1, 0.9)]
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure", action="store_true", help="run a small model instead of compiling a large one")
    parser.add_argument("--size", default="", choices=["", *SIZES])
    parser.add_argument("--platform", default="tpu", choices=["tpu", "cpu"])
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--devices", type=int, default=16)
    parser.add_argument("--length", type=int, default=0, help="tokens of a row; 0: 2048, or 256 with --measure")
    parser.add_argument("--rows", type=int, default=4, help="with --measure")
    parser.add_argument("--rounds", type=int, default=9, help="with --measure")
    parser.add_argument("--logit_chunk", type=int, default=0, help="0: 512 tokens (per device)")
    parser.add_argument("--only", default="", help="names of sides, separated by commas")
    parser.add_argument("--json", default="")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # topologies need no platform
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    if not args.measure and args.platform == "cpu":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
    args.size = args.size or ("small" if args.measure else "llama-3.1-8b")
    args.length = args.length or (256 if args.measure else 2048)
    args.logit_chunk = args.logit_chunk or 512
    results: dict[str, Any] = {
        "command": " ".join(["python benchmarks/selective_cost.py", *sys.argv[1:]]),
        "machine": measure.machine(), "size": args.size, "model": SIZES[args.size], "tokens_per_row": args.length,
        "bound": bounds(args.size),
    }  # fmt: skip
    if args.measure:
        results |= {"rows": args.rows, "sides": measured(args)}
        measure.write(args.json, results)
        return
    devices = devices_of(args.platform, args.devices, args.topology)
    results |= {"slice": args.topology if args.platform == "tpu" else "simulated CPU devices",
                "compiler": f"libtpu {metadata.version('libtpu')}" if args.platform == "tpu" else "jaxlib",
                "devices": args.devices, "mesh": {"fsdp": args.devices}, "logit_chunk": args.logit_chunk}  # fmt: skip
    if not args.only:
        results["ratio_of_products_by_remat"] = by_remat(args, devices)
    earlier = Path(args.json)
    results["sides"] = json.loads(earlier.read_text())["sides"] if args.json and earlier.is_file() else {}
    for name in SIDES:
        if name in results["sides"] or (args.only and name not in args.only.split(",")):
            continue
        results["sides"][name] = compiled(args, name, devices)
        full = results["sides"].get("full")
        for other in results["sides"].values() if full else ():
            other["ratio_of_products"] = round(other["product_tflop_per_device"] / full["product_tflop_per_device"], 4)
            other["ratio_of_peak"] = round(other["mib_per_device"]["peak"] / full["mib_per_device"]["peak"], 4)
            other["ratio_of_arguments"] = round(
                other["mib_per_device"]["arguments"] / full["mib_per_device"]["arguments"], 4
            )
        measure.write(args.json, results)
    measure.write(args.json, results)


if __name__ == "__main__":
    main()
