"""`headrace calibrate`: the confidence that answers need, from labelled data."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.errors import FailedPreconditionError, InvalidArgumentError, NotFoundError

__all__ = ["calibrate"]


def calibrate(
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    data: Annotated[Path, typer.Option(help=".npz: the model's inputs, a row each, and labels.")],
    target_error: Annotated[
        float, typer.Option(help="Of the answers that are accepted, this share may be wrong.")
    ] = 0.02,
    output: Annotated[
        str, typer.Option(help="With a number a class. [default: the only one]")
    ] = "",
    labels: Annotated[str, typer.Option(help="The array of right classes, as numbers.")] = "labels",
    activation: Annotated[str, typer.Option(help="none, softmax or sigmoid.")] = "none",
    measure: Annotated[str, typer.Option(help="probability or margin.")] = "probability",
    model_version: Annotated[str, typer.Option(help="Default: the highest ready one.")] = "",
    batch: Annotated[int, typer.Option(help="Rows a request.")] = 32,
    url: Annotated[str, typer.Option(help="host:port of the server.")] = "localhost:8001",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find the confidence below which answers are better given to a fallback."""
    from headrace.optimize.calibrate import calibrate as find
    from headrace.optimize.calibrate import confidences

    if activation not in ("none", "softmax", "sigmoid"):
        raise InvalidArgumentError(f"--activation is '{activation}'; say none, softmax or sigmoid")
    if measure not in ("probability", "margin"):
        raise InvalidArgumentError(f"--measure is '{measure}'; say probability or margin")
    arrays = _read(data)
    if labels not in arrays:
        raise InvalidArgumentError(f"{data} has no '{labels}', only {', '.join(sorted(arrays))}")
    right = arrays.pop(labels).reshape(-1)
    if right.dtype.kind not in "iu":
        raise InvalidArgumentError(f"'{labels}' are {right.dtype}; expected numbers of classes")
    for name, array in arrays.items():
        if array.ndim == 0 or len(array) != len(right):
            raise InvalidArgumentError(f"'{name}' has not as many rows as there are labels")
    output, rows = _predict(url, model, model_version, output, arrays, len(right), max(1, batch))
    confidence, predicted = confidences(rows, activation=activation, measure=measure)
    chosen, points = find(confidence, predicted == right, target_error=target_error)
    accept = {"output": output, "confidence": round(chosen.threshold, 6)} if chosen else None
    if accept is not None:
        accept |= {} if activation == "none" else {"activation": activation}
        accept |= {} if measure == "probability" else {"measure": measure}
    if as_json:
        curve = [vars(point) for point in points]
        print(json.dumps({"accept": accept, "rows": len(right), "points": curve}))
        return
    print(f"{'CONFIDENCE':>10} {'ACCEPTED':>9} {'WRONG':>7} {'AT MOST':>8}")
    for point in points[::2]:
        print(
            f"{point.threshold:10.4f} {point.coverage:9.1%} {point.error:7.2%} {point.bound:8.2%}"
        )
    if accept is None:
        print(f"\nNo threshold keeps {target_error:.2%} on {len(right)} rows: label more rows.")
        raise typer.Exit(1)
    assert chosen is not None
    inner = ", ".join(f"{key}: {value}" for key, value in accept.items())
    print(
        f"\n{chosen.coverage:.1%} of the answers are accepted, at most {target_error:.2%} of them "
        f"wrong (95 % sure).\nFor policy.yaml:\n\naccept: {{{inner}}}"
    )


def _read(path: Path) -> dict[str, Any]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as loaded:
            if not hasattr(loaded, "files"):
                raise InvalidArgumentError(f"{path} is no .npz file")
            return {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist") from None
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        raise InvalidArgumentError(f"{path} is no .npz file of numbers: {error}") from None


def _predict(
    url: str, model: str, version: str, output: str, arrays: dict[str, Any], count: int, batch: int
) -> tuple[str, Any]:
    """(output's name, its rows). The model's own answers only."""
    import numpy as np

    from headrace.client import Client
    from headrace.client.client import outputs_of

    rows: list[Any] = []
    with Client(url) as client:
        metadata = client.model_metadata(model, version)
        names = [tensor.name for tensor in metadata.outputs]
        if not output and len(names) != 1:
            raise InvalidArgumentError(f"--output: one of {', '.join(names)}")
        output = output or names[0]
        limit = client.model_config(model, version).max_batch_size
        if limit == 0:
            raise InvalidArgumentError(f"model '{model}' takes no batches, so no rows of them")
        for at in range(0, count, min(batch, limit)):
            part = {name: array[at : at + min(batch, limit)] for name, array in arrays.items()}
            response = client.ask(model, part, version=version, outputs=[output])
            if "hr.answered_by" in response.parameters:
                raise FailedPreconditionError(
                    f"{response.parameters['hr.answered_by'].string_param} answered instead of "
                    f"'{model}'; calibrate without the `fallback:` of its policy"
                )
            rows.append(outputs_of(response)[output])
    return output, np.concatenate(rows)
