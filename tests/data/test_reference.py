import pytest

from robot_cl.data.reference import D4RL, claims_d4rl, d4rl_id, normalized_score, simulator_fingerprint, task_key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Hopper-v5", "hopper"),
        ("robot_cl/HalfCheetah-v0", "halfcheetah"),
        ("hopper-medium-v2", "hopper"),
        ("hopper_medium-v2", "hopper"),
        ("antmaze-umaze-v2", "antmaze"),
        ("Ant-v5", "ant"),
        ("ant", "ant"),
        ("maze2d-medium-sparse-v1", "maze2d-medium"),
        ("AdroitHandDoor-v1", "door"),
        ("walker-run", "walker-run"),
        ("walker2d", "walker2d"),
        ("antelope", "antelope"),
    ],
)
def test_a_task_is_known_under_its_many_names(name: str, key: str) -> None:
    assert task_key(name) == key


def test_the_references_are_0_and_100() -> None:
    for task, reference in D4RL.items():
        assert normalized_score(reference.low, task)[0] == pytest.approx(0.0)
        assert normalized_score(reference.high, task)[0] == pytest.approx(100.0)
    assert normalized_score(3234.3, "hopper")[0] == pytest.approx(100.0)
    assert normalized_score(500.0, "walker-walk") == (50.0, "dm_control 0 to 1000")


def test_only_d4rl_data_has_a_d4rl_score() -> None:
    assert normalized_score(1000.0, "hopper", {"kind": "d4rl", "file": "hopper_medium-v2.hdf5"})[1] == "D4RL hopper"
    for source in (None, {"kind": "collect"}, {"kind": "minari", "file": "hopper_medium-v2"}):
        assert "not D4RL's data or simulator" in normalized_score(1000.0, "hopper", source)[1]


def test_a_task_without_a_reference_says_which_have_one() -> None:
    with pytest.raises(LookupError, match="no reference score for task 'shadow-hand'; there is for halfcheetah, "):
        normalized_score(1.0, "shadow-hand")


def test_d4rl_ids_come_from_d4rl_files_alone() -> None:
    assert d4rl_id({"kind": "d4rl", "file": "hopper_medium-v2.hdf5"}) == "hopper-medium-v2"
    assert d4rl_id({"kind": "d4rl", "file": "Ant_maze_u-maze.hdf5"}) is None
    assert d4rl_id({"kind": "collect", "file": "hopper_medium-v2.hdf5"}) is None
    assert claims_d4rl("hopper-medium-v2") and claims_d4rl("d4rl/x/y-v0")
    assert not claims_d4rl("hopper/medium-v0") and not claims_d4rl("imported/hopper-runs-v0")


def test_the_fingerprint_names_the_simulator() -> None:
    import mujoco

    assert simulator_fingerprint()["mujoco"] == mujoco.__version__
