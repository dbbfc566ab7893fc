"""Imports point one way: experiments → minigpt, analysis alone; a file imports those above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = {
    "minigpt": (
        "syntax scopes prose relations clusters "
        "frozen sources config counts schedule paths records text split shards tokenizer "
        "vocabulary tokens cache corpus textshards evalsets data process layers loss kvcache model "
        "group optim checkpoint state evaluate event step regions feed stack member loop weights "
        "decode beam generate heads copying ablate probe structure "
        "lines toy recipe flags watch sample train"
    ),
    "experiments": (
        "rules axes resources config spec corpora models grid horizons plan provenance schema rows "
        "store shards manifest export slurm verdict jobs estimate measure pack costs tables "
        "snapshot prepare peaks record leg capacity trunk run follow torchrun lanes slots "
        "launch job submit speed "
        "progress execute manage sweep trained samples circuits reference trial worker "
        "contest figures stepsuite packsuite sweepsuite gpusuite benchmark"
    ),
    "analysis": (
        "read rows columns units checks load conventions public flops form law cells sumlaw "
        "gammalaw reuse datalaw shiftedpower farseer laws newton certificate solve refit gls "
        "targets profile "
        "interval repetition identify bootstrap noise uncertainty compare curves optima "
        "envelope isoflop sensitivity discrepancy surface population result trust allocate "
        "forecast analyse words describe textreport fitsjson fit drawing panels plots rowtables "
        "remarks tables circuits circuitplots circuittables samples vocabularies report "
        "register predict shapes information market choose planned expected offers nextruns "
        "gridfile design simulated replay nested extrapolation coverage pipeline fitspeed "
        "benchmark"
    ),
}
MAY_IMPORT = {"minigpt": set(), "experiments": {"minigpt"}, "analysis": set()}
NO_TORCH = {
    "minigpt": (
        "syntax scopes prose relations clusters probe "
        "frozen sources config counts schedule paths records text split shards tokenizer "
        "vocabulary tokens cache corpus textshards evalsets data lines flags recipe"
    ),
    "experiments": (
        "rules axes resources config spec corpora models grid horizons plan provenance schema rows "
        "store shards manifest export slurm verdict jobs estimate measure pack costs tables "
        "snapshot prepare follow submit progress execute manage sweep"
    ),
    "analysis": ORDER["analysis"],
}


def modules() -> list[tuple[str, str, Path]]:
    return [
        (package, path.stem, path)
        for package in ORDER
        for path in sorted((ROOT / package).glob("*.py"))
        if path.stem != "__init__"
    ]


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Dotted names that the file imports, "a.b" for `from a import b`."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_file_has_its_place() -> None:
    for package, names in ORDER.items():
        here = {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}
        assert here == set(names.split()), package


@pytest.mark.parametrize(("package", "name", "path"), modules())
def test_imports_point_one_way(package: str, name: str, path: Path) -> None:
    order = ORDER[package].split()
    for imported in imports(path):
        parts = imported.split(".")
        if parts[0] in ORDER and parts[0] != package:
            assert parts[0] in MAY_IMPORT[package], f"{path.name} imports {imported}"
        elif parts[0] == package:
            assert parts[1] in order[: order.index(name)], f"{path.name} imports {imported}"
    if name in NO_TORCH[package].split():
        assert not {i for i in imports(path) if i.split(".")[0] == "torch"}, path.name
    assert not {i for i in imports(path, top_level_only=True) if i.startswith("submitit")}
