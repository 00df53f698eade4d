"""The trainer: schedules against torch, snapshots to the bit, inference that changes nothing."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cloud_server.errors import CloudError
from cloud_server.networks.build import build_network
from cloud_server.storage.checkpoint import flatten_state, load_checkpoint, save_checkpoint, unflatten_state
from cloud_server.training.inference import threads
from cloud_server.training.losses import LOSSES
from cloud_server.training.trainer import DivergedError, Trainer, TrainerConfig
from protocol.batches import batch_bounds
from protocol.noise import derive_seed, permutation

Batch = tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.uint8]]]


def make_trainer(*, dropout: float = 0.0, network_seed: int = 0, **config: Any) -> Trainer:
    network = build_network(
        "compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=network_seed
    )
    return Trainer(nn.Sequential(nn.Dropout(dropout), network), TrainerConfig(**config))


def frames(n: int, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    label_BHW = generator.integers(0, 5, (n, 6, 8), np.uint8).repeat(8, 1).repeat(8, 2)
    features_BCHW = generator.normal(size=(n, 4, 6, 8)).astype(np.float32)
    features_BCHW[:, 0] += label_BHW[:, ::8, ::8]
    label_BHW[:, :8] = 255
    return features_BCHW, label_BHW


def same(a: Any, b: Any) -> bool:
    tensors_a, structure_a = flatten_state(a)
    tensors_b, structure_b = flatten_state(b)
    return bool(structure_a == structure_b) and all(
        torch.equal(tensors_a[n], tensors_b[n]) for n in tensors_a
    )


def test_training_lowers_the_loss_and_the_prediction_becomes_right() -> None:
    trainer = make_trainer(schedule="one-cycle", total_steps=60, rate=5e-3)
    features_BCHW, label_BHW = frames(4)
    first = trainer.evaluate_loss(features_BCHW, label_BHW)
    means = trainer.train_epochs(features_BCHW, label_BHW, epochs=60, batch_size=4, seed=1)
    assert trainer.steps == 60 and len(means) == 60
    assert trainer.evaluate_loss(features_BCHW, label_BHW) < 0.5 * first
    prediction_BHW = trainer.predict(features_BCHW, (48, 64), chunk_frames=3)
    assert prediction_BHW.dtype == np.uint8
    known_BHW = label_BHW != 255
    assert (prediction_BHW == label_BHW)[known_BHW].mean() > 0.6


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ("one-cycle", lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 3e-3, total_steps=21)),
        ("cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20)),
        ("constant", lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_rates_of_each_schedule_equal_those_of_torch(schedule: str, reference: Callable[[Any], Any]) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=3e-3)
    scheduler = reference(optimizer)
    trainer = make_trainer(schedule=schedule, total_steps=21, rate=3e-3)
    batch = frames(2)
    for _ in range(21):
        expected = optimizer.param_groups[0]["lr"]
        trainer.train_step(*batch)
        assert trainer._optimizer.param_groups[0]["lr"] == pytest.approx(expected, rel=1e-9, abs=1e-15)
        optimizer.step()
        scheduler.step() if trainer.steps < 21 else None
    last = trainer._optimizer.param_groups[0]["lr"]
    trainer.train_step(*batch)
    assert trainer._optimizer.param_groups[0]["lr"] == last


def test_steps_equal_those_of_plain_torch() -> None:
    trainer = make_trainer(rate=1e-3, weight_decay=0.1)
    network = build_network("compact", feature_shape=(4, 6, 8), feature_stride=8, num_classes=5, seed=0)
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    features_BCHW, label_BHW = frames(4)
    for _ in range(3):
        logits_BKhw = network(torch.from_numpy(features_BCHW).contiguous(memory_format=torch.channels_last))
        label_Bhw = torch.from_numpy(label_BHW[:, 2::4, 2::4])
        loss = LOSSES["cross-entropy"](logits_BKhw, label_Bhw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert trainer.train_step(features_BCHW, label_BHW) == pytest.approx(loss.item(), rel=1e-5)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(trainer.weights()[f"1.{name}"], value, rtol=1e-4, atol=1e-5)


def test_learning_imports_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # as if it were not installed
    monkeypatch.delattr(torch, "_dynamo", raising=False)
    make_trainer().train_step(*frames(2))


@pytest.mark.parametrize("schedule", ["constant", "one-cycle"])
def test_a_restored_snapshot_goes_on_bit_for_bit(tmp_path: Path, schedule: str) -> None:
    config = {"schedule": schedule, "total_steps": 9, "dropout": 0.3, "loss": "cross-entropy+dice"}
    trainer = make_trainer(**config)
    batches = [frames(4, seed) for seed in range(6)]
    for batch in batches[:3]:
        trainer.train_step(*batch)
    snapshot = trainer.state_dict()
    tensors, structure = flatten_state(snapshot)
    save_checkpoint(tmp_path, tensors, {"trainer": structure})
    losses = [trainer.train_step(*batch) for batch in batches[3:]]
    end = trainer.state_dict()
    assert not same(snapshot, end)

    trainer.load_state_dict(snapshot)
    assert same(trainer.state_dict(), snapshot)
    assert [trainer.train_step(*batch) for batch in batches[3:]] == losses
    assert same(trainer.state_dict(), end)

    loaded, meta = load_checkpoint(tmp_path)
    other = make_trainer(network_seed=99, **config)
    other.load_state_dict(unflatten_state(loaded, meta["trainer"]))
    torch.rand(7)  # what else draws from torch's generator makes no difference
    assert [other.train_step(*batch) for batch in batches[3:]] == losses
    assert same(other.state_dict(), end)


def test_the_snapshot_of_an_untrained_trainer_goes_on_bit_for_bit() -> None:
    trainer = make_trainer()
    snapshot = trainer.state_dict()
    loss = trainer.train_step(*frames(4))
    end = trainer.state_dict()
    trainer.load_state_dict(snapshot)
    assert trainer.train_step(*frames(4)) == loss
    assert same(trainer.state_dict(), end)


def test_a_snapshot_of_another_network_is_refused_and_changes_nothing() -> None:
    trainer = make_trainer()
    trainer.train_step(*frames(4))
    before = trainer.state_dict()
    spoilt = trainer.state_dict()
    spoilt["network"]["1.normalise.weight"] = torch.zeros(9)
    with pytest.raises(CloudError, match=r"1.normalise.weight is \(9,\), expected \(4,\)"):
        trainer.load_state_dict(spoilt)
    with pytest.raises(CloudError, match="needs network, optimizer and steps"):
        trainer.load_state_dict({"network": {}})
    with pytest.raises(CloudError, match="missing"):
        trainer.load_weights({})
    assert same(trainer.state_dict(), before)


def test_inference_changes_nothing_and_is_the_same_from_every_thread_and_thread_count() -> None:
    trainer = make_trainer(dropout=0.5)
    trainer.train_step(*frames(4))
    before = trainer.state_dict()
    batch = frames(3, seed=1)
    results: list[tuple[float, bytes, bytes]] = []

    def infer(count: int) -> None:
        with threads(count):
            results.append(
                (
                    trainer.evaluate_loss(*batch),
                    trainer.evaluate_losses(*batch).tobytes(),
                    trainer.predict(batch[0], (50, 60)).tobytes(),
                )
            )

    for count in (1, 2, 3, 1):
        worker = threading.Thread(target=infer, args=(count,))
        worker.start()
        worker.join()
        infer(count)
    assert len(results) == 8 and len(set(results)) == 1
    assert same(trainer.state_dict(), before)


@pytest.mark.parametrize("objective", ["labels", "entropy"])
def test_gradient_of_a_network_that_stays_equals_autograd_in_evaluation_mode(objective: str) -> None:
    """And nothing changes: no weight, no moment, no statistic of BatchNorm, no step of the schedule."""
    trainer = make_trainer(dropout=0.5, schedule="cosine", total_steps=9)
    trainer.train_step(*frames(4))
    before = trainer.state_dict()
    features_BCHW, label_BHW = frames(3, seed=1)
    loss, gradient_BCHW = trainer.evaluate_gradient(
        features_BCHW, label_BHW if objective == "labels" else None
    )
    assert same(trainer.state_dict(), before)
    network = make_trainer(network_seed=99)._network
    network.load_state_dict(trainer.weights())
    leaf_BCHW = torch.from_numpy(features_BCHW).requires_grad_()
    logits_BKhw = network.eval()(leaf_BCHW)
    if objective == "labels":
        expected = LOSSES["cross-entropy"](logits_BKhw, torch.from_numpy(label_BHW[:, 2::4, 2::4]))
    else:
        expected = torch.distributions.Categorical(logits=logits_BKhw.movedim(1, -1)).entropy().mean()
    expected.backward()
    assert leaf_BCHW.grad is not None
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert gradient_BCHW.dtype == np.float32
    np.testing.assert_allclose(gradient_BCHW, leaf_BCHW.grad.numpy(), rtol=1e-3, atol=1e-7)


def test_schedule_advances_without_a_step_and_a_snapshot_remembers_it() -> None:
    trainer = make_trainer(schedule="cosine", total_steps=5)
    weights = trainer.weights()
    shares = []
    for _ in range(5):
        shares.append(trainer.rate_share)
        trainer.advance_schedule()
    assert shares == pytest.approx([(1 + np.cos(np.pi * step / 4)) / 2 for step in range(5)])
    assert all(torch.equal(weights[name], value) for name, value in trainer.weights().items())
    other = make_trainer(schedule="cosine", total_steps=5)
    other.load_state_dict(trainer.state_dict())
    assert other.steps == 5 and same(other.state_dict(), trainer.state_dict())


def test_gradient_that_is_not_finite_is_an_error() -> None:
    trainer = make_trainer()
    features_BCHW, label_BHW = frames(2)
    with pytest.raises(DivergedError, match="loss became nan"):
        trainer.evaluate_gradient(features_BCHW * np.nan, label_BHW)


def test_losses_of_frames_average_to_the_loss_of_the_batch() -> None:
    trainer = make_trainer()
    features_BCHW, label_BHW = frames(3)
    losses_B = trainer.evaluate_losses(features_BCHW, label_BHW)
    assert losses_B.shape == (3,) and losses_B.dtype == np.float32
    assert losses_B.mean() == pytest.approx(trainer.evaluate_loss(features_BCHW, label_BHW), rel=1e-5)


def test_prediction_does_not_depend_on_the_chunks() -> None:
    trainer = make_trainer()
    features_BCHW, _ = frames(5)
    whole = trainer.predict(features_BCHW, (30, 41))
    assert whole.shape == (5, 30, 41)
    parts = trainer.predict(features_BCHW, (30, 41), chunk_frames=2)
    assert (whole == parts).mean() > 0.999
    assert trainer.predict(features_BCHW[:0], (3, 4)).shape == (0, 3, 4)


def test_epochs_visit_every_frame_once_in_an_order_that_the_seed_decides() -> None:
    def run(seed: int) -> tuple[Any, list[tuple[int, int]]]:
        seen: list[tuple[int, int]] = []
        trainer = make_trainer()
        trainer.train_epochs(
            *frames(7),
            epochs=2,
            batch_size=3,
            seed=seed,
            progress=lambda done, total, loss: seen.append((done, total)),
        )
        return trainer.state_dict(), seen

    state, seen = run(1)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert same(state, run(1)[0])
    assert not same(state, run(2)[0])


def test_steps_taken_between_those_of_an_epoch_are_ordinary_ones() -> None:
    """Also the network's mode is that of training again after them."""
    one, other = make_trainer(), make_trainer()
    batch, extra = frames(2), frames(3, seed=1)
    one.train_epochs(
        *batch, epochs=2, batch_size=2, seed=0, progress=lambda done, total, loss: one.train_step(*extra)
    )
    for epoch in range(2):
        order = permutation(derive_seed(0, "epoch", epoch), 2)
        other.train_step(*(array[order] for array in batch))
        other.train_step(*extra)
    assert one.steps == 4
    assert same(one.state_dict(), other.state_dict())


