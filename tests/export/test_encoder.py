import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from heliotrope_export import (
    ModelCorruptError,
    ModelFormatError,
    ModelNotFoundError,
    TextEncoder,
    VariantError,
    agreement,
)

TEXTS = [
    "A space station drifts towards a black hole",
    "",
    "Astronauts are lost near a collapsed star",
    "Sourdough bread with rye flour",
    "How to bake a crusty loaf at home",
    "word " * 400,
]


@pytest.fixture(scope="module")
def encoder(model_folder: Path) -> TextEncoder:
    return TextEncoder.open(model_folder, variant="fp32", threads=1)


@pytest.fixture
def damaged(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to damage."""
    shutil.copytree(tiny_model, tmp_path / "model")
    return tmp_path / "model"


def test_near_texts_have_near_vectors(encoder: TextEncoder) -> None:
    vectors = encoder.encode(TEXTS).vectors
    normalised = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    similarity = normalised @ normalised.T
    np.fill_diagonal(similarity, -1)
    assert similarity[[0, 2, 3, 4]].argmax(axis=1).tolist() == [2, 0, 4, 3]


def test_rows_and_truncation_belong_to_their_texts(encoder: TextEncoder) -> None:
    encoding = encoder.encode(TEXTS)
    assert encoding.vectors.shape == (len(TEXTS), 384)
    assert encoding.vectors.dtype == np.float32
    assert encoding.truncated.tolist() == [False, False, False, False, False, True]
    for text, vector in zip(TEXTS, encoding.vectors, strict=True):
        np.testing.assert_allclose(encoder.encode([text]).vectors[0], vector, atol=1e-5)


def test_vectors_are_not_normalised(encoder: TextEncoder) -> None:
    assert not np.allclose(np.linalg.norm(encoder.encode(TEXTS).vectors, axis=1), 1, atol=0.1)


def test_no_texts_give_no_vectors(encoder: TextEncoder) -> None:
    encoding = encoder.encode([])
    assert encoding.vectors.shape == (0, 384)
    assert encoding.truncated.shape == (0,)


def test_what_lies_beyond_max_tokens_changes_nothing(encoder: TextEncoder) -> None:
    one, other = encoder.encode(["word " * 300, "word " * 300 + "entirely different end"]).vectors
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_text_of_megabytes_is_cut_before_it_is_tokenised(encoder: TextEncoder) -> None:
    encoding = encoder.encode(["x" * 10_000_000, "word " * 2_000_000])
    assert encoding.truncated.all()
    assert np.isfinite(encoding.vectors).all()


def test_a_lone_surrogate_is_read_as_a_question_mark(encoder: TextEncoder) -> None:
    one, other = encoder.encode(["caf\ud800e", "caf?e"]).vectors
    np.testing.assert_allclose(one, other, atol=1e-5)


def test_one_str_is_not_a_list_of_texts(encoder: TextEncoder) -> None:
    with pytest.raises(TypeError, match="pass a list"):
        encoder.encode("text")


def test_progress_counts_every_text_once(tiny_model: Path) -> None:
    finished: list[int] = []
    texts = [f"title {number}" * (1 + number % 3) for number in range(5_000)]  # more than one window
    encoding = TextEncoder.open(tiny_model, variant="fp32").encode(texts, progress=finished.append)
    assert sum(finished) == 5_000
    alone = TextEncoder.open(tiny_model, variant="fp32").encode([texts[4_999]]).vectors[0]
    np.testing.assert_allclose(encoding.vectors[4_999], alone, atol=1e-5)


def test_threads_may_share_an_encoder(encoder: TextEncoder) -> None:
    expected = encoder.encode(TEXTS).vectors
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: encoder.encode(TEXTS).vectors, range(12)):
            np.testing.assert_array_equal(vectors, expected)


def test_the_choice_of_variant_is_visible(model_folder: Path, tiny_model: Path) -> None:
    assert TextEncoder.open(model_folder).description == "CPUExecutionProvider int8"
    assert TextEncoder.open(tiny_model, variant="fp16").description == "CPUExecutionProvider fp16"
    assert TextEncoder.open(model_folder).model_version == TextEncoder.open(model_folder, variant="fp32").model_version


def test_int8_vectors_depend_little_on_their_neighbours(model_folder: Path) -> None:
    encoder = TextEncoder.open(model_folder, variant="int8")
    ordinary, _ = agreement.sentences(encoder.max_tokens)
    together = encoder.encode(ordinary).vectors
    alone = np.concatenate([encoder.encode([text]).vectors for text in ordinary])
    cosines = (together * alone).sum(1) / np.linalg.norm(together, axis=1) / np.linalg.norm(alone, axis=1)
    assert cosines.mean() > 0.99


def test_an_open_encoder_has_imported_no_deep_learning_library(tiny_model: Path) -> None:
    script = (
        "import sys\n"
        "from heliotrope_export import TextEncoder\n"
        "TextEncoder.open(sys.argv[1]).encode(['a text'])\n"
        "print([name for name in ('torch', 'transformers', 'optimum', 'onnx') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", script, str(tiny_model)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="does not exist; create it with `heliotrope export"):
        TextEncoder.open(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match=r"has no manifest\.json"):
        TextEncoder.open(tmp_path)


def test_variants_that_cannot_be_opened(model_folder: Path) -> None:
    with pytest.raises(VariantError, match=r"'fp16' was not published .* which has fp32, int8"):
        TextEncoder.open(model_folder, variant="fp16")
    with pytest.raises(VariantError, match="'int4' is unknown"):
        TextEncoder.open(model_folder, variant="int4")


def test_threads_must_be_positive(tiny_model: Path) -> None:
    with pytest.raises(ValueError, match="threads is 0"):
        TextEncoder.open(tiny_model, threads=0)


@pytest.mark.parametrize("name", ["model.int8.onnx", "tokenizer.json"])
def test_a_flipped_bit_is_found(name: str, damaged: Path) -> None:
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(ModelCorruptError, match=f"{name} is damaged: sha256"):
        TextEncoder.open(damaged)


def test_a_short_file_is_found_even_without_hashing(damaged: Path) -> None:
    content = (damaged / "model.int8.onnx").read_bytes()
    (damaged / "model.int8.onnx").write_bytes(content[:-1])
    with pytest.raises(ModelCorruptError, match=f"has {len(content) - 1} bytes; its manifest says {len(content)}"):
        TextEncoder.open(damaged, verify=False)


def test_damage_of_an_unused_variant_does_not_matter(damaged: Path) -> None:
    (damaged / "model.fp32.onnx").unlink()
    TextEncoder.open(damaged, variant="int8")
    with pytest.raises(ModelCorruptError, match="is missing"):
        TextEncoder.open(damaged, variant="fp32")


def test_nonsense_of_the_right_size_is_refused_by_the_runtime(damaged: Path) -> None:
    for name in ("model.int8.onnx", "tokenizer.json"):
        size = (damaged / name).stat().st_size
        (damaged / name).write_bytes(b"?" * size)
        with pytest.raises(ModelCorruptError, match=name):
            TextEncoder.open(damaged, variant="int8", verify=False)


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        ("format_version", 2, ModelFormatError, "format_version 2; this release reads 1"),
        ("format_version", None, ModelFormatError, "format_version None"),
        ("space.max_tokens", 32, ModelCorruptError, "was edited"),
        ("space.dimension", "wide", ModelCorruptError, r"space\.dimension: Input should be a valid integer"),
        ("colour", "blue", ModelCorruptError, "colour: Extra inputs are not permitted"),
    ],
)
def test_a_manifest_that_is_not_as_written(
    field: str, value: object, error: type[Exception], message: str, damaged: Path
) -> None:
    path = damaged / "manifest.json"
    fields = json.loads(path.read_text())
    *parents, last = field.split(".")
    place = fields
    for parent in parents:
        place = place[parent]
    place[last] = value
    path.write_text(json.dumps(fields))
    with pytest.raises(error, match=message):
        TextEncoder.open(damaged)


def test_a_manifest_that_is_not_json(damaged: Path) -> None:
    (damaged / "manifest.json").write_text('{"format_version": 1,')
    with pytest.raises(ModelCorruptError, match="is not JSON"):
        TextEncoder.open(damaged)
