"""Policy files: round trips, shipped policies, every way to be wrong; random_policy, op_mass."""

import copy
import dataclasses
import json
import pathlib

import numpy as np
import pytest

from dada import ops, policies

SHIPPED = sorted((pathlib.Path(policies.__file__).parent / "published").glob("*.json"))
HEADER = {
    "format_version": 1,
    "search_space": "strength",
    "extra_ops": ["Rotate90"],
    "method": "dada",
    "preset": "corrected",
    "seed": 3,
    "data_set": "embedded",
    "selection_rule": None,
    "source": "a test, naïve",
    "licence": None,
}
FILES = {
    "sub_policies": HEADER
    | {
        "kind": "sub_policies",
        "weights": [0.5, 0.25, 0.0],
        "sub_policies": [
            [["ShearX", 0.1, 0.2], ["Rotate90", 1.0, 0.0]],
            [["Invert", 0.5, 0.3], ["Color", 0.25, 1.0], ["Invert", 0.5, 0.4]],
            [],
        ],
    },
    "layers": HEADER
    | {
        "kind": "layers",
        "actions": [["Rotate90", 0.0], ["Rotate", 0.5], ["Rotate", 1.0]],
        "layers": [[0.5, 0.25, 0.25], [0.0, 0.0, 1.0]],
    },
    "schedule": HEADER
    | {
        "kind": "schedule",
        "num_ops": 2,
        "candidates": [["Invert", 0.0], ["Cutout", 0.7]],
        "p_tp": [0.35, 0.2, 0.1],
        "p_o": [[0.5, 0.5], [0.4, 0.6], [0.1, 0.9]],
    },
}


def _write(folder, data):
    path = folder / "policy.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


# ---- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_load_save_keeps_content_and_bytes(kind, tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    policies.save(first, policies.load(_write(tmp_path, FILES[kind])))
    assert json.loads(first.read_text("utf-8")) == FILES[kind]
    policies.save(second, policies.load(first))
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes().endswith(b"]\n}\n")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["first.json", "policy.json", "second.json"]


def test_one_sub_policy_per_line():
    artefact = policies.from_sequences("dada", [[("Invert", 0.5, 0.1)], [("Color", 1, 0.2)]])
    lines = policies.to_json(artefact).splitlines()
    assert lines[-5:-2] == [' "sub_policies": [', '  [["Invert", 0.5, 0.1]],', '  [["Color", 1.0, 0.2]]']


def test_float32_numbers_survive_exactly(tmp_path):
    numbers = np.random.default_rng(0).uniform(size=(30, 2)).astype(np.float32)
    content = policies.SubPolicies(np.arange(30, dtype=np.int32)[:, None] % 15, *numbers.T[..., None])
    path = tmp_path / "policy.json"
    policies.save(path, policies.Policy("sub_policies", "dada", (), content))
    loaded = policies.load(path).content
    np.testing.assert_array_equal(np.float32(loaded.probability), content.probability)
    np.testing.assert_array_equal(np.float32(loaded.level), content.level)


def test_a_failed_save_keeps_the_old_file(tmp_path):
    path = tmp_path / "policy.json"
    policies.save(path, policies.identity())
    before = path.read_bytes()
    content = policies.identity().content._replace(level=np.full((1, 1), 2.0))
    with pytest.raises(ValueError, match=r"sub_policies\[0\]\[0\].level: got 2.0"):
        policies.save(path, dataclasses.replace(policies.identity(), content=content))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_policies(path):
    artefact = policies.load(path.stem)
    assert policies.to_json(artefact) == path.read_text("utf-8")
    if artefact.method != "identity":
        assert artefact.source and artefact.licence and artefact.data_set


