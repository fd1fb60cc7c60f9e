"""What a notebook needs beside the library: where results go, a run from a few overrides, a figure on the page."""

import io
import logging
import sys
import warnings
from pathlib import Path

from matplotlib.figure import Figure

from isaseg import config

# tqdm's, which some library imports: it says that ipywidgets would be prettier
warnings.filterwarnings("ignore", message="IProgress not found")


def outputs() -> Path:
    """Return the folder of results: `outputs` of the checkout that the notebook lies in, or of the working folder."""
    here, checkout = Path.cwd(), config.conf_dir().parent
    is_inside = (checkout / "pyproject.toml").is_file() and here.is_relative_to(checkout)
    return (checkout if is_inside else here) / "outputs"


def train_run(*overrides: str) -> Path:
    """Train what `python src/train.py OVERRIDES` would, with progress on the page; return the run's folder.

    Results go to `outputs`, without W&B unless `logger=wandb` is among the overrides. A run that is complete already is
    not trained again.

    Raises:
        ConfigError: For an override that cannot work.
        IsasegError: For whatever else the user can mend.
    """
    words = list(overrides)
    if not any(word.startswith("logger=") for word in words):
        words.append("logger=csv")
    cfg = config.compose_from("train", words)
    if not any(word.startswith("output_dir=") for word in words):
        cfg.output_dir = str(outputs())
    from isaseg.training.run import train  # Lightning and timm: seconds that a typo need not wait for

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)  # stderr is shown in red
    train(cfg)
    return config.run_dir(cfg)


def show(figure: Figure) -> None:
    """Show a figure below the cell, whatever matplotlib's backend is."""
    from IPython.display import Image, display  # only notebooks have it

    file = io.BytesIO()
    figure.savefig(file, format="png")
    display(Image(data=file.getvalue()))  # type: ignore[no-untyped-call]
