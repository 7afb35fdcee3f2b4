import json

from heliotrope_bench import encode_grid
from heliotrope_bench.command import main
from heliotrope_export import TextEncoder
from tests.conftest import MODEL_PACKAGE


def test_the_encoder_is_measured_beside_bare_onnx_runtime(model_folder, tmp_path, capsys):
    texts, out = tmp_path / "texts.txt", tmp_path / "encode.json"
    texts.write_text("\n".join(f"The story of item {number} and how it was found" for number in range(40)))
    arguments = ["encode", "--model", str(model_folder), "--texts", str(texts), "--rounds", "2", "--out", str(out)]
    assert main(arguments) == 0
    rows = json.loads(out.read_text())["results"]
    assert {row["case"].split(",")[0] for row in rows} == {"fp32", "int8"}
    for row in rows:
        assert row["rate_per_s"] > 0 and row["bare_per_s"] > 0 and 0 < row["of_bare"] < 5
    assert "texts" in capsys.readouterr().out


def test_lengths_and_batches_are_measured_beside_torch(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_grid, "LENGTHS", (5, 9))
    monkeypatch.setattr(encode_grid, "BATCHES", (1, 3))
    out = tmp_path / "encode.json"
    (tmp_path / "texts.txt").write_text("The unbelievable story of Zwiebelmuster and how it was found")
    arguments = ["encode", "--model", str(model_folder), "--texts", str(tmp_path / "texts.txt"), "--rounds", "1"]
    assert main([*arguments, "--source", MODEL_PACKAGE, "--out", str(out)]) == 0
    rows = [row for row in json.loads(out.read_text())["results"] if "tokens" in row]
    cases = {"ours, fp32", "ours, int8", "torch"}
    assert {(row["tokens"], row["batch"]) for row in rows if row["case"] in cases} == {(5, 1), (5, 3), (9, 1), (9, 3)}
    assert all(row["rate_per_s"] > 0 and row["of_torch"] > 0 for row in rows)
    assert {row["of_torch"] for row in rows if row["case"] == "torch"} == {1.0}


def test_made_texts_have_the_length_that_was_asked_for(model_folder):
    count = encode_grid._token_counter(TextEncoder.open(model_folder))
    for length in (4, 7, 30):
        texts = encode_grid._texts(["unbelievable", "a", "Zwiebelmuster"], length, 5, count)
        assert [count(text) for text in texts] == [length] * 5


def test_a_model_that_is_not_there_and_a_file_without_texts_are_named(tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert main(["encode", "--model", str(tmp_path / "none"), "--texts", str(empty)]) == 1
    assert "holds no text" in capsys.readouterr().err
    empty.write_text("a text")
    assert main(["encode", "--model", str(tmp_path / "none"), "--texts", str(empty)]) == 1
    assert "none" in capsys.readouterr().err
