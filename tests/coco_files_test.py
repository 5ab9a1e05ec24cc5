"""Reader of COCO's files: boxes in pixels, ids there and back, and what is wrong with files."""

import contextlib
import copy
import io
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dada.detection import average_precision
from experiments.data import coco_files
from tests import dataset_writers

CATEGORIES = [{"id": 90, "name": "cat"}, {"id": 0, "name": "dog"}, {"id": 7, "name": "bird"}]
# Image 9 comes before image 4; image 12 has no annotation. Ids of 0 are as good as others.
IMAGES = [
    {"id": 9, "file_name": "b.png", "width": 40, "height": 20},
    {"id": 4, "file_name": "a.png", "width": 40, "height": 20},
    {"id": 12, "file_name": "sub/c.png", "width": 40, "height": 20},
]
ANNOTATIONS = [
    {"id": 0, "image_id": 9, "category_id": 7, "bbox": [4, 2, 8, 6], "area": 30.5, "iscrowd": 0},
    {"id": 5, "image_id": 9, "category_id": 0, "bbox": [0, 0, 40, 20], "area": 800, "iscrowd": 1},
    {"id": 3, "image_id": 4, "category_id": 90, "bbox": [30.5, 10, 20, 5]},
    {"id": 2, "image_id": 9, "category_id": 0, "bbox": [10, 10, 10, 0]},
    {"id": 8, "image_id": 9, "category_id": 0, "bbox": [-5, 15, 10, 10]},
    {"id": 6, "image_id": 4, "category_id": 0, "bbox": [45, 2, 8, 6]},
]
CONTENT = {"info": {}, "images": IMAGES, "annotations": ANNOTATIONS, "categories": CATEGORIES}


def _write(root, parts=("train", "val"), stem="{}", folder="{}", content=CONTENT):
    (root / "annotations").mkdir(parents=True)
    for part in parts:
        (root / "annotations" / f"{stem.format(part)}.json").write_text(json.dumps(content))
        for number, image in enumerate(IMAGES):
            file = root / folder.format(part) / image["file_name"]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(dataset_writers.random_images(1, number, (20, 40, 3))[0]).save(file)
    return root


def _changed(kind, number, **fields):
    """The content of a file with fields of one entry changed; None takes one away."""
    content = copy.deepcopy(CONTENT)
    entry = content[kind][number] | fields
    content[kind][number] = {name: value for name, value in entry.items() if value is not None}
    return content


def test_boxes_labels_and_truths(tmp_path):
    coco = coco_files.read(_write(tmp_path))
    assert list(coco.parts) == ["train", "val"]
    assert coco.category_ids == [0, 7, 90] and coco.category_names == ["dog", "bird", "cat"]
    part = coco.parts["train"]
    assert part.image_ids.tolist() == [4, 9, 12]
    np.testing.assert_array_equal(part.images[1], dataset_writers.random_images(1, 0, (20, 40, 3))[0])
    assert [array.dtype for array in part[1:4]] == [np.float32, np.int32, bool]
    # The crowd, the flat box and the one outside are not there; what reaches out is clipped.
    assert part.valid.sum(1).tolist() == [1, 2, 0]
    np.testing.assert_array_equal(part.boxes[0, 0], [30.5, 10, 40, 15])
    np.testing.assert_array_equal(part.boxes[1, :2], [[4, 2, 12, 8], [0, 15, 5, 20]])
    assert part.labels[0, 0] == 2 and part.labels[1, :2].tolist() == [1, 0]
    assert not part.boxes[~part.valid].any() and not part.labels[~part.valid].any()
    assert (part.num_clipped, part.num_dropped) == (2, 2)
    # What detections are compared with is what the file says.
    first, second, third = part.truths
    assert first.boxes.tolist() == [[30.5, 10, 20, 5], [45, 2, 8, 6]] and first.areas.tolist() == [100, 48]
    assert second.labels.tolist() == [1, 0, 0, 0] and second.is_crowd.tolist() == [False, True, False, False]
    assert second.areas.tolist() == [30.5, 800, 0, 100]
    assert third.boxes.shape == (0, 4) and third.is_crowd.shape == (0,)


def test_square_images_of_another_size(tmp_path):
    part = coco_files.read(_write(tmp_path), image_size=10).parts["val"]
    assert part.images.shape == (3, 10, 10, 3)
    np.testing.assert_array_equal(part.boxes[1, 0], [1, 1, 3, 4])
    np.testing.assert_array_equal(part.scale, [[4, 2]] * 3)
    expected = Image.fromarray(dataset_writers.random_images(1, 0, (20, 40, 3))[0])
    expected = expected.resize((10, 10), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(part.images[1], np.asarray(expected))
    assert part.truths[0].boxes.tolist()[0] == [30.5, 10, 20, 5]
    with pytest.raises(ValueError, match="image_size 0: expected a positive"):
        coco_files.read(tmp_path, image_size=0)


def test_names_of_the_official_files_and_archives(tmp_path):
    expected = coco_files.read(_write(tmp_path / "a", ("train", "val", "test")))
    official = coco_files.read(_write(tmp_path / "b", stem="instances_{}2017", folder="{}2017"))
    np.testing.assert_array_equal(official.parts["val"].boxes, expected.parts["val"].boxes)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in (tmp_path / "a").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path / "a"))
    packed = coco_files.read(tmp_path / "a.zip")
    assert list(packed.parts) == ["train", "val", "test"]
    for actual, array in zip(packed.parts["test"][:6], expected.parts["test"]):
        np.testing.assert_array_equal(actual, array)


