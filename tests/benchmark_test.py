"""Benchmark: fair contenders, counts by hand, its files and their keys, its text, and bad flags."""

import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import benchmark
from experiments.data import datasets
from experiments.figures import benchmark_figure
from experiments.measure import (
    benchmark_augment,
    benchmark_input,
    benchmark_report,
    benchmark_steps,
    benchmark_timing,
    benchmark_train,
)
from experiments.methods import dada_method, ddas_method, search_loop
from experiments.runs import command_line

CASE_KEYS = {
    *("batch_size", "ops_applied_per_image", "images_per_second", "pillow_images_per_second"),
    *("vmap_switch_images_per_second", "ratio_to_pillow", "ratio_to_vmap_switch"),
}
COST = {
    "batch_size": 32,
    "valid_batch_size": 32,
    "plain_steps": 4.5,
    "exact": 6.125,
    "finite_difference": 4.25,
    "seconds_plain_step": 0.0123,
    "seconds_compile_cold": 20.0,
    "seconds_compile_cached": 2.0,
    "peak_memory_bytes": 123_456_789,
    "peak_memory_source": "device",
}
RESULTS = {
    "environment": {
        **{"python": "3.11.7", "jax": "0.10.2", "jaxlib": "0.10.2", "pillow": "13.0.0"},
        **{"platform": "gpu", "device_kind": "NVIDIA H200", "device_count": 1, "cpu_count": 16},
    },
    "augment": {
        "dtype": "uint8",
        "ops2_32x32": {
            **{"batch_size": 128, "ops_applied_per_image": 1.0469, "share_of_training_step": 0.0312},
            **{"ratio_to_pillow": 61.24, "ratio_to_vmap_switch": 3.456, "images_per_second": 1234567.0},
            **{"pillow_images_per_second": 20159.0, "vmap_switch_images_per_second": 357224.0},
        },
    },
    "steps": {
        "dtype": "float32",
        "dada": {"wrn_10_1": COST},
        "ddas": {
            "wrn_10_1": {
                **{"batch_size": 8, "valid_batch_size": 64, "plain_steps": 13.2, "batch": 12.6},
                **{"operation_count": 12.0, "operation_count_image": 44 / 3},
                **{"ratio_to_operation_count": 1.1, "batch_ratio_to_operation_count": 1.05},
            }
        },
        "deepaa": {},
    },
    "input": {
        "images_per_second": {"pillow": 300.0, "1": 310.0, "2": 590.0},
        "ratio_to_pillow": {"1": 1.0333, "2": 1.9667},
        **{"model": "wrn_16_2", "share_waited": 0.0123},
    },
    "limits": "not run: no peaks are known of a device",
}


def run(*arguments):
    benchmark.main(*command_line.parse(benchmark.define, list(arguments)))


@functools.cache
def embedded():
    return datasets.load("embedded")


@pytest.mark.parametrize("num_ops", (2, 6))
def test_contenders_give_the_same_pixels(num_ops):
    images = benchmark_augment.images_of_side(embedded().train_images, 24, 40)
    images = images // np.array([1, 2, 3], np.uint8)  # not grey
    draws = benchmark_augment.make_draws(jax.random.key(num_ops), num_ops, 24, 40)
    assert draws.op.shape == (24, num_ops) and len(np.unique(draws.op)) > 5
    found = {name: call() for name, call in benchmark_augment.contenders(images, draws).items()}
    assert list(found) == ["apply_draws", "pillow", "vmap_switch"]
    assert np.any(found["apply_draws"] != images)
    np.testing.assert_array_equal(found["pillow"], found["apply_draws"])
    np.testing.assert_array_equal(found["vmap_switch"], found["apply_draws"])


def test_the_host_pipeline_decodes_what_pillow_does():
    found = {name: call() for name, call in benchmark_input.contenders(seed=0, count=33).items()}
    assert found["pillow"].shape == (33, 224, 224, 3)
    np.testing.assert_array_equal(found["1"], found["2"])
    # Pillow 13 takes the passes of tall crops in the other order.
    difference = np.abs(found["pillow"].astype(int) - found["1"])
    assert (difference > 0).any(axis=(1, 2, 3)).mean() < 0.4 and difference.max() < 20


