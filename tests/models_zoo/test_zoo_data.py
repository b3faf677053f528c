"""Splits are disjoint, stratified and reproducible; batches repeat for a resumed run."""

from __future__ import annotations

import pytest
import torch

from autorep_fx.models_zoo._augment import crop_boxes
from autorep_fx.models_zoo._images import channel_statistics, normalise, stratified_parts
from autorep_fx.models_zoo.data import (
    Batches,
    ImageData,
    Split,
    compose,
    crop_flip,
    cutout,
    digits,
    flip,
    random_shift,
    resized_crop,
)


@pytest.fixture(scope="module")
def data() -> ImageData:
    return digits(seed=0)


def numbered(count: int) -> Split:
    """Samples that carry their own number."""
    return Split(torch.arange(count).float().view(-1, 1, 1, 1), torch.arange(count))


def epoch_of(batches: Batches) -> list[int]:
    return [int(label) for _, y in batches for label in y]


def test_split_refuses_unequal_lengths() -> None:
    """Images and labels must be equally many."""
    with pytest.raises(ValueError, match="equally long, got 3 images, 2 labels"):
        Split(torch.zeros(3, 1, 8, 8), torch.zeros(2))


def test_digits_shapes(data: ImageData) -> None:
    """Digits are float32 (N, 1, 8, 8) with int64 labels, about 60/20/20, 1,797 in all."""
    sizes = [len(part) for part in (data.train, data.validation, data.test)]
    assert sizes == [1079, 359, 359]
    assert data.train.x.shape == (1079, 1, 8, 8)
    assert data.train.x.dtype == torch.float32
    assert data.train.y.dtype == torch.int64
    assert data.classes == tuple("0123456789")


def test_digits_normalised_by_train(data: ImageData) -> None:
    """The training part, and only that, has mean 0 and variance 1."""
    assert data.train.x.mean().abs() < 1e-5
    assert (data.train.x.std(correction=0) - 1).abs() < 1e-5
    assert 1e-5 < data.test.x.mean().abs() < 0.1


def test_digits_stratified(data: ImageData) -> None:
    """Each class has the same share in every part, up to one or two samples."""
    total = sum(part.y.bincount() for part in (data.train, data.validation, data.test))
    for part in (data.train, data.validation, data.test):
        expected = total * len(part) / 1797
        assert (part.y.bincount() - expected).abs().max() <= 2


def test_digits_seed(data: ImageData) -> None:
    """The same seed gives the same parts, another seed others."""
    again, other = digits(seed=0), digits(seed=1)
    assert torch.equal(data.test.x, again.test.x)
    assert torch.equal(data.train.y, again.train.y)
    assert not torch.equal(data.test.y, other.test.y)


@pytest.mark.parametrize("sizes", [(3, 4), (10,), (0, 5), (20, 20, 20)])
def test_parts_are_disjoint_and_complete(sizes: tuple[int, ...]) -> None:
    """Parts have exactly the sizes asked for, share nothing, and together with the rest cover everything."""
    labels = torch.arange(60) % 4
    parts = stratified_parts(labels, sizes, seed=3)
    assert [len(part) for part in parts] == [*sizes, 60 - sum(sizes)]
    assert torch.cat(parts).sort().values.tolist() == list(range(60))


def test_parts_do_not_touch_the_global_generator() -> None:
    """Splitting depends on its seed alone and leaves torch's random state as it was."""
    labels = torch.arange(30) % 3
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one = stratified_parts(labels, (10,), seed=1)
    torch.manual_seed(9)
    two = stratified_parts(labels, (10,), seed=1)
    torch.manual_seed(0)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_parts_too_large() -> None:
    """More samples than there are is an error that names both numbers."""
    with pytest.raises(ValueError, match=r"\[4, 3\] samples do not fit in 6"):
        stratified_parts(torch.zeros(6, dtype=torch.int64), (4, 3), seed=0)


def test_channel_statistics() -> None:
    """Mean and deviation equal the float64 ones; a constant channel has deviation 1."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8, generator=generator)
    images[:, 2] = 7
    mean, deviation = channel_statistics(images)
    torch.testing.assert_close(mean, images.double().mean((0, 2, 3)), rtol=1e-12, atol=0)
    expected = images[:, :2].double().std((0, 2, 3), correction=0)
    torch.testing.assert_close(deviation[:2], expected, rtol=1e-9, atol=0)
    assert deviation[2] == 1


@pytest.mark.parametrize(("count", "size", "drop", "expected"), [(10, 4, False, 3), (10, 4, True, 2), (8, 4, False, 2)])
def test_batches_length(count: int, size: int, drop: bool, expected: int) -> None:
    """`len` is the number of batches that an epoch gives."""
    batches = Batches(numbered(count), size, drop_last=drop)
    assert len(batches) == len(list(batches)) == expected


def test_batches_cover_every_sample_once() -> None:
    """An epoch is a permutation of the split, and x belongs to y."""
    batches = Batches(numbered(11), 4, seed=2)
    assert sorted(epoch_of(batches)) == list(range(11))
    assert all(torch.equal(x.flatten().long(), y) for x, y in batches)


def test_batches_advance() -> None:
    """Without set_epoch each iteration is another epoch, as set_epoch would have given it."""
    batches = Batches(numbered(20), 6, seed=1)
    orders = [epoch_of(batches) for _ in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for epoch in (2, 0, 1):
        batches.set_epoch(epoch)
        assert epoch_of(batches) == orders[epoch]


def test_batches_advance_after_a_break() -> None:
    """Leaving an epoch early still makes the next iteration the next epoch."""
    batches, reference = Batches(numbered(20), 6), Batches(numbered(20), 6)
    next(iter(batches))
    reference.set_epoch(1)
    assert epoch_of(batches) == epoch_of(reference)


def test_batches_in_order() -> None:
    """Without shuffling every epoch has the split's own order."""
    batches = Batches(numbered(5), 2, shuffle=False)
    assert epoch_of(batches) == epoch_of(batches) == list(range(5))


