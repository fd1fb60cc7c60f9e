"""The page of `isaseg demo`: what of Gradio shows what `analysis.demo` computes."""

import base64
import threading
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from omegaconf import DictConfig

from isaseg.analysis.demo import Look, attention_png, examples, look
from isaseg.checkpoints.loading import Model, load_model
from isaseg.errors import DataError, is_out_of_memory
from isaseg.inference.label_files import LabelFormat, label_format
from isaseg.inference.photographs import Picture, pixels_at_most, read_picture
from isaseg.inference.predict import chosen_device
from isaseg.models.description import part_name
from isaseg.models.segmenter import Segmenter

_SECONDS = 3600  # that uploads, and what a visitor has seen, are kept
_VISITORS = 32  # whose last picture is kept
_CSS = """
.gradio-container { max-width: 1280px !important; padding: 0 16px !important; }
.gradio-container .gap { gap: 8px; }
.shown img { image-rendering: pixelated; cursor: crosshair; }
#status { min-height: 24px; }
#scenes * { overflow: hidden; }
.error { color: #b00020; font-weight: 600; }
#legend span.class { display: inline-block; margin: 0 18px 4px 0; white-space: nowrap; }
#legend i { display: inline-block; width: 14px; height: 14px; margin-right: 6px; vertical-align: -2px; }
#attention img { width: 100%; max-height: 520px; object-fit: contain; background: white; margin-top: 6px; }
"""
_PANELS = {
    "labels": "**Labels**",
    "confidence": "**Confidence**, violet (none) to yellow (certain)",
    "picture": "**Picture**",
}
_HINT = "Click on a pixel of a picture to see what it attends to."
_NO_MEMORY = "Too little memory for this picture; start the demo with a smaller longest_side=, or device=cpu."


def demo_page(model: Model, form: LabelFormat, title: str, longest: int) -> gr.Blocks:
    """Return the page.

    Args:
        model: The network, on its device, and its description.
        form: Names and colours of its classes.
        title: What the page is about, for people.
        longest: Of the sides of a picture that the network sees.
    """
    segmenter, name = model.segmenter, str(part_name(model.description["attention"]))
    scenes = examples(model.description.get("data"))
    # one call at a time around the network, whoever asks; nothing but `seen`, of each visitor, is kept between calls
    alone: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "network", "api_visibility": "private"}
    with gr.Blocks(analytics_enabled=False, title="isaseg demo", delete_cache=(60, _SECONDS)) as made:
        seen = gr.State(None, time_to_live=_SECONDS)
        gr.Markdown(f"### isaseg demo: `{title}`, {name}, {len(form.classes)} classes")
        with gr.Row(equal_height=True):
            file = gr.File(label="Drop a picture here", height=165, elem_id="file", scale=1)
            if scenes:
                gallery = gr.Gallery(
                    scenes, label="or choose a scene", columns=6, height=165, allow_preview=False, scale=3,
                    elem_id="scenes", object_fit="contain", interactive=False, buttons=[],
                )  # fmt: skip
        status = gr.HTML(elem_id="status", padding=False)
        with gr.Row():
            labels, sure, picture = (_panel(title, key) for key, title in _PANELS.items())
        legend = gr.HTML(elem_id="legend", padding=False)
        attention = gr.HTML(elem_id="attention", padding=False)

        def dropped(path: str) -> list[Any]:
            return _shown(segmenter, form, lambda: _read(Path(path)), longest)

        def chosen(event: gr.SelectData) -> list[Any]:
            return _shown(segmenter, form, lambda: scenes[event.index], longest)

        def clicked(kept: tuple[Any, int] | None, event: gr.SelectData) -> str:
            return _attended(segmenter, name, kept, event.index)

        outputs = [file, seen, status, labels, sure, picture, legend, attention]
        file.upload(dropped, file, outputs, **alone)
        if scenes:
            gallery.select(chosen, None, outputs, **alone)
        for panel in (labels, sure, picture):
            panel.select(clicked, seen, attention, **alone)
    return made