@pytest.mark.parametrize(
    "name, shape, entry, probability, level",
    [
        ("dada_cifar10", (25, 2), "TranslateX", 0.5183464288711548, 0.5752825736999512),
        ("dada_cifar100", (25, 2), "ShearY", 0.5558360815048218, 0.2755777835845947),
        ("dada_svhn", (25, 2), "Solarize", 0.6144442558288574, 0.5266356468200684),
        ("dada_imagenet", (25, 2), "TranslateY", 0.8485236167907715, 0.6384843587875366),
        ("fast_autoaugment_cifar10", (493, 2), "Contrast", 0.8320659688593578, 0.49884310562180767),
        ("fast_autoaugment_svhn", (497, 2), "TranslateX", 0.001576965129744562, 0.43180488809874773),
        ("fast_autoaugment_imagenet", (498, 2), "ShearY", 0.14143816458479197, 0.513124791615952),
        ("autoaugment_cifar10", (25, 2), "Invert", 0.1, 1.0),
        ("autoaugment_svhn", (25, 2), "ShearX", 0.9, 0.7),
        ("autoaugment_imagenet", (25, 2), "Posterize", 0.4, 1.0),
    ],
)
def test_known_numbers(name, shape, entry, probability, level):
    content = policies.load(name).content
    assert content.row.shape == shape and content.weight is None
    names = [row.name for row in policies.space(policies.load(name)).rows]
    assert names[content.row[0, 0]] == entry
    assert content.probability[0, 0] == probability and content.level[0, 0] == level


# Op, probability and integer level, as torchvision lists them, and its values of the levels 0 to 9.
AUTOAUGMENT_IMAGENET = """
    Posterize 0.4 8, Rotate 0.6 9; Solarize 0.6 5, AutoContrast 0.6; Equalize 0.8, Equalize 0.6;
    Posterize 0.6 7, Posterize 0.6 6; Equalize 0.4, Solarize 0.2 4; Equalize 0.4, Rotate 0.8 8;
    Solarize 0.6 3, Equalize 0.6; Posterize 0.8 5, Equalize 1; Rotate 0.2 3, Solarize 0.6 8;
    Equalize 0.6, Posterize 0.4 6; Rotate 0.8 8, Color 0.4 0; Rotate 0.4 9, Equalize 0.6;
    Equalize 0, Equalize 0.8; Invert 0.6, Equalize 1; Color 0.6 4, Contrast 1 8;
    Rotate 0.8 8, Color 1 2; Color 0.8 8, Solarize 0.8 7; Sharpness 0.4 7, Invert 0.6;
    ShearX 0.6 5, Equalize 1; Color 0.4 0, Equalize 0.6; Equalize 0.4, Solarize 0.2 4;
    Solarize 0.6 5, AutoContrast 0.6; Invert 0.6, Equalize 1; Color 0.6 4, Contrast 1 8;
    Equalize 0.8, Equalize 0.6
"""
LEVELS = {
    **{"Rotate": np.linspace(0, 30, 10), "ShearX": np.linspace(0, 0.3, 10)},
    **dict.fromkeys(("Color", "Contrast", "Sharpness"), np.linspace(1, 1.9, 10)),
    **{"Solarize": np.linspace(255, 0, 10), "Posterize": [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]},
}
SIGNED = ("Rotate", "ShearX", "Color", "Contrast", "Sharpness")


def test_autoaugment_imagenet_has_the_values_of_torchvision():
    artefact = policies.load("autoaugment_imagenet")
    rows, content = policies.space(artefact).rows, artefact.content
    sequences = [pair.split(",") for pair in AUTOAUGMENT_IMAGENET.split(";")]
    assert content.row.shape == (len(sequences), 2) and content.weight is None
    for place, entry in np.ndenumerate(np.array(sequences)):
        op, probability, *number = entry.split()
        row = rows[content.row[place]]
        assert (row.name, content.probability[place]) == (op, float(probability))
        if number:
            value = row.low + content.level[place] * (row.high - row.low)
            assert value == pytest.approx(LEVELS[op][int(number[0])])
        assert row.random_sign == (op in SIGNED)


def test_autoaugment_has_the_papers_color_level():
    artefact = policies.load("autoaugment_cifar10")
    space = policies.space(artefact)
    assert space.rows[artefact.content.row[13, 1]].name == "Color"
    assert artefact.content.probability[13, 1] == 0.2 and artefact.content.level[13, 1] == 0.8


@pytest.mark.parametrize(
    "name, layer, op, percent",
    [
        ("deepaa_cifar_1", 3, "RandFlip", 73.09),
        ("deepaa_cifar_1", 4, "Color", 57.78),
        ("deepaa_cifar_2", 1, "RandCutout", 99.12),
        ("deepaa_cifar_2", 5, "Identity", 99.12),
        ("deepaa_imagenet_1", 1, "RandResizeCrop", 74.26),
        ("deepaa_imagenet_2", 3, "Sharpness", 58.81),
    ],
)
def test_deepaa_marginals(name, layer, op, percent):
    artefact = policies.load(name)
    content = artefact.content
    assert content.probability.shape == ((6 if "cifar" in name else 5), 139)
    row = [r.name for r in policies.space(artefact).rows].index(op)
    marginal = content.probability[layer, content.row == row].sum()
    assert round(100 * marginal, 2) == percent