def test_images_of_side():
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    found = benchmark_augment.images_of_side(images, 3, 5)
    assert found.shape == (3, 5, 5, 3)
    np.testing.assert_array_equal(found[2, 3:, 3:], images[0, :2, :2])


@pytest.mark.parametrize(
    "sizes, draws, expected",
    # 3 * 4 * 32 + 3 * 256 and 5 * 4 * 32 + 3 * 256 passes of an image, over 3 * 32.
    [
        ((32, 256, 3), "batch", 1152 / 96),
        ((32, 256, 3), "image", 1408 / 96),
        ((10, 10, 1), "batch", 3.0),
        ((10, 10, 1), "image", 130 / 30),
    ],
)
def test_ddas_operation_count(sizes, draws, expected):
    assert benchmark_steps.ddas_operation_count(*sizes, draws) == pytest.approx(expected)


def test_turns_alternate_after_an_uncounted_call(monkeypatch):
    calls, clock = [], [0.0]
    monkeypatch.setattr(benchmark_timing.time, "perf_counter", lambda: clock[0])

    def contender(name, durations):
        durations = iter(durations)

        def call():
            calls.append(name)
            clock[0] += next(durations)

        return call

    contenders = {"a": contender("a", [100, 1, 7, 2]), "b": contender("b", [100, 30, 10, 20])}
    found = benchmark_timing.alternating(contenders, rounds=3, label="", least_seconds=0.0)
    assert found == {"a": 2, "b": 20} and calls == ["a", "b"] * 4
    # A turn lasts as long as asked for: two of 0.05 seconds, one of 0.2.
    calls.clear()
    contenders = {"a": contender("a", [9] + [0.05] * 3), "b": contender("b", [9] + [0.2] * 2)}
    benchmark_timing.alternating(contenders, rounds=1, label="", least_seconds=0.1)
    assert calls == ["a", "a", "b", "b", "a", "a", "b"]


def test_limits_of_a_device():
    trained = {"wrn_40_2": {"float32": {"images_per_second": 39_000.0}}, "wrn_10_1": {}}
    (found,) = benchmark_train.limits(trained, "NVIDIA H100 80GB HBM3")["wrn_40_2"].values()
    # 495e12 / 1.97e9 and 3.35e12 / (14 * 0.762e6 * 4)
    assert found["arithmetic_images_per_second"] == pytest.approx(251e3, rel=0.01)
    assert found["memory_images_per_second"] == pytest.approx(78.5e3, rel=0.01)
    assert found["share_of_memory"] == pytest.approx(0.497, rel=0.01)
    assert "not run" in benchmark_train.limits(trained, "an abacus")


def test_run_writes_the_documented_keys(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_augment, "SIDES", (8,))
    monkeypatch.setattr(benchmark_augment, "NUM_OPS", (2,))
    run_dir = tmp_path / "run"
    cache = jax.config.jax_compilation_cache_dir
    arguments = f"--run_dir={run_dir} --only=limits,augment --augment_batch_size=3".split()
    run(*arguments)
    assert jax.config.jax_compilation_cache_dir == cache
    assert {path.name for path in run_dir.iterdir()} == {f"benchmark.{end}" for end in ("json", "md", "png")}
    results = json.loads((run_dir / "benchmark.json").read_text())
    assert set(results) == {"environment", "settings", "augment", "limits"}
    assert results["settings"]["only"] == ["augment", "limits"] and not results["settings"]["quick"]
    assert results["limits"] == "not run: no GPU"
    assert set(results["augment"]["ops2_8x8"]) == CASE_KEYS
    assert results["augment"]["ops2_8x8"]["batch_size"] == 3
    assert all(value > 0 for value in results["augment"]["ops2_8x8"].values())
    text = (run_dir / "benchmark.md").read_text()
    assert text == benchmark_report.markdown(results) and text in capsys.readouterr().out
    assert "images/s" not in text and "## Training with a policy\n\nNot run.\n" in text
    with pytest.raises(ValueError, match="not an empty folder"):
        run(*arguments)


