"""The figures of a finished search of DADA or DDAS, from its run folder.

    RUN/figures/sample_images.png     training images per class, or with boxes; validation images, if they are
                                      a set of their own or have planted ops
    RUN/figures/ops.png               every op of the search space over its levels
    RUN/figures/curves.png            losses, accuracies, entropy, temperature, op mass over the steps
    RUN/figures/policy.png            DADA: op mass, probabilities, levels, weights of the pairs
                                      DDAS: p_o by op and level at some epochs, and over all epochs
    RUN/figures/p_tp.png              DDAS: probability of augmenting at all, over the epochs
    RUN/figures/augmented_images.png  images before and after the policy

Reads the run folder and the data set that its flags name, and writes the figures of an earlier start again.
"""

import functools
import os
import pathlib

import jax
import numpy as np

from dada import augment, ops, policies
from experiments.data import datasets, planting
from experiments.figures import chart_figures, ddas_figures, figure_style, finished_search, image_figures
from experiments.runs import contents, run_flags, run_folder

LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
_CLASSES_SHOWN = 10
_IMAGES_PER_CLASS = 4
_AUGMENTED = (4, 7)  # draws, images
_BLOCK = 64
_CLASS_NAMES = {
    "embedded": (
        *("T-shirt", "Trousers", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


def draw(
    run_path: str | os.PathLike,
    dataset: datasets.Dataset | None = None,
    planted_valid_images: np.ndarray | None = None,
) -> list[pathlib.Path]:
    """Draws all figures of a finished search into its folder; returns their paths.

    Args:
      dataset: the data set of the run; None loads it as the flags of the run say, and refuses another one
        under that name.
      planted_valid_images: the V validation images of the run after the planted ops, perhaps with boxes, in
        the order of `datasets.search_parts`; None applies the ops here.

    Raises: as `finished_run.draw`.
    """
    run = finished_search.read(run_path)
    if dataset is None:
        dataset = run_flags.load_again(run.flags)
        if run_folder.read_contents(run.path) is not None:
            run_folder.check_contents(run.path, contents.of_dataset(dataset))
    folder = run_folder.RunFolder(run.path).figures_path
    planted_names = [op.name for op in run.planted]
    num_valid = run.flags.get("num_valid")
    method = f"{run.policy.method or 'search'} {run.policy.preset or ''}".strip()
    what = f"{method}, {pathlib.Path(dataset.name).name}, seed {run.flags.get('seed', 0)}"
    names = [row.name for row in run.space.rows]
    with figure_style.style():
        figures = {
            "sample_images": _sample_images(
                dataset, run.planted, planted_valid_images, num_valid and int(num_valid)
            ),
            "ops": _ops(run, dataset),
            "curves": chart_figures.curves(
                f"The search, step by step: {what}", run.metrics, names, run.initial_mass, planted_names
            ),
            **(ddas_figures.draw(run, what) if run.method == "ddas" else {"policy": _dada_policy(run, what)}),
            "augmented_images": _augmented_images(run, dataset),
        }
        return [figure_style.save(folder / f"{name}.png", figure) for name, figure in figures.items()]


def _dada_policy(run, what):
    title = f"The policy at step {run.metrics['step'][-1]:.0f}: {what}"
    masses, planted = (run.policy_mass, run.initial_mass), [op.name for op in run.planted]
    return chart_figures.learned_policy(title, run.space, run.distribution, *masses, planted)


def _class_name(dataset, label):
    names = _CLASS_NAMES.get(dataset.name.removeprefix("reduced_"))
    return names[label] if names else f"class {label}"


def _part(images, index):
    """Some images, or one, with their boxes if they have some."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[index]), images)


def _joined(parts):
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _columns(labels):
    """The column of each image: its class, or one after the other where labels are those of boxes."""
    return labels if labels.ndim == 1 else np.arange(len(labels)) % _AUGMENTED[1]


def _sample_images(dataset, planted, planted_valid_images, num_valid=None):
    train, valid = datasets.search_parts(dataset)
    valid = datasets.stratified_part(valid, num_valid, "num_valid")
    is_labelled = train.labels.ndim == 1
    # Spread over all classes if there are many.
    count = dataset.num_classes if is_labelled else _AUGMENTED[1]
    classes = np.linspace(0, count - 1, min(_CLASSES_SHOWN, count)).astype(int)

    def rows_of(images, labels, count=_IMAGES_PER_CLASS):
        """A row with the first image of each class, one with the second, ...; None where there is none."""
        members = [np.flatnonzero(_columns(labels) == label)[:count] for label in classes]
        shown = [(_part(images, index), len(index)) for index in members]
        return [
            [_part(of_class, row) if row < number else None for of_class, number in shown]
            for row in range(count)
        ]

    images = rows_of(*train)
    labels, title = (), "Training images"
    if is_labelled:
        labels = [_class_name(dataset, label) for label in classes]
        shown = f"{len(classes)} of {dataset.num_classes} classes"
        title += f", {'a column per class' if len(classes) == dataset.num_classes else shown}"
    blocks = [image_figures.Block(title, images, column_labels=labels)]
    if planted:
        before, count = rows_of(*valid, 1), len(valid.labels)
        if planted_valid_images is None:
            plant = functools.partial(planting.plant, [(op.op, op.value) for op in planted])
            after = [[None if image is None else _part(plant(_part(image, None)), 0) for image in before[0]]]
        elif planted_valid_images.shape[0] != count:
            raise ValueError(f"planted_valid_images: got {planted_valid_images.shape[0]}, expected {count}")
        else:
            after = rows_of(planted_valid_images, valid.labels, 1)
        texts = ", ".join(op.text for op in planted)
        title = f"Validation images, on which {texts} {'is' if len(planted) == 1 else 'are'} planted"
        blocks.append(image_figures.Block(title, before + after, ("as they are", "as used")))
    elif dataset.valid_images is not None:
        blocks.append(image_figures.Block("Validation images", rows_of(*valid)))
    return image_figures.image_grid(f"Images of {pathlib.Path(dataset.name).name}", blocks)


def _telling_image(dataset):
    """The image, among the first 500, on which ops show best: many middle tones, unlike its mirror image."""
    first = _part(dataset.train_images, slice(500))
    images = first if dataset.train_labels.ndim == 1 else first.images
    middle = np.mean((images >= 64) & (images < 192), axis=(1, 2, 3))
    difference = np.abs(images - images[:, :, ::-1].astype(np.float32)).mean(axis=(1, 2, 3))
    return _part(first, np.argmax(middle * difference))


_apply_draws = jax.jit(augment.apply_draws, static_argnames="op_ids")


def _augment(images, draws):
    """`apply_draws`, one op and `_BLOCK` images at a time: one program for all figures, compiled once."""
    count = images.shape[0]
    filled = np.arange(-(-count // _BLOCK) * _BLOCK) % count
    after, draws = _part(images, filled), [np.asarray(leaf)[filled] for leaf in draws]
    # A program of all ops serves all searches, but would take long where there are boxes.
    has_boxes = isinstance(images, augment.ImagesWithBoxes)
    op_ids = tuple(np.unique(draws[0]).tolist()) if has_boxes else None
    for slot in range(draws[0].shape[1]):
        parts = []
        for start in range(0, len(filled), _BLOCK):
            block = slice(start, start + _BLOCK)
            one = ops.Draws(*(leaf[block, slot : slot + 1] for leaf in draws))
            parts.append(_apply_draws(_part(after, block), one, op_ids=op_ids))
        after = _joined(parts)
    return _part(after, slice(count))


def _ops(run, dataset):
    image = _telling_image(dataset)
    rows = run.space.rows
    title = f"The {len(rows)} ops of search space '{run.space.name}'"
    if run.policy.kind == "schedule":
        content = run.policy.content
        levels_of = [tuple(content.level[content.row == index].tolist()) for index in range(len(rows))]
        heads = ("candidate 1", *(str(number) for number in range(2, 1 + max(map(len, levels_of)))))
        title += " at the levels of their candidates"
    else:
        levels_of = [LEVELS if op.unit else (0.0,) for op in rows]
        heads = (f"level {LEVELS[0]:g}", *(f"{level:g}" for level in LEVELS[1:]))
        title += ", by level and value"
    cells = [(row, level) for row, levels in enumerate(levels_of) for level in levels]
    row, level = (np.array(column) for column in zip(*cells))
    center = np.broadcast_to(np.array(image.shape[:2]) / 2, (len(cells), 1, 2))
    ones = np.ones((len(cells), 1))
    draws = augment.assemble_draws(run.space, row[:, None], ones.astype(bool), level[:, None], ones, center)
    after = _augment(_joined([_part(image, None)] * len(cells)), draws)
    values = np.asarray(draws.value)[:, 0]
    sheet = [
        image_figures.OpImages(
            op, values[row == index].tolist(), [_part(after, cell) for cell in np.flatnonzero(row == index)]
        )
        for index, op in enumerate(rows)
    ]
    if any(op.random_sign for op in rows):
        title += " (±: + is shown)"
    return image_figures.ops_sheet(title, image, heads, sheet)


def _augmented_images(run, dataset):
    num_draws, num_images = _AUGMENTED
    # The first image of each class in turn, so that the columns differ.
    columns, is_labelled = _columns(dataset.train_labels), dataset.train_labels.ndim == 1
    order = np.argsort(columns, kind="stable")
    starts = np.searchsorted(columns[order], np.arange(dataset.num_classes if is_labelled else num_images))
    shown = np.resize(order[starts], num_images)
    images = _part(dataset.train_images, shown)
    names = [_class_name(dataset, label) if is_labelled else "" for label in columns[shown]]
    key = jax.random.key(int(run.flags.get("seed", 0)))
    repeated = _joined([images] * num_draws)
    # Of a schedule, the last epoch.
    epoch = len(run.policy.content.p_tp) - 1 if run.policy.kind == "schedule" else None
    sizes = repeated.shape[0], images.shape[1:3]
    draws = jax.jit(lambda key: augment.sample(key, run.policy, *sizes, epoch=epoch))(key)
    after = _augment(repeated, draws)
    places = np.arange(num_draws * num_images).reshape(num_draws, num_images)
    captions = np.array(_captions(policies.space(run.policy), draws), object).reshape(num_draws, num_images)
    block = image_figures.Block(
        "The policy alone, without the crop, flip and cutout of the training around it",
        [
            [_part(images, column) for column in range(num_images)],
            *([_part(after, place) for place in row] for row in places),
        ],
        ("before", *(f"draw {number}" for number in range(1, num_draws + 1))),
        captions=(names, *captions.tolist()),
        caption_lines=draws.op.shape[1],
    )
    return image_figures.image_grid("Images before and after the learned policy", [block])


def _captions(space, draws):
    """The ops of every image, one a line."""
    rows = dict(zip(ops.row_op_ids(space).tolist(), space.rows))
    captions = []
    for op_ids, values in zip(np.asarray(draws.op).tolist(), np.asarray(draws.value).tolist()):
        lines = []
        for op, value in zip(op_ids, values):
            if op == 0:
                continue
            row = rows[op]
            # A drawn value has its sign, and its direction, already.
            text = figure_style.value_text(row._replace(random_sign=False), value) if row.unit else ""
            lines.append(f"{row.op} {text}".strip())
        captions.append("\n".join(lines) or "unchanged")
    return captions