# ---- bad files -------------------------------------------------------------------------------

CORRUPTIONS = {
    # (kind, place, new value, text that the message must hold)
    "probability too large": ("sub_policies", ("sub_policies", 1, 1, 1), 1.5,
        "sub_policies[1][1].probability: got 1.5, expected a number in [0, 1]"),
    "level negative": ("sub_policies", ("sub_policies", 1, 2, 2), -0.1,
        "sub_policies[1][2].level: got -0.1, expected a number in [0, 1]"),
    "level is text": ("sub_policies", ("sub_policies", 0, 1, 2), "0.5",
        "sub_policies[0][1].level: got '0.5', expected a number"),
    "level is a truth value": ("sub_policies", ("sub_policies", 0, 1, 2), True,
        "sub_policies[0][1].level: got True, expected a number"),
    "level overflows": ("sub_policies", ("sub_policies", 0, 1, 2), 10**400,
        "sub_policies[0][1].level: got an integer of 401 digits"),
    "unknown op": ("sub_policies", ("sub_policies", 0, 0, 0), "ShearZ",
        "sub_policies[0][0].op: got 'ShearZ', expected one of ShearX, ShearY"),
    "op of another space": ("sub_policies", ("sub_policies", 0, 0, 0), "CutoutAbs",
        "sub_policies[0][0].op: got 'CutoutAbs', expected one of"),
    "entry too short": ("sub_policies", ("sub_policies", 0, 0), ["ShearX", 0.1],
        "sub_policies[0][0]: got length 2, expected length 3"),
    "sub-policy is a number": ("sub_policies", ("sub_policies", 2), 7,
        "sub_policies[2]: got 7, expected a list"),
    "no sub-policies": ("sub_policies", ("sub_policies",), [], "length 0"),
    "not a list": ("sub_policies", ("sub_policies",), "x", "sub_policies: got 'x'"),
    "negative weight": ("sub_policies", ("weights", 1), -1,
        "weights[1]: got -1.0, expected a finite number >= 0"),
    "weights sum to zero": ("sub_policies", ("weights",), [0, 0, 0], "weights: got the sum 0"),
    "too few weights": ("sub_policies", ("weights",), [1, 1],
        "weights: got length 2, expected length 3"),
    "unknown space": ("sub_policies", ("search_space",), "data", "got 'data', expected one of dada"),
    "space is a number": ("sub_policies", ("search_space",), 4, "search_space: got 4"),
    "unknown extra op": ("sub_policies", ("extra_ops", 0), "Rotate91", "extra op: got 'Rotate91'"),
    "unknown excluded op": ("layers", ("excluded_ops",), ["Invret"],
        "excluded op: got 'Invret', expected one of search space 'strength': ShearX, ShearY"),
    "excluded op in use": ("sub_policies", ("excluded_ops",), ["Invert"],
        "sub_policies[1][0].op: got 'Invert', expected one of ShearX, ShearY"),
    "excluded candidate": ("schedule", ("excluded_ops",), ["Cutout"], "candidates[1].op: got 'Cutout'"),
    "extra and excluded": ("layers", ("excluded_ops",), ["Rotate90"], "is one of the extra ops Rotate90"),
    "excluded is text": ("layers", ("excluded_ops",), "Invert", "excluded_ops: got 'Invert', expected"),
    "excluded is null": ("layers", ("excluded_ops",), None, "excluded_ops: got None, expected a list"),
    "excluded a number": ("layers", ("excluded_ops",), [3], "excluded_ops: got 3, expected a string"),
    "unknown kind": ("sub_policies", ("kind",), "sub_policy",
        "kind: got 'sub_policy', expected one of sub_policies, layers, schedule"),
    "wrong version": ("sub_policies", ("format_version",), 2, "format_version: got 2, expected 1"),
    "version is true": ("sub_policies", ("format_version",), True, "format_version: got True"),
    "seed is text": ("sub_policies", ("seed",), "3", "seed: got '3', expected an integer or null"),
    "method is a number": ("layers", ("method",), 3, "method: got 3, expected a string or null"),
    "unknown key": ("layers", ("colour",), 1, "'colour': got an unknown key, expected one of"),
    "key of another kind": ("layers", ("p_tp",), [], "'p_tp': got an unknown key"),
    "layer sum": ("layers", ("layers", 1, 2), 0.5, "layers[1]: got the sum 0.5, expected the sum 1"),
    "layer negative": ("layers", ("layers", 0), [1.5, -0.25, -0.25], "layers[0][0]: got 1.5"),
    "layer too short": ("layers", ("layers", 0), [1.0], "layers[0]: got length 1, expected length 3"),
    "no layers": ("layers", ("layers",), [], "layers: got shape (0, 3)"),
    "action level": ("layers", ("actions", 2, 1), 3, "actions[2].level: got 3.0"),
    "action op": ("layers", ("actions", 2, 0), "Flip", "actions[2].op: got 'Flip'"),
    "no actions": ("layers", ("actions",), [], "layers[0]: got length 3, expected length 0"),
    "p_tp": ("schedule", ("p_tp", 2), 1.01, "p_tp[2]: got 1.01, expected a number in [0, 1]"),
    "p_o": ("schedule", ("p_o", 1), [0.5, 0.6], "p_o[1]: got the sum 1.1, expected the sum 1"),
    "epochs differ": ("schedule", ("p_o",), [[0.5, 0.5]], "p_o: got shape (1, 2), expected (3, 2)"),
    "num_ops": ("schedule", ("num_ops",), 0, "num_ops: got 0, expected an integer > 0"),
    "candidate": ("schedule", ("candidates", 0), "Invert", "candidates[0]: got 'Invert'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_bad_field(case, tmp_path):
    kind, place, value, message = CORRUPTIONS[case]
    data = copy.deepcopy(FILES[kind])
    target = data
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = value
    path = _write(tmp_path, data)
    with pytest.raises(ValueError) as error:
        policies.load(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ("[]", "got list, expected a JSON object"),
        ("{}", "format_version: got None, expected 1"),
        ('{"format_version": 1, "seed": NaN}', "got NaN, expected finite numbers"),
        ('{"format_version": 1, "seed": -Infinity}', "got -Infinity"),
        ('{"seed": 1, "seed": 2}', "'seed': got the key 2 times, expected once"),
        ("[" * 200_000, "recursion"),
        (json.dumps(FILES["sub_policies"]).replace("0.1", "1e999"), "[0][0].probability: got inf"),
    ],
)
def test_bad_text(text, message, tmp_path):
    path = _write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        policies.load(path)
    assert str(error.value).startswith(f"{path}: ") and message in str(error.value)


@pytest.mark.parametrize("key", sorted(FILES["schedule"]))
def test_missing_key(key, tmp_path):
    data = {name: value for name, value in FILES["schedule"].items() if name != key}
    with pytest.raises(ValueError, match=f"{key}: got "):
        policies.load(_write(tmp_path, data))


def test_bytes_that_are_not_text(tmp_path):
    path = tmp_path / "policy.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"policy\.json: 'utf-8' codec"):
        policies.load(path)


def test_no_such_policy(tmp_path):
    with pytest.raises(ValueError, match="got 'dada_cifar', expected a file or one of autoaug"):
        policies.load("dada_cifar")
    with pytest.raises(ValueError, match=r"no\.json', expected a file or one of"):
        policies.load(tmp_path / "no.json")


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"kind": "layers"}, ValueError, "content: got SubPolicies, expected Layers"),
        ({"row": np.array([[15]])}, ValueError, r"sub_policies\[0\]\[0\].op: got row 15"),
        ({"row": np.array([[-1, 2]])}, ValueError, "padding"),
        ({"row": np.zeros((1, 1))}, TypeError, "row: got ndarray float64, expected a numpy array"),
        ({"level": [[0.5]]}, TypeError, "level: got list"),
        ({"level": np.zeros((1, 2))}, ValueError, r"level: got shape \(1, 2\), expected \(1, 1\)"),
        ({"level": np.full((1, 1), np.nan)}, ValueError, "level: got nan"),
        ({"weight": np.ones(2)}, ValueError, r"weights: got shape \(2,\), expected \(1,\)"),
        ({"weight": np.full(1, np.inf)}, ValueError, "got inf, expected a finite number >= 0"),
    ],
)
def test_bad_arrays(change, error, message):
    good = policies.from_sequences("dada", [[("Invert", 0.5, 0.5)]])
    arrays = {name: value for name, value in change.items() if name != "kind"}
    bad = dataclasses.replace(
        good, content=good.content._replace(**arrays), kind=change.get("kind", good.kind)
    )
    with pytest.raises(error, match=message):
        policies.validate(bad)


