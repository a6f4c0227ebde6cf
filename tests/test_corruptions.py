"""Corruptions: laws, cases by hand, and what OpenCV makes of a small picture of water."""

import io

import numpy as np
import pytest
from PIL import Image

from experiments import corruptions, spatter
from experiments.corruption_constants import CONSTANTS
from experiments.corruptions import CORRUPTIONS, corrupt, motion_blurred
from experiments.tiny import world
from symerge_jax.cli.errors import run
from symerge_jax.errors import BadInput

RANDOM = {"motion_blur", "impulse_noise", "gaussian_noise", "spatter"}

every_corruption = pytest.mark.parametrize("name", CORRUPTIONS)
both_constants = pytest.mark.parametrize("constants", CONSTANTS)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain(level, *shape):
    return np.full((*shape, 3), level, np.uint8)


@pytest.fixture(scope="module")
def pictures():
    return world.images("signs", split="test", count=12, seed=0)[0]


# --- laws ---------------------------------------------------------------------------------------


def test_both_sets_of_constants_have_the_same_corruptions_in_five_severities():
    assert CORRUPTIONS == (
        "motion_blur",
        "impulse_noise",
        "gaussian_noise",
        "pixelate",
        "spatter",
        "contrast",
        "jpeg",
    )
    for strengths in CONSTANTS.values():
        assert tuple(strengths) == CORRUPTIONS
        assert all(len(values) == 5 for values in strengths.values())


@every_corruption
@both_constants
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_images_keep_their_form_and_the_originals_stay(name, constants, severity):
    images = pixels(3, 20, 28, 3)
    before = images.copy()
    corrupted = corrupt(images, name, severity=severity, constants=constants)
    assert corrupted.shape == images.shape
    assert corrupted.dtype == np.uint8
    assert (corrupted != images).any()
    np.testing.assert_array_equal(images, before)


@every_corruption
def test_images_may_be_of_any_size(name):
    for shape in ((2, 1, 1, 3), (1, 224, 224, 3), (0, 32, 32, 3)):
        assert corrupt(pixels(*shape), name).shape == shape


@every_corruption
def test_the_seed_decides(name, pictures):
    again = corrupt(pictures, name, seed=1)
    np.testing.assert_array_equal(corrupt(pictures, name, seed=1), again)
    assert np.array_equal(corrupt(pictures, name, seed=2), again) == (name not in RANDOM)


@every_corruption
def test_parts_of_a_data_set_come_out_as_in_the_whole(name, pictures):
    whole = corrupt(pictures, name, severity=3)
    np.testing.assert_array_equal(corrupt(pictures[:5], name, severity=3), whole[:5])
    np.testing.assert_array_equal(corrupt(pictures[5:], name, severity=3, first=5), whole[5:])


@every_corruption
def test_memory_has_no_part_in_the_result(name, pictures, monkeypatch):
    whole = corrupt(pictures, name)
    monkeypatch.setattr(corruptions, "_PIXELS_AT_ONCE", 5 * 32 * 32)
    np.testing.assert_array_equal(corrupt(pictures, name), whole)


@every_corruption
def test_equal_images_get_random_numbers_of_their_own(name, pictures):
    twins = corrupt(np.stack([pictures[0], pictures[0]]), name)
    assert np.array_equal(twins[0], twins[1]) == (name not in RANDOM)


@every_corruption
@both_constants
def test_severer_is_further_from_the_original(name, constants, pictures):
    if (name, constants) == ("spatter", "small"):
        pytest.skip("from water to mud, the published constants take a step back")
    differences = [
        np.abs(corrupt(pictures, name, severity=s, constants=constants) - pictures.astype(float))
        for s in range(1, 6)
    ]
    means = [difference.mean() for difference in differences]
    assert means == sorted(means)
    # CIFAR-10-C's motion blurs 3 and 4 differ in their length only, where weights are 0 already.
    assert len(set(means)) == (4 if (name, constants) == ("motion_blur", "small") else 5)


# --- noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constants", "severity", "sigma"),
    [("small", 1, 0.04), ("small", 5, 0.10), ("imagenet", 1, 0.08), ("imagenet", 2, 0.12)],
)
def test_gaussian_noise_has_its_standard_deviation(constants, severity, sigma):
    grey = plain(128, 50, 32, 32)  # 0 and 255 are more than four σ away
    noisy = corrupt(grey, "gaussian_noise", severity=severity, constants=constants)
    assert noisy.std() / 255 == pytest.approx(sigma, rel=0.01)
    assert noisy.mean() == pytest.approx(127.5, abs=0.3)  # without fractions: half a level less
    channels = np.corrcoef(noisy.reshape(-1, 3).T.astype(float))
    assert np.abs(channels - np.eye(3)).max() < 0.02


