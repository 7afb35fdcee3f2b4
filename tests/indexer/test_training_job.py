"""`heliotrope tune`, `train` and `build --weights`, one after the other, and what a stop or a wrong folder does."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from heliotrope_indexer import command, input_settings, train_command, training_job, tune_command
from heliotrope_indexer.build import BuildRequest, build
from heliotrope_indexer.errors import SettingsError, WeightsError
from heliotrope_indexer.features import features
from heliotrope_indexer.job_input import read_input
from heliotrope_indexer.neighbours import fit_neighbours
from heliotrope_indexer.progress import Steps
from heliotrope_indexer.snapshot import SnapshotStore
from heliotrope_indexer.source import Source
from heliotrope_indexer.training import Trainer
from heliotrope_indexer.training_job import TrainingRequest, train
from heliotrope_indexer.training_settings import TrainingSettings
from heliotrope_indexer.weights import MANIFEST_FILE, read_weights
from tests.indexer.conftest import WordEncoder

Shop = Callable[..., BuildRequest]
QUICK = TrainingSettings(dimension=8, batch_targets=64, learning_rate=0.02, epochs=3)


def request(shop: Shop, out: Path, settings: TrainingSettings = QUICK, **sources: object) -> TrainingRequest:
    return TrainingRequest(sources=shop(**sources).sources, settings=settings, out=out, threads=1)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_trained_weights_become_a_snapshot(shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path) -> None:
    out = tmp_path / "weights"
    result = train(request(shop, out), encoder, steps)
    weights = read_weights(out)
    assert not result.reused
    assert result.manifest.training["validation"]["users"] > 20
    assert weights.projection.shape == (8, 16)
    phases = [row["phase"] for row in table(out / "curves.csv")]
    assert phases[0] == "validate"
    assert phases.count("refit") == result.manifest.training["epochs"]
    path = shop().sources.catalogue.path
    path.write_text(path.read_text() + "new,thing 99 of kind 3,kind3\n")
    built = build(shop(weights=out), encoder, steps)
    snapshot = shop().store.open()
    assert built.manifest.parameters.half_lives_s == weights.manifest.parameters.half_lives_s
    assert built.manifest.data.weights == weights.version
    assert built.manifest.quality["validation"] == result.manifest.training["validation"]
    pooled = WordEncoder().encode([snapshot.item(row).text for row in range(31)]).vectors
    text = features(pooled, weights.feature_mean) @ weights.projection.T
    # The catalogue has grown, the mean that W was trained with has not: the new item is its text and nothing else.
    np.testing.assert_allclose(snapshot.vectors[30], text[30], atol=1e-5)
    assert snapshot.bias[30] == 0.0
    place = weights.item_ids.index("i4")
    np.testing.assert_allclose(snapshot.vectors[4], text[4] + weights.residuals[place], atol=1e-5)
    np.testing.assert_allclose(snapshot.project(pooled)[30], text[30], atol=1e-5)


@pytest.mark.parametrize("unwanted", [0, 200])
def test_items_without_events_stand_as_high_as_they_may(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path, unwanted: int
) -> None:
    path = shop().sources.catalogue.path
    more = [f"dead{number},thing {number} of kind {number % 5},kind{number % 5}\n" for number in range(unwanted)]
    path.write_text(path.read_text(encoding="utf-8") + "".join(more), encoding="utf-8")
    job = read_input(shop().sources, tmp_path / "rejects.jsonl", encoder, steps)
    validation = training_job.Validation(job, None)
    text = np.ascontiguousarray(job.features @ training_job.text_axes(job.features, 16).T)
    trainer = Trainer(validation.remaining, text, validation.positive, QUICK, highest_rating=5.0)
    for _ in range(3):
        training_job.one_epoch(trainer)
    learned = trainer.learned()
    plain = validation.scores(learned)
    judged = validation.judge(learned)
    np.testing.assert_allclose(judged.scores, validation.scores(judged.learned) + judged.unknown_level, atol=1e-4)
    best = plain.copy()
    best[:, ~learned.known] -= 1e3
    if unwanted:
        # Two hundred of them, described like what people like, push it out of their lists.
        assert validation.replay.quality(plain).ndcg_at_10 < 0.95 * validation.replay.quality(best).ndcg_at_10
        assert judged.unknown_level < 0.0
    else:
        assert judged.unknown_level == 0.0
    assert judged.quality.ndcg_at_10 >= 0.99 * validation.replay.quality(best).ndcg_at_10


def test_neighbours_travel_with_the_weights(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_job, "WEIGHTS", (4.0,))
    train(request(shop, tmp_path / "weights"), encoder, steps)
    weights = read_weights(tmp_path / "weights")
    assert weights.neighbours is not None
    assert weights.neighbours.strengths.any()
    job = read_input(shop().sources, tmp_path / "rejects.jsonl", encoder, steps)
    liked = training_job.liked_events(job.events, weights.manifest.parameters)
    expected = fit_neighbours(liked, len(job.items), ridge=QUICK.neighbour_ridge)
    # Another order of the catalogue, a new item and one that is gone: each item keeps its neighbours.
    path = shop().sources.catalogue.path
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    lines = [*reversed([line for line in lines if not line.startswith("i4,")]), "new,thing 99 of kind 3,kind3"]
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    build(shop(weights=tmp_path / "weights"), encoder, steps)
    snapshot = shop().store.open()
    assert snapshot.neighbours is not None
    found, wanted = snapshot.neighbours.matrix(), expected.matrix()
    for item in range(30):
        row = snapshot.row_of(f"i{item}")
        if row is None:
            continue
        named = {snapshot.item_ids[other]: value for other, value in zip(*sp.find(found[row])[1:], strict=True)}
        known = {f"i{other}": value for other, value in zip(*sp.find(wanted[item])[1:], strict=True) if other != 4}
        assert named == pytest.approx(known)
    new = snapshot.row_of("new")
    assert new is not None
    assert (snapshot.neighbours.rows[new] == -1).all()
    off = QUICK.model_copy(update={"neighbours": False})
    assert train(request(shop, tmp_path / "off", off), encoder, steps).manifest.parameters.neighbours is None


def test_events_that_came_after_training_leave_an_item_young(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path
) -> None:
    log = shop().sources.events[0].path
    whole = log.read_text(encoding="utf-8")
    log.write_text("".join(line for line in whole.splitlines(keepends=True) if ",i4," not in line), encoding="utf-8")
    train(request(shop, tmp_path / "weights"), encoder, steps)
    log.write_text(whole, encoding="utf-8")
    manifest = build(shop(weights=tmp_path / "weights"), encoder, steps).manifest
    assert manifest.parameters.young is not None
    until = datetime.fromisoformat(read_weights(tmp_path / "weights").manifest.events_until_time or "")
    assert 0.0 < manifest.parameters.young.learned_until_s - until.timestamp() <= 1.0
    counts = shop().store.open().event_counts
    assert counts is not None
    assert counts[4] == 0.0
    assert np.all(counts[[3, 5]] > 0.0)


def test_other_weights_make_another_snapshot(shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path) -> None:
    for seed in (0, 1):
        train(request(shop, tmp_path / f"w{seed}", QUICK.model_copy(update={"seed": seed})), encoder, steps)
    one = build(shop(weights=tmp_path / "w0"), encoder, steps)
    assert build(shop(weights=tmp_path / "w0"), encoder, steps).reused
    other = build(shop(weights=tmp_path / "w1"), encoder, steps)
    assert not other.reused
    assert one.manifest.data.weights != other.manifest.data.weights


def test_nothing_changed_means_nothing_done_and_a_change_replaces(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path
) -> None:
    out = tmp_path / "weights"
    first = train(request(shop, out), encoder, steps)
    assert train(request(shop, out), encoder, steps).reused
    (out / "prior.npy").write_bytes(b"x")
    again = train(request(shop, out), encoder, steps)
    assert not again.reused
    assert again.manifest.files == first.manifest.files
    assert (
        train(request(shop, out, QUICK.model_copy(update={"l2": 0.5})), encoder, steps).manifest.settings["l2"] == 0.5
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events.csv", "items.csv", "store", "weights"]


@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_a_stopped_job_goes_on_and_ends_with_the_same_weights(
    stop_after: int, shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QUICK.model_copy(update={"patience": 3, "learning_rate": 0.002})
    straight = train(request(shop, tmp_path / "straight", settings), encoder, steps).manifest
    epoch, done = training_job.one_epoch, [0]

    def stopped(*arguments: object) -> float:
        if done[0] == stop_after:
            raise KeyboardInterrupt
        done[0] += 1
        return epoch(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training_job, "one_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(request(shop, tmp_path / "stopped", settings), encoder, steps)
    monkeypatch.setattr(training_job, "one_epoch", epoch)
    result = train(request(shop, tmp_path / "stopped", settings), encoder, steps)
    assert result.resumed_at == stop_after
    assert result.manifest.files == straight.files
    assert result.manifest.parameters == straight.parameters
    assert not list((tmp_path / "stopped").glob("checkpoint*"))


def test_a_checkpoint_of_other_input_is_not_resumed(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_arguments: object) -> float:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training_job, "calibrate", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(request(shop, tmp_path / "weights"), encoder, steps)
    other = QUICK.model_copy(update={"seed": 5})
    assert train(request(shop, tmp_path / "weights", other), encoder, steps).resumed_at is None


def test_what_cannot_be_trained_or_served_is_named(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="nothing to train on"):
        train(request(shop, tmp_path / "none", events=()), encoder, steps)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="holds other files than weights"):
        train(request(shop, tmp_path / "mine"), encoder, steps)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(WeightsError, match="holds no weights"):
        build(shop(weights=tmp_path / "mine"), encoder, steps)
    out = tmp_path / "weights"
    train(request(shop, out), encoder, steps)
    encoder.model_version = "words-2"
    with pytest.raises(WeightsError, match="trained with model words-1 fp32, this is words-2 fp32"):
        build(shop(weights=out), encoder, steps)
    manifest = json.loads((out / MANIFEST_FILE).read_text())
    for change, message in (
        ({"format_version": 2}, "format 2; this reader knows 1"),
        ({"events": -1}, "greater than or equal to 0"),
    ):
        (out / MANIFEST_FILE).write_text(json.dumps(manifest | change))
        with pytest.raises(WeightsError, match=message):
            read_weights(out)
    (out / MANIFEST_FILE).write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        read_weights(out)
    (out / MANIFEST_FILE).write_text(json.dumps(manifest))
    (out / "biases.npy").write_bytes((out / "prior.npy").read_bytes())
    with pytest.raises(WeightsError, match=r"biases\.npy is missing or has other bytes"):
        read_weights(out)


def test_events_without_a_positive_one_train_and_build(
    shop: Shop, encoder: WordEncoder, steps: Steps, tmp_path: Path
) -> None:
    log = tmp_path / "views.csv"
    log.write_text("user_id,item_id,type,timestamp\nu,i1,view,5\nu,i2,dislike,6\nv,i1,hide,6\n")
    result = train(request(shop, tmp_path / "weights", events=(Source(log),)), encoder, steps)
    assert "validation" not in result.manifest.training
    build(shop(events=(Source(log),), weights=tmp_path / "weights"), encoder, steps)
    assert np.isfinite(shop().store.open().vectors).all()


def test_the_three_commands(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(input_settings.TextEncoder, "open", lambda *_arguments, **_options: WordEncoder())
    sources = shop().sources
    asked = [
        *("--model", "m", "--quiet", "--threads", "1", "--cache", str(tmp_path / "cache")),
        *("--catalogue", str(sources.catalogue.path), "--events", str(sources.events[0].path)),
    ]
    start, chosen = tmp_path / "start.json", tmp_path / "chosen.json"
    start.write_text(QUICK.model_copy(update={"epochs": 2}).model_dump_json())
    tuning = [*asked, "--device", "cpu", "--trials", "3", "--start", str(start)]
    assert tune_command.main([*tuning, "--out", str(chosen)]) == 0
    settings = TrainingSettings.read(chosen)
    trials = table(tmp_path / "chosen.json.trials.csv")
    assert len(trials) == 3
    best = max(trials, key=lambda trial: float(trial["ndcg@10"]))
    assert float(best["learning_rate"]) == settings.learning_rate
    assert tune_command.main([*tuning, "--out", str(tmp_path / "again.json")]) == 0
    assert TrainingSettings.read(tmp_path / "again.json") == settings

    weights = tmp_path / "weights"
    training = [*asked, "--device", "cpu", "--settings", str(chosen), "--out", str(weights)]
    assert train_command.main(training) == 0
    assert f"heliotrope: trained {weights}" in capsys.readouterr().out
    assert train_command.main(training) == 0
    assert capsys.readouterr().out == f"heliotrope: nothing changed, {weights} holds these weights\n"
    assert read_weights(weights).manifest.settings == settings.model_dump(mode="json")
    assert command.main([*asked, "--weights", str(weights), "--out", str(tmp_path / "snapshots")]) == 0
    snapshot = SnapshotStore(tmp_path / "snapshots").open()
    assert snapshot.manifest.parameters.half_lives_s == read_weights(weights).manifest.parameters.half_lives_s


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no settings file"),
        ("{", "Invalid JSON"),
        ('{"dimension": 1}', "dimension: Input should be greater than or equal to 2"),
        ('{"depth": 3}', "depth: Extra inputs are not permitted"),
    ],
)
def test_wrong_settings_files_are_named(
    content: str | None,
    message: str,
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(input_settings.TextEncoder, "open", lambda *_arguments, **_options: WordEncoder())
    sources, path = shop().sources, tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    arguments = ["--model", "m", "--catalogue", str(sources.catalogue.path), "--events", str(sources.events[0].path)]
    assert train_command.main([*arguments, "--settings", str(path), "--out", str(tmp_path / "weights")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "weights").exists()