# ---- construction ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seed, index, expected",
    [
        (0, 0, [["ShearY", 0.09609840789396307, 0.9764594650133958],
                ["Cutout", 0.4686512016477016, 0.9767610881903371]]),
        (0, 24, [["Equalize", 0.855803342392611, 0.011714084185001972],
                 ["Sharpness", 0.3599780644783639, 0.729990562424058]]),
        (7, 0, [["TranslateY", 0.6617097991814964, 0.8385666320555705],
                ["Cutout", 0.5325575940961663, 0.039646092526587795]]),
        (19, 0, [["Contrast", 0.7186338801136566, 0.3352482520843496],
                 ["Brightness", 0.6690624907683381, 0.9578432732211525]]),
        (19, 24, [["TranslateY", 0.48909003643410986, 0.4102985553316302],
                  ["Solarize", 0.6697193409813722, 0.9427158001590632]]),
    ],
)  # fmt: skip
def test_random_policy_is_the_original_recipe(seed, index, expected):
    data = json.loads(policies.to_json(policies.random_policy(seed)))
    assert len(data["sub_policies"]) == 25
    assert data["sub_policies"][index] == expected
    assert (data["method"], data["seed"], data["search_space"]) == ("random", seed, "dada")


def test_random_policy_of_another_space():
    artefact = policies.random_policy(1, "strength", extra_ops=("Rotate90",), num_sub_policies=120)
    pairs = {tuple(pair) for pair in artefact.content.row.tolist()}
    assert len(pairs) == 120 and all(first < second for first, second in pairs)
    with pytest.raises(ValueError, match=r"num_sub_policies: got 106, expected 1\.\.105"):
        policies.random_policy(0, num_sub_policies=106)


