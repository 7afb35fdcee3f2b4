import json

from heliotrope_bench.command import main


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


def test_a_model_that_is_not_there_and_a_file_without_texts_are_named(tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    assert main(["encode", "--model", str(tmp_path / "none"), "--texts", str(empty)]) == 1
    assert "holds no text" in capsys.readouterr().err
    empty.write_text("a text")
    assert main(["encode", "--model", str(tmp_path / "none"), "--texts", str(empty)]) == 1
    assert "none" in capsys.readouterr().err
