"""`qfleet export`: a run's best policy as a file for other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qfleet.cli.console import DebugOption, JsonOption, Output, QuietOption, examples
from qfleet.run_dir import refuse_others

EXAMPLES = examples(
    "qfleet export runs/acrobot",
    "qfleet export runs/acrobot --int8 --out acrobot.onnx",
    "qfleet export runs/acrobot --format safetensors",
)


def add_to(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command("export", epilog=EXAMPLES)(export)


def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    file_format: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="onnx, torch (an exported program) or safetensors.")
    ] = "onnx",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to; else RUN/policy.onnx, .pt2 or .safetensors.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to int8 (onnx).")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> int:
    """Export the best policy of a run; refused unless the file agrees with the policy on 1,000 observations."""
    from qfleet.errors import UsageError
    from qfleet.export.exporting import SUFFIXES, Format, export_run

    refuse_others(run_dir)
    if file_format not in SUFFIXES:
        raise UsageError(f"--format {file_format}: no such format; use {', '.join(SUFFIXES)}")
    chosen: Format = file_format  # type: ignore[assignment]
    exported = export_run(run_dir, chosen, out, int8=int8)
    output = Output(as_json, quiet)
    description = exported.description
    opset = f", opset {description['opset']}" if description["opset"] else ""
    output.say(exported.agreement.line())
    result = {
        "path": str(exported.path),
        "format": file_format,
        "num_bytes": exported.num_bytes,
        "env": description["env_id"],
        "algo": description["algo"],
        "facts": description["facts"],
        "agreement": description["agreement"],
    }
    line = (
        f"{exported.path}: {description['algo']} policy for {description['env_id']}, "
        f"{exported.num_bytes / 1e3:,.1f} kB{opset}"
    )
    output.result(result, line)
    return 0
