"""Random configurations: a valid one builds and trains a step, any other is refused before work begins."""

import tempfile
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg.errors import DivergenceError, IsasegError
from isaseg.training.run import train
from tests.conftest import compose_overrides
from tests.reliability.small import SMALL, STRESS

ONE = [*SMALL, "trainer.max_steps=1", "callbacks.wandb_pictures=0"]
FEW = {
    "deadline": None,
    "database": None,
    "derandomize": not STRESS,
    "phases": [Phase.generate],  # a run takes too long to look for a shorter case
    "suppress_health_check": list(HealthCheck),
}


def one_of(*values: object) -> st.SearchStrategy[object]:
    return st.sampled_from(values)


def pair(least: int, most: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(least, most), min_size=2, max_size=2)


channels = st.one_of(st.none(), st.integers(1, 16))
order = one_of("long_short", "short_long", "long", "short")
ATTENTIONS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "isa": {
        "group_size": pair(1, 9),
        "order": order,
        "mask_padding": st.booleans(),
        "key_channels": channels,
        "value_channels": channels,
        "value_bias": st.booleans(),
        "depth": st.integers(1, 2),
    },
    "isa_parallel": {"group_sizes": st.lists(pair(1, 5), min_size=1, max_size=3), "order": order},
    "dense": {"key_channels": channels, "value_channels": channels},
    "criss_cross": {"recurrence": st.integers(1, 3), "key_channels": channels},
    "criss_cross_plain": {"passes": st.integers(1, 3)},
    "pyramid_pooling": {"bins": one_of([1], [2, 1], [1, 2, 3, 6])},
    "aspp": {"rates": st.lists(st.integers(1, 12), min_size=1, max_size=3), "branch_channels": channels},
    "double_attention": {"value_channels": channels, "descriptors": channels},
    "cgnl": {"groups": one_of(1, 2, 4)},
    "none": {},
}
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    "data.crop_size": pair(9, 40),
    "data.val_length": st.integers(1, 3),
    "data.val_batch_size": st.integers(1, 3),
    "data.transform.flip": st.booleans(),
    "data.transform.scale": one_of(None, [0.5, 2.0], [1, 1]),
    "data.transform.colours": one_of(None, "photometric", "brightness"),
    "data.transform.pad": one_of("centre", "corner", "random"),
    "head.channels": one_of(8, 16),
    "head.aux_channels": channels,
    "head.dropout": st.floats(0, 0.9),
    "head.align_corners": st.booleans(),
    "loss": one_of("ce", "ohem"),
    "loss.class_weights": st.one_of(st.none(), st.lists(st.floats(0.1, 2), min_size=8, max_size=8)),
    "optim": one_of("adamw_one_cycle", "adamw_poly", "sgd_poly"),
    "optim.lr": st.floats(1e-6, 1e-2),
    "optim.weight_decay": st.floats(0, 0.1),
    "optim.head_lr_mult": st.floats(0.1, 10),
    "aux_weight": st.floats(0, 1),
    "trainer.precision": one_of("32-true", "bf16-mixed"),
    "trainer.gradient_clip_val": st.one_of(st.none(), st.floats(0.1, 5)),
    "trainer.accumulate_grad_batches": one_of(1, 2),
    "trainer.val_check_interval": st.integers(1, 5),
    "trainer.log_every_n_steps": st.integers(1, 5),
    "trainer.max_steps": st.integers(1, 2),
    "checkpoint_every_n_steps": st.integers(1, 5),
    "callbacks.pictures": st.integers(0, 2),
    "seed": st.integers(0, 2**32 - 1),
    "score_test": st.booleans(),
    "check_data": st.booleans(),
}


def written(value: Any) -> str:
    """Return a value as an override has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}: {written(v)}' for k, v in value.items())}}}"
    return str(value)


@st.composite
def valid(draw: st.DrawFn) -> list[str]:
    """Draw an attention with all its keys, and some of the others."""
    attention = draw(st.sampled_from(sorted(ATTENTIONS)))
    keys = draw(st.lists(st.sampled_from(sorted(OTHERS)), unique=True, max_size=12))
    words = [f"attention={attention}", "data.transform.quarter_turns=false"]  # which only squares may have
    words += [f"attention.{k}={written(draw(value))}" for k, value in ATTENTIONS[attention].items()]
    return words + [f"{k}={written(draw(OTHERS[k]))}" for k in sorted(keys)]


@settings(max_examples=300 if STRESS else 3, **FEW)  # type: ignore[arg-type]
@given(words=valid())
def test_x3_a_valid_random_configuration_builds_and_runs(words: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        metrics = train(compose_overrides(*ONE, *words, f"run_dir={folder}/run"))
        assert 0 <= metrics["val/mIoU"] <= 1
        assert (Path(folder) / "run" / "checkpoints" / "last.ckpt").is_file()


def leaves(node: Any, path: str = "") -> list[str]:
    if not isinstance(node, dict):
        return [path]
    return [leaf for key, value in node.items() for leaf in leaves(value, f"{path}.{key}".lstrip("."))]


KEYS = sorted({*leaves(OmegaConf.to_container(compose_overrides(*ONE)))} - {"run_dir", "output_dir"})
ANY = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 3),
        st.sampled_from([0.5, -0.5, 1e30, float("nan"), float("inf"), float("-inf")]),
        st.text("ab/.=;$ ", max_size=4),
        st.sampled_from(
            ["auto", "cpu", "isa", "linear", "os.system", "isaseg.models.baselines.SelfAttention2d"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["a", "_target_", "_partial_"]), inner, max_size=2),
    ),
    max_leaves=4,
)


@settings(max_examples=3000 if STRESS else 15, **FEW)  # type: ignore[arg-type]
@given(key=st.sampled_from(KEYS), value=ANY)
def test_x3_any_value_of_any_key_works_or_is_refused_before_work(key: str, value: Any) -> None:
    """Never an exception of another kind; what is refused leaves nothing behind."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            cfg = compose_overrides(*ONE, f"run_dir={folder}/run", f"output_dir={folder}/out")
            OmegaConf.update(cfg, key, value, merge=False)
            train(cfg)
        except DivergenceError:
            assert key.startswith(("optim.", "loss.", "aux_weight", "head."))
        except (IsasegError, HydraException, OmegaConfBaseException) as error:
            assert str(error)
            assert list(Path(folder).iterdir()) == []
