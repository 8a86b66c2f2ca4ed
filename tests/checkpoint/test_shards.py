"""Bad weight files: each is refused with its name, none is read in part."""

import json
import shutil
import struct

import numpy as np
import pytest
from small_models import SMALL, random_params

from gramjax.checkpoint import huggingface, shards
from gramjax.core.errors import DataError, UserError
from gramjax.models import decoder


def load(folder):
    return huggingface.load_params(folder, decoder.specs(SMALL), SMALL)


def header_of(path):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_raw(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def edited(change):
    def apply(path):
        header, data = header_of(path)
        new = change(header, data)
        write_raw(path, header, new if isinstance(new, bytes) else data)

    return apply


def overlap(header, data):
    header["model.norm.weight"]["data_offsets"][0] -= 4
    header["model.norm.weight"]["shape"] = [17]


def nan(header, data):
    values = np.frombuffer(data, np.float32).copy()
    start = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0] // 4
    values[start + 3] = np.nan
    del header["__metadata__"]  # as other writers leave it: without checksums
    return values.tobytes()


def flipped(header, data):
    """One bit of the last array: another number, as good as any."""
    place = header["model.norm.weight"]["data_offsets"][1] - 4
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def doubled_name(path):
    header, data = header_of(path)
    text = json.dumps(header)
    name = '"model.norm.weight"'
    entry = json.dumps(header["model.norm.weight"])
    write_raw(path, f"{text[:-1]}, {name}: {entry}}}".encode(), data)


BAD_FILES = {
    "empty": (lambda p: p.write_bytes(b""), "truncated"),
    "header only": (lambda p: p.write_bytes(p.read_bytes()[:100]), "truncated"),
    "truncated data": (lambda p: p.write_bytes(p.read_bytes()[:-10]), "truncated, copy it again"),
    "trailing bytes": (lambda p: p.write_bytes(p.read_bytes() + b"more"), "longer than it should be"),
    "huge header": (lambda p: p.write_bytes(struct.pack("<Q", 2**40) + p.read_bytes()[8:]), "not a safetensors file"),
    "no JSON": (lambda p: write_raw(p, b"{not json", b""), "not valid JSON"),
    "overlap": (edited(overlap), r"model\.norm\.weight starts at byte"),
    "doubled name": (doubled_name, "'model.norm.weight' stands there twice"),
    "flipped bit": (edited(flipped), r"model\.norm\.weight is not what was written there \(checksum\)"),
    "not a number": (edited(nan), "up_proj.weight holds NaN"),
    "damaged entry": (edited(lambda h, d: h["model.norm.weight"].pop("shape")), "'model.norm.weight' is damaged"),
    "negative size": (edited(lambda h, d: h["model.norm.weight"].update(shape=[-16])), "is damaged"),
    "size of another shape": (edited(lambda h, d: h["model.norm.weight"].update(shape=[15])), "64 bytes, not what"),
    "integers": (edited(lambda h, d: h["model.norm.weight"].update(dtype="I32")), "model.norm.weight is I32"),
    "a pickle by that name": (lambda p: p.write_bytes(b"\x80\x02}q\x00." * 40), "not a safetensors file"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_file_is_refused(small_folder, what):
    damage, text = BAD_FILES[what]
    load(small_folder)
    damage(small_folder / "model.safetensors")
    with pytest.raises(DataError, match=text):
        load(small_folder)


@pytest.fixture
def sharded(tmp_path):
    folder = tmp_path / "sharded"
    huggingface.save(folder, random_params(SMALL), SMALL, max_shard_bytes=4000)
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    load(folder)
    return folder


def change_index(folder, change):
    index = json.loads((folder / shards.INDEX).read_text())
    change(index["weight_map"])
    (folder / shards.INDEX).write_text(json.dumps(index))


FIRST = "model-00001"


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda m: m.update({"model.norm.weight": "../other/model.safetensors"}), "outside the folder"),
        (lambda m: m.update({"model.norm.weight": "/etc/passwd"}), "outside the folder"),
        (lambda m: m.update({"model.norm.weight": "weights.bin"}), "only safetensors"),
        (lambda m: m.update({"model.norm.weight": "model-00077-of-00077.safetensors"}), "not there"),
        (lambda m: m.pop("model.norm.weight"), "in a file but not listed: model.norm.weight"),
        (lambda m: m.update({"model.new": m["model.norm.weight"]}), "not where it says: model.new"),
        (lambda m: m.update({"model.norm.weight": 7}), "weight_map"),
        (lambda m: m.update({"model.norm.weight": m["model.embed_tokens.weight"]}), "not where it says"),
    ],
)
def test_bad_index_is_refused(sharded, change, text):
    change_index(sharded, change)
    with pytest.raises(DataError, match=text):
        load(sharded)


def test_a_name_in_two_files_is_refused(sharded):
    first, second = sorted(sharded.glob("model-*.safetensors"))[:2]
    name = next(iter(shards.read_header(first)))
    header, data = header_of(second)
    taken = next(n for n in header if n != "__metadata__")
    header[name] = header.pop(taken)
    write_raw(second, header, data)
    change_index(sharded, lambda m: m.pop(taken))
    with pytest.raises(DataError, match=f"{name} is in both"):
        load(sharded)


def test_several_files_without_an_index_are_refused(sharded):
    (sharded / shards.INDEX).unlink()
    with pytest.raises(DataError, match="no model.safetensors.index.json"):
        load(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_never_read(small_folder, name):
    shutil.move(small_folder / "model.safetensors", small_folder / name)
    with pytest.raises(UserError, match=f"only {name}, a pickle that can run code"):
        load(small_folder)


def test_files_hold_at_most_the_asked_size_and_one_array_is_made_at_a_time(tmp_path):
    alive = []

    def make(number):
        def one():
            alive.append(number)
            return np.full((10, 10), number, np.float32)

        return one

    planned = [shards.Planned(f"w{i}", (10, 10), np.float32, make(i)) for i in range(5)]
    shards.write(tmp_path, planned, max_bytes=900)
    assert alive == list(range(5))
    index = json.loads((tmp_path / shards.INDEX).read_text())
    assert index["metadata"]["total_size"] == 5 * 400
    assert len(set(index["weight_map"].values())) == 3
    from safetensors import safe_open

    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, framework="np") as handle:
            assert handle.metadata()["format"] == "pt" and f"crc32.{name}" in handle.metadata()
            assert (handle.get_tensor(name) == int(name[1:])).all()
