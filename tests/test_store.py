"""The run folder survives whatever can happen to a process, and never takes what is not its own."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framepack.errors import OutputError, RunConflictError
from framepack.generation import manifest, store
from framepack.generation.hashing import hash_json, hash_tensor, section_seed
from framepack.generation.manifest import NAME, Manifest, read_log
from framepack.generation.store import Edit, RunStore

CONFIG = {"seed": 1, "prompt": "a ball"}


def latents(section: int, frames: int = 3, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(section)
    return torch.randn(2, frames, 4, 5, generator=generator).to(dtype)


def filled(folder: Path, sections: int = 4) -> None:
    with RunStore(folder, CONFIG) as opened:
        for i in range(sections):
            opened.add(f"key{i}", i, range(3 * i, 3 * i + 3), latents(i), {"take": 0})


# --- the log ---


def test_header_comes_first_and_records_follow(tmp_path: Path) -> None:
    filled(tmp_path / "run", 2)
    lines = [json.loads(line) for line in (tmp_path / "run" / NAME).read_text().splitlines()]
    assert lines[0] == {"version": 1, "config": CONFIG}
    assert [line["key"] for line in lines[1:]] == ["key0", "key1"]
    assert lines[1]["digest"] == hash_tensor(latents(0)) and lines[1]["take"] == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_log_cut_anywhere_keeps_its_whole_lines_and_grows_on(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        filled(folder, 3)
        whole = (folder / NAME).read_bytes()
        cut = data.draw(st.integers(0, len(whole)), label="cut")
        junk = data.draw(
            st.binary(max_size=20).filter(lambda b: b"\n" not in b and b"\r" not in b), label="junk"
        )
        (folder / NAME).write_bytes(whole[:cut] + junk)
        kept = max(0, whole[:cut].count(b"\n") - 1)
        with RunStore(folder, CONFIG) as opened:
            assert opened.sections == kept
            opened.add("more", 9, [30], latents(9, 1))
        header, records, good = read_log(folder)
        assert header == {"version": 1, "config": CONFIG}
        assert [r["key"] for r in records] == [f"key{i}" for i in range(kept)] + ["more"]
        assert good == (folder / NAME).stat().st_size


def test_a_damaged_line_inside_is_refused_with_its_number(tmp_path: Path) -> None:
    filled(tmp_path)
    lines = (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    lines[2] = b'{"kind": "lat\n'
    (tmp_path / NAME).write_bytes(b"".join(lines))
    with pytest.raises(RunConflictError, match=r"line 3.*--workdir"):
        RunStore(tmp_path, CONFIG)
    assert (tmp_path / NAME).read_bytes() == b"".join(lines)


def test_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"version": 99, "config": {}}\n')
    with pytest.raises(RunConflictError, match="version 99"):
        RunStore(tmp_path, CONFIG)


def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path, 1)
    with RunStore(tmp_path, CONFIG) as opened:
        before = (tmp_path / NAME).read_bytes()
        write = os.write

        def half(handle: int, data: bytes) -> int:
            write(handle, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(manifest.os, "write", half)
            with pytest.raises(OutputError, match=r"No space left.*same command"):
                opened.redo(0)
            with pytest.raises(OutputError, match="No space left"):
                opened.add("new", 1, [3], latents(1, 1))
        assert (tmp_path / NAME).read_bytes() == before
        assert opened.edits == {} and opened.find("new") is None
        opened.add("new", 1, [3], latents(1, 1))
        assert opened.find("new") is not None


# --- who may use the folder ---


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    taken = pytest.raises(RunConflictError, match=f"in use by process {os.getpid()}")
    with RunStore(tmp_path, CONFIG), taken:
        RunStore(tmp_path, CONFIG)
    with RunStore(tmp_path, CONFIG) as again:
        assert again.sections == 1


def test_a_failed_opening_lets_the_lock_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path, data: bytes) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_file", broken)
        with pytest.raises(OutputError, match="Input/output error"):
            RunStore(tmp_path / "run", CONFIG)
    filled(tmp_path / "run", 1)


def test_another_configuration_is_named_and_nothing_changed(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(RunConflictError, match=r"seed 1, not 2.*--workdir"):
        RunStore(tmp_path, CONFIG | {"seed": 2})
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("important")
    with pytest.raises(RunConflictError, match=r"thesis\.tex"):
        RunStore(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(OutputError, match="is a file"):
        RunStore(tmp_path / "thesis.tex", CONFIG)


def test_a_folder_left_by_a_process_that_died_at_once_is_taken(tmp_path: Path) -> None:
    (tmp_path / manifest.LOCK).touch()
    (tmp_path / f"{NAME}.part").write_bytes(b'{"vers')
    filled(tmp_path, 2)
    assert len(read_log(tmp_path)[1]) == 2


# --- latents ---


def test_a_file_without_its_record_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(self: Manifest, record: object) -> None:
        raise KeyboardInterrupt

    with RunStore(tmp_path, CONFIG) as opened:
        with monkeypatch.context() as patch:
            patch.setattr(Manifest, "append", die)
            with pytest.raises(KeyboardInterrupt):
                opened.add("key0", 0, [0, 1, 2], latents(0))
        assert opened.path("key0").is_file()
    (tmp_path / store.FOLDER / "key1.safetensors.part").write_bytes(b"half a fi")
    with RunStore(tmp_path, CONFIG) as opened:
        assert opened.find("key0") is None and opened.sections == 0
        assert not list((tmp_path / store.FOLDER).glob("*.part"))
        opened.add("key0", 0, [0, 1, 2], latents(0))
        assert opened.find("key0") is not None


@pytest.mark.parametrize("harm", ["missing", "cut", "altered", "empty"])
def test_a_record_whose_file_is_harmed_does_not_count(tmp_path: Path, harm: str) -> None:
    filled(tmp_path, 2)
    path = tmp_path / store.FOLDER / "key1.safetensors"
    data = bytearray(path.read_bytes())
    if harm == "missing":
        path.unlink()
    elif harm == "altered":
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2 if harm == "cut" else 0])
    with RunStore(tmp_path, CONFIG) as opened:
        assert opened.find("key0") is not None and opened.find("key1") is None
        opened.add("key1", 1, [3, 4, 5], latents(1))
        assert opened.find("key1") is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_latents_come_back_by_place_in_time(tmp_path: Path, dtype: torch.dtype) -> None:
    with RunStore(tmp_path, CONFIG) as opened:
        first, second = latents(0, dtype=dtype), latents(1, dtype=dtype)
        opened.place(opened.add("a", 0, [4, 5, 9], first))
        opened.place(opened.add("b", 1, [6, 7, 8], second))
        found = opened.fetch([9, 6, 4])
        assert found.dtype == dtype and found.shape == (1, 2, 3, 4, 5)
        assert torch.equal(found[0], torch.stack([first[:, 2], second[:, 0], first[:, 0]], dim=1))


def test_what_is_placed_last_fills_the_frame(tmp_path: Path) -> None:
    with RunStore(tmp_path, CONFIG) as opened:
        opened.place(opened.add("a", 0, [0, 1, 2], latents(0)))
        before = opened.reference(1)
        opened.place(opened.add("b", 0, [0, 1, 2], latents(1)))
        assert torch.equal(opened.fetch([1])[0, :, 0], latents(1)[:, 1])
        assert opened.reference(1) != before
        opened.place(opened.add("c", 0, [0, 1, 2], latents(0)))
        assert opened.reference(1) == before, "the same bytes are the same latent, whatever made them"


def test_memory_does_not_grow_with_the_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CACHE", 5)
    with RunStore(tmp_path, CONFIG) as opened:
        for i in range(6):
            opened.place(opened.add(f"k{i}", i, range(3 * i, 3 * i + 3), latents(i)))
        everything = opened.fetch(range(18))
        assert torch.equal(everything[0], torch.cat([latents(i) for i in range(6)], dim=1))
        assert len(opened._cache) == 5
        # A view would keep its whole section in memory.
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in opened._cache.values())


# --- edits and keys ---


def test_redo_is_remembered_and_adds_up(tmp_path: Path) -> None:
    filled(tmp_path)
    with RunStore(tmp_path, CONFIG) as opened:
        assert opened.redo(6) == Edit(1)
        assert opened.redo(6, "a box") == Edit(2, "a box")
        assert opened.redo(6) == Edit(3, "a box")
    with RunStore(tmp_path, CONFIG) as opened:
        assert opened.edits == {6: Edit(3, "a box")} and opened.sections == 4
        assert opened.redo(6, told=True) == Edit(4)


def test_hashes_tell_apart_what_differs() -> None:
    assert hash_json({"a": 1, "b": (2, 3)}) == hash_json({"b": [2, 3], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        hash_json(float("nan"))
    one = torch.zeros(2, 3)
    assert len({hash_tensor(t) for t in (one, one.T, one.half(), one + 1)}) == 4
    assert hash_tensor(torch.arange(6).reshape(2, 3).T) == hash_tensor(torch.tensor([[0, 3], [1, 4], [2, 5]]))


def test_every_section_and_take_has_noise_of_its_own() -> None:
    seeds = {section_seed(s, i, t) for s in range(5) for i in range(50) for t in range(3)}
    assert len(seeds) == 5 * 50 * 3 and all(0 <= seed < 2**63 for seed in seeds)
    assert section_seed(7, 3) == 8304174715154097948
