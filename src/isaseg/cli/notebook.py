"""What a notebook needs besides the library: the folder of results, a run from overrides, a figure on the page."""

import io
import logging
import sys
import warnings
from pathlib import Path

from matplotlib.figure import Figure

from isaseg import config
from isaseg.trust import take_trust

# tqdm, which some library imports, advertises ipywidgets
warnings.filterwarnings("ignore", message="IProgress not found")


def outputs() -> Path:
    """Return the folder of results: `outputs` in the checkout that the notebook is in, else in the working folder."""
    here, checkout = Path.cwd(), config.conf_dir().parent
    is_inside = (checkout / "pyproject.toml").is_file() and here.is_relative_to(checkout)
    return (checkout if is_inside else here) / "outputs"


def train_run(*overrides: str) -> Path:
    """Train as `isaseg train OVERRIDES` does, with progress on the page; return the run's folder.

    Results go to `outputs()`, and to W&B only with `logger=wandb`. A run that is complete already is not trained again.

    Raises:
        ConfigError: For an override that cannot work.
        IsasegError: For any other fault that the user can fix.
    """
    words = take_trust(overrides)
    if not any(word.startswith("logger=") for word in words):
        words.append("logger=csv")
    cfg = config.initialised(config.compose_from("train", words), words)
    if not any(word.startswith("output_dir=") for word in words):
        cfg.output_dir = str(outputs())
    from isaseg.training.run import train  # torch: a typo is reported before that

    # notebooks show stderr in red
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    train(cfg)
    return config.run_dir(cfg)


def show(figure: Figure) -> None:
    """Show a figure below the cell, whichever backend matplotlib has."""
    from IPython.display import Image, display  # not a dependency

    file = io.BytesIO()
    figure.savefig(file, format="png")
    display(Image(data=file.getvalue()))  # type: ignore[no-untyped-call]
