"""Composition: the folder of the configuration, a configuration from words, what Hydra says in one sentence."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from isaseg.config.values import nodes, suggest
from isaseg.errors import ConfigError, one_line
from isaseg.trust import refuse_trust

# A list's length: the number of classes of a user's own folder follows from their names (conf/data/folder.yaml).
OmegaConf.register_new_resolver("count", len, replace=True)
# mmsegmentation validates ten times in a run, however many steps that has (conf/recipe/*_mmseg.yaml).
# What is no number is refused as trainer.max_steps.
OmegaConf.register_new_resolver(
    "tenth", lambda steps: max(1, steps // 10) if isinstance(steps, int) else 1, replace=True
)

_CONFIG_DIR = "--config-dir="  # the option of Hydra's own commands
UNREADABLE = (HydraException, OmegaConfBaseException, yaml.YAMLError)  # what composing raises, see `explain`
PROFILED = 8  # steps of a run that is profiled


def conf_dir() -> Path:
    """Return the folder of the configuration: beside `src` in a checkout, inside the package in a wheel."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parents[1] / "conf"
    return checkout if checkout.is_dir() else package / "conf"


def user_dirs(words: Sequence[str]) -> list[Path]:
    """Return the user's own folder of options, --config-dir=DIR among the words of a command, if there is one.

    Raises:
        ConfigError: If it is no folder.
    """
    found = [Path(word.removeprefix(_CONFIG_DIR)) for word in words if word.startswith(_CONFIG_DIR)][-1:]
    for folder in found:
        if not folder.is_dir():
            raise ConfigError(f"expected a folder as --config-dir, got '{folder}'")
    return found


def command_flags(hydra: DictConfig | HydraConf) -> list[str]:
    """Return the --config-dir and --config-name of the process whose node `hydra` is given."""
    sources, name = hydra.runtime.config_sources, hydra.job.config_name
    flags = [f"{_CONFIG_DIR}{source.path}" for source in sources if source.provider == "command-line"]
    return flags if name == "train" else [*flags, f"--config-name={name}"]


