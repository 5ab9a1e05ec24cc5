"""The results of a benchmark as Markdown.

Contract: the same results give the same bytes. Of a CPU there are only ratios: its absolute times depend on
what else the machine does, and stand in benchmark.json. Of an accelerator, which is named, there are both.
"""

from typing import Any

NOT_RUN = "not run"
# Networks that every table has a line for.
MODELS = ("wrn_10_1", "wrn_40_2", "wrn_28_10")


def markdown(results: dict[str, Any]) -> str:
    """All tables of a run, from the content of benchmark.json."""
    environment = results["environment"]
    is_cpu = environment["platform"] == "cpu"
    names = ("python", "jax", "jaxlib", "pillow", "pytorch")
    versions = ", ".join(f"{name} {environment[name]}" for name in names if name in environment)
    lines = [
        "# Benchmark",
        "",
        f"Device: {device(environment)}; {environment['cpu_count']} CPU cores; {versions}.",
        "All contenders of a line took turns in one run; medians of rounds, after a first call that does",
        "not count.",
    ]
    if is_cpu:
        lines += ["Of a CPU only ratios are shown; absolute times of this run are in benchmark.json."]
    for key, title, write in (
        ("augment", "Applying a policy", _augment),
        ("steps", "Search steps in plain training steps", _steps),
        ("train", "Training with a policy", _train),
        ("input", "Images from the host", _input),
        ("limits", "Share of the device's limits", _limits),
    ):
        part = results.get(key, NOT_RUN)
        lines += ["", f"## {title}", ""]
        lines += [f"{part[0].upper()}{part[1:]}."] if isinstance(part, str) else write(part, is_cpu)
    return "\n".join(lines) + "\n"


def device(environment: dict[str, Any]) -> str:
    """The device that everything ran on, and of how many: "NVIDIA H200 (gpu), one of 8"."""
    count = environment["device_count"]
    one_of = f", one of {count}" if count > 1 else ""
    return f"{environment['device_kind']} ({environment['platform']}){one_of}"


def is_case(name: str) -> bool:
    """Whether a key of the part `augment` names a case, and not what they have in common."""
    return name.startswith("ops")


def case_title(name: str) -> str:
    """Ops and size of images of a case of the part `augment`: "2 ops, 32 × 32"."""
    ops, size = name.removeprefix("ops").split("_")
    return f"{ops} op{'' if ops == '1' else 's'}, {size.replace('x', ' × ')}"


def _augment(part, is_cpu):
    heads = ["per image", "batch", "ops that act", "times Pillow", "times vmap(switch)"]
    if not is_cpu:
        heads += ["images/s", "Pillow, images/s", "vmap(switch), images/s", "of a training step"]
    rows = []
    for name, case in part.items():
        if not is_case(name):
            continue
        cells = [case_title(name), str(case["batch_size"]), f"{case['ops_applied_per_image']:.2f}"]
        cells += [_number(case[f"ratio_to_{other}"]) for other in ("pillow", "vmap_switch")]
        if not is_cpu:
            ways = ("", "pillow_", "vmap_switch_")
            cells += [_number(case[f"{way}images_per_second"]) for way in ways]
            share = case.get("share_of_training_step")
            cells.append("–" if share is None else _percent(share))
        rows.append(cells)
    lines = [
        *_table(heads, rows),
        "",
        f"`augment.apply_draws`, {part['dtype']}, against a Pillow loop in one thread and the naive",
        "`vmap(lax.switch)`, all on the same draws and with the same pixels: how many times as many images",
        "per second. Two ops: the policy dada_cifar10, which leaves out ops at random; one and six: ops of",
        "its search space.",
    ]
    if not is_cpu:
        lines.append("Training step: of WRN-40-2 in float32 on a batch of as many images of 32 × 32.")
    return lines


def _steps(part, is_cpu):
    dada, ddas, deepaa = (part[name] for name in ("dada", "ddas", "deepaa"))
    names = _models(dada)
    heads = ["network", "batch", "cosine", "exact", "exact by finite differences"]
    lines = ["DADA, by the score of its draws:", ""]
    lines += _table(heads, [_cost_line(name, dada, ("exact", "finite_difference")) for name in names])
    heads = ["network", "batch", "policies of every image", "of the batch", "operations", "of every image"]
    heads += ["over operations", "batch over operations"]
    counts = ("batch", "operation_count", "operation_count_image")
    ratios = ("ratio_to_operation_count", "batch_ratio_to_operation_count")
    lines += ["", "DDAS:", ""]
    lines += _table(heads, [_cost_line(name, ddas, (*counts, *ratios)) for name in names])
    lines += ["", "DeepAA, an update of layer 1:", ""]
    lines += _table(["network", "batch", "cost"], [_cost_line(name, deepaa, ()) for name in names])
    lines += [
        "",
        f"Costs are in plain training steps (forward, backward, update; {part['dtype']}) of the batch in the",
        "second column, whose other number is of validation images. Operations: those of a gradient for each",
        "copy and the validation gradient, over those of a plain step; of every image: with tangents of all",
        "copies.",
        "",
    ]
    heads = ["network", "peak memory, MB", "says", "cached over cold compilation"]
    heads += ["in parts over one program", "instructions in parts", "of one program"]
    heads += [] if is_cpu else ["compilation cold, s", "cached, s", "plain step, ms"]
    lines += _table(heads, [_start_line(name, dada, is_cpu) for name in names])
    lines += [
        "",
        "Memory and compilation of the DADA step (cosine). Cached: found in a folder of compiled programs.",
        "In parts: a CPU compiles each kind of pass over the network once, and all parts side by side; the",
        "time that this takes over that of the step as one program, and instructions of the optimised HLO.",
    ]
    return lines


