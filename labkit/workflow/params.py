"""Resolve the parameters of a run: science (what the report set out to do) below scope and machine (what this hardware
can do of it) below `-p` overrides.

`params/<report>.yaml` states every science and scope value at the report's own scale. A profile in `params/hardware/`
states the machine and may shrink the scope: smaller lists, fewer epochs, a smaller corpus. It may not touch a science
value, so two profiles always run the same experiment, one of them less of it.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from labkit.base import paths, yaml12
from labkit.base.scale import Scale
from labkit.track.trackers import NO_TRACKER, TRACKERS
from labkit.workflow.report import reports
from labkit.workflow.schema import Layer, Params

if TYPE_CHECKING:
    import pandas as pd


def resolve(report: str, hardware: str, overrides: Mapping[str, Any] | None = None) -> Params:
    """Merge science, hardware and overrides into one validated set of parameters.

    Args:
        report: a report's name.
        hardware: a profile, the stem of a file in params/hardware.
        overrides: values for this run only; any layer.

    Raises:
        ValueError: unknown report, profile or key; a wrong type; a profile that changes a science value or enlarges
            the report's scope. The message names the key, the file and the nearest valid name.
    """
    _check_name(report, reports(), "report")
    _check_name(hardware, paths.profiles(), "hardware profile")
    model = reports()[report].params
    values = dict(_science(report))
    machine, scope = _profile(hardware, report)
    _refuse_growth(values, scope, hardware)
    overrides = dict(overrides or {})
    if "hardware" in overrides:
        raise ValueError(f"-p hardware: a profile is named with --hw {overrides['hardware']}")
    _check_keys(overrides, model.model_fields, "-p")
    sources = dict.fromkeys(values, paths.science_file(report))
    sources |= dict.fromkeys([*machine, *scope], paths.profile_file(hardware)) | dict.fromkeys(overrides, "-p")
    return _validate(model, values | machine | scope | overrides | {"hardware": hardware}, sources)


def collect(report: str, namespace: Mapping[str, Any]) -> Params:
    """Return a notebook's parameters: its profile's, and in their place whatever the notebook sets by name.

    papermill injects whatever it is given, warns about unknown names and exits 0, and hands over `lr: 1e-5` as text;
    this is the gate behind it, as strict as `resolve`.

    Args:
        report: a report's name.
        namespace: the notebook's `globals()`.

    Raises:
        ValueError: no profile is named, a value has a wrong type, or an injected name is unknown.
    """
    _check_name(report, reports(), "report")
    model = reports()[report].params
    injected = _injected_names(namespace.get("In", ()))
    _check_keys(injected, model.model_fields, "injected-parameters")
    own = {name: namespace[name] for name in model.model_fields if name in namespace}
    if not isinstance(own.get("hardware"), str):
        raise ValueError("the parameters cell does not set hardware, the name of the profile that has all other values")
    # A notebook that is given every value may run on a machine that no profile describes.
    rest = {} if len(own) == len(model.model_fields) else resolve(report, own["hardware"]).model_dump()
    sources = dict.fromkeys(rest, paths.profile_file(own["hardware"])) | dict.fromkeys(own, "the notebook's parameters")
    return _validate(model, rest | own, sources)


def given(params: Params) -> dict[str, Any]:
    """Return what tells a run apart: its profile, and the values that are others than the profile's."""
    usual = resolve(params.report_id(), params.hardware).model_dump()
    own = {name: value for name, value in params.model_dump().items() if value != usual[name]}
    return {"hardware": params.hardware} | own


def table(params: Params) -> pd.DataFrame:
    """Return what a run holds less of than the report's own experiment: parameter, value here and there, meaning."""
    import pandas as pd

    stated, fields = stated_scope(params.report_id()), type(params).model_fields
    rows = [
        {"parameter": name, "here": value, "the report's scale": stated[name], "meaning": fields[name].description}
        for name, value in params.model_dump().items()
        if name in stated and value != stated[name]
    ]
    return pd.DataFrame(rows, columns=["parameter", "here", "the report's scale", "meaning"])


def scale(params: Params) -> Scale:
    """Say how much of the report's own experiment a run holds, by comparing it with the files; never stated by hand."""
    if params.smoke:
        return Scale.SMOKE
    report = params.report_id()
    if params != resolve(report, params.hardware):
        return Scale.CUSTOM
    shrunk = any(getattr(params, key) != value for key, value in stated_scope(report).items())
    return Scale.REDUCED if shrunk else Scale.STATED


def stated_scope(report: str) -> dict[str, Any]:
    """Return the scope values of the report itself, from its science file."""
    return {key: value for key, value in _science(report).items() if reports()[report].params.layer(key) is Layer.SCOPE}


def declared_outputs(report: str) -> list[str]:
    """Return the files a run of the report must write, relative to its figures folder."""
    names = yaml12.read(paths.science_file(report)).get("outputs") or []
    return [name + end for name in names for end in ([""] if Path(name).suffix else [".png", ".svg", ".csv"])]


def track_of(hardware: str) -> str | None:
    """Return the tracker that follows every run on a profile, or None.

    Raises:
        ValueError: unknown profile or tracker.
    """
    _check_name(hardware, paths.profiles(), "hardware profile")
    path = paths.profile_file(hardware)
    named = _mapping(yaml12.read(path), path).get("track")
    if named is not None and named not in (*TRACKERS, NO_TRACKER):
        raise ValueError(f"{path}: track: {named!r} is no tracker; valid: {', '.join((*TRACKERS, NO_TRACKER))}")
    return None if named == NO_TRACKER else named