@both_constants
@pytest.mark.parametrize("severity", [1, 5])
def test_impulse_noise_hits_its_share_of_values(constants, severity):
    amount = {("small", 1): 0.01, ("small", 5): 0.07, ("imagenet", 1): 0.03, ("imagenet", 5): 0.27}
    wanted = amount[constants, severity]
    noisy = corrupt(
        plain(100, 100, 32, 32), "impulse_noise", severity=severity, constants=constants
    )
    assert set(np.unique(noisy)) == {0, 100, 255}
    assert (noisy == 0).mean() == pytest.approx(wanted / 2, rel=0.05)
    assert (noisy == 255).mean() == pytest.approx(wanted / 2, rel=0.05)
    all_channels = (noisy != 100).all(axis=-1).mean()
    assert all_channels == pytest.approx(wanted**3, abs=0.002)  # each on its own


# --- contrast, pixelate, jpeg -------------------------------------------------------------------


def test_contrast_by_hand():
    image = np.array([[[[10, 0, 7], [30, 201, 7]]]], np.uint8)  # means 20, 100.5 and 7
    # 20 ± 0.15 · 10 and 100.5 ± 0.15 · 100.5, without fractions
    expected = [[[[18, 85, 7], [21, 115, 7]]]]
    np.testing.assert_array_equal(corrupt(image, "contrast"), expected)
    # 20 ± 0.5 · 10 and 100.5 ± 0.5 · 100.5
    expected = [[[[15, 50, 7], [25, 150, 7]]]]
    np.testing.assert_array_equal(corrupt(image, "contrast", severity=2), expected)


def test_pixelate_by_hand():
    image = np.array([[[0, 20, 40, 60], [20, 40, 80, 68], [1, 3, 5, 3], [3, 1, 3, 5]]])
    image = image[..., None].repeat(3, axis=-1).astype(np.uint8)
    halves = [[20, 20, 62, 62], [20, 20, 62, 62], [2, 2, 4, 4], [2, 2, 4, 4]]
    found = corrupt(image, "pixelate", severity=2, constants="imagenet")  # factor 0.5
    for channel in range(3):
        np.testing.assert_array_equal(found[0, ..., channel], halves)
    whole = corrupt(image, "pixelate", severity=5, constants="imagenet")  # factor 0.25
    assert set(np.unique(whole)) == {22}  # the mean


def test_pixelate_resizes_with_boxes_there_and_back(pictures):
    image = Image.fromarray(pictures[3])
    small = image.resize((20, 20), Image.Resampling.BOX)  # 0.65 · 32 = 20.8
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(corrupt(pictures, "pixelate")[3], expected)


@pytest.mark.parametrize(("constants", "quality"), [("small", 40), ("imagenet", 7)])
def test_jpeg_is_a_round_trip_at_its_quality(pictures, constants, quality):
    file = io.BytesIO()
    Image.fromarray(pictures[3]).save(file, "JPEG", quality=quality)
    with Image.open(file) as decoded:
        expected = np.asarray(decoded)
    found = corrupt(pictures, "jpeg", constants=constants)[3]
    np.testing.assert_array_equal(found, expected)


# --- motion blur --------------------------------------------------------------------------------


@both_constants
@pytest.mark.parametrize("level", [0, 77, 255])
def test_motion_blur_keeps_plain_images(constants, level):
    image = plain(level, 2, 32, 32)
    np.testing.assert_array_equal(corrupt(image, "motion_blur", constants=constants), image)


def dot(row, column, *, size):
    image = plain(0, size, size)
    image[row, column] = 255
    return image


def lit(image):
    return {(int(r), int(c)): int(image[r, c, 0]) for r, c in np.argwhere(image[..., 0])}


# exp(0), exp(-1/2) and exp(-2) over their sum, times 255
WEIGHTS = (146, 89, 20)


@pytest.mark.parametrize(
    ("degrees", "trail"),
    [
        (0, [(5, 5), (5, 4), (5, 3)]),
        (45, [(5, 5), (4, 4), (4, 4)]),  # 0, 0.71 and 1.41 pixels, rounded
        (-45, [(5, 5), (6, 4), (6, 4)]),
        (20, [(5, 5), (5, 4), (4, 3)]),
    ],
)
def test_motion_blur_by_hand(degrees, trail):
    blurred = motion_blurred(dot(5, 5, size=11), radius=1, sigma=1.0, degrees=degrees)
    expected = dict.fromkeys(trail, 0)
    for place, weight in zip(trail, WEIGHTS, strict=True):
        expected[place] += weight
    assert lit(blurred) == expected


