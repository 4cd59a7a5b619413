"""Pictures of text for PP-OCR: draw one, find its lines, cut them out, read the answers.

Arrays are (1, 3, height, width) FP32, channels blue-green-red, -1..1, as PP-OCR was trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

Pixels = npt.NDArray[np.float32]

LINE_HEIGHT = 48


@dataclass(frozen=True)
class Line:
    """Where a line of text is in the picture, in pixels."""

    left: int
    top: int
    right: int
    bottom: int


def draw(lines: list[str]) -> Image.Image:
    """The lines in dark ink of several sizes on paper; both sides are multiples of 32."""
    picture = Image.new("RGB", (960, 96 * len(lines)), (250, 246, 235))
    pen = ImageDraw.Draw(picture)
    for row, text in enumerate(lines):
        font = ImageFont.load_default(size=34 + 6 * (row % 3))
        pen.text((40 + 24 * row, 96 * row + 22), text, fill=(30, 30 + 20 * row, 80), font=font)
    return picture


def _normalised(picture: Image.Image) -> Pixels:
    bgr = np.asarray(picture, np.float32)[:, :, ::-1]
    return np.ascontiguousarray((bgr / 255 - 0.5) / 0.5).transpose(2, 0, 1)[np.newaxis].copy()


def detection_input(picture: Image.Image) -> Pixels:
    return _normalised(picture)


def find_lines(probability: Pixels) -> list[Line]:
    """Lines in the (1, 1, height, width) map of text probability, top to bottom."""
    text = probability[0, 0]
    regions, _ = ndimage.label(text > 0.3)
    lines = []
    for index, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
        inside = regions[rows, columns] == index
        height, width = inside.shape
        if min(height, width) < 4 or text[rows, columns][inside].mean() < 0.5:
            continue
        # The model marks the core of a line; grow it as PP-OCR does (area * 1.6 / perimeter).
        grow = round(height * width * 1.6 / (2 * (height + width)))
        lines.append(
            Line(
                max(0, columns.start - grow),
                max(0, rows.start - grow),
                min(text.shape[1], columns.stop + grow),
                min(text.shape[0], rows.stop + grow),
            )
        )
    return sorted(lines, key=lambda line: (line.top, line.left))


def recognition_input(picture: Image.Image, line: Line) -> Pixels:
    """The line scaled to 48 pixels of height, its width whatever follows from that."""
    crop = picture.crop((line.left, line.top, line.right, line.bottom))
    width = max(LINE_HEIGHT, round(LINE_HEIGHT * crop.width / crop.height))
    return _normalised(crop.resize((width, LINE_HEIGHT), Image.Resampling.BICUBIC))


def alphabet(model: Path) -> list[str]:
    """The characters of the recognition model's classes; class 0 is "nothing"."""
    import onnxruntime

    metadata = onnxruntime.InferenceSession(str(model)).get_modelmeta().custom_metadata_map
    return ["", *metadata["character"].splitlines(), " "]


def read(probabilities: Pixels, characters: list[str]) -> tuple[str, float]:
    """The text of one (1, steps, classes) answer and its mean confidence, by greedy CTC."""
    classes = probabilities[0].argmax(axis=1)
    best = probabilities[0].max(axis=1)
    keep = (classes != 0) & (classes != np.concatenate([[0], classes[:-1]]))
    text = "".join(characters[index] for index in classes[keep])
    return text, float(best[keep].mean()) if keep.any() else 0.0
