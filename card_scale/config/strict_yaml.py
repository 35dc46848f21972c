"""YAML as people mean it: every key stands once, numbers are decimal, and dates are text.

Plain YAML 1.1 lets a second key replace the first without a word, reads 0100 as 64 and 1:30 as 90, takes 3e-4 and 1e6
for text, and makes a date of a directory that is called 2026-11-28.
"""

import re
from typing import Any, ClassVar

import yaml

_NOT_AS_IN_YAML_1_1 = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}


class _Loader(yaml.SafeLoader):
    """Refuses repeated keys while the text is composed: later, keys that ``<<`` merges in stand beside a map's own."""

    yaml_implicit_resolvers: ClassVar[dict] = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_AS_IN_YAML_1_1]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in lines:
                    raise yaml.YAMLError(f"line {line} repeats the key {key.value} of line {lines[name]}")
                lines[name] = line
        return node


# A number that begins with zeros stays text, and is refused where a number is wanted: 0100 is 64 to one reader and 100
# to the next.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"""(?:[-+]?(?:0|[1-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?
        |[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


class _Dumper(yaml.SafeDumper):
    """Puts text into quotes where this loader, or one of plain YAML 1.1, would take it for something else."""


for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
    _reader_or_writer.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def load(text: str) -> Any:
    """Return the value of a YAML text, of YAML's own types only.

    Raises yaml.YAMLError for a text that is no YAML, or with a line and a key that stands twice in one map.
    """
    return yaml.load(text, _Loader)


def dump(tree: Any) -> str:
    """Return a value of YAML's own types as text from which ``load`` makes the same; maps keep their order."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)
