"""RetinaNet: sizes of the originals, anchors, the network written out, derivatives by image."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from dada.detection import losses
from dada.models import layers, resnet, retinanet

SMALL = retinanet.Config(18, 3, width=8, norm="group", levels=3, channels=8, head_layers=1, anchor_scale=2.0)


@functools.cache
def _tiny(config):
    """A network with one block in each stage, off its initial values, in float64."""
    params, stats = network_checks.shapes(retinanet, config)
    for tree in (params["backbone"], stats):
        tree["stages"] = [stage[:1] for stage in tree["stages"]]
    return network_checks.off_initial(params, stats, 0.2)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (retinanet.Config(), 37_968_692),
        (retinanet.Config(depth=101), 56_960_820),
        (retinanet.Config(num_classes=3), 36_371_327),
        (retinanet.Config(18, 3, width=16, channels=64), 1_269_903),
        (retinanet.Config(18, 3, width=32, channels=64), 3_454_751),
    ],
)
def test_parameter_counts(config, expected):
    params, _ = network_checks.shapes(retinanet, config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def test_layer_shapes():
    params, stats = network_checks.shapes(retinanet, retinanet.Config())
    backbone, backbone_stats = network_checks.shapes(resnet, resnet.Config(50))
    del backbone["dense"]
    assert params["backbone"] == backbone and stats == backbone_stats
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert [conv["weight"] for conv in shapes["lateral"]] == [(1, 1, c, 256) for c in (512, 1024, 2048)]
    assert [conv["weight"] for conv in shapes["output"]] == [(3, 3, 256, 256)] * 3
    assert [conv["weight"] for conv in shapes["down"]] == [(3, 3, 2048, 256), (3, 3, 256, 256)]
    for head, numbers in (("class_head", 80), ("box_head", 4)):
        assert shapes[head]["tower"] == [{"weight": (3, 3, 256, 256), "bias": (256,)}] * 4
        assert shapes[head]["predict"]["weight"] == (3, 3, 256, 9 * numbers)


@pytest.mark.parametrize(
    ("image_size", "levels", "expected"),
    [
        ((640, 640), 5, 76_725),
        ((800, 1344), 5, 201_600),
        ((240, 320), 5, 14_454),
        ((256, 256), 5, 12_276),
        ((192, 192), 3, 6_804),
        ((57, 90), 4, 9 * (8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)),
    ],
)
def test_there_are_as_many_anchors_as_outputs(image_size, levels, expected):
    config = dataclasses.replace(SMALL, levels=levels)
    assert retinanet.anchors(config, image_size).shape == (expected, 4)
    arguments = *network_checks.shapes(retinanet, config), jax.ShapeDtypeStruct((2, *image_size, 3), float)
    outputs, _ = jax.eval_shape(lambda *arguments: retinanet.apply(*arguments, True), *arguments)
    assert outputs.class_logits.shape == (2, expected, 3)
    assert outputs.box_deltas.shape == (2, expected, 4)


def test_anchors_worked_out_by_hand():
    anchors = retinanet.anchors(retinanet.Config(), (64, 96)).astype(float)
    centers, sides = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    # The first cell: sides of 32, 32 * 2^(1/3), 32 * 2^(2/3), with ratios 1/2, 1, 2 of height to width.
    np.testing.assert_allclose(centers[:9], 0, atol=1e-5)
    np.testing.assert_allclose(sides[0], [32 * 2**0.5, 32 / 2**0.5], rtol=1e-6)
    np.testing.assert_allclose(sides[3:6], 32 * np.cbrt([[1, 1], [2, 2], [4, 4]]), rtol=1e-6)
    np.testing.assert_allclose(sides[6], [32 / 2**0.5, 32 * 2**0.5], rtol=1e-6)
    # Row 2, column 5 of P3, and the last cell of P4.
    np.testing.assert_allclose(centers[9 * (2 * 12 + 5)], [40, 16], atol=1e-5)
    np.testing.assert_allclose(centers[9 * (8 * 12 + 4 * 6) - 1], [80, 48], atol=1e-5)
    np.testing.assert_allclose(sides[9 * 8 * 12 + 3], 64, rtol=1e-6)
    small = retinanet.anchors(dataclasses.replace(retinanet.Config(), anchor_scale=2.0), (64, 96))
    np.testing.assert_allclose(small[3], [-8, -8, 8, 8])


def _definition(params, features):
    """What each head says at each level, [B, h, w, 9 * numbers], from C3, C4, C5."""
    merged = [layers.conv(conv, feature) for conv, feature in zip(params["lateral"], features)]
    for level in (1, 0):
        rows, columns = (np.arange(size) // 2 for size in merged[level].shape[1:3])
        merged[level] = merged[level] + merged[level + 1][:, rows][:, :, columns]
    pyramid = [layers.conv(conv, feature) for conv, feature in zip(params["output"], merged)]
    if params["down"]:
        pyramid.append(layers.conv(params["down"][0], features[2], stride=2))
        pyramid.append(layers.conv(params["down"][1], jnp.maximum(pyramid[3], 0), stride=2))

    def head(params, hidden):
        for conv in params["tower"]:
            hidden = jnp.maximum(layers.conv(conv, hidden), 0)
        return layers.conv(params["predict"], hidden)

    return [[head(params[name], level) for level in pyramid] for name in ("class_head", "box_head")]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_network_is_that_of_the_definition(norm):
    config = dataclasses.replace(SMALL, norm=norm, levels=5 if norm == "batch" else 3, head_layers=2)
    params, stats = _tiny(config)
    images = np.random.RandomState(1).standard_normal((2, 36, 70, 3))  # maps with odd sides
    with jax.enable_x64(True):

        def both(params, stats, images):
            features, new_stats = resnet.features(params["backbone"], stats, images, True)
            return (_definition(params, features[1:]), new_stats), retinanet.apply(
                params, stats, images, True
            )

        (maps, expected_stats), (outputs, new_stats) = jax.jit(both)(params, stats, images)
    jax.tree.map(np.testing.assert_array_equal, new_stats, expected_stats)
    for actual, levels, numbers in zip(outputs, maps, (3, 4)):
        expected = [
            np.asarray(level)[:, row, column, anchor * numbers : (anchor + 1) * numbers]
            for level in levels
            for row in range(level.shape[1])
            for column in range(level.shape[2])
            for anchor in range(9)
        ]
        np.testing.assert_allclose(actual, np.stack(expected, axis=1), rtol=1e-9, atol=1e-12)


def test_frozen_batch_norm_is_that_of_evaluation():
    params, stats = _tiny(dataclasses.replace(SMALL, norm="batch"))
    images = network_checks.images(2, 32)
    apply = jax.jit(retinanet.apply, static_argnums=3, static_argnames="frozen_batch_norm")
    frozen, same_stats = apply(params, stats, images, True, frozen_batch_norm=True)
    evaluated, _ = apply(params, stats, images, False)
    jax.tree.map(np.testing.assert_array_equal, frozen, evaluated)
    jax.tree.map(np.testing.assert_array_equal, same_stats, jax.tree.map(np.float32, stats))
    trained, new_stats = apply(params, stats, images, True)
    assert not np.allclose(trained.class_logits, frozen.class_logits)
    assert not np.allclose(new_stats["norm"]["mean"], stats["norm"]["mean"])


def test_batch_statistics_of_eight_devices_equal_one():
    network_checks.assert_eight_devices_equal_one(
        retinanet, *_tiny(dataclasses.replace(SMALL, norm="batch", head_layers=1))
    )


def test_jvp_of_the_losses_is_their_gradient_image_by_image():
    params, stats = _tiny(SMALL)
    images = network_checks.images(2, 64)
    anchors = retinanet.anchors(SMALL, (64, 64))
    boxes = np.array([[[5, 5, 30, 40], [20, 20, 60, 50]], [[np.nan] * 4, [9, 9, 9, 9]]], np.float32)
    labels, valid = np.array([[0, 2], [7, -1]]), np.array([[True, True], [False, False]])
    random = np.random.RandomState(3)
    direction = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape), params)
    with jax.enable_x64(True):

        def loss(params):
            outputs, _ = retinanet.apply(params, stats, images, True)
            return losses.per_image(*outputs, anchors, boxes, labels, valid)[0]

        @jax.jit
        def derivatives(params):
            values, slopes = jax.jvp(loss, (params,), (direction,))
            _, pullback = jax.vjp(loss, params)
            return values, slopes, [pullback(one)[0] for one in jnp.eye(2)]

        values, slopes, gradients = derivatives(params)
        products = [
            sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction))) for gradient in gradients
        ]
    assert values.dtype == float and np.isfinite(values).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    np.testing.assert_allclose(slopes, products, rtol=1e-6)
    # The image without boxes teaches the classes, and nothing about boxes.
    of_boxes = jax.tree.leaves(gradients[1]["box_head"])
    assert not any(np.any(leaf) for leaf in of_boxes)
    assert np.any(gradients[1]["class_head"]["predict"]["bias"])


def test_initial_values():
    config = dataclasses.replace(
        SMALL, norm="batch", channels=32, width=4, head_layers=2, num_classes=5, levels=4
    )
    params, stats = jax.jit(retinanet.init, static_argnums=1)(jax.random.key(0), config)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {np.dtype(np.float32)}
    for head in ("class_head", "box_head"):
        first, second = params[head]["tower"]
        for conv in (first, second, params[head]["predict"]):
            np.testing.assert_allclose(np.std(conv["weight"]), 0.01, rtol=0.05)
        assert not np.any(first["bias"])
        assert not np.allclose(first["weight"], second["weight"])
    np.testing.assert_allclose(jax.nn.sigmoid(params["class_head"]["predict"]["bias"]), 0.01, rtol=1e-5)
    assert not np.any(params["box_head"]["predict"]["bias"])
    for conv in (*params["lateral"], *params["output"], *params["down"]):
        fan_in = np.prod(conv["weight"].shape[:3])
        assert 0.9 * np.sqrt(3 / fan_in) < np.abs(conv["weight"]).max() <= np.sqrt(3 / fan_in)
        assert not np.any(conv["bias"])


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"depth": 34}, ValueError, "resnet: expected depth 18, 50, 101 or 200, got 34"),
        ({"levels": 2}, ValueError, "retinanet: expected 3 to 5 levels, got 2"),
        ({"levels": 6}, ValueError, "retinanet: expected 3 to 5 levels, got 6"),
        ({"channels": 0}, ValueError, "retinanet: expected channels >= 1, got 0"),
        ({"width": 12}, ValueError, "group_norm: expected a multiple of 8 channels, got 12"),
        ({"num_classes": 1.5}, TypeError, "retinanet: expected an integer num_classes, got 1.5"),
        ({"anchor_scale": 0.0}, ValueError, "retinanet: expected anchor_scale > 0, got 0.0"),
        ({"norm": "none"}, ValueError, "resnet: expected norm batch or group, got 'none'"),
    ],
)
def test_bad_config_is_named(change, error, text):
    with pytest.raises(error, match=text):
        network_checks.shapes(retinanet, dataclasses.replace(SMALL, **change))
