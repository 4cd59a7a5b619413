"""`headrace quantize`: a float ONNX model to INT8, with a report of what it costs and gains."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from headrace.errors import InvalidArgumentError

if TYPE_CHECKING:
    from headrace.optimize.measure import Difference, Speed
    from headrace.optimize.quantize import Quantized
    from headrace.optimize.samples import Division

__all__ = ["quantize"]

OptionalPath = Optional[Path]  # noqa: UP045


def quantize(
    model: Annotated[Path, typer.Argument(help="Float ONNX file.")],
    samples: Annotated[
        OptionalPath,
        typer.Option(
            help=".npz, or a folder of them: an array for each input of the model, a row a sample; "
            "`labels` too, if you have them. Without: INT8 with scales found per request."
        ),
    ] = None,
    output: Annotated[OptionalPath, typer.Option("--output", "-o", help="File to write.")] = None,
    to: Annotated[
        OptionalPath, typer.Option(help="Version to make in a repository, as models/digits/2.")
    ] = None,
    held_out: Annotated[
        OptionalPath,
        typer.Option(help="Samples to measure on, as --samples. [default: a quarter of those]"),
    ] = None,
    max_error: Annotated[
        float,
        typer.Option(help="Relative error against float that is allowed; layers stay in float."),
    ] = 0.02,
    calibration: Annotated[
        str, typer.Option(help="auto (the best of them), minmax, percentile, mse or entropy.")
    ] = "auto",
    percentile: Annotated[float, typer.Option(help="Of --calibration percentile.")] = 99.99,
    weight_bits: Annotated[
        int, typer.Option(help="8; 7 for other runtimes on x86 without VNNI, which saturate.")
    ] = 8,
    smooth: Annotated[
        str, typer.Option(help="SmoothQuant: auto (measured), off, or a strength as 0.5.")
    ] = "auto",
    keep_float: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Layers to leave in float, as '*/classifier/*'. Repeatable."),
    ] = None,
    judge: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Output that the error is of. Repeatable. [default: the worst of all]"),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed/--no-speed", help="Whether to time both on this machine.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make an INT8 model of a float one, as accurate as asked for."""
    from headrace.optimize import place
    from headrace.optimize.quantize import Options, check_packages

    options = Options(
        max_error,
        calibration,
        percentile,
        weight_bits,
        smooth,
        tuple(keep_float or ()),
        tuple(judge or ()),
    )
    check_packages()
    if output is not None and to is not None:
        raise InvalidArgumentError("--output and --to: give one of them")
    if to is not None:
        place.check_version(to, force=force)
    else:
        output = output or model.with_suffix(".int8.onnx")
        place.check_file(output, force=force)
    if samples is None:
        if held_out is not None:
            raise InvalidArgumentError("--held-out is given without --samples")
        _mark_dynamic(model, output, to, as_json)
        return

    from headrace.optimize import measure
    from headrace.optimize.layers import inputs_of, open_model
    from headrace.optimize.quantize import quantize as run
    from headrace.optimize.samples import divide, read_chunks
    from headrace.progress import StepProgress

    inputs = inputs_of(open_model(model))
    chunks = read_chunks(samples, inputs)
    division = divide(chunks, None if held_out is None else read_chunks(held_out, inputs))
    timed: list[Speed] = []
    with StepProgress() as progress:
        result = run(model, division, options, progress)
        if speed:
            progress("timing", 0, 1)
            timed = measure.speed(result.float_model, result.model, division.held_out[0])
    written = _place(result.model, output, to)
    if as_json:
        print(json.dumps(_report(model, written, options.max_error, result, division, timed)))
    else:
        _print(model, written, options.max_error, result, division, timed)


def _place(content: bytes, output: Path | None, to: Path | None) -> Path:
    from headrace.optimize import place

    if to is not None:
        return place.place_version(to, content)
    assert output is not None
    place.place_file(output, content)
    return output


def _mark_dynamic(model: Path, output: Path | None, to: Path | None, as_json: bool) -> None:
    """The model as it is, and a parameter that has the server run its linear layers in INT8."""
    from headrace.errors import FailedPreconditionError
    from headrace.optimize import place
    from headrace.optimize.layers import find_layers, open_model

    opened = open_model(model)
    layers = [layer for layer in find_layers(opened)[0] if layer.op != "Conv"]
    if not layers:
        raise FailedPreconditionError(
            f"{model} has no MatMul or Gemm with constant weights, and no others can be INT8 "
            "without --samples"
        )
    written = _place(opened.SerializeToString(), output, to)
    others: list[str] = []
    if to is not None:
        place.mark_dynamic(to.absolute().parent)
        others = [p.name for p in to.absolute().parent.iterdir() if p.name.isdigit()]
        others = sorted(set(others) - {to.name}, key=int)
    if as_json:
        print(json.dumps({"output": str(written), "int8": "dynamic", "linear_layers": len(layers)}))
        return
    print(f"{written}: {len(layers)} linear layers, marked to run in INT8 with dynamic scales")
    if to is None:
        print(f"For config.pbtxt of the model that serves it:\n\n{place.DYNAMIC}")
    elif others:
        print(
            f"note: config.pbtxt is of all versions: version {', '.join(others)} runs so, too, "
            "when it is loaded again"
        )