def test_batches_seed() -> None:
    """Another seed gives another order, and seeds and epochs do not coincide along diagonals."""
    one, two = Batches(numbered(50), 50, seed=0), Batches(numbered(50), 50, seed=1)
    one.set_epoch(1)
    assert epoch_of(one) != epoch_of(two)


def test_batches_resume(data: ImageData) -> None:
    """A new object that loads the state repeats the rest of the run exactly, augmentation included."""
    make = lambda: Batches(data.validation, 100, seed=4, augment=random_shift(1))  # noqa: E731
    run, resumed = make(), make()
    for _ in range(2):
        list(run)
    resumed.load_state_dict(run.state_dict())
    for (x, y), (x2, y2) in zip([*run, *run], [*resumed, *resumed], strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


def test_batches_resume_in_the_middle_of_an_epoch(data: ImageData) -> None:
    """From after any batch: the rest of the epoch, then the next one, augmentation included."""
    make = lambda: Batches(data.validation, 100, seed=4, augment=compose(random_shift(1), cutout(3)))  # noqa: E731
    reference = make()
    expected = [*reference, *reference]
    run = make()
    assert run.state_dict() == {"epoch": 0, "batch": 0}
    states = [run.state_dict() for _ in (0, 1) for _ in run]
    assert states[3:5] == [{"epoch": 1, "batch": 0}, {"epoch": 1, "batch": 1}]
    for given, state in enumerate(states[:-1], 1):
        resumed = make()
        resumed.load_state_dict(state)
        rest = [*resumed, *resumed][: len(expected) - given]
        for (x, y), (x2, y2) in zip(expected[given:], rest, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)


def test_states_of_other_data_are_refused() -> None:
    """A batch that the epoch does not have; a state without one, as earlier versions saved it, is the epoch's start."""
    batches = Batches(numbered(20), 6)
    with pytest.raises(ValueError, match="batch must be one of the 4 of an epoch, got 4"):
        batches.load_state_dict({"epoch": 0, "batch": 4})
    batches.load_state_dict({"epoch": 2})
    assert batches.state_dict() == {"epoch": 2, "batch": 0}


def test_uint8_is_normalised_as_a_batch_is_taken(data: ImageData) -> None:
    """A quarter of the memory, and the same values bit for bit as normalising all of it at once."""
    images = torch.randint(0, 256, (50, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, deviation = channel_statistics(images)
    stored = Split(images, torch.arange(50), (mean, deviation))
    floating = Split(normalise(images, mean, deviation), torch.arange(50))
    for (x, y), (x2, y2) in zip(
        *(Batches(split, 8, seed=1, augment=crop_flip(2)) for split in (stored, floating)), strict=True
    ):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)
    assert data.train.x is data.train.images  # what is floating-point already is not copied


def test_batches_move_to_a_device(data: ImageData) -> None:
    """The split goes there, whole; the draws stay on the CPU."""
    batches = Batches(data.validation, 100, augment=crop_flip(1)).to("meta")
    assert batches.split.images.device.type == batches.split.y.device.type == "meta"
    x, y = next(iter(batches))
    assert x.shape == (100, 1, 8, 8)
    assert x.device.type == y.device.type == "meta"


def test_batches_ignore_the_global_generator() -> None:
    """Draws elsewhere in the program change nothing, and batches draw nothing from the global stream."""
    batches = Batches(numbered(20), 5, augment=random_shift(0))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = epoch_of(batches)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    batches.set_epoch(0)
    assert epoch_of(batches) == first


def test_batches_of_nothing() -> None:
    """An empty split has no batches."""
    assert list(Batches(numbered(0), 4)) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"batch_size": 2, "seed": -1}, "seed must be 0 or more, got -1"),
        ({"batch_size": 9, "drop_last": True}, "no batch of 9 from 8 samples"),
    ],
)
def test_batches_refuse(options: dict[str, int], reason: str) -> None:
    """Options that cannot work are refused when the object is made."""
    with pytest.raises(ValueError, match=reason):
        Batches(numbered(8), **options)


def test_negative_epoch() -> None:
    """An epoch below zero is refused."""
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        Batches(numbered(8), 2).set_epoch(-1)