def test_results_are_read_by_pycocotools(tmp_path):
    root = _write(tmp_path, content=_changed("annotations", 0, id=11))  # not 0, which it takes for no match
    coco = coco_files.read(root)
    part = coco.parts["val"]
    random = np.random.RandomState(0)
    detections = [
        average_precision.Detections(
            np.tile(truth.boxes, (3, 1)) + 0.2 * random.standard_normal((3 * len(truth.boxes), 4)),
            np.tile(truth.labels, 3),
            random.rand(3 * len(truth.boxes)),
        )
        for truth in part.truths
    ]
    results = json.loads(json.dumps(coco_files.results(part.image_ids, detections, coco.category_ids)))
    assert {result["category_id"] for result in results} == {0, 7, 90}
    with contextlib.redirect_stdout(io.StringIO()):
        file = root / "annotations" / "val.json"
        content = json.loads(file.read_text())
        for annotation in content["annotations"]:  # what the reader takes for granted
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        file.write_text(json.dumps(content))
        expected = COCO(file)
        evaluation = COCOeval(expected, expected.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    numbers = average_precision.evaluate(part.truths, detections, 3).numbers
    np.testing.assert_array_equal(list(numbers.values()), evaluation.stats)
    assert 0.1 < numbers["AP"] < 0.9


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _changed("annotations", 2, category_id=8),
            "annotation 3 has category 8, expected one of [0, 7, 90]",
        ),
        (_changed("annotations", 2, image_id=5), "annotation 3 is of image 5, which is not in the file"),
        (_changed("annotations", 1, id=3), "annotations[2] has id 3, which an earlier one has"),
        (_changed("images", 2, id=9), "images[2] has id 9, which an earlier one has"),
        (_changed("categories", 0, id=7), "categories[2] has id 7, which an earlier one has"),
        (_changed("annotations", 1, id=None), "annotations[1] has id None, expected one of type int"),
        (_changed("annotations", 1, category_id="7"), "has category_id '7', expected one of type int"),
        (_changed("images", 0, file_name=None), "images[0] has file_name None, expected one of type str"),
        (_changed("annotations", 0, bbox=[1, 2, 3]), "annotation 0 has bbox [1, 2, 3], expected four finite"),
        (_changed("annotations", 0, bbox=[1, 2, 3, np.nan]), "expected four finite numbers"),
        (_changed("annotations", 0, bbox=[1, 2, 3, "4"]), "expected four finite numbers"),
        (_changed("annotations", 0, bbox=[1, 2, 3, 10**400]), "expected four finite numbers"),
        (
            _changed("annotations", 0, iscrowd=2),
            "has area 30.5 and iscrowd 2, expected a finite number and 0 or 1",
        ),
        (_changed("annotations", 0, area="big"), "has area 'big' and iscrowd 0"),
        (_changed("images", 1, width=41), "a.png is 40 x 20, in "),
        (CONTENT | {"annotations": None}, "expected a dictionary with a list 'annotations'"),
        (CONTENT | {"images": [3]}, "images[0] has id None"),
        (CONTENT | {"images": [], "annotations": []}, "got 0 images of 3 categories, expected some"),
        ([CONTENT], "expected a dictionary with a list 'categories'"),
    ],
)
def test_bad_content_is_one_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        coco_files.read(_write(tmp_path, content=content))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_missing_and_damaged_files(tmp_path):
    root = _write(tmp_path / "set")
    (root / "val" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.json: 1 of 3 images are missing, first .*a\.png"):
        coco_files.read(root)
    (root / "val" / "a.png").write_bytes((root / "val" / "b.png").read_bytes()[:99])
    with pytest.raises(ValueError, match=r"val/a\.png: cannot be decoded"):
        coco_files.read(root)
    Image.new("L", (20, 40)).save(root / "val" / "a.png")
    with pytest.raises(
        ValueError, match=r"a\.png is 20 x 40, in .*val\.json 40 x 20: its boxes cannot be right"
    ):
        coco_files.read(root)
    for text in ("{", "", "\0", "[" * 100_000):
        (root / "annotations" / "val.json").write_text(text)
        with pytest.raises(ValueError, match=r"val\.json: not a readable JSON file"):
            coco_files.read(root)
    content = _changed("categories", 0, name="lion")
    (root / "annotations" / "val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"val\.json: got the categories .*lion.*, expected those of train"):
        coco_files.read(root)
    (root / "annotations" / "val.json").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"of the parts .* got train, expected annotations/train\.json"
    ):
        coco_files.read(root)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        coco_files.read(tmp_path / "none")
    (tmp_path / "a.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match=r"a\.zip: truncated, or not a \.zip archive"):
        coco_files.read(tmp_path / "a.zip")


def test_images_of_several_sizes_need_one(tmp_path):
    root = _write(tmp_path, content=_changed("images", 1, width=30))
    for part in ("train", "val"):
        Image.new("L", (30, 20)).save(root / part / "a.png")
    with pytest.raises(ValueError, match=r"b\.png is 40 x 20, others 30 x 20: give --image_size"):
        coco_files.read(root)
    part = coco_files.read(root, image_size=20).parts["train"]
    np.testing.assert_array_equal(part.scale, [[1.5, 1], [2, 1], [2, 1]])
    assert not part.images[0].any()  # grey is repeated
