"""Detection from the commands: searches and trainings on images with boxes, and what is refused."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from PIL import Image

from dada import augment, ops, policies
from dada.detection import losses
from dada.searches import dada, ddas
from dada.searches.ddas import input as ddas_input
from dada.training import policy_training, sgd
from experiments import search, train
from experiments.data import detection_datasets, planting
from experiments.figures import finished_run
from experiments.runs import contents, run_folder

SIDE = 32
KEPT = ("Identity", "Rotate90", "Invert", "ShearX")
OTHERS = tuple(row.name for row in ops.search_space("ddas_sanity").rows if row.name not in KEPT)
SMALL = {
    "task": "detection",
    "model": "retinanet_resnet_18_8",
    "epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.01,
}
SEARCH = SMALL | {
    "method": "ddas",
    "search_space": "ddas_sanity",
    "exclude_ops": list(OTHERS),
    "extra_ops": ["Rotate90_Image_Only"],
    "planted_op": "Rotate90",
    "valid_batch_size": 2,
}


def _draw(generator, count):
    """Dark images with light rectangles of two classes, and their boxes."""
    images = generator.integers(0, 60, (count, SIDE, SIDE, 3)).astype(np.uint8)
    low = generator.integers(0, 14, (count, 2, 2))
    boxes = np.concatenate([low, low + generator.integers(8, 18, (count, 2, 2))], -1)
    labels = generator.integers(0, 2, (count, 2)).astype(np.int32)
    for image, of_image, classes in zip(images, boxes, labels):
        for (left, top, right, bottom), label in zip(of_image, classes):
            image[top:bottom, left:right] = (200, 120)[label]
    return augment.ImagesWithBoxes(images, boxes.astype(np.float32), np.ones((count, 2), bool)), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """COCO files of twelve images, eight to train and four to test; ids from 0."""
    root = tmp_path_factory.mktemp("boxes")
    (root / "set" / "annotations").mkdir(parents=True)
    for part, count in (("train", 8), ("val", 4)):
        (root / "set" / part).mkdir()
        content = {"categories": [{"id": 3, "name": "light"}, {"id": 90, "name": "grey"}]}
        content |= {"images": [], "annotations": []}
        images, labels = _draw(np.random.default_rng(count), count)
        for number, (image, boxes) in enumerate(zip(images.images, images.boxes.tolist())):
            Image.fromarray(image).save(root / "set" / part / f"{number}.png")
            entry = {"id": number, "file_name": f"{number}.png", "width": SIDE, "height": SIDE}
            content["images"].append(entry)
            for (left, top, right, bottom), label in zip(boxes, labels[number]):
                entry = {"id": len(content["annotations"]), "image_id": number}
                entry |= {"category_id": (3, 90)[label], "bbox": [left, top, right - left, bottom - top]}
                content["annotations"].append(entry)
        (root / "set" / "annotations" / f"{part}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def searched(folder):
    settings = SEARCH | {"dataset": folder / "set"}
    return small_runs.run_here(search, settings, folder / "searched")


# ---- the library ---------------------------------------------------------------------------------


def _apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """A detector of a convolution: a logit for both classes and deltas for the 16 anchors of 8 pixels."""
    features = jax.lax.conv_general_dilated(
        images, params, (8, 8), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    features = jnp.tanh(features).reshape(len(images), -1, 6)
    return (features[..., :2], features[..., 2:]), batch_stats


def _anchors(image_size):
    corners = np.stack(np.meshgrid(*(np.arange(0, side, 8) for side in image_size)), -1).reshape(-1, 2)
    return np.concatenate([corners, corners + 8], -1).astype(np.float32)


TASK = {"apply": _apply, "losses": functools.partial(losses.of_batch, _anchors)}
SPACE = ops.search_space("ddas_sanity", ("Rotate90_Image_Only",), OTHERS)
ROWS = [row.name for row in SPACE.rows]


def _batch(seed, count=4):
    return sgd.Batch(*jax.tree.map(jnp.asarray, _draw(np.random.default_rng(seed), count)))


def test_copies_turn_boxes_with_their_images():
    config = ddas.Config(**TASK, space=SPACE, candidates=ddas.candidates(SPACE), flip=False)
    names = [("Rotate90", "Identity"), ("Identity", "Rotate90_Image_Only"), ("Invert", "Identity")]
    of_policies = jnp.array([[[ROWS.index(name) for name in pair] for pair in names]])
    images = _batch(0).images
    plain, right, wrong, inverted = (
        jax.tree.map(lambda leaf, copy=copy: np.asarray(leaf[copy]), found)
        for found in [ddas_input.copies(jax.random.key(0), config, of_policies, images)]
        for copy in range(4)
    )
    np.testing.assert_array_equal(plain.boxes, images.boxes)
    left, top, right_end, bottom = np.moveaxis(np.asarray(images.boxes), -1, 0)
    turned = np.stack([top, SIDE - right_end, bottom, SIDE - left], -1)
    np.testing.assert_allclose(right.boxes, turned, atol=1e-4)
    np.testing.assert_array_equal(right.images, wrong.images)
    np.testing.assert_array_equal(wrong.boxes, images.boxes)
    np.testing.assert_array_equal(inverted.boxes, images.boxes)
    assert (inverted.images != plain.images).any() and (right.images != plain.images).any()


@pytest.mark.parametrize("method", ["ddas", "dada", "exact"])
def test_a_step_of_every_search(method):
    common = TASK | {"space": SPACE, "num_epochs": 2, "steps_per_epoch": 2, "learning_rate": 0.01}
    if method == "ddas":
        library, config = ddas, ddas.Config(**common, candidates=ddas.candidates(SPACE))
    else:
        score = "exact" if method == "exact" else "cosine"
        library, config = dada, dada.Config(**common, score=score, num_draws=2)
    params = 0.1 * jax.random.normal(jax.random.key(0), (8, 8, 3, 6))
    state = library.init(jax.random.key(1), config, params, {})
    after, metrics = jax.jit(library.step, static_argnums=0)(config, state, _batch(1), _batch(2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.policy, metrics)))
    assert {"train_box_loss", "valid_class_loss", "valid_positives"} <= set(metrics)
    assert not np.array_equal(after.train.params, params) and not np.array_equal(*_logits(state, after))


def _logits(*states):
    return [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.policy)]) for state in states]


def test_a_training_step_and_its_predictions_on_two_devices():
    config = policy_training.Config(
        **TASK,
        policy=policies.random_policy(0, "ddas_sanity", excluded_ops=OTHERS),
        steps_per_epoch=1,
        scale_jitter=0.2,
    )
    params = 0.1 * jax.random.normal(jax.random.key(0), (8, 8, 3, 6))
    state, batch = sgd.init(params, {}), _batch(3)
    step = jax.jit(policy_training.step, static_argnums=1)
    after, metrics = step(jax.random.key(1), config, state, *batch)
    assert np.isfinite(metrics["loss"]) and np.isfinite(after.params).all()
    assert not np.array_equal(after.params, params)

    def predict(axis_name, state, images):
        decode = lambda outputs: outputs[0]  # noqa: E731
        return policy_training.predict(config, decode, state, images, 3, axis_name)

    images = _batch(4, 5).images.images
    whole = jax.jit(functools.partial(predict, None))(after, images)
    assert whole.shape == (5, 16, 2)
    mesh = jax.make_mesh((2,), ("devices",), devices=jax.devices()[:2])
    divided = jax.shard_map(
        functools.partial(predict, "devices"), mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    np.testing.assert_allclose(jax.jit(divided)(after, images), whole, rtol=1e-5)


# ---- the commands --------------------------------------------------------------------------------


def test_planted_ops_move_boxes():
    images, labels = _draw(np.random.default_rng(5), 4)
    twice = planting.plant([("Rotate90", 0.0)] * 2, jax.tree.map(jnp.asarray, images))
    np.testing.assert_array_equal(twice.images, images.images[:, ::-1, ::-1])
    np.testing.assert_allclose(twice.boxes, SIDE - images.boxes[..., [2, 3, 0, 1]], atol=1e-4)
    truths, scale = detection_datasets.annotations(jax.tree.map(np.asarray, twice), labels)
    sides = images.boxes[0, :, 2:] - images.boxes[0, :, :2]
    np.testing.assert_allclose(truths[0].boxes[:, 2:], sides, atol=1e-4)
    np.testing.assert_allclose(truths[0].areas, np.prod(sides, 1), rtol=1e-4)
    assert (scale == 1).all() and truths[0].labels.tolist() == labels[0].tolist()


def test_a_search_leaves_its_folder(searched):
    summary = run_folder.read_summary(searched)
    assert summary["steps"] == 1 and summary["planted"][0]["op"] == "Rotate90"
    assert {"final_train_loss", "op_mass", "p_tp"} <= set(summary)
    flags = run_folder.read_flags(searched)
    assert flags["task"] == "detection" and "crop_padding" not in flags
    names = {path.name for path in (searched / "figures").iterdir()}
    expected = {"sample_images", "ops", "curves", "policy", "p_tp", "augmented_images"}
    assert names == {f"{name}.png" for name in expected}
    found = policies.load(searched / "policy.json")
    assert found.extra_ops == ("Rotate90_Image_Only",)


def test_figures_are_drawn_again(searched):
    before = {path.name: path.read_bytes() for path in (searched / "figures").iterdir()}
    (searched / "figures" / "ops.png").unlink()
    finished_run.draw(searched)
    assert {path.name: path.read_bytes() for path in (searched / "figures").iterdir()} == before


def test_a_training_with_the_policy_found(folder, searched):
    settings = SMALL | {
        "dataset": folder / "set",
        "policy": searched / "policy.json",
        "planted_op": "Rotate90",
    }
    path = small_runs.run_here(train, settings, folder / "trained")
    (line,) = run_folder.read_metrics(path)
    summary = run_folder.read_summary(path)
    assert {"train_class_loss", "train_box_loss", "test_AP", "test_AR_100", "test_class_AP50"} <= set(line)
    assert len(line["test_class_AP50"]) == 2 and -1 <= line["test_AP50"] <= 1
    assert summary["last"]["test_AP50"] == line["test_AP50"] and summary["best"]["chosen_by"] == "test AP"
    assert (path / "figures" / "curves.png").is_file()


def test_contents_tell_boxes_apart(folder):
    dataset = detection_datasets.load(str(folder / "set"))
    before = contents.of_dataset(dataset)
    dataset.train_images.boxes[0, 0, 0] += 1
    after = contents.of_dataset(dataset)
    assert {name for name in before if before[name] != after[name]} == {"training images"}
    assert before["test annotations"] is not None


BAD = {  # flags, words
    "deepaa": ({"method": "deepaa"}, "--method=deepaa: expected dada or ddas with --task=detection"),
    "official": ({"preset": "official"}, "--preset=official: expected corrected with --task=detection"),
    "mixtures": (
        {"method": "dada", "estimator": "gumbel"},
        "--estimator=gumbel: expected relax or reinforce with --task=detection",
    ),
    "judge": ({"judge": True}, "--judge=True: expected False with --task=detection"),
    "crop": ({"crop_padding": 2}, "--crop_padding=2 has no effect with --task=detection"),
    "network": ({"model": "wrn_10_1"}, "expected a detector of the form"),
    "scale": (
        {"task": "classification", "scale_jitter": 0.1},
        "--scale_jitter=0.1 has no effect with --task=classification",
    ),
    "no set": ({"dataset": "nowhere"}, "nowhere: no such folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_flags_are_refused_before_anything_is_written(folder, name):
    changes, words = BAD[name]
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        small_runs.run_here(search, SEARCH | {"dataset": folder / "set"}, folder / "refused", **changes)
    assert not (folder / "refused").exists()