def _science(report: str) -> dict[str, Any]:
    path = paths.science_file(report)
    document = _mapping(yaml12.read(path), path)
    _check_keys(document, ("outputs", "science", "scope"), path)
    model = reports()[report].params
    values: dict[str, Any] = {}
    for layer in (Layer.SCIENCE, Layer.SCOPE):
        section = _mapping(document.get(layer) or {}, path)
        _check_keys(section, [name for name in model.model_fields if model.layer(name) is layer], path)
        values |= section
    return values


def _profile(hardware: str, report: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a profile's machine values and its scope for one report."""
    path = paths.profile_file(hardware)
    document = _mapping(yaml12.read(path), path)
    _check_keys(document, ("machine", "scope", "track"), path)
    machine = _mapping(document.get("machine") or {}, path)
    _check_keys(machine, [name for name in Params.model_fields if name != "hardware"], path)
    by_report = _mapping(document.get("scope") or {}, path)
    _check_keys(by_report, reports(), path)
    scope = _mapping(by_report.get(report) or {}, path)
    model = reports()[report].params
    if science := [key for key in scope if key in model.model_fields and model.layer(key) is Layer.SCIENCE]:
        raise ValueError(
            f"{path}: {', '.join(science)} is part of the science of {report} and no profile may change it; "
            f"edit {paths.science_file(report)}, or pass -p {science[0]}=… for one run of your own"
        )
    _check_keys(scope, [name for name in model.model_fields if model.layer(name) is Layer.SCOPE], path)
    return machine, scope


def _refuse_growth(stated: Mapping[str, Any], scope: Mapping[str, Any], hardware: str) -> None:
    """A profile runs the report's experiment or less of it: no list longer, no size or amount larger than the report's.

    Rates are no amounts: a shorter budget wants larger ones.
    """
    for key, value in scope.items():
        if _grows(stated[key], value):
            raise ValueError(
                f"{paths.profile_file(hardware)}: {key} = {value} goes beyond the report's {stated[key]}; a profile "
                "may only shrink the scope"
            )


def _grows(reported: Any, value: Any) -> bool:
    if isinstance(reported, list) and isinstance(value, list):
        sizes, most = ([item for item in items if isinstance(item, int)] for items in (value, reported))
        return len(value) > len(reported) or (bool(sizes) and bool(most) and max(sizes) > max(most))
    return _is_number(reported) and _is_number(value) and value > reported


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mapping(value: Any, path: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a mapping of names to values, got {type(value).__name__}")
    return value


def _check_name(name: str, names: Iterable[str], what: str) -> None:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}{_nearest(name, names)}")


def _check_keys(given: Iterable[str], valid: Iterable[str], where: Path | str) -> None:
    valid = list(valid)
    for key in given:
        if key not in valid:
            raise ValueError(f"{where}: unknown key {key!r}{_nearest(str(key), valid)}")


def _nearest(name: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid: {', '.join(valid)}"


def _validate(model: type[Params], values: dict[str, Any], sources: Mapping[str, Path | str]) -> Params:
    try:
        return model.model_validate(_whole_floats(model, values))
    except ValidationError as error:
        lines = []
        for item in error.errors():
            if not item["loc"]:
                lines.append(f"{_blamed(item['msg'], sources)}: {item['msg'].removeprefix('Value error, ')}")
                continue
            key = str(item["loc"][0])
            where = sources.get(key, paths.science_file(model.report_id()))
            lines.append(f"{where}: {key}: {item['msg']}; got {item['input']!r}{_text_hint(item['input'])}")
        raise ValueError("\n".join(lines)) from None


def _blamed(message: str, sources: Mapping[str, Path | str]) -> Path | str:
    """Return where a value comes from that does not fit the others, of those that a message names: what was asked for
    last, `-p` before the profile before the report's own file."""
    named = [source for key, source in sources.items() if re.search(rf"\b{re.escape(key)}\b", message)]
    return min(named or sources.values(), key=_age)


def _age(source: Path | str) -> int:
    """Rank a source of values, the one that has the last word first."""
    return 0 if isinstance(source, str) else 1 if source.parent.name == "hardware" else 2


def _whole_floats(model: type[Params], values: dict[str, Any]) -> dict[str, Any]:
    """Let `epochs: 5` mean 5.0, so that equal parameters are written alike."""
    out = dict(values)
    for name in out.keys() & model.float_fields():
        value = out[name]
        out[name] = [_as_float(item) for item in value] if isinstance(value, list) else _as_float(value)
    return out


def _as_float(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    except OverflowError:
        return math.inf


def _text_hint(value: Any) -> str:
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return f" as text: write {value} without quotes"
    return ""


def _injected_names(cells: Iterable[str]) -> list[str]:
    """List the names that papermill's injected cell assigns; its first line marks it in the kernel's history."""
    names: list[str] = []
    for source in cells:
        if source.startswith("# Parameters\n"):
            targets = [t for node in ast.parse(source).body if isinstance(node, ast.Assign) for t in node.targets]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names