def test_motion_blur_goes_on_beyond_the_border():
    blurred = motion_blurred(dot(2, 4, size=5), radius=1, sigma=1.0, degrees=0)
    assert lit(blurred) == {(2, 4): 255, (2, 3): 109, (2, 2): 20}


@both_constants
def test_motion_blur_keeps_light_and_follows_its_angle(constants):
    image = dot(50, 90, size=100)
    blurred = corrupt(image[None], "motion_blur", constants=constants, seed=3)[0]
    places = np.array(list(lit(blurred)))
    levels = np.array(list(lit(blurred).values()), float)
    assert levels.sum() == pytest.approx(255, abs=len(levels) / 2)
    row, column = (levels @ places) / levels.sum()
    angle = np.random.default_rng(np.random.SeedSequence([3, 0])).uniform(-45, 45)
    assert np.rad2deg(np.arctan2(50 - row, 90 - column)) == pytest.approx(angle, abs=6)


# --- spatter ------------------------------------------------------------------------------------


@both_constants
@pytest.mark.parametrize("severity", [4, 5])
def test_mud_covers_some_pixels_with_its_colour(constants, severity):
    white = plain(255, 20, 32, 32)
    muddy = corrupt(white, "spatter", severity=severity, constants=constants)
    covered = (muddy != 255).any(axis=-1)
    assert 0.02 < covered.mean() < 0.6
    cover = (255.0 - muddy[covered]) / (255 - np.array(spatter.MUD))
    assert cover.min() > 0.79
    assert cover.max() < 1.01
    assert np.ptp(cover, axis=-1).max() < 0.01  # one colour
    untouched = pixels(20, 32, 32, 3)
    found = corrupt(untouched, "spatter", severity=severity, constants=constants)
    np.testing.assert_array_equal(found[~covered], untouched[~covered])


def test_thick_mud_is_brown(pictures):
    muddy = corrupt(pictures, "spatter", constants="imagenet", seed=1)
    assert 0.03 < (np.abs(muddy - np.array(spatter.MUD)).max(axis=-1) <= 5).mean() < 0.5


@both_constants
@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_adds_pale_light(constants, severity):
    black = plain(0, 20, 32, 32)
    wet = corrupt(black, "spatter", severity=severity, constants=constants)
    opacity = CONSTANTS[constants]["spatter"][severity - 1].amount
    brightest = np.floor(opacity * np.array(spatter.WATER) + 1e-3)
    with_water = wet.any(axis=(1, 2, 3))
    assert with_water.mean() > 0.5
    assert (wet[with_water].max(axis=(1, 2)) == brightest).all()
    assert 0.05 < (wet == 0).all(axis=-1).mean() < 0.99
    images = pixels(20, 32, 32, 3)
    assert (corrupt(images, "spatter", severity=severity, constants=constants) >= images).all()


def test_no_water_leaves_an_image_as_it_is():
    layer = np.full((1, 8, 8), 0.5)
    assert not spatter.water_light(layer, threshold=0.7, opacity=0.5).any()


def test_water_is_as_opencv_draws_it():
    row, column = np.mgrid[:8, :10]
    layer = (row * 37 + column * 53 + row * column * 11) % 256 / 255
    # 255 times the light, by OpenCV 5.0.0: Canny, distanceTransform, blur, equalizeHist, filter2D
    expected = [
        [0, 0, 89, 187, 178, 0, 0, 0, 0, 0],
        [0, 0, 139, 231, 0, 0, 0, 0, 0, 0],
        [0, 75, 226, 0, 79, 32, 0, 0, 0, 0],
        [0, 67, 0, 76, 67, 0, 39, 101, 0, 59],
        [0, 41, 0, 62, 0, 61, 184, 0, 157, 255],
        [0, 0, 0, 0, 35, 179, 0, 233, 0, 156],
        [0, 0, 0, 0, 94, 0, 254, 0, 176, 0],
        [0, 0, 0, 0, 0, 142, 0, 146, 0, 75],
    ]
    light = spatter.water_light(layer[None], threshold=0.4, opacity=1.0)[0]
    np.testing.assert_array_equal(np.rint(255 * light), expected)


def test_distances_by_hand():
    targets = np.zeros((2, 5, 6), bool)
    targets[0, 1, 1] = True
    a, b, c = 1.0, 1.4, 2.1969
    expected = [
        [b, a, b, c, 1 + c, 4.0],
        [a, 0, a, 2, 3, 4],
        [b, a, b, c, 1 + c, 4.0],
        [c, 2, c, 2 * b, b + c, 2 * c],
        [1 + c, 3, 1 + c, b + c, 3 * b, 2 * b + c],
    ]
    found = spatter.distances(targets, 4.0)
    np.testing.assert_allclose(found[0], np.minimum(expected, 4), rtol=1e-6)
    np.testing.assert_array_equal(found[1], 4)  # no target