AUGMENTS = {
    "shift": random_shift(2), "crop_flip": crop_flip(), "flip": flip(), "cutout": cutout(3),
    "resized_crop": resized_crop(), "all": compose(resized_crop(), flip(), cutout(2)),
}  # fmt: skip


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_augmentation_contract(augment: object) -> None:
    """Augmentation keeps shape and dtype, leaves its input alone, and is decided by the generator."""
    assert callable(augment)
    x = torch.rand(16, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    results = [augment(x, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert torch.equal(x, kept)
    assert results[0].shape == x.shape
    assert results[0].dtype == x.dtype
    assert results[0].is_contiguous()
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("augment", AUGMENTS.values(), ids=AUGMENTS)
def test_augmentation_draws_by_the_shape_alone(augment: object) -> None:
    """Without values the same numbers are drawn, so that a batch can be skipped."""
    assert callable(augment)
    states = []
    for x in (torch.rand(5, 3, 8, 6), torch.empty(5, 3, 8, 6, device="meta")):
        generator = torch.Generator().manual_seed(3)
        assert augment(x, generator).shape == x.shape
        states.append(generator.get_state())
    assert torch.equal(*states)


def test_random_shift_moves_each_sample_by_whole_pixels() -> None:
    """Every result is one of the 9 shifts by up to one pixel, and over many samples all of them occur."""
    image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
    shifts = {tuple(padded[0, 0, i : i + 4, j : j + 4].flatten().tolist()) for i in range(3) for j in range(3)}
    moved = random_shift(1)(image.repeat(200, 1, 1, 1), torch.Generator().manual_seed(0))
    assert {tuple(sample.flatten().tolist()) for sample in moved} == shifts


def test_shift_moves_channels_together() -> None:
    """All channels of a sample get the same shift."""
    x = torch.rand(8, 1, 5, 5).repeat(1, 2, 1, 1)
    moved = random_shift(2)(x, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 1])


def test_flip_mirrors_about_half() -> None:
    """Without padding each sample is unchanged or mirrored along W, in about equal shares."""
    image = torch.arange(12.0).view(1, 1, 3, 4)
    out = crop_flip(0)(image.repeat(400, 1, 1, 1), torch.Generator().manual_seed(0))
    same = (out == image).flatten(1).all(1)
    mirrored = (out == image.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250


def test_cutout_hides_one_square() -> None:
    """At most 3×3 of each sample, in all channels, less where it lies over the border; any pixel can be hidden."""
    hidden = cutout(3)(torch.ones(400, 2, 6, 7), torch.Generator().manual_seed(0)) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    count = hidden[:, 0].sum((1, 2))
    assert set(count.tolist()) == {4, 6, 9}
    assert torch.equal(count, hidden[:, 0].any(2).sum(1) * hidden[:, 0].any(1).sum(1))
    assert bool(hidden.any(0).all())


def test_cutout_of_nothing() -> None:
    """A square of 0 pixels leaves everything."""
    x = torch.ones(4, 1, 5, 5)
    assert torch.equal(cutout(0)(x, torch.Generator().manual_seed(0)), x)


def test_resized_crop_takes_a_part_and_stretches_it() -> None:
    """Of a ramp along W each result is a ramp within it, and the share of the area is 8 % to 100 %."""
    ramp = torch.arange(32.0).expand(300, 1, 32, 32).contiguous()
    out = resized_crop()(ramp, torch.Generator().manual_seed(0))
    assert float(out.min()) >= 0
    assert float(out.max()) <= 31
    assert bool((out.diff(dim=3) >= -1e-4).all())
    steps = out[:, 0, :, 8:24].diff(dim=2)  # away from the border, which is repeated
    torch.testing.assert_close(steps, steps.mean((1, 2), keepdim=True).expand_as(steps), rtol=0, atol=1e-3)
    shares = steps.mean((1, 2))
    assert (0.08 * 3 / 4) ** 0.5 - 1e-3 < float(shares.min()) < 0.4
    assert 0.9 < float(shares.max()) <= 1 + 1e-3


def test_resized_crop_of_everything_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the box that is the image, the sampling grid is the pixels."""
    box = torch.tensor([[0.0, 0.0, 6.0, 5.0]])
    monkeypatch.setattr("autorep_fx.models_zoo._augment.crop_boxes", lambda count, *_: box.expand(count, 4))
    x = torch.rand(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resized_crop()(x, torch.Generator()), x, rtol=0, atol=1e-5)


def test_crop_boxes_lie_inside() -> None:
    """Also in images much longer than wide, where the box is cut."""
    left, top, width, height = crop_boxes(1000, 200, 50, torch.Generator().manual_seed(0)).unbind(1)
    assert bool((left >= 0).all()) and bool((top >= 0).all())
    assert bool((left + width <= 50 + 1e-3).all()) and bool((top + height <= 200 + 1e-3).all())


@pytest.mark.parametrize(("make", "name"), [(random_shift, "pixels"), (crop_flip, "padding"), (cutout, "pixels")])
def test_augmentation_refuses_negative(make: object, name: str) -> None:
    """A negative distance is refused when the augmentation is made."""
    assert callable(make)
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, got -1"):
        make(-1)