def test_random_policy_of_longer_sub_policies():
    row, probability, level, _ = policies.random_policy(3, num_ops=3).content
    triples = {tuple(triple) for triple in row.tolist()}
    assert len(triples) == 25 and all(first < second < third for first, second, third in triples)
    assert probability.shape == level.shape == (25, 3)
    assert len(np.unique([probability, level])) == 150
    with pytest.raises(ValueError, match=r"num_sub_policies: got 0, expected 1\.\.0"):
        policies.random_policy(0, num_ops=16)


def test_a_policy_can_be_a_static_argument():
    first = policies.identity()
    assert hash(first) == hash(first) and first != policies.identity()


# ---- summaries -------------------------------------------------------------------------------


def test_op_mass_of_sub_policies(tmp_path):
    mass = policies.op_mass(policies.load(_write(tmp_path, FILES["sub_policies"])))
    expected = {"ShearX": 2 / 3 * 0.1, "Rotate90": 2 / 3, "Invert": 1 / 3, "Color": 1 / 12}
    assert list(mass) == [row.name for row in ops.search_space("strength", ["Rotate90"]).rows]
    for op, value in mass.items():
        assert value == pytest.approx(expected.get(op, 0.0)), op


def test_op_mass_of_layers_and_schedule(tmp_path):
    mass = policies.op_mass(policies.load(_write(tmp_path, FILES["layers"])))
    assert mass["Rotate90"] == pytest.approx(0.5) and mass["Rotate"] == pytest.approx(1.5)
    mass = policies.op_mass(policies.load(_write(tmp_path, FILES["schedule"])))
    assert mass["Invert"] == pytest.approx(2 * (0.35 * 0.5 + 0.2 * 0.4 + 0.1 * 0.1) / 3)
    assert sum(mass.values()) == pytest.approx(2 * 0.65 / 3)
    assert sum(policies.op_mass(policies.identity()).values()) == 0


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("sub_policies", ["   0  0.6667  ShearX 0.10 @ 0.20 = +-0.06         Rotate90 1.00", "   2  0.0000"]),
        ("layers", ["Rotate                0.5000      1.0000"]),
        ("schedule", ["Cutout                0.3500      0.2400      0.1800"]),
    ],
)
def test_format_table(kind, expected, tmp_path):
    text = policies.format_table(policies.load(_write(tmp_path, FILES[kind])))
    lines = text.splitlines()
    assert lines[0] == f"{kind} in search space strength with Rotate90"
    for line in expected:
        assert line in lines