def test_outlines_by_hand():
    levels = np.zeros((2, 6, 8), np.uint8)
    levels[0, :, 4:] = 60  # a step's gradient is 4 · 60 on both sides; the left one is taken
    levels[1, :, 4:] = 30  # 120 is enough to go on, not to begin
    edges = spatter.outlines(levels, 50, 150)
    expected = np.zeros((6, 8), bool)
    expected[:, 3] = True
    np.testing.assert_array_equal(edges[0], expected)
    assert not edges[1].any()
    levels[1, :3, 4:] = 60  # begun above, the outline goes on
    assert spatter.outlines(levels, 50, 150)[1, 3:].any(axis=1).all()


def test_equalised_by_hand():
    levels = np.array([[[5, 5, 5, 6, 6, 9, 9, 9]], [[3] * 8]], np.uint8)
    # Of five above the lowest, two are 6: 255 · 2/5
    expected = [[[0, 0, 0, 102, 102, 255, 255, 255]], [[3] * 8]]
    np.testing.assert_array_equal(spatter.equalised(levels), expected)


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "gausian_noise"}, r"'gausian_noise' \(did you mean gaussian_noise\?\), expected"),
        ({"name": "zzz"}, r"unknown corruption 'zzz', expected one of motion_blur, "),
        ({"severity": 0}, "severity must be a whole number from 1 to 5, got 0"),
        ({"severity": 6}, "from 1 to 5, got 6"),
        ({"severity": 2.5}, "from 1 to 5, got 2.5"),
        ({"constants": "imagenet-c"}, r"'imagenet-c' \(did you mean imagenet\?\), expected small"),
        ({"seed": -1}, "got seed -1 and first 0"),
        ({"first": -2}, "got seed 0 and first -2"),
        ({"images": [[0]]}, "expected a uint8 array .*, got a list"),
        ({"images": np.zeros((2, 4, 4, 3))}, "got float64; give levels 0 to 255 as uint8"),
        ({"images": np.zeros((4, 4, 3), np.uint8)}, r"got \[4, 4, 3\]"),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8)}, r"got \[2, 4, 4, 1\]"),
        ({"images": np.zeros((2, 0, 4, 3), np.uint8)}, r"got \[2, 0, 4, 3\]"),
    ],
)
def test_what_cannot_be_corrupted_is_named(options, said):
    arguments = {"images": pixels(2, 4, 4, 3), "name": "contrast", **options}
    with pytest.raises(BadInput, match=said):
        corrupt(**arguments)


# --- the sheet ----------------------------------------------------------------------------------


def command(*words):
    return run(corruptions.main, corruptions.Settings, [str(w) for w in words], prog="corruptions")


def test_a_sheet_has_a_column_for_the_clean_images_and_each_corruption(tmp_path, capsys):
    assert command("--out", tmp_path / "new" / "sheet.png", "--rows", 2) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "sheet.png")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        found = np.asarray(sheet)
    clean = world.images("digits", split="test", count=1, seed=0)[0]
    for column, image in enumerate([clean, *(corrupt(clean, name) for name in CORRUPTIONS)]):
        enlarged = image[0].repeat(4, axis=0).repeat(4, axis=1)  # from 32 to at least 120
        left = found.shape[1] - (8 - column) * (128 + 8)
        top = found.shape[0] - 2 * (128 + 8)
        np.testing.assert_array_equal(found[top : top + 128, left : left + 128], enlarged)


def test_a_sheet_of_ones_own_images(tmp_path, capsys):
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    np.savez(folder / "test.npz", images=pixels(5, 40, 40, 3), labels=np.arange(5) % 2)
    words = ("--data", tmp_path / "data", "--task", "mine", "--size", 40, "--rows", 3)
    assert command(*words, "--out", tmp_path / "a.png", "--constants", "imagenet") == 0
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.width > 8 * 120
        assert sheet.height > 3 * 120


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "here"], "--data needs --task"),
        (["--size", 64], "--size goes with --data"),
        (["--task", "digitz"], "the embedded world has no such task (did you mean digits?)"),
        (["--rows", 0], "--rows must be at least 1"),
        (["--seed", -1], "--seed at least 0"),
        (["--severity", 6], "from 1 to 5, got 6"),
        (["--constants", "big"], "big"),
        (["--data", "nowhere", "--task", "x"], "nowhere: does not exist"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(words, said, tmp_path, capsys):
    assert command("--out", tmp_path / "sheet.png", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("symerge: error: ")
    assert error.count("\n") == 1
    assert said in error
    assert not (tmp_path / "sheet.png").exists()
