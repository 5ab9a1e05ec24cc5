"""The embedded blood cells."""

import numpy as np

from experiments.data import detection_datasets


def test_embedded_blood_cells():
    dataset = detection_datasets.load("embedded")
    assert dataset.class_names == ("RBC", "WBC", "Platelets")
    for name, num_images, counts, most in (
        ("train", 205, [2381, 214, 209], 28),
        ("valid", 87, [967, 87, 83], 30),
        ("test", 72, [805, 71, 69], 24),
    ):
        part, labels = (getattr(dataset, f"{name}_{kind}") for kind in ("images", "labels"))
        assert part.images.shape == (num_images, 192, 192, 3) and part.images.dtype == np.uint8
        assert part.boxes.shape == (num_images, 30, 4)
        assert np.bincount(labels[part.valid]).tolist() == counts
        assert part.valid.sum(1).max() == most and part.valid.any(1).all()
        sides = part.boxes[part.valid][:, 2:] - part.boxes[part.valid][:, :2]
        assert sides.min() >= 5 and part.boxes.min() >= 0 and part.boxes.max() == 192
        # Cells are round in the originals, 640 x 480: here they are 3/4 as wide as high.
        np.testing.assert_allclose(np.mean(np.log(sides[:, 0] / sides[:, 1])), np.log(0.75), atol=0.06)
        # Boxes belong to their images: white cells are darker than the rest in green, not in blue.
        means, differences = part.images.mean((1, 2)), []
        for image, slot in zip(*np.nonzero(part.valid & (labels == 1))):
            left, top, right, bottom = part.boxes[image, slot].astype(int)
            inside = part.images[image, top:bottom, left:right].mean((0, 1))
            differences.append(inside - means[image])
        _, green, blue = np.mean(differences, axis=0)
        assert green < -15 and blue > 5
    truths, scale = dataset.annotations
    assert len(truths) == 72 and (scale == 1).all()
    of_arrays, _ = detection_datasets.annotations(dataset.test_images, dataset.test_labels)
    for one, other in zip(truths, of_arrays):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        np.testing.assert_array_equal(one.labels, other.labels)
    pixels = dataset.train_images.images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-5)
    file = detection_datasets.EMBEDDED
    licence = file.with_name("blood_cells_licence.txt")
    assert file.stat().st_size + licence.stat().st_size < 2_000_000
    assert "MIT License" in licence.read_text()