def test_batches_cover_all_frames_and_leave_none_alone() -> None:
    assert batch_bounds(9, 4) == [(0, 4), (4, 9)]
    assert batch_bounds(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert batch_bounds(3, 8) == [(0, 3)]
    assert batch_bounds(1, 8) == [(0, 1)]
    assert batch_bounds(3, 1) == [(0, 1), (1, 2), (2, 3)]


def test_borrowed_weights_are_used_and_given_back_exactly() -> None:
    trainer, other = make_trainer(), make_trainer(network_seed=5)
    batch = frames(3)
    trainer.train_step(*batch)
    before, own, theirs = trainer.state_dict(), trainer.evaluate_loss(*batch), other.evaluate_loss(*batch)
    with trainer.borrowed_weights(other.weights()):
        assert trainer.evaluate_loss(*batch) == theirs
    with trainer.borrowed_weights(None):
        assert trainer.evaluate_loss(*batch) == own
    with pytest.raises(ZeroDivisionError), trainer.borrowed_weights(other.weights()):
        raise ZeroDivisionError
    assert same(trainer.state_dict(), before)


def test_a_loss_that_is_not_finite_stops_training_without_a_step() -> None:
    trainer = make_trainer()
    features_BCHW, label_BHW = frames(2)
    before = dict(trainer._network.named_parameters())
    values = {name: parameter.detach().clone() for name, parameter in before.items()}
    with pytest.raises(DivergedError, match="became nan in step 0"):
        trainer.train_step(features_BCHW * np.nan, label_BHW)
    assert trainer.steps == 0
    assert all(torch.equal(before[name], values[name]) for name in values)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_and_tensors_are_taken_as_well() -> None:
    trainer = make_trainer()
    features_BCHW, label_BHW = frames(2)
    expected = trainer.evaluate_loss(features_BCHW, label_BHW)
    assert trainer.evaluate_loss(torch.from_numpy(features_BCHW), torch.from_numpy(label_BHW)) == expected
    features_BCHW.setflags(write=False)
    label_BHW.setflags(write=False)
    assert trainer.evaluate_loss(features_BCHW, label_BHW) == expected


def test_an_all_void_batch_has_loss_zero_and_finite_weights() -> None:
    trainer = make_trainer(loss="cross-entropy+dice")
    features_BCHW, label_BHW = frames(2)
    assert trainer.train_step(features_BCHW, np.full_like(label_BHW, 255)) == 0.0
    assert all(bool(value.isfinite().all()) for value in trainer.weights().values())


def test_training_on_a_single_frame_works() -> None:
    trainer = make_trainer()
    losses = trainer.train_epochs(*frames(1), epochs=2, batch_size=8, seed=0)
    assert np.isfinite(losses).all()


def test_epochs_without_frames_or_with_missing_labels_are_errors() -> None:
    trainer = make_trainer()
    features_BCHW, label_BHW = frames(3)
    with pytest.raises(ValueError, match="got 3 frames, 2 labels"):
        trainer.train_epochs(features_BCHW, label_BHW[:2], epochs=1, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="got 0 frames, 0 labels"):
        trainer.train_epochs(features_BCHW[:0], label_BHW[:0], epochs=1, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="got 1 and 0"):
        trainer.train_epochs(features_BCHW, label_BHW, epochs=1, batch_size=0, seed=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"loss": "focal"}, "unknown loss 'focal'"),
        ({"rate": 0.0}, "learning rate must be positive, got 0.0"),
        ({"weight_decay": -1.0}, "weight decay must not be negative, got -1.0"),
        ({"schedule": "linear"}, "unknown schedule 'linear', expected one of: constant, one-cycle, cosine"),
        ({"schedule": "cosine"}, "schedule cosine needs total_steps of 1 or more, got 0"),
        ({"training_threads": 0}, "number of threads must be 1 or more, got 0"),
    ],
)
def test_a_configuration_out_of_range_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainerConfig(**config)


def test_threads_are_restored_after_the_block() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