def with_experiment(words: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """Return the words of `train`, with the experiment that belongs to a data set where they name that alone.

    It is NAME_isa for data=NAME, or finetune for data=folder, if there is such a file; otherwise none, since the default
    experiment has the class weights, the recipe and the name of Lamps.

    Args:
        words: Overrides of one run.
        more: Words that may name the user's own folder of options, too.
    """
    data = [found[1] for word in words if (found := re.fullmatch(r"data=([\w/]+)", word))][-1:]
    chosen = any(re.match(r"[+~]*experiment\b|--config-name|-cn", word) for word in (*words, *more))
    if not data or chosen:
        return list(words)
    folders = (conf_dir(), *user_dirs([*words, *more]))
    names = [f"{data[0]}_isa", *(["finetune"] if data == ["folder"] else [])]
    known = [n for n in names if any((d / "experiment" / f"{n}.yaml").is_file() for d in folders)]
    place = words.index(f"data={data[0]}") + 1  # argparse takes no word behind an option such as --cfg job
    return [*words[:place], f"experiment={known[0]}" if known else "~experiment", *words[place:]]


def require(cfg: DictConfig, key: str) -> Any:
    """Return the value of `key`.

    Raises:
        ConfigError: If it has none, or is an empty text.
    """
    if OmegaConf.is_missing(cfg, key) or cfg[key] in (None, ""):
        raise ConfigError(f"expected a value for {key}, got none; give it as {key}=VALUE")
    return cfg[key]


def shortened(cfg: DictConfig) -> DictConfig:
    """Return the configuration of the few steps that are watched where there is `callbacks.profile`, else itself."""
    if OmegaConf.select(cfg, "callbacks.profile") is None:
        return cfg
    few = OmegaConf.merge(cfg, {"trainer": {"max_steps": PROFILED, "val_check_interval": PROFILED}})
    assert isinstance(few, DictConfig)
    return few


def explain(error: Exception, config_name: str = "train", words: Sequence[str] = ()) -> str:
    """Return an error of Hydra or OmegaConf in one sentence, with the nearest valid name.

    Args:
        error: Raised while a configuration was composed.
        config_name: The file in conf that it was composed from.
        words: Of the command line, which may choose options with other keys.
    """
    if isinstance(error, OverrideParseException):
        advice = "write $HOME for ~" if "=~" in str(error.override) else "quotes may be missing"
        return f"expected KEY=VALUE, got {error.override!r}; {advice}, see --help"
    if isinstance(error, yaml.YAMLError):
        return f"expected YAML that can be read: {one_line(error)}"
    text = str(error)
    if isinstance(error, MissingConfigException) and "/" in (error.missing_cfg_file or ""):
        folder, _, option = str(error.missing_cfg_file).rpartition("/")
        # _files are for others to inherit; of an option in a list, Hydra does not list the others
        options = [name for name in error.options or () if not name.startswith("_")] or sorted(
            {p.stem for d in (conf_dir(), *user_dirs(words)) for p in (d / folder).glob("[!_]*.yaml")}
        )
        return f"no option '{option}' in the group {folder}; {suggest(option, options)}options: {', '.join(options)}"
    gone = re.search(r"Could not delete from config. '([^']+)' does not exist", text)
    if gone:
        known = _all_keys(config_name, words)
        if gone[1] in known:
            return (  # Hydra takes null for absent
                f"expected a key with a value after ~, got ~{gone[1]}, which is null already; leave it out, or where the "
                f"key itself must go, give it a value first: {gone[1]}=0 ~{gone[1]}"
            )
        return f"no configuration key '{gone[1]}' to remove; {suggest(gone[1], known)}see --help"
    wrong = re.search(r"full_key: (\S+)", text) or re.search(r"Could not override '([^']+)'", text)
    if wrong:
        key, known = wrong.group(1), _all_keys(config_name, words)
        if key in known:
            return f"no configuration key '{key}' with these options of its group; a grid can have hydra.sweeper.rows"
        cause = error.__cause__  # in the configuration that was composed
        is_there = getattr(cause, "full_key", None) == key  # the section of the key, which may lack the key
        beside = (getattr(cause, "parent_node", None) or ()) if is_there else ()
        parent, _, name = key.rpartition(".")
        known += [f"{parent}.{k}" for k in beside]
        above = f"{parent.rpartition('.')[0]}.{name}"
        if above.startswith("optim.") and above in known:  # optimizer and schedule take it from there
            near = f"did you mean '{above}'? "
        elif not is_there and (option := _option_with(key, words)):
            near = f"{option} chooses the option that has it; "
        else:
            near = suggest(key, known)
            if f"{parent}._target_" in known:
                near += f"a key that the files do not give has a + before it: +{key}; "
        return f"no configuration key '{key}'; {near}see --help"
    return text.strip().replace("\n", " ")


def _option_with(key: str, words: Sequence[str]) -> str:
    """Return how to choose the option that gives the section of a key, of a group with several at once, or nothing."""
    group, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    for folder in (conf_dir(), *user_dirs(words)):
        file = folder / group / f"{name}.yaml"
        if file.is_file() and f"\n{name}:" in f"\n{file.read_text()}":
            return f"{group}=[{'default,' if (conf_dir() / group / 'default.yaml').is_file() else ''}{name}]"
    return ""


def _all_keys(config_name: str, words: Sequence[str]) -> list[str]:
    """Return the keys with the default options, and with those that words choose."""
    GlobalHydra.instance().clear()
    chosen = [w for w in words if w.startswith(_CONFIG_DIR) or re.fullmatch(r"[\w/@]+=[^,]+", w)]
    try:
        more = _all_keys(config_name, []) if chosen else []
        cfg = _composed(config_name, chosen, return_hydra_config=True)
    except UNREADABLE:
        return more
    keys = [group for group in cfg.hydra.runtime.choices if not group.startswith("hydra/")]
    del cfg.hydra
    for path, node in nodes(OmegaConf.to_container(cfg)):
        keys += [f"{path}.{k}" if path else str(k) for k in node]
    return [*more, *keys]


def _composed(config_name: str, words: Sequence[str], return_hydra_config: bool = False) -> DictConfig:
    paths = [f"file://{folder.resolve()}" for folder in user_dirs(words)]
    words = with_experiment(words) if config_name == "train" else words
    overrides = [word for word in words if not word.startswith(_CONFIG_DIR)]
    overrides += [f"hydra.searchpath={paths}"] if paths else []
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(config_name, overrides, return_hydra_config)


def compose_from(config_name: str, words: Sequence[str]) -> DictConfig:
    """Return the configuration of KEY=VALUE words and of --config-dir=DIR, a folder of the user's own.

    Raises:
        ConfigError: For any other word, an unknown key or option, or a value that cannot be read.
    """
    strange = [
        word
        for word in words
        if not word.startswith(_CONFIG_DIR) and (word.startswith("-") or "=" not in word)
    ]
    if strange:
        raise ConfigError(f"expected KEY=VALUE, got {strange[0]!r}; see --help")
    try:
        cfg = _composed(config_name, words)
    except UNREADABLE as error:
        raise ConfigError(explain(error, config_name, words)) from error
    refuse_trust(cfg)
    return cfg
