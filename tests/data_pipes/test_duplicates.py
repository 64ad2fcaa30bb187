import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipes.duplication.duplicates import BlockedFilter, HashSet
from data_pipes.duplication.runs import BLOCK, CHUNK, RunError, merge_runs, write_run

ROOT = Path(__file__).parents[2]
ALL = np.arange(31, dtype=np.uint64)
many_batches = st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=12)


def draw(number, seed=0):
    return np.random.default_rng(seed).integers(0, 2**64, number, dtype=np.uint64)


def add_all(ours, seen, batches):
    for batch in batches:
        wanted = []
        for value in batch:
            wanted.append(value not in seen)
            seen.add(value)
        assert ours.add(np.array(batch, np.uint64)).tolist() == wanted
    assert ours.contains(ALL).tolist() == [value in seen for value in range(31)]
    assert ours.num_entries == len(seen)


@settings(deadline=None)
@given(many_batches)
def test_a_hash_set_is_a_set(batches):
    add_all(HashSet(), set(), batches)


@pytest.mark.parametrize("has_folder", [True, False])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(many_batches, many_batches, many_batches, st.integers(0, 20))
def test_a_set_goes_on_from_its_last_state_and_forgets_what_came_later(
    tmp_path_factory, has_folder, before, lost, after, entries_in_memory
):
    folder = tmp_path_factory.mktemp("set") if has_folder else None
    first, seen = HashSet(folder, entries_in_memory), set()
    for batch in before:
        add_all(first, seen, [batch])
        state = first.state()
    state = first.state()
    saved = set(seen)
    add_all(first, seen, lost)
    for _ in range(2):
        second, seen = HashSet(folder, entries_in_memory), set(saved)
        second.restore(*state)
        add_all(second, seen, after)


def test_large_sets_agree_with_numpy_and_spill(tmp_path):
    hashes = draw(40_000)
    hashes[::7] = hashes[3]
    ours = HashSet(tmp_path, 1000)
    is_new = np.concatenate([ours.add(part) for part in np.split(hashes, 40)])
    assert np.flatnonzero(is_new).tolist() == np.sort(np.unique(hashes, return_index=True)[1]).tolist()
    assert ours.contains(hashes).all()
    assert not ours.contains(draw(10_000, 1)).any()
    sizes = sorted(path.stat().st_size for path in tmp_path.iterdir())
    assert sum(sizes) // 8 >= ours.num_entries - 1000
    assert len(sizes) <= 6


def test_files_of_the_last_two_states_outlive_the_merges(tmp_path):
    ours = HashSet(tmp_path, 100)
    states = []
    for seed in range(12):
        ours.add(draw(1000, seed))
        states.append(ours.state())
        for state in states[-2:]:
            for described in state[0]["runs"]:
                assert (tmp_path / described["file"]).stat().st_size == 8 * described["num_entries"]
    # Old files do not pile up: both states' files hold at most twice the entries.
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * 8 * 12_000
    # The one before last, as if the process had died before the last one was kept.
    again = HashSet(tmp_path, 100)
    again.restore(*states[-2])
    assert again.num_entries == 11_000
    assert not again.contains(draw(1000, 11)).any()
    assert again.contains(draw(1000, 10)).all()


def make_saved_set(folder):
    ours = HashSet(folder, 100)
    ours.add(draw(1000))
    state = ours.state()
    (path,) = folder.iterdir()
    return state, path


def test_a_missing_or_short_file_is_refused(tmp_path):
    state, path = make_saved_set(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(RunError, match="has 7992 bytes, wanted 8000 bytes: delete the folder"):
        HashSet(tmp_path).restore(*state)
    path.unlink()
    with pytest.raises(RunError, match="is missing"):
        HashSet(tmp_path).restore(*state)


def test_a_changed_byte_is_refused(tmp_path):
    state, path = make_saved_set(tmp_path)
    data = bytearray(path.read_bytes())
    data[4321] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="has changed since it was written"):
        HashSet(tmp_path).restore(*state)


def test_merging_files_of_many_chunks_sorts_them(tmp_path):
    sizes = ((CHUNK * 2 + 5, 1000), (7, CHUNK), (3, 2), (CHUNK, CHUNK * 3))
    pairs = [[np.sort(draw(size, size)) for size in pair] for pair in sizes]
    low, high = np.arange(9, dtype=np.uint64), np.arange(10, 2 * CHUNK, dtype=np.uint64)
    for parts in (*pairs, [low, high], [high, low]):
        runs = [write_run(tmp_path / f"{number}", [part]) for number, part in enumerate(parts)]
        merged = merge_runs(tmp_path / "merged", *runs)
        wanted = np.sort(np.concatenate(parts))
        assert np.array_equal(np.concatenate(list(merged.read_chunks())), wanted)
        assert np.array_equal(merged.fences, wanted[::BLOCK])
        asked = np.unique(np.concatenate((wanted[::99], draw(1000, 9), np.array([0, 2**64 - 1], np.uint64))))
        assert np.array_equal(merged.contains(asked), np.isin(asked, wanted))
        assert merged.checksum == int(wanted.sum(dtype=np.uint64))


def test_the_filter_forgets_nothing_and_lets_few_others_pass():
    hashes, others = draw(60_000), draw(60_000, 1)
    ours = BlockedFilter(60_000)
    ours.add(hashes)
    assert ours.capacity >= 60_000
    assert ours.may_contain(hashes).all()
    assert ours.may_contain(others).mean() < 0.05


def test_the_filter_works_on_hashes_of_a_small_split():
    share = np.uint64(100)
    hashes, others = draw(60_000) // share, draw(60_000, 1) // share
    ours = BlockedFilter(60_000)
    ours.add(hashes)
    assert ours.may_contain(others).mean() < 0.06


MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
from data_pipes.duplication.duplicates import HashSet

def peak():
    # Not getrusage: there a new process begins with the peak of the one that started it.
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

generator = np.random.default_rng(0)
ours = HashSet(sys.argv[1] or None, 1 << 17)
ours.add(generator.integers(0, 2**64, 100_000, dtype=np.uint64))
before = peak()
for _ in range(60):
    ours.add(generator.integers(0, 2**64, 100_000, dtype=np.uint64))
print(ours.num_entries, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the resident memory as Linux does")
def test_memory_stays_bounded_when_hashes_go_to_files(tmp_path):
    grown = {}
    for folder in ("", str(tmp_path)):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, folder], capture_output=True, text=True, check=True, cwd=ROOT
        )
        number, grown[folder] = map(int, done.stdout.split())
        assert number == 6_100_000
    # 31 and 173 MB were measured: 8 MB of filter and a constant part for merging, against 49 MB of hashes,
    # again while they are merged, and what numpy needs for it.
    assert grown[str(tmp_path)] < 55e6
    assert grown[""] > 130e6
