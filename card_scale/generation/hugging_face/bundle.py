"""The code that an exported folder carries: this project's decoding loop, for transformers' ``trust_remote_code``."""

import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2]
ENTRY = "card_scale.generation.hugging_face.modeling_card"
"""The module whose class transformers loads; it comes with all of this project that it imports."""
_IMPORT = re.compile(r"^from (card_scale[\w.]*) import ", re.MULTILINE)


def write_bundle(folder: Path) -> list[str]:
    """Copy the class and what it stands on into a folder, one flat file a module; return their names.

    Imports become relative to the folder, which is how transformers finds them.
    """
    waiting, written = [ENTRY], dict[str, str]()
    while waiting:
        module = waiting.pop()
        if module in written:
            continue
        source = (PACKAGE.parent / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        waiting += _IMPORT.findall(source)
        written[module] = f"{_flat_name(module)}.py"
        relative = _IMPORT.sub(lambda found: f"from .{_flat_name(found[1])} import ", source)
        (folder / written[module]).write_text(relative, encoding="utf-8")
    return sorted(written.values())


def _flat_name(module: str) -> str:
    name = module.rpartition(".")[2]
    return name if module == ENTRY else f"card_{name}"