def _cost_line(name, costs, columns):
    cost = costs.get(name)
    if cost is None:
        return [_model(name), "–", NOT_RUN, *(["–"] * len(columns))]
    sizes = [cost["batch_size"], cost["valid_batch_size"]]
    numbers = [f"{cost[key]:.2f}" if key in cost else "–" for key in ("plain_steps", *columns)]
    return [_model(name), " + ".join(map(str, sizes)), *numbers]


def _start_line(name, dada, is_cpu):
    cost = dada.get(name)
    if cost is None:
        return [_model(name), NOT_RUN] + ["–"] * (5 if is_cpu else 8)
    peak, cold, cached = (
        cost[key] for key in ("peak_memory_bytes", "seconds_compile_cold", "seconds_compile_cached")
    )
    cells = [_model(name), "–" if peak is None else f"{peak / 1e6:,.0f}", cost["peak_memory_source"] or "–"]
    cells.append(f"{cached / cold:.2f}")
    if "parts_over_whole_compile" in cost:
        cells.append(f"{cost['parts_over_whole_compile']:.2f}")
        cells += [f"{cost[f'{form}_instructions']:,}" for form in ("parts", "whole")]
    else:
        cells += ["–"] * 3
    if not is_cpu:
        cells += [f"{cold:.1f}", f"{cached:.1f}", _number(1e3 * cost["seconds_plain_step"])]
    return cells


def _train(part, is_cpu):
    heads = ["network", "type", "batch", "speed left with the policy", "times PyTorch"]
    heads += [] if is_cpu else ["images/s without", "images/s with", "PyTorch, images/s"]
    rows = []
    for name in _models(part):
        for dtype, case in part.get(name, {None: None}).items():
            if case is None:
                rows.append([_model(name), "–", "–", NOT_RUN, "–", *([] if is_cpu else ["–"] * 3)])
                continue
            cells = [_model(name), dtype, str(case["batch_size"]), _percent(case["ratio_with_policy"])]
            ratio = case["ratio_to_pytorch"]
            cells.append(ratio if isinstance(ratio, str) else _number(ratio))
            if not is_cpu:
                cells += [_number(case[f"images_per_second{end}"]) for end in ("", "_with_policy")]
                pytorch = case.get("pytorch_images_per_second")
                cells.append("–" if pytorch is None else _number(pytorch))
            rows.append(cells)
    lines = [
        *_table(heads, rows),
        "",
        "A training step with the policy dada_cifar10 and without; crop, flip and cutout are in both.",
    ]
    if any("pytorch_images_per_second" in case for types in part.values() for case in types.values()):
        lines += [
            "PyTorch: the same network and update in eager mode and channels_last, against ours without the",
            "policy. It augments nothing at all, which is in its favour.",
        ]
    return lines


def _input(part, is_cpu):
    rates, ratios = part["images_per_second"], part["ratio_to_pillow"]
    heads = ["threads", "times Pillow"] + ([] if is_cpu else ["images/s", "Pillow, images/s"])
    rows = []
    for threads, ratio in ratios.items():
        cells = [threads, _number(ratio)]
        rows.append(cells if is_cpu else [*cells, _number(rates[threads]), _number(rates["pillow"])])
    return [
        *_table(heads, rows),
        "",
        "Photos of 500 × 375 decoded and brought to random crops of 224 × 224, against a Pillow loop in one",
        f"thread. Training steps of {_model(part['model'])}, batches of 32 crops of 64 × 64, waited for them",
        f"{_percent(part['share_waited'])} of their time.",
    ]


def _limits(part, is_cpu):
    del is_cpu
    heads = ["network", "type", "images/s", "limit of arithmetic", "reached", "limit of memory", "reached"]
    rows = []
    for name, types in part.items():
        for dtype, case in types.items():
            cells = [_model(name), dtype, _number(case["images_per_second"])]
            for limit in ("arithmetic", "memory"):
                cells += [_number(case[f"{limit}_images_per_second"]), _percent(case[f"share_of_{limit}"])]
            rows.append(cells)
    return [
        *_table(heads, rows),
        "",
        "Training without policy. Arithmetic: three forward passes at the vendor's dense peak (TF32 for",
        "float32).",
        "Memory: 14 passes over the outputs of all convolutions at the vendor's bandwidth.",
    ]


def _models(part):
    """Every standard network and the others that were run."""
    return [*MODELS, *(name for name in part if name not in (*MODELS, "dtype"))]


def _model(name):
    return name.upper().replace("_", "-")


def _table(heads, rows):
    return ["| " + " | ".join(cells) + " |" for cells in (heads, ["---"] * len(heads), *rows)]


def _number(value):
    """Three digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,.10g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


def _percent(share):
    return f"{100 * share:.3g} %"