def _shown(
    segmenter: Segmenter, form: LabelFormat, image: Callable[[], np.ndarray], longest: int
) -> list[Any]:
    """Return what the page shows of a picture, as its outputs stand; no file, so that another can be dropped."""
    try:
        found = look(segmenter, form, image(), longest)
    except (DataError, MemoryError, RuntimeError) as error:
        if not isinstance(error, DataError) and not is_out_of_memory(error):
            raise
        return [None, None, _error(error), None, None, None, "", ""]
    panels = [found.labels, found.confidence, found.shown]
    return [None, (found.picture, found.zoom), _said(found), *panels, _legend(found, form), _HINT]


def _attended(
    segmenter: Segmenter, name: str, kept: tuple[np.ndarray, int] | None, place: tuple[int, int]
) -> str:
    """Return what the page shows after a click at `place` (x, y) of a panel; `kept` is the picture and its zoom."""
    if kept is None:
        return _error("This picture is no longer kept; drop it again.")
    picture, zoom = kept
    pixel = place[1] // zoom, place[0] // zoom
    try:
        drawn = base64.b64encode(attention_png(segmenter, picture, pixel, name)).decode()
    except (ValueError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ValueError) and not is_out_of_memory(error):
            raise
        return _error(error)
    said = f"What row {pixel[0]}, column {pixel[1]} attends to: the brighter, the more"
    return f'{said}<img src="data:image/png;base64,{drawn}" alt="{said}">'


def serve(cfg: DictConfig) -> None:
    """Load the network and serve the page until it is interrupted; nothing is sent or fetched elsewhere.

    Args:
        cfg: Of conf/demo.yaml.

    Raises:
        CheckpointError: If the checkpoint does not load.
        ConfigError: If the network has more classes than can be shown.
    """
    path = Path(str(cfg.checkpoint))
    model = load_model(path)
    form = label_format(model.description)
    model.segmenter.to(chosen_device(cfg.device))
    with pixels_at_most(cfg.max_pixels):  # of the whole process, so once
        made = demo_page(model, form, path.name, cfg.longest_side)
        made.queue(max_size=_VISITORS).launch(
            server_name=cfg.host, server_port=cfg.port, share=False, quiet=True, prevent_thread_lock=True,
            inbrowser=False, max_file_size=cfg.max_megabytes * 10**6, state_session_capacity=_VISITORS, ssr_mode=False,
            mcp_server=False, pwa=False, footer_links=[], css=_CSS,
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        )  # fmt: skip
        try:
            print(f"the page is at http://{cfg.host}:{cfg.port}; Ctrl-C closes it", flush=True)
            threading.Event().wait()
        finally:
            made.close(verbose=False)


def _panel(title: str, key: str) -> gr.Image:
    with gr.Column(min_width=240):
        gr.Markdown(title)
        return gr.Image(
            show_label=False, elem_id=key, elem_classes="shown", interactive=False, height=400, format="png",
            buttons=["fullscreen"],
        )  # fmt: skip


def _read(path: Path) -> np.ndarray:
    """Return a dropped picture.

    Raises:
        DataError: If it cannot be read; names the file without its folder, which is no business of visitors.
    """
    try:
        return read_picture(Picture(path, path.name))
    except DataError as error:
        raise DataError(str(error).replace(repr(str(path)), repr(path.name))) from error


def _said(found: Look) -> str:
    (height, width), (h, w) = found.size, found.picture.shape[:2]
    size = f"{width} x {height} pixels"
    return size + (f", reduced to {w} x {h} for the network and this page." if (h, w) != found.size else ".")


def _legend(found: Look, form: LabelFormat) -> str:
    return "".join(
        f'<span class="class"><i style="background: rgb{tuple(form.colours[i].tolist())}"></i>'
        f"{escape(form.classes[i][:48])} {100 * share:.1f} %</span>"
        for i, share in found.shares
    )


def _error(error: Exception | str) -> str:
    text = _NO_MEMORY if isinstance(error, Exception) and is_out_of_memory(error) else str(error)
    return f'<span class="error">{escape(text)}</span>'
