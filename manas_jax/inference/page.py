"""A local web page that removes rain from pictures and videos, by Gradio (extra `page`)."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from manas_jax import metrics
from manas_jax.errors import UserError, check_extra
from manas_jax.inference import image_files, video
from manas_jax.inference.pretrained import list_pretrained

DerainFile = Callable[[str, pathlib.Path, pathlib.Path, video.Progress], Sequence[str]]
"""Removes rain from a file: name of the weights, source, target, progress over frames. Returns
lines on what the target does not keep."""

_INTRODUCTION = """# Remove rain

Choose a picture or a video. The computer that runs this page processes it. Format, size and
metadata stay, and so does the sound of a video."""
_HOUR = 3600


def serve(
    derain_file: DerainFile, weights: str, host: str | None = None, port: int | None = None
) -> None:
    """Serves the page until it is interrupted.

    Args:
      derain_file: does the work.
      weights: name of the weights that are selected at first.
      host: address to listen on; None for Gradio's, which is 127.0.0.1 unless the environment
        names another (GRADIO_SERVER_NAME, as Hugging Face Spaces set it).
      port: None for the first free one from 7860 on.

    Raises:
      UserError: the extra is missing, or the address cannot be used.
    """
    check_extra("page", "gradio", subject="--serve:")
    try:
        page = make_page(derain_file, weights)
        _, address, _ = page.launch(
            server_name=host, server_port=port, prevent_thread_lock=True, quiet=True
        )
        print(f"serving on {address}; Ctrl-C ends it", flush=True)
        page.block_thread()
    except OSError as error:
        raise UserError(f"--serve: cannot listen on {host or '127.0.0.1'} ({error})") from None


def make_page(derain_file: DerainFile, weights: str) -> Any:
    """The page as `gradio.Blocks`; requests wait in a queue for their turn."""
    gradio = importlib.import_module("gradio")
    names = list(dict.fromkeys([*list_pretrained(), weights]))
    suffixes = sorted([*image_files.SUFFIXES, *video.SUFFIXES])
    with gradio.Blocks(title="Remove rain", delete_cache=(_HOUR, _HOUR)) as page:
        gradio.Markdown(_INTRODUCTION)
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(label="Picture or video", file_types=suffixes)
                choice = gradio.Dropdown(names, value=weights, label="Weights")
                button = gradio.Button("Remove rain", variant="primary")
                download = gradio.File(label="Result", interactive=False)
            with gradio.Column(scale=2):
                slider = gradio.ImageSlider(
                    label="Before and after", interactive=False, buttons=["fullscreen"]
                )
                film = gradio.Video(label="After", visible=False, interactive=False)

        def remove_rain(path: str | None, weights: str, progress: Any = gradio.Progress()):  # noqa: B008
            """Of the file at `path`: what the slider, the video and the download show."""
            if not path:
                raise gradio.Error("Choose a picture or a video first.")
            source = pathlib.Path(path)
            # Beside the upload: Gradio serves and removes what lies there.
            target = source.with_name(f"{source.stem}_{pathlib.Path(weights).stem}{source.suffix}")
            progress(0)

            def show(done: int, total: int, _: int) -> None:
                progress((done, total))

            try:
                losses = derain_file(weights, source, target, show)
            except UserError as error:
                raise gradio.Error(str(error).replace(str(source), source.name)) from None
            for line in losses:
                gradio.Warning(line.replace(str(source), source.name))
            is_video = video.is_video(source)
            before_and_after = None if is_video else tuple(map(_preview, (source, target)))
            return (
                gradio.update(value=before_and_after, visible=not is_video),
                gradio.update(value=str(target) if is_video else None, visible=is_video),
                str(target),
            )

        outputs = [slider, film, download]
        button.click(remove_rain, [file, choice], outputs, api_name="derain", concurrency_limit=1)
    return page


def _preview(path: pathlib.Path) -> Image.Image:
    """The first frame of a picture, which browsers may not read themselves."""
    return Image.fromarray(metrics.in_8_bits(image_files.read(path, path.name).frames[0]))