def _report(
    model: Path,
    written: Path,
    max_error: float,
    result: Quantized,
    division: Division,
    timed: list[Speed],
) -> dict[str, Any]:
    return {
        "model": str(model),
        "output": str(written),
        "max_error": max_error,
        "error": result.error,
        "outputs": [vars(d) for d in result.differences],
        "this_machine": None
        if result.on_this_machine is None
        else [vars(d) for d in result.on_this_machine],
        "samples": {
            "observed": division.rows(division.observe),
            "held_out": division.rows(division.held_out),
        },
        "bytes": {"before": model.stat().st_size, "after": len(result.model)},
        "speed": [
            {
                "rows": s.rows,
                "before_us": s.before * 1e6,
                "after_us": s.after * 1e6,
                "ratio": s.ratio,
            }
            for s in timed
        ],
        "layers": {
            "int8": result.layers,
            "float": [vars(one) for one in result.left],
            "effects": result.effects,
        },
        "calibration": result.calibration,
        "smoothed": result.smoothed,
    }


def _print(
    model: Path,
    written: Path,
    max_error: float,
    result: Quantized,
    division: Division,
    timed: list[Speed],
) -> None:
    from rich.console import Console
    from rich.table import Table

    # Piped: whole lines, nothing cut to a window that is not there.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)

    def table(*headings: str) -> Table:
        made = Table(box=None, pad_edge=False, header_style="bold")
        for at, heading in enumerate(headings):
            made.add_column(heading, justify="left" if at == 0 else "right")
        return made

    before, after = model.stat().st_size, len(result.model)
    print(
        f"{written}: {result.layers} layers in INT8, calibration {result.calibration}, "
        f"{result.smoothed} tensors smoothed\n"
        f"error {result.error:.4g} of at most {max_error:g}, on "
        f"{division.rows(division.held_out)} samples that were held out of "
        f"{division.rows(division.held_out + division.observe + division.search)}\n"
        f"size {_megabytes(before)} -> {_megabytes(after)}\n"
    )
    accuracy = table("against float", "relative L2", "max abs", "top-1 same", "least cosine")
    labelled = any(d.accuracy for d in result.differences)
    if labelled:
        accuracy.add_column("accuracy float", justify="right")
        accuracy.add_column("INT8", justify="right")
    for difference in result.differences:
        accuracy.add_row(difference.output, *_cells(difference, labelled))
    for difference in result.on_this_machine or ():
        accuracy.add_row(f"{difference.output}, OpenVINO here", *_cells(difference, labelled))
    console.print(accuracy)
    if timed:
        speeds = table("OpenVINO here", "before", "after", "faster")
        for one in timed:
            speeds.add_row(
                f"{one.rows} row{'s' * (one.rows > 1)}",
                _time(one.before),
                _time(one.after),
                f"x{one.ratio:.2f}",
            )
        print()
        console.print(speeds)
    if result.left:
        left = table("in float", "")
        left.columns[1].justify = "left"
        for layer in result.left:
            left.add_row(f"{layer.name} ({layer.op})", layer.reason)
        print()
        console.print(left)
    for note in notes(result, timed):
        print(f"\nnote: {note}")


def notes(result: Quantized, timed: list[Speed]) -> list[str]:
    """What somebody should know before serving this."""
    found = []
    here = result.on_this_machine
    if here is None:
        found.append("OpenVINO does not run this file; onnxruntime does (onnx_engine)")
    elif max((d.relative_l2 for d in here), default=0.0) > max(1.5 * result.error, 1e-3):
        found.append(
            "this machine's stock INT8 instructions saturate, so OpenVINO's answers are worse "
            "than the file says; --weight-bits 7 is exact everywhere"
        )
    if timed and all(s.ratio < 1 for s in timed):
        found.append(f"INT8 is slower than float on this machine ({os.cpu_count()} CPUs)")
    return found


def _cells(d: Difference, labelled: bool) -> list[str]:
    cells = [f"{d.relative_l2:.4g}", f"{d.max_abs:.4g}", f"{d.agreement:.2%}"]
    cells.append("" if d.cosine is None else f"{d.cosine:.5f}")
    if labelled:
        cells += [f"{a:.2%}" for a in d.accuracy] if d.accuracy else ["", ""]
    return cells


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"