def linear(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """The smallest network: compiling it takes no time."""
    del is_training, key, axis_name
    return images.reshape(len(images), -1) @ params, batch_stats


def test_cost_of_ddas(monkeypatch):
    def alternating(contenders, **_):  # runs them, but says what a loaded machine cannot
        jax.block_until_ready([call() for call in contenders.values()])
        return {"plain_steps": 6.0, "plain": 2.0}

    monkeypatch.setattr(benchmark_timing, "alternating", alternating)
    network = types.SimpleNamespace(apply=linear)
    images, labels = embedded().train_images[:40, ::4, ::4], np.arange(40, dtype=np.int32) % 10
    dataset = embedded()._replace(train_images=images, train_labels=labels)
    data = search_loop.to_device(*datasets.search_parts(dataset))
    configs = {"plain_steps": benchmark_steps._ddas_configs(network)["plain_steps"]}
    weights = jnp.zeros((8 * 8 * 3, 10)), {}
    found = benchmark_steps._measure(ddas_method.CORRECTED, configs, (2, 16), weights, data, 0, "")
    assert (found["batch_size"], found["valid_batch_size"]) == (2, 16)
    assert found["plain_steps"] == 3.0
    assert found["seconds_compile_cold"] > 0 and found["seconds_compile_cached"] > 0
    assert found["peak_memory_bytes"] > images.nbytes and "compiler" in found["peak_memory_source"]
    # (3 * 4 * 2 + 3 * 16) / (3 * 2)
    counted = benchmark_steps._ddas({**found, "plain_steps": 18.0, "batch": 6.0})
    assert counted["operation_count"] == 12.0 and counted["ratio_to_operation_count"] == 1.5
    assert counted["batch_ratio_to_operation_count"] == 0.5


def test_every_kind_of_step_has_a_state_of_its_own(monkeypatch):
    def traced(step, *arguments):
        return functools.partial(jax.eval_shape, step), 1.0

    monkeypatch.setattr(benchmark_timing, "compiled_steps", traced)
    monkeypatch.setattr(benchmark_timing, "memory", lambda *_: {})
    monkeypatch.setattr(
        benchmark_timing,
        "alternating",
        lambda calls, **_: {name: bool(call()) for name, call in calls.items()},
    )
    images, labels = embedded().train_images[:64, ::4, ::4], np.arange(64, dtype=np.int32) % 10
    dataset = embedded()._replace(train_images=images, train_labels=labels)
    data = search_loop.to_device(*datasets.search_parts(dataset))
    kinds = benchmark_steps._dada_configs(types.SimpleNamespace(apply=linear))
    configs = {name: kinds[name] for name in ("plain_steps", "exact")}  # of another score
    weights = jnp.zeros((8 * 8 * 3, 10)), {}
    found = benchmark_steps._measure(dada_method.CORRECTED, configs, (16, 16), weights, data, 0, "")
    assert found["exact"] == 1.0


def test_what_compiling_in_parts_saves_is_measured_where_there_are_parts():
    one_pass = jax.jit(lambda images, kernel: jnp.sin(jax.lax.conv(images, kernel, (1, 1), "SAME")))

    def step(images, kernel):
        return one_pass(one_pass(images, kernel), kernel)

    arguments = jnp.ones((1, 3, 4, 4)), jnp.ones((3, 3, 3, 3))
    parts, seconds = benchmark_timing.compiled_steps(step, *arguments)
    found = benchmark_timing.parts_and_whole(step, parts, seconds, *arguments)
    assert 0 < found["parts_instructions"] < found["whole_instructions"]
    assert found["parts_over_whole_compile"] > 0
    whole, seconds = benchmark_timing.compiled_steps(lambda *one: one_pass(*one), *arguments)
    assert benchmark_timing.parts_and_whole(step, whole, seconds, *arguments) == {}


def test_kinds_of_steps():
    network = types.SimpleNamespace(apply=linear)
    dada, ddas = benchmark_steps._dada_configs(network), benchmark_steps._ddas_configs(network)
    kinds = {name: (config.score, config.hypergradient) for name, config in dada.items()}
    assert kinds == {
        "plain_steps": ("cosine", "exact"),
        "exact": ("exact", "exact"),
        "finite_difference": ("exact", "finite_difference"),
    }
    assert [benchmark_steps._copies(config) for config in dada.values()] == [8, 1, 1]
    assert benchmark_steps._copies(ddas["batch"]) == 1
    assert {name: config.draws for name, config in ddas.items()} == {"plain_steps": "image", "batch": "batch"}


def test_quick_measures_the_cheap_lines(monkeypatch):
    monkeypatch.setattr(benchmark_steps, "_start", lambda *_: (types.SimpleNamespace(apply=linear), {}, {}))
    monkeypatch.setattr(benchmark_steps, "_measure", lambda _, configs, *__: dict.fromkeys(configs, 2.5))
    monkeypatch.setattr(benchmark_timing, "alternating", lambda calls, **_: dict.fromkeys(calls, 1.0))
    part = benchmark_steps.run({"wrn_10_1": 16}, embedded(), 0, quick=True)
    assert part == {"dtype": "float32", "dada": {"wrn_10_1": {"plain_steps": 2.5}}, "ddas": {}, "deepaa": {}}
    part = benchmark_augment.run(embedded().train_images, 4, 0, quick=True)
    assert set(part) == {"dtype", "ops2_32x32"}


def test_quick_is_one_network_unless_others_are_named():
    for arguments, expected in (
        (["--quick"], {"wrn_10_1": 128}),
        (["--quick", "--models=wrn_40_2", "--batch_size=16"], {"wrn_40_2": 16}),
        ([], {"wrn_10_1": 128, "wrn_40_2": 32}),
    ):
        assert benchmark._batch_sizes(command_line.parse(benchmark.define, arguments)[0]) == expected


def timed(monkeypatch, pytorch):
    """The part `train` on a machine where PyTorch takes three seconds, and a policy two."""
    seconds = {"none": 1.0, "pytorch": 3.0}
    monkeypatch.setattr(benchmark_train, "training_steps", lambda *_: None)
    monkeypatch.setattr(benchmark_train, "pytorch_steps", pytorch)
    monkeypatch.setattr(
        benchmark_timing, "alternating", lambda calls, **_: {name: seconds.get(name, 2.0) for name in calls}
    )
    return benchmark_train.run({"wrn_10_1": 12}, embedded().train_images, 0)


def test_training_beside_pytorch(monkeypatch):
    part = timed(monkeypatch, lambda *_: lambda: None)
    assert part["wrn_10_1"]["float32"] == {
        **{"batch_size": 12, "images_per_second": 12.0, "images_per_second_with_policy": 6.0},
        **{"ratio_with_policy": 0.5, "pytorch_images_per_second": 4.0, "ratio_to_pytorch": 3.0},
    }
    environment = {**RESULTS["environment"], "pytorch": "2.14.1"}
    text = benchmark_report.markdown({"environment": environment, "train": part})
    assert "| WRN-10-1 | float32 | 12 | 50 % | 3 | 12 | 6 | 4 |" in text
    assert "| WRN-40-2 | – | – | not run | – | – | – | – |" in text
    assert "pillow 13.0.0, pytorch 2.14.1." in text and "augments nothing" in text


def test_training_without_pytorch(monkeypatch):
    steps = benchmark_train.pytorch_steps
    monkeypatch.setattr(benchmark_train, "pytorch_version", lambda: None)
    part = timed(monkeypatch, steps)
    reason = "not run: PyTorch is not installed"
    assert part["wrn_10_1"]["float32"]["ratio_to_pytorch"] == reason
    assert "pytorch_images_per_second" not in part["wrn_10_1"]["float32"]
    text = benchmark_report.markdown({"environment": RESULTS["environment"], "train": part})
    assert f"| WRN-10-1 | float32 | 12 | 50 % | {reason} | 12 | 6 | – |" in text and "eager" not in text
    environment = {**RESULTS["environment"], "platform": "cpu"}
    text = benchmark_report.markdown({"environment": environment, "train": part})
    assert f"| WRN-10-1 | float32 | 12 | 50 % | {reason} |\n" in text


def test_text_of_an_accelerator():
    text = benchmark_report.markdown(RESULTS)
    assert text == benchmark_report.markdown(json.loads(json.dumps(RESULTS)))
    for line in (
        "Device: NVIDIA H200 (gpu); 16 CPU cores; python 3.11.7, jax 0.10.2, jaxlib 0.10.2, pillow 13.0.0.",
        "| 2 ops, 32 × 32 | 128 | 1.05 | 61.2 | 3.46 | 1,230,000 | 20,200 | 357,000 | 3.12 % |",
        "| WRN-10-1 | 32 + 32 | 4.50 | 6.12 | 4.25 |",
        "| WRN-10-1 | 8 + 64 | 13.20 | 12.60 | 12.00 | 14.67 | 1.10 | 1.05 |",
        "| WRN-28-10 | – | not run | – | – |",
        "| WRN-10-1 | 123 | device | 0.10 | – | – | – | 20.0 | 2.0 | 12.3 |",
        "| 2 | 1.97 | 590 | 300 |",
        "1.23 % of their time.",
        "Not run: no peaks are known of a device.",
    ):
        assert line in text.splitlines(), line


def test_no_absolute_time_of_a_cpu():
    environment = {**RESULTS["environment"], "platform": "cpu", "device_kind": "cpu"}
    in_parts = {"parts_over_whole_compile": 0.5512, "parts_instructions": 4321, "whole_instructions": 9876}
    steps = {**RESULTS["steps"], "dada": {"wrn_10_1": {**COST, **in_parts}}}
    text = benchmark_report.markdown({**RESULTS, "environment": environment, "steps": steps})
    assert "| WRN-10-1 | 123 | device | 0.10 | 0.55 | 4,321 | 9,876 |" in text.splitlines()
    assert "1,230,000" not in text and "images/s" not in text and " ms |" not in text and ", s |" not in text


def test_only_panels_with_numbers_are_drawn(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(benchmark_figure.figure_style, "save", lambda _, figure: figures.append(figure))
    for part in ("augment", "steps", "limits"):
        benchmark_figure.draw({name: RESULTS[name] for name in ("environment", part)}, tmp_path / "a.png")
    quick = {"dada": {"wrn_10_1": {"plain_steps": 4.5}}, "ddas": {}, "deepaa": {}}
    benchmark_figure.draw({"environment": RESULTS["environment"], "steps": quick}, tmp_path / "a.png")
    assert [[axes.get_title("left") for axes in figure.axes] for figure in figures] == [
        ["Images per second of apply_draws"],
        ["Cost of a search step"],
        ["Cost of a search step"],
    ]
    assert [len(figure.axes[0].patches) for figure in figures[1:]] == [5, 1]


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--models=wrn_41_2", "--models: wide_resnet: expected depth 6 n [+] 4"),
        ("--models=vgg", "--models: models: expected a network of the form"),
        ("--only=", "--only: got '', expected some of augment, steps"),
        ("--only=augment,stps", "--only: got 'augment,stps', expected some of augment, steps"),
        ("--batch_size=36", "--batch_size: got 36, expected a multiple of 8"),
        ("--batch_size=8", "--batch_size: got 8, expected a multiple of 8, .*, twice at least"),
        ("--learning_rate=1", "unknown flag --learning_rate"),
        ("more", "unexpected argument 'more'"),
    ],
)
def test_bad_flags(argument, message, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "_run", None)  # whatever passes the checks fails at once
    with pytest.raises(ValueError, match=message):
        run(f"--run_dir={tmp_path / 'run'}", argument)
    assert not (tmp_path / "run").exists()
